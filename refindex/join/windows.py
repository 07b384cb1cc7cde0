"""A join in parts: which references of which files become which range of the joined array's chunks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refindex.join.axis import Axis, AxisMap, Use, track_of
from refindex.join.dimensions import JoinedDim
from refindex.model.grid import ChunkGrid

type IntArray = npt.NDArray[np.int64]

ROWS = 1 << 20
"""References that are joined in one go, about: they take some 300 bytes each while they are."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """The chunks of one file that a window takes: those with numbers ``[start, stop)`` in the file's grid."""

    use: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Window:
    """A range ``[start, stop)`` of the joined array's chunk numbers, and what it is made of.

    A part may have chunks that lie outside of the range.
    """

    start: int
    stop: int
    parts: tuple[Part, ...]


def windows(
    uses: Sequence[Use],
    counts: Sequence[int],
    grids: Sequence[ChunkGrid],
    axes: Sequence[Axis],
    dims: Sequence[JoinedDim | None],
    grid: ChunkGrid,
    firsts: Sequence[int],
) -> Iterator[Window]:
    """Windows of about ``ROWS`` references, in the order of the joined chunk numbers.

    The chunks of the leading dimension that has several are divided: one of them, with all behind it, is never.

    Parameters
    ----------
    counts:
        References of each use.
    grids:
        Chunk grid of each use.
    firsts:
        The chunk number of each use from which on it is joined.
    """
    axis = next((n for n, count in enumerate(grid.counts) if count > 1), None)
    whole = [Part(use=n, start=first, stop=own.size) for n, (own, first) in enumerate(zip(grids, firsts, strict=True))]
    if axis is None or sum(counts) <= ROWS:
        yield Window(start=0, stop=grid.size, parts=tuple(whole))
        return
    maps = [axes[axis].maps[track_of(use, dims, axis), own.edges[axis]] for use, own in zip(uses, grids, strict=True)]
    known = {id(m): (int(m.joined.min()), int(m.joined.max()) + 1) if len(m.joined) else (0, 0) for m in maps}
    low, high = np.array([known[id(m)] for m in maps], dtype=np.int64).T
    behind = int(np.prod(grid.counts[axis + 1 :], dtype=np.int64))
    for start, stop in _ranges(low, high, np.array(counts), grid.counts[axis]):
        parts = []
        for n in np.flatnonzero((low < stop) & (high > start)).tolist():
            part = whole[n]
            if low[n] < start or high[n] > stop:
                part = _cut(part, maps[n], grids[n], axis, start, stop)
            parts.append(part)
        yield Window(start=start * behind, stop=stop * behind, parts=tuple(parts))


def _ranges(low: IntArray, high: IntArray, counts: IntArray, size: int) -> list[tuple[int, int]]:
    """Ranges of chunks along an axis, with about ``ROWS`` references in each."""
    density = np.zeros(size + 1)
    each = counts / np.maximum(high - low, 1)
    np.add.at(density, low, each)
    np.add.at(density, high, -each)
    total = np.cumsum(np.cumsum(density)[:-1])
    wanted = np.arange(1, int(np.ceil(total[-1] / ROWS))) * ROWS
    cuts = np.unique(np.concatenate(([0], np.searchsorted(total, wanted, side="right"), [size])))
    return list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))


def _cut(part: Part, axis_map: AxisMap, own: ChunkGrid, axis: int, start: int, stop: int) -> Part:
    """The chunks of a file that lie in a range along an axis, and perhaps more."""
    if any(count > 1 for count in own.counts[:axis]):
        return part
    entries = np.flatnonzero((axis_map.joined >= start) & (axis_map.joined < stop))
    if not len(entries):
        return Part(use=part.use, start=part.start, stop=part.start)
    chunks = np.searchsorted(axis_map.pointer, entries, side="right") - 1
    behind = int(np.prod(own.counts[axis + 1 :], dtype=np.int64))
    return Part(
        use=part.use,
        start=max(part.start, int(chunks.min()) * behind),
        stop=min(part.stop, (int(chunks.max()) + 1) * behind),
    )
