"""Manifests as a Delta Lake table of Parquet files, partitioned by ``kind``.

Reading is lazy: opening replays the log and reads the nodes; references are read by row group when an
array is first looked at, and kept within a byte budget.
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import threading
import uuid
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.errors import ExistsError, FormatError, ManifestError
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Manifest, Node, ScanReport, Source
from refindex.model.zarr_v3 import dumps
from refindex.storage import delta_log, tables
from refindex.storage.delta_log import DataFile

_CACHE_NBYTES = 64 << 20
"""Decoded row groups kept by one reader."""

_DELTA_TYPES = {
    pa.string(): "string",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.binary(): "binary",
    pa.timestamp("us", tz="UTC"): "timestamp",
}


def delta_schema() -> str:
    """The table's schema in Delta's JSON: the columns of all kinds, which are null where they do not apply."""
    columns: dict[str, pa.DataType] = {"kind": pa.string()}
    for schema in tables.SCHEMAS.values():
        for column in schema:
            columns.setdefault(column.name, column.type)
    fields = [
        {"name": name, "type": _DELTA_TYPES[kind], "nullable": True, "metadata": {}} for name, kind in columns.items()
    ]
    return dumps({"type": "struct", "fields": fields})


_TAIL = 64 << 10
"""The end of a file that is read to begin with: it holds the footers of all but large ones."""


def _footer(tail: bytes) -> bytes:
    """The footer (Thrift metadata, its length, magic) at the end of a Parquet file, or less of it if it is cut."""
    return tail[-(int.from_bytes(tail[-8:-4], "little") + 8) :]


def _encode(kind: str, batches: Iterable[pa.Table]) -> tuple[bytes, int]:
    """One Parquet file of a kind, and its number of rows; every batch is a row group."""
    sink = io.BytesIO()
    schema = tables.SCHEMAS[kind]
    options: dict[str, Any] = {"compression": "zstd", "version": "2.6", "write_page_checksum": True}
    if kind == "chunk":
        packed = {
            "chunk": "DELTA_BINARY_PACKED",
            "offset": "DELTA_BINARY_PACKED",
            "length": "DELTA_BINARY_PACKED",
        }
        options |= {"use_dictionary": ["path", "source", "encoding"], "column_encoding": packed}
    rows = 0
    with pq.ParquetWriter(sink, schema, **options) as writer:
        for batch in batches:
            writer.write_table(batch, row_group_size=max(len(batch), 1))
            rows += len(batch)
    return sink.getvalue(), rows


def save(manifest: Manifest, url: str, *, overwrite: bool = False, storage_options: StorageOptions = None) -> int:
    """Write a manifest as one commit and return its version.

    Data files come first and the log entry last, so that a reader sees all of it or nothing. Whatever stops
    the writing (an interrupt too), its files are removed again.

    Raises
    ------
    ExistsError
        If there is an archive, or anything else, and ``overwrite`` is not set.
    """
    fs, root = fsspec.core.url_to_fs(url, **(storage_options or {}))
    previous = None
    with reading(url, "looking at the output"):
        if delta_log.versions(fs, root):
            if not overwrite:
                raise ExistsError(f"{urls.display(url)} exists; pass overwrite=True (--overwrite) for a new version")
            previous = delta_log.read_snapshot(fs, root, url)
        elif fs.exists(root) and not (fs.isdir(root) and _only_leftovers(fs, root)):
            raise ExistsError(f"{urls.display(url)} exists and is not a refindex archive; choose another name")
    base = urls.parent(url)
    contents: dict[str, Iterable[pa.Table]] = {
        "node": [tables.node_table(manifest.nodes.values())],
        "source": [tables.source_table(manifest.sources, base)],
        "chunk": tables.chunk_batches(manifest.arrays.values()),
        "report": [tables.report_table(manifest.report, base)],
    }
    existed = fs.exists(root)
    written: list[DataFile] = []
    try:
        for kind, batches in contents.items():
            data, rows = _encode(kind, batches)
            path = f"kind={kind}/part-00000-{uuid.uuid4()}.zstd.parquet"
            target = posixpath.join(root, path)
            footer = zlib.crc32(_footer(data))
            written.append(DataFile(path=path, kind=kind, size=len(data), rows=rows, footer=footer))
            with reading(url, f"writing {path}"):
                fs.makedirs(posixpath.dirname(target), exist_ok=True)
                fs.pipe_file(target, data)
                if urls.is_local(url):
                    _sync(target)
        version = 0 if previous is None else previous.version + 1
        lines = delta_log.commit_lines(
            version=version,
            schema=delta_schema(),
            added=written,
            removed=previous.files.values() if previous else (),
            operation="WRITE",
        )
        with reading(url, "committing"):
            delta_log.commit(fs, root, url, version, lines)
    except BaseException:
        _undo(fs, root, written, remove_root=not existed)
        raise
    return version


def _sync(path: str) -> None:
    """Bring a file's bytes to the disk before the log entry that names it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _only_leftovers(fs: fsspec.AbstractFileSystem, root: str) -> bool:
    """Whether a folder is empty, or holds just the files of a save that was killed before it committed."""
    names = [path[len(root.rstrip("/")) + 1 :] for path in fs.find(root)]
    return all(
        (name.startswith("kind=") and name.endswith(".parquet"))
        or (name.startswith(delta_log.LOG + "/") and name.endswith(".tmp"))
        for name in names
    )


def is_leftover(url: str) -> bool:
    """Whether a local folder is empty, or the remains of a save that was killed: free to be written."""
    fs, root = fsspec.core.url_to_fs(url)
    return bool(fs.isdir(root)) and _only_leftovers(fs, root)


def _undo(fs: fsspec.AbstractFileSystem, root: str, written: Sequence[DataFile], *, remove_root: bool) -> None:
    for file in written:
        with contextlib.suppress(Exception):
            fs.rm_file(posixpath.join(root, file.path))
    if remove_root:
        with contextlib.suppress(Exception):
            for folder in (*(f"kind={kind}" for kind in tables.SCHEMAS), delta_log.LOG, ""):
                path = posixpath.join(root, folder)
                if fs.exists(path):
                    fs.rmdir(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowGroup:
    """Where some references are: a row group, and the least and greatest path (None: not known) and chunk in it."""

    file: DataFile
    number: int
    first_path: str | None
    last_path: str | None
    first_chunk: int | None
    last_chunk: int | None

    def may_hold(self, path: str, first: int, last: int) -> bool:
        if self.first_path is None or self.last_path is None:
            return True
        if not self.first_path <= path <= self.last_path:
            return False
        if self.first_path == self.last_path and self.first_chunk is not None and self.last_chunk is not None:
            return self.first_chunk <= last and self.last_chunk >= first
        return True


class ParquetReader:
    """One snapshot of a Parquet manifest.

    Raises
    ------
    NotFoundError
        If there is no archive at ``url``, or not this version of it.
    ManifestError
        If it is damaged, or of a newer format.
    """

    def __init__(self, url: str, *, version: int | None = None, storage_options: StorageOptions = None) -> None:
        self.url = url
        self._fs, self._root = fsspec.core.url_to_fs(url, **(storage_options or {}))
        self._snapshot = delta_log.read_snapshot(self._fs, self._root, url, version)
        self.version = self._snapshot.version
        self._lock = threading.RLock()
        self._files: dict[str, pq.ParquetFile] = {}
        self._groups: list[_RowGroup] | None = None
        self._cache: OrderedDict[tuple[str, int], dict[str, ChunkTable]] = OrderedDict()
        self._cached: dict[tuple[str, int], int] = {}

    def close(self) -> None:
        with self._lock:
            for file in self._files.values():
                file.close(force=True)
            self._files.clear()
            self._cache.clear()

    def _damaged(self, file: DataFile, why: object) -> ManifestError:
        return ManifestError(
            f"{urls.display(self.url)}: {file.path} is damaged or missing: {why}. "
            "Restore it from a copy, or scan again."
        )

    def _open(self, file: DataFile) -> pq.ParquetFile:
        with self._lock:
            if file.path in self._files:
                return self._files[file.path]
            path = posixpath.join(self._root, file.path)
            try:
                size = int(self._fs.size(path) or 0)
                if size != file.size:
                    raise ValueError(f"it has {size} bytes, the log says {file.size}")
                metadata = pq.read_metadata(io.BytesIO(self._checked_footer(file, path)))
                where = path if urls.is_local(self.url) else self._fs.open(path, "rb")
                opened = pq.ParquetFile(where, metadata=metadata, page_checksum_verification=True)
            except (OSError, ValueError, pa.ArrowException) as error:
                raise self._damaged(file, error) from error
            if opened.metadata.num_rows != file.rows >= 0:
                raise self._damaged(file, f"it has {opened.metadata.num_rows} rows, the log says {file.rows}")
            self._files[file.path] = opened
            return opened

    def _checked_footer(self, file: DataFile, path: str) -> bytes:
        """The footer of a file, whose statistics decide which rows are looked at: damage must not hide any."""
        tail = bytes(self._fs.cat_file(path, start=max(0, file.size - _TAIL), end=file.size))
        footer = _footer(tail)
        if len(footer) == len(tail) < file.size:
            length = min(file.size, int.from_bytes(tail[-8:-4], "little") + 8)
            footer = bytes(self._fs.cat_file(path, start=file.size - length, end=file.size))
        if file.footer is not None and zlib.crc32(footer) != file.footer:
            raise ValueError("its footer does not have the checksum that the log says")
        return footer

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        """All rows of one of the small kinds."""
        rows: list[dict[str, Any]] = []
        for file in self._snapshot.of_kind(kind):
            opened = self._open(file)
            try:
                with self._lock:
                    table = opened.read(columns=tables.SCHEMAS[kind].names)
                if "mtime" in table.column_names:
                    at = table.column_names.index("mtime")
                    table = table.set_column(at, "mtime", pc.cast(table.column("mtime"), pa.int64()))
                rows += table.to_pylist()
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                raise self._damaged(file, error) from error
        return rows

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        rows = self._rows("node")
        nodes = {row["path"]: tables.make_node(**row) for row in rows}
        if "" not in nodes:
            raise ManifestError(f"{urls.display(self.url)}: the manifest has no root group")
        return nodes

    @cached_property
    def sources(self) -> Sequence[Source]:
        return tables.make_sources(self._rows("source"), urls.parent(self.url))

    @cached_property
    def report(self) -> ScanReport:
        return tables.make_report(self._rows("report"), urls.parent(self.url))

    def _row_groups(self) -> list[_RowGroup]:
        with self._lock:
            if self._groups is None:
                self._groups = [group for file in self._snapshot.of_kind("chunk") for group in self._index(file)]
            return self._groups

    def _index(self, file: DataFile) -> list[_RowGroup]:
        """The row groups of a file with their statistics, from its footer."""
        opened = self._open(file)
        names = opened.schema_arrow.names
        if names != tables.SCHEMAS["chunk"].names:
            raise self._damaged(file, f"its columns are {names}")
        groups = []
        for number in range(opened.metadata.num_row_groups):
            metadata = opened.metadata.row_group(number)
            path, chunk = (metadata.column(names.index(name)).statistics for name in ("path", "chunk"))
            has_path = path is not None and path.has_min_max
            has_chunk = chunk is not None and chunk.has_min_max
            groups.append(
                _RowGroup(
                    file=file,
                    number=number,
                    first_path=path.min if has_path else None,
                    last_path=path.max if has_path else None,
                    first_chunk=chunk.min if has_chunk else None,
                    last_chunk=chunk.max if has_chunk else None,
                )
            )
        return groups

    def _load(self, group: _RowGroup) -> dict[str, ChunkTable]:
        """The references of a row group, by array."""
        key = (group.file.path, group.number)
        with self._lock:
            if key in self._cache:
                self._cache.move_to_end(key)
                return self._cache[key]
            opened = self._open(group.file)
            try:
                table = opened.read_row_group(group.number)
                loaded = _by_path(table)
            except (OSError, ValueError, KeyError, pa.ArrowException) as error:
                raise self._damaged(group.file, error) from error
            self._cache[key] = loaded
            self._cached[key] = table.nbytes
            while sum(self._cached.values()) > _CACHE_NBYTES and len(self._cache) > 1:
                dropped, _ = self._cache.popitem(last=False)
                del self._cached[dropped]
            return loaded

    def find(self, path: str, chunks: npt.ArrayLike | None = None) -> ChunkTable:
        wanted = None if chunks is None else np.asarray(chunks, dtype=np.int64).reshape(-1)
        if wanted is not None and not len(wanted):
            return ChunkTable.empty()
        first, last = (0, np.iinfo(np.int64).max) if wanted is None else (int(wanted[0]), int(wanted[-1]))
        parts: list[ChunkTable] = []
        for group in self._row_groups():
            if not group.may_hold(path, first, last):
                continue
            part = self._load(group).get(path)
            if part is None:
                continue
            if wanted is not None:
                rows = part.find(wanted)
                part = part.take(rows[rows >= 0])
            if len(part):
                parts.append(part)
        return concatenate(parts)


def _by_path(table: pa.Table) -> dict[str, ChunkTable]:
    """Split the rows of a row group, which are sorted by path, into one table an array."""
    encoded = table.column("path").combine_chunks().dictionary_encode()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    codes = encoded.indices.to_numpy()
    names = encoded.dictionary.to_pylist()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    if len(starts) != len(names):
        raise FormatError("references are not sorted by path")
    stops = np.append(starts[1:], len(codes))
    rest = table.drop_columns(["path"])
    return {
        names[codes[start]]: tables.make_chunks(rest.slice(start, stop - start))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    }


def concatenate(parts: Sequence[ChunkTable]) -> ChunkTable:
    """Tables of different chunks of one array as one table.

    Raises
    ------
    FormatError
        If two of them have the same chunk.
    """
    if not parts:
        return ChunkTable.empty()
    if len(parts) == 1:
        return parts[0]
    shift = np.cumsum([0, *(len(part.data) for part in parts[:-1])])
    return ChunkTable.from_columns(
        chunk=np.concatenate([p.chunk for p in parts]),
        source=np.concatenate([p.source for p in parts]),
        offset=np.concatenate(
            [np.where(p.source < 0, p.offset + s, p.offset) for p, s in zip(parts, shift, strict=True)]
        ),
        length=np.concatenate([p.length for p in parts]),
        encoding=np.concatenate([p.encoding for p in parts]),
        data=b"".join(p.data for p in parts),
    )


def is_archive(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether there is a Parquet manifest, of any version, at a URL."""
    if urls.is_local(url):
        return (Path(urls.local_path(url)) / delta_log.LOG).is_dir()
    fs, root = fsspec.core.url_to_fs(url, **(storage_options or {}))
    with reading(url, "looking for an archive"):
        return bool(delta_log.versions(fs, root))
