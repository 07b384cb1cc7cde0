"""Files at one place of all joined dimensions, and the places at which an archive has files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refindex.join.barriers import Findings, some
from refindex.join.dimensions import JoinedDim
from refindex.join.member import Member
from refindex.join.options import JoinOptions


def check_positions(
    members: Sequence[Member], dims: Sequence[JoinedDim], options: JoinOptions, findings: Findings
) -> dict[int, int]:
    """Members at the same place of all joined dimensions, unless they are merged: the one that is left out, and for
    which other one."""
    places: dict[tuple[Any, ...], list[int]] = {}
    for number, member in enumerate(members):
        if member.is_base:
            for place in base_cells(member, dims, number):
                places.setdefault(place, []).append(number)
        else:
            places.setdefault(tuple(dim.tracks[number][0][0] if dim.tracks[number] else -1 for dim in dims), []).append(
                number
            )
    left_out: dict[int, int] = {}
    for place, here in places.items():
        if len(here) < 2 or options.merge or (not any(p >= 0 for p in place) and dims):
            continue
        if any(p >= 0 and not dim.lengths[p] for dim, p in zip(dims, place, strict=True)):
            continue  # files without any element take no place
        names = [members[n].name for n in here]
        if options.overlap == "error":
            where = " and ".join(dim.key for dim in dims)
            what = f"have the same {where}" if where else "have equal coordinates: nothing tells them apart"
            findings.bar(
                f"{some(names)} {what}; pass merge=True (--merge) if they hold different variables, "
                "stack='NAME' (--stack) for a new dimension, or overlap='first' or 'last' (--overlap) to take one"
            )
            continue
        chosen = here[0] if options.overlap == "first" else here[-1]
        if members[here[0]].is_base and chosen != here[0]:
            findings.bar(
                f"{names[-1]} has the same {' and '.join(dim.key for dim in dims)} as a file of {names[0]}; remove "
                "that one first to take the last (refindex remove)"
            )
            continue
        left_out |= {n: chosen for n in here if n != chosen and not members[n].is_base}
    return left_out


def base_cells(member: Member, dims: Sequence[JoinedDim], number: int) -> set[tuple[int, ...]]:
    """The places, one segment of each joined dimension, at which an archive has files."""
    by_source: dict[int, dict[str, list[int]]] = {}
    starts = {dim.key: {start: segment for segment, start in dim.tracks[number]} for dim in dims}
    for placement in member.placements:
        segment = starts.get(placement.dim, {}).get(placement.start)
        if segment is not None:
            by_source.setdefault(placement.source, {}).setdefault(placement.dim, []).append(segment)
    cells: set[tuple[int, ...]] = set()
    for segments in by_source.values():
        partial: list[tuple[int, ...]] = [()]
        for dim in dims:
            partial = [(*head, s) for head in partial for s in segments.get(dim.key, [-1])]
        cells |= set(partial)
    return cells
