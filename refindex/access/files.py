"""Bytes of sources: ranges of local and remote files, and what identifies a file.

:class:`SourcePool` is what readers use: it opens sources when they are first read, checks that they
are still what was scanned, keeps a bounded number open, and turns every failure into a
:class:`~refindex.errors.SourceError` that names the URL and the range.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Literal, Protocol

import fsspec
from fsspec.asyn import AsyncFileSystem

from refindex.access import urls
from refindex.errors import NotFoundError, RefindexError, SourceError, StaleSourceError
from refindex.model.manifest import Source

type Stale = Literal["error", "warn", "ignore"]
type StorageOptions = Mapping[str, Any] | None

_MAX_OPEN = 128
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

    def identity(self) -> Source:
        status = os.fstat(self._fd)
        return Source(url=self.url, size=status.st_size, mtime=status.st_mtime_ns // 1000)


class RemoteFile:
    """Ranges of a file that fsspec reaches.

    Asynchronous filesystems run on fsspec's own event loop, whichever loop (or none) the caller is
    on: so one object serves zarr's loop, a user's loop and plain threads alike.
    """

    __slots__ = ("_fs", "_path", "url")

    def __init__(self, url: str, storage_options: StorageOptions) -> None:
        self.url = url
        self._fs, self._path = fsspec.core.url_to_fs(url, **(storage_options or {}))

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._fs.cat_file(self._path, start=offset, end=offset + length))

    async def read_async(self, offset: int, length: int) -> bytes:
        fs = self._fs
        if isinstance(fs, AsyncFileSystem) and fs.async_impl and not fs.asynchronous:
            request = fs._cat_file(self._path, start=offset, end=offset + length)
            future = asyncio.run_coroutine_threadsafe(request, fs.loop)
            return bytes(await asyncio.wrap_future(future))
        return await asyncio.to_thread(self.read, offset, length)

    def identity(self) -> Source:
        info = self._fs.info(self._path)
        etag = info.get("ETag") or info.get("etag")
        return Source(
            url=self.url,
            size=int(info["size"] or 0),
            mtime=modification_time(info),
            etag=str(etag) if etag else None,
        )


def modification_time(info: Mapping[str, Any]) -> int | None:
    """Modification time, microseconds since 1970 UTC, from what a filesystem's ``info`` calls it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "modified", "Last-Modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1e6)
        if isinstance(value, int | float):
            return round(value * 1e6)
        if isinstance(value, str):
            for parse in (datetime.fromisoformat, parsedate_to_datetime):
                with contextlib.suppress(ValueError):
                    return round(parse(value).timestamp() * 1e6)
    return None


def open_reader(url: str, storage_options: StorageOptions = None) -> RangeReader:
    """Open one file for ranges.

    Raises
    ------
    NotFoundError
        If there is no such file.
    SourceError
        If it cannot be opened for another reason.
    """
    with reading(url, "opening"):
        if urls.is_local(url):
            if urls.local_path(url).is_dir():
                raise IsADirectoryError(f"{urls.display(url)} is a folder")
            return LocalFile(url)
        return RemoteFile(url, storage_options)


class reading(contextlib.AbstractContextManager[None]):  # noqa: N801 -- used as a statement
    """Turn whatever a filesystem raises while it reads ``url`` into an error that names it.

    With ``referenced``, a missing file is a :class:`SourceError` and no ``FileNotFoundError``: zarr takes that one for
    a missing chunk wherever a filesystem raises it, and would serve fill values.
    """

    def __init__(self, url: str, doing: str, *, referenced: bool = False) -> None:
        self._url, self._doing, self._referenced = url, doing, referenced

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        where = urls.display(self._url)
        if self._referenced and isinstance(error, FileNotFoundError):
            raise SourceError(
                f"{where}: no such file (while {self._doing}); the archive refers to it. Put it back where it was, "
                "or scan it again where it is now."
            ) from error
        if error is None or isinstance(error, RefindexError) or not isinstance(error, Exception):
            return
        if isinstance(error, FileNotFoundError):
            cause = error.__cause__
            if cause is not None and getattr(cause, "status", None) not in (404, 410):
                # fsspec's HTTP filesystem calls every failure of a request a missing file.
                raise SourceError(f"{where}: {cause} (while {self._doing})") from error
            raise NotFoundError(f"{where}: no such file (while {self._doing})") from error
        if isinstance(error, PermissionError):
            raise SourceError(f"{where}: permission denied (while {self._doing})") from error
        if isinstance(error, ImportError):
            raise SourceError(f"{where}: {error}; install the package that fsspec names") from error
        detail = str(error) or type(error).__name__
        raise SourceError(f"{where}: {detail} (while {self._doing})") from error


def describe_change(recorded: Source, found: Source) -> str | None:
    """How a file differs from its record, or None where nothing says that it does."""
    if found.size != recorded.size:
        return f"size was {recorded.size}, is {found.size}"
    if recorded.etag and found.etag:
        return None if recorded.etag == found.etag else f"etag was {recorded.etag}, is {found.etag}"
    if recorded.mtime is not None and found.mtime is not None and not _same_time(recorded.mtime, found.mtime):
        was, now = (datetime.fromtimestamp(t / 1e6, UTC).isoformat() for t in (recorded.mtime, found.mtime))
        return f"modified {was} when scanned, {now} now"
    return None


def _same_time(one: int, other: int) -> bool:
    """Whether two modification times may be of the same moment.

    HTTP and some filesystems have whole seconds only, rounded up or down.
    """
    if one % 1_000_000 and other % 1_000_000:
        return one == other
    return abs(one - other) <= 1_000_000


class SourcePool:
    """The sources of one archive, opened when first read and checked against their record.

    Parameters
    ----------
    sources:
        As the manifest numbers them.
    storage_options:
        Options for fsspec, for all remote sources.
    stale:
        What to do when a source is not what was scanned: raise, warn, or nothing.
    """

    def __init__(
        self, sources: Sequence[Source], *, storage_options: StorageOptions = None, stale: Stale = "error"
    ) -> None:
        self.sources = sources
        self._options = storage_options
        self._stale = stale
        self._open: OrderedDict[int, RangeReader] = OrderedDict()
        self._checked: set[int] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of all open files."""
        with self._lock:
            self._open.clear()

    def reader(self, source: int) -> RangeReader:
        """The reader of a source; opens and checks it the first time.

        Raises
        ------
        StaleSourceError
            If the file is no longer what was scanned and ``stale="error"``.
        """
        with self._lock:
            found = self._open.get(source)
            if found is not None:
                self._open.move_to_end(source)
                return found
        recorded = self.sources[source]
        with reading(recorded.url, "opening", referenced=True):
            opened = open_reader(recorded.url, self._options)
            self._check(source, recorded, opened)
        with self._lock:
            self._open[source] = opened
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)
        return opened

    def _check(self, number: int, recorded: Source, opened: RangeReader) -> None:
        if self._stale == "ignore" or (number in self._checked and not isinstance(opened, LocalFile)):
            return
        with reading(recorded.url, "checking that it is unchanged"):
            change = describe_change(recorded, opened.identity())
        if change is not None:
            message = (
                f"{urls.display(recorded.url)} has changed since it was scanned: {change}. Scan it again, "
                f'or open the archive with stale="ignore" if you know that the bytes are the same.'
            )
            if self._stale == "error":
                raise StaleSourceError(message)
            warnings.warn(message, stacklevel=2)
        self._checked.add(number)

    def read(self, source: int, offset: int, length: int) -> bytes:
        """Bytes ``[offset, offset + length)`` of a source.

        Raises
        ------
        SourceError
            If they cannot be read, or fewer come back.
        """
        reader = self.reader(source)
        with reading(self.sources[source].url, f"reading {length} bytes at {offset}", referenced=True):
            return self._complete(source, offset, length, reader.read(offset, length))

    async def read_async(self, source: int, offset: int, length: int) -> bytes:
        """:meth:`read` without blocking the event loop."""
        with self._lock:
            reader = self._open.get(source)
        if reader is None:
            reader = await asyncio.to_thread(partial(self.reader, source))
        with reading(self.sources[source].url, f"reading {length} bytes at {offset}", referenced=True):
            return self._complete(source, offset, length, await reader.read_async(offset, length))

    def _complete(self, source: int, offset: int, length: int, data: bytes) -> bytes:
        if len(data) != length:
            raise SourceError(
                f"{urls.display(self.sources[source].url)}: expected {length} bytes at {offset}, "
                f"got {len(data)}: the file is shorter than when it was scanned"
            )
        return data
