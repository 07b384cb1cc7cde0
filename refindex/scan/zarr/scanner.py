"""One Zarr store -> one manifest.

Chunks are passed through: the served array has the codec chain of the stored one, or, for shards, that of their inner
chunks. What cannot be served goes into the report with the reason, and never takes the rest of the store with it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.trust import Allowed
from refindex.errors import FormatError, SourceError, UnsupportedError
from refindex.model.chunks import INLINE
from refindex.model.manifest import EMPTY_ROOT, Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import dumps, group_document
from refindex.scan.zarr import v2, v3
from refindex.scan.zarr.folder import LocalFolder, RemoteFolder
from refindex.scan.zarr.hierarchy import Found, read_hierarchy
from refindex.scan.zarr.listing import DOCUMENTS, Objects
from refindex.scan.zarr.plan import Plan, members, shortened
from refindex.scan.zarr.shards import References, cut, find_sharding
from refindex.scan.zarr.table import table
from refindex.scan.zarr.zipped import ZipStore


@dataclass(slots=True, kw_only=True)
class _Scan:
    """One store being scanned."""

    objects: Objects
    where: str
    arrays: dict[str, Array] = field(default_factory=dict)
    sources: list[Source] = field(default_factory=list)
    entries: list[ReportEntry] = field(default_factory=list)

    def report(self, path: str, status: Status, reason: str = "") -> None:
        self.entries.append(ReportEntry(source=self.where, path=f"/{path}", status=status, reason=reason))


def scan_folder(
    url: str,
    *,
    variables: Collection[str] | None = None,
    storage_options: StorageOptions = None,
    allowed: Allowed | None = None,
) -> Manifest:
    """Index a store in a folder. Every chunk file is a source of its own.

    ``allowed`` says where symbolic links in it may lead, anywhere if None.

    A folder has no identity as a file has: it is listed before and after, and both listings (names, sizes, times,
    entity tags) must be the same.

    Raises
    ------
    SourceError
        If it cannot be read, or changes while it is scanned.
    FormatError, UnsupportedError
        If nothing of it can be served.
    """
    url = url.rstrip("/") if urls.is_local(url) else url
    folder = LocalFolder(url, allowed) if urls.is_local(url) else RemoteFolder(url, storage_options)
    manifest = _scan(folder, variables)
    change = folder.listing.difference(folder.again())
    if change is not None:
        raise SourceError(f"{urls.display(url)} changed while it was scanned: {change}; scan it when it is complete")
    return manifest


def scan_zip(
    source: Source, *, variables: Collection[str] | None = None, storage_options: StorageOptions = None
) -> Manifest:
    """Index a store in a zip file, which is its one source.

    Raises
    ------
    FormatError, UnsupportedError
        If it is no sound zip file, or nothing of it can be served.
    SourceError
        If it cannot be read.
    """
    return _scan(ZipStore(source, storage_options), variables)


def _scan(objects: Objects, variables: Collection[str] | None) -> Manifest:
    hierarchy = read_hierarchy(objects)
    scan = _Scan(objects=objects, where=urls.display(objects.url))
    if objects.whole is not None:
        scan.sources.append(objects.whole)
    for note in hierarchy.notes:
        scan.report("", Status.NOTE, note)
    for link, why in objects.listing.refused.items():
        scan.report(link.rstrip("/"), Status.UNSERVED, why)
    for path, error in hierarchy.failed.items():
        damaged = "damaged: " if isinstance(error, FormatError) else ""
        scan.report(path, Status.UNSERVED, f"{damaged}{error}")
    # What lies within an array, or within a group that cannot be understood, is not served.
    closed = {path: "not served" for path, error in hierarchy.failed.items() if isinstance(error, UnsupportedError)}
    arrays: list[Found] = []
    groups: dict[str, Node] = {"": EMPTY_ROOT}
    for path, found in hierarchy.nodes.items():
        above = next((parent for parent in _parents(path) if parent in closed), None)
        if above is not None:
            scan.report(path, Status.UNSERVED, f"it lies within /{above}, which is {closed[above]}")
        elif found.is_array:
            closed[path] = "an array"
            arrays.append(found)
        else:
            groups[path] = _group(scan, found)
    if not hierarchy.nodes and hierarchy.failed:
        path, error = next(iter(hierarchy.failed.items()))
        raise type(error)(f"{scan.where}: nothing of it can be served; /{path}: {error}")
    for found in _selected(arrays, variables):
        path = found.path or _name(objects.url)
        _add_array(scan, found, path)
    for path in [*groups, *scan.arrays]:
        for parent in _parents(path):
            groups.setdefault(parent, EMPTY_ROOT.moved(parent))
    if variables is None:
        _report_strays(scan, arrays)
    else:
        groups = {p: g for p, g in groups.items() if not p or any(a.startswith(f"{p}/") for a in scan.arrays)}
    return Manifest(
        groups=groups,
        arrays=scan.arrays,
        sources=tuple(scan.sources),
        report=ScanReport(entries=tuple(scan.entries)),
    )


def _parents(path: str) -> Iterator[str]:
    """The groups around a path, the root included."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _name(url: str) -> str:
    """What a store that is one array is called: as its file or folder, without the suffixes."""
    head = next((link for link in url.split("::") if "://" in link), url)
    name = head.rstrip("/").rpartition("/")[2].removesuffix(".zip").removesuffix(".zarr")
    return name if name.strip(".") and not name.startswith("__") else "array"


def _selected(arrays: list[Found], variables: Collection[str] | None) -> list[Found]:
    """The arrays asked for by name or path, and the coordinates of their dimensions in their group and those above."""
    if variables is None:
        return arrays
    asked = {name.strip("/") for name in variables}
    chosen = {a.path for a in arrays if not a.path or a.path in asked or a.path.rpartition("/")[2] in asked}
    wanted = set(chosen)
    for found in arrays:
        if found.path not in chosen:
            continue
        names = (
            found.attributes.get("_ARRAY_DIMENSIONS") if found.version == 2 else found.document.get("dimension_names")
        )
        for group in _parents(found.path):
            wanted |= {
                f"{group}/{n}".lstrip("/") for n in (names if isinstance(names, list) else ()) if isinstance(n, str)
            }
    return [a for a in arrays if a.path in wanted]


def _group(scan: _Scan, found: Found) -> Node:
    raw: Any = found.document.get("attributes", {}) if found.version == 3 else found.attributes
    try:
        attributes, notes = v2.strict_attributes(members(raw, "attributes"))
        for note in notes:
            scan.report(found.path, Status.NOTE, note)
        return Node(path=found.path, document=_text(group_document(attributes)))
    except (FormatError, RecursionError) as error:
        scan.report(found.path, Status.NOTE, f"its attributes are left out: {error}")
        return EMPTY_ROOT.moved(found.path)


def _text(document: dict[str, Any]) -> str:
    try:
        text = dumps(document)
        text.encode()
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise FormatError(f"its metadata cannot be written as JSON: {error}") from error
    return text


def _add_array(scan: _Scan, found: Found, path: str) -> None:
    try:
        array, reason = _compile(scan, found, path)
    except UnsupportedError as error:
        scan.report(found.path, Status.UNSERVED, str(error))
        return
    except FormatError as error:
        scan.report(found.path, Status.UNSERVED, f"damaged: {error}")
        return
    except RecursionError:
        scan.report(found.path, Status.UNSERVED, "damaged: its metadata is nested too deeply")
        return
    scan.arrays[path] = array
    inline = not len(array.chunks) or bool(np.all(array.chunks.source == INLINE))
    scan.report(found.path, Status.INLINED if inline else Status.NATIVE, reason)


def _compile(scan: _Scan, found: Found, path: str) -> tuple[Array, str]:
    if found.version == 3:
        plan = v3.plan(found.document)
        plan.document["attributes"], notes = v2.strict_attributes(plan.document["attributes"])
        plan.notes += notes
    else:
        plan = v2.plan(found.document, found.attributes)
    references = _objects_of(scan, found, plan)
    reason = ""
    sharding = find_sharding(plan)
    if sharding is not None:
        shards = len(references.chunk)
        grid, references = cut(sharding, plan.grid, references, scan.objects.read)
        plan.document |= {"chunk_grid": grid.to_json(), "codecs": sharding.codecs}
        reason = f"the chunks of {shards} shards"
    text = _text(plan.document)
    names = plan.document.get("dimension_names") or []
    coordinate = len(names) == 1 and names[0] == path.rpartition("/")[2]
    chunks = table(scan.objects, scan.sources, references, is_coordinate=coordinate)
    node = Array(path=path, document=text, chunks=chunks)
    if len(chunks) and chunks.chunk[-1] >= node.grid.size:  # what Manifest would refuse: of this array alone
        raise FormatError(f"chunk {chunks.chunk[-1]} in a grid of {node.grid.size} chunks")
    _ = node.dtype
    for note in plan.notes:
        scan.report(found.path, Status.NOTE, note)
    return node, reason


def _objects_of(scan: _Scan, found: Found, plan: Plan) -> References:
    """The chunk objects of an array."""
    listing = scan.objects.listing
    inside = f"{found.path}/" if found.path else ""
    for link, why in listing.refused.items():
        # A chunk that is not read must not pass for one that does not exist.
        if link.startswith(inside) or (inside and inside.startswith(link)):
            raise UnsupportedError(f"of its files, {link} is not read: {why}")
    rows = listing.below(found.path)
    prefix = len(found.path) + 1 if found.path else 0
    keys = [name[prefix:] for name in listing.names[rows.start : rows.stop]]
    numbers, at = plan.keys.numbers(keys, plan.grid)
    order = np.argsort(numbers, kind="stable")
    numbers, at = numbers[order], at[order].astype(np.int64)
    other = np.ones(len(keys), dtype=bool)
    other[at] = False
    strays = [k for k in (keys[i] for i in np.flatnonzero(other)) if k.rpartition("/")[2] not in DOCUMENTS]
    if strays:
        plan.notes.append(
            f"{len(strays)} files in its folder are no chunks of its {plan.grid.counts} grid, and are ignored, "
            f"e.g. {shortened(strays[0])}"
        )
    row = at + rows.start
    return References(chunk=numbers, row=row, offset=np.zeros(len(row), dtype=np.int64), length=listing.size[row])


def _report_strays(scan: _Scan, arrays: list[Found]) -> None:
    listing = scan.objects.listing
    outside = np.ones(len(listing), dtype=bool)
    for found in arrays:
        rows = listing.below(found.path)
        outside[rows.start : rows.stop] = False
    names = (listing.names[row] for row in np.flatnonzero(outside))
    strays = [name for name in names if name.rpartition("/")[2] not in DOCUMENTS]
    if strays:
        reason = f"{len(strays)} files belong to no array and are ignored, e.g. {shortened(strays[0])}"
        scan.report("", Status.NOTE, reason)
