"""Arrays whose values lie in the manifest: joined by value, and kept in few chunks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from refindex.errors import RefindexError
from refindex.join.axis import Use
from refindex.join.barriers import Findings
from refindex.join.dimensions import JoinedDim
from refindex.join.member import Member
from refindex.join.references import JoinedReferences
from refindex.join.values import array_values, encode_declared, is_inline
from refindex.join.variables import ArrayPlan
from refindex.model.chunks import ChunkTable
from refindex.model.encoding import bytes_codec
from refindex.model.grid import ChunkGrid, encode_runs

type Values = np.ndarray[Any, Any]

INLINE_NBYTES = 16 << 20
"""Arrays of at most this many bytes are kept in the manifest once they are joined."""


def is_small(plan: ArrayPlan, uses: Sequence[Use], members: Sequence[Member], shape: Sequence[int]) -> bool:
    """Whether the values of an array are joined, instead of its references."""
    if plan.dtype is None or plan.converted:
        return True
    if int(np.prod(shape, dtype=object)) * plan.dtype.itemsize > INLINE_NBYTES:
        return False
    if plan.variants.nodes[0].dtype is not None and any(
        encoding.broadcast for node in plan.variants.nodes for encoding in node.encodings
    ):
        return False  # repeated along a dimension: short as references, long as values
    return all(is_inline(members[use.member].table(plan.path)) for use in uses)


def join_values(
    plan: ArrayPlan,
    uses: Sequence[Use],
    members: Sequence[Member],
    dims: Sequence[JoinedDim | None],
    fill: Any,
    findings: Findings,
) -> JoinedReferences | None:
    """Put the values of the members that use an array into one, kept inline; None if they cannot be read.

    One chunk holds them all; what an append adds comes in chunks of its own, which are merged whenever one is as
    long as the one before it: so few chunks are read, and little is written again.
    """
    nodes = plan.variants.nodes
    shape = tuple(nodes[uses[0].kind].shape[axis] if dim is None else dim.size for axis, dim in enumerate(dims))
    if plan.dtype is None and nodes[0].codecs[0]["name"] == "vlen-bytes":
        fill = b""
    out: Values = np.full(shape, fill, dtype=object if plan.dtype is None else plan.dtype)
    pieces = [None if dim is None else _pieces(dim) for dim in dims]
    try:
        for use in uses:
            _assign(out, plan.values(members, use.member), use, pieces)
    except RefindexError as error:
        findings.bar(f"/{plan.path}: {error}")
        return None
    base = uses[0] if members[uses[0].member].is_base else None
    codecs = nodes[0].codecs if plan.dtype is None else [bytes_codec(plan.dtype)]
    lengths, kept = [max(shape[0], 1)] if shape else [], 0
    if base is not None and _grows(plan, base, members, dims, pieces, codecs):
        lengths, kept = _grown(nodes[base.kind].grid, shape[0])
    edges = tuple(
        [encode_runs(lengths) if kept or len(lengths) > 1 else lengths[0], *(max(n, 1) for n in shape[1:])]
        if shape
        else []
    )
    grid = ChunkGrid(shape=shape, edges=edges)
    starts = np.cumsum([0, *lengths]).tolist()
    chunks = [
        (number, encode_declared(out[starts[number] : starts[number + 1]], codecs, plan.dtype))
        for number in (range(kept, len(lengths)) if 0 not in shape else ())
    ]
    if not shape:
        chunks = [(0, encode_declared(out, codecs, plan.dtype))]
    return JoinedReferences(
        grid=grid,
        codecs=codecs,
        encodings=(),
        chunks=ChunkTable.inline(chunks) if chunks else ChunkTable.empty(),
        dropped=kept if base is not None else None,
        adapted=False,
        inline=True,
    )


def _pieces(dim: JoinedDim) -> dict[int, list[tuple[int, int, int]]]:
    """For each segment, the parts of it that are in the joined dimension: start, length, place."""
    found: dict[int, list[tuple[int, int, int]]] = {}
    columns = (dim.segment.tolist(), dim.start.tolist(), dim.length.tolist(), dim.at.tolist())
    for segment, start, length, at in zip(*columns, strict=True):
        found.setdefault(segment, []).append((start, length, at))
    return found


def _assign(
    out: Values, values: Values, use: Use, pieces: Sequence[dict[int, list[tuple[int, int, int]]] | None]
) -> None:
    """Write a member's values to where they lie."""
    choices: list[list[tuple[slice, slice]]] = []
    at = 0
    for axis_pieces in pieces:
        if axis_pieces is None:
            choices.append([(slice(None), slice(None))])
            continue
        parts = []
        for segment, offset in use.tracks[at]:
            for start, length, place in axis_pieces.get(segment, ()):
                parts.append((slice(place, place + length), slice(offset + start, offset + start + length)))
        choices.append(parts)
        at += 1
    if all(len(parts) == 1 for parts in choices):
        out[tuple(parts[0][0] for parts in choices)] = values[tuple(parts[0][1] for parts in choices)]
        return
    grids = np.indices([len(parts) for parts in choices]).reshape(len(choices), -1).T
    for picks in grids.tolist():
        chosen = [parts[pick] for parts, pick in zip(choices, picks, strict=True)]
        out[tuple(target for target, _ in chosen)] = values[tuple(source for _, source in chosen)]


def _grows(
    plan: ArrayPlan,
    base: Use,
    members: Sequence[Member],
    dims: Sequence[JoinedDim | None],
    pieces: Sequence[dict[int, list[tuple[int, int, int]]] | None],
    codecs: list[dict[str, Any]],
) -> bool:
    """Whether the archive's values stay as they are, and others come behind them along the first dimension."""
    node = plan.variants.nodes[base.kind]
    if not dims or dims[0] is None or any(dim is not None for dim in dims[1:]):
        return False
    if node.dtype != plan.dtype or node.codecs != codecs or plan.packings[base.kind] is not None:
        return False
    if any(count != 1 for count in node.grid.counts[1:]) or not is_inline(members[base.member].table(plan.path)):
        return False
    first = pieces[0] or {}
    if any(first.get(segment, []) != [(0, _length(dims[0], segment), at)] for segment, at in base.tracks[0]):
        return False
    before = plan.converted.get(base.member)
    return before is None or np.array_equal(before, _stored(plan, members, base))


def _length(dim: JoinedDim | None, segment: int) -> int:
    return 0 if dim is None else dim.lengths[segment]


def _stored(plan: ArrayPlan, members: Sequence[Member], base: Use) -> Values:
    return array_values(members[base.member], plan.path)


def _grown(grid: ChunkGrid, size: int) -> tuple[list[int], int]:
    """Chunk lengths once an array has ``size`` elements, and how many of the first chunks stay as they are."""
    edge = grid.edges[0]
    old = grid.shape[0]
    if isinstance(edge, int):
        lengths = [min(edge, old - at) for at in range(0, old, edge)]
    else:
        lengths = [n for n, count in edge for _ in range(count)]
    if size == old or not old:
        return (lengths, len(lengths)) if old else ([max(size, 1)], 0)
    before = len(lengths)
    kept = before
    lengths.append(size - old)
    while len(lengths) > 1 and lengths[-1] >= lengths[-2]:
        lengths[-2:] = [lengths[-2] + lengths[-1]]
        kept = min(kept, len(lengths) - 1)
    return lengths, kept
