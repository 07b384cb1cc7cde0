"""The relations of a manifest as they are stored, for those who check them: nothing is refused, nothing is kept.

Readers refuse what is damaged at the first row that is. Whoever looks for all that is damaged needs the rows
themselves, and of references never more than some at a time, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from refindex.access import urls
from refindex.errors import ManifestError
from refindex.model.chunks import DECLARED, INLINE, UNCHECKED, ChunkTable
from refindex.storage import tables
from refindex.storage.parquet.reader import ParquetReader
from refindex.storage.protocol import ManifestReader, MemoryReader
from refindex.storage.sqlite import database
from refindex.storage.sqlite.reader import SQLiteReader

type IntArray = npt.NDArray[np.int64]

NULL = int(np.iinfo(np.int64).min)
"""What stands for null in a column of a :class:`Window`."""

ROWS = 65_536
"""References in one window."""

_COLUMNS = ("chunk", "source", "offset", "length", "encoding", "checksum")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some references of one array, in the order in which they are stored.

    Parameters
    ----------
    path:
        Of the array.
    place:
        Where they are stored, as messages call it; empty where there is but one place.
    columns:
        Those of the relation ``chunk``, int64, :data:`NULL` where they are null; ``data`` is the size of inline bytes.
    """

    path: str
    place: str
    columns: Mapping[str, IntArray]

    def __len__(self) -> int:
        return len(self.columns["chunk"])


def rows(reader: ManifestReader, relation: str) -> list[dict[str, Any]]:
    """All rows of ``node``, ``source``, ``placement`` or ``report``, as they are stored.

    Raises
    ------
    ManifestError
        If they cannot be read at all.
    """
    if isinstance(reader, ParquetReader):
        return reader._rows(relation)
    if isinstance(reader, SQLiteReader):
        found = reader._rows(relation, "ORDER BY position" if relation == "node" else "")
        return [{k: v for k, v in row.items() if k not in ("id", "position")} for row in found]
    base = urls.parent(reader.url) if reader.url else ""
    made: pa.Table = {
        "node": lambda: tables.node_table(reader.nodes.values()),
        "source": lambda: tables.source_table(reader.sources, base),
        "placement": lambda: tables.placement_table(reader.placements),
        "report": lambda: tables.report_table(reader.report, base),
    }[relation]()
    if relation == "source":
        at = made.column_names.index("mtime")
        made = made.set_column(at, "mtime", pc.cast(made.column("mtime"), pa.int64()))
    listed: list[dict[str, Any]] = made.to_pylist()
    return listed


def windows(
    reader: ManifestReader, path: str | None = None, start: int = 0, stop: int | None = None
) -> Iterator[Window]:
    """The references of all arrays, or of one, some at a time.

    Parameters
    ----------
    start, stop:
        Of one array, only windows that may have chunks with these numbers; not all of their rows need be.

    Raises
    ------
    ManifestError
        If they cannot be read; what was given before is right.
    """
    if isinstance(reader, ParquetReader):
        yield from _of_parquet(reader, path, start, stop)
    elif isinstance(reader, SQLiteReader):
        yield from _of_sqlite(reader, path, start, stop)
    elif isinstance(reader, MemoryReader):
        for name, array in reader.manifest.arrays.items():
            if path in (None, name):
                part = array.chunks.between(start, stop)
                yield from (_of_table(name, part.take(some)) for some in part.windows(ROWS))


def _of_table(path: str, table: ChunkTable) -> Window:
    inline = table.source == INLINE
    columns = {
        "chunk": table.chunk,
        "source": np.where(inline, NULL, table.source.astype(np.int64)),
        "offset": np.where(inline, NULL, table.offset),
        "length": table.length,
        "encoding": np.where(table.encoding == DECLARED, NULL, table.encoding.astype(np.int64)),
        "checksum": np.full(len(table), NULL)
        if table.checksum is None
        else np.where(table.checksum == UNCHECKED, NULL, table.checksum),
        "data": np.where(inline, table.length, NULL),
    }
    return Window(path=path, place="", columns=columns)


def _of_parquet(reader: ParquetReader, path: str | None, start: int, stop: int | None) -> Iterator[Window]:
    last = np.iinfo(np.int64).max if stop is None else stop - 1
    for file in reader._snapshot.of_kind("chunk"):
        if path is not None and not file.may_hold(path, start, last):
            continue
        opened = reader._open(file)
        for group in opened.groups:
            if path is not None and not group.may_hold(path, start, last):
                continue
            with reader._lock:
                table = opened.read_group(group.number)
            for window in _split(table, file.path):
                if path in (None, window.path):
                    yield window


def _split(table: pa.Table, place: str) -> Iterator[Window]:
    """The rows of a row group, one window for each run of rows of one array."""
    table = table.combine_chunks()
    encoded = table.column("path").combine_chunks().dictionary_encode()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    columns = {name: _integers(table.column(name)) for name in _COLUMNS}
    columns["data"] = _integers(pc.binary_length(table.column("data")))
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    for first, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
        part = {name: column[first:stop] for name, column in columns.items()}
        yield Window(path=names[codes[first]], place=place, columns=part)


def _integers(column: pa.ChunkedArray) -> IntArray:
    return np.asarray(pc.cast(column, pa.int64()).fill_null(NULL).to_numpy(), dtype=np.int64)


def _of_sqlite(reader: SQLiteReader, path: str | None, start: int, stop: int | None) -> Iterator[Window]:
    live = database.live(reader.version)
    if path is None:
        ids = {number: name for name, number in reader._ids.items()}
        nodes = [int(row[0]) for row in reader._query(f"SELECT DISTINCT node FROM chunk WHERE {live}")]
    else:
        ids = {number: name for name, number in reader._ids.items() if name == path}
        nodes = list(ids)
    limit = "" if stop is None else f" AND chunk < {int(stop)}"
    for node in nodes:
        # Numbers that are negative by mistake are to be seen, too.
        after = (start - 1, -NULL - 1) if start else (NULL, NULL)
        while True:
            found = reader._query(
                'SELECT chunk, source, "offset", length, encoding, checksum, length(data), added FROM chunk '
                f"WHERE node = {node} AND {live}{limit} AND (chunk, added) > (?, ?) ORDER BY chunk, added LIMIT {ROWS}",
                after,
            )
            if not found:
                break
            after = found[-1][0], found[-1][7]
            name = ids.get(node, f"(node {node})")
            try:
                yield _of_rows(name, found)
            except (TypeError, ValueError, OverflowError) as error:
                raise ManifestError(
                    f"{urls.display(reader.url)}: references of /{name} are not numbers: {error}"
                ) from error
            if len(found) < ROWS:
                break


def _of_rows(path: str, found: list[tuple[Any, ...]]) -> Window:
    columns = {}
    for at, name in enumerate((*_COLUMNS, "data")):
        column = [row[at] for row in found]
        if any(type(value) not in (int, type(None)) for value in column):
            raise TypeError(f"{name} is {next(v for v in column if type(v) not in (int, type(None)))!r}")
        columns[name] = np.array([NULL if value is None else value for value in column], dtype=np.int64)
    return Window(path=path, place="", columns=columns)
