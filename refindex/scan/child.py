"""A process that scans untrusted files for another, one at a time; see :mod:`refindex.scan.isolation`.

Its limits are kept by the kernel, since nothing in the process can be relied on while a damaged file is read: libhdf5
may hold Python's lock, or be in a loop.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

from refindex.access import urls
from refindex.errors import FormatError
from refindex.scan.hdf5 import Known
from refindex.scan.isolation import Answer, Isolation
from refindex.scan.packed import Interner
from refindex.scan.parallel import Job, ScanStats, fewer_collections, scan_here

_FULL = 0.25
"""Share of the memory limit from which on a child is replaced when its file is done: what is left of one must not be
missing for the next."""

_PR_SET_PDEATHSIG = 1
"""``linux/prctl.h``"""


def main(fd: int) -> None:
    """Scan files until there are no more."""
    # In case the parent ignores or blocks it: unlike Ctrl-C, this must end the process, whatever it does.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with Connection(fd) as connection, fewer_collections():
        try:
            job, isolation, parent = connection.recv()
            if not _bound_to(parent):
                return
            _limit_memory(isolation.memory_limit)
            connection.send(None)
            known = Known()
            while True:
                url = connection.recv()
                signal.setitimer(signal.ITIMER_REAL, isolation.time_limit)
                answer, sound = _scan(url, job, isolation, known)
                signal.setitimer(signal.ITIMER_REAL, 0)
                connection.send_bytes(answer)
                if not sound:
                    return
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return  # there is no more work, or nobody to work for


def _bound_to(parent: int) -> bool:
    """Have the kernel end this process when its parent is no more; whether there still is one.

    Where there is no prctl, a process without a parent ends with its file: there is none to take the answer.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    return os.getppid() == parent


def _scan(url: str, job: Job, isolation: Isolation, known: Known) -> tuple[memoryview, bool]:
    """What is answered, in the form in which it travels, and whether this process is good for another file."""
    stats = ScanStats()
    try:
        ((_, result),) = scan_here([url], job, stats, Interner(light=True), known=known)
        sound = _resident() < _FULL * isolation.memory_limit
        return _pickled((result, stats, sound)), sound
    except MemoryError:
        reason = (
            f"scanning it takes more memory than the limit of {isolation.memory_limit / (1 << 20):.0f} MB: it is "
            "damaged, or needs a higher limit (memory_limit, --memory-limit)"
        )
    except Exception as error:
        # Elsewhere that is a defect that stops a scan; here the point is that no file does.
        reason = f"scanning it raised {type(error).__name__}: {error}"
    return _pickled((FormatError(f"{urls.display(url)}: {reason}"), stats, False)), False


def _pickled(answer: Answer) -> memoryview:
    return ForkingPickler.dumps(answer)


def _limit_memory(nbytes: int) -> None:
    """Let this process have so many bytes of memory.

    The kernel counts what may be written and is not shared, whether it is used or not (``RLIMIT_DATA``): what
    libraries have reserved for their threads, and do not use, is allowed on top. ``RLIMIT_AS`` would count mapped files
    and address space that nothing can be written to, too.
    """
    reserved = _status("VmData")
    if reserved:
        limit = reserved - min(reserved, _status("RssAnon")) + nbytes
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))


def _resident() -> int:
    return _status("RssAnon")


def _status(field: str) -> int:
    """A field of the kernel's about this process, in bytes; 0 where there is none."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:")), 0)
