"""Which requests to make for many byte ranges: neighbours are read together."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

type IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Merging:
    """When ranges of a source become one request.

    Parameters
    ----------
    gap:
        Most bytes between two ranges that are read, and thrown away, to save a request.
    limit:
        Bytes beyond which requests do not grow, so that several of them run at the same time and memory stays small.
        A range that is longer is a request of its own.
    """

    gap: int
    limit: int


LOCAL = Merging(gap=4 << 10, limit=1 << 20)
"""A ``pread`` among many and what Python does for it take as long as copying some 4 kB out of the page cache."""

REMOTE = Merging(gap=256 << 10, limit=1 << 20)
"""A round trip takes as long as transferring some hundred kB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Requests that cover byte ranges.

    Parameters
    ----------
    order:
        The ranges by source and offset.
    first:
        For each request where its ranges begin in ``order``; one more entry for where the last one's end.
    source, start, stop:
        What each request reads.
    """

    order: IntArray
    first: IntArray
    source: IntArray
    start: IntArray
    stop: IntArray

    def __len__(self) -> int:
        return len(self.source)

    @property
    def nbytes(self) -> int:
        return int((self.stop - self.start).sum())


def merge(source: IntArray, offset: IntArray, length: IntArray, merging: Merging) -> Requests:
    """Requests for the given ranges. Ranges may overlap; each lies in one request as a whole."""
    count = len(offset)
    order = np.arange(count)
    if count > 1 and not bool(
        ((source[1:] > source[:-1]) | ((source[1:] == source[:-1]) & (offset[1:] >= offset[:-1]))).all()
    ):
        order = np.lexsort((offset, source))
        source, offset, length = source[order], offset[order], length[order]
    stop = offset + length
    if not count:
        none = np.empty(0, dtype=np.int64)
        return Requests(order=order, first=np.zeros(1, dtype=np.int64), source=none, start=none, stop=none)
    changes = source[1:] != source[:-1]
    reach = _reach(stop, changes)
    apart = changes | (offset[1:] - reach[:-1] > merging.gap)
    firsts = np.concatenate(([0], np.flatnonzero(apart) + 1, [count]))
    firsts = _split(firsts, offset, reach, merging.limit)
    begins = firsts[:-1]
    stops = np.maximum.reduceat(stop, begins)
    return Requests(order=order, first=firsts, source=source[begins], start=offset[begins], stop=stops)


def _reach(stop: IntArray, changes: npt.NDArray[np.bool_]) -> IntArray:
    """The end reached so far within a source: a range may lie inside of an earlier one."""
    if bool((changes | (stop[1:] >= stop[:-1])).all()):
        return stop
    bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(stop)]
    return np.concatenate([np.maximum.accumulate(stop[a:b]) for a, b in itertools.pairwise(bounds)])


def _split(firsts: IntArray, offset: IntArray, reach: IntArray, limit: int) -> IntArray:
    """Cut runs of ranges that are longer than the limit."""
    begins, ends = firsts[:-1], firsts[1:]
    lengths = reach[ends - 1] - offset[begins]
    if not len(lengths) or int(lengths.max()) <= limit:
        return firsts
    cuts: list[int] = []
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        at = begin
        while at < end:
            cuts.append(at)
            # The last range that ends within the limit, and at least one.
            at += max(1, int(np.searchsorted(reach[at:end], offset[at] + limit, side="right")))
    return np.array([*cuts, int(firsts[-1])], dtype=np.int64)
