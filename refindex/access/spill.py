"""References outside of memory: columns in temporary files, mapped when they are read.

A hundred million references are 3.2 GB of columns. What holds so many keeps them in files, of which the operating
system has in memory what it has room for.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

from refindex.errors import SourceError
from refindex.model.chunks import INLINE, UNCHECKED, WINDOW, ChunkTable

COLUMNS: dict[str, np.dtype[Any]] = {
    "chunk": np.dtype("<i8"),
    "source": np.dtype("<i4"),
    "offset": np.dtype("<i8"),
    "length": np.dtype("<i8"),
    "encoding": np.dtype("<i4"),
    "checksum": np.dtype("<i8"),
}
"""Columns, each in a file of its own, and what their files hold. Where a table has no checksums, there is a hole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """Where a table lies in the files: its rows, and the bytes of its inline chunks; whether it has checksums."""

    first: int
    count: int
    data: int = 0
    nbytes: int = 0
    checked: bool = False


class SpilledColumns:
    """Tables, one after the other, in temporary files: one a column, and one for inline bytes.

    The files go with the last table that is mapped from them.

    Raises
    ------
    SourceError
        Here and in all methods, if the files cannot be written or read.
    """

    def __init__(self) -> None:
        self._pages: _Pages | None = None
        self.files: dict[str, IO[bytes]] = {}
        self.rows = self.nbytes = 0
        try:
            for name in (*COLUMNS, "data"):
                self.files[name] = tempfile.TemporaryFile(prefix="refindex-")  # noqa: SIM115
        except OSError as error:
            self.close()
            raise _failed(error) from error

    def append(self, table: ChunkTable) -> Extent:
        """Write the rows of a table behind those that are there.

        Offsets of inline chunks are kept as they are: they count from the beginning of the table's own bytes.
        """
        checked = table.checksum is not None
        extent = Extent(first=self.rows, count=len(table), data=self.nbytes, nbytes=len(table.data), checked=checked)
        try:
            for name, dtype in COLUMNS.items():
                if name == "checksum" and not checked:
                    self._skip(name, (self.rows + len(table)) * dtype.itemsize)
                    continue
                column = np.ascontiguousarray(getattr(table, name), dtype=dtype)
                self.files[name].write(memoryview(column).cast("B") if len(column) else b"")
            self.files["data"].write(table.data)
        except OSError as error:
            raise _failed(error) from error
        self.rows += extent.count
        self.nbytes += extent.nbytes
        return extent

    def _skip(self, name: str, end: int) -> None:
        """Leave a hole up to an offset: what is written next comes behind it."""
        file = self.files[name]
        file.flush()
        file.truncate(end)
        file.seek(end)

    def append_all(self, tables: Iterable[ChunkTable]) -> Extent:
        """Write tables that are parts of one, in the order of their chunk numbers."""
        first, data, checked = self.rows, self.nbytes, False
        for table in tables:
            before = self.nbytes - data
            offset = table.offset
            if len(table.data) and before:
                offset = np.where(table.source == INLINE, offset + before, offset)
            checksum = table.checksum
            if checksum is not None and not checked:
                checked = True
                self._fill_hole(first)
            elif checksum is None and checked:
                checksum = np.full(len(table), UNCHECKED)
            self.append(replace(table, offset=offset, checksum=checksum))
        return Extent(first=first, count=self.rows - first, data=data, nbytes=self.nbytes - data, checked=checked)

    def _fill_hole(self, first: int) -> None:
        """Say of the rows from one on that they have no checksum."""
        itemsize = COLUMNS["checksum"].itemsize
        try:
            self.files["checksum"].seek(first * itemsize)
            for start in range(first, self.rows, WINDOW):
                some = np.full(min(WINDOW, self.rows - start), UNCHECKED, dtype=COLUMNS["checksum"])
                self.files["checksum"].write(memoryview(some).cast("B"))
        except OSError as error:
            raise _failed(error) from error

    def flush(self) -> None:
        """Hand what was written to the operating system."""
        try:
            for file in self.files.values():
                file.flush()
        except OSError as error:
            raise _failed(error) from error

    def _bytes(self, name: str, first: int, count: int, itemsize: int) -> bytes:
        parts: list[bytes] = []
        at, left = first * itemsize, count * itemsize
        while left:
            part = os.pread(self.files[name].fileno(), left, at)
            if not part:
                raise OSError(f"the file of column {name} is cut: {left} bytes are missing at {at}")
            parts.append(part)
            at, left = at + len(part), left - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def table(self, extent: Extent) -> ChunkTable:
        """A table, its columns mapped: they come from the files as they are looked at.

        All tables that are asked for after the last one was written share their maps (and the files that these keep
        open).
        """
        if not extent.count:
            return ChunkTable.empty()
        try:
            if self.rows < extent.first + extent.count:
                raise OSError(f"the files have {self.rows} rows, not {extent.first + extent.count}")
            if self._pages is None or self._pages.rows < extent.first + extent.count:
                self.flush()
                self._pages = _Pages(self.files, self.rows)
            rows = slice(extent.first, extent.first + extent.count)
            columns: dict[str, Any] = {name: column[rows] for name, column in self._pages.columns.items()}
            if not extent.checked:
                del columns["checksum"]
            data = self._bytes("data", extent.data, extent.nbytes, 1)
        except OSError as error:
            raise _failed(error) from error
        return ChunkTable(**columns, data=data, pages=self._pages)

    def close(self) -> None:
        """Close the files; what is mapped stays."""
        for file in self.files.values():
            file.close()


def _failed(error: OSError) -> SourceError:
    where = tempfile.gettempdir()
    return SourceError(
        f"{where}: references cannot be kept here: {error.strerror or error}; TMPDIR says where temporary files go"
    )


class _Pages:
    """The columns in the first ``rows`` rows of the files, mapped."""

    def __init__(self, files: Mapping[str, IO[bytes]], rows: int) -> None:
        self.rows = rows
        self._maps = {
            name: mmap.mmap(files[name].fileno(), rows * dtype.itemsize, access=mmap.ACCESS_READ)
            for name, dtype in COLUMNS.items()
        }
        self.columns = {
            name: np.frombuffer(self._maps[name], dtype=dtype, count=rows) for name, dtype in COLUMNS.items()
        }

    def release(self) -> None:
        """Let go of the memory that looking at them took; they can be looked at again."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)
