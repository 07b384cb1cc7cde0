"""Encoding + stored bytes -> values, and values -> bytes as declared.

Filters that Python libraries undo well are undone here; all others by libhdf5 itself
(:mod:`refindex.decode.libhdf5`), the decoder of last resort.
"""

from __future__ import annotations

import zlib
from typing import Any

import numcodecs
import numpy as np

from refindex.decode import libhdf5
from refindex.errors import DecodeError, RefindexError
from refindex.model.dtype import is_foreign, numpy_dtype, readable, served_dtype, to_served
from refindex.model.encoding import BLOSC, BZIP2, DEFLATE, FLETCHER32, SHUFFLE, ZSTD, Encoding, Filter
from refindex.model.promotion import widens

_BUILT_IN = {DEFLATE, SHUFFLE, FLETCHER32, BZIP2, ZSTD, BLOSC}
_SNAPPY = 3

type Values = np.ndarray[Any, Any]


def decode(data: bytes, encoding: Encoding, served: np.dtype[Any]) -> Values:
    """The values of a stored chunk, in the shape in which it was stored, unpacked if the array is served so.

    Parameters
    ----------
    data:
        The bytes as stored.
    served:
        Dtype of the result.

    Raises
    ------
    DecodeError
        If a filter fails, a checksum differs, or the size is not what the encoding promises.
    """
    if all(is_built_in(applied) for applied in encoding.filters):
        for applied in reversed(encoding.filters):
            try:
                data = _undo(data, applied, encoding.nbytes)
            except RefindexError:
                raise
            except Exception as error:  # each library has its own exceptions, some are bare RuntimeErrors
                raise DecodeError(f"{applied.name}: {error}") from error
    else:
        data = libhdf5.decode(data, encoding)
    if len(data) != encoding.nbytes:
        raise DecodeError(
            f"chunk decodes to {len(data)} bytes, expected {encoding.nbytes} "
            f"({encoding.shape} of {numpy_dtype(encoding.type)})"
        )
    return _convert(_natural(data, encoding, served), encoding, served)


def _natural(data: bytes, encoding: Encoding, served: np.dtype[Any]) -> Values:
    """Values in the type that Zarr has for the stored one: ``served`` itself but for its size and byte order."""
    natural = served_dtype(encoding.type)
    natural = served if encoding.packing is None and natural.newbyteorder("=") == served.newbyteorder("=") else natural
    if is_foreign(encoding.type):
        values = libhdf5.convert(data, libhdf5.read_type(encoding.hdf5_type), encoding.type)
        return to_served(values.reshape(encoding.shape), readable(encoding.type), natural)
    stored = numpy_dtype(encoding.type)
    base = stored.base if stored.subdtype else stored
    return to_served(np.frombuffer(data, dtype=base).reshape(encoding.shape), encoding.type, natural)


def _convert(values: Values, encoding: Encoding, served: np.dtype[Any]) -> Values:
    """Unpack, and widen to the type of an array that is joined of several."""
    if encoding.packing is not None:
        values = encoding.packing.unpack(values)
    if values.dtype == served:
        return values
    if not widens(values.dtype, served):
        raise DecodeError(f"values of {values.dtype} do not fit into {served}")
    return values.astype(served)


def place(values: Values, encoding: Encoding, shape: tuple[int, ...], fill: Any) -> Values:
    """What a stored chunk is in its array: from its ``start`` on, repeated, cropped or padded to ``shape``."""
    if any(encoding.start):
        values = values[tuple(slice(n, None) for n in encoding.start)]
    if encoding.broadcast:
        over = tuple(shape[axis] if axis in encoding.broadcast else n for axis, n in enumerate(values.shape))
        values = np.broadcast_to(values, over)
    return fit(values, shape, fill)


def is_built_in(applied: Filter) -> bool:
    """Whether a filter is undone here, without libhdf5."""
    if applied.id == BLOSC and len(applied.values) > 6 and applied.values[6] == _SNAPPY:
        return False  # numcodecs' blosc is built without it
    return applied.id in _BUILT_IN


def _undo(data: bytes, applied: Filter, nbytes: int) -> bytes:
    match applied.id:
        case 1:
            # A little more than the chunk is enough to tell that a stream is too long, without
            # letting a hostile one fill the memory.
            inflate = zlib.decompressobj()
            out = inflate.decompress(data, nbytes + 64)
            if not inflate.eof:
                raise DecodeError(f"deflate: stream is truncated, or longer than the {nbytes} bytes of the chunk")
            return out
        case 2:
            return _unshuffle(data, applied.values[0] if applied.values else 1)
        case 3:
            return bytes(numcodecs.Fletcher32().decode(data))
        case 307:
            return bytes(numcodecs.BZ2().decode(data))
        case 32001:
            # The header of a blosc buffer has its decoded size at byte 4: a hostile one is not believed.
            if int.from_bytes(data[4:8], "little") > nbytes + 64:
                raise DecodeError(f"blosc: the buffer claims more than the {nbytes} bytes of the chunk")
            return bytes(numcodecs.Blosc().decode(data))
        case _:
            return bytes(numcodecs.Zstd().decode(data))


def _unshuffle(data: bytes, elementsize: int) -> bytes:
    """Undo HDF5's byte shuffle, which leaves a remainder of less than one element at the end as it is."""
    count = len(data) // elementsize if elementsize > 0 else 0
    if elementsize <= 1 or count <= 1:
        return data
    whole = count * elementsize
    planes = np.frombuffer(data, dtype=np.uint8, count=whole).reshape(elementsize, count)
    return planes.T.tobytes() + data[whole:]


def fit(values: Values, shape: tuple[int, ...], fill: Any) -> Values:
    """Crop or pad values at the far ends to ``shape``."""
    if values.shape == shape:
        return values
    common = tuple(slice(0, min(have, want)) for have, want in zip(values.shape, shape, strict=True))
    out = np.full(shape, fill, dtype=values.dtype)
    out[common] = values[common]
    return out


def encode(values: Values, codecs: list[dict[str, Any]]) -> bytes:
    """The bytes of a chunk as a declared Zarr v3 codec chain writes it (``bytes`` first)."""
    data = np.ascontiguousarray(values).tobytes()
    for codec in codecs[1:]:
        name = codec["name"].removeprefix("numcodecs.")
        configuration = dict(codec.get("configuration", {}))
        if name == "blosc":
            configuration["shuffle"] = ("noshuffle", "shuffle", "bitshuffle").index(configuration["shuffle"])
            configuration.pop("typesize", None)
        data = bytes(numcodecs.get_codec({"id": name, **configuration}).encode(data))
    return data
