"""Threads that decode, shared by all archives of this process."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

_LOCAL = threading.local()
_KEPT_NBYTES = 4 << 20


class _Threads:
    """Pools of threads of this process; a forked one starts its own."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.decoding: ThreadPoolExecutor | None = None
        self.waiting: ThreadPoolExecutor | None = None


_threads = _Threads()


def _after_fork() -> None:
    # Threads do not survive a fork, and the lock may have been held by one of them.
    global _threads  # noqa: PLW0603
    _threads = _Threads()


os.register_at_fork(after_in_child=_after_fork)


def count() -> int:
    """Processors that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def decoding() -> ThreadPoolExecutor:
    """Threads that keep processors busy: as many as there are."""
    threads = _threads
    with threads.lock:
        if threads.decoding is None:
            threads.decoding = ThreadPoolExecutor(count(), thread_name_prefix="refindex-decode")
        return threads.decoding


def waiting() -> ThreadPoolExecutor:
    """Threads that wait for filesystems without an event loop."""
    threads = _threads
    with threads.lock:
        if threads.waiting is None:
            threads.waiting = ThreadPoolExecutor(16, thread_name_prefix="refindex-read")
        return threads.waiting


def scratch(nbytes: int) -> memoryview:
    """Memory of this thread for the stored bytes of one request; the next call may give the same."""
    kept: bytearray | None = getattr(_LOCAL, "kept", None)
    if nbytes > _KEPT_NBYTES:
        return memoryview(bytearray(nbytes))
    if kept is None or len(kept) < nbytes:
        kept = _LOCAL.kept = bytearray(max(nbytes, 1 << 20))
    return memoryview(kept)[:nbytes]
