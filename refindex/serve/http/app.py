"""The ASGI application over one version of an archive.

    /                      the landing page, or what is in the archive as JSON
    /KEY                   a key of the archive, in the view that was asked for
    /plain/KEY             the same in the plain view
    /pinned/VERSION/KEY    the same, never to change: clients may keep it for good (and /pinned/VERSION/plain/KEY)
    /page/FILE             what the landing page is made of

Names that the archive itself has at its root get underscores before them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata, resources
from typing import Literal

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from refindex import storage
from refindex.serve.http.answers import ASK, FOREVER, KeyAnswer, Refusal, View, entity_tag, improper
from refindex.serve.http.gate import Gate
from refindex.serve.http.landing import Page, facts, html
from refindex.serve.http.ranges import matches
from refindex.serve.keys import HierarchyKeys, ManifestKeys
from refindex.serve.plain import plain_keys
from refindex.serve.zarr_store import RefindexStore

type ViewName = Literal["declared", "plain"]

METHODS = "GET, HEAD, OPTIONS"

LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

_MEDIA = {"css": "text/css; charset=utf-8", "mjs": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What serving may take.

    Parameters
    ----------
    concurrency:
        Requests that read or decode at the same time.
    cache_nbytes:
        Bytes of decoded chunks that are kept for the next who asks for them.
    sending_nbytes:
        Bytes of answers that have been read and are not sent yet.
    patience:
        Seconds that a client has to take 256 KiB, and that a request waits for others to be sent.
    """

    concurrency: int = 16
    cache_nbytes: int = 64 << 20
    sending_nbytes: int = 256 << 20
    patience: float = 30


class ArchiveApp:
    """Serves one version of an archive; an ASGI application of one event loop.

    Parameters
    ----------
    store:
        The store of an open archive, which must stay open.
    view:
        Which view is at the root: ``"declared"`` chunks as the archive declares them, ``"plain"`` uncompressed ones.
    cors:
        Origins (``https://example.org``, or ``*``) whose pages may read the archive.
    hosts:
        Names by which clients may address the server; any if not given. A page of another site can make a browser
        send requests to a server of this machine, but not with this machine's name in them.
    limits:
        What serving may take.
    """

    def __init__(
        self,
        store: RefindexStore,
        *,
        view: ViewName = "declared",
        cors: Sequence[str] = (),
        hosts: Sequence[str] = (),
        limits: Limits | None = None,
    ) -> None:
        keys = store.keys
        if not isinstance(keys, ManifestKeys):
            raise TypeError(f"{store} is not a store over a manifest")
        limits = limits or Limits()
        self.identity = _identity(store)
        plain = plain_keys(keys)
        declared: HierarchyKeys = keys
        self._plain = View(keys=plain, identity=f"{self.identity}/plain")
        self._root = self._plain if view == "plain" else View(keys=declared, identity=self.identity)
        taken = {path for path in plain.hierarchy.nodes if "/" not in path}
        self.page = Page(
            store=store,
            plain_nodes=plain.hierarchy.nodes,
            view=view,
            identity=self.identity,
            names={name: _free(name, taken) for name in ("plain", "pinned", "page")},
        )
        self._limits = limits
        self._answer: KeyAnswer | None = None
        app: ASGIApp = self._serve
        if cors:
            app = CORSMiddleware(
                app,
                allow_origins=list(cors),
                allow_methods=["GET", "HEAD", "OPTIONS"],
                allow_headers=["Range", "If-None-Match", "If-Range", "Cache-Control"],
                expose_headers=["Content-Range", "Content-Length", "Accept-Ranges", "ETag"],
                max_age=86400,
            )
        self._app = TrustedHostMiddleware(app, [*hosts], www_redirect=False) if hosts else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise RuntimeError(f"no server of {scope['type']}")

    @property
    def answer(self) -> KeyAnswer:
        """What answers requests for keys; made on the event loop that it is for."""
        if self._answer is None:
            limits = self._limits
            gate = Gate(
                concurrency=limits.concurrency,
                cache_nbytes=limits.cache_nbytes,
                room_nbytes=limits.sending_nbytes,
                patience=limits.patience,
            )
            self._answer = KeyAnswer(gate, limits.patience)
        return self._answer

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/")

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], (b"x-content-type-options", b"nosniff")]}
            await send(message)

        if method == "OPTIONS":
            response: Response = Response(status_code=204, headers={"Allow": METHODS})
        elif method not in ("GET", "HEAD"):
            response = Refusal(405, f"{method}: the archive is read-only", {"Allow": METHODS})
        elif path in ("", "index.html"):
            response = self._landing(Request(scope), path)
        elif (why := improper(path, scope.get("raw_path", b""))) is not None:
            # Not 404: a client that adds a slash too many must not take everything for missing.
            response = Refusal(400, f"{why}: write {_shortest(path)}" if _shortest(path) else why)
        else:
            found = self._resolve(path)
            if not isinstance(found, Response):
                view, key, caching = found
                await self.answer(scope, receive, guarded, view=view, key=key, caching=caching)
                return
            response = found
        await response(scope, receive, guarded)

    def _resolve(self, path: str) -> tuple[View, str, str] | Response:
        """The view and the key that a path names, and how long clients may keep it."""
        names, view, caching = self.page.names, self._root, ASK
        first, _, rest = path.partition("/")
        if first == names["page"]:
            return _asset(rest) or Refusal(404, f"there is no {path}")
        if first == names["pinned"]:
            identity, _, path = rest.partition("/")
            if identity != self.identity:
                # Not 404: clients would take that for chunks that do not exist.
                return Refusal(400, f"another version is served here: {self.identity} instead of {identity}")
            caching = FOREVER
            first, _, rest = path.partition("/")
        if first == names["plain"]:
            view, path = self._plain, rest
        return view, path, caching

    def _landing(self, request: Request, path: str) -> Response:
        etag = entity_tag(self.identity, f"{request.base_url}{path}")
        headers = {"Cache-Control": ASK, "Vary": "Accept"}
        if path != "index.html" and not _wants_html(request.headers):
            return JSONResponse(facts(self.page, str(request.base_url)), headers=headers)
        headers |= {"Content-Security-Policy": _POLICY, "Referrer-Policy": "no-referrer", "ETag": etag}
        if matches(request.headers.get("if-none-match"), etag):
            return Response(status_code=304, headers=headers)
        return HTMLResponse(html(self.page, str(request.base_url)), headers=headers)


def _wants_html(headers: Headers) -> bool:
    return "text/html" in headers.get("accept", "")


@cache
def _asset(name: str) -> Response | None:
    """A file that the landing page is made of."""
    kind = name.rpartition(".")[2]
    file = resources.files("refindex.serve.http") / "page" / name
    if "/" in name or kind not in _MEDIA or not file.is_file():
        return None
    return Response(file.read_bytes(), media_type=_MEDIA[kind], headers={"Cache-Control": ASK})


def _shortest(path: str) -> str:
    """A path as it should have been written, if that can be told."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "" if ".." in parts or "\0" in path else "/" + "/".join(parts)


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name = f"_{name}"
    return name


def _identity(store: RefindexStore) -> str:
    """What tells one version of one archive from all others, whatever is at its URL later."""
    digest = hashlib.blake2b(digest_size=10)
    opening, nodes = store.archive, store.nodes
    keys = store.keys
    if not isinstance(keys, ManifestKeys):
        raise TypeError(f"{store} is not a store over a manifest")
    said = [metadata.version("refindex"), opening.url, str(opening.version)]
    if opening.manifest is None:
        commits = storage.history(opening.url, opening.storage_options)
        said += [str(commit.timestamp) for commit in commits if commit.version == opening.version]
    said += [text for path, node in sorted(nodes.items()) for text in (path, node.document)]
    said += [f"{s.url} {s.size} {s.mtime} {s.etag}" for s in keys.resolver.reader.sources]
    for text in said:
        digest.update(f"{len(text)}:{text}".encode(errors="surrogatepass"))
    return digest.hexdigest()
