"""Parts of a file in memory."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

type Span = tuple[int, int]
"""First byte, and the one behind the last."""


class Segments:
    """Pieces of one file that do not overlap, by where they start.

    Not blocks of one size: nodes of a chunk index are 3 kB each and far apart.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._pieces: dict[int, memoryview] = {}
        self.nbytes = 0

    @property
    def first_stop(self) -> int:
        """Where the piece at the beginning of the file ends."""
        return len(self._pieces[0]) if 0 in self._pieces else 0

    def add(self, start: int, data: bytes | memoryview) -> None:
        """Keep what is not there yet."""
        view = memoryview(data)
        for begin, end in self.missing([(start, start + len(view))]):
            self._starts.insert(bisect_left(self._starts, begin), begin)
            self._pieces[begin] = view[begin - start : end - start]
            self.nbytes += end - begin

    def missing(self, wanted: Iterable[Span]) -> list[Span]:
        """The parts of ranges that are not there, in order, each once."""
        found: list[Span] = []
        reach = -1
        for start, stop in sorted(wanted):
            at = max(start, reach)
            number = bisect_right(self._starts, at) - 1
            while at < stop:
                if number >= 0:
                    begin = self._starts[number]
                    end = begin + len(self._pieces[begin])
                    at = max(at, end)
                number += 1
                limit = min(stop, self._starts[number]) if number < len(self._starts) else stop
                if at < limit:
                    if found and found[-1][1] == at:
                        found[-1] = (found[-1][0], limit)
                    else:
                        found.append((at, limit))
                    at = limit
            reach = max(reach, stop)
        return found

    def read(self, start: int, stop: int) -> bytes:
        """A range that is there as a whole."""
        if stop <= start:
            return b""
        parts: list[memoryview] = []
        number, at = bisect_right(self._starts, start) - 1, start
        while at < stop:
            begin = self._starts[number] if 0 <= number < len(self._starts) else stop
            piece = self._pieces[begin][at - begin : stop - begin] if begin <= at else memoryview(b"")
            if not len(piece):
                raise LookupError(f"bytes {at} to {stop} are not there")
            parts.append(piece)
            at += len(piece)
            number += 1
        return bytes(parts[0]) if len(parts) == 1 else b"".join(parts)

    def view(self) -> memoryview:
        """The piece at the beginning of the file."""
        return self._pieces[0]

    def shrink(self, most: int) -> None:
        """Let go of the oldest pieces beyond so many bytes, but not of the beginning of the file."""
        if self.nbytes <= most:
            return
        for begin in [begin for begin in self._pieces if begin]:
            if self.nbytes <= most:
                break
            self.nbytes -= len(self._pieces.pop(begin))
        self._starts = sorted(self._pieces)
