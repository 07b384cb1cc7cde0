"""One remote file as a scan reads it: few requests, what came back is kept, and all of it of one version.

The first request brings the beginning of the file together with its size and version. A small file is then fetched as
a whole; of a larger one libhdf5 (through :meth:`RemoteBlocks.file`) and our own readers (through
:meth:`RemoteBlocks.gather`) share what has been fetched.
"""

from __future__ import annotations

import asyncio
import io
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import numpy as np
from fsspec.asyn import get_loop

from refindex.access import urls
from refindex.access.files import StorageOptions, describe_change, reading
from refindex.access.gather import (
    COALESCE_GAP,
    COALESCE_LIMIT,
    Block,
    Gatherer,
    LocalGatherer,
    Round,
    check_ranges,
    records_at,
)
from refindex.access.multipart import PARTS, MultipartError
from refindex.access.ranges import Merging, merge
from refindex.access.retry import retrying_async
from refindex.access.segments import Segments, Span
from refindex.access.transport import Answer, RemoteStats, open_transport
from refindex.errors import RefindexError, SourceError
from refindex.model.manifest import Source

FIRST = 1 << 20
"""Bytes of the first request. netCDF and h5py write the descriptions of all variables first: mostly they are in it."""

WHOLE = 8 << 20
"""Files up to this many bytes are fetched whole: two round trips, where their metadata would take ten and more."""

AHEAD, MOST_AHEAD = 64 << 10, 2 << 20
"""What libhdf5 asks for is a few hundred bytes: so many more are fetched, twice as many each time that it goes on where
the last fetch ended."""

KEPT = 64 << 20
"""Bytes that are kept of one file."""

IN_FLIGHT = 64
"""Requests of one file at a time."""

PIECE = 4 << 20
"""Longer ranges are fetched in several requests: one connection is slower than several."""

PATIENCE = 60.0
"""Seconds that a request may take before it is sent again, and one more for every 100 kB that it asks for."""

_SINGLY = Merging(gap=COALESCE_GAP, limit=COALESCE_LIMIT)
_TOGETHER = Merging(gap=4 << 10, limit=1 << 20)
_FEW = 4
"""From more requests than this on, it is worth asking for several ranges in one."""

_PER_SECOND = 100_000


class RemoteBlocks:
    """A remote file that is being read. Not for several threads at a time.

    Raises
    ------
    SourceError
        From every method that reads, if the file cannot be read or has changed since the first request. The first such
        failure is raised again by everything after it: libhdf5 swallows what its callbacks raise.
    """

    def __init__(self, url: str, storage_options: StorageOptions = None, *, stats: RemoteStats | None = None) -> None:
        self.url = url
        self.stats = stats if stats is not None else RemoteStats()
        self._options = storage_options
        self._held = Segments()
        self._source: Source | None = None
        self._failed: RefindexError | None = None
        self._fetched = 0
        self._next, self._ahead = -1, AHEAD

    @classmethod
    def open(
        cls,
        url: str,
        storage_options: StorageOptions = None,
        *,
        stats: RemoteStats | None = None,
        first: int = FIRST,
        whole: int = WHOLE,
    ) -> RemoteBlocks:
        """Make the first request, and fetch the rest of a file of at most ``whole`` bytes."""
        blocks = cls(url, storage_options, stats=stats)
        _run(blocks.begin(first, whole))
        return blocks

    async def begin(self, first: int = FIRST, whole: int = WHOLE) -> None:
        """What :meth:`open` does, on fsspec's event loop."""
        with reading(self.url, "opening"):
            self._transport = open_transport(self.url, self._options)
        self._slots = asyncio.Semaphore(IN_FLIGHT)
        self.stats.add(files=1)
        if self._transport.tells_identity:
            answer = await self._get(0, first)
        else:
            answer, self._source = await asyncio.gather(self._get(0, first), self._info())
        if self._source is None:
            raise SourceError(f"{urls.display(self.url)}: nothing tells its size")
        self._keep(answer)
        if not self.is_whole and self.size <= whole:
            rest = await self._get(self._held.first_stop, self.size)
            self._keep(rest)
            whole_file = self._held.read(0, self.size)  # one piece, so that nothing is joined again
            self._held = Segments()
            self._held.add(0, whole_file)

    @property
    def source(self) -> Source:
        """The file's identity, as the first answer tells it."""
        if self._source is None:
            raise ValueError("the file is not open")
        return self._source

    @property
    def name(self) -> str:
        return urls.display(self.url)

    @property
    def size(self) -> int:
        return self.source.size

    @property
    def is_whole(self) -> bool:
        """Whether all of the file is in memory."""
        return self._held.nbytes == self.size

    @property
    def held(self) -> int:
        """Bytes that are in memory."""
        return self._held.nbytes

    def identity(self) -> Source:
        return self.source

    def read(self, offset: int, length: int) -> bytes:
        """Bytes ``[offset, offset + length)``, fewer where the file ends; reads ahead."""
        stop = min(self.size, offset + length)
        if stop <= offset:
            return b""
        if not self._held.missing([(offset, stop)]):
            return self._held.read(offset, stop)
        self._fetch_ahead(offset, stop)
        data = self._held.read(offset, stop)
        self._held.shrink(KEPT)
        return data

    async def read_async(self, offset: int, length: int) -> bytes:
        return await asyncio.to_thread(self.read, offset, length)

    def _fetch_ahead(self, offset: int, stop: int) -> None:
        """What is missing of a range, and some of what follows it."""
        goes_on = 0 <= offset - self._next < AHEAD or self._next - AHEAD <= offset < self._next
        self._ahead = min(2 * self._ahead, MOST_AHEAD) if goes_on else AHEAD
        begin = offset // _TOGETHER.gap * _TOGETHER.gap
        end = min(self.size, max(stop, begin + self._ahead))
        gaps = self._held.missing([(begin, end)])
        # Beyond what is wanted, up to the next bytes that are already there.
        wanted = [gap for gap in gaps if gap[0] < stop and gap[1] > offset]
        self._next = wanted[-1][1]
        self._fetch(wanted)

    def gather(self, asked: Round, /) -> Sequence[Block]:
        """All ranges of a round at the same time, see :mod:`refindex.access.gather`."""
        check_ranges(asked, self.name, self.size)
        wanted: list[Span] = []
        for ranges in asked:
            if ranges.length:
                wanted.extend((offset, offset + ranges.length) for offset in ranges.offsets.tolist())
        self._fetch(self._held.missing(wanted))
        blocks: list[Block] = []
        for ranges in asked:
            n, length = len(ranges.offsets), ranges.length
            if n == 1:
                only = int(ranges.offsets[0])
                data = self._held.read(only, only + length)
                blocks.append(records_at(data, np.zeros(1, dtype=np.int64), length))
                continue
            block = np.empty((n, length), dtype=np.uint8)
            for row, offset in enumerate(ranges.offsets.tolist() if length else ()):
                block[row] = np.frombuffer(self._held.read(offset, offset + length), dtype=np.uint8)
            blocks.append(block)
        self._held.shrink(KEPT)
        return blocks

    def gatherer(self) -> Gatherer:
        """What reads ranges of the file for walks."""
        return LocalGatherer(self._held.view(), name=self.name) if self.is_whole and self.size else self

    def file(self) -> RemoteBytes:
        """The file as Python's files are, for libhdf5."""
        return RemoteBytes(self)

    def finish(self) -> Source:
        """The file's identity after the scan; raises what failed meanwhile, also where libhdf5 went on without it.

        Raises
        ------
        SourceError
            If something failed, or the file is no longer what it was.
        """
        self.check()
        if not self._transport.tells_identity:
            with self._keeping_failures():
                self._compare(_run(self._info()))
        return self.source

    def check(self) -> None:
        """Raise what failed so far."""
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Let go of what is in memory."""
        self._held = Segments()
        close = getattr(getattr(self, "_transport", None), "close", None)
        if close is not None:
            close()

    def _fetch(self, missing: Sequence[Span]) -> None:
        self.check()
        if not missing:
            return
        with self._keeping_failures():
            for answer in _run(self._get_all(missing)):
                self._keep(answer)
            left = self._held.missing(missing)
            if left:
                raise SourceError(
                    f"{self.name}: asked for {len(missing)} ranges, bytes {left[0][0]} to {left[0][1] - 1} did not come"
                )

    def _keeping_failures(self) -> _KeepingFailures:
        return _KeepingFailures(self)

    def fail(self, error: RefindexError) -> None:
        """Keep the first failure for all that follows."""
        if self._failed is None:
            self._failed = error

    def _keep(self, answer: Answer) -> None:
        self._held.add(answer.start, answer.data)

    # On the event loop.

    async def _get_all(self, missing: Sequence[Span]) -> list[Answer]:
        pieces = [(at, min(at + PIECE, stop)) for start, stop in missing for at in range(start, stop, PIECE)]
        singly = _merged(pieces, _SINGLY)
        if self._transport.many is False or len(singly) <= _FEW:
            return list(await asyncio.gather(*(self._get(*span) for span in singly)))
        together = _merged(pieces, _TOGETHER)
        groups = _grouped(together)
        answers: list[Answer] = []
        if self._transport.many is None:  # found out with one request, not with all
            answers += await self._get_group(groups.pop(0))
        found = await asyncio.gather(*(self._get_group(group) for group in groups))
        return answers + [answer for group in found for answer in group]

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
        left = _merged(came.missing(group), _SINGLY)
        return answers + list(await asyncio.gather(*(self._get(*span) for span in left)))

    async def _try_many(self, group: Sequence[Span]) -> list[Answer]:
        try:
            answers = await self._transport.get_many(group)
        except MultipartError:
            self._transport.many = False
            return []
        self._transport.many = True
        return answers

    async def _get(self, start: int, stop: int) -> Answer:
        doing = f"reading bytes {start} to {stop - 1}"

        async def get() -> list[Answer]:
            return [await self._transport.get(start, stop)]

        (answer,) = await self._attempt(get, doing, stop - start)
        if self._source is not None and answer.start <= start:
            expected = min(stop, self._source.size)
            found = answer.start + len(answer.data)
            if found < expected:
                raise SourceError(
                    f"{self.name}: expected {expected - start} bytes at {start}, got {found - start}: the file has "
                    "become shorter, or the server does not send what it says; scan it again"
                )
        return answer

    async def _attempt(self, request: Any, doing: str, nbytes: int) -> list[Answer]:
        """The one place where requests are sent: bounded, counted, retried, and held against the first answer."""
        tries = 0

        async def once() -> list[Answer]:
            nonlocal tries
            self.stats.add(requests=1, retries=int(tries > 0))
            tries += 1
            async with asyncio.timeout(PATIENCE + nbytes / _PER_SECOND):
                answers: list[Answer] = await request()
            self.stats.add(nbytes=sum(len(answer.data) for answer in answers))
            return answers

        with reading(self.url, doing):
            async with self._slots:
                answers = await retrying_async(once)
        for answer in answers:
            if answer.source is not None:
                self._compare(answer.source)
        return answers

    async def _info(self) -> Source:
        tries = 0

        async def once() -> Source:
            nonlocal tries
            self.stats.add(requests=1, retries=int(tries > 0))
            tries += 1
            async with asyncio.timeout(PATIENCE):
                return await self._transport.info()

        with reading(self.url, "asking for its size and time"):
            return await retrying_async(once)

    def _compare(self, found: Source) -> None:
        if self._source is None:
            self._source = found
            return
        change = describe_change(self._source, found)
        if change is not None:
            raise SourceError(f"{self.name} changed while it was scanned: {change}; scan it when it is complete")


class _KeepingFailures:
    def __init__(self, blocks: RemoteBlocks) -> None:
        self._blocks = blocks

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RefindexError):
            self._blocks.fail(error)


class RemoteBytes(io.RawIOBase):
    """A remote file for readers that seek and read, such as libhdf5."""

    def __init__(self, blocks: RemoteBlocks) -> None:
        super().__init__()
        self._blocks, self._position = blocks, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._blocks.size)[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self._blocks.read(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def _merged(spans: Sequence[Span], merging: Merging) -> list[Span]:
    if not spans:
        return []
    bounds = np.array(spans, dtype=np.int64)
    requests = merge(np.zeros(len(bounds), dtype=np.int64), bounds[:, 0], bounds[:, 1] - bounds[:, 0], merging)
    return list(zip(requests.start.tolist(), requests.stop.tolist(), strict=True))


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


def submit[T](work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run on fsspec's event loop, where the connections are."""
    return asyncio.run_coroutine_threadsafe(work, get_loop())


def _run[T](work: Coroutine[Any, Any, T]) -> T:
    future = submit(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
