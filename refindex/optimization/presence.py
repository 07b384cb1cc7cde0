"""Which chunks of a rewritten array there are: those in which any element was in a chunk that existed."""

from __future__ import annotations

from itertools import product

import numpy as np
import numpy.typing as npt

from refindex.model.chunks import ChunkTable
from refindex.model.grid import ChunkGrid

type IntArray = npt.NDArray[np.int64]


def present(table: ChunkTable, stored: ChunkGrid, new: ChunkGrid) -> npt.NDArray[np.bool_]:
    """For each chunk of the new grid, in C order, whether one of the table lies in it in part.

    Parameters
    ----------
    table:
        The references of the array as it is, in the grid ``stored``.
    """
    if len(table) == stored.size:
        return np.ones(new.size, dtype=bool)
    # Each stored chunk is a box of new ones: its corners are counted, and summed up along every dimension.
    counts = np.zeros([n + 1 for n in new.counts], dtype=np.int64)
    for rows in table.windows():
        coordinates = stored.coordinates(table.chunk[rows])
        low, high = np.empty_like(coordinates), np.empty_like(coordinates)
        inside = np.ones(len(coordinates), dtype=bool)
        for axis, (start, extent) in enumerate(zip(stored.starts, stored.shape, strict=True)):
            at = coordinates[:, axis]
            begin = at * start if isinstance(start, int) else start[at]
            end = begin + start if isinstance(start, int) else start[at + 1]
            step = new.chunk_shape()[axis]
            inside &= begin < extent
            low[:, axis] = begin // step
            high[:, axis] = -(-np.minimum(end, extent) // step)
        low, high = low[inside], high[inside]
        for corner in product((0, 1), repeat=stored.ndim):
            where = tuple((high if upper else low)[:, axis] for axis, upper in enumerate(corner))
            np.add.at(counts, where, -1 if sum(corner) % 2 else 1)
    for axis in range(stored.ndim):
        np.cumsum(counts, axis=axis, out=counts)
    return np.asarray(counts[tuple(slice(0, n) for n in new.counts)] > 0).reshape(-1)
