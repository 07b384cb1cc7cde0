"""Which dimensions are joined, and which part of each every file has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.join.barriers import Findings
from refindex.join.member import Member, Variants
from refindex.join.options import JoinOptions
from refindex.join.order import Label, Namer, in_order, sorted_pieces, taken_instead

type IntArray = npt.NDArray[np.int64]
type Values = np.ndarray[Any, Any]


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
    name = Namer(key, members, owners, label)
    instead: frozenset[tuple[int, int]] = frozenset()
    if values is None:
        pieces = in_order(range(len(segments)), lengths)
    else:
        found = sorted_pieces(key, segments, name, options, findings)
        if found is None:
            return None
        pieces = found
        instead = taken_instead(segments, last=options.overlap == "last")
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
