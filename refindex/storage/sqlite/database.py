"""The SQLite file of a manifest: its schema, how it is opened, and what its errors mean."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.options import filesystem
from refindex.errors import ConflictError, ManifestError, NotFoundError, RefindexError, SourceError
from refindex.model.manifest import FORMAT_VERSION

MAGIC = b"SQLite format 3\0"
APPLICATION_ID = 0x52454649
"""``REFI`` in the file header, by which file(1) and refindex know a manifest."""

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another writer."""

SCHEMA = """
CREATE TABLE version (
    version INTEGER PRIMARY KEY, timestamp INTEGER NOT NULL, operation TEXT NOT NULL, details TEXT NOT NULL);
CREATE TABLE node (
    id INTEGER NOT NULL, path TEXT NOT NULL, position INTEGER NOT NULL, document TEXT NOT NULL, encodings TEXT,
    attribute_types TEXT, joined TEXT, added INTEGER NOT NULL, removed INTEGER, PRIMARY KEY (id, added));
CREATE INDEX node_path ON node (path, id);
CREATE INDEX node_removed ON node (removed, added);
CREATE TABLE source (
    source INTEGER NOT NULL, url TEXT NOT NULL, size INTEGER NOT NULL, mtime INTEGER, etag TEXT,
    added INTEGER NOT NULL, removed INTEGER, PRIMARY KEY (source, added)) WITHOUT ROWID;
CREATE TABLE chunk (
    node INTEGER NOT NULL, chunk INTEGER NOT NULL, source INTEGER, "offset" INTEGER, length INTEGER NOT NULL,
    encoding INTEGER, added INTEGER NOT NULL, removed INTEGER, data BLOB,
    PRIMARY KEY (node, chunk, added)) WITHOUT ROWID;
CREATE TABLE placement (
    number INTEGER NOT NULL, dim TEXT NOT NULL, source INTEGER NOT NULL, start INTEGER NOT NULL,
    length INTEGER NOT NULL, "offset" INTEGER NOT NULL,
    added INTEGER NOT NULL, removed INTEGER, PRIMARY KEY (number, added)) WITHOUT ROWID;
CREATE TABLE report (
    number INTEGER NOT NULL, path TEXT NOT NULL, url TEXT NOT NULL, status TEXT NOT NULL, reason TEXT,
    added INTEGER NOT NULL, removed INTEGER, PRIMARY KEY (number, added)) WITHOUT ROWID;
"""

COLUMNS = {
    "node": ("id", "path", "position", "document", "encodings", "attribute_types", "joined"),
    "source": ("source", "url", "size", "mtime", "etag"),
    "chunk": ("node", "chunk", "source", "offset", "length", "encoding", "data"),
    "placement": ("number", "dim", "source", "start", "length", "offset"),
    "report": ("number", "path", "url", "status", "reason"),
}
"""The columns of each table but for ``added`` and ``removed``."""


def names(table: str) -> str:
    """The columns of a table for a statement (``offset`` is a word of SQL)."""
    return ", ".join(f'"{name}"' for name in COLUMNS[table])


def live(version: int) -> str:
    """The condition that selects the rows of a version."""
    return f"added <= {version} AND (removed IS NULL OR removed > {version})"


def create(path: Path) -> sqlite3.Connection:
    """A new database that is not at its place yet, so that it needs no journal."""
    db = sqlite3.connect(path, isolation_level=None)
    try:
        # Larger pages suit rows that are read in runs.
        db.executescript(f"PRAGMA page_size=8192; PRAGMA application_id={APPLICATION_ID}; PRAGMA journal_mode=OFF;")
        db.executescript(f"PRAGMA user_version={FORMAT_VERSION};" + SCHEMA)
    except BaseException:
        db.close()
        raise
    return db


def connect(path: Path, url: str, *, write: bool = False) -> sqlite3.Connection:
    """Open a database.

    Readers open it for writing too, where they may: a journal that a killed writer has left must be rolled back before
    anything is read. They write nothing else.
    """
    if not path.exists():
        raise NotFoundError(f"{urls.display(url)}: no such archive")
    try:
        db = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=BUSY_TIMEOUT,
        )
    except sqlite3.Error as error:
        raise ManifestError(f"{urls.display(url)}: SQLite cannot open it: {error}") from error
    # A transaction that outgrows the cache would lock readers out long before it commits.
    db.execute("PRAGMA cache_spill=OFF" if write else "PRAGMA query_only=ON")
    return db


def unreadable(error: sqlite3.Error, where: str) -> RefindexError:
    """What SQLite says when it cannot read, as an error of ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return SourceError(f"{where}: a writer has kept it locked for {BUSY_TIMEOUT:.0f} s. Try again.")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
        return SourceError(
            f"{where}: {error}. If a commit was interrupted, open the archive once where it can be written: that rolls "
            "the commit back."
        )
    return ManifestError(f"{where} is damaged: {error}. Restore it from a copy, or scan again.")


def check_format(db: sqlite3.Connection, url: str, path: Path) -> None:
    """Refuse what is damaged, no manifest, or of a newer format."""
    where = urls.display(url)
    try:
        # In one transaction, as another writer may change the size of the file.
        db.execute("BEGIN")
        try:
            application = db.execute("PRAGMA application_id").fetchone()[0]
            written = db.execute("PRAGMA user_version").fetchone()[0]
            pages, page_size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
            size = path.stat().st_size
        finally:
            db.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise unreadable(error, where) from error
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


@contextlib.contextmanager
def transaction(db: sqlite3.Connection, url: str) -> Iterator[None]:
    """One transaction that writes: all of it or nothing.

    Raises
    ------
    ConflictError
        If another writer does not finish for a long time.
    ManifestError
        If SQLite fails.
    """
    where = urls.display(url)
    try:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise ConflictError(
                f"{where}: another process has kept it locked for {BUSY_TIMEOUT:.0f} s; nothing was written. Try again."
            ) from error
        raise ManifestError(f"{where}: SQLite cannot write it: {error}") from error


def is_archive(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether there is an SQLite file at a URL (of refindex or not: opening tells)."""
    try:
        if not urls.is_local(url):
            fs, path = filesystem(url, storage_options)
            return bytes(fs.cat_file(path, start=0, end=len(MAGIC))) == MAGIC
        local = urls.local_path(url)
        return local.is_file() and _begins_as_one(local)
    except (OSError, ValueError):
        return False


def _begins_as_one(path: Path) -> bool:
    """Whether a file is one of SQLite.

    SQLite is asked, and the file not opened beside it: closing it would drop the locks that this process has on it
    (POSIX advisory locks), under a writer in another thread.
    """
    if path.stat().st_size < len(MAGIC) or not os.access(path, os.R_OK):
        return False
    with contextlib.closing(
        sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=BUSY_TIMEOUT)
    ) as db:
        try:
            db.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            return getattr(error, "sqlite_errorcode", 0) & 0xFF not in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN)
    return True
