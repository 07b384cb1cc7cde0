"""Where stored chunks lie along one axis of a joined array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refindex.join.dimensions import JoinedDim
from refindex.model.grid import Runs

type IntArray = npt.NDArray[np.int64]
type Edge = int | Runs
"""Chunk lengths of one file along the axis, as :class:`~refindex.model.grid.ChunkGrid` has them."""

type Track = tuple[tuple[int, int], ...]
"""Segments of a joined dimension that a file has, each with its first element in the file."""


@dataclass(frozen=True, kw_only=True)
class AxisMap:
    """For each chunk of a file, its chunks in the joined grid.

    Columns in CSR form: chunk ``k`` of the file has the entries ``pointer[k]`` to ``pointer[k + 1]``: ``joined`` is
    the number of the joined chunk along the axis, ``start`` the element of the stored chunk at which it begins.
    """

    pointer: IntArray
    joined: IntArray
    start: IntArray

    @property
    def is_identity(self) -> bool:
        """Whether every chunk keeps its number and is served from its first element on."""
        n = len(self.pointer) - 1
        return (
            len(self.joined) == n
            and not self.start.any()
            and bool(np.array_equal(self.joined, np.arange(n)))
            and bool(np.array_equal(self.pointer, np.arange(n + 1)))
        )

    def unchanged(self) -> int:
        """Number of chunks from the first on that keep their numbers and their first element."""
        n = len(self.pointer) - 1
        counts = np.diff(self.pointer)
        first = np.minimum(self.pointer[:-1], max(len(self.joined) - 1, 0))
        if not len(self.joined):
            return 0
        same = (counts == 1) & (self.joined[first] == np.arange(n)) & (self.start[first] == 0)
        return n if same.all() else int(np.argmin(same))


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a joined array: chunk lengths, and for each (track, edge) of a file where its chunks lie."""

    size: int
    lengths: IntArray
    maps: dict[tuple[Track, Edge], AxisMap]


def chunk_starts(edge: Edge, size: int) -> IntArray:
    """First elements of the chunks that lie in ``size`` elements."""
    if isinstance(edge, int):
        return np.arange(0, size, edge, dtype=np.int64)
    lengths = np.repeat([n for n, _ in edge], [count for _, count in edge]).astype(np.int64)
    starts: IntArray = np.cumsum(lengths) - lengths
    return starts[starts < size]


def chunk_count(edge: Edge, size: int) -> int:
    """Number of chunks of a grid along one axis, those beyond the extent included."""
    return -(-size // edge) if isinstance(edge, int) else sum(count for _, count in edge)


def covered(edge: Edge, size: int) -> int:
    """Elements that the chunks cover: the extent, and by how much the last chunk overhangs it."""
    return -(-size // edge) * edge if isinstance(edge, int) else sum(n * count for n, count in edge)


def plain_axis(size: int, edges: Sequence[Edge]) -> Axis:
    """An axis that is not joined: its chunks begin wherever those of any file do."""
    distinct = list(dict.fromkeys(edges))
    starts = [chunk_starts(edge, size) for edge in distinct]
    cuts = np.unique(np.concatenate([*starts, np.zeros(0, dtype=np.int64)]))
    if not len(cuts):
        cuts = np.zeros(1, dtype=np.int64)
    # The last chunk overhangs as much as that of every file does, so that it may pass through as it is.
    end = max(size, min((covered(edge, size) for edge in distinct), default=size), int(cuts[-1]) + 1)
    maps: dict[tuple[Track, Edge], AxisMap] = {
        ((), edge): _map(chunk_count(edge, size), np.searchsorted(first, cuts, side="right") - 1, cuts, first)
        for edge, first in zip(distinct, starts, strict=True)
    }
    return Axis(size=size, lengths=np.diff(np.append(cuts, end)), maps=maps)


def joined_axis(dim: JoinedDim, users: Sequence[tuple[Track, Edge, int]]) -> Axis:
    """An axis along which files are joined.

    Parameters
    ----------
    users:
        Distinct ``(track, edge, size)`` of the files: which segments a file has, its chunks, its extent.
    """
    users = list(dict.fromkeys(users))
    starts = {(edge, size): chunk_starts(edge, size) for _, edge, size in users}
    # Who has a segment, and where it begins there.
    of_segment: dict[int, list[tuple[int, int]]] = {}
    for number, (track, _, _) in enumerate(users):
        for segment, offset in track:
            of_segment.setdefault(segment, []).append((number, offset))
    lengths: list[IntArray] = []
    entries: list[list[tuple[IntArray, IntArray, IntArray]]] = [[] for _ in users]
    total = 0
    columns = (dim.segment.tolist(), dim.start.tolist(), dim.length.tolist())
    last = len(columns[0]) - 1
    for piece, (segment, start, length) in enumerate(zip(*columns, strict=True)):
        having = of_segment.get(segment, ())
        cuts = _cuts(having, users, starts, start, length)
        number_of = len(cuts)
        ends = np.append(cuts[1:], length)
        if piece == last and having:
            ends[-1] += min(_overhang(users[u], offset + start + length) for u, offset in having)
        lengths.append(ends - cuts)
        joined = np.arange(total, total + number_of)
        for user, offset in having:
            _, edge, size = users[user]
            first = starts[edge, size]
            at = cuts + (offset + start)
            chunk = np.searchsorted(first, at, side="right") - 1
            entries[user].append((chunk, joined, at - first[chunk]))
        total += number_of
    maps = {}
    for (track, edge, size), found in zip(users, entries, strict=True):
        chunk, joined, begin = (
            (np.concatenate(c) for c in zip(*found, strict=True)) if found else (np.zeros(0, dtype=np.int64),) * 3
        )
        maps[track, edge] = _csr(chunk_count(edge, size), chunk, joined, begin)
    flat = np.concatenate(lengths) if lengths else np.zeros(0, dtype=np.int64)
    return Axis(size=dim.size, lengths=flat, maps=maps)


def _cuts(
    having: Sequence[tuple[int, int]],
    users: Sequence[tuple[Track, Edge, int]],
    starts: dict[tuple[Edge, int], IntArray],
    start: int,
    length: int,
) -> IntArray:
    """Where chunks begin in a piece, counted from its first element."""
    found: IntArray | None = None
    for user, offset in having:
        _, edge, size = users[user]
        first = starts[edge, size]
        low, high = offset + start, offset + start + length
        inside = first[np.searchsorted(first, low, side="right") : np.searchsorted(first, high)] - low
        own = np.concatenate((np.zeros(1, dtype=np.int64), inside))
        if found is None:
            found = own
        elif len(found) != len(own) or not np.array_equal(found, own):
            found = np.unique(np.concatenate((found, own)))
    return np.zeros(1, dtype=np.int64) if found is None else found


def _overhang(user: tuple[Track, Edge, int], end: int) -> int:
    """By how much a file's last chunk overhangs, if a piece ends where the file does."""
    _, edge, size = user
    return covered(edge, size) - size if end == size else 0


def _map(count: int, chunk: IntArray, cuts: IntArray, first: IntArray) -> AxisMap:
    return _csr(count, chunk, np.arange(len(cuts)), cuts - first[chunk] if len(first) else cuts)


def _csr(count: int, chunk: IntArray, joined: IntArray, start: IntArray) -> AxisMap:
    if len(chunk) > 1 and np.any(chunk[1:] < chunk[:-1]):
        order = np.argsort(chunk, kind="stable")
        chunk, joined, start = chunk[order], joined[order], start[order]
    pointer = np.searchsorted(chunk, np.arange(count + 1)).astype(np.int64)
    return AxisMap(pointer=pointer, joined=joined.astype(np.int64), start=start.astype(np.int64))


@dataclass(frozen=True, kw_only=True)
class Use:
    """One member's part in a joined array: the member, its kind of document, and its track along each joined axis."""

    member: int
    kind: int
    tracks: tuple[Track, ...]


def track_of(use: Use, dims: Sequence[JoinedDim | None], axis: int) -> Track:
    if dims[axis] is None:
        return ()
    return use.tracks[sum(dim is not None for dim in dims[:axis])]
