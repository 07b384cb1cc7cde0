"""Ranges of one remote file in few requests: bounded, counted, retried, and all of one version of the file."""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from operator import itemgetter

import numpy as np

from refindex.access import urls
from refindex.access.files import StorageOptions, describe_change, reading
from refindex.access.filesystems import open_transport
from refindex.access.multipart import PARTS, MultipartError
from refindex.access.ranges import Merging, merge
from refindex.access.retry import retrying_async
from refindex.access.segments import Segments, Span
from refindex.access.transport import Answer, RemoteStats, ShortAnswerError
from refindex.errors import SourceError
from refindex.model.manifest import Source

IN_FLIGHT, LARGE_IN_FLIGHT = 64, 16
"""Requests of one file at a time, and how many of these may be for more than 256 kB: so much memory they take."""

PIECE = 4 << 20
"""Longer ranges are fetched in several requests: one connection is slower than several."""

PATIENCE = 60.0
"""Seconds that a request may take before it is sent again, and one more for every 100 kB that it asks for."""

_TOGETHER = Merging(gap=4 << 10, limit=1 << 20)
"""Between the ranges of one request, which cost their headers of some 100 bytes each."""

_LARGE = 256 << 10
_PER_SECOND = 100_000
_BETWEEN = 16 << 20
"""Bytes that are kept of one round beyond what it asked for."""

_FEW = 4
"""From more requests than this on, it is worth asking for several ranges in one."""


_NOTHING = Answer(start=0, data=b"")


class Fetcher:
    """A remote file that requests are made for. Everything runs on fsspec's event loop.

    Raises
    ------
    SourceError
        From every request, if it fails for good, or if its answer is of another version of the file than the first.
    """

    def __init__(
        self, url: str, storage_options: StorageOptions, stats: RemoteStats, version: str | None = None
    ) -> None:
        self._url = url
        self._stats = stats
        self._source: Source | None = None
        with reading(url, "opening"):
            self._transport = open_transport(url, storage_options, version)
        self._singly = Merging(gap=self._transport.gap, limit=PIECE)
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self._large = asyncio.Semaphore(LARGE_IN_FLIGHT)

    @property
    def tells_identity(self) -> bool:
        """Whether every answer says which version of the file it is of."""
        return self._transport.tells_identity

    async def first(self, length: int) -> tuple[Answer, Source]:
        """The beginning of the file, and its identity, in one round trip."""
        if self.tells_identity:
            (answer,) = await self.get(0, length)
        elif self._transport.one_at_a_time:
            await self.check_identity()
            # A folder is a name without bytes.
            (answer,) = await self.get(0, length) if self._source is None or self._source.size else (_NOTHING,)
        else:
            (answer,), _ = await asyncio.gather(self.get(0, length), self.check_identity())
        if self._source is None:
            raise SourceError(f"{urls.display(self._url)}: nothing tells the size of the file")
        if len(answer.data) < min(length, self._source.size):
            (answer,) = await self.get(0, length)  # now that the size is known, a short answer is noticed
        return answer, self._source

    async def check_identity(self) -> None:
        """Ask what the file is now; raises if it is not what it was."""
        with reading(self._url, "asking for its size and time"):
            self._compare(await self._counted(self._transport.info, PATIENCE))

    def close(self) -> None:
        """Close what the transport keeps open."""
        self._transport.close()

    async def get_all(self, missing: Sequence[Span]) -> list[Answer]:
        """All of these ranges, which are in order and do not overlap, at the same time."""
        pieces = [(at, min(at + PIECE, stop)) for start, stop in missing for at in range(start, stop, PIECE)]
        singly = _merged(pieces, self._singly)
        # What lies between is likely to be asked for next, if it is little.
        wanted = None if sum(stop - start for start, stop in singly) <= _BETWEEN else missing
        if self._transport.many is False or len(singly) <= _FEW:
            return await _all(self._cut(self.get(*span), wanted) for span in singly)
        groups = _grouped(_merged(pieces, _TOGETHER))
        answers: list[Answer] = []
        if self._transport.many is None:  # found out with one request, not with all
            answers += await self._cut(self._get_group(groups.pop(0)), wanted)
        return answers + await _all(self._cut(self._get_group(group), wanted) for group in groups)

    async def _cut(self, coming: Awaitable[list[Answer]], wanted: Sequence[Span] | None) -> list[Answer]:
        """What comes, without what was only read because it lies between those that are wanted."""
        answers = await coming
        return answers if wanted is None else [part for answer in answers for part in _parts(answer, wanted)]

    async def _get_group(self, group: Sequence[Span]) -> list[Answer]:
        """Several ranges in one request, if the server can; what is missing then is asked for one by one."""
        answers: list[Answer] = []
        if self._transport.many is not False and len(group) > 1:
            doing = f"reading {len(group)} ranges from byte {group[0][0]} on"
            try:
                answers = await self._attempt(
                    partial(self._try_many, group), doing, sum(stop - start for start, stop in group)
                )
            except SourceError:
                if self._transport.many:
                    raise
                self._transport.many = False  # also those that cut the connection: one by one will tell
        came = Segments()
        for answer in answers:
            came.add(answer.start, answer.data)
        left = _merged(came.missing(group), self._singly)
        return answers + await _all(self.get(*span) for span in left)

    async def _try_many(self, group: Sequence[Span]) -> list[Answer]:
        try:
            answers = await self._transport.get_many(group)
        except MultipartError:
            self._transport.many = False
            return []
        self._transport.many = True
        return answers

    async def get(self, start: int, stop: int) -> list[Answer]:
        """Bytes ``[start, stop)``, fewer where the file ends, or more."""

        async def request() -> list[Answer]:
            answer = await self._transport.get(start, stop)
            if answer.source is None and self._source is not None:
                found = answer.start + len(answer.data) - start
                if found < min(stop, self._source.size) - start:
                    raise ShortAnswerError(f"expected {min(stop, self._source.size) - start} bytes, got {found}")
            return [answer]

        return await self._attempt(request, f"reading bytes {start} to {stop - 1}", stop - start)

    async def _attempt(self, request: Callable[[], Awaitable[list[Answer]]], doing: str, nbytes: int) -> list[Answer]:
        with reading(self._url, doing):
            async with self._slots, self._large if nbytes > _LARGE else contextlib.nullcontext():
                answers = await self._counted(request, PATIENCE + nbytes / _PER_SECOND)
        for answer in answers:
            if answer.source is not None:
                self._compare(answer.source)
        return answers

    async def _counted[T](self, request: Callable[[], Awaitable[T]], patience: float) -> T:
        """The one place where requests are sent and counted, again after transient failures."""
        tries = 0

        async def once() -> T:
            nonlocal tries
            self._stats.add(requests=1, retries=int(tries > 0))
            tries += 1
            async with asyncio.timeout(patience):
                result = await request()
            if isinstance(result, list):
                self._stats.add(nbytes=sum(len(answer.data) for answer in result))
            return result

        return await retrying_async(once)

    def _compare(self, found: Source) -> None:
        if self._source is None:
            self._source = found
            return
        change = describe_change(self._source, found)
        if change is not None:
            raise SourceError(
                f"{urls.display(self._url)} changed while it was scanned: {change}; scan it when it is complete"
            )


def _merged(spans: Sequence[Span], merging: Merging) -> list[Span]:
    if not spans:
        return []
    bounds = np.array(spans, dtype=np.int64)
    requests = merge(np.zeros(len(bounds), dtype=np.int64), bounds[:, 0], bounds[:, 1] - bounds[:, 0], merging)
    return list(zip(requests.start.tolist(), requests.stop.tolist(), strict=True))


def _parts(answer: Answer, wanted: Sequence[Span]) -> list[Answer]:
    """The wanted ranges of an answer, copied out of it; all of it, if most of it is wanted."""
    end = answer.start + len(answer.data)
    number = bisect_left(wanted, answer.start, key=itemgetter(1))
    found: list[Span] = []
    while number < len(wanted) and wanted[number][0] < end:
        found.append((max(answer.start, wanted[number][0]), min(end, wanted[number][1])))
        number += 1
    if 2 * sum(stop - start for start, stop in found) >= len(answer.data):
        return [answer]
    return [
        replace(answer, start=start, data=answer.data[start - answer.start : stop - answer.start])
        for start, stop in found
    ]


async def _all(work: Iterable[Awaitable[list[Answer]]]) -> list[Answer]:
    """At the same time; the first failure ends the others."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        found = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return [answer for answers in found for answer in answers]


def _grouped(spans: Sequence[Span]) -> list[list[Span]]:
    """What is asked for together: so many ranges, and so many bytes, that several requests run at the same time."""
    groups: list[list[Span]] = []
    room = 0
    for start, stop in spans:
        if not groups or len(groups[-1]) == PARTS or stop - start > room:
            groups.append([])
            room = PIECE
        groups[-1].append((start, stop))
        room -= stop - start
    return groups
