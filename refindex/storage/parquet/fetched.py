"""Remote data files as pyarrow reads them: what it needs is fetched before, in one request."""

from __future__ import annotations

import io
from typing import Any

import fsspec

from refindex.access.failures import explain
from refindex.access.retry import retrying


class Fetched(io.RawIOBase):
    """A remote file of known size, parts of which are in memory.

    A filesystem's own file objects ask the server how large the file is, and read ahead by megabytes; a look-up needs
    neither.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, size: int) -> None:
        super().__init__()
        self._fs, self._path, self._size = fs, path, size
        self._at = 0
        self._start, self._held = 0, b""

    def fetch(self, start: int, stop: int) -> bytes:
        """Bytes of the file, from the server.

        Raises
        ------
        OSError
            If other than these come back, or the request fails.
        """
        # Servers that know no ranges can give the whole, too.
        part = {} if (start, stop) == (0, self._size) else {"start": start, "end": stop}
        try:
            data = bytes(retrying(lambda: self._fs.cat_file(self._path, **part)))
        except OSError:
            raise
        except Exception as error:
            # Packages for HTTP and object stores raise errors of their own.
            raise OSError(" ".join(explain(error)).rstrip()) from error
        if len(data) != stop - start:
            raise OSError(f"expected {stop - start} bytes from {start} on, got {len(data)}")
        return data

    def hold(self, start: int, stop: int) -> None:
        """Fetch a part, and keep it until the next one is held."""
        if not self._has(start, stop):
            self._start, self._held = start, self.fetch(start, stop)

    def _has(self, start: int, stop: int) -> bool:
        return self._start <= start and stop <= self._start + len(self._held)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def read(self, size: int | None = -1) -> bytes:
        stop = self._size if size is None or size < 0 else min(self._size, self._at + size)
        start, self._at = self._at, max(self._at, stop)
        if stop <= start:
            return b""
        if not self._has(start, stop):
            return self.fetch(start, stop)
        return self._held[start - self._start : stop - self._start]

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)
