"""Where sources lie along joined dimensions."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.join.dimensions import (
    JoinedDim,
)
from refindex.join.member import Member
from refindex.model.manifest import Placement

type IntArray = npt.NDArray[np.int64]
type Values = np.ndarray[Any, Any]

BOUNDS = ("bounds", "climatology")


def joined_placements(
    members: Sequence[Member], dims: Mapping[str, JoinedDim], source_maps: Mapping[int, IntArray]
) -> tuple[tuple[Placement, ...], bool]:
    """Where all sources lie; only those of new files if the archive's stay where they are."""
    new: list[Placement] = []
    old: list[Placement] = []
    moved = False
    for dim in dims.values():
        pieces: dict[int, list[tuple[int, int, int]]] = {}
        columns = (dim.segment.tolist(), dim.start.tolist(), dim.length.tolist(), dim.at.tolist())
        for segment, start, length, at in zip(*columns, strict=True):
            pieces.setdefault(segment, []).append((start, length, at))
        for number, member in enumerate(members):
            if member.is_base:
                shifted = _shifted(member, dim, number, pieces)
                moved = moved or shifted != [p for p in member.placements if p.dim == dim.key]
                old += shifted
            elif number in source_maps and len(source_maps[number]):
                new += [
                    Placement(
                        dim=dim.key,
                        source=int(source_maps[number][0]),
                        start=at,
                        length=length,
                        offset=offset + start,
                    )
                    for segment, offset in dim.tracks[number]
                    for start, length, at in pieces.get(segment, ())
                ]
    base = members[0]
    if moved:
        old += [p for p in base.placements if p.dim not in dims]
    return ((*old, *new) if moved else tuple(new)), moved


def _shifted(
    member: Member, dim: JoinedDim, number: int, pieces: Mapping[int, list[tuple[int, int, int]]]
) -> list[Placement]:
    """The placements of an archive's sources where its parts have moved to."""
    moved = sorted(
        (offset + start, length, at)
        for segment, offset in dim.tracks[number]
        for start, length, at in pieces.get(segment, ())
    )
    begins = [begin for begin, _, _ in moved]
    out = []
    for placement in member.placements:
        if placement.dim != dim.key:
            continue
        stop = placement.start + placement.length
        for begin, length, at in moved[max(bisect_right(begins, placement.start) - 1, 0) : bisect_left(begins, stop)]:
            low, high = max(begin, placement.start), min(begin + length, stop)
            if low < high:
                out.append(
                    replace(
                        placement,
                        start=at + low - begin,
                        length=high - low,
                        offset=placement.offset + low - placement.start,
                    )
                )
    return out
