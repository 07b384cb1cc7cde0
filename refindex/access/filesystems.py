"""Ranges of files that fsspec's filesystems reach, other than by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from fsspec.asyn import AsyncFileSystem

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.gather import COALESCE_GAP
from refindex.access.http_ranges import HttpRanges
from refindex.access.identity import identify
from refindex.access.layered import kept_open, lies_over, look
from refindex.access.multipart import MultipartError
from refindex.access.options import filesystem
from refindex.access.s3_ranges import S3Ranges
from refindex.access.transport import Answer, ShortAnswerError, Transport
from refindex.errors import NotFoundError
from refindex.model.manifest import Source


def open_transport(url: str, storage_options: StorageOptions = None, version: str | None = None) -> Transport:
    """What reads the file behind a URL that fsspec knows; of s3fs, a version of it."""
    fs, path = filesystem(url, storage_options)
    asynchronous = isinstance(fs, AsyncFileSystem) and fs.async_impl and not fs.asynchronous
    kind = type(fs).__module__
    if asynchronous and kind == "fsspec.implementations.http":
        return HttpRanges(fs, path, url)
    if asynchronous and kind == "s3fs.core":
        return S3Ranges(fs, path, url, version)
    if asynchronous and _is_object_store(fs):
        return _ObjectStore(fs, path, url)
    return _Async(fs, path, url) if asynchronous else _Blocking(fs, path, url, storage_options)


def _is_object_store(fs: Any) -> bool:
    """Whether a filesystem is one of obstore's, which has subclasses made for each protocol."""
    return any(kind.__module__ == "obstore.fsspec" for kind in type(fs).__mro__)


def create_exclusively(fs: Any, path: str, data: bytes) -> None:
    """Create a file that must not exist, in one request that the storage itself refuses if it does.

    Raises
    ------
    FileExistsError
        If it exists; some filesystems raise other errors.
    """
    if _is_object_store(fs):
        # Its filesystems take the mode, and write over what is there.
        bucket, name = fs._split_path(path)
        fs._construct_store(bucket).put(name, data, mode="create")
    else:
        fs.pipe_file(path, data, mode="create")


class _ObjectStore(Transport):
    """obstore's GetObject, of any storage: unlike its filesystem's methods, it says what version the bytes are of."""

    tells_identity = True
    many: bool | None = False
    gap = COALESCE_GAP

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url

    async def get(self, start: int, stop: int, /) -> Answer:
        bucket, name = self._fs._split_path(self._path)
        with _missing(self._url):
            try:
                answer = await self._fs._construct_store(bucket).get_async(name, options={"range": (start, stop)})
                data = bytes(await answer.bytes_async())
            except (FileNotFoundError, PermissionError):
                raise
            except Exception:
                # Behind the end there is no range at all, and the refusal has no class of its own.
                source = await self.info()
                if source.size > start:
                    raise
                return Answer(start=start, data=b"", source=source)
        source = identify(self._url, answer.meta)
        first, last = answer.range
        if first != start or len(data) != min(stop, source.size) - start or last - first != len(data):
            raise ShortAnswerError(f"expected {min(stop, source.size) - start} bytes at {start}, got {len(data)}")
        return Answer(start=start, data=data, source=source)

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        raise MultipartError("one range a request")

    async def info(self) -> Source:
        return identify(self._url, await self._fs._info(self._path))


@contextlib.contextmanager
def _missing(url: str) -> Iterator[None]:
    """What a filesystem calls a missing file is one, unless it is fsspec's HTTP below: that calls every failure so."""
    try:
        yield
    except FileNotFoundError as error:
        status = getattr(error.__cause__, "status", None)
        if status is not None and status not in (404, 410):
            raise
        raise NotFoundError(f"{urls.display(url)}: no such file") from error


class _Async(Transport):
    """Any other asynchronous filesystem of fsspec."""

    tells_identity = False
    many: bool | None = False
    gap = COALESCE_GAP

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url

    async def get(self, start: int, stop: int, /) -> Answer:
        with _missing(self._url):
            return Answer(start=start, data=bytes(await self._fs._cat_file(self._path, start=start, end=stop)))

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        raise MultipartError("one range a request")

    async def info(self) -> Source:
        # Listings that were made before may be of another version.
        self._fs.invalidate_cache(self._fs._parent(self._path))
        return identify(self._url, await self._fs._info(self._path))


class _Blocking(Transport):
    """Any filesystem that has no event loop: one request at a time, in a thread, through one open file."""

    tells_identity = False
    many: bool | None = False
    gap = COALESCE_GAP
    one_at_a_time = True

    def __init__(self, fs: Any, path: str, url: str, storage_options: StorageOptions) -> None:
        self._fs, self._path, self._url, self._options = fs, path, url, storage_options
        self._kept = kept_open(fs, path)
        self._lock = asyncio.Lock()
        self._looked = False

    async def get(self, start: int, stop: int, /) -> Answer:
        with _missing(self._url):
            async with self._lock:
                return Answer(start=start, data=await asyncio.to_thread(self._get, start, stop))

    def _get(self, start: int, stop: int) -> bytes:
        if self._kept is not None:
            return self._kept.read(start, stop)
        return bytes(self._fs.cat_file(self._path, start=start, end=stop))

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        raise MultipartError("one range a request")

    async def info(self) -> Source:
        return identify(self._url, await asyncio.to_thread(self._look))

    def _look(self) -> Any:
        if not lies_over(self._fs) or not self._looked:
            self._looked = True
            return look(self._fs, self._path)
        # An open archive knows of its members what it was when it was opened.
        return look(*filesystem(self._url, self._options))
