"""One variable of a NetCDF classic file -> one array of the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.errors import FormatError, UnsupportedError
from refindex.model.chunks import ChunkTable
from refindex.model.dtype import Leaf, StoredType, Text, data_type_json, fill_value_json
from refindex.model.encoding import Encoding, bytes_codec
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Array, Status
from refindex.model.zarr_v3 import array_document, dumps
from refindex.scan.cf import Attributes, document_attributes
from refindex.scan.contiguous import split_contiguous
from refindex.scan.netcdf3.layout import Placed

INLINE_NBYTES = 1024
"""Variables up to this many bytes are kept in the manifest: a request for them costs more than they weigh."""

COORDINATE_NBYTES = 16 << 20
"""Coordinates up to this many bytes are kept in the manifest, so that opening an archive reads no source."""

_MAX_REFERENCES = 1 << 25
"""References of one variable. Interleaved records of a few bytes could have one for every few bytes of a file."""

_MAX_DIMS = 64
"""Dimensions that a numpy array can have."""

_FILL: dict[str, Any] = {
    "i1": -127,
    "S1": b"\0",
    "i2": -32767,
    "i4": -2147483647,
    "f4": 9.9692099683868690e36,
    "f8": 9.9692099683868690e36,
    "u1": 255,
    "u2": 65535,
    "u4": 4294967295,
    "i8": -9223372036854775806,
    "u8": 18446744073709551614,
}
"""What variables without ``_FillValue`` are filled with ("Note on fill values"; ``NC_FILL_*`` of netcdf.h)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """The chunks of an array that stay in the file."""

    grid: ChunkGrid
    chunks: ChunkTable
    encodings: tuple[Encoding, ...]

    @property
    def reason(self) -> str:
        """Why some chunks are adapted; empty where none is."""
        return "the last chunk along the dimension that is cut is short" if len(self.encodings) > 1 else ""


def check(placed: Placed, size: int) -> None:
    """Refuse what a file of ``size`` bytes does not hold, or no array can.

    netCDF-C reads zeros behind the end of a file. Nobody wrote them, so they are not served.

    Raises
    ------
    FormatError
        If the variable's values end beyond the file.
    UnsupportedError
        If it has more dimensions than numpy has, or would take too many references.
    """
    if placed.end > size:
        raise FormatError(f"data ends at byte {placed.end} of a file of {size} bytes: the file is truncated")
    if len(placed.shape) > _MAX_DIMS:
        raise UnsupportedError(f"{len(placed.shape)} dimensions; numpy arrays have up to {_MAX_DIMS}")
    if not placed.is_contiguous and placed.count > _MAX_REFERENCES and placed.nbytes < placed.stride:
        raise UnsupportedError(
            f"{placed.count} records, which lie apart, of {placed.nbytes} bytes: more than {_MAX_REFERENCES} references"
        )


def nbytes(placed: Placed) -> int:
    """Bytes of all values."""
    return math.prod(placed.shape) * placed.variable.dtype.itemsize


def is_inline(placed: Placed, *, is_coordinate: bool) -> bool:
    """Whether the values are kept in the manifest."""
    return 0 < nbytes(placed) <= (COORDINATE_NBYTES if is_coordinate else INLINE_NBYTES)


def refer(placed: Placed) -> References:
    """Chunks of about 16 MB, cut from values in one piece; where records interleave, each record is cut by itself."""
    stored = _stored_type(placed.variable.dtype)
    shape, itemsize = placed.shape, placed.variable.dtype.itemsize
    if placed.is_contiguous:
        cut = split_contiguous(shape, itemsize, placed.offset)
        chunk_shape, edge_shape = cut.chunk_shape, cut.edge_shape
        offset, length, short = cut.offset, cut.length, cut.short
    else:
        cut = split_contiguous(shape[1:], itemsize, placed.offset)
        chunk_shape, edge_shape = (1, *cut.chunk_shape), (1, *cut.edge_shape)
        records = np.arange(placed.count, dtype=np.int64) * placed.stride
        offset = (records[:, None] + cut.offset).reshape(-1)
        length, short = np.tile(cut.length, placed.count), np.tile(cut.short, placed.count)
    encodings = [Encoding(type=stored, shape=chunk_shape)]
    if short.any():
        encodings.append(Encoding(type=stored, shape=edge_shape))
    return References(
        grid=ChunkGrid.regular(shape, chunk_shape),
        encodings=tuple(encodings),
        chunks=ChunkTable.from_columns(
            chunk=np.arange(len(offset)), source=0, offset=offset, length=length, encoding=short
        ),
    )


def keep(placed: Placed, data: bytes) -> References:
    """One chunk whose bytes are in the manifest; none at all where the variable has no elements."""
    return References(
        grid=ChunkGrid.regular(placed.shape, tuple(max(1, n) for n in placed.shape)),
        chunks=ChunkTable.inline([(0, data)]) if data else ChunkTable.empty(),
        encodings=(),
    )


def compile_variable(
    placed: Placed, references: References, *, path: str, dims: tuple[str, ...], attributes: Attributes
) -> Array:
    """The array of a variable. ``attributes.notes`` gets what could not be kept."""
    dtype = placed.variable.dtype
    _check_fill_attribute(placed, attributes)
    document = array_document(
        grid=references.grid,
        data_type=data_type_json(dtype),
        codecs=[bytes_codec(dtype)],
        fill_value=fill_value_json(dtype, _fill_value(placed)),
        dimension_names=dims,
        attributes=document_attributes(attributes, dtype),
    )
    return Array(
        path=path,
        document=dumps(document),
        encodings=references.encodings,
        attribute_types=attributes.types,
        chunks=references.chunks,
    )


def status(references: References) -> Status:
    """What became of a variable."""
    if not references.encodings:
        return Status.INLINED
    return Status.ADAPTED if references.reason else Status.NATIVE


def _stored_type(dtype: np.dtype[Any]) -> StoredType:
    return Text(size=1, padding="nullterm") if dtype.kind == "S" else Leaf(dtype.str)


def _fill_attribute(placed: Placed) -> np.ndarray[Any, Any] | None:
    """``_FillValue`` as it is in the file."""
    for attribute in placed.variable.attributes:
        if attribute.name == "_FillValue":
            return np.frombuffer(attribute.values, dtype=attribute.dtype)
    return None


def _converted(values: np.ndarray[Any, Any], dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
    """One value as another type, None where that would change it, or where it is not one."""
    if values.size != 1 or (values.dtype.kind == "S") != (dtype.kind == "S"):
        return None
    with np.errstate(all="ignore"):
        converted = values.astype(dtype)
    # As Python numbers: numpy would compare them in a type that may round both.
    same = values.item() == converted.item()
    if not same and values.dtype.kind == dtype.kind == "f":
        same = bool(np.isnan(values[0]) and np.isnan(converted[0]))
    return converted if same else None


def _check_fill_attribute(placed: Placed, attributes: Attributes) -> None:
    """Leave out a ``_FillValue`` that no element can have: Zarr wants one of the array's type.

    The specification demands that type; old files have others, and nothing is equal to what they say.
    """
    values = _fill_attribute(placed)
    if values is not None and _converted(values, placed.variable.dtype) is None:
        attributes.values.pop("_FillValue", None)
        attributes.types.pop("_FillValue", None)
        attributes.notes[:] = [n for n in attributes.notes if not n.startswith("attribute '_FillValue'")]
        attributes.notes.append(f"_FillValue {values[:4].tolist()!r} is not one value of the variable's type; left out")


def _fill_value(placed: Placed) -> Any:
    """The variable's ``_FillValue``, or its type's."""
    values = _fill_attribute(placed)
    converted = None if values is None else _converted(values, placed.variable.dtype)
    return _FILL[placed.variable.dtype.str[1:]] if converted is None else converted[0]
