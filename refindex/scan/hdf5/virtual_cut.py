"""The chunks of a block of a source of a virtual dataset."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from h5py import h5d

from refindex.model.dtype import numpy_dtype
from refindex.model.encoding import Encoding
from refindex.model.grid import ChunkGrid
from refindex.scan.contiguous import split_contiguous
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.plan import Plan
from refindex.scan.hdf5.stored import chunked, make_encoding
from refindex.scan.hdf5.virtual_grid import Irregular
from refindex.scan.hdf5.virtual_sources import Box, is_virtual
from refindex.scan.hdf5.walk import Found, object_address

type IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The chunks of a block of a source: their places in the block's grid of ``steps``, and their references."""

    steps: tuple[int, ...]
    place: IntArray
    offset: IntArray
    length: IntArray
    encoding: IntArray
    encodings: tuple[Encoding, ...]
    complete: bool


def cut_block(plan: Plan, origin: FileIndex, source: h5d.DatasetID, box: Box) -> Cut:
    """The chunks of a source that make up a block of it.

    Raises
    ------
    Irregular
        If they do not, or are no ranges of bytes in the file.
    """
    if origin.family is not None:
        raise Irregular("a source is a family of files")
    if is_virtual(plan.creation):
        raise Irregular("a source is itself virtual")
    if plan.creation.get_external_count():
        raise Irregular("a source is in external files")
    if plan.creation.get_layout() == h5d.CHUNKED:
        return _cut_chunked(plan, origin, source, box)
    if plan.creation.get_layout() == h5d.CONTIGUOUS:
        return _cut_contiguous(plan, origin, source, box)
    raise Irregular("a source is not stored in chunks of bytes")


def _cut_chunked(plan: Plan, origin: FileIndex, source: h5d.DatasetID, box: Box) -> Cut:
    steps = tuple(int(n) for n in plan.creation.get_chunk())
    for first, last, step, extent in zip(box.start, box.stop, steps, source.shape, strict=True):
        if first % step or (last % step and last != extent):
            raise Irregular("a mapping cuts chunks of its source")
    found = Found(path="", address=object_address(source)[1], id=source, origin=origin)
    stored = chunked(found, plan, origin)
    low = np.array(box.start, dtype=np.int64) // np.array(steps, dtype=np.int64)
    high = -(-np.array(box.stop, dtype=np.int64) // np.array(steps, dtype=np.int64))
    table = stored.chunks
    count = math.prod((high - low).tolist())
    if count <= 2 * len(table):
        place = np.indices(tuple(high - low), dtype=np.int64).reshape(len(steps), -1).T + low
        rows = table.find(stored.grid.index(padded(place, plan)))
        place, rows = place[rows >= 0], rows[rows >= 0]
    else:
        place = stored.grid.coordinates(table.chunk)[:, : len(steps)]
        rows = np.flatnonzero(np.all((place >= low) & (place < high), axis=1))
        place = place[rows]
    return Cut(
        steps=steps,
        place=place - low,
        offset=table.offset[rows],
        length=table.length[rows],
        encoding=table.encoding[rows].astype(np.int64),
        encodings=stored.encodings,
        complete=len(rows) == count,
    )


def padded(place: IntArray, plan: Plan) -> IntArray:
    """Chunk coordinates with those of the dimensions that an array type adds."""
    return np.pad(place, ((0, 0), (0, len(plan.type_dims))))


def _cut_contiguous(plan: Plan, origin: FileIndex, source: h5d.DatasetID, box: Box) -> Cut:
    """A block that is one range of bytes, cut as if it were a dataset of its own."""
    offset = source.get_offset()
    none = np.zeros(0, dtype=np.int64)
    if offset is None or source.get_storage_size() == 0:
        place = np.zeros((0, len(box.shape)), dtype=np.int64)
        return Cut(steps=box.shape, place=place, offset=none, length=none, encoding=none, encodings=(), complete=False)
    lead = next((axis for axis, n in enumerate(box.shape) if n > 1), len(box.shape))
    if box.shape[lead + 1 :] != tuple(source.shape)[lead + 1 :]:
        raise Irregular("a mapping takes a part of contiguous data that is not one range of bytes")
    size = numpy_dtype(plan.stored).itemsize
    first = 0
    for start, extent in zip(box.start, source.shape, strict=True):
        first = first * extent + start
    item = size // max(1, math.prod(plan.type_dims))
    cut = split_contiguous((*box.shape, *plan.type_dims), item, offset + first * size)
    ndim = len(box.shape)
    if cut.chunk_shape[ndim:] != plan.type_dims:
        raise Irregular("an element of a source is larger than a chunk")
    origin.check_range(cut.offset, cut.length)
    encodings = [make_encoding(source, plan, cut.chunk_shape, ())]
    if cut.short.any():
        encodings.append(make_encoding(source, plan, cut.edge_shape, ()))
    grid = ChunkGrid.regular(box.shape, cut.chunk_shape[:ndim])
    return Cut(
        steps=cut.chunk_shape[:ndim],
        place=grid.coordinates(np.arange(grid.size)),
        offset=cut.offset,
        length=cut.length,
        encoding=cut.short.astype(np.int64),
        encodings=tuple(encodings),
        complete=True,
    )
