"""Where servers may send a reader of theirs.

Servers of archives redirect, and so they shall. But one that is reached through a public address must not make this
machine ask what only this machine, or its network, reaches: services on the loopback, metadata services of clouds,
neighbours behind a firewall. A server that is itself at such an address may.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import fsspec

from refindex.access import urls
from refindex.errors import NotAllowedError

_MOST = 1000
"""Hosts of which a session remembers where they are."""


def is_inner(address: str) -> bool:
    """Whether an IP address is one that not everybody reaches: loopback, link-local, private, or reserved."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return True  # nobody knows what it is
    embedded = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    if embedded is not None:
        found = embedded
    return not found.is_global or found.is_multicast


class Guard:
    """Watches the redirects of one session."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}

    async def redirected(self, session: Any, context: Any, params: Any) -> None:
        """Called by aiohttp before it follows a redirect.

        Raises
        ------
        NotAllowedError
            If it leads from an address that everybody reaches to one that not everybody does.
        """
        location = params.response.headers.get("Location") or params.response.headers.get("URI")
        if not location:
            return
        target = params.url.join(type(params.url)(location))
        if target.host is None or target.host == params.url.host:
            return
        if await self._is_inner(target.host) and not await self._is_inner(params.url.host):
            params.response.close()
            raise NotAllowedError(
                f"{urls.masked(str(params.url))}: the server redirects to {target.origin()}, which only this "
                "machine or its network reaches. If you trust it, read the file at that URL; or pass a get_client of "
                "your own in the storage options of this server"
            )

    async def _is_inner(self, host: str) -> bool:
        """Whether any of a host's addresses is inner."""
        if host not in self._known:
            loop = asyncio.get_running_loop()
            try:
                found = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except OSError:
                return False  # there is nothing to connect to
            if len(self._known) >= _MOST:
                self._known.clear()
            self._known[host] = any(is_inner(str(address[0])) for *_, address in found)
        return self._known[host]


async def guarded_client(**options: Any) -> Any:
    """A session of aiohttp that does not follow every redirect; what fsspec's HTTP filesystem calls to make one."""
    import aiohttp

    watch = aiohttp.TraceConfig()
    watch.on_request_redirect.append(Guard().redirected)
    options["trace_configs"] = [*(options.get("trace_configs") or ()), watch]
    return aiohttp.ClientSession(**options)


def guarded(link: str, options: dict[str, Any]) -> dict[str, Any]:
    """Options for a link of a URL, with a session that is guarded where it is fsspec's own HTTP filesystem."""
    protocol = link.partition("://")[0]
    if protocol not in ("http", "https") or "get_client" in options:
        return options
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except (ImportError, ValueError):  # whoever opens it says what is missing
        return options
    if kind.__module__ != "fsspec.implementations.http":
        return options
    return {**options, "get_client": guarded_client}
