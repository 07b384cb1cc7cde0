"""Many byte ranges at once: the protocol between a format reader and where its bytes are.

A reader is written as a *walk*: a generator that yields a :data:`Round`, that is all byte ranges it
can name at this point, and is sent back their bytes. It does no I/O, so the same walk runs over a
mapped file, over concurrent requests to an object store, and under a fuzzer. One round is one trip to
the source, whatever the number of ranges.

A round is a sequence of :class:`Ranges`, each with one length for all its ranges. The answer holds one
C-contiguous ``uint8`` array of shape ``(n, length)`` for each of them, in the same order. Ranges of
several lengths are several groups of one round; formats have few distinct lengths at a time.

Whatever a walk asks for comes from the file's own bytes and cannot be trusted: every range is checked
against the size of the file before memory is taken, and a walk may not ask for much more than the
whole file holds, so a loop in a damaged file ends with :class:`~refindex.errors.FormatError`.
"""

from __future__ import annotations

from collections.abc import Buffer, Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refindex.errors import FormatError, SourceError, UnsupportedError

type Block = npt.NDArray[np.uint8]
type ReadRanges = Callable[[Sequence[int], Sequence[int]], Sequence[Buffer]]

COALESCE_GAP = 64 * 1024
"""Ranges nearer than this many bytes become one request of a remote file."""

COALESCE_LIMIT = 8 * 1024 * 1024
"""Requests are not merged beyond this many bytes, so that several of them run at the same time."""

BATCH_BYTES = 8 * 1024 * 1024
"""What a walk over many nodes asks for at a time, see :func:`in_batches`."""

BUDGET_FACTOR = 4
BUDGET_FLOOR = 64 * 1024
"""A walk may read this many times the size of the file, plus the floor for speculative reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranges:
    """Byte ranges of one length: ``offsets`` is an int64 column of absolute file offsets."""

    offsets: npt.NDArray[np.int64]
    length: int

    @classmethod
    def one(cls, offset: int, length: int) -> Ranges:
        """A single range. An offset no file can have is kept as one that every check refuses."""
        return cls(offsets=np.array([min(offset, 2**63 - 1)], dtype=np.int64), length=length)

    @property
    def nbytes(self) -> int:
        return len(self.offsets) * self.length


type Round = Sequence[Ranges]
type Walk[T] = Generator[Round, Sequence[Block], T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One round of a bulk read. ``pieces``: for every group asked for, which of the groups it is part of
    and which of that group's offsets it holds."""

    asked: Round
    pieces: Sequence[tuple[int, slice]]


def in_batches(groups: Round) -> Iterator[Batch]:
    """Split groups without a bound into rounds of about :data:`BATCH_BYTES`, in order.

    A batch still gives a remote source thousands of ranges at a time, and keeps the memory of a walk to
    little more than its result. Empty groups are left out.
    """
    asked: list[Ranges] = []
    pieces: list[tuple[int, slice]] = []
    room = BATCH_BYTES
    for group, ranges in enumerate(groups):
        start, length = 0, max(1, ranges.length)
        while start < len(ranges.offsets):
            rows = slice(start, start + max(1, room // length))
            piece = Ranges(offsets=ranges.offsets[rows], length=ranges.length)
            asked.append(piece)
            pieces.append((group, rows))
            start += len(piece.offsets)
            room -= len(piece.offsets) * length
            if room < length:
                yield Batch(asked=asked, pieces=pieces)
                asked, pieces, room = [], [], BATCH_BYTES
    if asked:
        yield Batch(asked=asked, pieces=pieces)


class Gatherer(Protocol):
    """Where the bytes of one file are. ``name`` is used in messages, ``size`` is in bytes."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def gather(self, asked: Round, /) -> Sequence[Block]:
        """The bytes of every group of ``asked``; raises FormatError for a range outside the file."""
        ...


def drive[T](walk: Walk[T], gatherer: Gatherer) -> T:
    """Run a walk to its end over one file and return its result.

    Raises FormatError when a range lies outside the file, or when the walk asks for more bytes in all
    than :data:`BUDGET_FACTOR` times the file.
    """
    budget = BUDGET_FACTOR * gatherer.size + BUDGET_FLOOR
    try:
        asked = next(walk)
        while True:
            budget -= sum(ranges.nbytes for ranges in asked)
            if budget < 0:
                raise FormatError(
                    f"{gatherer.name}: its metadata asks for more than {BUDGET_FACTOR} times the "
                    f"{gatherer.size} bytes of the file; expected structures that do not overlap"
                )
            asked = walk.send(gatherer.gather(asked))
    except StopIteration as stop:
        result: T = stop.value
        return result
    finally:
        walk.close()


def drive_together(walks: Sequence[Walk[None]], gatherer: Gatherer, *, most: int) -> None:
    """Run walks side by side, so that those bytes of all of them that can be named now are one round.

    For a gatherer that keeps what it has fetched. A walk that comes upon damage, or asks for more than is left of
    ``most`` bytes, is let go: whoever needs its result runs it again, and gets the error.
    """
    left = most
    running: list[tuple[Walk[None], Round]] = []
    waiting: list[tuple[Walk[None], Sequence[Block] | None]] = [(walk, None) for walk in walks]
    while waiting:
        running = []
        for walk, blocks in waiting:
            try:
                asked = next(walk) if blocks is None else walk.send(blocks)
                check_ranges(asked, gatherer.name, gatherer.size)
            except (StopIteration, FormatError, UnsupportedError):
                walk.close()
                continue
            nbytes = sum(ranges.nbytes for ranges in asked)
            if nbytes > left:
                walk.close()
                continue
            left -= nbytes
            running.append((walk, asked))
        found = gatherer.gather([ranges for _, asked in running for ranges in asked]) if running else ()
        waiting, at = [], 0
        for walk, asked in running:
            waiting.append((walk, found[at : at + len(asked)]))
            at += len(asked)


def check_ranges(asked: Round, name: str, size: int) -> None:
    """Raise FormatError for a range that is not in a file of ``size`` bytes."""
    for ranges in asked:
        if ranges.length < 0:
            raise FormatError(f"{name}: a structure of {ranges.length} bytes; expected 0 or more")
        if not len(ranges.offsets):
            continue
        low, high = int(ranges.offsets.min()), int(ranges.offsets.max())
        if low < 0 or high > size - ranges.length:
            raise FormatError(
                f"{name}: {ranges.length} bytes at offset {low if low < 0 else high} are outside the file "
                f"of {size} bytes; the file is truncated or damaged"
            )


def records_at(buffer: Buffer, offsets: npt.NDArray[np.int64], length: int) -> Block:
    """Copy ``length`` bytes from each of the ``offsets`` into ``buffer``, which the caller has checked.

    The buffer is seen as an array of overlapping records, one starting at every byte. It must be
    indexed by ``[]``: ``np.take`` would first copy the overlapping array as a whole.
    """
    if not len(offsets) or not length:
        return np.empty((len(offsets), length), dtype=np.uint8)
    size = memoryview(buffer).nbytes
    overlapping = np.ndarray((size - length + 1,), dtype=f"V{length}", buffer=buffer, strides=(1,))
    return overlapping[offsets].view(np.uint8).reshape(len(offsets), length)


class LocalGatherer:
    """Ranges of a mapping or of any bytes in memory. The buffer is only borrowed during a call."""

    __slots__ = ("_buffer", "_name", "_size")

    def __init__(self, buffer: Buffer, *, name: str) -> None:
        self._buffer = buffer
        self._name = name
        self._size = memoryview(buffer).nbytes

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def gather(self, asked: Round, /) -> Sequence[Block]:
        check_ranges(asked, self._name, self._size)
        return [records_at(self._buffer, ranges.offsets, ranges.length) for ranges in asked]


class RangeGatherer:
    """Ranges of a file read through ``read_ranges(offsets, lengths) -> list of bytes``.

    Ranges of a round that are close to each other are merged first; the callable gets disjoint ranges
    in ascending order and may read them at the same time. It answers all of them or raises.
    """

    __slots__ = ("_name", "_read_ranges", "_size")

    def __init__(self, read_ranges: ReadRanges, *, name: str, size: int) -> None:
        self._read_ranges = read_ranges
        self._name = name
        self._size = size

    @property
    def name(self) -> str:
        return self._name

    @property
    def size(self) -> int:
        return self._size

    def gather(self, asked: Round, /) -> Sequence[Block]:
        check_ranges(asked, self._name, self._size)
        starts, stops = _coalesce(asked)
        if not len(starts):
            return [np.empty((len(ranges.offsets), ranges.length), dtype=np.uint8) for ranges in asked]
        lengths = (stops - starts).tolist()
        parts = self._read_ranges(starts.tolist(), lengths)
        found = [memoryview(part).nbytes for part in parts]
        if found != lengths:
            at = next((i for i, pair in enumerate(zip(found, lengths, strict=False)) if pair[0] != pair[1]), 0)
            raise SourceError(
                f"{self._name}: asked for {len(lengths)} ranges of {sum(lengths)} bytes, got {len(found)} of "
                f"{sum(found)}; the first that differs starts at offset {int(starts[at])}"
            )
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        shift = starts - np.concatenate(([0], np.cumsum(stops - starts)[:-1]))
        blocks = []
        for ranges in asked:
            part = np.searchsorted(starts, ranges.offsets, side="right") - 1
            # A group of length 0 may lie before the first range; it reads nothing.
            blocks.append(records_at(joined, ranges.offsets - shift[part], ranges.length))
        return blocks


def _coalesce(asked: Round) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Disjoint (starts, stops) that cover all ranges asked for, merged over small gaps."""
    wanted = [ranges for ranges in asked if ranges.length and len(ranges.offsets)]
    if not wanted:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    starts = np.concatenate([ranges.offsets for ranges in wanted])
    stops = np.concatenate([ranges.offsets + ranges.length for ranges in wanted])
    order = np.argsort(starts, kind="stable")
    starts, reach = starts[order], np.maximum.accumulate(stops[order])
    gaps = starts[1:] - reach[:-1]
    # Where nothing overlaps, a run is also cut when it enters the next block of COALESCE_LIMIT bytes.
    limit = (starts[1:] // COALESCE_LIMIT > starts[:-1] // COALESCE_LIMIT) & (gaps >= 0)
    cut = np.flatnonzero((gaps > COALESCE_GAP) | limit)
    return starts[np.concatenate(([0], cut + 1))], reach[np.concatenate((cut, [len(reach) - 1]))]
