"""Which chunks are looked at: chosen while all references pass by, in memory that does not grow with them.

Every reference gets a random number. Of each array, of each encoding of it, and of each source, the reference with the
least one is kept, and so are the least of all: that is a sample without a preference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from refindex.model.manifest import Node
from refindex.storage.windows import NULL, Window

type IntArray = npt.NDArray[np.int64]

_GAPS = 256
"""Gaps between chunk numbers that are kept for each array, to look there for chunks that are absent."""

type Pick = tuple[float, str, int]
"""A random number, the path of an array, and the number of a chunk."""


@dataclass(slots=True, kw_only=True)
class _Seen:
    count: int = 0
    least: Pick | None = None
    encodings: dict[int, Pick] = field(default_factory=dict)
    gaps: list[tuple[float, int]] = field(default_factory=list)
    first: int | None = None
    last: int = -1


class Picks:
    """A sample of the chunks of an archive.

    Parameters
    ----------
    wanted:
        Number of chunks; None: all of them.
    seed:
        Of the random numbers: the same archive and seed give the same sample.
    """

    def __init__(self, wanted: int | None, seed: int) -> None:
        self.wanted = wanted
        self._random = np.random.default_rng(seed)
        self._arrays: dict[str, _Seen] = {}
        self._nodes: dict[str, Node] = {}
        self._sources: dict[int, Pick] = {}
        self._least: list[Pick] = []

    def add(self, path: str, node: Node) -> None:
        """Let an array be among those of which chunks are picked."""
        self._nodes[path] = node

    def see(self, window: Window, node: Node, fine: npt.NDArray[np.bool_]) -> None:
        """Some references; of those that are not ``fine``, none is picked."""
        if window.path not in self._nodes:
            return
        seen = self._arrays.setdefault(window.path, _Seen())
        chunk = window.columns["chunk"][fine]
        if not len(chunk):
            return
        seen.count += len(chunk)
        key = self._random.random(len(chunk))
        self._see_gaps(seen, chunk)
        if self.wanted is None:
            return
        source, encoding = window.columns["source"][fine], window.columns["encoding"][fine]
        order = np.argsort(key)

        def pick(row: int) -> Pick:
            return float(key[row]), window.path, int(chunk[row])

        best = pick(int(order[0]))
        seen.least = best if seen.least is None else min(seen.least, best)
        for column, kept in ((encoding, seen.encodings), (source, self._sources)):
            values, firsts = np.unique(column[order], return_index=True)
            for value, first in zip(values.tolist(), firsts.tolist(), strict=True):
                if value == NULL and kept is self._sources:
                    continue
                mine = pick(int(order[first]))
                kept[value] = min(kept.get(value, mine), mine)
        self._least += [pick(int(row)) for row in order[: self.wanted]]
        if len(self._least) > 4 * self.wanted + 1024:
            self._least = sorted(self._least)[: self.wanted]

    def _see_gaps(self, seen: _Seen, chunk: IntArray) -> None:
        ordered = np.unique(chunk)
        seen.first = int(ordered[0]) if seen.first is None else min(seen.first, int(ordered[0]))
        holes = np.flatnonzero(np.diff(ordered, prepend=seen.last if seen.last < ordered[0] else ordered[0]) > 1)
        seen.last = max(seen.last, int(ordered[-1]))
        if len(holes):
            keys = self._random.random(len(holes))
            some = np.argsort(keys)[:_GAPS]
            # The number before a chunk that is there is that of one that may not be.
            seen.gaps += [(float(keys[n]), int(ordered[holes[n]]) - 1) for n in some.tolist()]
            if len(seen.gaps) > 4 * _GAPS:
                seen.gaps = sorted(seen.gaps)[:_GAPS]

    def chosen(self) -> dict[str, list[int]]:
        """The chunks of a sample by array: what must come up first, then the rest at random."""
        wanted = self.wanted or 0
        least = [seen.least for seen in self._arrays.values() if seen.least is not None]
        encodings = [pick for seen in self._arrays.values() for pick in seen.encodings.values()]
        picked: dict[tuple[str, int], None] = {}
        for picks in (least, encodings, list(self._sources.values()), self._least):
            for _, path, chunk in sorted(picks):
                if len(picked) < wanted:
                    picked[path, chunk] = None
        chunks: dict[str, list[int]] = {}
        for path, chunk in picked:
            chunks.setdefault(path, []).append(chunk)
        return {path: sorted(numbers) for path, numbers in chunks.items()}

    def holes(self, path: str, most: int) -> list[int]:
        """Numbers of chunks of an array that may be absent: at most so many."""
        node = self._nodes[path]
        seen = self._arrays.get(path, _Seen())
        size = node.grid.size
        if not size or seen.count >= size:
            return []
        if size <= most:
            return list(range(size))
        found = dict.fromkeys(number for _, number in sorted(seen.gaps)[: most // 2 + 1])
        if seen.last + 1 < size:
            found |= dict.fromkeys(self._random.integers(seen.last + 1, size, size=most // 4 + 1).tolist())
        found |= dict.fromkeys(self._random.integers(0, size, size=most // 2 + 1).tolist())
        return list(found)[:most]

    def counts(self) -> Iterator[tuple[str, int]]:
        """How many references each array has."""
        for path in self._nodes:
            yield path, self._arrays.get(path, _Seen()).count
