"""Requests for ranges of one remote file, and what each answer says of the file besides its bytes.

HTTP and S3 tell with every range which version of the file it is of: a scan needs no further request to know that all
that it read belongs together. Other filesystems are asked before and after (see :mod:`refindex.access.blocks`).
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import fsspec
from fsspec.archive import AbstractArchiveFileSystem
from fsspec.asyn import AsyncFileSystem

from refindex.access import urls
from refindex.access.files import StorageOptions, modification_time
from refindex.access.gather import COALESCE_GAP
from refindex.access.multipart import MultipartError, Piece, parse_multipart
from refindex.errors import NotFoundError, SourceError
from refindex.model.manifest import Source

WITHOUT_RANGES = 64 << 20
"""Bytes of a file that are taken whole from a server that knows no ranges."""


class ShortAnswerError(ConnectionError):
    """Fewer bytes than the answer promised: worth another try."""


@dataclass(slots=True, kw_only=True)
class RemoteStats:
    """What reading remote files has cost so far. May be added to from several threads.

    Attributes
    ----------
    requests:
        Requests sent, those included that failed or that only asked for size and time.
    nbytes:
        Bytes that came back as bodies of files.
    retries:
        Requests that were sent because one before had failed.
    files:
        Remote files opened.
    """

    requests: int = 0
    nbytes: int = 0
    retries: int = 0
    files: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, *, requests: int = 0, nbytes: int = 0, retries: int = 0, files: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.nbytes += nbytes
            self.retries += retries
            self.files += files

    def merge(self, other: RemoteStats) -> None:
        """Add what another process has counted."""
        self.add(requests=other.requests, nbytes=other.nbytes, retries=other.retries, files=other.files)

    # Locks do not travel between processes.
    def __getstate__(self) -> tuple[int, int, int, int]:
        return self.requests, self.nbytes, self.retries, self.files

    def __setstate__(self, state: tuple[int, int, int, int]) -> None:
        self.requests, self.nbytes, self.retries, self.files = state
        self._lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Bytes of a file from ``start`` on, and its identity, where the answer tells it."""

    start: int
    data: bytes
    source: Source | None = None


class Transport(Protocol):
    """How ranges of one file are asked for. Runs on fsspec's event loop.

    ``tells_identity``: whether every answer says which version of the file it is of. ``many``: whether one request may
    ask for several ranges; None until it has been tried. ``gap``: ranges nearer than this many bytes are better read
    with what lies between them.
    """

    tells_identity: bool
    many: bool | None
    gap: int

    async def get(self, start: int, stop: int, /) -> Answer:
        """Bytes ``[start, stop)``, fewer where the file ends before."""
        ...

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        """Pieces that hold at least the ranges asked for; raises :class:`MultipartError` if they cannot be had so."""
        ...

    async def info(self) -> Source:
        """What the file is now."""
        ...

    def close(self) -> None:
        """Close what is kept open; it may be used again."""
        return


def open_transport(url: str, storage_options: StorageOptions = None) -> Transport:
    """What reads the file behind a URL that fsspec knows."""
    fs, path = fsspec.core.url_to_fs(url, **dict(storage_options or {}))
    asynchronous = isinstance(fs, AsyncFileSystem) and fs.async_impl and not fs.asynchronous
    kind = type(fs).__module__
    if asynchronous and kind == "fsspec.implementations.http":
        return _Http(fs, path, url)
    if asynchronous and kind == "s3fs.core":
        return _S3(fs, path, url)
    return _Async(fs, path, url) if asynchronous else _Blocking(fs, path, url)


def identify(url: str, info: Mapping[str, Any]) -> Source:
    """A file's identity from what a filesystem, or an answer, says of it."""
    etag = info.get("ETag") or info.get("etag")
    return Source(url=url, size=int(info["size"] or 0), mtime=modification_time(info), etag=str(etag) if etag else None)


class _Http(Transport):
    """HTTP range requests (RFC 9110, section 14) through the session of fsspec's filesystem."""

    tells_identity = True
    gap = COALESCE_GAP

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url
        self.many: bool | None = None

    async def get(self, start: int, stop: int, /) -> Answer:
        async with await self._request(f"{start}-{stop - 1}") as response:
            self._refuse(response, start)
            if response.status == 416 and (size := _total(response)) is not None:
                return self._answer(response, start, b"", size)
            if response.status == 200:
                data = await self._whole(response)
                return self._answer(response, 0, data, len(data))
            size = _total(response)
            first, last = _span(response)
            if response.status != 206 or first != start or last is None or last >= stop:
                raise SourceError(
                    f"{urls.display(self._url)}: asked for bytes {start} to {stop - 1}, the server answered status "
                    f"{response.status} with the range {response.headers.get('Content-Range')!r}"
                )
            data = await response.read()
            if len(data) != last + 1 - start:
                raise ShortAnswerError(f"expected {last + 1 - start} bytes at {start}, got {len(data)}")
            if size is None:  # allowed, though no server is known to do it
                size = (await self.info()).size
            if last + 1 < min(stop, size):
                raise ShortAnswerError(f"asked for bytes {start} to {stop - 1}, got those to {last}")
            return self._answer(response, start, data, size)

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        asked = ", ".join(f"{start}-{stop - 1}" for start, stop in ranges)
        async with await self._request(asked) as response:
            if response.status in (200, 400, 413, 414, 416, 431, 494, 501):
                # Some take only the first range, or send the whole file: that is not read to its end.
                response.close()
                raise MultipartError(f"status {response.status} for several ranges")
            self._refuse(response, ranges[0][0])
            body = await response.read()
            pieces: list[Piece]
            if (kind := response.headers.get("Content-Type", "")).lower().startswith("multipart/byteranges"):
                pieces = parse_multipart(body, kind)
            else:  # a server may answer with one range that holds all of them
                first, last = _span(response)
                if first is None or last is None or len(body) != last + 1 - first:
                    raise MultipartError("neither several ranges nor one")
                pieces = [Piece(start=first, data=body, size=_total(response))]
        size = next((piece.size for piece in pieces if piece.size is not None), None)
        if size is None or any(piece.size not in (None, size) for piece in pieces):
            raise MultipartError("the parts do not tell the size of the file")
        return [self._answer(response, piece.start, piece.data, size) for piece in pieces]

    async def info(self) -> Source:
        return identify(self._url, await self._fs._info(self._path))

    async def _request(self, ranges: str) -> Any:
        import aiohttp

        options = dict(self._fs.kwargs)
        # Offsets are those of the file, not of a compressed copy of it.
        fixed = {"Range": f"bytes={ranges}", "Accept-Encoding": "identity"}
        options["headers"] = {**(options.get("headers") or {}), **fixed}
        session = await self._fs.set_session()
        where = urls.display(self._url)
        try:
            return await session.get(self._fs.encode_url(self._path), **options)
        except aiohttp.TooManyRedirects as error:
            raise SourceError(
                f"{where}: the server redirects {len(error.history)} times without an end; is a login missing?"
            ) from None
        except aiohttp.ClientSSLError as error:
            raise SourceError(
                f"{where}: no trusted connection (TLS): {error.os_error if hasattr(error, 'os_error') else error}; "
                "check the host's name, its certificate and this machine's clock"
            ) from error
        except aiohttp.InvalidURL as error:
            raise SourceError(f"{where}: not a URL that can be asked for: {error}") from error

    def _refuse(self, response: Any, start: int) -> None:
        """Raise for a status that is not an answer."""
        where = urls.display(self._url)
        if response.status in (404, 410):
            raise NotFoundError(f"{where}: no such file (the server answers {response.status} {response.reason})")
        if response.status in (401, 403, 407):
            raise SourceError(
                f"{where}: permission denied: the server answers {response.status} {response.reason}; pass credentials "
                "in storage_options, or check that they are for this file"
            )
        if response.status == 416 and _total(response) is None:
            raise SourceError(f"{where}: the server says that the file ends before byte {start} (status 416)")
        if response.status not in (200, 206, 416):
            response.raise_for_status()
            raise SourceError(f"{where}: expected a range of the file, the server answers status {response.status}")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise SourceError(
                f"{where}: the server sends the file compressed ({response.headers['Content-Encoding']}) though "
                "identity was asked for: offsets in the file mean nothing there; let it serve the file as it is"
            )

    async def _whole(self, response: Any) -> bytes:
        """The body of a server that knows no ranges; stops where it is too long."""
        length = response.content_length
        if length is None or length <= WITHOUT_RANGES:
            parts, held = [], 0
            async for part in response.content.iter_chunked(1 << 18):
                parts.append(part)
                held += len(part)
                if held > WITHOUT_RANGES:
                    break
            else:
                if length is not None and held != length:
                    raise ShortAnswerError(f"expected {length} bytes, got {held}")
                return b"".join(parts)
        response.close()
        raise SourceError(
            f"{urls.display(self._url)}: the server knows no ranges (it answers with the whole file, "
            f"{'more than ' + str(WITHOUT_RANGES) if length is None else length} bytes); up to {WITHOUT_RANGES} bytes "
            "are taken so: copy the file to a server that does, or to this machine"
        )

    def _answer(self, response: Any, start: int, data: bytes, size: int) -> Answer:
        found = {name: response.headers[name] for name in ("ETag", "Last-Modified") if name in response.headers}
        return Answer(start=start, data=data, source=identify(self._url, {**found, "size": size}))


def _span(response: Any) -> tuple[int | None, int | None]:
    """First and last byte of a Content-Range."""
    unit, _, rest = response.headers.get("Content-Range", "").strip().partition(" ")
    first, _, last = rest.partition("/")[0].partition("-")
    if unit.lower() != "bytes" or not (first.isdigit() and last.isdigit()):
        return None, None
    return int(first), int(last)


def _total(response: Any) -> int | None:
    size = response.headers.get("Content-Range", "").rpartition("/")[2].strip()
    return int(size) if size.isdigit() else None


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


class _Async(Transport):
    """Any other asynchronous filesystem of fsspec."""

    tells_identity = False
    many: bool | None = False
    gap = COALESCE_GAP

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url

    async def get(self, start: int, stop: int, /) -> Answer:
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

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url
        self._lock = threading.Lock()
        self._member: Any = None

    async def get(self, start: int, stop: int, /) -> Answer:
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
