"""The SQLite file of a manifest: its schema, how it is opened, and what its errors mean."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.options import filesystem
from refindex.errors import ConflictError, ManifestError, NotFoundError, RefindexError, SourceError
from refindex.model.manifest import FORMAT_VERSION
from refindex.storage.sqlite import pages

BUSY_TIMEOUT = 30.0
"""Seconds to wait for another writer."""

_CACHE = 16 << 20
"""Bytes of pages that a reader keeps: each is checked when it is read again."""

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
    version TEXT, added INTEGER NOT NULL, removed INTEGER, PRIMARY KEY (source, added)) WITHOUT ROWID;
CREATE TABLE chunk (
    node INTEGER NOT NULL, chunk INTEGER NOT NULL, source INTEGER, "offset" INTEGER, length INTEGER NOT NULL,
    encoding INTEGER, checksum INTEGER, added INTEGER NOT NULL, removed INTEGER, data BLOB,
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
    "source": ("source", "url", "size", "mtime", "etag", "version"),
    "chunk": ("node", "chunk", "source", "offset", "length", "encoding", "checksum", "data"),
    "placement": ("number", "dim", "source", "start", "length", "offset"),
    "report": ("number", "path", "url", "status", "reason"),
}
"""The columns of each table but for ``added`` and ``removed``."""


_COMPUTED = """
SELECT min(type || ' ' || name) FROM sqlite_schema
WHERE type NOT IN ('table', 'index') OR sql LIKE '%VIRTUAL%' OR sql LIKE '%GENERATED%' OR sql LIKE '% AS %(%'"""
"""What a database from anyone could have SQLite compute when it is read: without an end, or of any size."""


def names(table: str) -> str:
    """The columns of a table for a statement (``offset`` is a word of SQL)."""
    return ", ".join(f'"{name}"' for name in COLUMNS[table])


def live(version: int) -> str:
    """The condition that selects the rows of a version."""
    return f"added <= {version} AND (removed IS NULL OR removed > {version})"


def one_row(db: apsw.Connection, sql: str, parameters: Sequence[Any] = ()) -> tuple[Any, ...]:
    """The row of a query that has one."""
    rows: list[tuple[Any, ...]] = db.execute(sql, parameters).fetchall()
    return rows[0]


def create(path: Path) -> apsw.Connection:
    """A new database that is not at its place yet, so that it needs no journal."""
    db = apsw.Connection(os.fspath(path), vfs=pages.NAME)
    try:
        reserved = ctypes.c_int(pages.RESERVED)
        db.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(reserved))
        # Larger pages suit rows that are read in runs.
        db.execute("PRAGMA page_size=8192; PRAGMA journal_mode=OFF;").fetchall()
        identity = f"PRAGMA application_id={pages.APPLICATION_ID}; PRAGMA user_version={FORMAT_VERSION};"
        db.execute(f"BEGIN; {identity} {SCHEMA} COMMIT").fetchall()
    except BaseException:
        db.close()
        raise
    return db


def connect(path: Path, url: str, *, write: bool = False) -> apsw.Connection:
    """Open a database.

    Readers open it for writing too, where they may: a journal that a killed writer has left must be rolled back before
    anything is read. They write nothing else.
    """
    if not path.exists():
        raise NotFoundError(f"{urls.display(url)}: no such archive")
    try:
        # SQLite itself would follow a link; what lies between it and the files says that this is an error.
        db = apsw.Connection(os.path.realpath(path), flags=apsw.SQLITE_OPEN_READWRITE, vfs=pages.NAME)
        db.set_busy_timeout(int(BUSY_TIMEOUT * 1000))
        # A transaction that outgrows the cache would lock readers out long before it commits. What is committed is so
        # when the journal is gone: that, too, is brought to the disk.
        writing, reading = (
            "cache_spill=OFF; PRAGMA synchronous=EXTRA",
            f"query_only=ON; PRAGMA cache_size=-{_CACHE >> 10}",
        )
        db.execute(f"PRAGMA {writing if write else reading}").fetchall()
    except apsw.Error as error:
        raise ManifestError(f"{urls.display(url)}: SQLite cannot open it: {error}") from error
    return db


def unreadable(error: apsw.Error | UnicodeError, where: str) -> RefindexError:
    """What SQLite says when it cannot read, as an error of ours."""
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return SourceError(f"{where}: a writer has kept it locked for {BUSY_TIMEOUT:.0f} s. Try again.")
    if isinstance(error, pages.ForeignError):
        return ManifestError(f"{where}: {error}")
    if isinstance(error, apsw.ConnectionClosedError):
        return ManifestError(f"{where}: the archive was closed. Open it again.")
    if isinstance(error, apsw.ReadOnlyError | apsw.CantOpenError):
        return SourceError(
            f"{where}: {error}. If a commit was interrupted, open the archive once where it can be written: that rolls "
            "the commit back."
        )
    if isinstance(error, apsw.IOError) and not isinstance(error, pages.PageError):
        return SourceError(f"{where}: it cannot be read: {error}")
    return ManifestError(f"{where} is damaged: {error}. Restore it from a copy, or scan again.")


def check_format(db: apsw.Connection, url: str, path: Path) -> None:
    """Refuse what is damaged, no manifest, or of a newer format."""
    where = urls.display(url)
    try:
        # In one transaction, as another writer may change the size of the file.
        db.execute("BEGIN")
        try:
            names = ("application_id", "user_version", "page_count", "page_size")
            application, written, n_pages, page_size = (int(db.pragma(name)) for name in names)
            computed = one_row(db, _COMPUTED)[0]
            size = path.stat().st_size
        finally:
            if db.in_transaction:  # SQLite has rolled back where it could not read
                db.execute("ROLLBACK")
    except (apsw.Error, UnicodeError) as error:
        raise unreadable(error, where) from error
    if (expected := n_pages * page_size) > size:
        raise ManifestError(
            f"{where}: truncated: it has {size} bytes of {expected}. Restore it from a copy, or scan again."
        )
    if application != pages.APPLICATION_ID:
        raise ManifestError(f"{where}: an SQLite database, but not a refindex archive")
    if written != FORMAT_VERSION:
        raise ManifestError(
            f"{where}: manifest format {written}; this refindex reads format {FORMAT_VERSION}. Upgrade refindex."
        )
    if computed:
        raise ManifestError(f"{where}: its schema, {computed}, is not of the form that a manifest has")


@contextlib.contextmanager
def writing(url: str) -> Iterator[None]:
    """What SQLite says when it cannot write, as errors of ours.

    Raises
    ------
    ConflictError
        If another writer does not finish for a long time.
    SourceError
        If the disk is full, or fails, or the file may not be written.
    ManifestError
        If it is damaged.
    """
    where = urls.display(url)
    try:
        yield
    except pages.PageError as error:
        raise unreadable(error, where) from error
    except (apsw.BusyError, apsw.LockedError) as error:
        raise ConflictError(
            f"{where}: another process has kept it locked for {BUSY_TIMEOUT:.0f} s; nothing was written. Try again."
        ) from error
    except (apsw.FullError, apsw.IOError, apsw.ReadOnlyError, apsw.CantOpenError) as error:
        raise SourceError(f"{where}: SQLite cannot write it: {error}") from error
    except apsw.Error as error:
        raise ManifestError(f"{where}: SQLite cannot write it: {error}") from error


@contextlib.contextmanager
def transaction(db: apsw.Connection, url: str) -> Iterator[None]:
    """One transaction that writes: all of it or nothing. Errors are those of :func:`writing`."""
    with writing(url):
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            with contextlib.suppress(apsw.Error):
                db.execute("ROLLBACK")
            raise


def is_archive(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether there is an SQLite file at a URL (of refindex or not: opening tells)."""
    try:
        if not urls.is_local(url):
            fs, path = filesystem(url, storage_options)
            return bytes(fs.cat_file(path, start=0, end=len(pages.MAGIC))) == pages.MAGIC
        local = urls.local_path(url)
        return local.is_file() and _begins_as_one(local)
    except (OSError, ValueError):
        return False


def _begins_as_one(path: Path) -> bool:
    """Whether a file is one of SQLite.

    SQLite is asked, and the file not opened beside it: closing it would drop the locks that this process has on it
    (POSIX advisory locks), under a writer in another thread.
    """
    if path.stat().st_size < len(pages.MAGIC) or not os.access(path, os.R_OK):
        return False
    try:
        with contextlib.closing(
            apsw.Connection(os.path.realpath(path), flags=apsw.SQLITE_OPEN_READONLY, vfs=pages.NAME)
        ) as db:
            db.set_busy_timeout(int(BUSY_TIMEOUT * 1000))
            db.execute("PRAGMA schema_version").fetchall()
    except pages.ForeignError:
        return True
    except apsw.Error as error:
        return not isinstance(error, apsw.NotADBError | apsw.CantOpenError)
    return True
