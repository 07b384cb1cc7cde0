"""One HDF5 dataset -> one array of the manifest."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from h5py import h5d, h5f, h5p, h5s, h5t, h5z

from refindex.decode import libhdf5
from refindex.decode.pipeline import decode, fit, is_built_in
from refindex.errors import FormatError, RefindexError, UnsupportedError
from refindex.model.chunks import ChunkTable
from refindex.model.dtype import (
    StoredType,
    Subarray,
    data_type_json,
    fill_value_json,
    is_foreign,
    numpy_dtype,
    readable,
    same_bytes,
    served_dtype,
    to_served,
)
from refindex.model.encoding import Encoding, Filter, bytes_codec, native_codecs
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Array, Status
from refindex.model.zarr_v3 import array_document, dumps
from refindex.scan.cf import Attributes, document_attributes
from refindex.scan.contiguous import split_contiguous
from refindex.scan.hdf5.chunks import StoredChunks
from refindex.scan.hdf5.filters import applied, header_messages, read_pipeline
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.objects import inline_objects
from refindex.scan.hdf5.types import Kind, read_kind
from refindex.scan.hdf5.walk import Found

INLINE_NBYTES = 1024
"""Arrays up to this many bytes are kept in the manifest: a request for them costs more than they weigh."""

COORDINATE_NBYTES = 16 << 20
"""Coordinates up to this many bytes are kept in the manifest, so that opening an archive reads no source."""

EXACT_NBYTES = 16 << 20
"""Numbers wider than double precision are looked at in blocks of about this many bytes."""


@dataclass(slots=True, kw_only=True)
class Compiled:
    """An array, what became of it, why, and notes for the report."""

    array: Array
    status: Status
    reason: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What is known of a dataset before its chunks are looked at.

    ``shape`` is that of the array: the dataset's, or the longer one with which it is served, and the trailing
    dimensions of an array type.
    """

    kind: Kind
    stored: StoredType
    served: np.dtype[Any]
    shape: tuple[int, ...]
    type_dims: tuple[int, ...]
    fill: Any
    creation: h5p.PropDCID

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.served.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stored:
    """Chunks of an array: grid, declared codecs, encodings and references."""

    grid: ChunkGrid
    codecs: list[dict[str, Any]]
    chunks: ChunkTable
    encodings: tuple[Encoding, ...] = ()
    status: Status = Status.NATIVE
    reason: str = ""


def compile_dataset(
    found: Found,
    *,
    index: FileIndex,
    dims: tuple[str, ...],
    path: str,
    attributes: Attributes,
    is_coordinate: bool,
    extended: tuple[int, ...] | None = None,
) -> Compiled:
    """Turn a dataset into an array node with references.

    Parameters
    ----------
    found:
        The dataset.
    index:
        The open file: its chunk tables, its size.
    dims:
        Names of the dataset's dimensions; an array type adds its own.
    path:
        Path of the array in the hierarchy.
    is_coordinate:
        Whether it is a coordinate of the dimension that has its name.
    extended:
        The shape with which it is served, if that is not its own: behind its extent follows the fill value.

    Raises
    ------
    UnsupportedError
        If it is not served, saying why.
    FormatError
        If it contradicts itself or the file.
    """
    dataset = found.id
    space = dataset.get_space()
    shape: tuple[int, ...]
    kind = read_kind(dataset.get_type())
    if space.get_simple_extent_type() == h5s.NULL:
        attributes.notes.append("a null dataspace (no elements and no shape): served as an array of no elements")
        dims = ("null",)
        shape = (0,)
        data_type, codec, fill, served = _no_elements(kind)
        grid = ChunkGrid.regular(shape, (1,))
        stored = _Stored(grid=grid, codecs=[codec], chunks=ChunkTable.empty(), status=Status.INLINED)
    elif kind.stored is None:
        objects = inline_objects(dataset, extended)
        stored = _Stored(
            grid=objects.grid,
            codecs=objects.codecs,
            chunks=objects.chunks,
            status=Status.INLINED,
            reason=objects.reason,
        )
        attributes.values |= objects.attributes
        data_type, fill, shape = objects.data_type, objects.fill_value, objects.grid.shape
        served = None
    else:
        plan = _plan(dataset, kind, kind.stored, extended)
        stored = _store(found, plan, index, is_coordinate=is_coordinate)
        data_type = data_type_json(plan.served)
        fill = fill_value_json(plan.served, plan.fill)
        shape, served = plan.shape, plan.served
    document = array_document(
        grid=stored.grid,
        data_type=data_type,
        codecs=stored.codecs,
        fill_value=fill,
        dimension_names=(*dims, *_type_dims_names(dims, shape)),
        attributes=document_attributes(attributes, served, kind.flags),
    )
    array = Array(
        path=path,
        document=dumps(document),
        encodings=stored.encodings,
        attribute_types=attributes.types,
        chunks=stored.chunks,
    ).knowing(json=document, grid=stored.grid)
    return Compiled(array=array, status=stored.status, reason=stored.reason, notes=attributes.notes)


def _no_elements(kind: Kind) -> tuple[Any, dict[str, Any], Any, np.dtype[Any] | None]:
    """Data type, codec, fill value and dtype of an array without elements."""
    if kind.stored is None:
        return "string", {"name": "vlen-utf8", "configuration": {}}, "", None
    served = served_dtype(kind.stored)
    return data_type_json(served), bytes_codec(served), fill_value_json(served, np.zeros((), dtype=served)), served


def _type_dims_names(dims: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"element_dim_{i}" for i in range(len(shape) - len(dims)))


def _plan(dataset: h5d.DatasetID, kind: Kind, stored: StoredType, extended: tuple[int, ...] | None = None) -> _Plan:
    creation = dataset.get_create_plist()
    dims = stored.dims if isinstance(stored, Subarray) else ()
    base: StoredType = stored
    while isinstance(base, Subarray):
        dims = dims if base is stored else (*dims, *base.dims)
        base = base.base
    served = served_dtype(stored)
    _check_exact(dataset, stored)
    return _Plan(
        kind=kind,
        stored=stored,
        served=served,
        shape=(*(dataset.shape if extended is None else extended), *dims),
        type_dims=dims,
        fill=_fill_value(dataset, creation, stored, base, served),
        creation=creation,
    )


def _check_exact(dataset: h5d.DatasetID, stored: StoredType) -> None:
    """Refuse numbers that libhdf5 would round to double precision, the widest that Zarr v3 has.

    They are rare, and most are doubles that were written as ``long double``: all values are looked at.
    """
    kind = dataset.get_type()
    if not libhdf5.exceeds_double(kind, stored):
        return
    shape = tuple(dataset.shape)
    # The first dimension of which one step is small enough is cut into blocks; those before it, into single steps.
    axis = 0
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) * kind.get_size() > EXACT_NBYTES:
        axis += 1
    step = max(1, EXACT_NBYTES // max(1, math.prod(shape[axis + 1 :]) * kind.get_size()))
    for before in np.ndindex(shape[:axis]):
        for start in range(0, shape[axis], step) if shape else (0,):
            count = (*(1 for _ in before), min(step, shape[axis] - start), *shape[axis + 1 :]) if shape else ()
            raw = np.empty(count, dtype=f"V{kind.get_size()}")
            space = dataset.get_space()
            if shape and raw.size:
                space.select_hyperslab((*before, start, *(0 for _ in shape[axis + 1 :])), count)
            dataset.read(h5s.create_simple(count) if shape else h5s.ALL, space, raw, kind)
            if not libhdf5.is_exact(raw.tobytes(), kind, stored):
                raise UnsupportedError(
                    "floating-point numbers wider than double precision, of which some are not exact in it: "
                    "Zarr v3 has no wider type"
                )


def _values(
    raw: bytes, kind: h5t.TypeID, stored: StoredType, served: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Elements as libhdf5 reads them in their own type ``kind`` -> values as served."""
    if is_foreign(stored):
        return to_served(libhdf5.convert(raw, kind, stored).reshape(shape), readable(stored), served)
    dtype = numpy_dtype(stored)
    return to_served(np.frombuffer(raw, dtype=dtype.base).reshape(shape), stored, served)


def _fill_value(
    dataset: h5d.DatasetID,
    creation: h5p.PropDCID,
    stored: StoredType,
    base: StoredType,
    served: np.dtype[Any],
) -> Any:
    """What libhdf5 returns for elements that were never written; zero where nothing is defined."""
    if creation.fill_value_defined() != h5d.FILL_VALUE_USER_DEFINED:
        return np.zeros((), dtype=served)
    if isinstance(stored, Subarray) or is_foreign(stored):
        raw = _fill_bytes(dataset, creation)
        if not libhdf5.is_exact(raw, dataset.get_type(), stored):
            raise UnsupportedError("the fill value is not exact in double precision: Zarr v3 has no wider type")
        count = len(raw) // numpy_dtype(base).itemsize
        flat = _values(raw, dataset.get_type(), stored, served, (count,))
        if any(element.tobytes() != flat[0].tobytes() for element in flat):
            raise UnsupportedError("the fill value of an array type differs between its elements")
        return flat[0]
    value = np.zeros((), dtype=dataset.dtype)
    creation.get_fill_value(value)
    if served.names is None:
        return value.astype(served) if served.kind != "V" else value
    out = np.zeros((), dtype=served)
    out[()] = value.astype(served)
    return out


def _fill_bytes(dataset: h5d.DatasetID, creation: h5p.PropDCID) -> bytes:
    """The fill value of an array type, or of one that numpy does not know, as stored.

    h5py asks for fill values by numpy dtype, and numpy has no scalar of such a type: an empty
    dataset of the same type and fill value, in memory, is read in its own type instead.
    """
    if creation.get_external_count():
        raise UnsupportedError("the fill value of such a type in external files is not served yet")
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(1 << 16, False)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    file = h5f.create(b"fill", h5f.ACC_TRUNC, fapl=access)
    try:
        kind = dataset.get_type()
        kind = kind.copy() if kind.committed() else kind
        plain = creation.copy()
        plain.remove_filter(h5z.FILTER_ALL)
        plain.set_layout(h5d.CONTIGUOUS)
        made = h5d.create(file, b"d", kind, h5s.create_simple((1,)), plain)
        out = np.zeros((1,), dtype=f"V{kind.get_size()}")
        made.read(h5s.ALL, h5s.ALL, out, kind)
        return out.tobytes()
    finally:
        file.close()


def _store(found: Found, plan: _Plan, index: FileIndex, *, is_coordinate: bool) -> _Stored:
    # These two compile the datasets that a virtual one is made of, and so import this module.
    from refindex.scan.hdf5.external import store_external
    from refindex.scan.hdf5.virtual import store_virtual

    dataset = found.id
    layout = plan.creation.get_layout()
    small = plan.nbytes <= (COORDINATE_NBYTES if is_coordinate else INLINE_NBYTES)
    # First of all, whatever the size: libhdf5 reads some of what is missing as fill values.
    if layout == getattr(h5d, "VIRTUAL", 3):
        return store_virtual(dataset, plan, index, small=small)
    if plan.creation.get_external_count() > 0:
        return store_external(dataset, plan, index, small=small)
    if 0 in plan.shape:
        grid = ChunkGrid.regular(plan.shape, tuple(max(1, n) for n in plan.shape))
        return _Stored(grid=grid, codecs=[bytes_codec(plan.served)], chunks=ChunkTable.empty(), status=Status.INLINED)
    if small or layout == h5d.COMPACT:
        return _inline(dataset, plan)
    if layout == h5d.CONTIGUOUS:
        return _contiguous(dataset, plan, index)
    if layout == h5d.CHUNKED:
        return _chunked(found, plan, index)
    raise UnsupportedError(f"HDF5 storage layout {layout} is not known")


def _inline(dataset: h5d.DatasetID, plan: _Plan) -> _Stored:
    """The values themselves, as libhdf5 reads them, and the fill value behind them, in one chunk."""
    kind = dataset.get_type()
    raw = np.empty(dataset.shape, dtype=f"V{kind.get_size()}")
    if raw.size:
        dataset.read(h5s.ALL, h5s.ALL, raw, kind)
    values = _values(raw.tobytes(), kind, plan.stored, plan.served, (*dataset.shape, *plan.type_dims))
    values = fit(values, plan.shape, plan.fill)
    return _Stored(
        grid=ChunkGrid.regular(plan.shape, plan.shape),
        codecs=[bytes_codec(plan.served)],
        chunks=ChunkTable.inline([(0, np.ascontiguousarray(values).tobytes())]),
        status=Status.INLINED,
    )


def _contiguous(dataset: h5d.DatasetID, plan: _Plan, index: FileIndex) -> _Stored:
    offset = dataset.get_offset()
    stored_size = numpy_dtype(plan.stored).itemsize // max(1, math.prod(plan.type_dims))
    cut = split_contiguous(plan.shape, stored_size, offset or 0)
    grid = ChunkGrid.regular(plan.shape, cut.chunk_shape)
    codecs = [bytes_codec(plan.served)]
    # Behind a user block libhdf5 adds its size to the address "undefined": only the storage size tells.
    if offset is None or dataset.get_storage_size() == 0:
        return _Stored(grid=grid, codecs=codecs, chunks=ChunkTable.empty(), reason="nothing is written")
    index.check_range(cut.offset, cut.length)
    encodings = [_encoding(dataset, plan, cut.chunk_shape, ())]
    if cut.short.any():
        encodings.append(_encoding(dataset, plan, cut.edge_shape, ()))
    reasons = []
    if not same_bytes(plan.stored, plan.served):
        reasons.append(_type_reason(plan))
    if cut.short.any():
        reasons.append("the last chunk along the dimension that is cut is short")
    return _Stored(
        grid=grid,
        codecs=codecs,
        encodings=tuple(encodings),
        chunks=ChunkTable.from_columns(
            chunk=np.arange(len(cut.offset)),
            source=0,
            offset=cut.offset,
            length=cut.length,
            encoding=cut.short,
        ),
        status=Status.ADAPTED if reasons else Status.NATIVE,
        reason="; ".join(reasons),
    )


def _type_reason(plan: _Plan) -> str:
    if is_foreign(plan.stored):
        return f"elements are numbers that numpy does not know: converted by libhdf5, served as {plan.served}"
    return f"elements are stored as {numpy_dtype(plan.stored)} and served as {plan.served}"


def _chunked(found: Found, plan: _Plan, index: FileIndex) -> _Stored:
    chunk_shape = (*plan.creation.get_chunk(), *plan.type_dims)
    grid = ChunkGrid.regular(plan.shape, chunk_shape)
    pipeline = read_pipeline(plan.creation, lambda: header_messages(found, index))
    stored = index.chunks(found, pipeline=pipeline)
    # An array type adds dimensions behind the dataset's; each chunk holds them whole.
    scaled = stored.scaled
    if plan.type_dims:
        scaled = np.pad(scaled, ((0, 0), (0, len(plan.type_dims))))
    number = grid.index(scaled)
    # Of the dataset itself: behind its extent are no chunks, also where it is served longer.
    counts_of = np.array(ChunkGrid.regular((*found.id.shape, *plan.type_dims), chunk_shape).counts)[: found.id.rank]
    if np.any(stored.scaled < 0) or np.any(stored.scaled >= counts_of):
        raise FormatError("the chunk index names chunks outside the array")
    index.check_range(stored.offset, stored.length)
    # Bits beyond the pipeline mean nothing; masks that skip the same filters are one encoding.
    mask = stored.mask & ((1 << len(pipeline)) - 1)
    rows: npt.NDArray[np.intp] = np.zeros(len(mask), dtype=np.intp)
    if len(mask) and mask.min() != mask.max():
        masks, rows, counts = np.unique(mask, return_inverse=True, return_counts=True)
    else:
        masks, counts = mask[:1] if len(mask) else np.zeros(1, dtype=np.int64), np.array([len(mask)])
    encodings = tuple(_encoding(found.id, plan, chunk_shape, applied(pipeline, int(mask))) for mask in masks)
    for number_of, encoding in enumerate(encodings):
        raw = stored.length[rows == number_of] if not encoding.filters else stored.length[:0]
        if np.any(raw != encoding.nbytes):
            raise FormatError(f"an unfiltered chunk has {int(raw.min())} bytes, expected {encoding.nbytes}")
    majority = encodings[int(np.argmax(counts))]
    codecs = native_codecs(majority, plan.served)
    reasons = _check_decodable(found.id, encodings, stored, rows, plan)
    if codecs is None:
        if not same_bytes(plan.stored, plan.served):
            reasons.insert(0, _type_reason(plan))
        else:
            names = " + ".join(f.name for f in majority.filters)
            reasons.insert(0, f"no Zarr codec chain reads {names}: decoded here")
        codecs = [bytes_codec(plan.served)]
    elif len(encodings) > 1:
        reasons.insert(0, f"{int(counts.sum() - counts.max())} of {int(counts.sum())} chunks skip filters")
    return _Stored(
        grid=grid,
        codecs=codecs,
        encodings=encodings,
        chunks=ChunkTable.from_columns(
            chunk=number, source=0, offset=stored.offset, length=stored.length, encoding=rows
        ),
        status=Status.ADAPTED if reasons else Status.NATIVE,
        reason="; ".join(reasons),
    )


def _encoding(dataset: h5d.DatasetID, plan: _Plan, shape: tuple[int, ...], filters: tuple[Filter, ...]) -> Encoding:
    # Filters need nothing but their values; only the conversion of numbers by libhdf5 needs the HDF5 datatype.
    encoded = b""
    if is_foreign(plan.stored):
        kind = dataset.get_type()
        encoded = (kind.copy() if kind.committed() else kind).encode()
    return Encoding(type=plan.stored, shape=shape, filters=filters, hdf5_type=encoded)


def _check_decodable(
    dataset: h5d.DatasetID,
    encodings: tuple[Encoding, ...],
    stored: StoredChunks,
    rows: np.ndarray[Any, Any],
    plan: _Plan,
) -> list[str]:
    """Try the first chunk of every encoding that libhdf5 must decode, beside what libhdf5 itself reads.

    The filter's parameters travel through the manifest; that they decode to the right values is shown, not
    assumed. Raises UnsupportedError where they do not.
    """
    for number, encoding in enumerate(encodings):
        special = [f for f in encoding.filters if not is_built_in(f)]
        if not special:
            continue
        for f in special:
            if not libhdf5.available(f.id):
                raise UnsupportedError(f"{f.name} (HDF5 filter {f.id}) is not available to libhdf5 here")
        row = int(np.argmax(rows == number)) if len(rows) else None
        if row is None:
            continue
        first = tuple(int(n) * step for n, step in zip(stored.scaled[row], encoding.shape, strict=False))
        mask, data = dataset.read_direct_chunk(first)
        del mask
        try:
            ours = decode(bytes(data), encoding, plan.served)
        except RefindexError as error:
            raise UnsupportedError(f"{' + '.join(f.name for f in special)}: {error}") from error
        inside = tuple(
            slice(0, min(step, extent - start))
            for step, extent, start in zip(encoding.shape, dataset.shape, first, strict=False)
        )
        kind = dataset.get_type()
        theirs = np.empty(tuple(s.stop for s in inside), dtype=f"V{kind.get_size()}")
        space = dataset.get_space()
        space.select_hyperslab(first, theirs.shape)
        dataset.read(h5s.create_simple(theirs.shape), space, theirs, kind)
        expected = _values(theirs.tobytes(), kind, plan.stored, plan.served, (*theirs.shape, *plan.type_dims))
        if ours[inside].tobytes() != expected.tobytes():
            names = " + ".join(f.name for f in special)
            raise UnsupportedError(f"{names}: a chunk decoded outside its file differs from libhdf5's values")
    return []
