"""Removing what no version of a Parquet manifest needs."""

from __future__ import annotations

import contextlib
import posixpath
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import unquote

import fsspec

from refindex.access import urls
from refindex.access.files import StorageOptions, modification_time, reading
from refindex.access.options import filesystem
from refindex.errors import SourceError
from refindex.storage.parquet import checkpoint, writer
from refindex.storage.parquet.versions import Log, actions_of
from refindex.storage.protocol import Removed, first_kept


def vacuum(
    url: str,
    *,
    keep_versions: int | None,
    older_than: timedelta | None,
    dry_run: bool,
    grace: timedelta,
    storage_options: StorageOptions = None,
) -> list[Removed]:
    """Remove versions that expired and stray files, as :func:`refindex.storage.vacuum` says.

    Wherever it is stopped, what is left can be read, and removed by the next one: the oldest version that stays gets
    a checkpoint, then the log loses what is before it, the oldest first, and only then go the data files.
    """
    fs, root = filesystem(url, storage_options)
    found = Log(fs, root, url)
    oldest = found.oldest
    numbers = range(oldest, (found.newest or 0) + 1)
    kept = numbers[
        first_kept(
            len(numbers),
            lambda i: found.commit(numbers[i]).timestamp,
            keep_versions=keep_versions,
            older_than=older_than,
        )
    ]
    expired: set[str] = set()
    if kept > oldest:
        expired |= set(found.snapshot(oldest).files)
        for number in range(oldest + 1, kept):
            expired |= _added(found.entry(number))
        if not dry_run:
            _make_checkpoint(found, kept)
    files = _files(fs, root, url)
    # What a vacuum that was stopped has left of the log is before the oldest version too.
    in_log = [*found.checkpoints_before(kept), *found.entries_before(kept)]
    gone = [name for name in (path[len(root.rstrip("/")) + 1 :] for path in in_log) if name in files]
    removed = [_remove(fs, root, url, name, files[name], dry_run) for name in gone]
    now = Log(fs, root, url) if not dry_run else found  # versions may have come meanwhile
    needed = set(now.snapshot(kept).files)
    for number in range(kept + 1, (now.newest or 0) + 1):
        needed |= _added(now.entry(number))
    before = time.time() - grace.total_seconds()
    for name, info in sorted(files.items()):
        if not (writer.is_data(name) or writer.is_temporary(name)) or name in needed:
            continue
        changed = modification_time(info)
        # A file that no version names may be that of a writer who is about to commit it.
        if name in expired or (changed is not None and changed <= before * 1e6):
            removed.append(_remove(fs, root, url, name, info, dry_run))
    return removed


def _added(entry: list[dict[str, Any]]) -> set[str]:
    return {unquote(add["path"]) for add in actions_of(entry, "add")}


def _make_checkpoint(found: Log, version: int) -> None:
    checkpoint.write(found.fs, found.root, found.url, found.snapshot(version))
    if checkpoint.read(found.fs, found.root, version, found.url) is None:
        raise SourceError(f"{urls.display(found.url)}: the checkpoint of version {version} cannot be read back")


def _files(fs: fsspec.AbstractFileSystem, root: str, url: str) -> dict[str, Mapping[str, Any]]:
    """All files of the archive by their paths below it."""
    fs.invalidate_cache()
    with reading(url, "listing the files"):
        return {path[len(root.rstrip("/")) + 1 :]: info for path, info in fs.find(root, detail=True).items()}


def _remove(
    fs: fsspec.AbstractFileSystem, root: str, url: str, name: str, info: Mapping[str, Any], dry_run: bool
) -> Removed:
    if not dry_run:
        with reading(url, f"removing {name}"), contextlib.suppress(FileNotFoundError):
            fs.rm_file(posixpath.join(root, name))
    return Removed(name=name, nbytes=int(info["size"] or 0))
