"""Which dimensions are joined, and which part of each every file has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.join.barriers import Findings, some
from refindex.join.member import Member, Variants
from refindex.join.options import JoinOptions

type IntArray = npt.NDArray[np.int64]
type Values = np.ndarray[Any, Any]
type Label = Callable[[Any], str]

_MOST_NOTES = 5
_GAP = 1.5
"""A step between two files that is this many times the usual one is worth a note."""


@dataclass(frozen=True, kw_only=True)
class JoinedDim:
    """One joined dimension: distinct segments of it, and the order in which their parts follow each other.

    Parameters
    ----------
    key:
        Path of the dimension.
    lengths:
        Elements of each segment.
    tracks:
        For each member, its segments as ``(segment, first element in the member)``; a file has one, an archive
        one for each part that it was joined of, a member without the dimension none.
    segment, start, length, at:
        Columns, one row a piece in joined order: the elements ``[start, start + length)`` of a segment lie at
        ``at``.
    instead:
        Pairs of segments that have coordinates in common, which are taken from the second.
    """

    key: str
    lengths: tuple[int, ...]
    tracks: tuple[tuple[tuple[int, int], ...], ...]
    segment: IntArray
    start: IntArray
    length: IntArray
    at: IntArray
    instead: frozenset[tuple[int, int]] = frozenset()

    @property
    def size(self) -> int:
        """Elements of the joined dimension."""
        return int(self.length.sum())


class DimensionKeys:
    """What each dimension of each array is called throughout the hierarchy.

    As in netCDF, a dimension belongs to a group and is seen in those below it: the group is where its coordinate
    variable is. A dimension without one belongs to the group of the array.
    """

    def __init__(self, variants: Mapping[str, Variants]) -> None:
        self.coordinates = {
            path
            for path, kinds in variants.items()
            if all(node.dims == (path.rpartition("/")[2],) for node in kinds.nodes)
        }

    def of(self, path: str, dims: Sequence[str | None]) -> tuple[str, ...]:
        """The keys of an array's dimensions."""
        return tuple(self._key(path, axis, dim) for axis, dim in enumerate(dims))

    def _key(self, path: str, axis: int, dim: str | None) -> str:
        if dim is None:
            return f"{path}/dim_{axis}"
        group = path.rpartition("/")[0]
        scope = group
        while True:
            key = f"{scope}/{dim}".lstrip("/")
            if key in self.coordinates:
                return key
            if not scope:
                return f"{group}/{dim}".lstrip("/")
            scope = scope.rpartition("/")[0]


def dimension_sizes(
    members: Sequence[Member], variants: Mapping[str, Variants], keys: DimensionKeys, findings: Findings
) -> dict[str, IntArray]:
    """Size of each dimension in each member, -1 where a member does not have it."""
    sizes: dict[str, IntArray] = {}
    for path, kinds in variants.items():
        who, kind = np.array(kinds.members), np.array(kinds.kinds)
        for number, node in enumerate(kinds.nodes):
            having = who[kind == number]
            for key, extent in zip(keys.of(path, node.dims), node.shape, strict=True):
                column = sizes.setdefault(key, np.full(len(members), -1, dtype=np.int64))
                wrong = having[(column[having] >= 0) & (column[having] != extent)]
                if len(wrong):
                    member = members[int(wrong[0])]
                    findings.bar(
                        f"{member.name}: dimension {key} has {column[wrong[0]]} elements, in /{path} it has {extent}"
                    )
                column[having] = extent
    return sizes


def differing_dimensions(
    members: Sequence[Member],
    sizes: Mapping[str, IntArray],
    coordinates: Mapping[str, Mapping[int, Values]],
    options: JoinOptions,
    findings: Findings,
) -> list[str]:
    """Keys of the dimensions to join: those asked for, or those whose coordinates differ."""
    named = (*options.concat_dim, *options.stack)
    # An archive stays joined along what it was joined along, and may come to be along more.
    record = (members[0].nodes[""].joined or {}) if members[0].is_base else {}
    chosen = [str(dim["key"]) for dim in record.get("dims", ()) if dim["key"] in sizes]
    for name in named:
        matching = [key for key in sizes if name in (key, key.rpartition("/")[2])]
        if not matching:
            findings.bar(f"no file has a dimension {name}; there are {', '.join(sorted(sizes)) or 'none'}")
        chosen += [key for key in matching if key not in chosen]
    bare: list[str] = []
    for key, column in sizes.items():
        if key in chosen:
            continue
        having = np.flatnonzero(column >= 0)
        differs = len(np.unique(column[having])) > 1
        if key in coordinates:
            values = coordinates[key]
            differs = differs or len({v.tobytes() if v.dtype != object else tuple(v) for v in values.values()}) > 1
            if differs and not options.concat_dim:
                chosen.append(key)
                continue
        if differs:
            bare.append(key)
    for key in bare:
        column = sizes[key]
        having = np.flatnonzero(column >= 0)
        other = having[column[having] != column[having[0]]]
        one, two = members[int(having[0])].name, members[int(other[0] if len(other) else having[-1])].name
        if len(other):
            message = f"dimension {key} has {column[having[0]]} elements in {one} and {column[other[0]]} in {two}"
        else:
            message = f"coordinate {key} differs between {one} and {two}"
        if key in coordinates:
            findings.bar(f"{message}; pass it to concat_dim (--concat-dim), too, to join along it")
        else:
            findings.bar(
                f"{message}, and no coordinate says which comes first; pass concat_dim={key.rpartition('/')[2]!r} "
                f"(--concat-dim {key.rpartition('/')[2]}) to join in the order in which the files are given"
            )
    return chosen


def join_dimension(
    key: str,
    members: Sequence[Member],
    column: IntArray,
    values: Mapping[int, Values] | None,
    options: JoinOptions,
    findings: Findings,
    *,
    alone: bool = False,
    label: Label = str,
) -> JoinedDim | None:
    """Segments of one dimension and their order; None if something stands in the way.

    Parameters
    ----------
    column:
        Size of the dimension in each member, -1 where there is none.
    values:
        Its coordinate in each member that has it; None if there is none.
    alone:
        Whether no other dimension is joined.
    label:
        A coordinate as messages show it.
    """
    segments: list[Values] = []
    owners: list[tuple[int, int]] = []
    known: dict[Any, int] = {}
    tracks: list[tuple[tuple[int, int], ...]] = []
    for number, member in enumerate(members):
        if column[number] < 0:
            tracks.append(())
            continue
        if values is not None and number not in values:
            findings.bar(f"{member.name} has a dimension {key}, but no coordinate {key} as the other files have")
            return None
        track = []
        whole = alone and values is not None and _stays_whole(member, number, values)
        for start, stop in [(0, int(column[number]))] if whole else _parts(member, key, int(column[number])):
            part = np.arange(start, stop) if values is None else values[number][start:stop]
            unique = (number, start) if values is None else (part.tobytes() if part.dtype != object else tuple(part))
            segment = known.setdefault(unique, len(segments))
            if segment == len(segments):
                segments.append(part)
                owners.append((number, start))
            track.append((segment, start))
        tracks.append(tuple(track))
    lengths = tuple(len(s) for s in segments)
    name = _Namer(key, members, owners, label)
    instead: frozenset[tuple[int, int]] = frozenset()
    if values is None:
        pieces = _in_order(range(len(segments)), lengths)
    else:
        found = _sorted_pieces(key, segments, name, options, findings)
        if found is None:
            return None
        pieces = found
        instead = _taken_instead(segments, last=options.overlap == "last")
    return JoinedDim(key=key, lengths=lengths, tracks=tuple(tracks), instead=instead, **pieces)


def _stays_whole(member: Member, number: int, values: Mapping[int, Values]) -> bool:
    """Whether all that comes lies before or behind an archive, which then need not be looked at part by part."""
    own = values[number]
    if not member.is_base or own.dtype.kind not in "iuf" or not len(own):
        return False
    low, high = own.min(), own.max()
    others = [v for n, v in values.items() if n != number and len(v)]
    return all(bool(v.min() > high or v.max() < low) for v in others)


def _parts(member: Member, key: str, size: int) -> list[tuple[int, int]]:
    """A file's dimension whole; an archive's in the parts of which it was joined."""
    cuts = {0, size}
    for placement in member.placements:
        if placement.dim == key:
            cuts |= {placement.start, placement.start + placement.length}
    edges = sorted(cuts)
    return list(pairwise(edges)) or [(0, 0)]


@dataclass(frozen=True)
class _Namer:
    """Names the file that an element of a segment comes from."""

    key: str
    members: Sequence[Member]
    owners: Sequence[tuple[int, int]]
    label: Label

    def __call__(self, segment: int, element: int = 0) -> str:
        member, start = self.owners[segment]
        return self.members[member].name_at(self.key, start + element)


def _in_order(order: Sequence[int] | range, lengths: Sequence[int]) -> dict[str, IntArray]:
    """Whole segments one after the other."""
    segment = np.array([s for s in order if lengths[s]], dtype=np.int64)
    length = np.array([lengths[s] for s in segment.tolist()], dtype=np.int64)
    return {
        "segment": segment,
        "start": np.zeros(len(segment), dtype=np.int64),
        "length": length,
        "at": np.cumsum(length) - length,
    }


def _sorted_pieces(
    key: str, segments: list[Values], name: _Namer, options: JoinOptions, findings: Findings
) -> dict[str, IntArray] | None:
    """Segments in the order of their coordinates; overlaps and gaps are looked at."""
    directions = [_direction(values) for values in segments]
    lengths = [len(values) for values in segments]
    if any(d is None for d in directions) or {-1, 1} <= set(directions):
        return _unsorted_pieces(key, segments, name, findings)
    descending = -1 in directions
    flat = np.concatenate(segments)
    segment = np.repeat(np.arange(len(segments)), lengths)
    element = np.concatenate([np.arange(n) for n in lengths]) if segments else segment
    order = np.argsort(flat, kind="stable")
    if descending:
        order = order[::-1]
    again = np.flatnonzero(flat[order][1:] == flat[order][:-1])
    if len(again) and options.overlap == "error":
        _bar_overlaps(key, flat[order], segment[order], element[order], again, name, findings)
        return None
    if len(again):
        order = _keep(flat, segment, options.overlap == "last", descending=descending)
        findings.note(
            name(int(segment[order[0]])),
            key,
            f"{len(again)} coordinates of {key} are in more than one file: the {options.overlap} one is taken",
        )
    segment, element, flat = segment[order], element[order], flat[order]
    breaks = np.flatnonzero((segment[1:] != segment[:-1]) | (element[1:] != element[:-1] + 1)) + 1
    first = np.concatenate(([0], breaks)).astype(np.int64) if len(segment) else np.zeros(0, dtype=np.int64)
    length = np.diff(np.append(first, len(segment)))
    if options.overlap == "error" and len(first) > sum(1 for n in lengths if n):
        _bar_interleaved(key, segment[first], element[first], flat, first, name, findings)
        return None
    _note_gaps(key, flat, segment, element, first, name, findings)
    return {"segment": segment[first], "start": element[first], "length": length, "at": first}


def _direction(values: Values) -> int | None:
    """1 for ascending values, -1 for descending ones, 0 for fewer than two, None for any others."""
    if values.dtype.kind not in "iufmM" or (values.dtype.kind == "f" and np.isnan(values).any()):
        return None
    if len(values) < 2:
        return 0
    step = values[1:] > values[:-1]
    if step.all():
        return 1
    return -1 if (values[1:] < values[:-1]).all() else None


def _keep(flat: Values, segment: IntArray, last: bool, *, descending: bool) -> IntArray:
    """Of equal coordinates those of the first, or the last, segment in the order in which the files are given."""
    rank = -segment if last else segment
    sorted_order: IntArray = np.lexsort((rank, flat)).astype(np.int64)
    ordered = flat[sorted_order]
    keep = np.concatenate(([True], ordered[1:] != ordered[:-1])) if len(ordered) else np.zeros(0, dtype=bool)
    kept = sorted_order[keep]
    return kept[::-1] if descending else kept


def _taken_instead(segments: Sequence[Values], *, last: bool) -> frozenset[tuple[int, int]]:
    """Pairs of segments that have coordinates in common: the one that gives way, and the one that is taken."""
    if any(values.dtype.kind not in "iufmM" for values in segments):
        return frozenset()
    flat = np.concatenate(segments)
    segment = np.repeat(np.arange(len(segments)), [len(values) for values in segments])
    order = np.lexsort((-segment if last else segment, flat))
    values, owner = flat[order], segment[order]
    begins = np.concatenate((np.ones(1, dtype=bool), values[1:] != values[:-1])) if len(values) else values.astype(bool)
    taken = owner[np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))] if len(values) else owner
    return frozenset((a, b) for a, b in zip(owner[~begins].tolist(), taken[~begins].tolist(), strict=True) if a != b)


def _bar_overlaps(
    key: str,
    flat: Values,
    segment: IntArray,
    element: IntArray,
    again: IntArray,
    name: _Namer,
    findings: Findings,
) -> None:
    """Every pair of files that have coordinates in common, with the range."""
    pairs: dict[tuple[str, str], list[Any]] = {}
    for at in again.tolist():
        one = name(int(segment[at]), int(element[at]))
        two = name(int(segment[at + 1]), int(element[at + 1]))
        pairs.setdefault((min(one, two), max(one, two)), []).append(flat[at])
    for (one, two), shared in pairs.items():
        low, high = name.label(min(shared)), name.label(max(shared))
        what = low if len(shared) == 1 else f"{len(shared)} values from {low} to {high}"
        findings.bar(
            f"{one} and {two} overlap in {key}: both have {what}; pass overlap='first' or 'last' (--overlap) to take "
            "one of them"
        )


def _bar_interleaved(
    key: str,
    segment: IntArray,
    start: IntArray,
    flat: Values,
    first: IntArray,
    name: _Namer,
    findings: Findings,
) -> None:
    """Files of which one begins before another ends."""
    pairs: dict[tuple[str, str], Any] = {}
    for at in range(1, len(segment)):
        if start[at]:  # the second part of a file that another one interrupted
            one, two = name(int(segment[at]), int(start[at])), name(int(segment[at - 1]))
            pairs.setdefault((one, two), flat[first[at]])
    for (one, two), value in pairs.items():
        findings.bar(
            f"{one} and {two} overlap in {key}: one goes on at {name.label(value)} where the other has begun; pass "
            "overlap='first' or 'last' (--overlap) to join them by their coordinates nevertheless"
        )


def _unsorted_pieces(key: str, segments: list[Values], name: _Namer, findings: Findings) -> dict[str, IntArray] | None:
    """Segments as they were given: their values are not in order, so that nothing says which comes first."""
    lengths = [len(values) for values in segments]
    owner: dict[Any, int] = {}
    for number, values in enumerate(segments):
        for value in values.tolist():
            before = owner.setdefault(value, number)
            if before != number:
                findings.bar(f"{name(before)} and {name(number)} overlap in {key}: both have {value!r}")
                return None
    if any(values.dtype.kind not in "iuf" for values in segments):
        return _in_order(range(len(segments)), lengths)
    findings.note(
        name(0),
        key,
        f"the values of {key} are not in order within files: joined in the order in which the files are given",
    )
    return _in_order(range(len(segments)), lengths)


def _note_gaps(
    key: str, flat: Values, segment: IntArray, element: IntArray, first: IntArray, name: _Namer, findings: Findings
) -> None:
    """Steps from one file to the next that are much longer than the usual one."""
    if len(flat) < 3 or flat.dtype.kind not in "iuf" or len(first) < 2:
        return
    steps = np.abs(np.diff(flat.astype(np.float64)))
    usual = float(np.median(steps))
    wide = first[1:][steps[first[1:] - 1] > _GAP * usual] if usual > 0 else first[:0]
    for at in wide[:_MOST_NOTES].tolist():
        one = name(int(segment[at - 1]), int(element[at - 1]))
        two = name(int(segment[at]), int(element[at]))
        findings.note(
            two,
            key,
            f"gap in {key}: {one} ends at {name.label(flat[at - 1])}, {two} begins at {name.label(flat[at])}",
        )
    if len(wide) > _MOST_NOTES:
        where = name(int(segment[wide[_MOST_NOTES]]))
        findings.note(where, key, f"{len(wide) - _MOST_NOTES} more gaps in {key}")


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
