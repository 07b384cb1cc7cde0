"""Rows of many chunk tables as those of one: numbered in the joined grid, with the joined encodings."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.errors import UnsupportedError
from refindex.join.axis import Axis, Use, track_of
from refindex.join.dimensions import JoinedDim
from refindex.join.encodings import Encodings, stored_type
from refindex.join.values import decode_declared, encode_declared
from refindex.join.variables import ArrayPlan
from refindex.model.chunks import DECLARED, INLINE, UNCHECKED, ChunkTable, joined_checksums
from refindex.model.dtype import fill_value_json
from refindex.model.encoding import Encoding, native_codecs
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node

type IntArray = npt.NDArray[np.int64]


@dataclass(slots=True, kw_only=True)
class _Columns:
    """Rows of all members, one after the other."""

    use: IntArray
    chunk: IntArray
    source: IntArray
    offset: IntArray
    length: IntArray
    encoding: IntArray
    data: bytes
    checksum: IntArray | None

    def take(self, rows: IntArray) -> None:
        for name in ("use", "chunk", "source", "offset", "length", "encoding"):
            setattr(self, name, getattr(self, name)[rows])
        if self.checksum is not None:
            self.checksum = self.checksum[rows]


@dataclass(slots=True, kw_only=True)
class RowJoin:
    """What the rows of one array are joined by, and what has been seen of them.

    Parameters
    ----------
    source_maps:
        For each member, the numbers of its sources in the joined manifest.
    encodings:
        Of the joined array; those that are met are added.
    held:
        Of the archive that is appended to, which is the first member: the places, one segment of each joined dimension,
        that it has files at. What its chunks have at others, between those files, is not taken. None: all.
    adapted:
        Whether some of the rows so far are not served as they are stored.
    inline:
        Whether the bytes of all chunks so far are in the manifest itself.
    """

    plan: ArrayPlan
    axes: Sequence[Axis]
    dims: Sequence[JoinedDim | None]
    grid: ChunkGrid
    source_maps: Mapping[int, IntArray]
    encodings: Encodings
    fill: Any
    held: Collection[tuple[int, ...]] | None = None
    adapted: bool = False
    inline: bool = True

    def join(
        self,
        uses: Sequence[Use],
        tables: Sequence[ChunkTable],
        extents: Sequence[tuple[int, int]],
        window: tuple[int, int],
    ) -> ChunkTable:
        """The rows of some members that lie in a window of the joined chunk numbers.

        Parameters
        ----------
        extents:
            The chunk numbers in each member's own grid that its table is about.
        """
        plan, grid, encodings = self.plan, self.grid, self.encodings
        nodes = plan.variants.nodes
        tables = [
            _with_absent(plan, use, table, nodes[use.kind], encodings, self.fill, extent)
            for use, table, extent in zip(uses, tables, extents, strict=True)
        ]
        columns = _concatenate(uses, tables, self.source_maps)
        numbers = np.zeros(len(columns.chunk), dtype=np.int64)
        _number_encodings(plan, uses, columns, encodings, nodes)
        starts: dict[int, IntArray] = {}
        local = _coordinates(columns, uses, nodes)
        for n, axis in enumerate(self.axes):
            rows, joined, start = _place(columns.use, local[:, n], uses, nodes, axis, self.dims, n)
            if rows is not None:
                columns.take(rows)
                local, numbers = local[rows], numbers[rows]
                starts = {a: s[rows] for a, s in starts.items()}
            numbers = numbers * grid.counts[n] + joined
            if start.any():
                starts[n] = start
        inside = (numbers >= window[0]) & (numbers < window[1])
        if self.held is not None:
            archive = np.array([use.member == 0 for use in uses], dtype=bool)[columns.use]
            inside[archive] &= self._at_files(numbers[archive])
        if not inside.all():
            rows = np.flatnonzero(inside)
            columns.take(rows)
            local, numbers = local[rows], numbers[rows]
            starts = {a: s[rows] for a, s in starts.items()}
        _start_encodings(columns, starts, len(self.axes), encodings, grid)
        _rewrite_declared(plan, columns, numbers, local, starts, uses, encodings, grid)
        table = ChunkTable.from_columns(
            chunk=numbers,
            source=columns.source,
            offset=columns.offset,
            length=columns.length,
            encoding=columns.encoding,
            data=columns.data,
            checksum=columns.checksum,
        )
        self.adapted = self.adapted or _is_adapted(plan, table, encodings, grid)
        self.inline = self.inline and table.is_inline
        return table

    def _at_files(self, numbers: IntArray) -> npt.NDArray[np.bool_]:
        """Which chunks of the joined array lie where the archive has files."""
        coordinates = self.grid.coordinates(numbers)
        segments = []
        for axis, dim in enumerate(self.dims):
            if dim is not None:
                start, along = self.grid.starts[axis], coordinates[:, axis]
                first = along * start if isinstance(start, int) else start[along]
                segments.append(dim.segment[np.searchsorted(dim.at, first, side="right") - 1])
        distinct, inverse = np.unique(np.stack(segments, axis=1), axis=0, return_inverse=True)
        there = np.array([tuple(cell) in (self.held or ()) for cell in distinct.tolist()], dtype=bool)
        return there[inverse.reshape(-1)]


def _concatenate(uses: Sequence[Use], tables: Sequence[ChunkTable], source_maps: Mapping[int, IntArray]) -> _Columns:
    counts = [len(table) for table in tables]
    use = np.repeat(np.arange(len(uses)), counts)
    maps = [source_maps[u.member] for u in uses]
    bases = np.cumsum([0, *(len(m) for m in maps)])[:-1]
    flat = np.concatenate([*maps, np.zeros(1, dtype=np.int64)])
    source = np.concatenate([t.source for t in tables]).astype(np.int64) if tables else np.zeros(0, dtype=np.int64)
    inline = source == INLINE
    mapped = np.where(inline, INLINE, flat[np.where(inline, 0, source + bases[use])])
    offset = np.concatenate([t.offset for t in tables]) if tables else np.zeros(0, dtype=np.int64)
    data = b""
    if inline.any():
        shifts = np.cumsum([0, *(len(t.data) for t in tables)])[:-1]
        offset = np.where(inline, offset + shifts[use], offset)
        data = b"".join(t.data for t in tables)
    return _Columns(
        use=use,
        chunk=np.concatenate([t.chunk for t in tables]) if tables else np.zeros(0, dtype=np.int64),
        source=mapped,
        offset=offset,
        length=np.concatenate([t.length for t in tables]) if tables else np.zeros(0, dtype=np.int64),
        encoding=np.concatenate([t.encoding for t in tables]).astype(np.int64)
        if tables
        else np.zeros(0, dtype=np.int64),
        data=data,
        checksum=joined_checksums(tables),
    )


_PENDING = -2
"""``encoding`` of rows whose bytes must be encoded anew: no encoding says what they are."""


def _number_encodings(
    plan: ArrayPlan, uses: Sequence[Use], columns: _Columns, encodings: Encodings, nodes: Sequence[Node]
) -> None:
    """Encodings of all rows in the numbers of the joined array."""
    kinds = np.array([use.kind for use in uses], dtype=np.int64)
    present = sorted({use.kind for use in uses})
    maps = {kind: encodings.of_kind(kind) for kind in present}
    bases = np.zeros(len(nodes), dtype=np.int64)
    at = 0
    for kind in present:
        bases[kind] = at
        at += len(maps[kind])
    flat = np.concatenate([*(maps[kind] for kind in present), np.zeros(1, dtype=np.int64)])
    row_kind = kinds[columns.use]
    declared = columns.encoding == DECLARED
    extra = columns.encoding >= _ABSENT
    mapped = flat[np.where(declared | extra, 0, bases[row_kind] + columns.encoding)]
    mapped[extra] = columns.encoding[extra] - _ABSENT
    mapped[declared] = DECLARED
    for kind in present if declared.any() else ():
        if plan.dtype is None or encodings.declared_stays(nodes[kind], kind):
            continue
        rows = np.flatnonzero(declared & (row_kind == kind))
        mapped[rows] = _encode_declared_rows(nodes[kind], kind, columns.chunk[rows], encodings)
    columns.encoding = mapped


def _encode_declared_rows(node: Node, kind: int, chunks: IntArray, encodings: Encodings) -> IntArray:
    """Encodings for inline rows that a document declares otherwise than the joined one; few of them."""
    out = np.empty(len(chunks), dtype=np.int64)
    by_shape: dict[tuple[int, ...], int] = {}
    for row, chunk in enumerate(chunks.tolist()):
        shape = node.grid.chunk_shape(chunk)
        if shape not in by_shape:
            number = encodings.of_declared(node, kind, shape)
            by_shape[shape] = _PENDING if number is None else number
        out[row] = by_shape[shape]
    return out


def _coordinates(columns: _Columns, uses: Sequence[Use], nodes: Sequence[Node]) -> IntArray:
    """Chunk coordinates of all rows in the grids of their own files."""
    ndim = nodes[0].grid.ndim
    out = np.zeros((len(columns.chunk), ndim), dtype=np.int64)
    of_grid: dict[ChunkGrid, int] = {}
    grids: list[ChunkGrid] = []
    numbers = []
    for use in uses:
        grid = nodes[use.kind].grid
        number = of_grid.setdefault(grid, len(grids))
        if number == len(grids):
            grids.append(grid)
        numbers.append(number)
    if len(grids) == 1:
        return grids[0].coordinates(columns.chunk)
    row_grid = np.array(numbers, dtype=np.int64)[columns.use]
    for number, grid in enumerate(grids):
        rows = np.flatnonzero(row_grid == number)
        out[rows] = grid.coordinates(columns.chunk[rows])
    return out


def _place(
    use: IntArray,
    chunk: IntArray,
    uses: Sequence[Use],
    nodes: Sequence[Node],
    axis: Axis,
    dims: Sequence[JoinedDim | None],
    n: int,
) -> tuple[IntArray | None, IntArray, IntArray]:
    """Where rows lie along one axis: which rows (None: each once), their joined chunks, their first elements."""
    maps = [axis.maps[track_of(u, dims, n), nodes[u.kind].grid.edges[n]] for u in uses]
    if all(m.is_identity for m in {id(m): m for m in maps}.values()):
        return None, chunk, np.zeros(len(chunk), dtype=np.int64)
    lengths = [len(m.pointer) for m in maps]
    base = np.cumsum([0, *lengths])[:-1]
    entries = np.cumsum([0, *(len(m.joined) for m in maps)])[:-1]
    pointer = np.concatenate([m.pointer + e for m, e in zip(maps, entries, strict=True)])
    joined = np.concatenate([m.joined for m in maps])
    start = np.concatenate([m.start for m in maps])
    at = base[use] + chunk
    first, counts = pointer[at], pointer[at + 1] - pointer[at]
    if (counts == 1).all():
        return None, joined[first], start[first]
    rows = np.repeat(np.arange(len(at)), counts)
    within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    entry = first[rows] + within
    return rows, joined[entry], start[entry]


def _start_encodings(
    columns: _Columns, starts: Mapping[int, IntArray], ndim: int, encodings: Encodings, grid: ChunkGrid
) -> None:
    """Give rows that begin inside their stored chunk an encoding that says where."""
    del grid
    if not starts:
        return
    matrix = np.zeros((len(columns.encoding), ndim + 1), dtype=np.int64)
    matrix[:, 0] = columns.encoding
    for axis, start in starts.items():
        matrix[:, axis + 1] = start
    moved = np.flatnonzero(matrix[:, 1:].any(axis=1) & (matrix[:, 0] >= 0))
    if not len(moved):
        return
    distinct, inverse = np.unique(matrix[moved], axis=0, return_inverse=True)
    numbers = np.empty(len(distinct), dtype=np.int64)
    for row, (number, *start) in enumerate(distinct.tolist()):
        encoding = encodings.found[number]
        old = encoding.start or (0,) * ndim
        # Along a repeated dimension, every element is the first.
        total = tuple(0 if a in encoding.broadcast else o + s for a, (o, s) in enumerate(zip(old, start, strict=True)))
        numbers[row] = encodings.add(replace(encoding, start=total if any(total) else ()))
    columns.encoding[moved] = numbers[inverse.reshape(-1)]


def _rewrite_declared(
    plan: ArrayPlan,
    columns: _Columns,
    numbers: IntArray,
    local: IntArray,
    starts: Mapping[int, IntArray],
    uses: Sequence[Use],
    encodings: Encodings,
    grid: ChunkGrid,
) -> None:
    """Encode inline chunks anew that no encoding describes, or that lie otherwise in the joined grid; few of them."""
    nodes = plan.variants.nodes
    rows = np.flatnonzero(columns.encoding < 0)
    parts: list[bytes] = []
    at = len(columns.data)
    for row in rows.tolist():
        use = uses[int(columns.use[row])]
        node = nodes[use.kind]
        chunk = int(node.grid.index(local[row])[0])
        old, new = node.grid.chunk_shape(chunk), grid.chunk_shape(int(numbers[row]))
        start = [int(starts[axis][row]) if axis in starts else 0 for axis in range(len(old))]
        if columns.encoding[row] == DECLARED and old == new and not any(start):
            continue
        if columns.source[row] != INLINE:
            columns.encoding[row] = _moved(plan, node, use.kind, old, tuple(start), encodings)
            continue
        columns.encoding[row] = DECLARED
        begin, length = int(columns.offset[row]), int(columns.length[row])
        values = decode_declared(columns.data[begin : begin + length], node.codecs, node.dtype, old)
        inside = tuple(slice(s, s + n) for s, n in zip(start, new, strict=True))
        cut = plan.convert(values[inside], use.kind)
        out = np.zeros(new, dtype=cut.dtype)
        out[tuple(slice(0, n) for n in cut.shape)] = cut
        data = encode_declared(out, encodings.codecs, plan.dtype)
        columns.offset[row], columns.length[row] = at, len(data)
        parts.append(data)
        at += len(data)
    if parts:
        columns.data += b"".join(parts)


def _moved(
    plan: ArrayPlan, node: Node, kind: int, shape: tuple[int, ...], start: tuple[int, ...], encodings: Encodings
) -> int:
    """The encoding of a chunk in another file that is stored as its array declares, at another place."""
    number = encodings.of_declared(node, kind, shape)
    if number is None:
        raise UnsupportedError(
            f"/{plan.path}: chunks of {shape} with the codecs {', '.join(c['name'] for c in node.codecs)} of a Zarr "
            "array lie otherwise in the joined one, and cannot be moved"
        )
    return encodings.add(replace(encodings.found[number], start=start if any(start) else ()))


_ABSENT = 1 << 30
"""Added to the numbers of encodings that were numbered in the joined array already."""


def _with_absent(
    plan: ArrayPlan,
    use: Use,
    table: ChunkTable,
    node: Node,
    encodings: Encodings,
    fill: Any,
    extent: tuple[int, int],
) -> ChunkTable:
    """A table with rows for absent chunks, where they read otherwise than those of the joined array.

    Each has one inline element, which is repeated over its place.
    """
    if plan.dtype is None or len(table) == extent[1] - extent[0]:
        return table
    own = plan.fill_of(use.kind)
    if fill_value_json(plan.dtype, own) == fill_value_json(plan.dtype, fill):
        return table
    stored = stored_type(plan.dtype)
    absent = np.setdiff1d(np.arange(*extent), table.chunk, assume_unique=True)
    element = np.asarray(own, dtype=plan.dtype).tobytes()
    if stored is None or not len(absent):
        return table
    number = encodings.add(Encoding(type=stored, shape=(1,) * node.grid.ndim, broadcast=tuple(range(node.grid.ndim))))
    here = len(table.data)
    return ChunkTable.from_columns(
        chunk=np.concatenate((table.chunk, absent)),
        source=np.concatenate((table.source, np.full(len(absent), INLINE))),
        offset=np.concatenate((table.offset, np.full(len(absent), here))),
        length=np.concatenate((table.length, np.full(len(absent), len(element)))),
        encoding=np.concatenate((table.encoding, np.full(len(absent), number + _ABSENT))),
        data=b"".join((table.data, element)),
        checksum=None if table.checksum is None else np.concatenate((table.checksum, np.full(len(absent), UNCHECKED))),
    )


def _is_adapted(plan: ArrayPlan, table: ChunkTable, encodings: Encodings, grid: ChunkGrid) -> bool:
    """Whether some chunk is not served as it is stored."""
    if plan.dtype is None or not len(table):
        return False
    for number in np.unique(table.encoding).tolist():
        if number == DECLARED:
            continue
        encoding = encodings.found[number]
        if native_codecs(encoding, plan.dtype) != encodings.codecs or _lies_otherwise(
            table, number, encoding.shape, grid
        ):
            return True
    return False


def _lies_otherwise(table: ChunkTable, encoding: int, shape: tuple[int, ...], grid: ChunkGrid) -> bool:
    """Whether some chunk with an encoding has another shape than its place in the grid."""
    irregular = []
    for axis, start in enumerate(grid.starts):
        if not isinstance(start, int):
            irregular.append((axis, np.diff(start)))
        elif start != shape[axis]:
            return True
    if not irregular:
        return False
    coords = grid.coordinates(table.chunk[table.encoding == encoding])
    return any(bool((lengths[coords[:, axis]] != shape[axis]).any()) for axis, lengths in irregular)
