"""Many hierarchies -> one: the steps of a join, in order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.access.spill import Extent
from refindex.errors import RefindexError
from refindex.join.axis import Use
from refindex.join.barriers import Findings, condense, some
from refindex.join.comparison import Comparison
from refindex.join.dimensions import (
    DimensionKeys,
    JoinedDim,
    differing_dimensions,
    dimension_sizes,
    join_dimension,
)
from refindex.join.kept import Kept
from refindex.join.member import Member, Variants
from refindex.join.options import JoinOptions
from refindex.join.placements import joined_placements
from refindex.join.positions import base_cells, check_positions
from refindex.join.references import AxisCache, JoinedReferences, join_references, joined_node
from refindex.join.result import Joined
from refindex.join.small import is_small, join_values
from refindex.join.stacking import repeat_member, stack_members
from refindex.join.times import time_label
from refindex.join.values import constants, digest
from refindex.join.variables import ArrayPlan, merge_attributes, plan_array, plan_times
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Node, ReportEntry, Source, Status
from refindex.model.zarr_v3 import dumps, group_document

type IntArray = npt.NDArray[np.int64]
type Values = np.ndarray[Any, Any]

BOUNDS = ("bounds", "climatology")


def join(members: Sequence[Member], options: JoinOptions) -> Joined:
    """Join hierarchies; the first may be an archive that is appended to.

    Raises
    ------
    JoinError
        With everything that stands in the way, in all files.
    """
    beside = " To keep each file as a group of its own, pass join=False (--no-join)."
    findings = Findings(hint="" if members[0].is_base else beside)
    stacked = stack_members(members, options.stack, findings)
    findings.check()
    return _Join(stacked, options, findings).run(repeat=True)


@dataclass(slots=True)
class _Join:
    members: Sequence[Member]
    options: JoinOptions
    findings: Findings
    variants: dict[str, Variants] = field(init=False)
    keys: DimensionKeys = field(init=False)
    sizes: dict[str, IntArray] = field(init=False)
    plans: dict[str, ArrayPlan] = field(init=False, default_factory=dict)
    dims: dict[str, JoinedDim] = field(init=False, default_factory=dict)
    left_out: set[int] = field(init=False, default_factory=set)
    cells: set[tuple[int, ...]] = field(init=False, default_factory=set)
    held: dict[tuple[str, ...], set[tuple[int, ...]]] = field(init=False, default_factory=dict)
    cache: AxisCache = field(init=False, default_factory=AxisCache)
    comparison: Comparison = field(init=False)
    kept: Kept = field(init=False, default_factory=Kept)

    def run(self, *, repeat: bool) -> Joined:
        members = self.members
        self.comparison = Comparison(
            members=members, options=self.options, findings=self.findings, dims=self.dims, axes=self._axes
        )
        paths = dict.fromkeys(path for member in members for path, node in member.nodes.items() if node.is_array)
        self.variants = {path: Variants.of(members, path) for path in paths}
        self._check_kinds()
        self.keys = DimensionKeys(self.variants)
        self.sizes = dimension_sizes(members, self.variants, self.keys, self.findings)
        self._plan()
        if not self._place():
            self.findings.check()
        # Values are compared even where something stands in the way already: all of it is to be said at once.
        uses = {path: self._uses(path) for path in self.plans}
        self.comparison.bar_unequal()
        if self.comparison.differing and self.options.on_difference == "stack" and repeat:
            return self._repeated()
        self.findings.check()
        sources, source_maps = self._sources()
        nodes: dict[str, Node] = self._groups()
        found: dict[str, tuple[ChunkTable | Extent, int | None]] = {}
        entries: list[ReportEntry] = []
        with closing(self.kept):
            for path, plan in self.plans.items():
                self._array(plan, uses[path], source_maps, nodes, found, entries)
            self.findings.check()
            tables = {path: (self.kept.table(chunks), dropped) for path, (chunks, dropped) in found.items()}
        nodes[""] = replace(nodes[""], joined=self._record())
        placements, moved = joined_placements(self.members, self.dims, source_maps)
        return Joined(
            nodes=nodes,
            tables=tables,
            sources=sources,
            known_sources=len(members[0].sources) if members[0].is_base else 0,
            placements=placements,
            moved=moved,
            report=(
                *entries,
                *self.findings.entries,
                *condense([member.report for member in members if not member.is_base]),
            ),
        )

    def _check_kinds(self) -> None:
        """A path must not be a group in one file and an array in another."""
        for path in self.variants:
            for member in self.members:
                node = member.nodes.get(path)
                if node is not None and not node.is_array:
                    other = self.members[self.variants[path].members[0]].name
                    self.findings.bar(f"/{path} is an array in {other} and a group in {member.name}")
                    break

    def _plan(self) -> None:
        """What each variable becomes; times first of all, by which files are put in order."""
        for path, variants in self.variants.items():
            plan = plan_array(path, variants, self.members, self.findings)
            if plan is not None:
                self.plans[path] = plan
        bounded = set()
        for path, plan in self.plans.items():
            for attribute in BOUNDS:
                name = plan.variants.nodes[0].attributes.get(attribute)
                if isinstance(name, str):
                    bounds = f"{path.rpartition('/')[0]}/{name}".lstrip("/")
                    if bounds in self.plans and bounds != path:
                        plan_times(plan, self.plans[bounds], self.members, self.findings)
                        bounded |= {path, bounds}
        for path, plan in self.plans.items():
            if path not in bounded:
                plan_times(plan, None, self.members, self.findings)

    def _place(self) -> bool:
        """Which dimensions are joined, and where every file lies in them; whether that could be found out."""
        coordinates: dict[str, dict[int, Values]] = {}
        for key in self.sizes:
            if key in self.keys.coordinates and key in self.plans:
                plan = self.plans[key]
                try:
                    coordinates[key] = {number: plan.values(self.members, number) for number in plan.variants.members}
                except RefindexError as error:
                    self.findings.bar(f"/{key}: {error}")
        chosen = differing_dimensions(self.members, self.sizes, coordinates, self.options, self.findings)
        for key in chosen:
            dim = join_dimension(
                key,
                self.members,
                self.sizes[key],
                coordinates.get(key),
                self.options,
                self.findings,
                alone=len(chosen) == 1,
                label=time_label(self.plans[key].attributes) if key in self.plans else str,
            )
            if dim is not None:
                self.dims[key] = dim
        if len(self.dims) != len(chosen):
            return False
        dims = list(self.dims.values())
        left_out = check_positions(self.members, dims, self.options, self.findings)
        for number, other in left_out.items():
            names = self.members[number].name, self.members[other].name
            self.findings.note(names[0], "", f"left out: {names[1]} has the same coordinates, and is the one to take")
        self.left_out = set(left_out)
        for number, member in enumerate(self.members):
            if member.is_base:
                self.cells |= base_cells(member, dims, number)
            elif number not in self.left_out:
                self.cells.add(tuple(dim.tracks[number][0][0] if dim.tracks[number] else -1 for dim in dims))
        return True

    def _axes(self, plan: ArrayPlan) -> list[JoinedDim | None]:
        return [self.dims.get(key) for key in self.keys.of(plan.path, plan.dims)]

    def _uses(self, path: str) -> list[Use]:
        """The members whose arrays are used, each at its place; those at one place must be equal."""
        plan = self.plans[path]
        axes = self._axes(plan)
        joined = [dim for dim in axes if dim is not None]
        uses: list[Use] = []
        holders: dict[tuple[int, ...], int] = {}
        for number, kind in zip(plan.variants.members, plan.variants.kinds, strict=True):
            if number in self.left_out:
                continue
            tracks = tuple(dim.tracks[number] for dim in joined)
            here = self._cells_of(number, joined)
            taken = next((holders[cell] for cell in here if cell in holders), None)
            if taken is not None:
                self.comparison.compare(plan, taken, number, joined)
                continue
            holders |= dict.fromkeys(here, number)
            uses.append(Use(member=number, kind=kind, tracks=tracks))
        if not joined:
            self.comparison.check_known(plan, uses)
        self._check_missing(plan, holders, joined)
        return uses

    def _cells_of(self, number: int, joined: Sequence[JoinedDim]) -> set[tuple[int, ...]]:
        member = self.members[number]
        if member.is_base:
            key = tuple(dim.key for dim in joined)
            if key not in self.held:
                self.held[key] = base_cells(member, joined, number) if joined else {()}
            return self.held[key]
        return {tuple(dim.tracks[number][0][0] for dim in joined)}

    def _held(self, first: Use, axes: Sequence[JoinedDim | None]) -> set[tuple[int, ...]] | None:
        """The places at which an archive has files; None if that is everywhere, or it is none."""
        joined = [dim for dim in axes if dim is not None]
        if len(joined) < 2 or not self.members[first.member].is_base:
            return None
        cells = self._cells_of(first.member, joined)
        whole = len(cells) == math.prod(len(track) for track in first.tracks)
        return None if whole or any(-1 in cell for cell in cells) else cells

    def _check_missing(
        self, plan: ArrayPlan, holders: Mapping[tuple[int, ...], int], joined: Sequence[JoinedDim]
    ) -> None:
        """Places at which no file has a variable read as fill values that are told from all others."""
        if not joined:
            return
        self._check_overlaps(plan.path, holders, joined)
        places = math.prod(len(np.unique(dim.segment)) for dim in joined)
        if len(holders) >= places:
            return
        order = [list(self.dims).index(dim.key) for dim in joined]
        lacking = [
            member.name
            for number, member in enumerate(self.members)
            if number not in plan.variants.members
            and number not in self.left_out
            and all(self.dims[dim.key].tracks[number] for dim in joined)
        ]
        there = {tuple(cell[at] for at in order) for cell in self.cells}
        empty = places - len({cell for cell in there if -1 not in cell})
        path = plan.path
        again = plan_array(path, plan.variants, self.members, self.findings, missing=True)
        if again is None:
            return
        if plan.converted:
            plan.reasons = list(dict.fromkeys([*plan.reasons, *again.reasons]))
        else:
            self.plans[path] = plan = again
        if lacking:
            self.findings.note(lacking[0], path, f"missing in {some(lacking)}: reads as fill values there")
        if empty:
            self.findings.note(
                self.members[plan.variants.members[0]].name,
                path,
                f"{empty} of {places} places along {' x '.join(dim.key for dim in joined)} have no file: fill values",
            )

    def _check_overlaps(self, path: str, holders: Mapping[tuple[int, ...], int], joined: Sequence[JoinedDim]) -> None:
        """Coordinates that are taken from another file must not cost values that it does not have."""
        for axis, dim in enumerate(joined):
            for given, taken in sorted(dim.instead):
                for cell, number in holders.items():
                    if cell[axis] != given or (*cell[:axis], taken, *cell[axis + 1 :]) in holders:
                        continue
                    other = next(n for n, track in enumerate(dim.tracks) if any(s == taken for s, _ in track))
                    self.findings.bar(
                        f"/{path}: {self.members[number].name} overlaps in {dim.key} with {self.members[other].name}, "
                        "which does not have these values; join files separately that cover different parts, or leave "
                        "one out"
                    )

    def _repeated(self) -> Joined:
        """Join again, with the variables that differ repeated along the joined dimension."""
        members = [
            member
            if member.is_base
            else repeat_member(
                member,
                self.comparison.differing,
                {key: int(self.sizes[key][number]) for key in self.dims if self.sizes[key][number] >= 0},
            )
            for number, member in enumerate(self.members)
        ]
        findings = Findings(entries=[e for e in self.findings.entries if e.path in self.comparison.differing])
        return _Join(members, self.options, findings).run(repeat=False)

    def _sources(self) -> tuple[tuple[Source, ...], dict[int, IntArray]]:
        numbers: dict[Source, int] = {}
        ordered: list[Source] = []
        if self.members[0].is_base:
            ordered += self.members[0].sources
            numbers |= {source: n for n, source in enumerate(ordered)}
        maps: dict[int, IntArray] = {}
        for number, member in enumerate(self.members):
            if member.is_base:
                maps[number] = np.arange(len(member.sources), dtype=np.int64)
                continue
            if number in self.left_out:
                continue
            found = []
            for source in member.sources:
                at = numbers.setdefault(source, len(ordered))
                if at == len(ordered):
                    ordered.append(source)
                found.append(at)
            maps[number] = np.array(found, dtype=np.int64)
        return tuple(ordered), maps

    def _groups(self) -> dict[str, Node]:
        nodes: dict[str, Node] = {}
        paths = dict.fromkeys(path for m in self.members for path, node in m.nodes.items() if not node.is_array)
        for path in paths:
            having = [m for n, m in enumerate(self.members) if path in m.nodes and n not in self.left_out]
            distinct: dict[str, Node] = {}
            for member in having:
                distinct.setdefault(member.nodes[path].document, member.nodes[path])
            kinds = list(distinct.values())
            if not kinds:
                continue
            attributes, types, dropped, differing = merge_attributes(kinds)
            left = [*dropped, *(name for name in differing if name not in dropped)]
            if having[0].is_base:  # what it does not have was left out before
                left = [name for name in left if name in kinds[0].attributes]
            if left:
                source = having[-1] if having[0].is_base else having[0]
                self.findings.note(source.name, path, f"attributes that differ are left out: {', '.join(left)}")
            nodes[path] = Node(path=path, document=dumps(group_document(attributes)), attribute_types=types)
        return nodes

    def _array(
        self,
        plan: ArrayPlan,
        uses: Sequence[Use],
        source_maps: Mapping[int, IntArray],
        nodes: dict[str, Node],
        found: dict[str, tuple[ChunkTable | Extent, int | None]],
        entries: list[ReportEntry],
    ) -> None:
        plan = self.plans[plan.path]
        if not uses:
            return
        axes = self._axes(plan)
        shape = tuple(
            plan.variants.nodes[uses[0].kind].shape[n] if dim is None else dim.size for n, dim in enumerate(axes)
        )
        fill = self._fill(plan, uses, axes)
        joined: JoinedReferences | None
        if is_small(plan, uses, self.members, shape):
            joined = join_values(plan, uses, self.members, axes, fill, self.findings)
        else:
            try:
                held = self._held(uses[0], axes)
                joined = join_references(plan, uses, self.members, axes, source_maps, fill, self.cache, self.kept, held)
            except RefindexError as error:
                self.findings.bar(str(error))
                return
        if joined is None:
            return
        nodes[plan.path] = joined_node(plan, joined, fill)
        found[plan.path] = (joined.chunks, joined.dropped)
        entries += self._entries(plan, uses, axes, joined)

    def _fill(self, plan: ArrayPlan, uses: Sequence[Use], axes: Sequence[JoinedDim | None]) -> Any:
        """What a place without a chunk reads as: what the files say, or, where a file is missing, a missing value."""
        own = plan.fill_of(uses[0].kind)
        joined = [dim for dim in axes if dim is not None]
        places = math.prod(len(np.unique(dim.segment)) for dim in joined)
        covered = {cell for use in uses for cell in self._cells_of(use.member, joined)} if joined else {()}
        if plan.dtype is None or not joined or len(covered) >= places:
            return own
        return plan.missing(uses[0].kind)

    def _entries(
        self, plan: ArrayPlan, uses: Sequence[Use], axes: Sequence[JoinedDim | None], joined: JoinedReferences
    ) -> list[ReportEntry]:
        along = " x ".join(dim.key for dim in axes if dim is not None)
        if any(self.members[use.member].is_base for use in uses) and not plan.reasons:
            return []
        source = next(
            (self.members[u.member].name for u in uses if not self.members[u.member].is_base),
            self.members[uses[0].member].name,
        )
        status = Status.ADAPTED if joined.adapted else Status.INLINED if joined.inline else Status.NATIVE
        count = sum(number not in self.left_out for number in plan.variants.members)
        if along:
            said = [f"joined along {along} from {len(uses)} files" if len(uses) > 1 else f"in one file, along {along}"]
        elif plan.path in self.comparison.taken:
            said = [f"of the first of {count} files"]
        else:
            said = [f"the same in {count} files" if count > 1 else "in one file"]
        if len({use.kind for use in uses}) > 1 and joined.adapted and not plan.unpacked:
            said.append("stored differently in different files")
        return [ReportEntry(source=source, path=plan.path, status=status, reason="; ".join([*said, *plan.reasons]))]

    def _record(self) -> dict[str, Any]:
        """How the archive was joined, for those who append to it."""
        base = self.members[0]
        before = (base.nodes[""].joined or {}) if base.is_base else {}
        kept = dict(constants(before))
        for path, plan in self.plans.items():
            if path in kept or any(self._axes(plan)) or path in self.comparison.digests:
                continue
            first = plan.variants.members[0]
            if not self.members[first].is_base and self.members[first].table(path).is_inline:
                self.comparison.digests[path] = digest(plan.values(self.members, first))
        return {
            "dims": [{"key": key, "coordinate": key in self.keys.coordinates} for key in self.dims]
            or before.get("dims", []),
            "options": self.options.to_json(),
            "constants": kept | self.comparison.digests,
            "overlapping": self._overlaps() or bool(before.get("overlapping")),
        }

    def _overlaps(self) -> bool:
        """Whether parts of some files are not in the archive, because others have the same coordinates."""
        return bool(self.left_out) or any(sum(dim.lengths) > dim.size for dim in self.dims.values())


def alike(hierarchies: Sequence[Mapping[str, Node]]) -> bool:
    """Whether files look like parts of one archive: each has an array with the dimensions of one of the first's."""
    # Of many files, most share their hierarchy.
    distinct = {id(nodes): nodes for nodes in hierarchies}
    signatures = [
        {(path, node.dims) for path, node in nodes.items() if node.is_array and node.shape}
        for nodes in distinct.values()
    ]
    first = signatures[0] if signatures else set()
    return bool(first) and all(signature & first for signature in signatures[1:])
