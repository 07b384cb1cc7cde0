"""Array metadata of Zarr v2 (storage specification 2, "Arrays") as Zarr v3 documents over the same chunk bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from refindex.errors import FormatError, UnsupportedError
from refindex.model.dtype import xarray_fill_value
from refindex.model.encoding import bytes_codec
from refindex.model.zarr_v3 import array_document, json_value
from refindex.scan.cf import Attributes, document_attributes
from refindex.scan.zarr.plan import ChunkKeys, Plan, extents, members, regular_grid, required, shortened
from refindex.scan.zarr.v2_codecs import codec_chain
from refindex.scan.zarr.v2_types import data_type, element, fill_value, numpy_dtype, object_fill_value, strings_dtype

_REQUIRED = ("shape", "chunks", "dtype", "compressor", "fill_value", "order", "filters")
_DIMENSIONS = "_ARRAY_DIMENSIONS"
_NCZARR = "_NCZARR_ARRAY"


def plan(array: dict[str, Any], attributes: dict[str, Any]) -> Plan:
    """Translate one array's ``.zarray`` and ``.zattrs``.

    Raises
    ------
    FormatError
        If it contradicts the specification.
    UnsupportedError
        If zarr-python has no Zarr v3 codec or data type for it, by name.
    """
    required(array, _REQUIRED, ".zarray")
    if array.get("zarr_format", 2) != 2:
        raise FormatError(f".zarray is of zarr_format {shortened(array['zarr_format'])}; expected 2")
    shape = extents(array["shape"], "shape")
    grid = regular_grid(shape, extents(array["chunks"], "chunks"))
    if array["order"] not in ("C", "F"):
        raise FormatError(f"order is {shortened(array['order'])}; expected 'C' or 'F'")
    separator = array.get("dimension_separator", ".")
    if separator not in (".", "/"):
        raise FormatError(f"dimension_separator is {shortened(separator)}; expected '.' or '/'")
    filters = _filters(array["filters"])
    compressor = None if array["compressor"] is None else _codec(array["compressor"])
    dtype = numpy_dtype(array["dtype"])
    transpose = array["order"] == "F" and len(shape) > 1
    chain = codec_chain(dtype, filters, compressor)
    if dtype is None:
        # An object array: the first filter makes bytes of it.
        served_type, fill = strings_dtype(chain.text), object_fill_value(chain.text, array["fill_value"])
        codecs = chain.codecs
    else:
        served_type, fill = data_type(dtype), fill_value(dtype, array["fill_value"])
        bytes_to = [] if chain.makes_bytes else [bytes_codec(chain.stored or dtype)]
        codecs = [*chain.before, *bytes_to, *chain.codecs]
    if transpose:
        if chain.makes_bytes and dtype is not None:
            raise UnsupportedError(f"order F with compressor {compressor and compressor['id']!r}")
        # What lies in F order is the transposed array in C order.
        codecs = [{"name": "transpose", "configuration": {"order": list(range(len(shape)))[::-1]}}, *codecs]
    notes: list[str] = []
    names, values = _dimensions(array, attributes, len(shape), notes)
    values = _attributes(values, dtype, array["fill_value"], notes)
    document = array_document(
        grid=grid,
        data_type=served_type,
        codecs=codecs,
        fill_value=fill,
        dimension_names=names or [],
        attributes=values,
    )
    if names is None:
        del document["dimension_names"]
    return Plan(document=document, grid=grid, keys=ChunkKeys(default=False, separator=separator), notes=notes)


def _filters(value: Any) -> list[dict[str, Any]]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise FormatError(f"filters is {shortened(value)}; expected null or a list")
    return [_codec(entry) for entry in value]


def _codec(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("id"), str):
        raise FormatError(f"a filter or compressor is {shortened(value)}; expected an object with an id")
    return value


def _dimensions(
    array: dict[str, Any], attributes: dict[str, Any], ndim: int, notes: list[str]
) -> tuple[list[str] | None, dict[str, Any]]:
    """Dimension names, and the attributes without those that hold them (xarray's convention, and NetCDF-C's)."""
    values = {name: value for name, value in attributes.items() if name != _DIMENSIONS}
    nczarr = array.get(_NCZARR, array.get("_nczarr_array", attributes.get("_nczarr_array", attributes.get(_NCZARR))))
    names = attributes.get(_DIMENSIONS)
    if nczarr is not None:
        values = {name: value for name, value in values.items() if not name.lower().startswith(("_nczarr_", "_nc_"))}
        references = nczarr.get("dimrefs", nczarr.get("dimension_references")) if isinstance(nczarr, dict) else None
        if names is None and isinstance(references, list) and all(isinstance(r, str) for r in references):
            names = [reference.rpartition("/")[2] for reference in references]
    if names is None:
        return None, values
    if isinstance(names, list) and len(names) == ndim and all(isinstance(name, str) for name in names):
        return names, values
    notes.append(f"{_DIMENSIONS} is {shortened(names)}, which is not {ndim} names; left out")
    return None, values


def _attributes(values: dict[str, Any], dtype: np.dtype[Any] | None, fill: Any, notes: list[str]) -> dict[str, Any]:
    """Attributes as xarray expects them in Zarr v3.

    In version 2 it takes Zarr's own fill value, unless that is null, for netCDF's ``_FillValue``; in version 3 the
    attribute alone counts. So that it masks the same elements, the attribute is made of the fill value.
    """
    if fill is not None:
        values = {name: value for name, value in values.items() if name != "_FillValue"}
    if fill is not None and (dtype is None or dtype.kind in "SU"):
        notes.append(
            f"xarray takes text that is its fill value, {shortened(fill)}, for missing when it reads version 2; of "
            "version 3, and so of this archive, it returns the text"
        )
    strict, strict_notes = strict_attributes(values)
    raw = strict.get("_FillValue")
    if isinstance(raw, list | dict):
        strict_notes.append(f"_FillValue {shortened(raw)} is not one value; left out")
        del strict["_FillValue"]
    elif raw is not None and dtype is not None and dtype.kind in "iu" and not _is_whole(raw):
        strict_notes.append(f"_FillValue {shortened(raw)} is not of the array's type; left out")
        del strict["_FillValue"]
    attributes = Attributes(values=strict, notes=strict_notes)
    with np.errstate(all="ignore"):
        result = document_attributes(attributes, dtype)
    if fill is not None and dtype is not None and dtype.kind in "biufc":
        result["_FillValue"] = xarray_fill_value(dtype, element(dtype, fill))
    notes += attributes.notes
    return result


def _is_whole(number: Any) -> bool:
    return isinstance(number, int) or (isinstance(number, float) and number.is_integer())


def strict_attributes(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Attributes as strict JSON, and a note of each that had to be changed."""
    members(values, "attributes")
    strict: dict[str, Any] = {}
    notes: list[str] = []
    for name, value in values.items():
        strict[name], changed = json_value(value)
        if changed:
            notes.append(f"attribute {name!r}: JSON has no NaN or infinity; kept as text")
    return strict, notes
