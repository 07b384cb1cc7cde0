"""What one variable becomes when its files differ: type, packing, units, attributes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refindex.errors import RefindexError, UnsupportedError
from refindex.join.barriers import Findings, some
from refindex.join.member import Member, Variants, numeric_attributes
from refindex.join.times import TimeUnits, unify
from refindex.join.values import array_values
from refindex.model.dtype import fill_value_from_json
from refindex.model.manifest import Node
from refindex.model.packing import PACKED_ATTRIBUTES, PACKING_ATTRIBUTES, Packing, packing_of
from refindex.model.promotion import common_type, widens

type Values = np.ndarray[Any, Any]

TIME_ATTRIBUTES = ("units", "calendar")

MOST_TIMES = 8 << 20
"""Times of one file that are looked at one by one."""

NARROW = 4
"""Integers of at most this many bytes have all their values in double precision."""


@dataclass(slots=True, kw_only=True)
class ArrayPlan:
    """What the files' arrays of one path become.

    Parameters
    ----------
    path, variants, dims:
        Which arrays, and the names of their dimensions.
    dtype:
        Of the joined array; None for values of variable length.
    data_type:
        The ``data_type`` of a document that has it, for those.
    packings:
        For each kind of document, how its stored numbers become values; None where they are served as stored.
    converted:
        Values by member, where they had to be counted anew.
    attributes, attribute_types:
        Of the joined array.
    reasons:
        Sentences for the report.
    """

    path: str
    variants: Variants
    dims: tuple[str | None, ...]
    dtype: np.dtype[Any] | None
    data_type: Any
    packings: list[Packing | None]
    attributes: dict[str, Any]
    attribute_types: dict[str, str]
    converted: dict[int, Values] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    @property
    def unpacked(self) -> bool:
        """Whether values are served unpacked."""
        return any(packing is not None for packing in self.packings)

    def values(self, members: Sequence[Member], number: int) -> Values:
        """The values of one member's array as they are served in the joined one."""
        if number in self.converted:
            return self.converted[number]
        return self.convert(array_values(members[number], self.path), self.variants.kind_of(number))

    def convert(self, values: Values, kind: int) -> Values:
        """A kind's values as they are served in the joined array."""
        packing = self.packings[kind]
        if packing is not None:
            values = packing.unpack(values)
        return values if self.dtype is None or values.dtype == self.dtype else values.astype(self.dtype)

    def fill_of(self, kind: int) -> Any:
        """What a chunk that a kind's files do not have reads as, as it is served in the joined array."""
        node = self.variants.nodes[kind]
        if self.dtype is None or node.dtype is None:
            return node.json["fill_value"]
        fill = fill_value_from_json(node.dtype, node.json["fill_value"]).reshape(1)
        if self.converted and not widens(node.dtype, self.dtype):
            return self.dtype.type(0)  # times have no gaps: nothing is filled
        return self.convert(fill, kind)[0]

    def missing(self, kind: int) -> Any:
        """What a place that no file has reads as: a missing value, where the type and the attributes have one."""
        if self.dtype is None:
            return self.fill_of(kind)
        if self.unpacked or (self.dtype.kind in "fc" and "_FillValue" not in self.attributes):
            return self.dtype.type(np.nan)
        declared = self.attributes.get("_FillValue")
        if declared is not None and self.dtype.kind in "iub":
            return self.dtype.type(declared)
        if declared is not None and self.dtype.kind == "f":
            return self.dtype.type(numeric_attributes(self.variants.nodes[kind])["_FillValue"])
        return self.fill_of(kind)


def plan_array(
    path: str, variants: Variants, members: Sequence[Member], findings: Findings, *, missing: bool = False
) -> ArrayPlan | None:
    """Decide what the arrays of one path become; None if something stands in the way.

    ``missing`` says that some files lack it, so that a value for what is not there must be told from all others.
    """
    nodes = variants.nodes
    names = [members[variants.first_of(kind)].name for kind in range(len(nodes))]
    first = nodes[0]
    for node, name in zip(nodes, names, strict=True):
        if node.dims != first.dims:
            findings.bar(f"/{path}: dimensions are {_dims(first)} in {names[0]} and {_dims(node)} in {name}")
            return None
    attributes, types, dropped, differing = merge_attributes(nodes)
    for name, texts in differing.items():
        if name == "units" and TimeUnits.of(first.attributes) is None:
            one, two = _two(texts)
            findings.bar(
                f"/{path}: units are {texts[one]!r} in {names[one]} and {texts[two]!r} in {names[two]}: values in "
                "different units are not joined; convert one of the files"
            )
            return None
    plan = ArrayPlan(
        path=path,
        variants=variants,
        dims=first.dims,
        dtype=first.dtype,
        data_type=first.json["data_type"],
        packings=[None] * len(nodes),
        attributes=attributes,
        attribute_types=types,
    )
    if members[variants.members[0]].is_base:  # what it does not have was left out before
        dropped = [name for name in dropped if name in first.attributes]
    if dropped:
        plan.reasons.append(f"attributes that differ are left out: {', '.join(dropped)}")
    return plan if _decide_type(plan, names, differing, findings, missing=missing) else None


def _decide_type(
    plan: ArrayPlan, names: list[str], differing: Mapping[str, list[Any]], findings: Findings, *, missing: bool
) -> bool:
    nodes = plan.variants.nodes
    kinds = [node.dtype for node in nodes]
    first = nodes[0]
    if any(kind is None for kind in kinds):
        for node, name in zip(nodes, names, strict=True):
            if node.json["data_type"] != first.json["data_type"] or node.codecs != first.codecs:
                findings.bar(f"/{plan.path}: the type is {_type(first)} in {names[0]} and {_type(node)} in {name}")
                return False
        return True
    dtypes = [kind for kind in kinds if kind is not None]
    if all(TimeUnits.of(node.attributes) is not None for node in nodes):
        return True  # times that differ are counted anew
    numeric = [numeric_attributes(node) for node in nodes]
    same_type = len({dtype.newbyteorder("=") for dtype in dtypes}) == 1
    packed = any(name in attributes for attributes in numeric for name in PACKING_ATTRIBUTES)
    repacked = any(name in PACKING_ATTRIBUTES for name in differing)
    maskless = (
        missing and dtypes[0].kind in "iu" and dtypes[0].itemsize <= NARROW and "_FillValue" not in plan.attributes
    )
    if repacked or (packed and not same_type) or maskless:
        packings = [packing_of(a, d) for a, d in zip(numeric, dtypes, strict=True)]
        if all(packing is not None for packing in packings):
            return _unpack(plan, packings, dtypes, names, findings, maskless=maskless and not repacked)
        if not maskless:
            for name in PACKING_ATTRIBUTES:
                plan.attributes.pop(name, None)
            plan.reasons.append("_FillValue and missing_value differ between files, and are left out")
    weights = Counter(plan.variants.kinds)
    order = max(range(len(dtypes)), key=lambda kind: (plan_is_base(plan, kind), weights[kind]))
    wider = common_type([dtypes[order], *dtypes])
    if wider is None:
        other = next(n for n, d in enumerate(dtypes) if common_type([dtypes[0], d]) is None)
        findings.bar(
            f"/{plan.path}: the type is {_type(first)} in {names[0]} and {_type(nodes[other])} in {names[other]}: no "
            "type holds all values of both"
        )
        return False
    plan.dtype = wider
    if not same_type:
        served = ", ".join(sorted({d.name for d in dtypes}))
        plan.reasons.append(f"types differ between files ({served}): served as {wider.name}")
    return True


def plan_is_base(plan: ArrayPlan, kind: int) -> bool:
    """Whether a kind of document is that of the archive that is appended to, which is always the first member."""
    return plan.variants.first_of(kind) == 0 and plan.variants.kinds.count(kind) == 1


def _unpack(
    plan: ArrayPlan,
    packings: Sequence[Packing | None],
    dtypes: Sequence[np.dtype[Any]],
    names: Sequence[str],
    findings: Findings,
    *,
    maskless: bool,
) -> bool:
    """Serve values unpacked, each file's by its own packing."""
    floats: list[np.dtype[Any]] = []
    for packing, dtype in zip(packings, dtypes, strict=True):
        computed = np.dtype(packing.dtype) if packing is not None else dtype
        if computed.kind != "f":
            computed = np.dtype("f4") if computed.itemsize <= 2 else np.dtype("f8")
        floats.append(computed)
    wider = common_type([np.result_type(*floats), *floats])
    widest = [d for d in dtypes if d.kind in "iu" and d.itemsize > NARROW]
    unscaled = [p for p in packings if p is not None and p.scale is None and p.offset is None]
    if wider is None or (widest and unscaled):
        findings.bar(
            f"/{plan.path}: _FillValue or missing_value differ between {some(names)}, and double precision does not "
            f"hold all values of {(widest or list(dtypes))[0].name}"
        )
        return False
    plan.dtype = wider
    plan.packings = [
        p if p is None or np.dtype(p.dtype).kind == "f" else _as_float(p, f)
        for p, f in zip(packings, floats, strict=True)
    ]
    for name in (*PACKING_ATTRIBUTES, *PACKED_ATTRIBUTES):
        plan.attributes.pop(name, None)
        plan.attribute_types.pop(name, None)
    plan.reasons.append(
        f"some files lack it, and it has no _FillValue: served as {wider.name}, with NaN where it is missing"
        if maskless
        else f"scale_factor, add_offset or missing values differ between files: served unpacked as {wider.name}, "
        "with NaN for missing values"
    )
    return True


def _as_float(packing: Packing, dtype: np.dtype[Any]) -> Packing:
    """A packing that leaves integers as they are, computed in floating point instead."""
    return Packing(
        dtype=dtype.newbyteorder("=").str,
        scale=packing.scale,
        offset=packing.offset,
        mask=packing.mask,
        integers=packing.integers,
    )


def merge_attributes(
    nodes: Sequence[Node],
) -> tuple[dict[str, Any], dict[str, str], list[str], dict[str, list[Any]]]:
    """Attributes that are equal in all nodes, and their types; names of those left out; the values that differ.

    Packing and time attributes that differ are neither kept nor listed as left out: they are dealt with.
    """
    first = nodes[0]
    if len(nodes) == 1:
        return first.attributes, dict(first.attribute_types), [], {}
    each = [node.attributes for node in nodes]
    kept, dropped = {}, []
    differing: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for attributes in each for name in attributes):
        values = [attributes.get(name) for attributes in each]
        same = all(value == values[0] for value in values[1:])
        if name in PACKING_ATTRIBUTES:
            # The type of a scale factor decides in which precision values are computed.
            same = same and len({node.attribute_types.get(name) for node in nodes}) == 1
        if same and all(name in attributes for attributes in each):
            kept[name] = values[0]
            continue
        differing[name] = values
        if name not in PACKING_ATTRIBUTES and name not in TIME_ATTRIBUTES:
            dropped.append(name)
    types = {name: kind for name, kind in first.attribute_types.items() if name in kept}
    return kept, types, dropped, differing


def plan_times(
    coordinate: ArrayPlan,
    bounds: ArrayPlan | None,
    members: Sequence[Member],
    findings: Findings,
) -> None:
    """Count the times of a variable, and of its bounds, from one moment where the files do not.

    Bounds have the units of their coordinate unless they say otherwise (CF conventions 7.1).
    """
    if bounds is None:
        _count_alike([coordinate], coordinate, members, findings)
        return
    if not any("units" in node.attributes for node in bounds.variants.nodes):
        _count_alike([coordinate, bounds], coordinate, members, findings)
        return
    _count_alike([coordinate], coordinate, members, findings)
    _count_alike([bounds], coordinate, members, findings)


def _count_alike(
    plans: Sequence[ArrayPlan], coordinate: ArrayPlan, members: Sequence[Member], findings: Findings
) -> None:
    """Count the times of variables from one moment; ``coordinate`` has the units that they do not say themselves."""
    first = plans[0]
    units = [_time_units(first, coordinate, member) for member in first.variants.members]
    if all(u is None for u in units):
        return
    for unit, member in zip(units, first.variants.members, strict=True):
        if unit is None:
            findings.bar(f"/{first.path}: {members[member].name} has no units of time, other files have")
            return
    known = [u for u in units if u is not None]
    if first is not coordinate:
        # Those of the coordinate may become other ones, and some files' bounds may have none of their own.
        first.attributes |= {"units": known[0].units, "calendar": known[0].calendar}
    nodes = first.variants.nodes
    same_packing = len({_packing_key(node) for node in nodes}) == 1
    if len(set(known)) == 1 and len({node.dtype for node in nodes}) == 1 and same_packing:
        return
    owners: list[tuple[ArrayPlan, int]] = []
    kinds: list[TimeUnits] = []
    raw: list[Values] = []
    names = [members[first.variants.first_of(kind)].name for kind in range(len(nodes))]
    try:
        for plan in plans:
            for member in plan.variants.members:
                kind = _time_units(plan, coordinate, member)
                if kind is None:
                    raise UnsupportedError(f"{members[member].name}: {plan.path} has no units of time")
                owners.append((plan, member))
                kinds.append(kind)
                raw.append(_times(members[member], plan.path))
        times = unify(kinds, raw)
    except UnsupportedError as error:
        findings.bar(f"/{first.path}: {some(dict.fromkeys(names))}: {error}")
        return
    except RefindexError as error:
        findings.bar(f"/{first.path}: {error}")
        return
    for (plan, member), values in zip(owners, times.values, strict=True):
        plan.converted[member] = values
        plan.dtype = times.dtype
        plan.packings = [None] * len(plan.packings)
    if not same_packing:
        for name in PACKING_ATTRIBUTES:
            first.attributes.pop(name, None)
            first.attribute_types.pop(name, None)
    first.attributes |= {"units": times.target.units}
    if first is not coordinate or any("calendar" in node.attributes for node in nodes):
        first.attributes["calendar"] = times.target.calendar
    distinct = list(dict.fromkeys(u.units for u in known))
    if len(distinct) > 1:
        first.reasons.append(
            f"times are counted from {len(distinct)} moments ({distinct[0]!r}, {distinct[1]!r}"
            f"{', ...' if len(distinct) > 2 else ''}): all are counted in {times.target.units!r}"
        )


def _time_units(plan: ArrayPlan, coordinate: ArrayPlan, member: int) -> TimeUnits | None:
    """Units and calendar of one member's times; bounds have those of their coordinate where they say none."""
    own = plan.variants.nodes[plan.variants.kind_of(member)].attributes
    if plan is not coordinate and member in coordinate.variants.members:
        of_coordinate = coordinate.variants.nodes[coordinate.variants.kind_of(member)].attributes
        own = {name: of_coordinate[name] for name in TIME_ATTRIBUTES if name in of_coordinate} | own
    return TimeUnits.of(own)


def _packing_key(node: Node) -> tuple[Any, ...]:
    return tuple((node.attributes.get(n), node.attribute_types.get(n)) for n in PACKING_ATTRIBUTES)


def _times(member: Member, path: str) -> Values:
    """Times as they are stored; none of them may stand for a missing one, which would become a moment."""
    node = member.arrays[path]
    size = int(np.prod(node.shape, dtype=object))
    if size > MOST_TIMES:
        raise UnsupportedError(
            f"{member.name}: {size} times are too many to be counted from another moment; at most {MOST_TIMES} are"
        )
    values = array_values(member, path)
    packing = packing_of(numeric_attributes(node), values.dtype)
    if packing is not None and (packing.scale is not None or packing.offset is not None):
        raise UnsupportedError(f"{member.name}: packed times cannot be counted from another moment")
    if packing is not None and any(np.any(values == n.scalar()) for n in packing.mask):
        raise UnsupportedError(f"{member.name}: times are missing, and cannot be counted from another moment")
    return values


def _two(texts: Sequence[Any]) -> tuple[int, int]:
    """The first two that differ."""
    return 0, next(n for n, text in enumerate(texts) if text != texts[0])


def _dims(node: Node) -> str:
    return f"({', '.join(str(dim) for dim in node.dims)})"


def _type(node: Node) -> str:
    return str(node.dtype) if node.dtype is not None else str(node.json["data_type"])
