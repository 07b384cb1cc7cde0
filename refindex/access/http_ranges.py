"""HTTP range requests, RFC 9110, section 14."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from refindex.access import urls
from refindex.access.failures import AUTHORITY, CREDENTIALS
from refindex.access.gather import COALESCE_GAP
from refindex.access.identity import identify
from refindex.access.multipart import MultipartError, Piece, parse_multipart
from refindex.access.transport import Answer, ShortAnswerError, Transport
from refindex.errors import NotFoundError, SourceError
from refindex.model.manifest import Source

_NUMBER = re.compile("[0-9]{1,18}")
"""A number in a header: to Python other digits are digits, too, and too many of them are an error."""

WITHOUT_RANGES = 64 << 20
"""Bytes of a file that are taken whole from a server that knows no ranges."""


class HttpRanges(Transport):
    """Range requests through the session of fsspec's filesystem."""

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
            reason = str(error.os_error if hasattr(error, "os_error") else error)
            trust = f"check the host's name, its certificate and this machine's clock; {AUTHORITY}"
            advice = trust if "certificate" in reason.lower() else "does the host speak HTTPS at this port?"
            raise SourceError(f"{where}: no trusted connection (TLS): {reason}; {advice}") from error
        except aiohttp.InvalidURL as error:
            raise SourceError(f"{where}: not a URL that can be asked for: {urls.masked(str(error))}") from error

    def _refuse(self, response: Any, start: int) -> None:
        """Raise for a status that is not an answer."""
        where = urls.display(self._url)
        if response.status in (404, 410):
            raise NotFoundError(f"{where}: no such file (the server answers {response.status} {response.reason})")
        if response.status in (401, 403, 407):
            raise SourceError(
                f"{where}: permission denied: the server answers {response.status} {response.reason}; {CREDENTIALS}"
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
    if unit.lower() != "bytes" or not (_NUMBER.fullmatch(first) and _NUMBER.fullmatch(last)):
        return None, None
    return int(first), int(last)


def _total(response: Any) -> int | None:
    size = response.headers.get("Content-Range", "").rpartition("/")[2].strip()
    return int(size) if _NUMBER.fullmatch(size) else None
