"""How ranges of one remote file are asked for, and what each answer says of the file besides its bytes.

HTTP and S3 tell with every range which version of the file it is of: a scan needs no further request to know that all
that it read belongs together. Other filesystems are asked before and after (see :mod:`refindex.access.blocks`).
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from refindex.model.manifest import Source


class ShortAnswerError(ConnectionError):
    """Fewer bytes than the answer promised: worth another try."""


@dataclass(slots=True, kw_only=True)
class RemoteStats:
    """What reading remote files has cost so far. May be added to from several threads.

    Attributes
    ----------
    requests:
        Requests sent, those included that failed or that only asked for size and time.
    nbytes:
        Bytes that came back as bodies of files.
    retries:
        Requests that were sent because one before had failed.
    files:
        Remote files opened.
    """

    requests: int = 0
    nbytes: int = 0
    retries: int = 0
    files: int = 0
    _lock: Any = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, *, requests: int = 0, nbytes: int = 0, retries: int = 0, files: int = 0) -> None:
        with self._lock:
            self.requests += requests
            self.nbytes += nbytes
            self.retries += retries
            self.files += files

    def merge(self, other: RemoteStats) -> None:
        """Add what another process has counted."""
        self.add(requests=other.requests, nbytes=other.nbytes, retries=other.retries, files=other.files)

    # Locks do not travel between processes.
    def __getstate__(self) -> tuple[int, int, int, int]:
        return self.requests, self.nbytes, self.retries, self.files

    def __setstate__(self, state: tuple[int, int, int, int]) -> None:
        self.requests, self.nbytes, self.retries, self.files = state
        self._lock = threading.Lock()


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Bytes of a file from ``start`` on, and its identity, where the answer tells it."""

    start: int
    data: bytes
    source: Source | None = None


class Transport(Protocol):
    """How ranges of one file are asked for. Runs on fsspec's event loop.

    ``tells_identity``: whether every answer says which version of the file it is of. ``many``: whether one request may
    ask for several ranges; None until it has been tried. ``gap``: ranges nearer than this many bytes are better read
    with what lies between them. ``one_at_a_time``: requests do not overlap.
    """

    tells_identity: bool
    many: bool | None
    gap: int
    one_at_a_time: bool = False

    async def get(self, start: int, stop: int, /) -> Answer:
        """Bytes ``[start, stop)``, fewer where the file ends before."""
        ...

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        """Pieces that hold at least the ranges asked for; raises :class:`MultipartError` if they cannot be had so."""
        ...

    async def info(self) -> Source:
        """What the file is now."""
        ...

    def close(self) -> None:
        """Close what is kept open; it may be used again."""
        return
