"""What an export of references writes, and what it refuses: all problems are found before anything is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.errors import SourceError, UnsupportedError
from refindex.interop import zarr_v2
from refindex.interop.companion import Companion, Encoder
from refindex.interop.content import (
    Content,
    Document,
    block_shape,
    blocks,
    element_size,
    native_rows,
    refused,
    why_adapted,
)
from refindex.model.chunks import DECLARED, INLINE, UNCHECKED, ChunkTable
from refindex.model.encoding import bytes_codec
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node
from refindex.serve.codec_pipeline import open_group
from refindex.serve.quiet import quiet

BLOCK_NBYTES = 64 << 20
"""Values that are held at a time while chunks are made anew."""

_MOST_FILLED = 10_000_000
"""Chunks that do not exist are not written out if there are more."""

_AT_ONCE = 16
_ADVICE = "materialize=True (--materialize) writes such values into a second file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an output can say.

    Parameters
    ----------
    name:
        For messages.
    zarr_format:
        2 or 3.
    rectilinear:
        Whether chunk grids may be rectilinear.
    refuse:
        Why there can be no references to a URL, None if there can be.
    """

    name: str
    zarr_format: int
    rectilinear: bool
    refuse: Callable[[str], str | None]


@dataclass(slots=True, kw_only=True)
class Prepared:
    """An array as it is written: ``zarr.json``, or ``.zarray`` and ``.zattrs``, and references.

    Rows whose ``source`` is the number of sources of the archive point into the companion file.
    """

    path: str
    document: Document
    attributes: Document
    grid: ChunkGrid
    table: ChunkTable


@dataclass(slots=True, kw_only=True)
class _Plan:
    """One array. ``reasons``: why values must be written out. ``remade``: with other chunks, and perhaps codecs."""

    node: Node
    table: ChunkTable
    reasons: list[str] = field(default_factory=list)
    fatal: list[str] = field(default_factory=list)
    document: Document = field(default_factory=dict)
    remade: bool = False
    fill: bool = False
    adapted: np.ndarray[Any, np.dtype[np.bool_]] | None = None
    written: tuple[Document, Document] = field(default_factory=lambda: ({}, {}))


def prepare(content: Content, target: Target, companion: Companion, *, materialize: bool) -> Iterator[Prepared]:
    """The arrays of an export.

    Raises
    ------
    UnsupportedError
        If the target cannot say something, and it may not or cannot be written out: all of it is named.
    """
    plans = [_plan(content, target, node) for node in content.arrays.values()]
    problems = [f"/{p.node.path}: {reason}" for p in plans for reason in p.fatal]
    if not materialize:
        more = [f"/{p.node.path}: {reason}" for p in plans for reason in p.reasons]
        if more:
            raise refused(target.name, [*problems, *more], _ADVICE)
    if problems:
        raise refused(target.name, problems, "leave these arrays out with variables= (--variable)")
    return (_made(content, plan, companion) for plan in plans)


def _plan(content: Content, target: Target, node: Node) -> _Plan:
    plan = _Plan(node=node, table=content.table(node.path), document=node.json)
    if not node.grid.is_regular and not target.rectilinear:
        plan.reasons.append("its chunks are of unequal length")
        plan.remade = True
    if target.zarr_format == 2:
        try:
            zarr_v2.chain_of(node.codecs, len(node.shape))
        except UnsupportedError as error:
            plan.reasons.append(str(error))
            plan.remade = True
    if plan.remade:
        plan.document = remade_document(node)
    else:
        _find_adapted(content, target, plan)
    grid = ChunkGrid.from_json(node.shape, plan.document["chunk_grid"])
    absent = plan.remade or len(plan.table) < grid.size
    if target.zarr_format == 3:
        plan.written = plan.document, {}
        return plan
    try:
        try:
            plan.written = zarr_v2.metadata(plan.document, absent=absent)
        except zarr_v2.FillError as error:
            plan.written = zarr_v2.metadata(plan.document, absent=False)
            if not plan.remade:
                plan.reasons.append(f"{grid.size - len(plan.table)} of its {grid.size} chunks do not exist: {error}")
            plan.fill = True
            if grid.size > _MOST_FILLED:
                plan.fatal.append(f"{error}; and {grid.size} chunks are too many to write them out")
    except UnsupportedError as error:
        plan.fatal.append(str(error))
    return plan


def _find_adapted(content: Content, target: Target, plan: _Plan) -> None:
    """The references that must be written out, and why."""
    node, table = plan.node, plan.table
    if not len(table):
        return
    native = native_rows(node, table)
    numbers = Counter(table.encoding[~native].tolist())
    for number, count in sorted(numbers.items()):
        plan.reasons.append(f"{count} of its {len(table)} chunks: {why_adapted(node, node.encodings[number])}")
    for number in np.unique(table.source[native]).tolist():
        reason = None if number == INLINE else target.refuse(content.sources[number].url)
        if reason is not None:
            rows = native & (table.source == number)
            where = urls.display(content.sources[number].url)
            plan.reasons.append(f"{int(rows.sum())} of its {len(table)} chunks are in {where}: {reason}")
            native &= ~rows
    if not native.all():
        plan.adapted = ~native


def remade_document(node: Node) -> Document:
    """The document of an array that is written with equal chunks, compressed by Zstandard."""
    edges = [edge if isinstance(edge, int) else max(length for length, _ in edge) for edge in node.grid.edges]
    grid = ChunkGrid.regular(node.shape, tuple(edges))
    return {**node.json, "chunk_grid": grid.to_json(), "codecs": plain_codecs(node)}


def plain_codecs(node: Node) -> list[Document]:
    """Any type's way to bytes, and Zstandard behind it."""
    zstd = {"name": "zstd", "configuration": {"level": 3, "checksum": False}}
    if node.dtype is not None:
        return [bytes_codec(node.dtype.newbyteorder("<")), zstd]
    to_bytes = [c for c in node.codecs if c["name"] in ("bytes", "vlen-utf8", "vlen-bytes")]
    if not to_bytes:
        raise UnsupportedError(f"/{node.path}: values of {node.json['data_type']} without a codec that makes bytes")
    return [to_bytes[0], zstd]


def _made(content: Content, plan: _Plan, companion: Companion) -> Prepared:
    document, attributes = plan.written
    grid = ChunkGrid.from_json(plan.node.shape, plan.document["chunk_grid"])
    number = len(content.sources)
    try:
        if plan.remade:
            table = _remade(content, plan, grid, companion, number)
        else:
            table = plan.table
            if plan.adapted is not None:
                table = _adapted(content, plan.node, table, plan.adapted, companion, number)
            if plan.fill:
                table = _filled(plan, table, grid, companion, number)
    except FileNotFoundError as error:
        raise SourceError(f"/{plan.node.path}: {error}") from error
    return Prepared(path=plan.node.path, document=document, attributes=attributes, grid=grid, table=table)


def _remade(content: Content, plan: _Plan, grid: ChunkGrid, companion: Companion, number: int) -> ChunkTable:
    """All values of an array as other chunks."""
    node = plan.node
    encoder = Encoder(plan.document, every=plan.fill)
    with quiet():
        values: Any = open_group(content.store)[node.path]
    step = block_shape(node.shape, grid.chunk_shape(), BLOCK_NBYTES // element_size(node))
    numbers: list[int] = []
    columns = []
    for where in blocks(node.shape, step):
        chunks = encoder.encode(where, values[where if where else ...])
        numbers += chunks
        columns.append(np.stack(companion.add_all(chunks.values())))
    placed = np.concatenate(columns, axis=1) if columns else np.empty((2, 0), dtype=np.int64)
    return ChunkTable.from_columns(chunk=numbers, source=number, offset=placed[0], length=placed[1], encoding=DECLARED)


def _adapted(
    content: Content,
    node: Node,
    table: ChunkTable,
    adapted: np.ndarray[Any, np.dtype[np.bool_]],
    companion: Companion,
    number: int,
) -> ChunkTable:
    """A table with the chunks that need it encoded as declared."""

    def read(chunk: int) -> bytes:
        data = content.resolver.read(node, chunk)
        if data is None:
            raise SourceError(f"/{node.path}: chunk {chunk} is gone")
        return data

    rows = np.flatnonzero(adapted)
    source, encoding = table.source.copy(), table.encoding.copy()
    offset, length = table.offset.copy(), table.length.copy()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for first in range(0, len(rows), 4 * _AT_ONCE):
            some = rows[first : first + 4 * _AT_ONCE]
            offset[some], length[some] = companion.add_all(pool.map(read, table.chunk[some].tolist()))
    source[rows], encoding[rows] = number, DECLARED
    checksum = table.checksum
    if checksum is not None:
        checksum = checksum.copy()
        checksum[rows] = UNCHECKED
    return ChunkTable(
        chunk=table.chunk,
        source=source,
        offset=offset,
        length=length,
        encoding=encoding,
        data=table.data,
        checksum=checksum,
    )


def _filled(plan: _Plan, table: ChunkTable, grid: ChunkGrid, companion: Companion, number: int) -> ChunkTable:
    """A table that has all chunks: those that do not exist are one chunk of fill values."""
    missing = np.ones(grid.size, dtype=bool)
    missing[table.chunk] = False
    chunks = np.flatnonzero(missing)
    if not len(chunks):
        return table
    document = {**plan.document, "shape": list(grid.chunk_shape())}
    encoder = Encoder(document, every=True)
    fill = encoder.encode(tuple(slice(0, n) for n in grid.chunk_shape()), encoder.fill)[0]
    filled = ChunkTable.from_columns(
        chunk=chunks,
        source=number,
        offset=np.full(len(chunks), companion.add(fill)),
        length=len(fill),
        encoding=DECLARED,
    )
    return ChunkTable.concatenate([table, filled])
