"""The chunks of an HDF5 dataset as an array's: inline, contiguous, chunked."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from h5py import h5d, h5s

from refindex.decode import libhdf5
from refindex.decode.pipeline import decode, fit, is_built_in
from refindex.errors import FormatError, RefindexError, UnsupportedError
from refindex.model.chunks import ChunkTable
from refindex.model.dtype import (
    is_foreign,
    numpy_dtype,
    same_bytes,
)
from refindex.model.encoding import Encoding, Filter, bytes_codec, native_codecs
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Status
from refindex.scan.contiguous import split_contiguous
from refindex.scan.hdf5.chunks import IntArray, StoredChunks
from refindex.scan.hdf5.filters import applied, header_messages, read_pipeline
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.plan import Plan, served_values, type_reason
from refindex.scan.hdf5.walk import Found


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Chunks of an array: grid, declared codecs, encodings and references."""

    grid: ChunkGrid
    codecs: list[dict[str, Any]]
    chunks: ChunkTable
    encodings: tuple[Encoding, ...] = ()
    status: Status = Status.NATIVE
    reason: str = ""
    alike: tuple[Any, ...] | None = None
    """Equal for arrays of which all but the chunks is equal; None if that is not known."""


def inline(dataset: h5d.DatasetID, plan: Plan, found: Found | None = None) -> Stored:
    """The values themselves, as libhdf5 reads them, and the fill value behind them, in one chunk."""
    kind = dataset.get_type()
    shape = tuple(dataset.shape)
    raw = np.empty(shape, dtype=f"V{kind.get_size()}")
    if raw.size:
        dataset.read(h5s.ALL, h5s.ALL, raw, kind)
    values = served_values(raw.tobytes(), kind, plan.stored, plan.served, (*shape, *plan.type_dims))
    values = fit(values, plan.shape, plan.fill)
    return Stored(
        alike=(found.form.key, plan.shape) if found is not None and found.lies_here else None,
        grid=ChunkGrid.regular(plan.shape, plan.shape),
        codecs=[bytes_codec(plan.served)],
        chunks=ChunkTable.inline([(0, np.ascontiguousarray(values).tobytes())]),
        status=Status.INLINED,
    )


def contiguous(dataset: h5d.DatasetID, plan: Plan, index: FileIndex) -> Stored:
    offset = dataset.get_offset()
    stored_size = numpy_dtype(plan.stored).itemsize // max(1, math.prod(plan.type_dims))
    cut = split_contiguous(plan.shape, stored_size, offset or 0)
    grid = ChunkGrid.regular(plan.shape, cut.chunk_shape)
    codecs = [bytes_codec(plan.served)]
    # Behind a user block libhdf5 adds its size to the address "undefined": only the storage size tells.
    if offset is None or dataset.get_storage_size() == 0:
        return Stored(grid=grid, codecs=codecs, chunks=ChunkTable.empty(), reason="nothing is written")
    # Before it is cut: a tiny file can claim more chunks than there is memory for.
    end = offset + stored_size * math.prod(plan.shape)
    if end > index.size:
        raise FormatError(f"data ends at byte {end} of a file of {index.size} bytes")
    encodings = [make_encoding(dataset, plan, cut.chunk_shape, ())]
    if cut.short.any():
        encodings.append(make_encoding(dataset, plan, cut.edge_shape, ()))
    reasons = []
    if not same_bytes(plan.stored, plan.served):
        reasons.append(type_reason(plan))
    if cut.short.any():
        reasons.append("the last chunk along the dimension that is cut is short")
    return Stored(
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


def chunked(found: Found, plan: Plan, index: FileIndex) -> Stored:
    form = found.form
    if form.pipeline is None:
        form.pipeline = read_pipeline(plan.creation, lambda: header_messages(found, index))
    pipeline = form.pipeline
    stored = index.chunks(found, pipeline=pipeline)
    # Bits beyond the pipeline mean nothing; masks that skip the same filters are one encoding.
    mask = stored.mask & ((1 << len(pipeline)) - 1)
    first = int(mask[0]) if len(mask) else 0
    mixed = bool((mask != first).any())
    # Where libhdf5 must decode, the first chunk of each array is tried.
    alike = None
    if form.key and not mixed and all(map(is_built_in, pipeline)):
        alike = (form.key, plan.shape, first)
    known = None if alike is None else index.files.known.layouts.get(alike)
    chunk_shape = (*found.chunk, *plan.type_dims)
    grid = ChunkGrid.regular(plan.shape, chunk_shape) if known is None else known.grid
    # An array type adds dimensions behind the dataset's; each chunk holds them whole.
    scaled = stored.scaled
    if plan.type_dims:
        scaled = np.pad(scaled, ((0, 0), (0, len(plan.type_dims))))
    number = grid.index(scaled)
    # Of the dataset itself: behind its extent are no chunks, also where it is served longer.
    own = zip(stored.scaled.max(axis=0, initial=0).tolist(), found.shape, chunk_shape, strict=False)
    if stored.scaled.min(initial=0) < 0 or (len(scaled) and any(last * step >= n for last, n, step in own)):
        raise FormatError("the chunk index names chunks outside the array")
    index.check_range(stored.offset, stored.length)
    if known is not None:
        _check_lengths(stored.length, known.encodings[0])
        return replace(known, chunks=_table(number, stored, 0))
    rows: npt.NDArray[np.intp] = np.zeros(len(mask), dtype=np.intp)
    if mixed:
        masks, rows, counts = np.unique(mask, return_inverse=True, return_counts=True)
    else:
        masks, counts = np.array([first], dtype=np.int64), np.array([len(mask)])
    encodings = tuple(make_encoding(found.id, plan, chunk_shape, applied(pipeline, int(mask))) for mask in masks)
    for number_of, encoding in enumerate(encodings):
        _check_lengths(stored.length[rows == number_of], encoding)
    majority = encodings[int(np.argmax(counts))]
    codecs = native_codecs(majority, plan.served)
    reasons = _check_decodable(found.id, encodings, stored, rows, plan)
    if codecs is None:
        if not same_bytes(plan.stored, plan.served):
            reasons.insert(0, type_reason(plan))
        else:
            names = " + ".join(f.name for f in majority.filters)
            reasons.insert(0, f"no Zarr codec chain reads {names}: decoded here")
        codecs = [bytes_codec(plan.served)]
    elif len(encodings) > 1:
        reasons.insert(0, f"{int(counts.sum() - counts.max())} of {int(counts.sum())} chunks skip filters")
    result = Stored(
        grid=grid,
        codecs=codecs,
        encodings=encodings,
        chunks=ChunkTable.empty(),
        status=Status.ADAPTED if reasons else Status.NATIVE,
        reason="; ".join(reasons),
        alike=alike,
    )
    if alike is not None:
        index.files.known.layouts.put(alike, result)
    return replace(result, chunks=_table(number, stored, rows))


def _check_lengths(lengths: IntArray, encoding: Encoding) -> None:
    if not encoding.filters and (lengths != encoding.nbytes).any():
        raise FormatError(f"an unfiltered chunk has {int(lengths.min())} bytes, expected {encoding.nbytes}")


def _table(number: IntArray, stored: StoredChunks, rows: npt.ArrayLike) -> ChunkTable:
    if not np.ndim(rows) and (number[1:] > number[:-1]).all():
        none = np.zeros(len(number), dtype=np.int32)
        return ChunkTable(chunk=number, source=none, offset=stored.offset, length=stored.length, encoding=none.copy())
    return ChunkTable.from_columns(chunk=number, source=0, offset=stored.offset, length=stored.length, encoding=rows)


def make_encoding(dataset: h5d.DatasetID, plan: Plan, shape: tuple[int, ...], filters: tuple[Filter, ...]) -> Encoding:
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
    plan: Plan,
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
        expected = served_values(theirs.tobytes(), kind, plan.stored, plan.served, (*theirs.shape, *plan.type_dims))
        if ours[inside].tobytes() != expected.tobytes():
            names = " + ".join(f.name for f in special)
            raise UnsupportedError(f"{names}: a chunk decoded outside its file differs from libhdf5's values")
    return []
