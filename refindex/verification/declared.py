"""Whether what an archive says of its arrays and groups is what their originals say: type, shape, names, attributes."""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.model.manifest import Node, ReportEntry
from refindex.verification.comparison import alike, difference, same_json
from refindex.verification.expected import PACKING, Expected, fills, missing_fills, served_fill
from refindex.verification.lineage import Lineage
from refindex.verification.originals import OriginalArray, Values
from refindex.verification.result import Findings, Kind

_MADE_UP = re.compile(r"(phony_dim|dim|element_dim|null)(_\d+)*")
"""Names of dimensions that have none in their file."""

_ADDED = ("flag_values", "flag_meanings", "vlen_base_type")
"""Attributes that say what Zarr's data types do not: of enumerations, and of sequences of variable length."""

REMEDY = "if the file has changed, take it as it is now (refindex append --replace); else scan again"


class Notes:
    """What a report says of each path."""

    def __init__(self, report: Iterable[ReportEntry]) -> None:
        self._of: dict[str, list[str]] = {}
        for entry in report:
            self._of.setdefault(entry.path.strip("/"), []).append(entry.reason)

    def say(self, path: str, words: str) -> bool:
        """Whether anything that is said of a path has these words in it."""
        name = path.rpartition("/")[2]
        escaped = f"{path.removesuffix(name)}_nc4_non_coord_{name}"
        return any(words in reason for key in (path, escaped) for reason in self._of.get(key, ()))


def check_array(
    node: Node, url: str, array: OriginalArray, becoming: Expected, lineage: Lineage, notes: Notes, found: Findings
) -> None:
    """Compare what an archive says of an array with what one file says of it."""
    where: dict[str, Any] = {"path": node.path, "source": urls.display(url), "remedy": REMEDY}
    own = lineage.original_path(node.path)
    joined = lineage.kind == "joined"

    def wrong(what: str, expected: Any, got: Any) -> None:
        found.add(Kind.DOCUMENT, what, expected=_short(expected), got=_short(got), **where)

    extra = len(node.shape) - len(array.shape)
    if extra < 0 or (extra and not joined):
        wrong("the number of dimensions differs", array.shape, node.shape)
        return
    axes = lineage.joined_axes(node.path) if joined else (None,) * len(node.shape)
    for axis, (has, extent) in enumerate(zip(array.shape, node.shape[extra:], strict=True)):
        lengthened = extent > has and notes.say(own, "extended")
        if axes[axis + extra] is None and has != extent and not lengthened:
            wrong(f"the length of dimension {axis} differs", has, extent)
    if array.dtype is not None and becoming.mode == "stored":
        if node.dtype is None:
            wrong("the type differs", array.dtype, node.json["data_type"])
        elif not alike(array.dtype, node.dtype):
            wrong("the type differs", array.dtype, node.dtype)
        elif not joined:
            _check_fill(node, array, becoming, wrong)
    if array.dims is not None:
        _check_dims(array, node.dims[extra:], own, notes, wrong)
    if lineage.kind != "imported":
        changed = {"units", "calendar"} if becoming.mode == "times" else set()
        changed |= set(PACKING) if becoming.mode in ("unpacked", "times") else set()
        check_attributes(node, array.attributes, array.unreadable | changed, own, notes, where, found, joined=joined)


def _check_fill(node: Node, array: OriginalArray, becoming: Expected, wrong: Any) -> None:
    served = np.asarray(served_fill(node))
    own = fills(becoming, node, array)
    if own and all(difference(np.asarray(fill), served) is not None for fill in own):
        wrong("the fill value differs", own[-1][()], served[()])


class JoinedFills:
    """The fill values of joined arrays beside those of their files.

    An array has that of one of its files, or a missing value; what all other files do not have is written out. Where
    all files have the same one, it can be no other.
    """

    def __init__(self) -> None:
        self._own: dict[str, list[list[Values]]] = {}

    def see(self, node: Node, array: OriginalArray, becoming: Expected) -> None:
        """The fill value of one more file."""
        own = fills(becoming, node, array)
        if own:
            self._own.setdefault(node.path, []).append(own)

    def check(self, nodes: Mapping[str, Node], found: Findings) -> None:
        """Find those that are of no file."""
        for path, seen in self._own.items():
            node = nodes[path]
            served = np.asarray(served_fill(node))
            first = [np.asarray(fill) for fill in seen[0]]
            if any(difference(np.asarray(own[-1]), first[-1]) is not None for own in seen):
                continue
            if all(difference(fill, served) is not None for fill in [*first, *missing_fills(node)]):
                found.add(
                    Kind.DOCUMENT,
                    "the fill value is that of no file",
                    path=path,
                    expected=_short(first[-1][()]),
                    got=_short(served[()]),
                    remedy=REMEDY,
                )


def _check_dims(array: OriginalArray, ours: tuple[str | None, ...], path: str, notes: Notes, wrong: Any) -> None:
    for axis, (name, served) in enumerate(zip(array.dims or (), ours, strict=True)):
        if name is None:
            if served is not None and not _MADE_UP.fullmatch(served):
                wrong(f"dimension {axis} has no name in the file", "a name that is made up", served)
        elif name != served and not notes.say(path, "is called") and not array.is_called(axis, served or ""):
            wrong(f"the name of dimension {axis} differs", name, served)


def check_attributes(
    node: Node,
    theirs: Mapping[str, Any],
    unknown: frozenset[str] | set[str],
    path: str,
    notes: Notes,
    where: Mapping[str, Any],
    found: Findings,
    *,
    joined: bool,
) -> None:
    """Compare the attributes of a node with those of a file.

    Parameters
    ----------
    theirs:
        Attributes of the file.
    unknown:
        Names of those about which nothing is said.
    joined:
        Whether those that the archive lacks may have differed between files.
    """
    ours = node.attributes
    for name, value in ours.items():
        if name in unknown or (name in _ADDED and name not in theirs):
            continue
        if name not in theirs:
            if joined and name == "calendar" and str(value).lower() == "standard":
                continue  # what it is where nothing is said
            found.add(Kind.DOCUMENT, f"the file has no attribute {name!r}", expected="none", got=_short(value), **where)
            continue
        if not _same_attribute(name, theirs[name], value, node):
            found.add(
                Kind.DOCUMENT,
                f"the attribute {name!r} differs",
                expected=_short(theirs[name]),
                got=_short(value),
                **where,
            )
            continue
        kind, own = node.attribute_types.get(name), getattr(theirs[name], "dtype", None)
        if kind is not None and own is not None and own.kind in "biufc" and own.newbyteorder("=").name != kind:
            found.add(
                Kind.DOCUMENT,
                f"the type of the attribute {name!r} differs",
                expected=own.newbyteorder("=").name,
                got=kind,
                **where,
            )
    for name, value in theirs.items():
        if joined or name in ours or name in unknown or notes.say(path, name) or _means_nothing(name, value):
            continue
        found.add(Kind.DOCUMENT, f"the attribute {name!r} is missing", expected=_short(value), got="none", **where)


def _same_attribute(name: str, theirs: Any, ours: Any, node: Node) -> bool:
    if same_json(theirs, ours):
        return True
    if name != "_FillValue":
        return False
    numbers = _fill_number(ours)
    if numbers is None:
        return False
    own = np.ravel(np.asarray(theirs))
    if own.dtype.kind in "SUO":
        other = _fill_number(own[0]) if own.size else None
        own = np.array([] if other is None else [other])
    if own.size != 1 or node.dtype is None:
        return False
    with np.errstate(all="ignore"):
        one, two = (np.asarray(v).astype(node.dtype) for v in (own[0], numbers))
    return difference(one, two) is None


def _fill_number(value: Any) -> Any:
    """``_FillValue`` as xarray spells it in Zarr version 3, as a number."""
    try:
        if isinstance(value, str | bytes):
            return struct.unpack("<d", base64.b64decode(value))[0]
        if isinstance(value, list) and len(value) == 2 and all(isinstance(v, str) for v in value):
            return complex(_fill_number(value[0]), _fill_number(value[1]))
    except (ValueError, struct.error):
        return None
    return value


def _means_nothing(name: str, value: Any) -> bool:
    """NaN as a missing value, which it is whether or not anything says so."""
    own = np.ravel(value) if name == "missing_value" and isinstance(value, np.ndarray | np.generic) else np.empty(0)
    return own.dtype.kind == "f" and bool(own.size) and bool(np.isnan(own).all())


def _short(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) and value.dtype.names is None else value)
    return text if len(text) <= 120 else text[:117] + "..."
