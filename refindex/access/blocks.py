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
from refindex.access.fetching import Fetcher
from refindex.access.files import StorageOptions
from refindex.access.gather import Block, Gatherer, LocalGatherer, Round, check_ranges, records_at
from refindex.access.segments import Segments, Span
from refindex.access.transport import Answer, RemoteStats
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

_ALIGNMENT = 4 << 10


class RemoteBlocks:
    """A remote file that is being read. Not for several threads at a time.

    Raises
    ------
    SourceError
        From every method that reads, if the file cannot be read or has changed since the first request. The first such
        failure is raised again by everything after it: libhdf5 swallows what its callbacks raise.
    """

    def __init__(
        self,
        url: str,
        storage_options: StorageOptions = None,
        *,
        stats: RemoteStats | None = None,
        version: str | None = None,
    ) -> None:
        self.url = url
        self._version = version
        self.stats = stats if stats is not None else RemoteStats()
        self._options = storage_options
        self._held = Segments()
        self._source: Source | None = None
        self._failed: RefindexError | None = None
        self._fetcher: Fetcher | None = None
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
        version: str | None = None,
    ) -> RemoteBlocks:
        """Make the first request, and fetch the rest of a file of at most ``whole`` bytes."""
        blocks = cls(url, storage_options, stats=stats, version=version)
        _run(blocks.begin(first, whole))
        return blocks

    async def begin(self, first: int = FIRST, whole: int = WHOLE) -> None:
        """What :meth:`open` does, on fsspec's event loop."""
        self.stats.add(files=1)
        make = partial(Fetcher, self.url, self._options, self.stats, self._version)
        # Filesystems that lie over others read when they are made, which would wait for the loop that this runs on.
        self._fetcher = await asyncio.to_thread(make) if "::" in self.url else make()
        answer, self._source = await self._fetcher.first(first)
        self._keep(answer)
        if not self.is_whole and self.size <= whole:
            for rest in await self._fetcher.get(self._held.first_stop, self.size):
                self._keep(rest)
            data = self._held.read(0, self.size)  # one piece, so that nothing is joined again
            self._held = Segments()
            self._held.add(0, data)

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
        begin = offset // _ALIGNMENT * _ALIGNMENT
        end = min(self.size, max(stop, begin + self._ahead))
        # Over small pieces that are already there, which would cut what lies in one stretch into many requests.
        run: list[Span] = []
        for gap in self._held.missing([(begin, end)]):
            if run and gap[0] - run[-1][1] <= AHEAD:
                run[-1] = (run[-1][0], gap[1])
            else:
                run.append(gap)
        wanted = [span for span in run if span[0] < stop and span[1] > offset]
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
        fetcher = self._open
        if not fetcher.tells_identity:
            with self._keeping_failures():
                _run(fetcher.check_identity())
        return self.source

    def check(self) -> None:
        """Raise what failed so far."""
        if self._failed is not None:
            raise self._failed

    def close(self) -> None:
        """Let go of what is in memory."""
        self._held = Segments()
        if self._fetcher is not None:
            self._fetcher.close()

    @property
    def _open(self) -> Fetcher:
        if self._fetcher is None:
            raise ValueError("the file is not open")
        return self._fetcher

    def _fetch(self, missing: Sequence[Span]) -> None:
        self.check()
        if not missing:
            return
        with self._keeping_failures():
            for answer in _run(self._open.get_all(missing)):
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
