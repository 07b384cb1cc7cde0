"""Answers: keys of an archive with entity tags and ranges, errors as one line of JSON, bodies sent in pieces."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import ujson
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from refindex.errors import RefindexError, SourceError
from refindex.serve.http.gate import BusyError, Data, Gate
from refindex.serve.http.ranges import matches, requested
from refindex.serve.keys import DOCUMENT, HierarchyKeys
from refindex.serve.resolver import ByteRange

LOG = logging.getLogger("refindex.serve")

_PIECE = 256 << 10
"""Bytes that are handed to the server at a time: what a client that has stopped reading keeps in memory."""

_PROMPT = 0.05
"""Seconds in which nobody is expected to leave."""

FOREVER = "public, max-age=31536000, immutable"
ASK = "no-cache"


class Refusal(Response):
    """An error as one line of JSON."""

    def __init__(self, status: int, reason: str, headers: Mapping[str, str] | None = None) -> None:
        body = ujson.dumps({"error": " ".join(reason.split())}, ensure_ascii=False, escape_forward_slashes=False)
        headers = {"Cache-Control": "no-store", **(headers or {})}
        super().__init__(f"{body}\n", status, headers, media_type="application/json")


def refusal(error: Exception) -> Refusal:
    """The answer to an error: never 404, which clients take for a chunk that does not exist."""
    if isinstance(error, BusyError):
        return Refusal(503, str(error), {"Retry-After": "5"})
    if isinstance(error, SourceError):
        return Refusal(502, str(error))
    if not isinstance(error, RefindexError):
        LOG.error("cannot answer", exc_info=error)
        return Refusal(500, f"{type(error).__name__} (the log of the server has more)")
    return Refusal(500, str(error))


class Body(Response):
    """A body that is sent in pieces, each within a time.

    Parameters
    ----------
    patience:
        Seconds that a client has to take a piece; then the connection is closed.
    """

    def __init__(self, data: Data, patience: float, **how: Any) -> None:
        super().__init__(None, **how)
        self._data = memoryview(data)
        self._patience = patience
        self.headers["Content-Length"] = str(self.nbytes)

    @property
    def nbytes(self) -> int:
        return self._data.nbytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        size = len(self._data)
        for start in range(0, max(1, size), _PIECE):
            piece = bytes(self._data[start : start + _PIECE])
            more = start + _PIECE < size
            async with asyncio.timeout(self._patience):
                await send({"type": "http.response.body", "body": piece, "more_body": more})


def entity_tag(identity: str, key: str) -> str:
    """A strong entity tag: of an archive's version in a view of it, and a key."""
    return f'"{hashlib.blake2b(f"{identity}/{key}".encode(), digest_size=16).hexdigest()}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Keys that are served.

    Parameters
    ----------
    keys:
        Of the view.
    identity:
        What entity tags are made of: different for different bytes.
    """

    keys: HierarchyKeys
    identity: str


def improper(path: str, raw: bytes) -> str | None:
    """Why a path names no key in any archive, if so."""
    if "\0" in path:
        return "a path with a NUL"
    if b"%2f" in raw.lower():
        return "a path with an encoded slash"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "a path that is not in its shortest form"
    return None


class KeyAnswer:
    """Answers requests for the keys of views. Belongs to one event loop.

    Parameters
    ----------
    gate:
        Through which keys are read.
    patience:
        Seconds that a client has to take a piece of a body.
    """

    def __init__(self, gate: Gate, patience: float) -> None:
        self._gate = gate
        self._patience = patience

    async def __call__(
        self, scope: Scope, receive: Receive, send: Send, *, view: View, key: str, caching: str = ASK
    ) -> None:
        """Answer a request."""
        try:
            answer = await _while_there(receive, self._answer(Request(scope), view, key, caching))
        except _GoneError:
            return
        except Exception as error:
            answer = refusal(error)
        try:
            await answer(scope, receive, send)
        except TimeoutError:
            LOG.info("%s: the client has stopped reading", key)
        finally:
            if isinstance(answer, Body):
                self._gate.room.give(answer.nbytes)

    async def _answer(self, request: Request, view: View, key: str, caching: str) -> Response:
        gate, keys = self._gate, view.keys
        etag = entity_tag(view.identity, key)
        headers = {"ETag": etag, "Cache-Control": caching, "Accept-Ranges": "bytes"}
        media = "application/json" if key.rpartition("/")[2] == DOCUMENT else "application/octet-stream"
        asked = request.headers.get("range") if request.method == "GET" else None
        if request.headers.get("if-range", etag) != etag:
            asked = None
        known = request.headers.get("if-none-match")
        part, status = None, 200
        if request.method == "HEAD" or asked is not None or known is not None:
            size = await gate.size(keys, key)
            if size is None:
                return _absent(key)
            if matches(known, etag):
                return Response(status_code=304, headers=headers)
            if request.method == "HEAD":
                return Response(headers={**headers, "Content-Length": str(size)}, media_type=media)
            part = requested(asked, size)
            if part is not None:
                first, stop = part
                if first == stop:
                    return Refusal(416, f"{key} has {size} bytes", {"Content-Range": f"bytes */{size}"})
                headers["Content-Range"], status = f"bytes {first}-{stop - 1}/{size}", 206
        data = await gate.read(keys, key, ByteRange() if part is None else ByteRange(start=part[0], stop=part[1]))
        if data is None:
            return _absent(key)
        if part is not None and len(data) != part[1] - part[0]:
            gate.room.give(len(data))
            raise SourceError(f"{key}: {len(data)} bytes instead of {part[1] - part[0]}")
        return Body(data, self._patience, status_code=status, headers=headers, media_type=media)


class _GoneError(Exception):
    """Nobody waits for the answer any more."""


async def _while_there(receive: Receive, answering: Coroutine[Any, Any, Response]) -> Response:
    """An answer, given up when the client closes its connection."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    answer = asyncio.ensure_future(answering)
    tasks: set[asyncio.Future[Any]] = {answer}
    try:
        # Watching the connection takes as long as most answers.
        await asyncio.wait(tasks, timeout=_PROMPT)
        if not answer.done():
            tasks.add(asyncio.ensure_future(gone()))
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise _GoneError
        return answer.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def _absent(key: str) -> Refusal:
    return Refusal(404, f"there is no {key}")
