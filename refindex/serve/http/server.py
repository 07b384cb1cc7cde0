"""Running the application: on this thread until it is interrupted, or on one of its own."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Self

import uvicorn

from refindex.access import urls
from refindex.model.manifest import Source
from refindex.serve.http.app import LOOPBACK, ArchiveApp, Limits, ViewName
from refindex.serve.zarr_store import RefindexStore

_CONNECTIONS = 1024
"""More are answered with 503."""

_GRACE = 5
"""Seconds that requests have to end when the server stops."""

_UNREAD = 60
"""Seconds after which the kernel gives up a connection whose client takes nothing of what was sent."""


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    return host in LOOPBACK or host.startswith("127.")


def bind(host: str, port: int) -> socket.socket:
    """A socket at an address; any free port for 0.

    Raises
    ------
    OSError
        If the address is in use, or not of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNREAD * 1000)
        bound.bind(address)
        bound.listen(2048)
    except BaseException:
        bound.close()
        raise
    return bound


def url_of(bound: socket.socket, host: str) -> str:
    """The URL of a server on a socket that was bound to a host."""
    name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{name}]' if ':' in name else name}:{bound.getsockname()[1]}/"


class Server(AbstractContextManager["Server"]):
    """A server of an application on a socket, which it closes.

    Parameters
    ----------
    app:
        What it serves.
    bound, url:
        Where.
    threads:
        For reading and decoding.
    """

    def __init__(self, app: ArchiveApp, bound: socket.socket, url: str, *, threads: int = 16) -> None:
        self.app = app
        self.url = url
        self._bound = bound
        self._threads = threads
        self._thread: threading.Thread | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_keep_alive=30,
                timeout_graceful_shutdown=_GRACE,
                limit_concurrency=_CONNECTIONS,
            )
        )

    def run(self) -> None:
        """Serve until the process is told to stop (SIGINT, SIGTERM) or :meth:`stop` is called.

        Raises
        ------
        KeyboardInterrupt
            When interrupted, once all has ended.
        """
        asyncio.run(self._run())

    async def _run(self) -> None:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="refindex-serve") as threads:
            asyncio.get_running_loop().set_default_executor(threads)
            await self._server.serve(sockets=[self._bound])

    def start(self) -> Self:
        """Serve on a thread of its own; the server answers when this returns."""
        self._thread = threading.Thread(target=self.run, name="refindex-serve", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Let requests end, and stop."""
        self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(_GRACE + 5)

    def __enter__(self) -> Self:
        return self if self._thread is not None else self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        return f"<refindex.Server {self.url}>"


def open_server(
    store: RefindexStore,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    view: ViewName = "declared",
    cors: Sequence[str] = (),
    hosts: Sequence[str] = (),
    limits: Limits | None = None,
) -> Server:
    """A server of an archive, bound and not yet started.

    Parameters
    ----------
    store:
        Of an open archive, which must stay open.
    host, port:
        Where; 0 takes any free port.
    view, cors, limits:
        As :class:`~refindex.serve.http.app.ArchiveApp` has them.
    hosts:
        Names besides ``localhost`` by which clients of this machine may address a server that only they reach.

    Raises
    ------
    OSError
        If the address is in use, or not of this machine.
    """
    limits = limits or Limits()
    allowed = (*LOOPBACK, host, *hosts) if is_loopback(host) else tuple(hosts)
    app = ArchiveApp(store, view=view, cors=cors, hosts=allowed, limits=limits)
    bound = bind(host, port)
    return Server(app, bound, url_of(bound, host), threads=limits.concurrency + 4)


def readable(sources: Sequence[Source], most: int = 4) -> list[str]:
    """Folders with all sources, which is what a server of an archive reads; those above them where they are many."""
    folders = {urls.parent(source.url) for source in sources}
    while True:
        folders = {folder for folder in folders if not _is_below(folder, folders)}
        deepest = max((folder.count("/") for folder in folders), default=0)
        shorter = {_above(folder) if folder.count("/") == deepest else folder for folder in folders}
        if len(folders) <= most or shorter == folders:
            return ["/" if folder == "file://" else f"{urls.display(folder)}/" for folder in sorted(folders)]
        folders = shorter


def _is_below(folder: str, folders: set[str]) -> bool:
    """Whether a folder lies in another one of some."""
    above = urls.parent(folder)
    while above != folder:
        if above in folders:
            return True
        folder, above = above, urls.parent(above)
    return False


def _above(folder: str) -> str:
    """The folder that holds a folder; the same where that would be all of a storage."""
    above = urls.parent(folder)
    return folder if above.endswith("://") else above
