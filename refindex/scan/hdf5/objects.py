"""Values of variable length, and references: kept in the manifest, because they lie in heaps that no range names.

Strings become Zarr strings (bytes where they are not UTF-8). Sequences become the bytes of their elements, little
endian, with the type of the elements named in the attribute ``vlen_base_type``. References become the paths that they
refer to. Compounds that hold strings or references keep them as fixed strings of the greatest length there is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import h5py
import numcodecs
import numpy as np
from h5py import h5d, h5r, h5s, h5t

from refindex.errors import UnsupportedError
from refindex.model.chunks import ChunkTable
from refindex.model.dtype import data_type_json, fill_value_json
from refindex.model.encoding import bytes_codec
from refindex.model.grid import ChunkGrid
from refindex.model.zarr_v3 import dumps
from refindex.scan.contiguous import split_contiguous

PER_CHUNK = 1 << 18
"""Elements in one inline chunk."""

type Objects = np.ndarray[Any, np.dtype[np.object_]]


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineObjects:
    """An array of values of variable length, ready for its document."""

    grid: ChunkGrid
    data_type: Any
    codecs: list[dict[str, Any]]
    chunks: ChunkTable
    fill_value: Any
    attributes: dict[str, Any] = field(default_factory=dict)
    reason: str = ""


def is_variable(datatype: h5t.TypeID) -> bool:
    """Whether a datatype has a part of variable length, or a reference, anywhere in it."""
    match datatype.get_class():
        case h5t.STRING:
            return bool(datatype.is_variable_str())
        case h5t.VLEN | h5t.REFERENCE:
            return True
        case h5t.ARRAY:
            return is_variable(datatype.get_super())
        case h5t.COMPOUND:
            return any(is_variable(datatype.get_member_type(i)) for i in range(datatype.get_nmembers()))
        case _:
            return False


def inline_objects(dataset: h5d.DatasetID, extended: tuple[int, ...] | None = None) -> InlineObjects:
    """Read a dataset whose type :func:`is_variable`.

    Parameters
    ----------
    extended:
        The shape with which it is served, if that is not its own: behind its extent follows the fill value.

    Raises
    ------
    UnsupportedError
        If the type has no form in Zarr here.
    """
    datatype = dataset.get_type()
    base = datatype
    while base.get_class() == h5t.ARRAY:
        base = base.get_super()
    values = _read(dataset)
    if extended is not None and extended != values.shape and base is datatype:
        values = _extend(values, extended, h5py.Dataset(dataset).fillvalue)
    match base.get_class():
        case h5t.STRING:
            return _strings(values)
        case h5t.REFERENCE:
            return _text(_map(values, lambda v: path_of(v, dataset)))
        case h5t.VLEN:
            return _sequences(values, base.get_super(), dataset)
        case h5t.COMPOUND:
            return _records(values, dataset)
        case _:
            raise UnsupportedError(f"values of variable length in {base.dtype} are not served yet")


def _read(dataset: h5d.DatasetID) -> np.ndarray[Any, Any]:
    value = h5py.Dataset(dataset)[()]
    if isinstance(value, np.ndarray):
        return value
    out = np.empty((), dtype=object if not isinstance(value, np.void) else value.dtype)
    out[()] = value
    return out


def _extend(values: np.ndarray[Any, Any], shape: tuple[int, ...], fill: Any) -> Objects:
    out = np.empty(math.prod(shape), dtype=object)
    for number in range(len(out)):
        out[number] = fill  # one by one: a sequence is one element
    out = out.reshape(shape)
    out[tuple(slice(0, n) for n in values.shape)] = values
    return out


def _map(values: np.ndarray[Any, Any], function: Callable[[Any], Any]) -> Objects:
    out = np.empty(values.shape, dtype=object)
    out.reshape(-1)[:] = [function(v) for v in values.reshape(-1)]
    return out


def _strings(values: np.ndarray[Any, Any]) -> InlineObjects:
    raw = _map(values, lambda v: v if isinstance(v, bytes) else b"")
    try:
        return _text(_map(raw, bytes.decode))
    except UnicodeDecodeError:
        return _bytes(raw, {}, "the strings are not UTF-8: served as bytes")


def _text(values: Objects, reason: str = "", attributes: dict[str, Any] | None = None) -> InlineObjects:
    return _chunked(values, "string", "vlen-utf8", numcodecs.VLenUTF8(), "", reason, attributes or {})


def _bytes(values: Objects, attributes: dict[str, Any], reason: str) -> InlineObjects:
    return _chunked(values, "variable_length_bytes", "vlen-bytes", numcodecs.VLenBytes(), b"", reason, attributes)


def _chunked(
    values: Objects, data_type: str, name: str, codec: Any, empty: Any, reason: str, attributes: dict[str, Any]
) -> InlineObjects:
    shape = values.shape
    if not math.prod(shape):
        grid = ChunkGrid.regular(shape, tuple(max(1, n) for n in shape))
        chunks = ChunkTable.empty()
    else:
        cut = split_contiguous(shape, 1, 0, PER_CHUNK)
        grid = ChunkGrid.regular(shape, cut.chunk_shape)
        flat = values.reshape(-1)
        pieces = []
        for number, (start, length) in enumerate(zip(cut.offset.tolist(), cut.length.tolist(), strict=True)):
            piece = np.empty(math.prod(cut.chunk_shape), dtype=object)
            piece[:] = empty
            piece[:length] = flat[start : start + length]
            pieces.append((number, bytes(codec.encode(piece))))
        chunks = ChunkTable.inline(pieces)
    return InlineObjects(
        grid=grid,
        data_type=data_type,
        codecs=[{"name": name, "configuration": {}}],
        chunks=chunks,
        fill_value="",
        attributes=attributes,
        reason=reason,
    )


def _sequences(values: np.ndarray[Any, Any], base: h5t.TypeID, dataset: h5d.DatasetID) -> InlineObjects:
    if not is_variable(base):
        dtype = base.dtype
        if dtype.kind not in "biufcSV" or dtype.hasobject or dtype.str[1:] in ("f16", "c32"):
            raise UnsupportedError(f"variable-length sequences of {dtype} are not served yet")
        little = dtype.newbyteorder("<")
        raw = _map(
            values, lambda v: b"" if v is None else np.ascontiguousarray(v, dtype=dtype).astype(little).tobytes()
        )
        name = dumps(little.descr) if little.names else little.str
        return _bytes(raw, {"vlen_base_type": name}, f"sequences of {little} of variable length: served as bytes")
    names = {h5t.STRING: "string", h5t.REFERENCE: "reference"}
    name = names.get(base.get_class(), "")
    if not name:
        raise UnsupportedError("variable-length sequences of sequences are not served yet")

    def convert(item: Any) -> str:
        return _decoded(item) if name == "string" else path_of(item, dataset)

    listed = _map(values, lambda v: dumps([convert(item) for item in (() if v is None else v)]))
    return _text(listed, f"sequences of {name}s: served as JSON lists", {"vlen_base_type": name})


def _decoded(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def path_of(reference: Any, dataset: h5d.DatasetID) -> str:
    """The path that an object or region reference refers to; empty for a null reference.

    A region is the path, a space and its selection: ``{"blocks": [[first corner, last corner], ...]}`` or
    ``{"points": [...]}``, both as JSON.
    """
    if not reference:
        return ""
    raw = h5r.get_name(reference, dataset)
    path = raw.decode(errors="backslashreplace") if raw else ""
    if not isinstance(reference, h5r.RegionReference):
        return path
    space = h5r.get_region(reference, dataset)
    match space.get_select_type():
        case h5s.SEL_HYPERSLABS:
            selection = {"blocks": space.get_select_hyper_blocklist().tolist()}
        case h5s.SEL_POINTS:
            selection = {"points": space.get_select_elem_pointlist().tolist()}
        case h5s.SEL_NONE:
            selection = {"points": []}
        case _:
            return path
    return f"{path} {dumps(selection)}"


def _records(values: np.ndarray[Any, Any], dataset: h5d.DatasetID) -> InlineObjects:
    out = _fixed(values, dataset)
    nbytes = out.nbytes
    if nbytes > 256 << 20:
        raise UnsupportedError(f"a compound with values of variable length would take {nbytes} bytes in the manifest")
    grid = ChunkGrid.regular(out.shape, tuple(max(1, n) for n in out.shape))
    return InlineObjects(
        grid=grid,
        data_type=data_type_json(out.dtype),
        codecs=[bytes_codec(out.dtype)],
        chunks=ChunkTable.inline([(0, out.tobytes())]) if out.size else ChunkTable.empty(),
        fill_value=fill_value_json(out.dtype, np.zeros((), dtype=out.dtype)),
        reason="a compound with values of variable length: strings and references are served as fixed strings",
    )


def _fixed(values: np.ndarray[Any, Any], dataset: h5d.DatasetID) -> np.ndarray[Any, Any]:
    """The same values in a type of fixed size."""
    dtype = values.dtype
    if dtype.names is not None:
        columns = {name: _fixed(values[name], dataset) for name in dtype.names}
        made = np.dtype([(name, _element(column, values.ndim)) for name, column in columns.items()])
        out = np.zeros(values.shape, dtype=made)
        for name, column in columns.items():
            # The elements of an array type lie one after the other in its field.
            flat = np.ascontiguousarray(column).reshape(*values.shape, -1)
            out[name] = flat.view(made[name]).reshape(values.shape)
        return out
    if dtype.kind != "O":
        if dtype.str[1:] in ("f16", "c32"):
            raise UnsupportedError("long double inside a compound of variable length is not served yet")
        return values.astype(dtype.newbyteorder("<"))
    raw = [_item(v, dataset) for v in values.reshape(-1)]
    width = max((len(v) for v in raw), default=1) or 1
    return np.array(raw, dtype=f"S{width}").reshape(values.shape)


def _element(column: np.ndarray[Any, Any], ndim: int) -> np.dtype[Any]:
    """The type of a field: an array type is a compound of its elements (Zarr has no arrays in compounds)."""
    dtype: np.dtype[Any] = column.dtype
    for extent in reversed(column.shape[ndim:]):
        dtype = np.dtype([(str(i), dtype) for i in range(extent)])
    return dtype


def _item(value: Any, dataset: h5d.DatasetID) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, h5r.Reference):
        return path_of(value, dataset).encode()
    if value is None or (isinstance(value, Sequence) and not value):
        return b""
    raise UnsupportedError("variable-length sequences inside a compound are not served yet")
