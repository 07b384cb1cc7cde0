"""The references of many files' arrays as those of one array: columns in, columns out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.access.spill import Extent
from refindex.join.axis import Axis, Edge, Track, Use, joined_axis, plain_axis, track_of
from refindex.join.dimensions import JoinedDim
from refindex.join.encodings import Encodings, declared_codecs, same_meaning
from refindex.join.kept import Kept
from refindex.join.member import Member
from refindex.join.rows import RowJoin
from refindex.join.variables import ArrayPlan
from refindex.join.windows import windows
from refindex.model.chunks import ChunkTable
from refindex.model.dtype import data_type_json, fill_value_json
from refindex.model.encoding import Encoding
from refindex.model.grid import ChunkGrid, encode_runs
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import array_document, dumps

type IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class JoinedReferences:
    """What becomes of the references.

    Parameters
    ----------
    grid, codecs, encodings:
        Of the joined array.
    chunks:
        References, numbered in the joined grid, or where they are kept; of the archive that is appended to, only those
        that change.
    dropped:
        The chunk number from which on the references of the archive that is appended to are in ``chunks``;
        None: there is no such archive, or it does not have the array.
    adapted:
        Whether some chunks are not served as they are stored.
    inline:
        Whether the bytes of all chunks are in the manifest itself.
    """

    grid: ChunkGrid
    codecs: list[dict[str, Any]]
    encodings: tuple[Encoding, ...]
    chunks: ChunkTable | Extent
    dropped: int | None
    adapted: bool
    inline: bool


def joined_node(plan: ArrayPlan, joined: JoinedReferences, fill: Any) -> Node:
    """The node of a joined array."""
    document = array_document(
        grid=joined.grid,
        data_type=plan.data_type if plan.dtype is None else data_type_json(plan.dtype),
        codecs=joined.codecs,
        fill_value=fill if plan.dtype is None else fill_value_json(plan.dtype, fill),
        dimension_names=plan.dims,
        attributes=plan.attributes,
    )
    return Node(
        path=plan.path,
        document=dumps(document),
        encodings=joined.encodings,
        attribute_types=plan.attribute_types,
    ).knowing(json=document, grid=joined.grid)


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
    kept: Kept,
    held: Collection[tuple[int, ...]] | None = None,
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
    held:
        The places that the archive has files at, if there are others between them: see :class:`RowJoin`.
    """
    nodes = plan.variants.nodes
    axes = _axes(plan, uses, dims, cache)
    grid = ChunkGrid(shape=tuple(axis.size for axis in axes), edges=tuple(grid_edge(axis.lengths) for axis in axes))
    base = uses[0] if uses and members[uses[0].member].is_base else None
    keep = 0
    if base is not None and same_meaning(plan, base.kind) and _same_fill(nodes[base.kind], plan, fill):
        keep = _kept(plan.path, axes, nodes[base.kind].grid, grid, base, dims, members[base.member])
    old = (
        members[base.member].table(plan.path, keep) if base is not None and keep < nodes[base.kind].grid.size else None
    )

    def table_of(use: Use, start: int = 0, stop: int | None = None) -> ChunkTable:
        if use is base:
            return ChunkTable.empty() if old is None else old.between(start, stop)
        return members[use.member].table(plan.path, start, stop)

    codecs = declared_codecs(plan, uses, table_of, base)
    encodings = Encodings(plan, codecs, initial=nodes[base.kind].encodings if base is not None and keep else ())
    rows = RowJoin(
        plan=plan, axes=axes, dims=dims, grid=grid, source_maps=source_maps, encodings=encodings, fill=fill, held=held
    )
    counts = [len(old or ()) if use is base else members[use.member].count(plan.path) for use in uses]
    firsts = [keep if use is base else 0 for use in uses]
    chunks = kept.add(_joined_rows(rows, uses, counts, firsts, table_of), sum(counts))
    return JoinedReferences(
        grid=grid,
        codecs=codecs,
        encodings=tuple(encodings.found),
        chunks=chunks,
        dropped=keep if base is not None else None,
        adapted=rows.adapted,
        inline=rows.inline,
    )


def _joined_rows(
    rows: RowJoin,
    uses: Sequence[Use],
    counts: Sequence[int],
    firsts: Sequence[int],
    table_of: Callable[[Use, int, int | None], ChunkTable],
) -> Iterator[ChunkTable]:
    """The references of all members, window by window."""
    grids = [rows.plan.variants.nodes[use.kind].grid for use in uses]
    for window in windows(uses, counts, grids, rows.axes, rows.dims, rows.grid, firsts):
        parts = [(uses[part.use], (part.start, part.stop)) for part in window.parts]
        tables = [
            table_of(use, start, stop if stop < grids[part.use].size else None)
            for (use, (start, stop)), part in zip(parts, window.parts, strict=True)
        ]
        yield rows.join([use for use, _ in parts], tables, [extent for _, extent in parts], (window.start, window.stop))


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
    maps = [axis.maps[track_of(base, dims, n), old.edges[n]] for n, axis in enumerate(axes)]
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
