"""Scanning files of which nothing good is known, each in a process that it may take down with it.

A few child processes take one file at a time, and live until a file ends them. A file that crashes libhdf5, does not
come to an end, or wants more memory than it may have, costs itself: it is named, its child is replaced, and the
others go on. Executors cannot do that: one worker that dies breaks them as a whole, or they start workers anew by
running the user's script again.

That is no jail: a file that takes control of its child, instead of crashing it, has what its user has.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import IO

from refindex.access import urls
from refindex.access.transport import RemoteStats
from refindex.errors import FormatError, RefindexError, SourceError
from refindex.scan.packed import Packed
from refindex.scan.parallel import Finished, Job, ScanStats, interrupts_held

LEAST_MEMORY = 256 << 20
"""Bytes below which a child has no room to work."""

_PROGRAM = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
from refindex.scan.child import main
main(int(sys.argv[1]))
"""
"""What a child runs: never the user's script, which multiprocessing would import."""

_PATIENCE = 5.0
"""Seconds that a child has to end by itself when there is no more work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What a file may cost that is scanned in a process of its own.

    Parameters
    ----------
    time_limit:
        Seconds that scanning it may take.
    memory_limit:
        Bytes of memory that the process may have, about 100 MB for Python and libraries included. Held by the kernel
        (``RLIMIT_DATA``), on Linux only.
    """

    time_limit: float = 60.0
    memory_limit: int = 2 << 30

    def __post_init__(self) -> None:
        if not (math.isfinite(self.time_limit) and self.time_limit > 0):
            raise ValueError(f"time_limit must be a number of seconds above 0, got {self.time_limit!r}")
        if self.memory_limit < LEAST_MEMORY:
            raise ValueError(
                f"memory_limit must be {LEAST_MEMORY >> 20} MB or more, since Python and its libraries take a good "
                f"part of that; got {self.memory_limit!r} bytes"
            )


type Answer = tuple[Packed | RefindexError, ScanStats, bool]
"""What came of a file, what it cost, and whether its child is good for another."""


@dataclass(slots=True, kw_only=True)
class _Child:
    process: subprocess.Popen[bytes]
    connection: Connection
    said: IO[bytes] = field(repr=False)
    """Its standard error: what the C library says of a corrupted heap, for one."""
    url: str = ""
    """The file that it has; empty if it has none."""
    given: int = 0
    ready: bool = False

    @classmethod
    def start(cls, job: Job, isolation: Isolation) -> _Child:
        said = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by close
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", _PROGRAM, str(theirs.fileno()), json.dumps(sys.path)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    pass_fds=[theirs.fileno()],
                )
        except BaseException:
            ours.close()
            said.close()
            raise
        child = cls(process=process, connection=Connection(ours.detach()), said=said)
        child.send((job, isolation, os.getpid()))
        return child

    def give(self, url: str) -> None:
        self.url = url
        self.given += 1
        self.send(url)

    def send(self, message: object) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # that it has died is seen by its answer
            self.connection.send(message)

    def last_words(self) -> str:
        """The last line that it wrote to standard error."""
        self.said.seek(max(0, self.said.seek(0, os.SEEK_END) - 1024))
        lines = self.said.read().decode(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def end(self, *, kill: bool = False) -> int:
        """End it, at once or when it notices that there is no more work; returns its exit code."""
        self.connection.close()
        if kill:
            self.process.kill()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return self.process.returncode


def in_children(
    count: int, sources: Sequence[str], job: Job, isolation: Isolation, finished: Finished, stats: RemoteStats
) -> None:
    """Scan in child processes, ``count`` at a time, each of which has one file at a time.

    Raises
    ------
    SourceError
        If children cannot begin.
    """
    work = _Work(job=job, isolation=isolation, finished=finished, stats=stats, todo=deque(sources))
    try:
        work.run(count)
    except BaseException:
        for child in work.children:
            child.process.kill()
        raise
    finally:
        for child in work.children:
            child.connection.close()
        for child in work.children:
            child.end()
            child.said.close()


@dataclass(slots=True, kw_only=True)
class _Work:
    """Files to scan, and the children at it."""

    job: Job
    isolation: Isolation
    finished: Finished
    stats: RemoteStats
    todo: deque[str]
    children: list[_Child] = field(default_factory=list)

    def run(self, count: int) -> None:
        while True:
            while self.todo and len(self.children) < count:
                self.start(self.todo.popleft())
            busy = [child for child in self.children if child.url]
            if not busy:
                return
            ready = wait([child.connection for child in busy])
            for child in busy:
                if child.connection in ready:
                    self.hear(child)

    def start(self, url: str) -> None:
        """Have a file scanned by a new child."""
        # The child inherits that Ctrl-C is held back: only its parent acts on it.
        with interrupts_held():
            child = _Child.start(self.job, self.isolation)
            self.children.append(child)
        child.give(url)

    def hear(self, child: _Child) -> None:
        """Take what a child says: that it has begun, what came of its file, or, by its silence, that it is dead."""
        try:
            answer: Answer | None = child.connection.recv()
        except (EOFError, OSError, pickle.UnpicklingError):
            self.lost(child)
            return
        if answer is None:
            child.ready = True
            return
        result, cost, sound = answer
        url, first = child.url, child.given == 1
        self.stats.merge(cost)
        child.url = ""
        if not sound:
            self.drop(child)
            if not first and isinstance(result, RefindexError):
                self.start(url)  # files before it may have taken the memory that it lacked
                return
        elif self.todo:
            child.give(self.todo.popleft())  # it works while what came of the last is put away
        self.finished(url, result)

    def lost(self, child: _Child) -> None:
        """What ended a child is its file if that was its first; else it may be one before, and this is tried anew."""
        code, said = self.drop(child)
        if not child.ready:
            raise SourceError(f"a process for scanning in isolation ended before it began (exit code {code}): {said}")
        if child.given > 1 and code != -signal.SIGALRM:
            self.start(child.url)
        else:
            self.finished(child.url, _reason(child.url, code, said, self.isolation))

    def drop(self, child: _Child) -> tuple[int, str]:
        """End a child; its exit code and last words."""
        code = child.end()
        said = child.last_words()
        child.said.close()
        self.children.remove(child)
        return code, said


def _reason(url: str, code: int, said: str, isolation: Isolation) -> RefindexError:
    """Why a file could not be scanned whose child ended with an exit code."""
    where = urls.display(url)
    if code == -signal.SIGALRM:
        return FormatError(
            f"{where}: scanning it took longer than {isolation.time_limit:g} s, and was ended: it is damaged, or needs "
            "a longer time limit (time_limit, --time-limit)"
        )
    words = f": {said}" if said else ""
    if code == -signal.SIGKILL:
        return SourceError(
            f"{where}: the process that scanned it was killed (signal 9), as systems do that run out of memory{words}"
        )
    if code < 0:
        return FormatError(
            f"{where}: the HDF5 library crashed on it (signal {-code}, {signal.strsignal(-code)}{words})"
        )
    # Some filters call exit() where they find something wrong.
    return FormatError(f"{where}: the HDF5 library ended the process that scanned it (exit code {code}{words})")
