"""Checksums of the pages of an SQLite file, computed and compared below SQLite.

SQLite leaves the last bytes of every page to who stores it, if asked to ("reserved bytes"). Here they are: four bytes
drawn for the file, the CRC-32 (little endian) of all before, begun with the number of the page, and a mark (in page 1;
0 elsewhere). So flipped bits, another page in the place of one, and that of another archive are told from what was
written. The pages in a rollback journal have the same, and its header a checksum too.

The mark says that a commit is being written into the file: it is set before the first page, and taken away before the
journal is, when all are there. A file with the mark and without a journal has lost what would undo the commit.

Sources: "Database File Format" of the SQLite documentation, sections 1.3 (header) and 3 (rollback journal).
"""

from __future__ import annotations

import os
import threading
import weakref
import zlib
from collections.abc import Buffer, Callable

import apsw

crc32: Callable[..., int]
try:
    from isal.isal_zlib import crc32
except ImportError:  # there are no wheels for every machine; zlib takes several times as long
    crc32 = zlib.crc32

RESERVED = 12
"""Bytes at the end of every page that are not SQLite's."""

APPLICATION_ID = 0x52454649
"""``REFI`` in the file header, by which file(1) and refindex know a manifest."""

MAGIC = b"SQLite format 3\0"

NAME = "refindex"
"""How SQLite calls this way to its files."""

_PAGE = 512
"""The least page. Of anything but pages, SQLite reads and writes less, and headers of journals in such sectors."""

_HEADER = 28
"""Bytes of a journal's header. Its checksum stands behind them, where SQLite has zeros."""

_MARK = b"\x01\0\0\0"
_NO_MARK = bytes(4)


class PageError(apsw.IOError):
    """A page is not what was written."""

    extendedresult = apsw.SQLITE_IOERR_DATA


class ForeignError(apsw.NotADBError):
    """An SQLite database that is no archive."""

    extendedresult = apsw.SQLITE_NOTADB


def checksum(page: bytes, number: int) -> bytes:
    """The CRC-32 of a page, as it stands at its end."""
    return crc32(memoryview(page)[:-8], number).to_bytes(4, "little")


def stamp(page: Buffer, number: int, salt: bytes, mark: bytes = _NO_MARK) -> bytes:
    """A page with what belongs at its end."""
    body = b"".join((memoryview(page)[:-RESERVED], salt))
    return b"".join((body, crc32(body, number).to_bytes(4, "little"), mark))


class CheckedFiles(apsw.VFS):
    """SQLite's own way to files, with checksums."""

    def __init__(self, name: str = NAME, base: str = "") -> None:
        self._base = base
        self._writing = _Writing()
        super().__init__(name, base=base)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        path = name.filename() if isinstance(name, apsw.URIFilename) else name or ""
        if flags[0] & apsw.SQLITE_OPEN_MAIN_DB:
            return Database(self._base, name, flags, path, self._writing)
        if flags[0] & apsw.SQLITE_OPEN_MAIN_JOURNAL:
            return Journal(self._base, name, flags, self._writing.files.get(path.removesuffix("-journal")))
        return apsw.VFSFile(self._base, name, flags)


class _Writing(threading.local):
    """The files that this thread has locked to write them, or to roll them back, by path: theirs are the journals.

    Who opens a journal is not told, and others in this process may have the same archive open, or the one before.
    """

    def __init__(self) -> None:
        self.files: weakref.WeakValueDictionary[str, Database] = weakref.WeakValueDictionary()


class Database(apsw.VFSFile):
    """The file of an archive."""

    def __init__(
        self, base: str, name: str | apsw.URIFilename | None, flags: list[int], path: str, writing: _Writing
    ) -> None:
        super().__init__(base, name, flags)
        self._path, self._writing = path, writing
        self._salt = b""
        self._marked = 0
        """The size of a page, while the mark is set."""

    def xLock(self, level: int) -> None:  # noqa: N802
        super().xLock(level)
        if level >= apsw.SQLITE_LOCK_RESERVED:
            self._writing.files[self._path] = self

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        # Else SQLite reads large values around its cache, less than whole pages; and commits in other ways.
        other = apsw.SQLITE_IOCAP_SUBPAGE_READ | apsw.SQLITE_IOCAP_SAFE_APPEND | apsw.SQLITE_IOCAP_BATCH_ATOMIC
        return super().xDeviceCharacteristics() & ~other

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        data = super().xRead(amount, offset)
        if amount < _PAGE:
            return data
        number = offset // amount + 1
        if number == 1 and not data.startswith(MAGIC):
            return data  # no SQLite file at all, which SQLite says itself
        if offset % amount or len(data) < amount:
            raise PageError(f"it ends within page {number}")
        if number == 1:
            _check_first(data)
        if checksum(data, number) != data[-8:-4]:
            raise PageError(f"page {number} does not have the checksum that it says")
        if data[-RESERVED:-8] != (self._salt or self.salt(amount)):
            raise PageError(f"page {number} is that of another file")
        return data

    def salt(self, size: int) -> bytes:
        """The bytes drawn for the file, which has pages of a size."""
        if not self._salt:
            self._salt = super().xRead(size, 0)[-RESERVED:-8] if super().xFileSize() else os.urandom(4)
        return self._salt

    def xWrite(self, data: Buffer, offset: int) -> None:  # noqa: N802
        size = len(memoryview(data))
        if size >= _PAGE:
            number = offset // size + 1
            data = stamp(data, number, self.salt(size), _MARK if number == 1 else _NO_MARK)
            if number > 1 and not self._marked and super().xFileSize() >= size:
                super().xWrite(_MARK, size - 4)
            self._marked = size
        super().xWrite(data, offset)

    def _unmark(self) -> None:
        if self._marked:
            super().xWrite(_NO_MARK, self._marked - 4)
            self._marked = 0

    def xSync(self, flags: int) -> None:  # noqa: N802
        self._unmark()
        super().xSync(flags)


def _check_first(page: bytes) -> None:
    """Refuse what is no archive, or has lost its journal."""
    if page[20] != RESERVED:
        if int.from_bytes(page[68:72]) != APPLICATION_ID:
            raise ForeignError("an SQLite database, but not a refindex archive")
        raise PageError(f"page 1 says that pages have {page[20]} bytes for checksums, expected {RESERVED}")
    if page[-4:] != _NO_MARK:
        raise PageError("a commit was interrupted, and the journal is gone that was beside it to undo it")


class Journal(apsw.VFSFile):
    """The rollback journal of an archive.

    SQLite takes a damaged record for the end of the journal: it would leave half a commit behind. In a journal that
    this object has begun, that is right: behind its records there may be those of a writer who was killed before.
    """

    def __init__(
        self, base: str, name: str | apsw.URIFilename | None, flags: list[int], database: Database | None
    ) -> None:
        super().__init__(base, name, flags)
        self._database = database
        self._headers: dict[int, bytes] = {}
        self._nonce = 0
        """What SQLite's own sums of records begin with."""
        self._number, self._page_at, self._sum_at = 0, -1, -1
        """Of the record that is being written: the number of its page, where that is, and where its sum is."""

    def xWrite(self, data: Buffer, offset: int) -> None:  # noqa: N802
        raw = bytes(data)
        if offset == self._page_at:
            self._sum_at = offset + len(raw)
            raw = stamp(raw, self._number, self._salt(len(raw)))
        elif len(raw) >= _PAGE:
            self._headers[offset] = raw[:_HEADER]
        elif len(raw) == 4 and offset != self._sum_at:
            self._number, self._page_at = int.from_bytes(raw), offset + 4
        elif len(raw) == 12 and offset in self._headers:
            # All records are on the disk: the header gets its magic number, and how many they are.
            raw += self._headers[offset][12:]
            raw += crc32(raw).to_bytes(4, "little")
        super().xWrite(raw, offset)

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        data = super().xRead(amount, offset)
        if self._headers:
            return data
        if amount >= _PAGE:
            self._check_record(super().xRead(amount + 8, offset - 4), amount)
        elif amount == 8:
            self._check_header(super().xRead(_HEADER + 4, offset))
        elif amount == 4 and len(data) < 4:
            raise PageError("its journal is truncated")
        return data

    def _salt(self, size: int) -> bytes:
        if self._database is None:
            raise PageError("its journal is that of a file that is not locked")
        return self._database.salt(size)

    def _check_header(self, header: bytes) -> None:
        if len(header) < _HEADER + 4 or not any(header[:12]):
            return  # before the records were on the disk, nothing was written to the file
        if crc32(header[:_HEADER]).to_bytes(4, "little") != header[_HEADER:]:
            raise PageError("the header of its journal does not have the checksum that it says")
        self._nonce = int.from_bytes(header[12:16])

    def _check_record(self, record: bytes, size: int) -> None:
        if len(record) < size + 8:
            raise PageError("its journal is truncated")
        number, page, total = int.from_bytes(record[:4]), record[4:-4], int.from_bytes(record[-4:])
        if (
            checksum(page, number) != page[-8:-4]
            or page[-RESERVED:-8] != self._salt(size)
            or (self._nonce + sum(page[size - 200 : 0 : -200])) & 0xFFFFFFFF != total
        ):
            raise PageError(f"a page of its journal, said to be {number}, is not what was written, or of another file")


_FILES = CheckedFiles()
"""Known to SQLite for as long as it is there."""
