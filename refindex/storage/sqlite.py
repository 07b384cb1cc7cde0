"""Manifests as one SQLite file: the same relations, indexed for single look-ups.

Rows are stamped with the version that added them and the one that removed them, so that a reader
is pinned to the version that it opened.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.errors import ExistsError, FormatError, ManifestError, NotFoundError
from refindex.model.chunks import INLINE, ChunkTable
from refindex.model.manifest import FORMAT_VERSION, Manifest, Node, ScanReport, Source
from refindex.model.zarr_v3 import dumps
from refindex.storage import tables

MAGIC = b"SQLite format 3\0"
APPLICATION_ID = 0x52454649
"""``REFI`` in the file header, by which file(1) and refindex know a manifest."""

_SCHEMA = """
CREATE TABLE version (version INTEGER PRIMARY KEY, timestamp INTEGER NOT NULL, operation TEXT NOT NULL);
CREATE TABLE node (
    id INTEGER PRIMARY KEY, path TEXT NOT NULL, document TEXT NOT NULL, encodings TEXT, attribute_types TEXT,
    added INTEGER NOT NULL, removed INTEGER, UNIQUE (path, added));
CREATE TABLE source (
    source INTEGER NOT NULL, url TEXT NOT NULL, size INTEGER NOT NULL, mtime INTEGER, etag TEXT,
    added INTEGER NOT NULL, removed INTEGER, PRIMARY KEY (source, added)) WITHOUT ROWID;
CREATE TABLE chunk (
    node INTEGER NOT NULL, chunk INTEGER NOT NULL, source INTEGER, "offset" INTEGER, length INTEGER NOT NULL,
    encoding INTEGER, data BLOB, added INTEGER NOT NULL, removed INTEGER,
    PRIMARY KEY (node, chunk, added)) WITHOUT ROWID;
CREATE TABLE report (
    path TEXT NOT NULL, url TEXT NOT NULL, status TEXT NOT NULL, reason TEXT,
    added INTEGER NOT NULL, removed INTEGER);
"""
_BATCH = 500
"""Chunk numbers in one query: below SQLite's least limit on parameters."""


def save(manifest: Manifest, url: str, *, overwrite: bool = False, storage_options: StorageOptions = None) -> int:
    """Write a manifest as one transaction and return its version.

    A new file is made beside its place and linked into it when it is complete.

    Raises
    ------
    ExistsError
        If something is there and ``overwrite`` is not set.
    """
    if not urls.is_local(url):
        return _save_remote(manifest, url, overwrite=overwrite, storage_options=storage_options)
    path = urls.local_path(url)
    base = urls.parent(url)
    if path.exists():
        if not overwrite:
            raise ExistsError(f"{path} exists; pass overwrite=True (--overwrite) for a new version")
        with contextlib.closing(_connect(path, url, write=True)) as db:
            _check_format(db, url, path.stat().st_size)
            return _write(db, manifest, base, url)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with reading(url, "writing"):
            path.parent.mkdir(parents=True, exist_ok=True)
            version = _create(temporary, manifest, base, url)
            os.link(temporary, path)
    except FileExistsError as error:
        raise ExistsError(f"{path} was made by another writer meanwhile; try again") from error
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            temporary.with_name(temporary.name + suffix).unlink(missing_ok=True)
    return version


def _save_remote(manifest: Manifest, url: str, *, overwrite: bool, storage_options: StorageOptions) -> int:
    fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
    with reading(url, "looking at the output"):
        exists = fs.exists(path)
    if exists and not overwrite:
        raise ExistsError(f"{url} exists; pass overwrite=True (--overwrite) to replace it")
    with tempfile.TemporaryDirectory(prefix="refindex-") as folder, reading(url, "writing"):
        local = Path(folder) / "manifest.sqlite"
        version = _create(local, manifest, urls.parent(url), url)
        fs.put_file(os.fspath(local), path)
    return version


def _create(path: Path, manifest: Manifest, base: str, url: str) -> int:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        # Larger pages suit rows that are read in runs; the file is written once, so no journal is needed yet.
        db.executescript(f"PRAGMA page_size=8192; PRAGMA application_id={APPLICATION_ID}; PRAGMA journal_mode=OFF;")
        db.executescript(f"PRAGMA user_version={FORMAT_VERSION};" + _SCHEMA)
        return _write(db, manifest, base, url)


def _write(db: sqlite3.Connection, manifest: Manifest, base: str, url: str) -> int:
    """Replace what the newest version holds, in one transaction."""
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            version = int(db.execute("SELECT coalesce(max(version) + 1, 0) FROM version").fetchone()[0])
            db.execute("INSERT INTO version VALUES (?, ?, ?)", (version, time.time_ns() // 1_000_000, "WRITE"))
            for table in ("node", "source", "chunk", "report"):
                db.execute(f"UPDATE {table} SET removed = ? WHERE removed IS NULL", (version,))
            _insert(db, manifest, base, version)
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        raise ManifestError(f"{urls.display(url)}: SQLite cannot write it: {error}") from error
    return version


def _insert(db: sqlite3.Connection, manifest: Manifest, base: str, version: int) -> None:
    for path, node in manifest.nodes.items():
        types = dumps(dict(node.attribute_types)) if node.attribute_types else None
        row = (path, node.document, tables.encodings_text(node), types, version)
        cursor = db.execute(
            "INSERT INTO node (path, document, encodings, attribute_types, added) VALUES (?, ?, ?, ?, ?)", row
        )
        array = manifest.arrays.get(path)
        if array is not None:
            # What is the same in all rows stands in the statement: a third less time than as parameters.
            db.executemany(
                f"INSERT INTO chunk VALUES ({int(cursor.lastrowid or 0)}, ?, ?, ?, ?, ?, ?, {version}, NULL)",
                _chunk_rows(array.chunks),
            )
    db.executemany(
        "INSERT INTO source VALUES (?, ?, ?, ?, ?, ?, NULL)",
        (
            (number, urls.relative(s.url, base), s.size, s.mtime, s.etag, version)
            for number, s in enumerate(manifest.sources)
        ),
    )
    db.executemany(
        "INSERT INTO report VALUES (?, ?, ?, ?, ?, NULL)",
        (
            (e.path, urls.relative(urls.absolute(e.source), base), str(e.status), e.reason or None, version)
            for e in manifest.report
        ),
    )


def _chunk_rows(table: ChunkTable) -> Iterator[tuple[Any, ...]]:
    """Rows for ``executemany``, made in slices so that a large table never becomes objects all at once."""
    for start in range(0, len(table), tables.ROW_GROUP):
        part = table.take(slice(start, start + tables.ROW_GROUP))
        n = len(part)
        inline = part.source == INLINE
        if inline.any():
            data = [part.inline_bytes(i) if here else None for i, here in enumerate(inline.tolist())]
            source: list[Any] = [None if s == INLINE else s for s in part.source.tolist()]
            offset: list[Any] = [None if s is None else o for s, o in zip(source, part.offset.tolist(), strict=True)]
        else:
            data, source, offset = [None] * n, part.source.tolist(), part.offset.tolist()
        encoding: list[Any] = part.encoding.tolist()
        if (part.encoding < 0).any():
            encoding = [None if e < 0 else e for e in encoding]
        yield from zip(part.chunk.tolist(), source, offset, part.length.tolist(), encoding, data, strict=True)


def _connect(path: Path, url: str, *, write: bool = False) -> sqlite3.Connection:
    if not path.exists():
        raise NotFoundError(f"{urls.display(url)}: no such archive")
    mode = "rw" if write else "ro"
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
        )
    except sqlite3.Error as error:
        raise ManifestError(f"{urls.display(url)}: SQLite cannot open it: {error}") from error
    db.execute("PRAGMA busy_timeout=30000")
    return db


def _check_format(db: sqlite3.Connection, url: str, size: int) -> None:
    where = urls.display(url)
    try:
        application = db.execute("PRAGMA application_id").fetchone()[0]
        written = db.execute("PRAGMA user_version").fetchone()[0]
        pages, page_size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    except sqlite3.Error as error:
        raise ManifestError(f"{where}: not a sound SQLite file: {error}") from error
    if (expected := pages * page_size) > size:
        raise ManifestError(
            f"{where}: truncated: it has {size} bytes of {expected}. Restore it from a copy, or scan again."
        )
    if application != APPLICATION_ID:
        raise ManifestError(f"{where}: an SQLite database, but not a refindex archive")
    if written != FORMAT_VERSION:
        raise ManifestError(
            f"{where}: manifest format {written}; this refindex reads format {FORMAT_VERSION}. Upgrade refindex."
        )


class SQLiteReader:
    """One version of an SQLite manifest; a remote one is downloaded to a temporary file first.

    Raises
    ------
    NotFoundError
        If there is no archive at ``url``, or not this version of it.
    ManifestError
        If it is damaged, or of a newer format.
    """

    def __init__(self, url: str, *, version: int | None = None, storage_options: StorageOptions = None) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._remove_copy: Callable[[], object] | None = None
        if urls.is_local(url):
            path = urls.local_path(url)
        else:
            folder = Path(tempfile.mkdtemp(prefix="refindex-"))
            # Also when nobody closes the reader, and when the interpreter ends.
            self._remove_copy = weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            path = folder / "manifest.sqlite"
            fs, remote = fsspec.core.url_to_fs(url, **(storage_options or {}))
            with reading(url, "downloading"):
                fs.get_file(remote, os.fspath(path))
        self._db = _connect(path, url)
        try:
            _check_format(self._db, url, path.stat().st_size)
            found = [row[0] for row in self._query("SELECT version FROM version ORDER BY version")]
            if not found or (version is not None and version not in found):
                raise NotFoundError(f"{urls.display(url)}: there is no version {version}; versions are {found}")
        except BaseException:
            self.close()
            raise
        self.version: int = found[-1] if version is None else version

    def close(self) -> None:
        self._db.close()
        if self._remove_copy is not None:
            self._remove_copy()

    def __del__(self) -> None:
        if hasattr(self, "_db"):
            self._db.close()

    @property
    def _live(self) -> str:
        return f"added <= {self.version} AND (removed IS NULL OR removed > {self.version})"

    def _query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._db.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise ManifestError(
                f"{urls.display(self.url)} is damaged: {error}. Restore it from a copy, or scan again."
            ) from error

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {path: number for number, path in self._query(f"SELECT id, path FROM node WHERE {self._live}")}

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        rows = self._query(
            f"SELECT path, document, encodings, attribute_types FROM node WHERE {self._live} ORDER BY id"
        )
        nodes = {row[0]: tables.make_node(*row) for row in rows}
        if "" not in nodes:
            raise ManifestError(f"{urls.display(self.url)}: the manifest has no root group")
        return nodes

    @cached_property
    def sources(self) -> Sequence[Source]:
        rows = self._query(f"SELECT source, url, size, mtime, etag FROM source WHERE {self._live}")
        names = ("source", "url", "size", "mtime", "etag")
        return tables.make_sources((dict(zip(names, row, strict=True)) for row in rows), urls.parent(self.url))

    @cached_property
    def report(self) -> ScanReport:
        rows = self._query(f"SELECT path, url, status, reason FROM report WHERE {self._live}")
        names = ("path", "url", "status", "reason")
        return tables.make_report((dict(zip(names, row, strict=True)) for row in rows), urls.parent(self.url))

    def find(self, path: str, chunks: npt.ArrayLike | None = None) -> ChunkTable:
        if path not in self._ids:
            return ChunkTable.empty()
        columns = 'chunk, source, "offset", length, encoding, data'
        where = f"FROM chunk WHERE node = {self._ids[path]} AND {self._live}"
        rows: list[tuple[Any, ...]] = []
        if chunks is None:
            rows = self._query(f"SELECT {columns} {where} ORDER BY chunk")
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
                for start in range(0, len(wanted), _BATCH):
                    batch = wanted[start : start + _BATCH]
                    marks = ",".join("?" * len(batch))
                    rows += self._query(f"SELECT {columns} {where} AND chunk IN ({marks})", batch)
        return self._table(path, rows)

    def _table(self, path: str, rows: list[tuple[Any, ...]]) -> ChunkTable:
        if not rows:
            return ChunkTable.empty()
        try:
            chunk, source, offset, length, encoding, data = zip(*rows, strict=True)
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
            )
        except (FormatError, TypeError, ValueError, OverflowError) as error:
            raise ManifestError(f"{urls.display(self.url)}: references of /{path} are damaged: {error}") from error


def is_archive(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether there is an SQLite file at a URL (of refindex or not: opening tells)."""
    try:
        if urls.is_local(url):
            with urls.local_path(url).open("rb") as file:
                return file.read(len(MAGIC)) == MAGIC
        fs, path = fsspec.core.url_to_fs(url, **(storage_options or {}))
        return bytes(fs.cat_file(path, start=0, end=len(MAGIC))) == MAGIC
    except (OSError, ValueError):
        return False
