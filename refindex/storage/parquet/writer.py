"""Commits to a Parquet manifest: data files first and the log entry last, so that readers see all of it or nothing."""

from __future__ import annotations

import contextlib
import posixpath
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.errors import ConflictError, ExistsError, ManifestError, NotFoundError
from refindex.model.change import Change, Content
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Manifest
from refindex.storage import disk, tables
from refindex.storage.parquet import checkpoint, log, merge, versions
from refindex.storage.parquet.files import LIMIT_NBYTES, OpenFile, delta_schema, encode
from refindex.storage.parquet.log import DataFile, Snapshot

_LAST = np.iinfo(np.int64).max


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
    fs, root = filesystem(url, storage_options)
    with Draft(fs, root, url, previous(fs, root, url, base)) as draft:
        if isinstance(content, Manifest):
            _replace(draft, content)
        else:
            _apply(draft, content)
        return draft.commit(operation, details)


def restore(url: str, version: int, *, storage_options: StorageOptions = None) -> int:
    """Commit the files of an old version again, as :func:`refindex.storage.restore` says."""
    fs, root = filesystem(url, storage_options)
    newest = versions.snapshot(fs, root, url)
    old = versions.snapshot(fs, root, url, version)
    with Draft(fs, root, url, newest) as draft:
        for path in old.files.keys() - newest.files.keys():
            with reading(url, f"looking for {path}"):
                if not fs.exists(posixpath.join(root, path)):
                    raise ManifestError(
                        f"{urls.display(url)}: {path}, a file of version {version}, is missing; nothing was written"
                    )
        draft.files = dict(old.files)
        return draft.commit("restore", {"version": version})


def previous(fs: fsspec.AbstractFileSystem, root: str, url: str, base: int | None) -> Snapshot | None:
    """The version to commit on top of, None for a new archive."""
    where = urls.display(url)
    with reading(url, "looking at the output"):
        if base is not None:
            newest = versions.snapshot(fs, root, url)
            if newest.version != base:
                raise ConflictError(
                    f"{where}: version {newest.version} is there, and the change was made from version {base}; nothing "
                    "was written. Read the newest version and try again."
                )
            return newest
        if exists(fs, root, url):
            raise ExistsError(f"{where} exists; pass overwrite=True (--overwrite) for a new version")
        if fs.exists(root) and not (fs.isdir(root) and only_leftovers(fs, root)):
            raise ExistsError(f"{where} exists and is not a refindex archive; choose another name")
    return None


def exists(fs: fsspec.AbstractFileSystem, root: str, url: str) -> bool:
    """Whether there is an archive, of any version."""
    if log.can_list(fs):
        return versions.Log(fs, root, url).newest is not None
    if log.fetch(fs, log.entry_path(root, 0), url) is not None:
        return True
    return checkpoint.last(fs, root, url) is not None


def only_leftovers(fs: fsspec.AbstractFileSystem, root: str) -> bool:
    """Whether a folder is empty, or holds just the files of a save that was killed before it committed."""
    names = [path[len(root.rstrip("/")) + 1 :] for path in fs.find(root)]
    return all(is_data(name) or is_temporary(name) for name in names)


def is_data(name: str) -> bool:
    """Whether a path below an archive is that of a data file."""
    return name.startswith("kind=") and name.endswith(".parquet") and name.count("/") == 1


def is_temporary(name: str) -> bool:
    """Whether a path below an archive is that of a part of the log that was not finished."""
    return name.startswith(log.LOG + "/") and name.endswith(".tmp")


class Draft:
    """The files of the next version. What was written is removed again unless it is committed.

    Parameters
    ----------
    previous:
        The version before, None for a new archive.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, url: str, previous: Snapshot | None) -> None:
        self.fs, self.root, self.url, self.previous = fs, root, url, previous
        self.files: dict[str, DataFile] = dict(previous.files) if previous else {}
        self.base = urls.parent(url)
        self._written: list[str] = []
        self._entry: str | None = None
        self._existed = fs.exists(root)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is None or self._may_be_committed(error):
            return
        for path in self._written:
            with contextlib.suppress(Exception):
                self.fs.rm_file(posixpath.join(self.root, path))
        if not self._existed:
            with contextlib.suppress(Exception):
                for folder in (*(f"kind={kind}" for kind in tables.SCHEMAS), log.LOG, ""):
                    path = posixpath.join(self.root, folder)
                    if self.fs.exists(path):
                        self.fs.rmdir(path)

    def _may_be_committed(self, error: BaseException) -> bool:
        """Whether the log may name the new files, though something was raised (an interrupt, a lost answer)."""
        if self._entry is None or isinstance(error, ConflictError | ExistsError):
            return False
        return not urls.is_local(self.url) or Path(self._entry).exists()

    def of_kind(self, kind: str) -> list[DataFile]:
        return [file for file in self.files.values() if file.kind == kind]

    def n_rows(self, kind: str) -> int:
        return sum(file.rows for file in self.of_kind(kind))

    def open(self, file: DataFile) -> OpenFile:
        return OpenFile(self.fs, self.root, self.url, file)

    def read(self, kind: str) -> list[pa.Table]:
        """The files of one of the small kinds."""
        found = []
        for file in self.of_kind(kind):
            with self.open(file) as opened:
                found.append(opened.read())
        return found

    def write(self, kind: str, batches: Iterable[pa.Table], *, inline: bool = False) -> None:
        """Write a file, or more if it would become large, or none if it would have no rows.

        Every batch is a row group.
        """
        prefix = log.INLINE_PREFIX if inline else ""

        def name() -> str:
            return f"kind={kind}/{prefix}part-00000-{uuid.uuid4()}.zstd.parquet"

        for data, file in encode(kind, batches, name):
            if not file.rows:
                continue
            target = posixpath.join(self.root, file.path)
            self._written.append(file.path)
            with reading(self.url, f"writing {file.path}"):
                if urls.is_local(self.url):
                    disk.make_folder(posixpath.dirname(target))
                    log.write_local(target, data)
                else:
                    self.fs.makedirs(posixpath.dirname(target), exist_ok=True)
                    self.fs.pipe_file(target, bytes(data))
            self.files[file.path] = file

    def remove(self, file: DataFile) -> None:
        """Leave a file out of the next version."""
        del self.files[file.path]
        if file.path in self._written:
            self._written.remove(file.path)
            with contextlib.suppress(OSError):
                self.fs.rm_file(posixpath.join(self.root, file.path))

    def commit(self, operation: str, details: Mapping[str, Any], *, checkpointed: bool = False) -> int:
        """Create the log entry, and a checkpoint if it is time for one, or asked for."""
        before = self.previous
        now = log.next_timestamp(before.timestamp if before else 0)
        snapshot = Snapshot(
            version=before.version + 1 if before else 0,
            timestamp=now,
            files=self.files,
            metadata=before.metadata if before else log.metadata(delta_schema(), now),
        )
        old = before.files if before else {}
        entry = log.entry(
            snapshot=snapshot,
            added=[file for path, file in self.files.items() if path not in old],
            removed=[file for path, file in old.items() if path not in self.files],
            operation=operation,
            details=details,
        )
        with reading(self.url, "committing"):
            if urls.is_local(self.url):
                for kind in {file.kind for path, file in self.files.items() if path in self._written}:
                    disk.sync(posixpath.join(self.root, f"kind={kind}"))
            try:
                self._entry = log.entry_path(self.root, snapshot.version)
                log.create(self.fs, self.root, self.url, snapshot.version, entry)
            except ConflictError as error:
                if before is None:
                    raise ExistsError(f"{urls.display(self.url)} was made by another writer meanwhile") from error
                raise
        self._written.clear()
        if checkpointed or (snapshot.version and snapshot.version % checkpoint.EVERY == 0):
            # What is committed is committed: without the checkpoint opening takes longer, and that is all.
            with contextlib.suppress(Exception):
                checkpoint.write(self.fs, self.root, self.url, snapshot)
        return snapshot.version


def _replace(draft: Draft, manifest: Manifest) -> None:
    """Write a whole manifest in place of all there was."""
    draft.files = {}
    draft.write("node", [tables.node_table(manifest.nodes.values())])
    draft.write("source", [tables.source_table(manifest.sources, draft.base)])
    draft.write("placement", [tables.placement_table(manifest.placements)])
    draft.write("report", [tables.report_table(manifest.report, draft.base)])
    for inline, arrays in _by_place({path: array.chunks for path, array in manifest.arrays.items()}).items():
        draft.write("chunk", tables.chunk_batches(arrays), inline=inline)


def _by_place(chunks: Mapping[str, ChunkTable]) -> dict[bool, dict[str, ChunkTable]]:
    """The arrays that have references into sources, and those whose chunks are all inline.

    These are small, and some change with every append: apart, they can be written again without the others.
    """
    places: dict[bool, dict[str, ChunkTable]] = {False: {}, True: {}}
    for path, table in chunks.items():
        if len(table):
            places[table.is_inline][path] = table
    return places


def _apply(draft: Draft, change: Change) -> None:
    """Write what a change brings, and again what it leaves of files that it takes from."""
    old = draft.read("node")
    new = tables.node_table(sorted(change.nodes.values(), key=lambda node: node.is_array))  # groups, then arrays
    arrays = {path for path, node in change.nodes.items() if node.is_array}
    dropped = dict(change.dropped)
    for row in (row for table in old for row in table.to_pylist()):
        if row["path"] not in arrays and tables.make_node(**row).is_array:
            dropped[row["path"]] = 0
    if len(old) != 1 or not old[0].equals(new):
        for file in draft.of_kind("node"):
            draft.remove(file)
        draft.write("node", [new])
    _drop(draft, dropped)
    for kind, anew in (
        ("placement", change.replace_placements),
        ("source", change.replace_sources),
        ("report", change.replace_report),
    ):
        for file in draft.of_kind(kind) if anew else ():
            draft.remove(file)
    base = draft.base
    for kind, table in (
        ("source", tables.source_table(change.sources, base, draft.n_rows("source"))),
        ("placement", tables.placement_table(change.placements, draft.n_rows("placement"))),
        ("report", tables.report_table(change.report, base, draft.n_rows("report"))),
    ):
        if len(table):  # files that nothing comes to stay as they are
            _add_small(draft, kind, table)
    for inline, added in _by_place(change.chunks).items():
        if added:
            _add_chunks(draft, added, inline)


def _drop(draft: Draft, dropped: Mapping[str, int]) -> None:
    """Write the files again that hold dropped references, without them."""
    for file in draft.of_kind("chunk"):
        concerned = {path: first for path, first in dropped.items() if file.may_hold(path, first, _LAST)}
        if not concerned:
            continue
        with draft.open(file) as opened:
            rest = merge.kept(opened, concerned)
            if rest is not None:
                draft.write("chunk", rest, inline=file.inline)
        if rest is not None:
            draft.remove(file)


def _mergers(files: Sequence[DataFile], new_rows: int) -> tuple[list[list[DataFile]], list[DataFile] | None]:
    """Which files become one, and those that become one with the new rows (None: the new rows stay alone)."""
    small = [file for file in files if file.size < LIMIT_NBYTES]
    groups = merge.plan([*(file.rows for file in small), *([new_rows] if new_rows else [])])
    with_new = next((group for group in groups if len(small) in group), None)
    alone = [[small[i] for i in group] for group in groups if group is not with_new]
    return alone, None if with_new is None else [small[i] for i in with_new if i < len(small)]


def _add_small(draft: Draft, kind: str, table: pa.Table) -> None:
    """Add rows of one of the small kinds, and merge files if they have become many."""
    key = table.column_names[0]
    alone, joined = _mergers(draft.of_kind(kind), len(table))
    for files, extra in [*((group, []) for group in alone), (joined or [], [table])]:
        parts: list[pa.Table] = [*extra]
        for file in files:
            with draft.open(file) as opened:
                parts.append(opened.read())
        draft.write(kind, [pa.concat_tables(parts).sort_by(key)])
        for file in files:
            draft.remove(file)


def _add_chunks(draft: Draft, chunks: Mapping[str, ChunkTable], inline: bool) -> None:
    """Add references, and merge files if they have become many."""
    files = [file for file in draft.of_kind("chunk") if file.inline == inline]
    alone, joined = _mergers(files, sum(map(len, chunks.values())))
    for group in alone:
        _merge(draft, group, iter(()), inline)
    if joined is None:
        draft.write("chunk", tables.chunk_batches(chunks), inline=inline)
    else:
        _merge(draft, joined, tables.chunk_batches(chunks), inline)


def _merge(draft: Draft, files: Sequence[DataFile], new: Iterator[pa.Table], inline: bool) -> None:
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(draft.open(file)) for file in files]
        draft.write("chunk", merge.merged([*(file.read_groups() for file in opened), new]), inline=inline)
    for file in files:
        draft.remove(file)


def newest_or_none(url: str, storage_options: StorageOptions = None) -> int | None:
    """The newest version, None if there is no archive."""
    fs, root = filesystem(url, storage_options)
    with contextlib.suppress(NotFoundError):
        return versions.newest(fs, root, url)
    return None
