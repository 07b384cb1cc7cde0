"""Copies of a whole version: how its references are read in windows, and how a new file is made of another's."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import apsw
import pyarrow as pa

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.errors import ConflictError, ExistsError, FormatError
from refindex.storage import disk, tables
from refindex.storage.protocol import Copied, damaged
from refindex.storage.sqlite import database, writer
from refindex.storage.sqlite.reader import SQLiteReader

_NONE = (-1, 0)
"""In place of a version and its timestamp, where there is none."""


def batches(reader: SQLiteReader, *, inline: bool) -> Iterator[pa.Table]:
    """The references of the arrays that are inline as a whole, or of all others, sorted by (path, chunk)."""
    return tables.row_groups(
        part
        for path in sorted(path for path, node in reader.nodes.items() if node.is_array)
        if reader.is_inline(path) == inline
        for table in reader.windows(path, tables.ROW_GROUP)
        for part in tables.slices(tables.chunk_table(path, table))
    )


def write(
    url: str,
    content: Copied,
    *,
    overwrite: bool,
    operation: str,
    details: Callable[[], Mapping[str, Any]],
    storage_options: StorageOptions,
) -> int:
    """Make a file with one version, and put it where it belongs as a whole; returns the number of the version.

    Where one was, the numbers go on, so that who has the old one open sees that there is a newer.

    Raises
    ------
    ExistsError
        If something is there and ``overwrite`` is not set.
    ConflictError
        If another writer commits to what is there meanwhile; nothing is changed then.
    """
    after = _there(url, overwrite, storage_options)

    def fill(path: Path) -> None:
        loose = path.with_name(f"{path.name}.loose.tmp")
        try:
            with contextlib.closing(database.create(loose)) as db:
                with database.transaction(db, url):
                    ids = writer.insert_whole(db, content, urls.parent(url), after[0] + 1)
                    for inline in (False, True):
                        for table in content.chunks(inline):
                            _insert(db, table, ids, after[0] + 1)
                    writer.add_version(db, operation, details(), after=after)
                db.execute("VACUUM INTO ?", (os.fspath(path),))  # an eighth smaller: pages are full
        finally:
            loose.unlink(missing_ok=True)

    if not urls.is_local(url):
        fs, path = filesystem(url, storage_options)
        with tempfile.TemporaryDirectory(prefix="refindex-") as folder, reading(url, "writing"):
            made = Path(folder) / "manifest.sqlite"
            fill(made)
            fs.put_file(os.fspath(made), path)
        return after[0] + 1
    place = urls.local_path(url)
    temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
    try:
        with reading(url, "writing"):
            disk.make_folder(place.parent)
            fill(temporary)
            disk.sync(temporary)
            if after == _NONE:
                os.link(temporary, place)
            else:
                _replace(temporary, place, url, after[0])
            disk.sync(place.parent)
    except FileExistsError as error:
        raise ExistsError(f"{place} was made by another writer meanwhile") from error
    finally:
        temporary.unlink(missing_ok=True)
    return after[0] + 1


def _insert(db: apsw.Connection, table: pa.Table, ids: Mapping[str, int], version: int) -> None:
    try:
        for name, chunks in tables.by_path(table).items():
            writer.insert_chunks(db, ids[name], chunks, version)
    except (FormatError, KeyError) as error:
        raise damaged(error) from error


def _there(url: str, overwrite: bool, storage_options: StorageOptions) -> tuple[int, int]:
    """The newest version of what is to be replaced, and its timestamp."""
    fs, path = filesystem(url, storage_options)
    with reading(url, "looking at the output"):
        fs.invalidate_cache()
        exists = fs.exists(path)
    if not exists:
        return _NONE
    if not overwrite:
        raise ExistsError(f"{urls.display(url)} exists; pass overwrite=True (--overwrite) to replace it")
    with contextlib.closing(SQLiteReader(url, storage_options=storage_options)) as reader:  # refuses what is no archive
        newest = reader.history()[0]
    return newest.version, newest.timestamp


def _replace(temporary: Path, place: Path, url: str, version: int) -> None:
    """Put a file in the place of an archive.

    Nobody may be writing it: SQLite finds a journal by the name of its file, and would roll it back into the new one.
    Who waits for the lock meanwhile finds the file gone from its place, and is refused (SQLITE_READONLY_DBMOVED).
    """
    with contextlib.closing(database.connect(place, url, write=True)) as db, database.transaction(db, url):
        found = database.one_row(db, "SELECT max(version) FROM version")[0]
        if found != version:
            raise ConflictError(
                f"{urls.display(url)}: version {found} was committed by another writer meanwhile; nothing was written. "
                "Try again."
            )
        temporary.replace(place)
