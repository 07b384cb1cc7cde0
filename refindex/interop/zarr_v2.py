"""Zarr v3 documents as Zarr v2 metadata over the same chunk bytes: the inverse of :mod:`refindex.scan.zarr.v2`.

In version 2 xarray takes Zarr's fill value, unless it is null, for netCDF's ``_FillValue``; in version 3 the attribute
alone counts. So the fill value is null where nothing is to be masked, which reads as zero, and what cannot be said in
this way is not said.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from refindex.errors import FormatError, UnsupportedError
from refindex.interop.content import Document
from refindex.model.dtype import dtype_from_json, fill_value_from_json
from refindex.model.zarr_v3 import dumps
from refindex.serve.quiet import quiet

_DIMENSIONS = "_ARRAY_DIMENSIONS"
_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")
_COMPRESSORS = {"zlib", "gzip", "bz2", "lzma", "lz4", "blosc", "zstd"}
_FILTERS = {
    *_COMPRESSORS, "shuffle", "fletcher32", "crc32", "crc32c", "adler32", "jenkins_lookup3",
}  # fmt: skip
_TYPED = {"delta", "fixedscaleoffset", "quantize", "bitround", "astype", "packbits"}
_OBJECTS = {"vlen-utf8", "vlen-bytes"}


class FillError(UnsupportedError):
    """Chunks that do not exist would not read as they do now; they can be written out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A codec chain as version 2 has it; ``endian`` is ``<`` or ``>``."""

    filters: list[dict[str, Any]]
    compressor: dict[str, Any] | None
    order: str = "C"
    endian: str = "<"


def chain_of(codecs: list[dict[str, Any]], ndim: int) -> Chain:
    """The filters and the compressor that undo the same bytes as a codec chain.

    Raises
    ------
    UnsupportedError
        Naming the codec that version 2 has no filter for.
    """
    filters: list[dict[str, Any]] = []
    order, endian, stage = "C", "<", 0
    for number, codec in enumerate(codecs):
        name, configuration = codec["name"], dict(codec.get("configuration", {}))
        short = name.removeprefix("numcodecs.")
        if name == "transpose" and number == 0 and configuration.get("order") == list(range(ndim))[::-1]:
            order = "F"
        elif name == "bytes":
            endian, stage = (">" if configuration.get("endian") == "big" else "<"), 1
        elif name in _OBJECTS:
            filters.append({"id": name})
            stage = 1
        elif short in _TYPED and name != short and not stage:
            filters.append({"id": short, **configuration})
        elif short in _FILTERS and stage:
            filters.append({"id": short, **_configuration(name, configuration)})
        else:
            raise UnsupportedError(f"Zarr v2 has no filter for codec {name!r}")
    if endian == ">" and any(f["id"] in _TYPED for f in filters):
        raise UnsupportedError("filters that depend on the type, over big-endian values")
    last = filters[-1]["id"] if filters else ""
    if last in _COMPRESSORS:
        return Chain(filters=filters[:-1], compressor=filters[-1], order=order, endian=endian)
    return Chain(filters=filters, compressor=None, order=order, endian=endian)


def _configuration(name: str, configuration: dict[str, Any]) -> dict[str, Any]:
    """What numcodecs calls the options of the codecs that version 3 spells otherwise."""
    if name == "blosc":
        configuration.pop("typesize", None)
        return {**configuration, "shuffle": _SHUFFLES.index(configuration["shuffle"])}
    if name == "crc32c":
        return {**configuration, "location": "end"}
    return configuration


def metadata(document: Document, *, absent: bool) -> tuple[Document, Document]:
    """The ``.zarray`` and the ``.zattrs`` of an array with a regular grid.

    Parameters
    ----------
    document:
        Its ``zarr.json``.
    absent:
        Whether some of its chunks do not exist, so that the fill value is read.

    Raises
    ------
    UnsupportedError
        Naming the codec, data type or attribute that version 2 cannot say.
    FillError
        If it could, were all chunks written.
    """
    shape = document["shape"]
    chain = chain_of(document["codecs"], len(shape))
    dtype = numpy_dtype(document["data_type"], chain.endian)
    attributes = dict(document.get("attributes", {}))
    for name in (_DIMENSIONS, "_nczarr_array", "_NCZARR_ARRAY"):
        if name in attributes:
            raise UnsupportedError(f"an attribute called {name!r}, which means dimension names in Zarr v2")
    names = document.get("dimension_names")
    if names and all(name is not None for name in names):
        attributes[_DIMENSIONS] = names
    elif names == []:
        attributes[_DIMENSIONS] = []
    elif names and any(name is not None for name in names):
        raise UnsupportedError(f"dimensions with and without names: {names}")
    fill = _fill(document, dtype, attributes, absent=absent)
    array = {
        "zarr_format": 2,
        "shape": shape,
        "chunks": document["chunk_grid"]["configuration"]["chunk_shape"],
        "dtype": "|O" if dtype is None else _spelled(dtype),
        "compressor": chain.compressor,
        "filters": chain.filters or None,
        "order": chain.order,
        "fill_value": fill,
    }
    _check(array, dtype, document, absent=absent)
    return array, attributes


def numpy_dtype(data_type: Any, endian: str) -> np.dtype[Any] | None:
    """The numpy dtype of a ``data_type`` member; None for objects.

    Raises
    ------
    UnsupportedError
        If there is none.
    """
    name = data_type["name"] if isinstance(data_type, dict) else data_type
    if name in ("string", "bytes", "variable_length_bytes"):
        return None
    if name == "fixed_length_utf32":
        return np.dtype(f"{endian}U{int(data_type['configuration']['length_bytes']) // 4}")
    dtype = dtype_from_json(data_type, "big" if endian == ">" else "little")
    if dtype is None:
        raise UnsupportedError(f"Zarr v2 has no data type for {name!r}")
    if dtype.names is not None and any(dtype[field].names is not None for field in dtype.names):
        raise UnsupportedError("compounds within compounds, which zarr-python does not read in Zarr v2")
    return dtype


def _spelled(dtype: np.dtype[Any]) -> Any:
    if dtype.names is None:
        return dtype.str
    return [[name, _spelled(dtype[name])] for name in dtype.names]


def _fill(document: Document, dtype: np.dtype[Any] | None, attributes: Document, *, absent: bool) -> Any:
    """The ``fill_value``; takes ``_FillValue`` out of the attributes where that says it."""
    mask = attributes.pop("_FillValue", None)
    plain = document["fill_value"]
    if dtype is None:
        if mask is not None:
            raise UnsupportedError("a _FillValue of text")
        if absent and plain != "":
            raise FillError("xarray would take text that is the fill value for missing")
        return None
    fill = np.array(plain, dtype=dtype) if dtype.kind == "U" else fill_value_from_json(dtype, plain)
    zero = fill.tobytes() == np.zeros((), dtype=dtype).tobytes() and dtype.kind not in "mM"
    if mask is None:
        if absent and not zero:
            raise FillError("it has no _FillValue, and xarray would take its fill value for one")
        return None
    masked = _unpacked_mask(dtype, mask)
    if masked.tobytes() == fill.tobytes() or (dtype.kind == "f" and np.isnan(masked) and np.isnan(fill)):
        return _json(dtype, masked)
    if not absent:
        return _json(dtype, masked)
    raise FillError("its fill value is not its _FillValue, and Zarr v2 has one for both")


def _unpacked_mask(dtype: np.dtype[Any], value: Any) -> np.ndarray[Any, Any]:
    """The element that a ``_FillValue`` attribute means in version 3."""
    try:
        if dtype.kind == "f" and isinstance(value, str):
            return np.array(_double(value), dtype=dtype)
        if dtype.kind == "c" and isinstance(value, list):
            return np.array(complex(_double(value[0]), _double(value[1])), dtype=dtype)
        if dtype.kind in "iub":
            return np.array(value, dtype=dtype)
    except (ValueError, TypeError, OverflowError, IndexError, binascii.Error, struct.error) as error:
        raise UnsupportedError(f"_FillValue {value!r}, which is not of its type {dtype}") from error
    raise UnsupportedError(f"_FillValue {value!r} of an array of {dtype}")


def _double(text: str) -> float:
    return float(struct.unpack("<d", base64.b64decode(text, validate=True))[0])


def _json(dtype: np.dtype[Any], value: np.ndarray[Any, Any]) -> Any:
    """``fill_value`` as version 2 spells it."""
    if dtype.kind == "c":
        return [_number(float(value.real)), _number(float(value.imag))]
    if dtype.kind == "f":
        return _number(float(value))
    return value.item()


def _number(number: float) -> Any:
    if math.isfinite(number):
        return number
    return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"


def _check(array: Document, dtype: np.dtype[Any] | None, document: Document, *, absent: bool) -> None:
    """Let zarr-python read what is about to be written: it must find the same type, and the same fill value."""
    objects: dict[str, Buffer] = {".zarray": default_buffer_prototype().buffer.from_bytes(dumps(array).encode())}
    try:
        with quiet():
            opened: zarr.Array[Any] = zarr.open_array(MemoryStore(objects), mode="r", zarr_format=2)
            first = opened[(slice(0, 1),) * len(opened.shape)] if absent or not opened.shape else None
    except Exception as error:
        raise UnsupportedError(f"zarr-python cannot read it in Zarr v2: {error}") from error
    if dtype is None:
        return
    if opened.dtype != dtype:
        raise UnsupportedError(f"zarr-python reads its type in Zarr v2 as {opened.dtype}, not {dtype}")
    if not absent or first is None or not np.size(first):
        return
    try:
        fill = (
            np.array(document["fill_value"], dtype)
            if dtype.kind == "U"
            else fill_value_from_json(dtype, document["fill_value"])
        )
    except FormatError as error:
        raise UnsupportedError(str(error)) from error
    found = np.asarray(first, dtype=dtype).reshape(-1)[0]
    if np.asarray(found).tobytes() != fill.tobytes():
        raise FillError(f"its fill value {fill} reads as {found} in Zarr v2")
