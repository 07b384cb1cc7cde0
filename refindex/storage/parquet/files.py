"""One Parquet file of a manifest: its bytes, and how it is opened so that damage does not pass."""

from __future__ import annotations

import contextlib
import io
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from refindex.access import urls
from refindex.errors import ManifestError
from refindex.model.zarr_v3 import dumps
from refindex.storage import tables
from refindex.storage.parquet.fetched import Fetched
from refindex.storage.parquet.log import DataFile, overlaps, within

_DELTA_TYPES = {
    pa.string(): "string",
    pa.int32(): "integer",
    pa.int64(): "long",
    pa.binary(): "binary",
    pa.timestamp("us", tz="UTC"): "timestamp",
}

_TAIL = 64 << 10
"""The end of a file that is read to begin with, and a 256th of large ones: mostly it holds the footer."""

_WHOLE = 1 << 20
"""Remote files of up to so many bytes are fetched whole: one request, where the footer and a row group take two."""


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


def _footer[Bytes: (bytes, memoryview)](tail: Bytes) -> Bytes:
    """The footer (Thrift metadata, its length, magic) at the end of a Parquet file, or less of it if it is cut."""
    return tail[-(int.from_bytes(tail[-8:-4], "little") + 8) :]


LIMIT_ROWS = 10_000_000
LIMIT_NBYTES = 256 << 20
"""A file of so many rows or bytes is large enough: what follows comes into another."""


def encode(kind: str, batches: Iterable[pa.Table], name: Callable[[], str]) -> Iterator[tuple[memoryview, DataFile]]:
    """Parquet files of a kind: their bytes, and what the log says of them; every batch is a row group.

    One file is in memory at a time. ``name`` gives paths for them.
    """
    stream = iter(batches)
    first = next(stream, None)
    while first is not None:
        data, file, first = _encode_one(name(), kind, first, stream)
        yield data, file


def _encode_one(
    path: str, kind: str, first: pa.Table, rest: Iterator[pa.Table]
) -> tuple[memoryview, DataFile, pa.Table | None]:
    """One file, and the first table that has no more room in it."""
    sink = io.BytesIO()
    options: dict[str, Any] = {"compression": "zstd", "version": "2.6", "write_page_checksum": True}
    if kind == "chunk":
        packed = {
            "chunk": "DELTA_BINARY_PACKED",
            "offset": "DELTA_BINARY_PACKED",
            "length": "DELTA_BINARY_PACKED",
        }
        options |= {"use_dictionary": ["path", "source", "encoding"], "column_encoding": packed}
    rows = 0
    bounds: dict[str, list[Any]] = {"path": [], "chunk": []}
    batch: pa.Table | None = first
    with pq.ParquetWriter(sink, tables.SCHEMAS[kind], **options) as writer:
        while batch is not None and (kind != "chunk" or (rows < LIMIT_ROWS and sink.tell() < LIMIT_NBYTES)):
            writer.write_table(batch, row_group_size=max(len(batch), 1))
            rows += len(batch)
            for name in bounds.keys() & set(batch.column_names) if len(batch) else ():
                bounds[name] += pc.min_max(batch.column(name)).as_py().values()
            batch = next(rest, None)
    data = memoryview(sink.getvalue())
    file = DataFile(
        path=path,
        kind=kind,
        size=len(data),
        rows=rows,
        footer=zlib.crc32(_footer(data)),
        first_path=min(bounds["path"], default=None),
        last_path=max(bounds["path"], default=None),
        first_chunk=min(bounds["chunk"], default=None),
        last_chunk=max(bounds["chunk"], default=None),
    )
    return data, file, batch


@dataclass(frozen=True, slots=True, kw_only=True)
class RowGroup:
    """Where some references are: a row group, and the least and greatest path (None: not known) and chunk in it."""

    number: int
    first_path: str | None
    last_path: str | None
    first_chunk: int | None
    last_chunk: int | None

    def may_hold(self, path: str, first: int, last: int) -> bool:
        return within(path, self.first_path, self.last_path) and overlaps(
            first, last, self.first_chunk, self.last_chunk
        )


class OpenFile:
    """A data file, checked against the log. Not safe to use from several threads at once.

    Raises
    ------
    ManifestError
        Here and when it is read, if it is damaged or missing.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, url: str, file: DataFile) -> None:
        self.file, self._url = file, url
        path = posixpath.join(root, file.path)
        self._fetched = None if urls.is_local(url) else Fetched(fs, path, file.size)
        try:
            # Elsewhere the checksum of the footer tells as well, which is where the log says that the file ends.
            if (self._fetched is None or file.footer is None) and (size := int(fs.size(path) or 0)) != file.size:
                raise ValueError(f"it has {size} bytes, the log says {file.size}")
            if self._fetched is not None and file.size <= _WHOLE:
                self._fetched.hold(0, file.size)
            metadata = pq.read_metadata(io.BytesIO(_checked_footer(self._fetched or fs.open(path, "rb"), file)))
            self._parquet = pq.ParquetFile(
                path if self._fetched is None else self._fetched, metadata=metadata, page_checksum_verification=True
            )
        except (OSError, ValueError, pa.ArrowException) as error:
            raise self.damaged(error) from error
        names = self._parquet.schema_arrow.names
        if names != tables.SCHEMAS[file.kind].names:
            self.close()
            raise self.damaged(f"its columns are {names}")
        if metadata.num_rows != file.rows >= 0:
            self.close()
            raise self.damaged(f"it has {metadata.num_rows} rows, the log says {file.rows}")
        self.groups = self._index() if file.kind == "chunk" else []

    def __enter__(self) -> OpenFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._parquet.close(force=True)

    def damaged(self, why: object) -> ManifestError:
        gone = isinstance(why, FileNotFoundError)
        return ManifestError(
            f"{urls.display(self._url)}: {self.file.path} is damaged or missing: {why}. "
            + ("If a vacuum has removed this version, open a newer one; else restore" if gone else "Restore")
            + " it from a copy, or scan again."
        )

    def _index(self) -> list[RowGroup]:
        """The row groups with their statistics, from the footer."""
        names = self._parquet.schema_arrow.names
        groups = []
        for number in range(self._parquet.metadata.num_row_groups):
            metadata = self._parquet.metadata.row_group(number)
            path, chunk = (self._statistics(metadata, names.index(name)) for name in ("path", "chunk"))
            has_path = path is not None and path.has_min_max
            has_chunk = chunk is not None and chunk.has_min_max
            groups.append(
                RowGroup(
                    number=number,
                    first_path=path.min if has_path else None,
                    last_path=path.max if has_path else None,
                    first_chunk=chunk.min if has_chunk else None,
                    last_chunk=chunk.max if has_chunk else None,
                )
            )
        return groups

    def _statistics(self, group: Any, number: int) -> Any:
        """The statistics of a column; of a type other than the schema's, pyarrow would end the process over them."""
        column, declared = group.column(number), self._parquet.schema.column(number).physical_type
        if column.physical_type != declared:
            raise self.damaged(f"a column of {declared} says that it is one of {column.physical_type}")
        return column.statistics

    def _hold(self, numbers: Sequence[int]) -> None:
        """Fetch what neighbouring row groups take, of a remote file."""
        if self._fetched is None or not numbers:
            return
        metadata = self._parquet.metadata
        groups = [metadata.row_group(number) for number in numbers]
        columns = [group.column(n) for group in groups for n in range(group.num_columns)]
        starts = [column.dictionary_page_offset or column.data_page_offset for column in columns]
        ends = [start + column.total_compressed_size for start, column in zip(starts, columns, strict=True)]
        self._fetched.hold(min(starts), min(max(ends), self.file.size))

    def read_group(self, number: int) -> pa.Table:
        try:
            self._hold([number])
            return self._parquet.read_row_group(number)
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self.damaged(error) from error

    def read_groups(self) -> Iterator[pa.Table]:
        """The row groups, one after the other."""
        return map(self.read_group, range(self._parquet.metadata.num_row_groups))

    def read(self) -> pa.Table:
        try:
            self._hold(range(self._parquet.metadata.num_row_groups))
            return self._parquet.read()
        except (OSError, ValueError, KeyError, pa.ArrowException) as error:
            raise self.damaged(error) from error


def _checked_footer(opened: BinaryIO | Fetched, file: DataFile) -> bytes:
    """The footer of a file, whose statistics decide which rows are looked at: damage must not hide any."""
    with contextlib.nullcontext(opened) if isinstance(opened, Fetched) else opened as data:
        data.seek(max(0, file.size - max(_TAIL, file.size >> 8)))
        tail = data.read(file.size)
        footer = _footer(tail)
        if len(footer) == len(tail) < file.size:
            data.seek(file.size - min(file.size, int.from_bytes(tail[-8:-4], "little") + 8))
            footer = data.read(file.size)
    if file.footer is not None and zlib.crc32(footer) != file.footer:
        raise ValueError("its footer does not have the checksum that the log says")
    return footer


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of one of the small kinds, times in microseconds."""
    if "mtime" in table.column_names:
        at = table.column_names.index("mtime")
        table = table.set_column(at, "mtime", pc.cast(table.column("mtime"), pa.int64()))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
