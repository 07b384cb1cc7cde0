"""Reading a Parquet manifest, lazily: opening reads the log; references are read by row group when an array is
first looked at, and kept within a byte budget."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.options import filesystem
from refindex.errors import FormatError, ManifestError, RefindexError
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Node, Placement, ScanReport, Source
from refindex.storage import tables
from refindex.storage.parquet import versions
from refindex.storage.parquet.files import OpenFile, rows_of
from refindex.storage.parquet.log import DataFile
from refindex.storage.protocol import naming

_CACHE_NBYTES = 64 << 20
"""Decoded row groups kept by one reader."""

_TOGETHER = ("node", "source")
"""Kinds that are all read when an archive is opened: what it is, and whether it may read what it refers to."""

_AT_ONCE = 16
"""Small files of a remote archive that are fetched at the same time."""


class ParquetReader:
    """One snapshot of a Parquet manifest.

    Parameters
    ----------
    log:
        What was seen of its log, if somebody has looked.

    Raises
    ------
    NotFoundError
        If there is no archive at ``url``, or not this version of it.
    ManifestError
        If it is damaged, or of a newer format.
    """

    def __init__(
        self,
        url: str,
        *,
        version: int | None = None,
        storage_options: StorageOptions = None,
        log: versions.Log | None = None,
    ) -> None:
        self.url = url
        self._fs, self._root = filesystem(url, storage_options)
        self._snapshot = versions.snapshot(self._fs, self._root, url, version, log)
        self.version = self._snapshot.version
        self._local = urls.is_local(url)
        self._lock = threading.RLock()
        self._files: dict[str, OpenFile] = {}
        self._cache: OrderedDict[tuple[str, int], Mapping[str, ChunkTable]] = OrderedDict()
        self._cached: dict[tuple[str, int], int] = {}

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()
            self._cache.clear()
            self._cached.clear()

    def _open(self, file: DataFile) -> OpenFile:
        with self._lock:
            if file.path not in self._files:
                self._files[file.path] = OpenFile(self._fs, self._root, self.url, file)
            return self._files[file.path]

    def files(self, kind: str) -> list[DataFile]:
        """The files of a kind."""
        return self._snapshot.of_kind(kind)

    def open_file(self, file: DataFile) -> OpenFile:
        """A file by itself, for the caller to read and to close."""
        return OpenFile(self._fs, self._root, self.url, file)

    def _fetch(self, files: list[DataFile]) -> None:
        """Open files side by side: one after the other, each would be a round trip."""
        with self._lock:
            missing = [file for file in files if file.path not in self._files]
            if len(missing) < 2:
                return

            def opened(file: DataFile) -> OpenFile | None:
                with suppress(RefindexError):  # whoever reads it opens it again, and says what is wrong with it
                    return self.open_file(file)
                return None

            with ThreadPoolExecutor(min(_AT_ONCE, len(missing))) as pool:
                for found in pool.map(opened, missing):
                    if found is not None:
                        self._files[found.file.path] = found

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of one of the small kinds."""
        rows: list[dict[str, Any]] = []
        if kind in _TOGETHER and not self._local:
            self._fetch([file for each in _TOGETHER for file in self._snapshot.of_kind(each)])
        for file in self._snapshot.of_kind(kind):
            opened = self._open(file)
            with self._lock:
                table = opened.read()
            try:
                rows += rows_of(table)
            except (ValueError, pa.ArrowException) as error:
                raise opened.damaged(error) from error
        return rows

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        with naming(self.url):
            nodes = {row["path"]: tables.make_node(**row) for row in self._rows("node")}
        if "" not in nodes:
            raise ManifestError(f"{urls.display(self.url)}: the manifest has no root group")
        return nodes

    @cached_property
    def sources(self) -> Sequence[Source]:
        with naming(self.url):
            return tables.make_sources(self._rows("source"), urls.parent(self.url))

    @cached_property
    def placements(self) -> Sequence[Placement]:
        with naming(self.url):
            return tables.make_placements(self._rows("placement"))

    @cached_property
    def report(self) -> ScanReport:
        with naming(self.url):
            return tables.make_report(self._rows("report"), urls.parent(self.url))

    def _load(self, opened: OpenFile, number: int) -> Mapping[str, ChunkTable]:
        """The references of a row group, by array."""
        key = (opened.file.path, number)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            table = opened.read_group(number)
            try:
                loaded = tables.by_path(table)
            except (ValueError, pa.ArrowException) as error:
                raise opened.damaged(error) from error
            self._cache[key] = loaded
            self._cached[key] = table.nbytes
            while sum(self._cached.values()) > _CACHE_NBYTES and len(self._cache) > 1:
                dropped, _ = self._cache.popitem(last=False)
                del self._cached[dropped]
            return loaded

    def find(self, path: str, chunks: npt.ArrayLike | None = None, *, start: int = 0) -> ChunkTable:
        wanted = None if chunks is None else np.asarray(chunks, dtype=np.int64).reshape(-1)
        if wanted is not None and not len(wanted):
            return ChunkTable.empty()
        first, last = (start, np.iinfo(np.int64).max) if wanted is None else (int(wanted[0]), int(wanted[-1]))
        parts: list[ChunkTable] = []
        for file in self._snapshot.of_kind("chunk"):
            if not file.may_hold(path, first, last):
                continue
            opened = self._open(file)
            for group in opened.groups:
                if not group.may_hold(path, first, last):
                    continue
                part = self._load(opened, group.number).get(path)
                if part is None:
                    continue
                if wanted is not None:
                    rows = part.find(wanted)
                    part = part.take(rows[rows >= 0])
                elif start:
                    part = part.take(slice(int(np.searchsorted(part.chunk, start)), None))
                if len(part):
                    parts.append(part)
        try:
            return ChunkTable.concatenate(parts)
        except FormatError as error:
            raise ManifestError(f"{urls.display(self.url)}: references of /{path} are damaged: {error}") from error
