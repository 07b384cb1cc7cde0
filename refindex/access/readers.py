"""Ranges of one file, local or remote."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from fsspec.asyn import AsyncFileSystem, sync

from refindex.access import urls
from refindex.access.http_ranges import HttpRanges
from refindex.access.identity import identify
from refindex.access.layered import kept_open, look
from refindex.access.options import StorageOptions, filesystem
from refindex.access.retry import retrying, retrying_async
from refindex.access.s3_ranges import S3Ranges
from refindex.access.transport import Transport
from refindex.model.manifest import Source

_MOST_BUFFERS = 1024
"""Buffers of one ``preadv`` (IOV_MAX of Linux)."""
_SMALL_READ = 1 << 18
"""Local reads up to this many bytes are cheaper than handing them to a thread."""


class RangeReader(Protocol):
    """The smallest thing that can serve references: ranges of one file."""

    def read(self, offset: int, length: int) -> bytes: ...

    async def read_async(self, offset: int, length: int) -> bytes: ...

    def identity(self) -> Source: ...


class LocalFile:
    """Ranges of a local file through ``pread``; safe to use from several threads.

    The descriptor is closed when the last user lets go of the object, so that dropping one from the
    pool never closes it under a read.
    """

    __slots__ = ("_fd", "url")

    def __init__(self, url: str) -> None:
        self._fd = -1
        self.url = url
        self._fd = os.open(urls.local_path(url), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))

    def __del__(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)

    def read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:  # one pread gives at most 2 GiB, and may be interrupted
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    async def read_async(self, offset: int, length: int) -> bytes:
        if length <= _SMALL_READ:
            return self.read(offset, length)
        return await asyncio.to_thread(self.read, offset, length)

    def read_into(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill buffers one after the other with the bytes from ``offset`` on; returns how many there were."""
        done = 0
        left = [buffer for buffer in buffers if buffer.nbytes]
        while left:
            got = os.preadv(self._fd, left[:_MOST_BUFFERS], offset + done)
            if not got:
                break
            done += got
            while left and got >= left[0].nbytes:
                got -= left.pop(0).nbytes
            if got:  # one preadv gives at most 2 GiB, and may be interrupted
                left[0] = left[0][got:]
        return done

    def read_each(self, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        """Many small ranges; one at the end of the file is short."""
        return list(map(os.pread, itertools.repeat(self._fd), lengths, offsets))

    def identity(self) -> Source:
        status = os.fstat(self._fd)
        return Source(url=self.url, size=status.st_size, mtime=status.st_mtime_ns // 1000)


class RemoteFile:
    """Ranges of a file that fsspec reaches.

    Asynchronous filesystems run on fsspec's own event loop, whichever loop (or none) the caller is
    on: so one object serves zarr's loop, a user's loop and plain threads alike.

    With a ``version`` it is that version of the file that is read, if the filesystem is s3fs: others do not know it.
    """

    __slots__ = ("_fs", "_kept", "_path", "_ranges", "_version", "url")

    def __init__(self, url: str, storage_options: StorageOptions, version: str | None = None) -> None:
        self.url = url
        self._version = version
        self._fs, self._path = filesystem(url, storage_options)
        self._kept = kept_open(self._fs, self._path)
        self._ranges = self._telling()

    def _telling(self) -> Transport | None:
        """How ranges are asked for where each answer says which version of the file it is of."""
        kind = type(self._fs).__module__
        if self.loop is None or self._kept is not None:
            return None
        if kind == "fsspec.implementations.http":
            return HttpRanges(self._fs, self._path, self.url)
        return S3Ranges(self._fs, self._path, self.url, self._version) if kind == "s3fs.core" else None

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop on which its requests run, None for a filesystem that has none."""
        fs = self._fs
        if isinstance(fs, AsyncFileSystem) and fs.async_impl and not fs.asynchronous:
            loop: asyncio.AbstractEventLoop = fs.loop
            return loop
        return None

    def read(self, offset: int, length: int) -> bytes:
        if self._kept is not None:
            return retrying(partial(self._kept.read, offset, offset + length))
        if self._ranges is not None:
            return bytes(sync(self.loop, self.fetch, offset, length))
        return retrying(lambda: bytes(self._fs.cat_file(self._path, start=offset, end=offset + length)))

    async def read_async(self, offset: int, length: int) -> bytes:
        loop = self.loop
        if loop is None:
            return await asyncio.to_thread(self.read, offset, length)
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self.fetch(offset, length), loop))

    async def fetch(self, offset: int, length: int) -> bytes:
        """The bytes of a range; runs on :attr:`loop`."""
        return await retrying_async(lambda: self._fetch(offset, length))

    async def _fetch(self, offset: int, length: int) -> bytes:
        if self._ranges is not None:
            return (await self._fetch_told(self._ranges, offset, length))[0]
        return bytes(await self._fs._cat_file(self._path, start=offset, end=offset + length))

    async def fetch_first(self, offset: int, length: int) -> tuple[bytes, Source]:
        """The bytes of a range and the identity of the file, in one round trip; runs on :attr:`loop`."""
        ranges = self._ranges
        if ranges is not None:
            return await retrying_async(lambda: self._fetch_told(ranges, offset, length))
        data, info = await asyncio.gather(
            self.fetch(offset, length), retrying_async(lambda: self._fs._info(self._path))
        )
        return data, self._source(info)

    async def _fetch_told(self, ranges: Transport, offset: int, length: int) -> tuple[bytes, Source]:
        """One request: what HTTP and S3 say of a part, they also say of the whole."""
        answer = await ranges.get(offset, offset + max(length, 1))
        begin = offset - answer.start  # a server that knows no ranges sends the whole file
        return answer.data[begin : begin + length], answer.source or await ranges.info()

    def identity(self) -> Source:
        if self._version is not None and isinstance(self._ranges, S3Ranges):
            pinned: Source = sync(self.loop, retrying_async, self._ranges.info)
            return pinned
        return self._source(retrying(lambda: look(self._fs, self._path)))

    def _source(self, info: Mapping[str, Any]) -> Source:
        return identify(self.url, info)
