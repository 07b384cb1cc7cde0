"""Whether the small relations of a manifest are right: nodes, sources, placements, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.errors import RefindexError
from refindex.model.manifest import Node, Placement, ReportEntry, Source, Status
from refindex.storage import ManifestReader, tables
from refindex.storage.windows import rows
from refindex.verification.documents import document_problems
from refindex.verification.result import Findings, Kind

type IntArray = npt.NDArray[np.int64]

ANEW = "restore an older version (refindex restore), or scan again"
"""What to do about a manifest that is not right."""


@dataclass(slots=True, kw_only=True)
class Relations:
    """What the small relations of a manifest say, as far as they can be understood.

    Parameters
    ----------
    nodes:
        Groups and arrays by path, those left out whose documents are not valid.
    sources:
        By number; None where a row is missing or says nothing.
    readable:
        Whether the archive can be opened: readers refuse what contradicts itself.
    """

    nodes: dict[str, Node] = field(default_factory=dict)
    sources: list[Source | None] = field(default_factory=list)
    placements: list[Placement] = field(default_factory=list)
    report: list[ReportEntry] = field(default_factory=list)
    readable: bool = True

    @property
    def arrays(self) -> dict[str, Node]:
        """Arrays by path."""
        return {path: node for path, node in self.nodes.items() if node.is_array}


def check_relations(reader: ManifestReader, found: Findings) -> Relations:
    """Read the small relations of a manifest whole; what is wrong with them goes to ``found``."""
    relations = Relations()
    _nodes(reader, relations, found)
    _sources(reader, relations, found)
    _placements(reader, relations, found)
    _report(reader, relations, found)
    for part in ("nodes", "sources", "placements", "report"):
        try:
            getattr(reader, part)
        except RefindexError:  # what it says has been found above, row by row
            relations.readable = False
    return relations


def _all(reader: ManifestReader, relation: str, found: Findings) -> list[dict[str, Any]]:
    try:
        return rows(reader, relation)
    except RefindexError as error:
        found.add(Kind.MANIFEST, f"the relation {relation} cannot be read: {error}", remedy=ANEW)
        return []


def _nodes(reader: ManifestReader, relations: Relations, found: Findings) -> None:
    listed = _all(reader, "node", found)
    for number, row in enumerate(listed):
        path = row["path"]
        if not isinstance(path, str) or path != path.strip("/") or "//" in path:
            found.add(Kind.MANIFEST, f"row {number} of node has the path {path!r}", remedy=ANEW)
            continue
        if path in relations.nodes:
            found.add(Kind.MANIFEST, "two nodes have this path", path=path, remedy=ANEW)
            continue
        try:
            node = tables.make_node(**row)
        except RefindexError as error:
            found.add(Kind.MANIFEST, str(error), path=path, remedy=ANEW)
            continue
        problems = list(document_problems(node))
        for what, expected, got in problems:
            found.add(Kind.DOCUMENT, what, path=path, expected=expected, got=got, remedy=ANEW)
        if not problems:
            relations.nodes[path] = node
    known = {row["path"] for row in listed}
    if "" not in known:
        found.add(Kind.MANIFEST, "there is no root group", remedy=ANEW)
    for path in relations.nodes:
        above = path.rpartition("/")[0]
        if path and (above not in known or (above in relations.nodes and relations.nodes[above].is_array)):
            found.add(Kind.MANIFEST, "it has no group above it", path=path, expected=f"a group /{above}", remedy=ANEW)


def _numbered(listed: Sequence[Mapping[str, Any]], key: str, relation: str, found: Findings) -> dict[int, Any]:
    """Rows by their numbers, which must go from 0 on without gaps."""
    numbered: dict[int, Any] = {}
    for row in listed:
        number = row[key]
        if type(number) is not int or number < 0:
            found.add(Kind.MANIFEST, f"a row of {relation} has the number {number!r}", remedy=ANEW)
        elif number in numbered:
            found.add(Kind.MANIFEST, f"two rows of {relation} have the number {number}", remedy=ANEW)
        else:
            numbered[number] = row
    missing = sorted(set(range(max(numbered, default=-1) + 1)) - numbered.keys())
    if missing:
        found.add(
            Kind.MANIFEST,
            f"rows of {relation} are not numbered without gaps",
            expected=f"a number {missing[0]}",
            got=f"{len(missing)} numbers missing",
            remedy=ANEW,
        )
    return numbered


def _sources(reader: ManifestReader, relations: Relations, found: Findings) -> None:
    base = urls.parent(reader.url) if reader.url else ""
    numbered = _numbered(_all(reader, "source", found), "source", "source", found)
    relations.sources = [None] * (max(numbered, default=-1) + 1)
    for number, row in numbered.items():
        try:
            url, size = urls.resolve(row["url"], base), row["size"]
            if type(size) is not int or size < 0:
                raise ValueError(f"its size is {size!r}")
            if not isinstance(row["mtime"], int | None) or not isinstance(row["etag"], str | None):
                raise ValueError(f"its time is {row['mtime']!r} and its entity tag {row['etag']!r}")
            if not isinstance(row["version"], str | None):
                raise ValueError(f"its version is {row['version']!r}")
            relations.sources[number] = Source(
                url=url, size=size, mtime=row["mtime"], etag=row["etag"], version=row["version"]
            )
        except (TypeError, ValueError, AttributeError) as error:
            found.add(Kind.MANIFEST, f"source {number} ({row['url']!r}): {error}", remedy=ANEW)


def _report(reader: ManifestReader, relations: Relations, found: Findings) -> None:
    base = urls.parent(reader.url) if reader.url else ""
    for number, row in sorted(_numbered(_all(reader, "report", found), "number", "report", found).items()):
        try:
            relations.report.append(
                ReportEntry(
                    source=urls.display(urls.resolve(row["url"], base)),
                    path=str(row["path"]),
                    status=Status(row["status"]),
                    reason=row["reason"] or "",
                )
            )
        except (TypeError, ValueError, AttributeError) as error:
            found.add(Kind.MANIFEST, f"row {number} of report: {error}", remedy=ANEW)


def _placements(reader: ManifestReader, relations: Relations, found: Findings) -> None:
    for number, row in sorted(_numbered(_all(reader, "placement", found), "number", "placement", found).items()):
        values = [row[name] for name in ("source", "start", "length", "offset")]
        if any(type(value) is not int or value < 0 for value in values) or not isinstance(row["dim"], str):
            found.add(Kind.MANIFEST, f"row {number} of placement says {dict(row)!r}", remedy=ANEW)
            continue
        if values[0] >= len(relations.sources):
            found.add(
                Kind.MANIFEST,
                f"row {number} of placement names source {values[0]}",
                expected=f"one of {len(relations.sources)}",
                got=str(values[0]),
                remedy=ANEW,
            )
            continue
        source, start, length, offset = values
        relations.placements.append(Placement(dim=row["dim"], source=source, start=start, length=length, offset=offset))
    sizes = dimension_sizes(relations.arrays)
    everyone = {p.source for p in relations.placements}
    for dim in dict.fromkeys(placement.dim for placement in relations.placements):
        own = [p for p in relations.placements if p.dim == dim]
        _tiles(dim, own, sizes.get(dim), found, gaps=bool(everyone - {p.source for p in own}))


def dimension_sizes(arrays: Mapping[str, Node]) -> dict[str, set[int]]:
    """The lengths that arrays give to each dimension, by its path."""
    key = dimension_key(arrays)
    sizes: dict[str, set[int]] = {}
    for path, node in arrays.items():
        for dim, extent in zip(node.dims, node.shape, strict=True):
            sizes.setdefault(key(path, dim), set()).add(extent)
    return sizes


def dimension_key(arrays: Mapping[str, Node]) -> Callable[[str, str | None], str]:
    """What gives the path of a dimension of an array, as placements name it.

    It belongs to the nearest group above the array that has its coordinate, or else to the array's own.
    """
    coordinates = {path for path, node in arrays.items() if node.dims == (path.rpartition("/")[2],)}

    def key(path: str, dim: str | None) -> str:
        group = path.rpartition("/")[0]
        scope: str | None = group
        while scope is not None:
            candidate = f"{scope}/{dim}".lstrip("/")
            if candidate in coordinates:
                return candidate
            scope = scope.rpartition("/")[0] if scope else None
        return f"{group}/{dim}".lstrip("/")

    return key


def _tiles(dim: str, placements: Sequence[Placement], sizes: set[int] | None, found: Findings, *, gaps: bool) -> None:
    """Whether sources cover a joined dimension: all of it, each piece once or by several from end to end.

    With ``gaps``, there are sources of which is not said where they lie along it.
    """
    start = np.array([p.start for p in placements], dtype=np.int64)
    stop = start + np.array([p.length for p in placements], dtype=np.int64)
    source = np.array([p.source for p in placements], dtype=np.int64)
    if sizes is not None and len(sizes) > 1:
        found.add(
            Kind.MANIFEST,
            f"arrays differ in the length of the joined dimension {dim}",
            got=", ".join(map(str, sorted(sizes))),
            remedy=ANEW,
        )
    size = max(sizes) if sizes else None
    if size is not None and int(stop.max()) > size:
        worst = int(np.argmax(stop))
        found.add(
            Kind.MANIFEST,
            f"a source lies beyond the end of the joined dimension {dim}",
            expected=f"at most {size} elements",
            got=f"source {int(source[worst])} from {int(start[worst])} to {int(stop[worst])}",
            remedy=ANEW,
        )
    order = np.lexsort((stop, start))
    start, stop, source = start[order], stop[order], source[order]
    full = stop > start
    start, stop, source = start[full], stop[full], source[full]
    reached = np.maximum.accumulate(stop) if len(stop) else stop
    before = np.concatenate(([0], reached[:-1])) if len(stop) else stop
    end = size if size is not None else int(reached[-1]) if len(reached) else 0
    holes = [(int(b), int(s)) for b, s in zip(before[start > before], start[start > before], strict=True)]
    if (int(reached[-1]) if len(reached) else 0) < end:
        holes.append((int(reached[-1]) if len(reached) else 0, end))
    for low, high in () if gaps else holes[:20]:
        found.add(Kind.MANIFEST, f"no source has elements {low} to {high} of the joined dimension {dim}", remedy=ANEW)
    same = np.zeros(len(start), dtype=bool)
    same[1:] = (start[1:] == start[:-1]) & (stop[1:] == stop[:-1])
    crossing = np.flatnonzero((start < before) & ~same)
    twice = np.flatnonzero(same & np.concatenate(([False], source[1:] == source[:-1])))
    for row in [*crossing[:20].tolist(), *twice[:20].tolist()]:
        found.add(
            Kind.MANIFEST,
            f"placements along the joined dimension {dim} contradict each other",
            expected="pieces that do not overlap, or are the same",
            got=f"source {int(source[row])} from {int(start[row])} to {int(stop[row])}, inside another piece",
            remedy=ANEW,
        )
