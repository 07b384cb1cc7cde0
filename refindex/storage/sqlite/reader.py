"""Reading an SQLite manifest."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import apsw
import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.errors import FormatError, ManifestError, NotFoundError
from refindex.model.change import Commit
from refindex.model.chunks import INLINE, UNCHECKED, ChunkTable
from refindex.model.manifest import Node, Placement, ScanReport, Source
from refindex.model.zarr_v3 import loads
from refindex.storage import tables
from refindex.storage.protocol import milliseconds, naming
from refindex.storage.sqlite import database

_BATCH = 500
"""Chunk numbers in one query: below SQLite's least limit on parameters."""


class SQLiteReader:
    """One version of an SQLite manifest; a remote one is downloaded to a temporary file first.

    Raises
    ------
    NotFoundError
        If there is no archive at ``url``, or not this version of it.
    ManifestError
        If it is damaged, or of a newer format.
    """

    def __init__(
        self,
        url: str,
        *,
        version: int | None = None,
        as_of: datetime | None = None,
        storage_options: StorageOptions = None,
    ) -> None:
        self.url = url
        self.version = -1
        self._lock = threading.Lock()
        self._remove_copy: Callable[[], object] | None = None
        if urls.is_local(url):
            path = urls.local_path(url)
        else:
            folder = Path(tempfile.mkdtemp(prefix="refindex-"))
            # Also when nobody closes the reader, and when the interpreter ends.
            self._remove_copy = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            path = folder / "manifest.sqlite"
            fs, remote = filesystem(url, storage_options)
            with reading(url, "downloading"):
                fs.get_file(remote, os.fspath(path))
        self._db = database.connect(path, url)
        try:
            database.check_format(self._db, url, path)
            try:
                self._seen = self._data_version()
            except apsw.Error as error:
                raise database.unreadable(error, urls.display(url)) from error
            self.version = self._choose(version, as_of)
        except BaseException:
            self.close()
            raise

    def _choose(self, version: int | None, as_of: datetime | None) -> int:
        first, last = self._query("SELECT min(version), max(version) FROM version")[0]
        where = urls.display(self.url)
        if last is None:
            raise NotFoundError(f"{where}: there is no version {version}; there are none at all")
        if as_of is not None:
            found = self._query("SELECT max(version) FROM version WHERE timestamp <= ?", (milliseconds(as_of),))[0][0]
            if found is None:
                moment = self._query("SELECT timestamp FROM version WHERE version = ?", (first,))[0][0]
                text = datetime.fromtimestamp(moment / 1000, UTC).isoformat(timespec="milliseconds")
                raise NotFoundError(
                    f"{where}: there is no version as of {as_of.isoformat()}; the first, version {first}, is of {text}"
                )
            return int(found)
        if version is None:
            return int(last)
        if not first <= version <= last:
            raise NotFoundError(
                f"{where}: there is no version {version}; versions are {first} to {last}"
                + (": older ones expired" if 0 <= version < first else "")
            )
        return version

    def close(self) -> None:
        with self._lock:  # SQLite crashes where a connection is closed under a query in another thread
            self._db.close()
        if self._remove_copy is not None:
            self._remove_copy()

    def __del__(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    def _data_version(self) -> int:
        """A number that changes when others change the file."""
        return int(database.one_row(self._db, "PRAGMA data_version")[0])

    def _query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                rows = self._db.execute(sql, parameters).fetchall()
                expired = self._has_expired()
        except (apsw.Error, UnicodeError) as error:
            raise database.unreadable(error, urls.display(self.url)) from error
        if expired:
            raise ManifestError(
                f"{urls.display(self.url)}: a vacuum has removed version {self.version}, which is read. Open a newer "
                "one."
            )
        return rows

    def _has_expired(self) -> bool:
        """Whether the rows of this version may have gone under a query: looked at behind it, so that none was lost."""
        if self.version < 0 or (seen := self._data_version()) == self._seen:
            return False
        expired = not self._db.execute("SELECT 1 FROM version WHERE version = ?", (self.version,)).fetchall()
        if not expired:
            # An expired version is not to be forgotten: every later query would find no rows, and call them absent.
            self._seen = seen
        return expired

    def _rows(self, table: str, order: str = "") -> list[dict[str, Any]]:
        names = database.COLUMNS[table]
        rows = self._query(f"SELECT {database.names(table)} FROM {table} WHERE {database.live(self.version)} {order}")
        return [dict(zip(names, row, strict=True)) for row in rows]

    def history(self) -> list[Commit]:
        """All versions, the newest first."""
        rows = self._query("SELECT version, timestamp, operation, details FROM version ORDER BY version DESC")
        try:
            return [
                Commit(version=version, timestamp=timestamp, operation=operation, details=loads(details, "details"))
                for version, timestamp, operation, details in rows
            ]
        except FormatError as error:
            raise ManifestError(f"{urls.display(self.url)} is damaged: {error}") from error

    @cached_property
    def _ids(self) -> dict[str, int]:
        live = database.live(self.version)
        return {path: number for number, path in self._query(f"SELECT id, path FROM node WHERE {live}")}

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        rows = self._rows("node", "ORDER BY position")
        with naming(self.url):
            nodes = {
                row["path"]: tables.make_node(**{k: v for k, v in row.items() if k not in ("id", "position")})
                for row in rows
            }
        if "" not in nodes:
            raise ManifestError(f"{urls.display(self.url)}: the manifest has no root group")
        return nodes

    @cached_property
    def sources(self) -> Sequence[Source]:
        with naming(self.url):
            return tables.make_sources(self._rows("source"), urls.parent(self.url))

    @cached_property
    def placements(self) -> Sequence[Placement]:
        with naming(self.url):
            return tables.make_placements(self._rows("placement"))

    @cached_property
    def report(self) -> ScanReport:
        with naming(self.url):
            return tables.make_report(self._rows("report"), urls.parent(self.url))

    def find(self, path: str, chunks: npt.ArrayLike | None = None, *, start: int = 0) -> ChunkTable:
        if path not in self._ids:
            return ChunkTable.empty()
        columns = 'chunk, source, "offset", length, encoding, checksum, data'
        where = f"FROM chunk WHERE node = {self._ids[path]} AND {database.live(self.version)}"
        rows: list[tuple[Any, ...]] = []
        if chunks is None:
            rows = self._query(f"SELECT {columns} {where} AND chunk >= ? ORDER BY chunk", (start,))
        else:
            wanted = [int(c) for c in np.asarray(chunks, dtype=np.int64).reshape(-1)]
            if len(wanted) > 1 and wanted[-1] - wanted[0] < 4 * len(wanted):
                # A run of chunks is one range of the primary key.
                rows = self._query(
                    f"SELECT {columns} {where} AND chunk BETWEEN ? AND ? ORDER BY chunk",
                    (wanted[0], wanted[-1]),
                )
                if len(rows) > len(wanted):
                    keep = set(wanted)
                    rows = [row for row in rows if row[0] in keep]
            else:
                for begin in range(0, len(wanted), _BATCH):
                    batch = wanted[begin : begin + _BATCH]
                    marks = ",".join("?" * len(batch))
                    rows += self._query(f"SELECT {columns} {where} AND chunk IN ({marks})", batch)
        return self._table(path, rows)

    def is_inline(self, path: str) -> bool:
        """Whether all chunks of an array are in the manifest itself."""
        where = f"node = {self._ids[path]} AND {database.live(self.version)} AND source IS NOT NULL"
        return not self._query(f"SELECT 1 FROM chunk WHERE {where} LIMIT 1")

    def windows(self, path: str, rows: int) -> Iterator[ChunkTable]:
        """The references of an array, so many at a time."""
        columns = 'chunk, source, "offset", length, encoding, checksum, data'
        where = f"FROM chunk WHERE node = {self._ids[path]} AND {database.live(self.version)}"
        last = -1
        while True:
            sql = f"SELECT {columns} {where} AND chunk > ? ORDER BY chunk LIMIT ?"
            table = self._table(path, self._query(sql, (last, rows)))
            if not len(table):
                return
            yield table
            last = int(table.chunk[-1])

    def count(self) -> int:
        """How many references there are."""
        return int(self._query(f"SELECT count(*) FROM chunk WHERE {database.live(self.version)}")[0][0])

    def _table(self, path: str, rows: Sequence[tuple[Any, ...]]) -> ChunkTable:
        try:
            return make_table(rows)
        except (FormatError, TypeError, ValueError, OverflowError) as error:
            raise ManifestError(f"{urls.display(self.url)}: references of /{path} are damaged: {error}") from error


def make_table(rows: Sequence[tuple[Any, ...]]) -> ChunkTable:
    """References from rows of ``chunk, source, offset, length, encoding, checksum, data``.

    Raises
    ------
    FormatError, TypeError, ValueError, OverflowError
        If they contradict each other.
    """
    if not rows:
        return ChunkTable.empty()
    chunk, source, offset, length, encoding, checksum, data = zip(*rows, strict=True)
    inline = np.array([s is None for s in source], dtype=bool)
    blob = b"".join(d or b"" for d in data)
    sizes = np.array([-1 if d is None else len(d) for d in data], dtype=np.int64)
    if np.any((sizes >= 0) != inline) or np.any(sizes[inline] != np.array(length, dtype=np.int64)[inline]):
        raise FormatError("an inline chunk has no data, other data than its length says, or a source too")
    starts = np.cumsum(np.maximum(sizes, 0)) - np.maximum(sizes, 0)
    return ChunkTable.from_columns(
        chunk=chunk,
        source=[INLINE if s is None else s for s in source],
        offset=np.where(inline, starts, np.array([0 if o is None else o for o in offset], dtype=np.int64)),
        length=length,
        encoding=[-1 if e is None else e for e in encoding],
        data=blob,
        checksum=[UNCHECKED if c is None else c for c in checksum],
    )
