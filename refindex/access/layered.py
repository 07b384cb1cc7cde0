"""Filesystems of fsspec that lie over others: archives (zip, tar) and caches (simplecache, filecache, blockcache).

A member of an archive is read through one open file, by one thread at a time: a compressed one that is opened for every
range is inflated from its start every time; what is open of one tar, or uncompressed of one zip, shares its place in
the archive (of a zip, in some versions of Python), so that threads would get the bytes of each other.

Copies in a cache may be older than the file that they are of: its references would lead to other bytes.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsspec.archive import AbstractArchiveFileSystem
from fsspec.implementations.cached import CachingFileSystem

from refindex.access.identity import modification_time
from refindex.errors import SourceError

_COARSE = 0.02
"""Seconds by which the time of a new file may be too early: systems look at the clock at every tick only."""


class KeptOpen:
    """Ranges of a file that stays open until the object goes. Safe to use from several threads, one after the other."""

    def __init__(self, fs: Any, path: str) -> None:
        self._fs, self._path = fs, path
        self._lock = threading.Lock()
        self._file: Any = None

    def read(self, start: int, stop: int) -> bytes:
        """Bytes ``[start, stop)``, fewer where the file ends."""
        with self._lock:
            if self._file is None:
                self._file = self._fs.open(self._path, "rb")
            try:
                self._file.seek(start)
                return bytes(self._file.read(stop - start))
            except BaseException:
                # Nobody knows how far it came: the next one begins anew.
                self._close()
                raise

    def close(self) -> None:
        with self._lock:
            self._close()

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError, ValueError):
                file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._close()


def lies_over(fs: Any) -> bool:
    """Whether a filesystem is an archive or a cache."""
    return isinstance(fs, AbstractArchiveFileSystem | CachingFileSystem)


def kept_open(fs: Any, path: str) -> KeptOpen | None:
    """How a file of an archive or a cache is read; None for other filesystems."""
    return KeptOpen(fs, path) if lies_over(fs) else None


def look(fs: Any, path: str) -> Mapping[str, Any]:
    """What a filesystem says of a file; of one that is cached, what the storage behind the cache says.

    Raises
    ------
    SourceError
        If a copy in a cache is older than the file, here or below.
    """
    under, name = fs, path
    found: Mapping[str, Any] | None = None
    while isinstance(under, AbstractArchiveFileSystem | CachingFileSystem):
        if isinstance(under, AbstractArchiveFileSystem):
            found = found or under.info(name)
            container = getattr(under, "of", None)
            under, name = getattr(container, "fs", None), getattr(container, "path", "")
            continue
        info = under.fs.info(name)
        copied, changed = _copied(under, name), modification_time(info)
        if copied is not None and changed is not None and changed > (copied + _COARSE) * 1e6:
            when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(copied))
            raise SourceError(f"the copy of {name} in the cache, of {when}, is older than the file: clear the cache")
        found = found or info
        under = under.fs
    return fs.info(path) if found is None else found


def _copied(cache: CachingFileSystem, path: str) -> float | None:
    """When a cache copied a file, seconds since 1970; None if it has not."""
    found = cache._check_file(path)
    if not found:
        return None
    if isinstance(found, tuple):
        return float(found[0]["time"])
    return Path(found).stat().st_mtime
