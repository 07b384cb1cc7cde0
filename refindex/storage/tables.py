"""The relations of a manifest as Arrow tables; what every storage and every reader agree on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refindex.access import urls
from refindex.errors import FormatError, ManifestError, UnsupportedError
from refindex.model.chunks import INLINE, UNCHECKED, ChunkTable
from refindex.model.encoding import Encoding
from refindex.model.manifest import Node, Placement, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import dumps, loads

ROW_GROUP = 65_536
"""References in one row group: what one look-up decodes."""

INLINE_GROUP = 32 << 20
"""Inline bytes in one row group at most (a single larger chunk makes a group of its own)."""

SCHEMAS: dict[str, pa.Schema] = {
    "node": pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("document", pa.string(), nullable=False),
            pa.field("encodings", pa.string()),
            pa.field("attribute_types", pa.string()),
            pa.field("joined", pa.string()),
        ]
    ),
    "source": pa.schema(
        [
            pa.field("source", pa.int32(), nullable=False),
            pa.field("url", pa.string(), nullable=False),
            pa.field("size", pa.int64(), nullable=False),
            pa.field("mtime", pa.timestamp("us", tz="UTC")),
            pa.field("etag", pa.string()),
            pa.field("version", pa.string()),
        ]
    ),
    "chunk": pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            pa.field("chunk", pa.int64(), nullable=False),
            pa.field("source", pa.int32()),
            pa.field("offset", pa.int64()),
            pa.field("length", pa.int64(), nullable=False),
            pa.field("encoding", pa.int32()),
            pa.field("checksum", pa.int64()),
            pa.field("data", pa.binary()),
        ]
    ),
    "placement": pa.schema(
        [
            pa.field("number", pa.int64(), nullable=False),
            pa.field("dim", pa.string(), nullable=False),
            pa.field("source", pa.int32(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("length", pa.int64(), nullable=False),
            pa.field("offset", pa.int64(), nullable=False),
        ]
    ),
    "report": pa.schema(
        [
            pa.field("number", pa.int64(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("url", pa.string(), nullable=False),
            pa.field("status", pa.string(), nullable=False),
            pa.field("reason", pa.string()),
        ]
    ),
}


def node_table(nodes: Iterable[Node]) -> pa.Table:
    rows = list(nodes)
    return pa.table(
        {
            "path": [n.path for n in rows],
            "document": [n.document for n in rows],
            "encodings": [encodings_text(n) for n in rows],
            "attribute_types": [types_text(n) for n in rows],
            "joined": [joined_text(n) for n in rows],
        },
        schema=SCHEMAS["node"],
    )


def encodings_text(node: Node) -> str | None:
    """The encodings of an array as JSON text, None for a group or an array without any."""
    return dumps([e.to_json() for e in node.encodings]) if node.encodings else None


def types_text(node: Node) -> str | None:
    """The types of attributes as JSON text, None if there are none."""
    return dumps(dict(node.attribute_types)) if node.attribute_types else None


def joined_text(node: Node) -> str | None:
    """How an archive was joined as JSON text, None if it was not."""
    return None if node.joined is None else dumps(dict(node.joined))


def make_node(path: str, document: str, encodings: str | None, attribute_types: str | None, joined: str | None) -> Node:
    """A node from its row.

    Raises
    ------
    ManifestError
        If a column does not hold what it must.
    """
    try:
        kinds = loads(encodings, "encodings") if encodings else []
        types = loads(attribute_types, "attribute types") if attribute_types else {}
        how = None if joined is None else loads(joined, "joined")
        if not isinstance(kinds, list) or not isinstance(types, Mapping) or not isinstance(how, Mapping | None):
            raise FormatError("encodings must be a list, attribute types and joined objects")
        node = Node(
            path=path,
            document=document,
            encodings=tuple(Encoding.from_json(kind) for kind in kinds),
            attribute_types={str(k): str(v) for k, v in types.items()},
            joined=how,
        )
    except FormatError as error:
        raise ManifestError(f"node /{path} is damaged: {error}") from error
    return node


def source_table(sources: Iterable[Source], base: str, first: int = 0) -> pa.Table:
    """Sources, numbered from ``first``, with URLs relative to the folder ``base`` that holds the manifest, where
    they lie below it."""
    rows = list(sources)
    return pa.table(
        {
            "source": list(range(first, first + len(rows))),
            "url": [urls.relative(s.url, base) for s in rows],
            "size": [s.size for s in rows],
            "mtime": pa.array([s.mtime for s in rows], type=pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "etag": [s.etag for s in rows],
            "version": [s.version for s in rows],
        },
        schema=SCHEMAS["source"],
    )


def make_sources(rows: Iterable[Mapping[str, Any]], base: str) -> tuple[Source, ...]:
    """Sources, in order of their numbers, from rows with ``mtime`` in microseconds."""
    try:
        return tuple(
            Source(
                url=urls.resolve(row["url"], base),
                size=int(row["size"]),
                mtime=row["mtime"],
                etag=row["etag"],
                version=row["version"],
            )
            for row in _in_order(rows, "source", "sources")
        )
    except ManifestError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise ManifestError(f"the list of sources is damaged: {error}") from error


def placement_table(placements: Iterable[Placement], first: int = 0) -> pa.Table:
    rows = list(placements)
    return pa.table(
        {
            "number": list(range(first, first + len(rows))),
            "dim": [p.dim for p in rows],
            "source": [p.source for p in rows],
            "start": [p.start for p in rows],
            "length": [p.length for p in rows],
            "offset": [p.offset for p in rows],
        },
        schema=SCHEMAS["placement"],
    )


def make_placements(rows: Iterable[Mapping[str, Any]]) -> tuple[Placement, ...]:
    """Placements, in order of their numbers."""
    try:
        return tuple(
            Placement(
                dim=str(row["dim"]),
                source=int(row["source"]),
                start=int(row["start"]),
                length=int(row["length"]),
                offset=int(row["offset"]),
            )
            for row in _in_order(rows, "number", "placements")
        )
    except ManifestError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise ManifestError(f"the list of placements is damaged: {error}") from error


def _in_order(rows: Iterable[Mapping[str, Any]], key: str, what: str) -> list[Mapping[str, Any]]:
    """Rows sorted by their numbers, of which none may be missing."""
    ordered = sorted(rows, key=lambda row: int(row[key]))
    if [int(row[key]) for row in ordered] != list(range(len(ordered))):
        raise ManifestError(f"{what} are not numbered from 0 without gaps")
    return ordered


def report_table(report: Iterable[ReportEntry], base: str, first: int = 0) -> pa.Table:
    report = list(report)
    return pa.table(
        {
            "number": list(range(first, first + len(report))),
            "path": [e.path for e in report],
            "url": [urls.relative(urls.absolute(e.source), base) for e in report],
            "status": [str(e.status) for e in report],
            "reason": [e.reason or None for e in report],
        },
        schema=SCHEMAS["report"],
    )


def make_report(rows: Iterable[Mapping[str, Any]], base: str) -> ScanReport:
    try:
        return ScanReport(
            entries=tuple(
                ReportEntry(
                    source=urls.display(urls.resolve(row["url"], base)),
                    path=row["path"],
                    status=Status(row["status"]),
                    reason=row["reason"] or "",
                )
                for row in _in_order(rows, "number", "entries of the report")
            )
        )
    except ManifestError:
        raise
    except (ValueError, TypeError, AttributeError) as error:
        raise ManifestError(f"the report is damaged: {error}") from error


def chunk_batches(arrays: Mapping[str, ChunkTable]) -> Iterator[pa.Table]:
    """References of arrays, by path, as tables of one row group each, sorted by (path, chunk)."""
    return row_groups(chunk_table(path, part) for path, table in sorted(arrays.items()) for part in _pieces(table))


def row_groups(parts: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Tables of references, none too large for a row group, put together to row groups."""
    pending: list[pa.Table] = []
    rows = nbytes = 0
    for part in parts:
        weight = int(pc.sum(pc.binary_length(part.column("data"))).as_py() or 0)
        if pending and (rows + len(part) > ROW_GROUP or nbytes + weight > INLINE_GROUP):
            yield pa.concat_tables(pending)
            pending, rows, nbytes = [], 0, 0
        pending.append(part)
        rows, nbytes = rows + len(part), nbytes + weight
    if pending:
        yield pa.concat_tables(pending)


def slices(table: pa.Table) -> Iterator[pa.Table]:
    """A table of references in slices that fit a row group."""
    inline = np.cumsum(pc.binary_length(table.column("data")).fill_null(0).to_numpy(), dtype=np.int64)
    return (table.slice(start, stop - start) for start, stop in _cuts(inline))


def _pieces(table: ChunkTable) -> Iterator[ChunkTable]:
    for rows in table.windows(16 * ROW_GROUP):
        part = table.take(rows)
        inline = np.cumsum(np.where(part.source == INLINE, part.length, 0))
        yield from (part.take(slice(start, stop)) for start, stop in _cuts(inline))


def _cuts(inline: np.ndarray[Any, np.dtype[np.int64]]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that fit a row group, from the inline bytes up to the end of each row."""
    start = 0
    while start < len(inline):
        done = int(inline[start - 1]) if start else 0
        by_bytes = int(np.searchsorted(inline, done + INLINE_GROUP, side="right"))
        stop = min(start + ROW_GROUP, max(by_bytes, start + 1), len(inline))
        yield start, stop
        start = stop


def chunk_table(path: str, table: ChunkTable) -> pa.Table:
    """The rows of one array; ``source``, ``offset`` and ``encoding`` are null for inline chunks, ``checksum`` where
    none was taken."""
    n = len(table)
    inline = table.source == INLINE
    nothing = inline if inline.any() else None
    paths = pa.DictionaryArray.from_arrays(pa.array(np.zeros(n, dtype=np.int32)), pa.array([path])).cast(pa.string())
    columns = [
        paths,
        pa.array(table.chunk),
        pa.array(table.source, mask=nothing),
        pa.array(table.offset, mask=nothing),
        pa.array(table.length),
        pa.array(table.encoding, mask=table.encoding < 0 if (table.encoding < 0).any() else None),
        pa.nulls(n, pa.int64()) if table.checksum is None else pa.array(table.checksum, mask=table.checksum < 0),
        _inline_column(table, inline),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMAS["chunk"])


def _inline_column(table: ChunkTable, inline: np.ndarray[Any, np.dtype[np.bool_]]) -> pa.Array:
    if not inline.any():
        return pa.nulls(len(table), pa.binary())
    blob = b"".join(table.inline_bytes(int(row)) for row in np.flatnonzero(inline))
    ends = np.cumsum(np.where(inline, table.length, 0), dtype=np.int64)
    offsets = np.concatenate(([0], ends))
    if offsets[-1] > np.iinfo(np.int32).max:
        raise UnsupportedError(f"an inline chunk of {len(blob)} bytes is too large for a manifest")
    validity = pa.array(inline).buffers()[1]
    buffers = [validity, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(blob)]
    return pa.Array.from_buffers(pa.binary(), len(table), buffers)


def make_chunks(rows: pa.Table) -> ChunkTable:
    """References from rows of one array (the columns of ``SCHEMAS["chunk"]`` but for ``path``).

    Raises
    ------
    FormatError
        If the rows contradict each other.
    """
    rows = rows.combine_chunks()
    data = rows.column("data")
    n = len(rows)
    chunk = _integers(rows, "chunk", np.int64, 0)
    source = _integers(rows, "source", np.int32, INLINE)
    offset = _integers(rows, "offset", np.int64, 0)
    length = _integers(rows, "length", np.int64, 0)
    encoding = _integers(rows, "encoding", np.int32, -1)
    some = rows.column("checksum").null_count < n
    checksum = _integers(rows, "checksum", np.int64, UNCHECKED) if some else None
    blob = b""
    if data.null_count < n:
        values = data.combine_chunks() if isinstance(data, pa.ChunkedArray) else data
        values = values.chunk(0) if isinstance(values, pa.ChunkedArray) else values
        present = values.is_valid().to_numpy(zero_copy_only=False)
        sizes = pc.binary_length(values).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        if np.any(present != (source == INLINE)) or np.any(sizes[present] != length[present]):
            raise FormatError("an inline chunk has no data, other data than its length says, or a source as well")
        offset = np.where(present, np.cumsum(sizes) - sizes, offset)
        blob = b"".join(values.drop_null().to_pylist())
    elif np.any(source == INLINE):
        raise FormatError("a reference has neither a source nor inline data")
    return ChunkTable(
        chunk=chunk, source=source, offset=offset, length=length, encoding=encoding, data=blob, checksum=checksum
    )


def _integers(rows: pa.Table, name: str, dtype: Any, missing: int) -> np.ndarray[Any, Any]:
    column = rows.column(name)
    if column.null_count:
        column = column.fill_null(missing)
    return np.ascontiguousarray(column.to_numpy(), dtype=dtype)


def by_path(table: pa.Table) -> Mapping[str, ChunkTable]:
    """Split the rows of a row group, which are sorted by path, into one table an array.

    Raises
    ------
    FormatError
        If they are not sorted, or contradict each other.
    """
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
        names[codes[start]]: make_chunks(rest.slice(start, stop - start))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
    }
