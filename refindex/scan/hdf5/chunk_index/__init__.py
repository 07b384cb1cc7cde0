"""The chunk table of a dataset, read from its index on disk.

HDF5 File Format Specification 4.0, section VII (Appendix C) "Types of Indexes for Dataset Chunks". One module
an index, each a walk over byte ranges (see :mod:`refindex.access.gather`); what holds for all of them is
checked here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from refindex.access.gather import Gatherer, Walk, drive
from refindex.errors import FormatError, UnsupportedError
from refindex.scan.hdf5.chunk_index import (
    btree_v1,
    btree_v2,
    extensible_array,
    fixed_array,
    implicit,
    single,
)
from refindex.scan.hdf5.chunk_index.columns import (
    ALL_FILTERS_MASKED,
    ChunkColumns,
    Indexed,
    RawColumns,
    concatenate,
)
from refindex.scan.hdf5.fields import Signed
from refindex.scan.hdf5.layout_message import ChunkIndexType, Layout
from refindex.scan.hdf5.object_header import layout_walk
from refindex.scan.hdf5.superblock import Superblock

__all__ = ["ALL_FILTERS_MASKED", "ChunkColumns", "index_walk", "read_chunks"]

_WALKS: dict[ChunkIndexType, Callable[[Indexed], Walk[RawColumns]]] = {
    ChunkIndexType.BTREE_V1: btree_v1.walk,
    ChunkIndexType.SINGLE: single.walk,
    ChunkIndexType.IMPLICIT: implicit.walk,
    ChunkIndexType.FIXED_ARRAY: fixed_array.walk,
    ChunkIndexType.EXTENSIBLE_ARRAY: extensible_array.walk,
    ChunkIndexType.BTREE_V2: btree_v2.walk,
}

_LARGEST = 2**63


def read_chunks(
    gatherer: Gatherer,
    superblock: Superblock,
    layout: Layout,
    *,
    shape: Sequence[int],
    max_shape: Sequence[int | None],
    filtered: bool,
    chunk_nbytes: int | None = None,
    verify: bool = False,
) -> ChunkColumns:
    """All stored chunks of the dataset with this ``layout``, in C order of their grid coordinates.

    ``shape`` and ``max_shape`` are the dataset's, in elements; unlimited is None or HDF5's H5S_UNLIMITED
    (2**64 - 1 or -1). ``filtered``: the dataset has a filter pipeline. ``chunk_nbytes``: bytes of an
    unfiltered chunk, to be checked against the layout's; leave it out for variable-length types, which
    have another size in memory. ``verify`` also checks the checksums of the newer indexes, at several
    times the cost.

    Partial edge chunks that were left unfiltered (H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS) get the filter mask
    :data:`ALL_FILTERS_MASKED`; the file says 0 for them.

    Raises FormatError if the index is damaged or contradicts the arguments: also for a chunk outside the
    file or the grid, or listed twice. Raises UnsupportedError for what is valid but not read here.
    """
    target = _target(
        superblock,
        layout,
        shape=tuple(shape),
        max_shape=tuple(max_shape),
        filtered=filtered,
        chunk_nbytes=chunk_nbytes,
        verify=verify,
    )
    if target is None:
        return _checked(concatenate([], len(shape)), None)
    return _checked(drive(_WALKS[target.chunking.index](target), gatherer), target)


def index_walk(
    superblock: Superblock,
    header_address: int,
    *,
    shape: Sequence[int],
    max_shape: Sequence[int | None],
    filtered: bool,
) -> Walk[None]:
    """What :func:`read_layout` and :func:`read_chunks` will ask for: a walk to fetch it, whose result is not wanted."""
    layout = yield from layout_walk(superblock, header_address)
    target = _target(
        superblock,
        layout,
        shape=tuple(shape),
        max_shape=tuple(max_shape),
        filtered=filtered,
        chunk_nbytes=None,
        verify=False,
    )
    if target is not None:
        yield from _WALKS[target.chunking.index](target)


def _target(
    superblock: Superblock,
    layout: Layout,
    *,
    shape: tuple[int, ...],
    max_shape: tuple[int | None, ...],
    filtered: bool,
    chunk_nbytes: int | None,
    verify: bool,
) -> Indexed | None:
    """What the readers need; None if no chunk can be stored."""
    space, chunking = superblock.space, layout.chunking
    if chunking is None:
        raise FormatError(f"{space.name}: expected a chunked dataset, found {layout.storage.name.lower()} storage")
    bounds = tuple(None if bound is None or bound in (-1, 2**64 - 1) else bound for bound in max_shape)
    if not len(shape) == len(bounds) == len(chunking.dims):
        raise FormatError(
            f"{space.name}: a dataset of shape {shape} and maximum shape {bounds} cannot have chunks of "
            f"{chunking.dims}; expected as many dimensions"
        )
    if any(bound is not None and bound < size for size, bound in zip(shape, bounds, strict=True)):
        raise FormatError(f"{space.name}: shape {shape} exceeds the maximum shape {bounds}")
    if any(size >= _LARGEST for size in shape):
        raise UnsupportedError(f"{space.name}: a dimension of 2**63 elements or more, in shape {shape}")
    if chunk_nbytes is not None and chunk_nbytes != chunking.nbytes:
        raise FormatError(
            f"{space.name}: chunks of {chunk_nbytes} bytes expected, but the data layout message has "
            f"{chunking.dims} elements of {chunking.element_size} bytes"
        )
    grid = tuple(-(-size // step) for size, step in zip(shape, chunking.dims, strict=True))
    if layout.address is None or 0 in grid:
        return None
    return Indexed(
        space=space,
        address=layout.address,
        layout_version=layout.version,
        chunking=chunking,
        shape=shape,
        grid=grid,
        max_grid=tuple(
            None if bound is None else -(-bound // step) for bound, step in zip(bounds, chunking.dims, strict=True)
        ),
        filtered=filtered,
        indexed_storage_k=superblock.indexed_storage_k,
        verify=verify,
    )


def _checked(raw: RawColumns, target: Indexed | None) -> ChunkColumns:
    """The checks common to all indexes: within the grid, within the file, each chunk once."""
    if target is None or not len(raw.address):
        rank = raw.scaled.shape[1]
        none = np.empty(0, dtype=np.int64)
        mask = np.empty(0, dtype=np.uint32)
        return ChunkColumns(scaled=none.reshape(0, rank), offset=none, length=none, filter_mask=mask)
    for dim, count in enumerate(target.grid):
        # uint64 coordinates may be beyond int64; they are compared before they are converted.
        column = raw.scaled[:, dim]
        if int(column.max()) >= count:
            row = int(np.argmax(column))
            raise _bad_chunk(target, raw, row, f"coordinates in the grid {target.grid}", raw.scaled[row].tolist())
    length = _lengths(raw, target)
    offset = target.space.absolute_column(raw.address, "chunk")
    over = offset > target.space.file_size - length
    if over.any():
        row = int(np.argmax(over))
        limit = f"its {length[row]} bytes within the file of {target.space.file_size} bytes"
        raise _bad_chunk(target, raw, row, limit, "an end beyond it")
    scaled = np.ascontiguousarray(raw.scaled).view(np.int64)
    mask = np.zeros(len(offset), dtype=np.uint32)
    if raw.filter_mask is not None:
        mask = raw.filter_mask.astype(np.uint32)
    if target.filtered and target.chunking.dont_filter_partial_chunks:
        _mask_edges(target, raw, scaled, length, mask)
    return _sorted(target, ChunkColumns(scaled=scaled, offset=offset, length=length, filter_mask=mask))


def _lengths(raw: RawColumns, target: Indexed) -> Signed:
    nbytes = target.chunking.nbytes
    if raw.length is None:
        return np.full(len(raw.address), nbytes, dtype=np.int64)
    limit = target.space.file_size
    wrong = raw.length > limit if target.filtered else raw.length != nbytes
    if wrong.any():
        row = int(np.argmax(wrong))
        expected = f"at most {limit} stored bytes" if target.filtered else f"{nbytes} stored bytes without filters"
        raise _bad_chunk(target, raw, row, expected, int(raw.length[row]))
    return raw.length.astype(np.int64)


def _mask_edges(target: Indexed, raw: RawColumns, scaled: Signed, length: Signed, mask: npt.NDArray[np.uint32]) -> None:
    partial = np.zeros(len(mask), dtype=np.bool_)
    for dim, (size, step) in enumerate(zip(target.shape, target.chunking.dims, strict=True)):
        if size % step:
            partial |= scaled[:, dim] == target.grid[dim] - 1
    wrong = partial & (length != target.chunking.nbytes)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise _bad_chunk(
            target, raw, row, f"an unfiltered edge chunk of {target.chunking.nbytes} bytes", int(length[row])
        )
    mask[partial] = ALL_FILTERS_MASKED


def _sorted(target: Indexed, columns: ChunkColumns) -> ChunkColumns:
    """The same rows in C order of their coordinates; raises FormatError for a chunk that is there twice."""
    scaled = columns.scaled
    order: npt.NDArray[np.intp]
    if math.prod(target.grid) < _LARGEST:
        linear = scaled[:, 0]
        for dim in range(1, target.rank):
            linear = linear * target.grid[dim] + scaled[:, dim]
        if (linear[1:] > linear[:-1]).all():
            return columns
        order = np.argsort(linear, kind="stable")
        same = linear[order[1:]] == linear[order[:-1]]
    else:
        order = np.lexsort(scaled.T[::-1])
        same = (scaled[order[1:]] == scaled[order[:-1]]).all(axis=1)
    if same.any():
        row = int(order[int(np.argmax(same))])
        raise target.space.damaged(
            int(columns.offset[row]),
            "chunk",
            expected="each chunk once",
            found=f"{scaled[row].tolist()} twice",
        )
    return ChunkColumns(
        scaled=scaled[order],
        offset=columns.offset[order],
        length=columns.length[order],
        filter_mask=columns.filter_mask[order],
    )


def _bad_chunk(target: Indexed, raw: RawColumns, row: int, expected: object, found: object) -> FormatError:
    address = int(raw.address[row]) + target.space.base
    what = f"chunk {tuple(raw.scaled[row].tolist())} of the {target.chunking.index.name} index"
    return target.space.damaged(address, what, expected=expected, found=found)
