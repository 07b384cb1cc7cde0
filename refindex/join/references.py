"""The references of many files' arrays as those of one array: columns in, columns out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.errors import UnsupportedError
from refindex.join.axis import Axis, Edge, Track, joined_axis, plain_axis
from refindex.join.dimensions import JoinedDim
from refindex.join.member import Member
from refindex.join.values import decode_declared, encode_declared
from refindex.join.variables import ArrayPlan
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.dtype import StoredType, Text, fill_value_json, type_from_json
from refindex.model.encoding import Encoding, bytes_codec, native_codecs
from refindex.model.grid import ChunkGrid, encode_runs
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import dumps

type IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Use:
    """One member's part in a joined array: the member, its kind of document, and its track along each joined axis."""

    member: int
    kind: int
    tracks: tuple[Track, ...]


@dataclass(frozen=True, kw_only=True)
class JoinedReferences:
    """What becomes of the references.

    Parameters
    ----------
    grid, codecs, encodings:
        Of the joined array.
    chunks:
        References, numbered in the joined grid; of the archive that is appended to, only those that change.
    dropped:
        The chunk number from which on the references of the archive that is appended to are in ``chunks``;
        None: there is no such archive, or it does not have the array.
    adapted:
        Whether some chunks are not served as they are stored.
    """

    grid: ChunkGrid
    codecs: list[dict[str, Any]]
    encodings: tuple[Encoding, ...]
    chunks: ChunkTable
    dropped: int | None
    adapted: bool


class AxisCache:
    """Axes of joined arrays; variables that are chunked alike share them."""

    def __init__(self) -> None:
        self._axes: dict[Any, Axis] = {}

    def joined(self, dim: JoinedDim, users: Sequence[tuple[Track, Edge, int]]) -> Axis:
        key = (dim.key, tuple(dict.fromkeys(users)))
        if key not in self._axes:
            self._axes[key] = joined_axis(dim, users)
        return self._axes[key]


def join_references(
    plan: ArrayPlan,
    uses: Sequence[Use],
    members: Sequence[Member],
    dims: Sequence[JoinedDim | None],
    source_maps: Mapping[int, IntArray],
    fill: Any,
    cache: AxisCache,
) -> JoinedReferences:
    """Put the references of the members that use an array into one grid.

    Parameters
    ----------
    dims:
        The joined dimension of each axis, None where the axis is not joined.
    source_maps:
        For each member, the numbers of its sources in the joined manifest.
    fill:
        What a chunk without a reference reads as.
    """
    nodes = plan.variants.nodes
    axes = _axes(plan, uses, dims, cache)
    grid = ChunkGrid(shape=tuple(axis.size for axis in axes), edges=tuple(grid_edge(axis.lengths) for axis in axes))
    base = uses[0] if uses and members[uses[0].member].is_base else None
    keep = 0
    if base is not None and _same_meaning(plan, base.kind) and _same_fill(nodes[base.kind], plan, fill):
        keep = _kept(plan.path, axes, nodes[base.kind].grid, grid, base, dims, members[base.member])
    tables = [
        ChunkTable.empty()
        if use is base and keep == nodes[use.kind].grid.size
        else members[use.member].table(plan.path, keep if use is base else 0)
        for use in uses
    ]
    codecs = _declared(plan, uses, tables, base)
    encodings = _Encodings(plan, codecs, initial=nodes[base.kind].encodings if base is not None and keep else ())
    chunks, adapted = _rows(plan, uses, tables, axes, dims, grid, source_maps, encodings, fill, keep, base)
    return JoinedReferences(
        grid=grid,
        codecs=codecs,
        encodings=tuple(encodings.found),
        chunks=chunks,
        dropped=keep if base is not None else None,
        adapted=adapted,
    )


def grid_edge(lengths: IntArray) -> Edge:
    """Chunk lengths of an axis; one number where all but a shorter last one are equal: it is padded then."""
    if len(lengths) > 1 and lengths[-1] < lengths[0] and (lengths[:-1] == lengths[0]).all():
        return int(lengths[0])
    return encode_runs(lengths)


def _axes(plan: ArrayPlan, uses: Sequence[Use], dims: Sequence[JoinedDim | None], cache: AxisCache) -> list[Axis]:
    grids = [node.grid for node in plan.variants.nodes]
    axes: list[Axis] = []
    at = 0
    for axis, dim in enumerate(dims):
        if dim is None:
            axes.append(plain_axis(grids[uses[0].kind].shape[axis], [grids[use.kind].edges[axis] for use in uses]))
        else:
            users = [(use.tracks[at], grids[use.kind].edges[axis], grids[use.kind].shape[axis]) for use in uses]
            axes.append(cache.joined(dim, users))
            at += 1
    return axes


def _track(use: Use, dims: Sequence[JoinedDim | None], axis: int) -> Track:
    if dims[axis] is None:
        return ()
    return use.tracks[sum(dim is not None for dim in dims[:axis])]


def _same_meaning(plan: ArrayPlan, kind: int) -> bool:
    """Whether the rows of an archive's array mean the same in the joined one."""
    node = plan.variants.nodes[kind]
    return plan.dtype == node.dtype and plan.packings[kind] is None


def _same_fill(node: Node, plan: ArrayPlan, fill: Any) -> bool:
    """Whether a chunk that an archive does not have reads as before."""
    return plan.dtype is not None and fill_value_json(plan.dtype, fill) == node.json["fill_value"]


def _kept(
    path: str,
    axes: Sequence[Axis],
    old: ChunkGrid,
    new: ChunkGrid,
    base: Use,
    dims: Sequence[JoinedDim | None],
    archive: Member,
) -> int:
    """The number of chunks of the archive, counted from the first, whose numbers and places stay."""
    if not old.shape or old.size == 0:
        return 0
    maps = [axis.maps[_track(base, dims, n), old.edges[n]] for n, axis in enumerate(axes)]
    if old.counts[1:] != new.counts[1:] or not all(m.is_identity for m in maps[1:]):
        return 0
    behind = zip(old.starts[1:], new.starts[1:], strict=True)
    if any(not np.array_equal(_lengths(one), _lengths(two)) for one, two in behind):
        return 0
    first = maps[0].unchanged()
    edge = old.edges[0]
    lengths = (
        np.full(old.counts[0], edge) if isinstance(edge, int) else np.repeat([n for n, _ in edge], [c for _, c in edge])
    )
    same = lengths[:first] == axes[0].lengths[:first]
    stride = int(np.prod(new.counts[1:], dtype=np.int64))
    if not same.all():
        changed = int(np.argmin(same))
        # A last chunk that overhung the extent and no longer does is the same reference at a shorter place, unless
        # its bytes are those of the declared chain, which are as long as the place.
        tail_stays = changed == first - 1 and bool(np.all(archive.table(path, changed * stride).encoding >= 0))
        first = first if tail_stays else changed
    return first * stride


def _lengths(starts: int | IntArray) -> IntArray:
    """Chunk lengths along an axis, all of them one number where it is regular."""
    return np.array([starts]) if isinstance(starts, int) else np.diff(starts)


def _declared(
    plan: ArrayPlan, uses: Sequence[Use], tables: Sequence[ChunkTable], base: Use | None
) -> list[dict[str, Any]]:
    """The codec chain of most of the chunks; that of the archive that is appended to, where it can stay."""
    nodes = plan.variants.nodes
    if plan.dtype is None:
        return nodes[0].codecs
    if base is not None and _same_meaning(plan, base.kind):
        return nodes[base.kind].codecs
    times = Counter(use.kind for use in uses)
    weights: Counter[str] = Counter()
    chains: dict[str, list[dict[str, Any]]] = {}
    for kind, count in times.items():
        if plan.packings[kind] is not None:
            continue
        table = next(table for use, table in zip(uses, tables, strict=True) if use.kind == kind)
        numbers, rows = np.unique(table.encoding, return_counts=True)
        for number, n in zip(numbers.tolist(), rows.tolist(), strict=True):
            if number == DECLARED:
                codecs = nodes[kind].codecs if nodes[kind].dtype == plan.dtype else None
            else:
                codecs = native_codecs(nodes[kind].encodings[number], plan.dtype)
            if codecs is not None:
                weights[dumps(codecs)] += n * count
                chains.setdefault(dumps(codecs), codecs)
    if not weights:
        return [bytes_codec(plan.dtype)]
    return chains[weights.most_common(1)[0][0]]


class _Encodings:
    """The encodings of a joined array, each once."""

    def __init__(self, plan: ArrayPlan, codecs: list[dict[str, Any]], initial: Sequence[Encoding]) -> None:
        self.found: list[Encoding] = list(initial)
        self._numbers = {encoding: n for n, encoding in enumerate(self.found)}
        self._plan = plan
        self.codecs = codecs

    def add(self, encoding: Encoding) -> int:
        number = self._numbers.setdefault(encoding, len(self.found))
        if number == len(self.found):
            self.found.append(encoding)
        return number

    def of_kind(self, kind: int) -> IntArray:
        """Numbers of a kind's encodings in the joined array."""
        packing = self._plan.packings[kind]
        numbers = [
            self.add(e if packing is None or e.packing is not None else replace(e, packing=packing))
            for e in self._plan.variants.nodes[kind].encodings
        ]
        return np.array(numbers, dtype=np.int64)

    def declared_stays(self, node: Node, kind: int) -> bool:
        """Whether bytes as a document declares them are bytes as the joined one does."""
        return node.dtype == self._plan.dtype and self._plan.packings[kind] is None and node.codecs == self.codecs

    def of_declared(self, node: Node, kind: int, shape: tuple[int, ...]) -> int | None:
        """The encoding of bytes as a document declares them; None if no encoding says it."""
        if node.dtype is None or len(node.codecs) != 1:
            return None
        stored = _stored_type(node.dtype)
        if stored is None:
            return None
        return self.add(Encoding(type=stored, shape=shape, packing=self._plan.packings[kind]))


def _stored_type(dtype: np.dtype[Any]) -> StoredType | None:
    """The stored type of elements that lie as a document declares them."""
    if dtype.kind == "S":
        return Text(dtype.itemsize, "nullpad")
    if dtype.names is not None:
        return None
    return type_from_json(dtype.str)


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

    def take(self, rows: IntArray) -> None:
        for name in ("use", "chunk", "source", "offset", "length", "encoding"):
            setattr(self, name, getattr(self, name)[rows])


def _rows(
    plan: ArrayPlan,
    uses: Sequence[Use],
    tables: Sequence[ChunkTable],
    axes: Sequence[Axis],
    dims: Sequence[JoinedDim | None],
    grid: ChunkGrid,
    source_maps: Mapping[int, IntArray],
    encodings: _Encodings,
    fill: Any,
    keep: int,
    base: Use | None,
) -> tuple[ChunkTable, bool]:
    nodes = plan.variants.nodes
    tables = [
        _with_absent(plan, use, table, nodes[use.kind], encodings, fill, keep if use is base else 0)
        for use, table in zip(uses, tables, strict=True)
    ]
    columns = _concatenate(uses, tables, source_maps)
    before = len(columns.chunk)
    _number_encodings(plan, uses, columns, encodings, nodes)
    numbers = np.zeros(before, dtype=np.int64)
    starts: dict[int, IntArray] = {}
    local = _coordinates(columns, uses, nodes)
    for n, axis in enumerate(axes):
        rows, joined, start = _place(columns.use, local[:, n], uses, nodes, axis, dims, n)
        if rows is not None:
            columns.take(rows)
            local, numbers = local[rows], numbers[rows]
            starts = {a: s[rows] for a, s in starts.items()}
        numbers = numbers * grid.counts[n] + joined
        if start.any():
            starts[n] = start
    _start_encodings(columns, starts, len(axes), encodings, grid)
    _rewrite_declared(plan, columns, numbers, local, starts, uses, encodings, grid)
    table = ChunkTable.from_columns(
        chunk=numbers,
        source=columns.source,
        offset=columns.offset,
        length=columns.length,
        encoding=columns.encoding,
        data=columns.data,
    )
    return table, _is_adapted(plan, table, encodings, grid)


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
    )


_PENDING = -2
"""``encoding`` of rows whose bytes must be encoded anew: no encoding says what they are."""


def _number_encodings(
    plan: ArrayPlan, uses: Sequence[Use], columns: _Columns, encodings: _Encodings, nodes: Sequence[Node]
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


def _encode_declared_rows(node: Node, kind: int, chunks: IntArray, encodings: _Encodings) -> IntArray:
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
    maps = [axis.maps[_track(u, dims, n), nodes[u.kind].grid.edges[n]] for u in uses]
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
    columns: _Columns, starts: Mapping[int, IntArray], ndim: int, encodings: _Encodings, grid: ChunkGrid
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
    encodings: _Encodings,
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
    plan: ArrayPlan, node: Node, kind: int, shape: tuple[int, ...], start: tuple[int, ...], encodings: _Encodings
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
    plan: ArrayPlan, use: Use, table: ChunkTable, node: Node, encodings: _Encodings, fill: Any, start: int
) -> ChunkTable:
    """A table with rows for absent chunks, where they read otherwise than those of the joined array.

    Each has one inline element, which is repeated over its place.
    """
    size = node.grid.size - start
    if plan.dtype is None or len(table) == size:
        return table
    own = plan.fill_of(use.kind)
    if fill_value_json(plan.dtype, own) == fill_value_json(plan.dtype, fill):
        return table
    stored = _stored_type(plan.dtype)
    absent = np.setdiff1d(np.arange(start, node.grid.size), table.chunk, assume_unique=True)
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
        data=table.data + element,
    )


def _is_adapted(plan: ArrayPlan, table: ChunkTable, encodings: _Encodings, grid: ChunkGrid) -> bool:
    """Whether some chunk is not served as it is stored."""
    if plan.dtype is None or not len(table):
        return False
    coords = grid.coordinates(table.chunk)
    shapes = np.empty_like(coords)
    for axis, start in enumerate(grid.starts):
        shapes[:, axis] = start if isinstance(start, int) else np.diff(start)[coords[:, axis]]
    for number in np.unique(table.encoding).tolist():
        if number == DECLARED:
            continue
        encoding = encodings.found[number]
        if native_codecs(encoding, plan.dtype) != encodings.codecs:
            return True
        if np.any(shapes[table.encoding == number] != np.array(encoding.shape)):
            return True
    return False
