"""Values of small arrays and of those that must be equal in all files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numcodecs
import numpy as np
from numcodecs.vlen import VLenBytes, VLenUTF8

from refindex.access.files import SourcePool
from refindex.decode.checksum import check
from refindex.decode.pipeline import decode, encode, place
from refindex.errors import DecodeError, UnsupportedError
from refindex.join.member import Member
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.dtype import fill_value_from_json
from refindex.model.manifest import Node

type Values = np.ndarray[Any, Any]

_OF_VARIABLE_LENGTH = {"vlen-utf8": VLenUTF8, "vlen-bytes": VLenBytes}


def is_inline(table: ChunkTable) -> bool:
    """Whether all values of an array that there are lie in the manifest."""
    return table.is_inline


def array_values(member: Member, path: str) -> Values:
    """All values of an array as its document declares them; objects for values of variable length.

    Raises
    ------
    RefindexError
        If a chunk cannot be read or decoded.
    """
    node, table = member.nodes[path], member.table(path)
    pool = SourcePool(member.sources, storage_options=member.storage_options)
    try:
        return _values(node, table, pool)
    finally:
        pool.close()


def _values(node: Node, table: ChunkTable, pool: SourcePool | None) -> Values:
    dtype, shape = node.dtype, node.shape
    if dtype is None:
        fill = node.json["fill_value"]
        out: Values = np.full(shape, b"" if node.codecs[0]["name"] == "vlen-bytes" else fill, dtype=object)
    else:
        whole = _whole(node, table, dtype)
        if whole is not None:
            return whole
        fill = fill_value_from_json(dtype, node.json["fill_value"])
        out = np.full(shape, fill, dtype=dtype)
    for row in range(len(table)):
        chunk, encoding = int(table.chunk[row]), int(table.encoding[row])
        lengths = node.grid.chunk_shape(chunk)
        if table.source[row] == INLINE:
            data = table.inline_bytes(row)
        elif pool is None:
            raise UnsupportedError(f"/{node.path}: values are in another file")
        else:
            data = pool.read(int(table.source[row]), int(table.offset[row]), int(table.length[row]))
            if table.checksum is not None:
                _check(data, node, chunk, int(table.checksum[row]))
        if encoding == DECLARED:
            values = decode_declared(data, node.codecs, dtype, lengths)
        elif dtype is None:
            raise UnsupportedError(f"/{node.path}: values of variable length in another file")
        else:
            kind = node.encodings[encoding]
            values = place(decode(data, kind, dtype), kind, lengths, fill)
        origin = node.grid.origin(chunk)
        inside = tuple(slice(0, min(n, end - at)) for n, end, at in zip(lengths, shape, origin, strict=True))
        target = tuple(slice(at, at + s.stop) for at, s in zip(origin, inside, strict=True))
        out[target] = values[inside]
    return out


def _check(data: bytes, node: Node, chunk: int, expected: int) -> None:
    try:
        check(data, expected)
    except DecodeError as error:
        raise DecodeError(f"/{node.path}/{node.grid.key(chunk)}: {error}; scan the file again") from error


def _whole(node: Node, table: ChunkTable, dtype: np.dtype[Any]) -> Values | None:
    """The values of an array in one inline chunk of plain bytes: what coordinates are."""
    if len(table) != 1 or node.grid.size != 1 or table.source[0] != INLINE or table.encoding[0] != DECLARED:
        return None
    shape = node.shape
    if len(node.codecs) != 1 or node.grid.chunk_shape(0) != shape:
        return None
    return np.frombuffer(table.data, dtype=dtype, count=int(np.prod(shape)), offset=int(table.offset[0])).reshape(shape)


def decode_declared(
    data: bytes, codecs: list[dict[str, Any]], dtype: np.dtype[Any] | None, shape: tuple[int, ...]
) -> Values:
    """The values of a chunk from its bytes as a codec chain that refindex writes encodes them."""
    for codec in reversed(codecs[1:]):
        name = codec["name"].removeprefix("numcodecs.")
        configuration = dict(codec.get("configuration", {}))
        if name == "blosc":
            configuration = {}
        data = bytes(numcodecs.get_codec({"id": name, **configuration}).decode(data))
    if dtype is None:
        values = _OF_VARIABLE_LENGTH[codecs[0]["name"]]().decode(data)
        return np.asarray(values, dtype=object).reshape(shape)
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def encode_declared(values: Values, codecs: list[dict[str, Any]], dtype: np.dtype[Any] | None) -> bytes:
    """The bytes of a chunk as an array declares it."""
    if dtype is None:
        flat = np.ascontiguousarray(values, dtype=object).reshape(-1)
        return bytes(_OF_VARIABLE_LENGTH[codecs[0]["name"]]().encode(flat))
    return encode(np.asarray(values).astype(dtype, copy=False), codecs)


def same_values(one: Values, other: Values) -> bool:
    """Whether arrays are equal element for element; NaN equals NaN."""
    if one.shape != other.shape:
        return False
    if one.dtype.kind == other.dtype.kind == "f" or one.dtype.kind == other.dtype.kind == "c":
        return bool(np.array_equal(one, other, equal_nan=True))
    return bool(np.array_equal(one, other))


def digest(values: Values) -> str:
    """A checksum by which arrays that are equal element for element are known without reading both again."""
    if values.dtype == object:
        parts = [v if isinstance(v, bytes) else str(v).encode() for v in values.reshape(-1).tolist()]
        # With their lengths: strings may have any character in them.
        body = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
    else:
        canonical = values.astype(values.dtype.newbyteorder("<"), copy=False)
        if canonical.dtype.kind in "fc":
            canonical = np.where(np.isnan(canonical), canonical.dtype.type(np.nan), canonical + 0).astype(
                canonical.dtype
            )
        body = np.ascontiguousarray(canonical).tobytes()
    kind = values.dtype.newbyteorder("=").str
    return hashlib.sha256(f"{kind}{values.shape}".encode() + body).hexdigest()


def constants(joined: Mapping[str, Any] | None) -> Mapping[str, str]:
    """Checksums of the variables that were equal in all files, as an archive keeps them."""
    return dict((joined or {}).get("constants", {}))
