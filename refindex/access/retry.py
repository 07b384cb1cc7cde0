"""Which failures of a request are worth another try, and how long to wait before it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterator

ATTEMPTS = 4
FIRST_WAIT = 0.1
"""Seconds; each further wait is up to twice as long."""

_STATUSES = {408, 425, 429, 500, 502, 503, 504}


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed a little later."""
    for cause in (error, error.__cause__):
        status = getattr(cause, "status", None) or getattr(cause, "status_code", None)
        if isinstance(status, int):
            return status in _STATUSES
    if isinstance(error, ConnectionError | TimeoutError | asyncio.IncompleteReadError):
        return True
    # Dropped connections and cut-off bodies: aiohttp need not be installed to be recognised.
    return any(
        (kind.__module__.partition(".")[0], kind.__name__)
        in {("aiohttp", "ClientConnectionError"), ("aiohttp", "ClientPayloadError")}
        for kind in type(error).__mro__
    )


def _waits() -> Iterator[float]:
    for attempt in range(ATTEMPTS - 1):
        # Not all the same: clients that were turned away together must not return together.
        yield FIRST_WAIT * 2**attempt * random.uniform(0.5, 1)


def retrying[T](request: Callable[[], T]) -> T:
    """Call ``request`` until it succeeds, fails for good, or has failed :data:`ATTEMPTS` times; raises its error."""
    for wait in _waits():
        try:
            return request()
        except Exception as error:
            if not is_transient(error):
                raise
            time.sleep(wait)
    return request()


async def retrying_async[T](request: Callable[[], Awaitable[T]]) -> T:
    """:func:`retrying` for a coroutine function."""
    for wait in _waits():
        try:
            return await request()
        except Exception as error:
            if not is_transient(error):
                raise
            await asyncio.sleep(wait)
    return await request()
