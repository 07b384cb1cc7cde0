"""Bytes of sources: ranges of local and remote files, and what identifies a file.

:class:`SourcePool` is what readers use: it opens sources when they are first read, checks that they
are still what was scanned, keeps a bounded number open, and turns every failure into a
:class:`~refindex.errors.SourceError` that names the URL and the range.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import shlex
import threading
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal

from refindex.access import urls
from refindex.access.failures import explain
from refindex.access.identity import modification_time
from refindex.access.options import StorageOptions
from refindex.access.readers import LocalFile, RangeReader, RemoteFile
from refindex.access.trust import Allowed
from refindex.errors import NotAllowedError, NotFoundError, RefindexError, SourceError, StaleSourceError
from refindex.model.manifest import Source

__all__ = [
    "LocalFile",
    "RangeReader",
    "RemoteFile",
    "SourcePool",
    "Stale",
    "StorageOptions",
    "describe_change",
    "modification_time",
    "open_reader",
    "reading",
]

type Stale = Literal["error", "warn", "ignore"]

_MAX_OPEN = 128


def open_reader(url: str, storage_options: StorageOptions = None, version: str | None = None) -> RangeReader:
    """Open one file for ranges, at a version of it if the storage can tell them apart.

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
        return RemoteFile(url, storage_options, version)


class reading(contextlib.AbstractContextManager[None]):  # noqa: N801 -- used as a statement
    """Turn whatever a filesystem raises while it reads ``url`` into an error that names it.

    With ``referenced``, a missing file is a :class:`SourceError` and no ``FileNotFoundError``: zarr takes that one for
    a missing chunk wherever a filesystem raises it, and would serve fill values.
    """

    def __init__(self, url: str, doing: str, *, referenced: bool = False) -> None:
        self._url, self._doing, self._referenced = url, doing, referenced

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:  # which takes no time: small ranges are read by the thousand
            return
        where = urls.display(self._url)
        if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, NotAllowedError):
            raise error.__cause__
        if self._referenced and isinstance(error, FileNotFoundError):
            raise SourceError(
                f"{where}: no such file (while {self._doing}); the archive refers to it. Put it back where it was, "
                "or, if files have moved, say where to with relocate (refindex relocate)."
            ) from error
        if isinstance(error, RefindexError) or not isinstance(error, Exception):
            return
        if isinstance(error, FileNotFoundError):
            cause = error.__cause__
            if cause is not None and getattr(cause, "status", None) not in (404, 410):
                # fsspec's HTTP filesystem calls every failure of a request a missing file.
                raise SourceError(self._said(where, cause)) from error
            raise NotFoundError(f"{where}: no such file (while {self._doing})") from error
        if isinstance(error, PermissionError) and urls.is_local(self._url):
            raise SourceError(f"{where}: permission denied (while {self._doing})") from error
        if isinstance(error, ImportError):
            raise SourceError(f"{where}: {error}; install the package that fsspec names") from error
        raise SourceError(self._said(where, error)) from error

    def _said(self, where: str, error: BaseException) -> str:
        what, advice = explain(error)
        return f"{where}: {what} (while {self._doing}){f'; {advice}' if advice else ''}"


def describe_change(recorded: Source, found: Source) -> str | None:
    """How a file differs from its record, or None where nothing says that it does."""
    if found.size != recorded.size:
        return f"size was {recorded.size}, is {found.size}"
    if recorded.etag and found.etag and recorded.etag != found.etag:
        return f"etag was {recorded.etag}, is {found.etag}"
    if recorded.version and found.version and recorded.url == found.url and recorded.version != found.version:
        return f"version was {recorded.version}, is {found.version}"
    if recorded.etag and found.etag:
        return None
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

    Safe to use from several threads and event loops; a process that is forked opens the files anew. Of a source with
    a version it is that version that is read and checked, however the file has been written over since.

    Parameters
    ----------
    sources:
        As the manifest numbers them.
    storage_options:
        Options for fsspec, see :mod:`refindex.access.options`.
    stale:
        What to do when a source is not what was scanned: raise, warn, or nothing.
    allowed:
        Where sources may be: each is held to it when it is opened, with what it may be a symbolic link to. Anywhere if
        None.
    archive:
        What people call the archive, for messages; empty for a manifest in memory.

    Attributes
    ----------
    requests, nbytes:
        How many ranges were read so far, and how many bytes.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        storage_options: StorageOptions = None,
        stale: Stale = "error",
        allowed: Allowed | None = None,
        archive: str = "",
    ) -> None:
        self.sources = sources
        self.requests = 0
        self.nbytes = 0
        self._options = storage_options
        self._stale = stale
        self._allowed = allowed
        self._archive = archive
        self._local: dict[int, bool] = {}
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._open: OrderedDict[int, RangeReader] = OrderedDict()
        self._checked: set[int] = set()

    def close(self) -> None:
        """Let go of all open files."""
        with self._lock:
            self._open.clear()

    def _found(self, source: int) -> RangeReader | None:
        if self._process != os.getpid():
            # The lock may have been held, and connections belong to the process that made them.
            self._forget()
        with self._lock:
            found = self._open.get(source)
            if found is not None:
                self._open.move_to_end(source)
            return found

    def _ready(self, source: int) -> RangeReader | None:
        """An open reader that is checked: one that only :meth:`remote` has opened is not."""
        found = self._found(source)
        if isinstance(found, LocalFile) or found is None or not self._must_check(source, found):
            return found
        return None

    def _keep(self, source: int, opened: RangeReader) -> None:
        with self._lock:
            self._open[source] = opened
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)

    def is_local(self, source: int) -> bool:
        """Whether a source is a file of this machine."""
        found = self._local.get(source)
        if found is None:
            found = self._local[source] = urls.is_local(self.sources[source].url)
        return found

    def reader(self, source: int) -> RangeReader:
        """The reader of a source; opens and checks it the first time.

        Raises
        ------
        StaleSourceError
            If the file is no longer what was scanned and ``stale="error"``.
        """
        found = self._ready(source)
        if found is not None:
            return found
        recorded = self.sources[source]
        with reading(recorded.url, "opening", referenced=True):
            self._check_place(recorded.url)
            opened = open_reader(recorded.url, self._options, recorded.version)
            if self._must_check(source, opened):
                with reading(recorded.url, "checking that it is unchanged"):
                    identity = opened.identity()
                self._check(source, identity)
        self._keep(source, opened)
        return opened

    def _check_place(self, url: str) -> None:
        """Raise for what may not be read. Where symbolic links lead is known only now."""
        if self._allowed is not None:
            self._allowed.check([url], "the archive", links=True)

    def _must_check(self, number: int, opened: RangeReader) -> bool:
        return self._stale != "ignore" and (number not in self._checked or isinstance(opened, LocalFile))

    def _check(self, number: int, found: Source) -> None:
        recorded = self.sources[number]
        change = describe_change(recorded, found)
        if change is not None:
            where = urls.display(recorded.url)
            message = (
                f"{where} has changed since it was scanned: {change}. {self._renewing(where)} If you know that the "
                'bytes are the same, open the archive with stale="ignore".'
            )
            if self._stale == "error":
                raise StaleSourceError(message)
            warnings.warn(message, stacklevel=2)
        self._checked.add(number)

    def _renewing(self, file: str) -> str:
        """What takes a file that has changed as it is now."""
        if not self._archive:
            return "Scan it again."
        if len(self.sources) == 1:
            again = shlex.join(["refindex", "scan", file, "--out", self._archive, "--overwrite"])
            return f"{again} takes it as it is now."
        again = shlex.join(["refindex", "append", "--replace", self._archive, file])
        return f"{again} takes it as it is now; refindex verify --sources-only names all files that have changed."

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
        reader = self._ready(source)
        if reader is None:
            reader = await asyncio.to_thread(partial(self.reader, source))
        with reading(self.sources[source].url, f"reading {length} bytes at {offset}", referenced=True):
            return self._complete(source, offset, length, await reader.read_async(offset, length))

    def read_into(self, source: int, offset: int, buffers: Sequence[memoryview]) -> None:
        """Fill buffers one after the other with the bytes of a local source from ``offset`` on, in one request.

        Raises
        ------
        SourceError
            If there are fewer bytes.
        """
        reader, length = self.reader(source), sum(buffer.nbytes for buffer in buffers)
        with reading(self.sources[source].url, f"reading {length} bytes at {offset}", referenced=True):
            if not isinstance(reader, LocalFile):
                raise SourceError(f"{urls.display(self.sources[source].url)}: not a local file")
            got = reader.read_into(offset, buffers)
            if len(buffers) == 1:
                self._complete(source, offset, length, buffers[0][:got])
            else:
                self._complete(source, offset, length, bytes(0), got)

    def read_each(self, sources: Sequence[int], offsets: Sequence[int], lengths: Sequence[int]) -> bytes:
        """Ranges of local sources, one after the other; those of a source are given together.

        Raises
        ------
        SourceError
            If any of them cannot be read, or has fewer bytes.
        """
        if sources[0] == sources[-1]:
            return self._read_each(sources[0], offsets, lengths)
        parts, at = [], 0
        for source, members in itertools.groupby(sources):
            some = slice(at, at := at + sum(1 for _ in members))
            parts.append(self._read_each(source, offsets[some], lengths[some]))
        return b"".join(parts)

    def _read_each(self, source: int, offsets: Sequence[int], lengths: Sequence[int]) -> bytes:
        reader = self.reader(source)
        with reading(self.sources[source].url, f"reading {len(offsets)} ranges", referenced=True):
            if not isinstance(reader, LocalFile):
                raise SourceError(f"{urls.display(self.sources[source].url)}: not a local file")
            found = reader.read_each(offsets, lengths)
            joined = b"".join(found)
            if len(joined) != sum(lengths):
                for offset, length, data in zip(offsets, lengths, found, strict=True):
                    self._complete(source, offset, length, data)
        with self._lock:
            self.requests += len(offsets)
            self.nbytes += len(joined)
        return joined

    def remote(self, source: int) -> RemoteFile:
        """The reader of a remote source; the first :meth:`fetch` checks it.

        Raises
        ------
        SourceError
            If it cannot be opened.
        """
        found = self._found(source)
        if found is None:
            recorded = self.sources[source]
            with reading(recorded.url, "opening", referenced=True):
                self._check_place(recorded.url)
                found = open_reader(recorded.url, self._options, recorded.version)
            if isinstance(found, RemoteFile) and found.loop is not None:
                self._keep(source, found)
            else:
                found = self.reader(source)
        if not isinstance(found, RemoteFile):
            raise SourceError(f"{urls.display(self.sources[source].url)}: not a remote file")
        return found

    async def fetch(self, reader: RemoteFile, source: int, offset: int, length: int) -> bytes:
        """A range of a source on the event loop of its filesystem; the first of a source checks it at the same time.

        Raises
        ------
        SourceError
            As :meth:`read`.
        """
        url = self.sources[source].url
        with reading(url, f"reading {length} bytes at {offset}", referenced=True):
            if not self._must_check(source, reader):
                return self._complete(source, offset, length, await reader.fetch(offset, length))
            data, identity = await reader.fetch_first(offset, length)
            self._check(source, identity)
            return self._complete(source, offset, length, data)

    def _complete[T: bytes | memoryview](
        self, source: int, offset: int, length: int, data: T, found: int | None = None
    ) -> T:
        """Count a request, of which ``data`` (or ``found`` bytes in other places) came back, if that is all of it."""
        found = len(data) if found is None else found
        if found != length:
            raise SourceError(
                f"{urls.display(self.sources[source].url)}: expected {length} bytes at {offset}, "
                f"got {found}: the file is shorter than when it was scanned"
            )
        with self._lock:
            self.requests += 1
            self.nbytes += length
        return data
