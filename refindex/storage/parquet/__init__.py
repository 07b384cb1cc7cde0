"""Manifests as a Delta Lake table of Parquet files, partitioned by ``kind``."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.model.change import Commit
from refindex.storage.parquet import copy, log, writer
from refindex.storage.parquet.reader import ParquetReader
from refindex.storage.parquet.vacuum import vacuum
from refindex.storage.parquet.versions import Log, newest
from refindex.storage.parquet.writer import commit, restore

__all__ = [
    "ParquetReader",
    "as_of",
    "commit",
    "copy",
    "find_log",
    "history",
    "is_archive",
    "is_leftover",
    "newest_version",
    "restore",
    "vacuum",
]


def is_archive(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether there is a Parquet manifest, of any version, at a URL."""
    if urls.is_local(url):
        return (Path(urls.local_path(url)) / log.LOG).is_dir()
    fs, root = filesystem(url, storage_options)
    with reading(url, "looking for an archive"):
        return writer.exists(fs, root, url)


def find_log(url: str, storage_options: StorageOptions = None) -> Log | None:
    """The log of the archive at a URL, None if there is none."""
    fs, root = filesystem(url, storage_options)
    with reading(url, "looking for an archive"):
        found = Log(fs, root, url)
    return None if found.newest is None else found


def is_leftover(url: str) -> bool:
    """Whether a local folder is empty, or the remains of a save that was killed: free to be written."""
    fs, root = filesystem(url)
    return bool(fs.isdir(root)) and writer.only_leftovers(fs, root)


def newest_version(url: str, storage_options: StorageOptions = None) -> int:
    """The newest version; NotFoundError if there is no archive."""
    fs, root = filesystem(url, storage_options)
    return newest(fs, root, url)


def history(url: str, storage_options: StorageOptions = None) -> list[Commit]:
    """All versions that can be opened, the newest first."""
    fs, root = filesystem(url, storage_options)
    return Log(fs, root, url).commits()


def as_of(url: str, moment: datetime, storage_options: StorageOptions = None) -> int:
    """The newest version that is not younger than a moment; NotFoundError if all are."""
    fs, root = filesystem(url, storage_options)
    return Log(fs, root, url).as_of(moment)
