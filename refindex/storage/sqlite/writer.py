"""Commits to an SQLite manifest: one transaction each, which writes what changes and nothing else."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.errors import ConflictError, ExistsError, FormatError, ManifestError, NotFoundError, UnsupportedError
from refindex.model.change import Change, Content
from refindex.model.chunks import INLINE, UNCHECKED, ChunkTable, joined_checksums
from refindex.model.manifest import Manifest, Node, Placement, ReportEntry, Source
from refindex.model.zarr_v3 import dumps
from refindex.storage import disk, tables
from refindex.storage.protocol import Copied, Removed, first_kept
from refindex.storage.sqlite import database
from refindex.storage.sqlite.reader import make_table

TABLES = tuple(database.COLUMNS)
_ARRAYS = 1 << 32
"""``position`` of the first array: behind all groups, so that new groups fit before it."""


def commit(
    url: str,
    content: Content,
    *,
    base: int | None,
    operation: str,
    details: Mapping[str, Any],
    storage_options: StorageOptions = None,
) -> int:
    """Commit on top of a version, as :func:`refindex.storage.commit` says."""
    if base is None:
        if not isinstance(content, Manifest):
            raise UnsupportedError(f"{urls.display(url)}: a new archive needs a whole manifest, not a change")
        return _create(url, content, operation, details, storage_options)
    with _open(url, "changed") as db, database.transaction(db, url):
        newest = _newest(db, url)
        if newest != base:
            raise ConflictError(
                f"{urls.display(url)}: version {newest} is there, and the change was made from version {base}; nothing "
                "was written. Read the newest version and try again."
            )
        version = add_version(db, operation, details)
        if isinstance(content, Manifest):
            _replace(db, content, urls.parent(url), version)
        else:
            _apply(db, content, urls.parent(url), version)
    return version


@contextlib.contextmanager
def _open(url: str, what: str) -> Iterator[apsw.Connection]:
    if not urls.is_local(url):
        raise UnsupportedError(f"{url}: SQLite on remote storage cannot be {what}: save it as Parquet instead")
    path = urls.local_path(url)
    with contextlib.closing(database.connect(path, url, write=True)) as db:
        database.check_format(db, url, path)
        yield db


def _newest(db: apsw.Connection, url: str) -> int:
    found = database.one_row(db, "SELECT max(version) FROM version")[0]
    if found is None:
        raise ManifestError(f"{urls.display(url)}: it has no version. Restore it from a copy, or scan again.")
    return int(found)


def newest_version(url: str) -> int:
    """The newest version of a local archive."""
    path = urls.local_path(url)
    with contextlib.closing(database.connect(path, url)) as db:
        database.check_format(db, url, path)
        try:
            return _newest(db, url)
        except apsw.Error as error:
            raise database.unreadable(error, urls.display(url)) from error


def _create(
    url: str, manifest: Manifest, operation: str, details: Mapping[str, Any], storage_options: StorageOptions
) -> int:
    """Make a new file beside its place, and link it there when it is complete."""
    if not urls.is_local(url):
        return replace_remote(url, manifest, operation, details, overwrite=False, storage_options=storage_options)
    path = urls.local_path(url)
    if path.exists():
        raise ExistsError(f"{path} exists; pass overwrite=True (--overwrite) for a new version")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with reading(url, "writing"):
            disk.make_folder(path.parent)
            _fill(temporary, manifest, url, operation, details)
            os.link(temporary, path)
            disk.sync(path.parent)
    except FileExistsError as error:
        raise ExistsError(f"{path} was made by another writer meanwhile") from error
    finally:
        temporary.unlink(missing_ok=True)
    return 0


def replace_remote(
    url: str,
    manifest: Manifest,
    operation: str,
    details: Mapping[str, Any],
    *,
    overwrite: bool,
    storage_options: StorageOptions,
) -> int:
    """Put a whole new file to remote storage; it has one version."""
    fs, path = filesystem(url, storage_options)
    with reading(url, "looking at the output"):
        exists = fs.exists(path)
    if exists and not overwrite:
        raise ExistsError(f"{url} exists; pass overwrite=True (--overwrite) to replace it")
    with tempfile.TemporaryDirectory(prefix="refindex-") as folder, reading(url, "writing"):
        local = Path(folder) / "manifest.sqlite"
        _fill(local, manifest, url, operation, details)
        fs.put_file(os.fspath(local), path)
    return 0


def _fill(path: Path, manifest: Manifest, url: str, operation: str, details: Mapping[str, Any]) -> None:
    with contextlib.closing(database.create(path)) as db, database.transaction(db, url):
        version = add_version(db, operation, details)
        _replace(db, manifest, urls.parent(url), version)


def add_version(
    db: apsw.Connection, operation: str, details: Mapping[str, Any], *, after: tuple[int, int] = (-1, 0)
) -> int:
    """Add the next version; in a new file the one after a version with a timestamp."""
    last, timestamp = database.one_row(
        db, "SELECT coalesce(max(version), ?), coalesce(max(timestamp), ?) FROM version", after
    )
    now = max(time.time_ns() // 1_000_000, timestamp + 1)
    db.execute("INSERT INTO version VALUES (?, ?, ?, ?)", (last + 1, now, operation, dumps(dict(details))))
    return int(last) + 1


def insert_whole(db: apsw.Connection, content: Copied, base: str, version: int) -> dict[str, int]:
    """Write all but the references of a version into a new file; the ids of the nodes by path."""
    ids = _write_nodes(db, content.nodes, version)
    _insert(db, "source", _source_rows(content.sources, base, 0), version)
    _insert(db, "placement", _placement_rows(content.placements, 0), version)
    _insert(db, "report", _report_rows(content.report, base, 0), version)
    return ids


def _replace(db: apsw.Connection, manifest: Manifest, base: str, version: int) -> None:
    """Write a whole manifest in place of all there was; rows that are the same stay."""
    ids = _write_nodes(db, manifest.nodes, version)
    for path, array in manifest.arrays.items():
        where = f"FROM chunk WHERE node = {ids[path]} AND removed IS NULL"
        columns = 'chunk, source, "offset", length, encoding, checksum, data'
        try:
            old = make_table(db.execute(f"SELECT {columns} {where} ORDER BY chunk").fetchall())
        except (FormatError, TypeError, ValueError, OverflowError) as error:
            raise ManifestError(f"references of /{path} are damaged: {error}") from error
        same = _same_rows(old, array.chunks)
        if same < len(old):
            _drop(db, ids[path], int(old.chunk[same]), version)
        insert_chunks(db, ids[path], array.chunks.take(slice(same, None)), version)
    for table, rows in (
        ("source", _source_rows(manifest.sources, base, 0)),
        ("placement", _placement_rows(manifest.placements, 0)),
        ("report", _report_rows(manifest.report, base, 0)),
    ):
        _replace_rows(db, table, list(rows), version)


def _same_rows(one: ChunkTable, other: ChunkTable) -> int:
    """How many rows at the start of two tables are the same."""
    n = min(len(one), len(other))
    if not n:
        return 0
    inline = one.source[:n] == INLINE
    same = (one.offset[:n] == other.offset[:n]) | inline
    for name in ("chunk", "source", "length", "encoding"):
        same &= getattr(one, name)[:n] == getattr(other, name)[:n]
    checksums = joined_checksums((one.take(slice(n)), other.take(slice(n))))
    if checksums is not None:
        same &= checksums[:n] == checksums[n:]
    count = n if same.all() else int(np.argmin(same))
    rows = np.flatnonzero(inline[:count]).tolist()
    return next((row for row in rows if one.inline_bytes(row) != other.inline_bytes(row)), count)


def _apply(db: apsw.Connection, change: Change, base: str, version: int) -> None:
    ids = _write_nodes(db, change.nodes, version)
    for path, first in change.dropped.items():
        if path in ids:
            _drop(db, ids[path], first, version)
    for path, table in change.chunks.items():
        insert_chunks(db, ids[path], table, version)
    if change.replace_placements:
        _replace_rows(db, "placement", list(_placement_rows(change.placements, 0)), version)
    else:
        _insert(db, "placement", _placement_rows(change.placements, _count(db, "placement", "number")), version)
    if change.replace_sources:
        _replace_rows(db, "source", list(_source_rows(change.sources, base, 0)), version)
    else:
        _insert(db, "source", _source_rows(change.sources, base, _count(db, "source", "source")), version)
    if change.replace_report:
        _replace_rows(db, "report", list(_report_rows(change.report, base, 0)), version)
    else:
        _insert(db, "report", _report_rows(change.report, base, _count(db, "report", "number")), version)


def _count(db: apsw.Connection, table: str, key: str) -> int:
    """Number of live rows, which are numbered without gaps."""
    row = db.execute(f"SELECT {key} FROM {table} WHERE removed IS NULL ORDER BY {key} DESC LIMIT 1").fetchone()
    return int(row[0]) + 1 if row else 0


def _drop(db: apsw.Connection, node: int, first: int, version: int) -> None:
    db.execute("UPDATE chunk SET removed = ? WHERE node = ? AND chunk >= ? AND removed IS NULL", (version, node, first))


def _insert(db: apsw.Connection, table: str, rows: Iterable[Sequence[Any]], version: int) -> None:
    marks = ", ".join("?" * len(database.COLUMNS[table]))
    db.executemany(
        f"INSERT INTO {table} ({database.names(table)}, added) VALUES ({marks}, {version})",
        rows,
    )


def _replace_rows(db: apsw.Connection, table: str, rows: Sequence[Sequence[Any]], version: int) -> None:
    """Make numbered rows what is live; those that are the same stay."""
    key = database.COLUMNS[table][0]
    old = {row[0]: row for row in db.execute(f"SELECT {database.names(table)} FROM {table} WHERE removed IS NULL")}
    fresh = [row for row in rows if old.get(row[0]) != tuple(row)]
    gone = [row[0] for row in fresh if row[0] in old] + [number for number in old if number >= len(rows)]
    db.executemany(
        f"UPDATE {table} SET removed = {version} WHERE {key} = ? AND removed IS NULL", ((number,) for number in gone)
    )
    _insert(db, table, fresh, version)


def _write_nodes(db: apsw.Connection, nodes: Mapping[str, Node], version: int) -> dict[str, int]:
    """Write the nodes that are not what they were, take away those that are no more; the ids of all by path.

    A path keeps its id over versions, so that references stay where they are when a document changes.
    """
    query = f"SELECT {database.names('node')} FROM node WHERE removed IS NULL"
    old = {row[1]: row for row in db.execute(query)}
    following = int(database.one_row(db, "SELECT coalesce(max(id) + 1, 0) FROM node")[0])
    ids: dict[str, int] = {}
    fresh: list[tuple[Any, ...]] = []
    last = {False: -1, True: _ARRAYS - 1}
    for path, node in nodes.items():
        before = old.get(path)
        if before is not None:
            ids[path] = before[0]
        elif (known := db.execute("SELECT id FROM node WHERE path = ? LIMIT 1", (path,)).fetchone()) is not None:
            ids[path] = known[0]
        else:
            ids[path] = following
            following += 1
        array = node.is_array
        # Where it was, if that is behind the node before it.
        place = (
            before[2] if before is not None and (before[2] >= _ARRAYS) == array and before[2] > last[array] else None
        )
        last[array] = last[array] + 1 if place is None else place
        row = (
            ids[path],
            path,
            last[array],
            node.document,
            tables.encodings_text(node),
            tables.types_text(node),
            tables.joined_text(node),
        )
        if row != before:
            fresh.append(row)
        if not array:
            _drop(db, ids[path], 0, version)
    gone = [(row[0],) for path, row in old.items() if path not in nodes]
    changed = [(row[0],) for row in fresh if row[1] in old]
    db.executemany(f"UPDATE node SET removed = {version} WHERE id = ? AND removed IS NULL", gone + changed)
    db.executemany(f"UPDATE chunk SET removed = {version} WHERE node = ? AND removed IS NULL", gone)
    _insert(db, "node", fresh, version)
    return ids


def _source_rows(sources: Iterable[Source], base: str, first: int) -> Iterator[tuple[Any, ...]]:
    return ((n, urls.relative(s.url, base), s.size, s.mtime, s.etag, s.version) for n, s in enumerate(sources, first))


def _placement_rows(placements: Iterable[Placement], first: int) -> Iterator[tuple[Any, ...]]:
    return ((n, p.dim, p.source, p.start, p.length, p.offset) for n, p in enumerate(placements, first))


def _report_rows(report: Iterable[ReportEntry], base: str, first: int) -> Iterator[tuple[Any, ...]]:
    return (
        (n, e.path, urls.relative(urls.absolute(e.source), base), str(e.status), e.reason or None)
        for n, e in enumerate(report, first)
    )


def insert_chunks(db: apsw.Connection, node: int, table: ChunkTable, version: int) -> None:
    # What is the same in all rows stands in the statement: a third less time than as parameters.
    db.executemany(
        'INSERT INTO chunk (node, chunk, source, "offset", length, encoding, checksum, data, added) '
        f"VALUES ({node}, ?, ?, ?, ?, ?, ?, ?, {version})",
        _chunk_rows(table),
    )


def _chunk_rows(table: ChunkTable) -> Iterator[tuple[Any, ...]]:
    """Rows for ``executemany``, made in slices so that a large table never becomes objects all at once."""
    for rows in table.windows(tables.ROW_GROUP):
        part = table.take(rows)
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
        checksum: list[Any] = [None] * n
        if part.checksum is not None:
            checksum = [None if c == UNCHECKED else c for c in part.checksum.tolist()]
        yield from zip(part.chunk.tolist(), source, offset, part.length.tolist(), encoding, checksum, data, strict=True)


def restore(url: str, version: int) -> int:
    """Make the rows of an old version live again, as :func:`refindex.storage.restore` says."""
    with _open(url, "restored") as db, database.transaction(db, url):
        first, last = database.one_row(db, "SELECT min(version), max(version) FROM version")
        if first is None or not first <= version <= last:
            raise NotFoundError(f"{urls.display(url)}: there is no version {version}; versions are {first} to {last}")
        new = add_version(db, "restore", {"version": version})
        for table in TABLES:
            columns = database.names(table)
            db.execute(
                f"INSERT INTO {table} ({columns}, added) SELECT {columns}, {new} FROM {table} "
                f"WHERE added <= {version} AND removed > {version}"
            )
            db.execute(
                f"UPDATE {table} SET removed = {new} WHERE removed IS NULL AND added > {version} AND added < {new}"
            )
    return new


def vacuum(
    url: str, *, keep_versions: int | None, older_than: timedelta | None, dry_run: bool, grace: timedelta
) -> list[Removed]:
    """Remove versions that expired, and files of writers that were killed, as :func:`refindex.storage.vacuum` says."""
    path = urls.local_path(url)
    removed: list[Removed] = []
    with _open(url, "vacuumed") as db:
        size = path.stat().st_size
        with database.transaction(db, url):
            found: list[Any] = db.execute("SELECT version, timestamp FROM version ORDER BY version").fetchall()
            index = first_kept(len(found), lambda i: found[i][1], keep_versions=keep_versions, older_than=older_than)
            kept = found[index][0] if found else 0
            rows = {
                table: database.one_row(db, f"SELECT count(*), sum(removed <= {kept}) FROM {table}") for table in TABLES
            }
            total, gone = (sum(int(count[i] or 0) for count in rows.values()) for i in (0, 1))
            if index and not dry_run:
                for table in TABLES:
                    db.execute(f"DELETE FROM {table} WHERE removed <= {kept}")
                db.execute("DELETE FROM version WHERE version < ?", (kept,))
        if index:
            if not dry_run:
                with database.writing(url):
                    db.execute("VACUUM")
                nbytes = max(0, size - path.stat().st_size)
            else:
                nbytes = size * gone // max(total, 1)
            what = f"versions {found[0][0]} to {kept - 1}: {gone} rows"
            removed.append(Removed(name=what, nbytes=nbytes))
    before = time.time() - grace.total_seconds()
    for stray in sorted(path.parent.glob(f".{path.name}.*.tmp*")):
        with contextlib.suppress(FileNotFoundError):
            status = stray.stat()
            if status.st_mtime <= before:
                if not dry_run:
                    stray.unlink()
                removed.append(Removed(name=stray.name, nbytes=status.st_size))
    return removed
