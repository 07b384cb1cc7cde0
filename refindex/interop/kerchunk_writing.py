"""Archives as kerchunk's references: JSON, and the Parquet layout of fsspec's ``LazyReferenceMapper``."""

from __future__ import annotations

import base64
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refindex.access.files import StorageOptions
from refindex.interop.companion import Companion
from refindex.interop.content import Content, Document, refused
from refindex.interop.placing import Placing
from refindex.interop.prepare import Prepared, Target, prepare
from refindex.model.chunks import INLINE, ChunkTable
from refindex.model.grid import ChunkGrid
from refindex.model.zarr_v3 import consolidated, dumps
from refindex.serve.zarr_store import RefindexStore

RECORDS = 100_000
"""Chunks in one Parquet file."""

_WINDOW = 1 << 16
"""References that are written in one go."""

_MOST_ROWS = 1 << 31
"""Chunks of a grid: the Parquet layout has a row for each, whether it exists or not."""

_V2_KEYS = {"name": "v2", "configuration": {"separator": "."}}


def refuse_url(url: str) -> str | None:
    """Why kerchunk's references cannot name a file; None if they can."""
    return "a chained URL, which kerchunk's references cannot name" if "::" in url else None


def export_kerchunk(
    store: RefindexStore,
    dest: str,
    *,
    layout: Literal["json", "parquet"],
    variables: Collection[str] | None = None,
    zarr_format: int = 3,
    materialize: bool = False,
    overwrite: bool = False,
    storage_options: StorageOptions = None,
) -> None:
    """Write an archive as kerchunk's references, see :func:`refindex.export`."""
    if zarr_format not in (2, 3):
        raise ValueError(f"zarr_format must be 2 or 3, got {zarr_format}")
    content = Content.of(store, variables)
    name = f"kerchunk ({'JSON' if layout == 'json' else 'Parquet'}, Zarr v{zarr_format})"
    target = Target(name=name, zarr_format=zarr_format, rectilinear=False, refuse=refuse_url)
    with Placing(dest, overwrite=overwrite, storage_options=storage_options) as placing:
        with closing(Companion(placing.beside)) as companion:
            arrays = prepare(content, target, companion, materialize=materialize)
            locations = [*(source.url for source in content.sources), placing.beside_url]
            if layout == "json":
                _write_json(placing.main, content, arrays, locations, zarr_format)
            else:
                _refuse_large(content, name)
                _write_parquet(placing.main, content, arrays, locations, zarr_format)
        placing.publish(last=".zmetadata")


# JSON


def _write_json(
    path: Path, content: Content, arrays: Iterable[Prepared], locations: list[str], zarr_format: int
) -> None:
    """One JSON object: documents as text, then references, as they come."""
    spelled = np.array([_text(url) for url in locations], dtype=object)
    documents: dict[str, str] = {}
    with path.open("w", encoding="utf-8") as file:
        file.write('{"version":1,"refs":{')
        if zarr_format == 2:
            for key, document in _groups_v2(content):
                file.write(f"{_text(key)}:{_text(dumps(document))},\n")
        for array in arrays:
            folder = f"{array.path}/"
            if zarr_format == 2:
                file.write(f"{_text(folder + '.zarray')}:{_text(dumps(array.document))},\n")
                file.write(f"{_text(folder + '.zattrs')}:{_text(dumps(array.attributes))},\n")
                _write_references(file, folder, array, spelled, separator=".", scalar="0")
            else:
                documents[array.path] = dumps(array.document)
                file.write(f"{_text(folder + 'zarr.json')}:{_text(documents[array.path])},\n")
                _write_references(file, f"{folder}c", array, spelled, separator="/", scalar="")
        if zarr_format == 2:
            file.write('".zgroup":"{\\"zarr_format\\":2}"}}')
            return
        for group in content.groups.values():
            if group.path:
                file.write(f"{_text(group.path + '/zarr.json')}:{_text(group.document)},\n")
        root = _root(content, documents)
        file.write(f'"zarr.json":{_text(root)}}}}}')


def _text(value: str) -> str:
    return dumps(value)


def _groups_v2(content: Content) -> Iterator[tuple[str, Document]]:
    """The documents of groups but for the root's ``.zgroup``."""
    for path, group in content.groups.items():
        folder = f"{path}/" if path else ""
        if path:
            yield f"{folder}.zgroup", {"zarr_format": 2}
        yield f"{folder}.zattrs", group.attributes


def _root(content: Content, documents: dict[str, str]) -> str:
    """The root's ``zarr.json`` with those of all other nodes: one look opens the hierarchy."""
    groups = {path: group.document for path, group in content.groups.items() if path}
    return consolidated(content.groups[""].document, {**groups, **documents}.items())


def _write_references(
    file: IO[str], prefix: str, array: Prepared, locations: np.ndarray[Any, Any], *, separator: str, scalar: str
) -> None:
    """The references of one array. A window is one text that is filled in by one operation."""
    table, ndim = array.table, array.grid.ndim
    start = _text(prefix)[:-1].replace("%", "%%")
    if not ndim:
        key = start + scalar
    else:
        lead = separator if separator == "/" else ""
        key = start + lead + separator.join(["%d"] * ndim)
    reference = f'{key}":[%s,%d,%d],\n'
    for rows in table.windows(_WINDOW):
        part = table.take(rows)
        referred = (part.source != INLINE) & (part.length > 0)
        some = part.take(np.flatnonzero(referred))
        columns = np.empty((len(some), ndim + 3), dtype=object)
        columns[:, :ndim] = array.grid.coordinates(some.chunk)
        columns[:, ndim] = locations[some.source]
        columns[:, ndim + 1] = some.offset
        columns[:, ndim + 2] = some.length
        file.write(reference * len(some) % tuple(columns.reshape(-1).tolist()))
        rest = np.flatnonzero(~referred)
        for row, coordinates in zip(rest.tolist(), array.grid.coordinates(part.chunk[rest]).tolist(), strict=True):
            data = part.inline_bytes(row) if part.source[row] == INLINE else b""
            spelled = base64.b64encode(data).decode()
            file.write(f'{key % tuple(coordinates)}":"base64:{spelled}",\n')


# Parquet


def _refuse_large(content: Content, name: str) -> None:
    large = [
        f"/{path}: a grid of {node.grid.size} chunks, each of which takes a row, whether it exists or not"
        for path, node in content.arrays.items()
        if node.grid.size > _MOST_ROWS
    ]
    if large:
        raise refused(name, large, "write JSON, which has only the chunks that exist")


def _write_parquet(
    path: Path, content: Content, arrays: Iterable[Prepared], locations: list[str], zarr_format: int
) -> None:
    """A folder an array, with files of as many rows as ``.zmetadata`` says; all documents are in there.

    The reader finds the chunks of an array by ``shape`` and ``chunks`` of a ``.zarray``, and by keys as version 2
    spells them. So for version 3 there is one with nothing else in it, and the ``zarr.json`` spells keys so, too.
    """
    path.mkdir()
    metadata: dict[str, Any] = {".zgroup": {"zarr_format": 2}} if zarr_format == 2 else {}
    texts: dict[str, str] = {}
    if zarr_format == 2:
        metadata |= dict(_groups_v2(content))
    for array in arrays:
        if zarr_format == 2:
            metadata[f"{array.path}/.zarray"] = array.document
            metadata[f"{array.path}/.zattrs"] = array.attributes
        else:
            document = {**array.document, "chunk_key_encoding": _V2_KEYS}
            texts[array.path] = dumps(document)
            chunks = document["chunk_grid"]["configuration"]["chunk_shape"]
            metadata[f"{array.path}/.zarray"] = {"shape": document["shape"], "chunks": chunks}
            metadata[f"{array.path}/zarr.json"] = document
        _write_records(path / array.path, array.grid, array.table, locations)
    if zarr_format == 3:
        metadata |= {f"{p}/zarr.json": group.json for p, group in content.groups.items() if p}
        metadata["zarr.json"] = _Raw(_root(content, texts))
    text = ",".join(f"{_text(key)}:{v if isinstance(v, _Raw) else dumps(v)}" for key, v in metadata.items())
    (path / ".zmetadata").write_text(f'{{"metadata":{{{text}}},"record_size":{RECORDS}}}', encoding="utf-8")


class _Raw(str):
    """JSON that is text already."""

    __slots__ = ()


def _write_records(folder: Path, grid: ChunkGrid, table: ChunkTable, locations: list[str]) -> None:
    """The Parquet files of one array. Every chunk of the grid has a row; all columns of one without are empty."""
    folder.mkdir(parents=True, exist_ok=True)
    dictionary = pa.array(locations, pa.string())
    for record, start in enumerate(range(0, grid.size, RECORDS)):
        part = table.between(start, start + RECORDS)
        n = min(RECORDS, grid.size - start)
        rows = part.chunk - start
        source = np.full(n, -1, dtype=np.int32)
        offset, length = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
        # A row of offset and length 0 means a whole file: what has no bytes is inline.
        referred = (part.source != INLINE) & (part.length > 0)
        source[rows[referred]] = part.source[referred]
        offset[rows[referred]], length[rows[referred]] = part.offset[referred], part.length[referred]
        raw: list[bytes | None] = [None] * n
        for row in np.flatnonzero(~referred).tolist():
            raw[int(rows[row])] = _raw(part.inline_bytes(row) if part.source[row] == INLINE else b"")
        paths = pa.DictionaryArray.from_arrays(pa.array(source, mask=source < 0), dictionary)
        columns = {
            "path": paths.cast(pa.string()),
            "offset": pa.array(offset),
            "size": pa.array(length),
            "raw": pa.array(raw, pa.binary()),
        }
        pq.write_table(
            pa.table(columns),
            folder / f"refs.{record}.parq",
            compression="zstd",
            store_schema=False,
            write_statistics=False,
            write_page_checksum=True,
        )


def _raw(data: bytes) -> bytes:
    """Inline bytes; those that look like base64 to the reader are written so."""
    return b"base64:" + base64.b64encode(data) if data.startswith(b"base64:") else data
