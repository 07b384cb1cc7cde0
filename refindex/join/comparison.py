"""Values that several files have, and that must be equal in all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.errors import RefindexError
from refindex.join.axis import Use
from refindex.join.barriers import Findings, some
from refindex.join.dimensions import (
    JoinedDim,
)
from refindex.join.member import Member
from refindex.join.options import JoinOptions
from refindex.join.values import constants, digest, same_values
from refindex.join.variables import ArrayPlan

type IntArray = npt.NDArray[np.int64]
type Values = np.ndarray[Any, Any]

BOUNDS = ("bounds", "climatology")


@dataclass(slots=True, kw_only=True)
class Comparison:
    """Variables that several files have at one place: their values must be equal.

    Parameters
    ----------
    axes:
        The joined dimension of each axis of an array, None where it is not joined.
    digests:
        Checksums of the values that were looked at, by path.
    differing:
        Variables that differ, and the dimension along which they are stacked.
    taken:
        Variables of which the first file's values are taken.
    unequal:
        Variables that differ: by path and first member, the others.
    """

    members: Sequence[Member]
    options: JoinOptions
    findings: Findings
    dims: Mapping[str, JoinedDim]
    axes: Callable[[ArrayPlan], Sequence[JoinedDim | None]]
    digests: dict[str, str] = field(default_factory=dict)
    differing: dict[str, str] = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)
    unequal: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def bar_unequal(self) -> None:
        """Say which files have other values than the first."""
        for (path, one), others in self.unequal.items():
            names = some([self.members[n].name for n in others])
            self.findings.bar(
                f"/{path}: values differ between {self.members[one].name} and {names}; pass on_difference='first' "
                "(--on-difference first) to take those of the first file, or 'stack' to keep all"
            )

    def compare(self, plan: ArrayPlan, one: int, other: int, joined: Sequence[JoinedDim]) -> None:
        """Two files have a variable at the same place: their values must be equal."""
        if plan.path in self.differing or plan.path in self.taken:
            return
        if self.members[one].is_base and joined and self._has_nothing(plan, one, other):
            self.findings.bar(
                f"/{plan.path}: missing in {self.members[one].name} where {self.members[other].name} has it: a "
                "variable that was missing cannot be filled in later; scan all files anew"
            )
            return
        if self.options.on_difference == "first" and not self._is_cheap(plan, one, other):
            self.taken.add(plan.path)
            self.findings.note(
                self.members[one].name,
                plan.path,
                f"the values of {self.members[one].name} are taken, others not looked at",
            )
            return
        try:
            equal = self._equal(plan, one, other, joined)
        except RefindexError as error:
            self.findings.bar(f"/{plan.path}: {error}")
            return
        if equal:
            return
        names = f"{self.members[one].name} and {self.members[other].name}"
        if self.options.on_difference == "first":
            self.taken.add(plan.path)
            self.findings.note(
                self.members[other].name, plan.path, f"values differ between {names}: those of the former are taken"
            )
            return
        if self.options.on_difference == "stack" and not joined and len(self.dims) == 1:
            self.differing[plan.path] = next(iter(self.dims))
            self.findings.note(
                self.members[other].name,
                plan.path,
                f"values differ between {names}: stacked along {next(iter(self.dims))}",
            )
            return
        self.unequal.setdefault((plan.path, one), []).append(other)

    def _is_cheap(self, plan: ArrayPlan, one: int, other: int) -> bool:
        """Whether two files' values are in their manifests, and can be compared without reading the files."""
        if self.members[one].is_base:
            return False
        return all(self.members[n].table(plan.path).is_inline for n in (one, other))

    def _equal(self, plan: ArrayPlan, one: int, other: int, joined: Sequence[JoinedDim]) -> bool:
        first, second = self.members[one], self.members[other]
        kinds = plan.variants.kind_of(one), plan.variants.kind_of(other)
        if not first.is_base and kinds[0] == kinds[1]:
            tables = first.table(plan.path), second.table(plan.path)
            inline = all(t.is_inline for t in tables)
            if inline and tables[0].data == tables[1].data and np.array_equal(tables[0].chunk, tables[1].chunk):
                return True
        values = plan.values(self.members, other)
        if first.is_base:
            known = constants(first.nodes[""].joined).get(plan.path)
            if known is not None and known == digest(values):
                return True
        before = plan.values(self.members, one)
        if first.is_base and joined:
            before = before[self._part(plan, one, other)]
        if not first.is_base:
            self.digests.setdefault(plan.path, digest(before))
        return same_values(before, values)

    def _has_nothing(self, plan: ArrayPlan, one: int, other: int) -> bool:
        """Whether an archive has only fill values at the place of another member, which has others."""
        part, kind = self._part(plan, one, other), plan.variants.kind_of(one)
        try:
            before, values = plan.values(self.members, one)[part], plan.values(self.members, other)
        except RefindexError as error:
            self.findings.bar(f"/{plan.path}: {error}")
            return False
        fills = (plan.fill_of(kind), plan.missing(kind))
        return not same_values(before, values) and any(same_values(before, np.full_like(before, f)) for f in fills)

    def _part(self, plan: ArrayPlan, one: int, other: int) -> tuple[slice, ...]:
        """Where in an archive's array the place of another member is."""
        part = []
        for dim in self.axes(plan):
            if dim is None:
                part.append(slice(None))
                continue
            segment = dim.tracks[other][0][0]
            at = dict(dim.tracks[one]).get(segment, 0)
            part.append(slice(at, at + dim.lengths[segment]))
        return tuple(part)

    def check_known(self, plan: ArrayPlan, uses: Sequence[Use]) -> None:
        """A constant that was stored in a file that is replaced must be what the other files have."""
        base = self.members[0]
        known = constants(base.nodes[""].joined).get(plan.path) if base.is_base else None
        if known is None or plan.path in base.nodes or not uses or self.options.on_difference == "first":
            return
        if digest(plan.values(self.members, uses[0].member)) != known:
            self.findings.bar(
                f"/{plan.path}: values differ between {base.name} and {self.members[uses[0].member].name}; pass "
                "on_difference='first' (--on-difference first) to take those of the latter"
            )
