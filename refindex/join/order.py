"""Files in the order of their coordinates; overlaps and gaps between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.join.barriers import Findings
from refindex.join.member import Member
from refindex.join.options import JoinOptions

type IntArray = npt.NDArray[np.int64]
type Values = np.ndarray[Any, Any]
type Label = Callable[[Any], str]

_MOST_NOTES = 5
_GAP = 1.5
"""A step between two files that is this many times the usual one is worth a note."""


@dataclass(frozen=True)
class Namer:
    """Names the file that an element of a segment comes from."""

    key: str
    members: Sequence[Member]
    owners: Sequence[tuple[int, int]]
    label: Label

    def __call__(self, segment: int, element: int = 0) -> str:
        member, start = self.owners[segment]
        return self.members[member].name_at(self.key, start + element)


def in_order(order: Sequence[int] | range, lengths: Sequence[int]) -> dict[str, IntArray]:
    """Whole segments one after the other."""
    segment = np.array([s for s in order if lengths[s]], dtype=np.int64)
    length = np.array([lengths[s] for s in segment.tolist()], dtype=np.int64)
    return {
        "segment": segment,
        "start": np.zeros(len(segment), dtype=np.int64),
        "length": length,
        "at": np.cumsum(length) - length,
    }


def sorted_pieces(
    key: str, segments: list[Values], name: Namer, options: JoinOptions, findings: Findings
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


def taken_instead(segments: Sequence[Values], *, last: bool) -> frozenset[tuple[int, int]]:
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
    name: Namer,
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
    name: Namer,
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


def _unsorted_pieces(key: str, segments: list[Values], name: Namer, findings: Findings) -> dict[str, IntArray] | None:
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
        return in_order(range(len(segments)), lengths)
    findings.note(
        name(0),
        key,
        f"the values of {key} are not in order within files: joined in the order in which the files are given",
    )
    return in_order(range(len(segments)), lengths)


def _note_gaps(
    key: str, flat: Values, segment: IntArray, element: IntArray, first: IntArray, name: Namer, findings: Findings
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
