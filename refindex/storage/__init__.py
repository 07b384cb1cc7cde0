"""Manifests on disk and in object stores: Parquet (a Delta Lake table) and SQLite."""

from __future__ import annotations

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.errors import NotFoundError
from refindex.model.manifest import Manifest
from refindex.storage import parquet, sqlite
from refindex.storage.protocol import ManifestReader, MemoryReader, load

__all__ = ["ManifestReader", "MemoryReader", "is_archive", "load", "open_reader", "save"]

SQLITE_SUFFIXES = (".sqlite", ".sqlite3", ".db")


def save(manifest: Manifest, url: str, *, overwrite: bool = False, storage_options: StorageOptions = None) -> int:
    """Write a manifest: SQLite if the name ends in ``.sqlite`` (``.sqlite3``, ``.db``), else Parquet.

    Returns the version that was committed.
    """
    url = urls.absolute(url).rstrip("/")
    if url.endswith(SQLITE_SUFFIXES):
        return sqlite.save(manifest, url, overwrite=overwrite, storage_options=storage_options)
    return parquet.save(manifest, url, overwrite=overwrite, storage_options=storage_options)


def is_archive(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether a URL names a manifest that :func:`open_reader` reads, judged by content."""
    return parquet.is_archive(url, storage_options) or sqlite.is_archive(url, storage_options)


def open_reader(url: str, *, version: int | None = None, storage_options: StorageOptions = None) -> ManifestReader:
    """Open a stored manifest, whichever its storage.

    Raises
    ------
    NotFoundError
        If there is none.
    ManifestError
        If it is damaged, or of a newer format.
    """
    if parquet.is_archive(url, storage_options):
        return parquet.ParquetReader(url, version=version, storage_options=storage_options)
    if sqlite.is_archive(url, storage_options):
        return sqlite.SQLiteReader(url, version=version, storage_options=storage_options)
    raise NotFoundError(f"{urls.display(url)}: no refindex archive here")
