"""Bytes of many records, one after the other: in memory as long as they are few, then in a file."""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Buffer, Sequence
from pathlib import Path

from refindex.errors import SourceError
from refindex.model.chunks import Pages

_PENDING = 4 << 20
"""Bytes that wait to be written together."""

_LOOKED_AT = 64 << 20
"""Bytes of the mapped file that may stay in memory before they are let go of."""


class Records:
    """Records by their position.

    Parameters
    ----------
    path:
        A file that they are added to, and that stays. None: memory, and a temporary file once they are many.
    memory:
        Bytes that are kept in memory without a path.

    Raises
    ------
    SourceError
        Here and in all methods, if they cannot be written or read.
    """

    def __init__(self, path: Path | None = None, *, memory: int = 0) -> None:
        self.path, self.size = path, 0
        self._memory = memory
        self._held: dict[int, bytes] | None = {} if path is None else None
        self._pending: deque[bytes] = deque()
        self._written = 0
        self._mapped: _Mapped | None = None
        self._lock = threading.Lock()
        self._file = -1
        if path is not None:
            try:
                self._opened(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
                self.size = self._written = os.fstat(self._file).st_size
            except OSError as error:
                raise self._failed(error) from error

    def _opened(self, file: int) -> None:
        # Whoever has a table looks into the file: it is closed when nobody has one any more.
        self._file = file
        weakref.finalize(self, os.close, file)

    def _failed(self, error: OSError) -> SourceError:
        where = self.path or tempfile.gettempdir()
        hint = "" if self.path else "; TMPDIR says where temporary files go"
        return SourceError(f"{where}: references cannot be kept here: {error.strerror or error}{hint}")

    def append(self, record: bytes) -> int:
        """Add a record, and return its position."""
        at = self.size
        with self._lock:
            self.size += len(record)
            if self._held is not None:
                self._held[at] = record
                if self.size > self._memory:
                    self._spill()
            else:
                self._pending.append(record)
                if self.size - self._written > _PENDING:
                    self._write()
        return at

    def _spill(self) -> None:
        """From memory to a temporary file."""
        try:
            file, name = tempfile.mkstemp(prefix="refindex-")
            os.unlink(name)  # noqa: PTH108 -- it goes when it is closed
            self._opened(file)
        except OSError as error:
            raise self._failed(error) from error
        self._pending, self._held = deque((self._held or {}).values()), None
        self._write()

    def _write(self) -> None:
        while self._pending:
            count = nbytes = 0
            while count < len(self._pending) and nbytes <= _PENDING:
                nbytes += len(self._pending[count])
                count += 1
            some = [self._pending[n] for n in range(count)]
            view, at = memoryview(some[0] if count == 1 else b"".join(some)), self._written
            try:
                while view:
                    done = os.pwrite(self._file, view, at)
                    view, at = view[done:], at + done
            except OSError as error:
                raise self._failed(error) from error
            # Not before all of it is there: what could not be written is written again the next time.
            self._written = at
            for _ in some:
                self._pending.popleft()

    def flush(self, *, durable: bool = False) -> None:
        """Hand what was added to the operating system, or (``durable``) to the disk; in memory, it stays there."""
        with self._lock:
            if self._pending:
                self._write()
            if durable and self._file >= 0:
                try:
                    os.fsync(self._file)
                except OSError as error:
                    raise self._failed(error) from error

    def truncate(self, size: int) -> None:
        """Keep so many bytes, and drop what comes behind them: what a writer left that was killed."""
        self.flush()
        try:
            os.ftruncate(self._file, size)
        except OSError as error:
            raise self._failed(error) from error
        self.size = self._written = size

    def read(self, at: int, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Ranges (offset, bytes) of the record at a position."""
        if self._held is not None:
            record = self._held[at]
            return [record[offset : offset + nbytes] for offset, nbytes in ranges]
        self.flush()
        try:
            return [self._read(at + offset, nbytes) for offset, nbytes in ranges]
        except OSError as error:
            raise self._failed(error) from error

    def _read(self, at: int, nbytes: int) -> bytes:
        parts: list[bytes] = []
        while nbytes:
            part = os.pread(self._file, nbytes, at)
            if not part:
                raise OSError(f"the file is cut: {nbytes} bytes are missing at {at}")
            parts.append(part)
            at, nbytes = at + len(part), nbytes - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def view(self, at: int, nbytes: int) -> tuple[Buffer, Pages | None]:
        """A record in memory, or mapped: it then comes from the file as it is looked at."""
        if not nbytes:
            return b"", None
        if self._held is not None:
            return self._held[at], None
        self.flush()
        with self._lock:
            if self._mapped is None or self._mapped.size < at + nbytes:
                try:
                    self._mapped = _Mapped(self._file, self._written)
                except (OSError, ValueError) as error:
                    raise self._failed(OSError(str(error))) from error
            mapped = self._mapped
        return mapped.view[at : at + nbytes], _Looked(mapped, nbytes)


class _Mapped:
    """The file as memory. A whole archive is mapped once: there is a limit to how many maps a process may have."""

    def __init__(self, file: int, size: int) -> None:
        self.size = size
        self._map = mmap.mmap(file, size, access=mmap.ACCESS_READ)
        self.view = memoryview(self._map)
        self._looked_at = 0

    def looked_at(self, nbytes: int) -> None:
        self._looked_at += nbytes
        if self._looked_at > _LOOKED_AT and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._looked_at = 0


class _Looked:
    """Says, each time a window of a table has been looked at, that its record takes memory."""

    __slots__ = ("_mapped", "_nbytes")

    def __init__(self, mapped: _Mapped, nbytes: int) -> None:
        self._mapped, self._nbytes = mapped, nbytes

    def release(self) -> None:
        self._mapped.looked_at(self._nbytes)
