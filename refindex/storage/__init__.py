"""Manifests on disk and in object stores: Parquet (a Delta Lake table) and SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from types import ModuleType
from typing import Any

import pyarrow as pa

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.errors import ConflictError, ManifestError, NotFoundError
from refindex.model.change import Commit, Content
from refindex.model.manifest import Manifest, ReportEntry, Source
from refindex.storage import parquet, sqlite, tables
from refindex.storage.parquet.writer import newest_or_none
from refindex.storage.protocol import Copied, ManifestReader, MemoryReader, Removed, load

__all__ = [
    "ManifestReader",
    "MemoryReader",
    "Removed",
    "commit",
    "copy",
    "count_references",
    "find_reader",
    "history",
    "is_archive",
    "load",
    "newest_version",
    "open_reader",
    "restore",
    "save",
    "vacuum",
]

SQLITE_SUFFIXES = (".sqlite", ".sqlite3", ".db")

_ATTEMPTS = 10
"""How often a whole manifest is written on top of the newest version, where others commit meanwhile."""

GRACE = timedelta(hours=1)
"""The age at which files that no version names are no longer those of a commit that is under way."""


def save(manifest: Manifest, url: str, *, overwrite: bool = False, storage_options: StorageOptions = None) -> int:
    """Write a manifest: SQLite if the name ends in ``.sqlite`` (``.sqlite3``, ``.db``), else Parquet.

    Returns the version that was committed.

    Raises
    ------
    ExistsError
        If something is there and ``overwrite`` is not set.
    ConflictError
        If others commit all the time.
    """
    url = urls.absolute(url).rstrip("/")
    details = {
        "arrays": len(manifest.arrays),
        "references": manifest.n_references,
        "sources": len(manifest.sources),
    }
    if overwrite and url.endswith(SQLITE_SUFFIXES) and not urls.is_local(url):
        return sqlite.replace_remote(url, manifest, "write", details, overwrite=True, storage_options=storage_options)
    for attempt in range(_ATTEMPTS):
        base = _newest_or_none(url, storage_options) if overwrite else None
        try:
            return commit(url, manifest, base=base, operation="write", details=details, storage_options=storage_options)
        except ConflictError:
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError


def _newest_or_none(url: str, storage_options: StorageOptions) -> int | None:
    """The newest version of what is to be written over, None if nothing is there."""
    if url.endswith(SQLITE_SUFFIXES):
        return sqlite.newest_version(url) if urls.local_path(url).exists() else None
    return newest_or_none(url, storage_options)


def commit(
    url: str,
    content: Content,
    *,
    base: int | None,
    operation: str,
    details: Mapping[str, Any],
    storage_options: StorageOptions = None,
) -> int:
    """Commit a version, and return its number.

    Parameters
    ----------
    content:
        A whole manifest, in place of all there is, or a change of it.
    base:
        The version that the content was made from; None for a new archive.
    operation, details:
        What the log says of the commit, see :class:`~refindex.model.change.Commit`; ``details`` is JSON.

    Raises
    ------
    ConflictError
        If ``base`` is not the newest version any more; nothing is changed then.
    ExistsError
        If ``base`` is None and something is there.
    NotFoundError
        If ``base`` is a version and there is no archive.
    UnsupportedError
        For SQLite on remote storage, which cannot be changed.
    """
    url = urls.absolute(url).rstrip("/")
    storage: ModuleType
    storage = (sqlite if url.endswith(SQLITE_SUFFIXES) else parquet) if base is None else _storage(url, storage_options)
    version: int = storage.commit(
        url, content, base=base, operation=operation, details=details, storage_options=storage_options
    )
    return version


def copy(
    reader: ManifestReader,
    url: str,
    *,
    sources: Sequence[Source] | None = None,
    report: Sequence[ReportEntry] | None = None,
    overwrite: bool = False,
    operation: str,
    details: Mapping[str, Any],
    storage_options: StorageOptions = None,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the version that a reader has as a whole one, and return its number. References are never all in memory.

    Parameters
    ----------
    url:
        Where to: SQLite or Parquet, as for :func:`save`, whatever the reader's storage is.
    sources, report:
        Instead of the reader's: sources of the same number, each the same file as the reader's, elsewhere.
    overwrite:
        Whether an archive that is there gets a new version (Parquet), or is replaced as a whole (SQLite).
    details:
        What the log says of the commit; the numbers of arrays, references and sources are added.
    progress:
        Is called with the references that were written, and how many there are.

    Raises
    ------
    ExistsError
        If something is there and ``overwrite`` is not set.
    ConflictError
        If another writer commits to what is there meanwhile.
    ManifestError
        If the reader's manifest is damaged. In all cases, nothing is changed.
    """
    url = urls.absolute(url).rstrip("/")
    total = count_references(reader)
    done = 0

    def chunks(inline: bool) -> Iterator[pa.Table]:
        nonlocal done
        for table in _batches(reader, inline):
            yield table
            done += len(table)
            if progress is not None:
                progress(done, total)

    def said() -> dict[str, Any]:
        if done != total:
            raise ManifestError(
                f"{urls.display(reader.url)} is damaged: {total} references are listed, {done} are there; nothing was "
                "written. Restore it from a copy, or scan again."
            )
        arrays = sum(node.is_array for node in reader.nodes.values())
        return {"arrays": arrays, "references": total, "sources": len(reader.sources), **details}

    content = Copied(
        nodes=reader.nodes,
        sources=reader.sources if sources is None else sources,
        placements=reader.placements,
        report=reader.report.entries if report is None else report,
        chunks=chunks,
    )
    if url.endswith(SQLITE_SUFFIXES):
        return sqlite.copy.write(
            url, content, overwrite=overwrite, operation=operation, details=said, storage_options=storage_options
        )
    base = newest_or_none(url, storage_options) if overwrite else None
    return parquet.copy.write(
        url, content, base=base, operation=operation, details=said, storage_options=storage_options
    )


def count_references(reader: ManifestReader) -> int:
    """How many references a reader has."""
    if isinstance(reader, parquet.ParquetReader):
        return sum(file.rows for file in reader.files("chunk"))
    if isinstance(reader, sqlite.SQLiteReader):
        return reader.count()
    return sum(len(reader.find(path)) for path, node in reader.nodes.items() if node.is_array)


def _batches(reader: ManifestReader, inline: bool) -> Iterator[pa.Table]:
    """The references of a reader as :class:`Copied` takes them."""
    if isinstance(reader, parquet.ParquetReader):
        return parquet.copy.batches(reader, inline=inline)
    if isinstance(reader, sqlite.SQLiteReader):
        return sqlite.copy.batches(reader, inline=inline)
    found = {path: reader.find(path) for path, node in reader.nodes.items() if node.is_array}
    return tables.chunk_batches({path: table for path, table in found.items() if table.is_inline == inline})


def is_archive(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether a URL names a manifest that :func:`open_reader` reads, judged by content."""
    return parquet.is_archive(url, storage_options) or sqlite.is_archive(url, storage_options)


def _storage(url: str, storage_options: StorageOptions) -> ModuleType:
    """The module that reads what is at a URL."""
    if parquet.is_archive(url, storage_options):
        return parquet
    if sqlite.is_archive(url, storage_options):
        return sqlite
    raise _nothing_here(url)


def _nothing_here(url: str) -> NotFoundError:
    return NotFoundError(f"{urls.display(url)}: no refindex archive here")


def open_reader(
    url: str,
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    storage_options: StorageOptions = None,
) -> ManifestReader:
    """Open a stored manifest, whichever its storage.

    Parameters
    ----------
    version:
        The version to open; by default the newest.
    as_of:
        Open the newest version that is not younger than this, instead. A time without a zone is local time.

    Raises
    ------
    NotFoundError
        If there is none, or not this version of it.
    ManifestError
        If it is damaged, or of a newer format.
    ValueError
        If both ``version`` and ``as_of`` are given.
    """
    found = find_reader(url, version=version, as_of=as_of, storage_options=storage_options)
    if found is None:
        raise _nothing_here(url)
    return found


def find_reader(
    url: str,
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    storage_options: StorageOptions = None,
) -> ManifestReader | None:
    """What :func:`open_reader` opens, None if there is no archive: it is looked for and opened by the same requests.

    Raises
    ------
    NotFoundError, ManifestError, ValueError
        As :func:`open_reader`.
    """
    if version is not None and as_of is not None:
        raise ValueError("give version or as_of, not both")
    first = url.endswith(SQLITE_SUFFIXES) and sqlite.is_archive(url, storage_options)
    if not first and (not urls.is_local(url) or parquet.is_archive(url)):
        log = parquet.find_log(url, storage_options)
        if log is not None or urls.is_local(url):
            number = log.as_of(as_of) if log is not None and as_of is not None else version
            return parquet.ParquetReader(url, version=number, storage_options=storage_options, log=log)
    if first or sqlite.is_archive(url, storage_options):
        return sqlite.SQLiteReader(url, version=version, as_of=as_of, storage_options=storage_options)
    return None


def history(url: str, storage_options: StorageOptions = None) -> list[Commit]:
    """The versions that can be opened, the newest first.

    Raises
    ------
    NotFoundError
        If there is no archive.
    ManifestError
        If its log is damaged.
    """
    url = urls.absolute(url).rstrip("/")
    if _storage(url, storage_options) is parquet:
        return parquet.history(url, storage_options)
    reader = sqlite.SQLiteReader(url, storage_options=storage_options)
    try:
        return reader.history()
    finally:
        reader.close()


def newest_version(url: str, storage_options: StorageOptions = None) -> int:
    """The newest version, without reading any of it.

    Raises
    ------
    NotFoundError
        If there is no archive.
    """
    url = urls.absolute(url).rstrip("/")
    if _storage(url, storage_options) is parquet:
        return parquet.newest_version(url, storage_options)
    if urls.is_local(url):
        return sqlite.newest_version(url)
    return history(url, storage_options)[0].version


def restore(url: str, version: int, *, storage_options: StorageOptions = None) -> int:
    """Commit a new version with the content of an old one, and return its number.

    Raises
    ------
    NotFoundError
        If there is no archive, or not this version of it.
    ConflictError
        If another writer commits meanwhile; nothing is changed then.
    """
    url = urls.absolute(url).rstrip("/")
    if _storage(url, storage_options) is parquet:
        return parquet.restore(url, version, storage_options=storage_options)
    return sqlite.restore(url, version)


def vacuum(
    url: str,
    *,
    keep_versions: int | None = None,
    older_than: timedelta | None = None,
    dry_run: bool = False,
    grace: timedelta = GRACE,
    storage_options: StorageOptions = None,
) -> list[Removed]:
    """Remove old versions, and files that writers have left who were stopped. The newest version always stays.

    Parameters
    ----------
    keep_versions:
        Versions beyond so many of the newest expire.
    older_than:
        Versions that were committed longer ago expire. With both limits, those that are beyond both; with none, no
        version does.
    dry_run:
        Remove nothing, and tell what would be.
    grace:
        Files that no version names stay for so long: another writer may be about to commit them.

    Returns
    -------
    list of Removed
        What was removed, and its bytes.
    """
    url = urls.absolute(url).rstrip("/")
    if _storage(url, storage_options) is parquet:
        return parquet.vacuum(
            url,
            keep_versions=keep_versions,
            older_than=older_than,
            dry_run=dry_run,
            grace=grace,
            storage_options=storage_options,
        )
    return sqlite.vacuum(url, keep_versions=keep_versions, older_than=older_than, dry_run=dry_run, grace=grace)
