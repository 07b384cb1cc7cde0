"""Stores in zip files: members that are stored as they are become ranges of the file.

The central directory (PKWARE APPNOTE 6.3.10, 4.3.12) gives the offset of a member's local header; its data begins
behind that header (4.3.7), whose length the directory does not give. Where a member's header, name and data fill the
room up to the next member exactly, there is nothing else in it and the offset is known; other headers are read.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.access.files import LocalFile, RangeReader, StorageOptions, open_reader, reading
from refindex.access.gather import RangeGatherer, Ranges
from refindex.access.options import filesystem
from refindex.errors import FormatError, UnsupportedError
from refindex.model.manifest import Source
from refindex.scan.zarr.folder import complete
from refindex.scan.zarr.listing import MARKERS, NO_TIME, IntArray, Listing, Rows

SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
"""A local header, or the end of an empty zip file (4.3.7, 4.3.16)."""

_HEADER = 30
_ENCRYPTED = 0x1
_BUFFER = 1 << 16
_MAX_INFLATED = 1 << 28

# What zipfile raises for damaged files, as fuzzing it shows.
_ZIP_ERRORS = (
    zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError, EOFError, KeyError, IndexError, OSError,
    RuntimeError, MemoryError, zipfile.LargeZipFile,
)  # fmt: skip


class _RangeFile(io.RawIOBase):
    """A reader of ranges as the file that :mod:`zipfile` wants."""

    def __init__(self, read: Callable[[int, int], bytes], size: int) -> None:
        self._read, self._size, self._at = read, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise OSError(f"cannot go to offset {at}")
        self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        data = self._read(self._at, max(0, min(len(view), self._size - self._at)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class ZipStore:
    """A store in one zip file."""

    def __init__(self, source: Source, storage_options: StorageOptions = None) -> None:
        self.url = source.url
        self.whole: Source | None = source
        self._size = source.size
        self._where = urls.display(source.url)
        self._reader: RangeReader = open_reader(source.url, storage_options)
        self._options = storage_options
        file = io.BufferedReader(_RangeFile(self._reader.read, source.size), buffer_size=_BUFFER)
        with reading(source.url, "reading its directory"):
            try:
                self._zip = zipfile.ZipFile(file)
            except _ZIP_ERRORS as error:
                raise FormatError(f"{self._where}: not a sound zip file: {error}") from error
        # Of members of the same name the last one counts, as for every reader.
        members = [m for m in self._zip.NameToInfo.values() if not m.is_dir()]
        members.sort(key=lambda m: m.filename)
        self._members = members
        self.listing = Listing.of(
            [m.filename for m in members], [m.file_size for m in members], [NO_TIME] * len(members)
        )
        if not any(name.rpartition("/")[2] in MARKERS for name in self.listing.names):
            raise FormatError(f"{self._where}: a zip file without Zarr metadata in it")
        self._stored = np.array(
            [m.compress_type == zipfile.ZIP_STORED and not m.flag_bits & _ENCRYPTED for m in members], dtype=bool
        )
        self._data = self._locate()

    def _locate(self) -> IntArray:
        """Offset of the data of each member that is stored as it is, else -1."""
        members, n = self._members, len(self._members)
        start = np.array([m.header_offset for m in members], dtype=np.int64)
        length = np.array([m.compress_size for m in members], dtype=np.int64)
        # Archives of several members of one name have more headers than names.
        every = sorted({m.header_offset for m in self._zip.infolist()} | {self._zip.start_dir})
        bounds = np.array(every, dtype=np.int64)
        after = bounds[np.minimum(np.searchsorted(bounds, start, side="right"), len(bounds) - 1)]
        names = np.array([len(m.orig_filename.encode("utf-8", "replace")) for m in members], dtype=np.int64)
        utf8 = np.array([m.flag_bits & 0x800 != 0 or m.orig_filename.isascii() for m in members], dtype=bool)
        exact = utf8 & (start + _HEADER + names + length == after)
        data = np.where(exact, start + _HEADER + names, -1)
        rest = np.flatnonzero(self._stored & ~exact)
        if len(rest):
            gatherer = RangeGatherer(self._read_ranges, name=self._where, size=self._size)
            headers = gatherer.gather([Ranges(offsets=start[rest], length=_HEADER)])[0]
            if not np.all(headers[:, :4] == np.frombuffer(SIGNATURES[0], dtype=np.uint8)):
                raise FormatError(f"{self._where}: its directory names members where none are; it is damaged")
            # 4.3.7: lengths of the name and of the extra field are the last two numbers of the header.
            lengths = np.ascontiguousarray(headers[:, 26:30]).view("<u2").astype(np.int64)
            data[rest] = start[rest] + _HEADER + lengths.sum(axis=1)
        data[~self._stored] = -1
        held = np.flatnonzero(self._stored)
        wrong = (data[held] + length[held] > self._size) | (length[held] != self.listing.size[held])
        if n and np.any(wrong):
            name = self.listing.names[int(held[wrong][0])]
            raise FormatError(f"{self._where}: member {name!r} reaches beyond the file, or has two lengths")
        return data

    def _read_ranges(self, offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        with reading(self.url, f"reading {len(offsets)} ranges"):
            if isinstance(self._reader, LocalFile):
                found = [self._reader.read(a, n) for a, n in zip(offsets, lengths, strict=True)]
            else:
                fs, path = filesystem(self.url, self._options)
                stops = [a + n for a, n in zip(offsets, lengths, strict=True)]
                found = fs.cat_ranges([path] * len(offsets), list(offsets), stops, on_error="raise")
        return [complete(bytes(d), n, self.url) for d, n in zip(found, lengths, strict=True)]

    def offsets(self, rows: IntArray) -> IntArray:
        return self._data[rows]

    def sources(self, rows: IntArray) -> list[Source]:
        raise TypeError(f"the {len(rows)} members of a zip file are no sources of their own")

    def read(self, rows: Rows, starts: Rows, lengths: Rows) -> list[bytes]:
        out: list[bytes] = [b""] * len(rows)
        direct = [i for i, row in enumerate(rows) if self._data[row] >= 0]
        found = self._read_ranges(
            [int(self._data[rows[i]]) + int(starts[i]) for i in direct], [int(lengths[i]) for i in direct]
        )
        for i, data in zip(direct, found, strict=True):
            out[i] = data
        for i in set(range(len(rows))).difference(direct):
            start, stop = int(starts[i]), int(starts[i]) + int(lengths[i])
            out[i] = complete(self._inflate(int(rows[i]), stop)[start:], stop - start, self.url)
        return out

    def _inflate(self, row: int, stop: int) -> bytes:
        member = self._members[row]
        if member.flag_bits & _ENCRYPTED:
            raise UnsupportedError(f"{self._where}: member {member.filename!r} is encrypted")
        if stop > _MAX_INFLATED:
            raise UnsupportedError(f"{self._where}: compressed member {member.filename!r} of {stop} bytes or more")
        with reading(self.url, f"reading {member.filename}"):
            try:
                with self._zip.open(member) as file:
                    return file.read(stop)
            except (*_ZIP_ERRORS, zlib.error) as error:
                raise FormatError(f"{self._where}: member {member.filename!r}: {error}") from error
