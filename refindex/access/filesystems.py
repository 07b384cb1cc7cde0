"""Ranges of files that fsspec's filesystems reach, other than by HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.asyn import AsyncFileSystem

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.gather import COALESCE_GAP
from refindex.access.http_ranges import HttpRanges
from refindex.access.multipart import MultipartError
from refindex.access.transport import Answer, ShortAnswerError, Transport, identify
from refindex.errors import NotFoundError, SourceError
from refindex.model.manifest import Source


def open_transport(url: str, storage_options: StorageOptions = None) -> Transport:
    """What reads the file behind a URL that fsspec knows."""
    fs, path = fsspec.core.url_to_fs(url, **dict(storage_options or {}))
    asynchronous = isinstance(fs, AsyncFileSystem) and fs.async_impl and not fs.asynchronous
    kind = type(fs).__module__
    if asynchronous and kind == "fsspec.implementations.http":
        return HttpRanges(fs, path, url)
    if asynchronous and kind == "s3fs.core":
        return _S3(fs, path, url)
    return _Async(fs, path, url) if asynchronous else _Blocking(fs, path, url)


class _S3(Transport):
    """S3's GetObject through s3fs: unlike the filesystem's own methods, it says what version the bytes are of."""

    tells_identity = True
    many: bool | None = False
    # A request takes botocore milliseconds, and s3fs has 10 connections.
    gap = 2 * COALESCE_GAP

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url

    async def get(self, start: int, stop: int, /) -> Answer:
        bucket, key, version = self._fs.split_path(self._path)
        if not key:
            raise FileNotFoundError(self._path)
        version = {"VersionId": version} if version else {}
        try:
            answer = await self._fs._call_s3(
                "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **version
            )
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._url}: no such file ({error})") from error
        except PermissionError:
            raise
        except Exception as error:
            self._explain(error)
            # An empty object has no range at all; s3fs gives the refusal no class of its own.
            if "InvalidRange" not in str(error) and getattr(error, "errno", None) != 22:
                raise
            source = await self.info()
            if source.size > start:
                raise
            return Answer(start=start, data=b"", source=source)
        body = answer["Body"]
        try:
            data = await body.read()
        finally:
            body.close()
        total = str(answer.get("ContentRange", "")).rpartition("/")[2]
        if not total.isdigit():  # a server that knows no ranges
            return Answer(start=0, data=data, source=identify(self._url, {**answer, "size": len(data)}))
        if len(data) != min(stop, int(total)) - start:
            raise ShortAnswerError(f"expected {min(stop, int(total)) - start} bytes at {start}, got {len(data)}")
        return Answer(start=start, data=data, source=identify(self._url, {**answer, "size": int(total)}))

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        raise MultipartError("S3 has no requests for several ranges")

    async def info(self) -> Source:
        self._fs.invalidate_cache(self._path)
        return identify(self._url, await self._fs._info(self._path))

    def _explain(self, error: Exception) -> None:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise SourceError(
                f"{self._url}: {error}; set them in the environment or pass storage_options "
                '({"anon": True} for public buckets)'
            ) from error


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

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url
        self._lock = threading.Lock()
        self._member: Any = None

    async def get(self, start: int, stop: int, /) -> Answer:
        with _missing(self._url):
            return Answer(start=start, data=await asyncio.to_thread(self._get, start, stop))

    def _get(self, start: int, stop: int) -> bytes:
        with self._lock:
            if not isinstance(self._fs, AbstractArchiveFileSystem):
                return bytes(self._fs.cat_file(self._path, start=start, end=stop))
            # A compressed member that is opened for every range is inflated from its start every time.
            if self._member is None:
                self._member = self._fs.open(self._path, "rb")
            self._member.seek(start)
            return bytes(self._member.read(stop - start))

    def close(self) -> None:
        with self._lock:
            if self._member is not None:
                self._member.close()
                self._member = None

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        raise MultipartError("one range a request")

    async def info(self) -> Source:
        return identify(self._url, await asyncio.to_thread(self._fs.info, self._path))
