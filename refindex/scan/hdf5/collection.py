"""Garbage collection, which must not run while libhdf5 waits for the network.

While libhdf5 reads a Python file, its thread holds h5py's global lock and waits for the thread of fsspec's event loop.
A cyclic collection over there that comes upon an h5py object waits for the lock in its turn: both wait forever.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Iterator

from refindex.access.blocks import submit


class Collection:
    """The process's garbage collection, stopped while at least one user wants it to be."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pauses = 0
        self._was_on = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """No cyclic collection in this process; do not enter from within libhdf5."""
        with self._lock:
            if not self._pauses:
                self._was_on = gc.isenabled()
                gc.disable()
                # A collection that is under way over there ends before this thread takes h5py's lock.
                submit(asyncio.sleep(0)).result()
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                if not self._pauses and self._was_on:
                    gc.enable()


COLLECTION = Collection()
"""There is one collector in a process, so there is one of these."""
