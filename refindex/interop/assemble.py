"""Documents and references from elsewhere -> a manifest. What the documents mean is for the Zarr scanner to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.access.files import SourcePool, StorageOptions
from refindex.access.trust import Allowed
from refindex.errors import FormatError, UnsupportedError
from refindex.interop.declared import encoding_of
from refindex.interop.looking import look_at
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.encoding import Encoding
from refindex.model.manifest import EMPTY_ROOT, Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import dumps, group_document
from refindex.scan.zarr import v2, v3
from refindex.scan.zarr.hierarchy import Found, read_hierarchy
from refindex.scan.zarr.listing import Listing
from refindex.scan.zarr.plan import Plan, members, shortened
from refindex.scan.zarr.shards import References, cut, find_sharding

type IntArray = npt.NDArray[np.int64]

WHOLE = -1
"""``length`` of a reference to a whole file."""

_LINES = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """The references of one array as they were found, in any order.

    Columns: ``chunk``; ``url``, a number of the URLs or ``INLINE``; ``offset`` in the file, or in ``data``; ``length``
    or ``WHOLE``.
    """

    chunk: IntArray
    url: IntArray
    offset: IntArray
    length: IntArray
    data: bytes = b""


class Urls:
    """URLs, each once, by the numbers that rows have for them. Safe to use from several threads."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._numbers: dict[str, int] = {}
        self._lock = Lock()

    def number(self, url: str) -> int:
        """The number of a URL as it is spelled."""
        number = self._numbers.get(url)
        if number is not None:
            return number
        with self._lock:
            number = self._numbers.setdefault(url, len(self.found))
            if number == len(self.found):
                self.found.append(url)
            return number


class _Documents:
    """Documents as the objects of a store, for the scanner's reader of hierarchies."""

    whole: Source | None = None

    def __init__(self, url: str, documents: Mapping[str, bytes]) -> None:
        self.url = url
        self._documents = documents
        sizes = [len(text) for text in documents.values()]
        self.listing = Listing.of(list(documents), sizes, [0] * len(documents))

    def offsets(self, rows: IntArray) -> IntArray:
        return np.zeros(len(rows), dtype=np.int64)

    def sources(self, rows: IntArray) -> list[Source]:
        raise TypeError(f"{len(rows)} documents are no sources")

    def read(self, rows: Any, starts: Any, lengths: Any) -> list[bytes]:
        return [
            self._documents[self.listing.names[row]][start : start + length]
            for row, start, length in zip(rows, starts, lengths, strict=True)
        ]


@dataclass(slots=True, kw_only=True)
class _Member:
    """An array that is being taken over."""

    found: Found
    path: str
    plan: Plan
    rows: Rows


def assemble(
    where: str,
    documents: Mapping[str, bytes],
    rows_of: Callable[[str, Plan], Rows],
    found: Urls,
    *,
    resolve: Callable[[str], str],
    allowed: Allowed | None,
    storage_options: StorageOptions = None,
) -> Manifest:
    """A manifest of documents by key (``a/.zarray``, ``a/zarr.json``) and the references of each array.

    Parameters
    ----------
    where:
        What they come from, for messages.
    rows_of:
        The references of the array at a path, of which all that the documents say is known; UnsupportedError if it
        cannot be served.
    found:
        The URLs that rows number.
    resolve:
        The absolute URL of one of them.
    allowed:
        Where the files may be; anywhere if None.

    Raises
    ------
    FormatError
        If references lie outside their arrays or files, or nothing can be served.
    SourceError, NotFoundError
        If files that are referred to cannot be looked at.
    NotAllowedError
        If files may not be referred to.
    """
    hierarchy = read_hierarchy(_Documents(where, documents))
    entries: list[ReportEntry] = []

    def report(path: str, status: Status, reason: str = "") -> None:
        entries.append(ReportEntry(source=where, path=f"/{path}", status=status, reason=reason))

    for note in hierarchy.notes:
        report("", Status.NOTE, note)
    for path, error in hierarchy.failed.items():
        report(path, Status.UNSERVED, f"{'damaged: ' if isinstance(error, FormatError) else ''}{error}")
    groups: dict[str, Node] = {"": EMPTY_ROOT}
    taken: list[_Member] = []
    for path, node in hierarchy.nodes.items():
        if not node.is_array:
            groups[path] = _group(node, report)
            continue
        try:
            plan = _plan_of(node)
        except (FormatError, UnsupportedError, RecursionError) as error:
            report(path, Status.UNSERVED, str(error))
            continue
        try:
            rows = rows_of(path, plan)
        except UnsupportedError as error:
            report(path, Status.UNSERVED, str(error))
            continue
        taken.append(_Member(found=node, path=path or "array", plan=plan, rows=rows))
    if not hierarchy.nodes or (not taken and entries and not any(not n.is_array for n in hierarchy.nodes.values())):
        reasons = "; ".join(f"{entry.path}: {entry.reason}" for entry in entries[:3])
        raise FormatError(
            f"{where}: no Zarr groups or arrays that can be served are described there. {reasons}".rstrip()
        )
    used = np.zeros(len(found.found), dtype=bool)
    for member in taken:
        used[member.rows.url[member.rows.url != INLINE]] = True
    resolved = [resolve(found.found[number]) for number in np.flatnonzero(used).tolist()]
    distinct = list(dict.fromkeys(resolved))
    if allowed is not None:
        allowed.check(distinct, where, links=True)
    sources = look_at(distinct, where, storage_options)
    numbers = np.full(len(used), INLINE, dtype=np.int64)
    numbers[used] = [{url: n for n, url in enumerate(distinct)}[url] for url in resolved] if resolved else []
    pool = SourcePool(sources, storage_options=storage_options)
    arrays: dict[str, Array] = {}
    try:
        for member in taken:
            try:
                arrays[member.path] = _array(member, numbers, sources, pool, where)
            except UnsupportedError as error:
                report(member.path, Status.UNSERVED, str(error))
                continue
            for note in member.plan.notes:
                report(member.path, Status.NOTE, note)
            inline = not len(arrays[member.path].chunks) or arrays[member.path].chunks.is_inline
            report(member.path, Status.INLINED if inline else Status.NATIVE)
    finally:
        pool.close()
    for path in [*groups, *arrays]:
        while path:
            path = path.rpartition("/")[0]  # noqa: PLW2901
            groups.setdefault(path, EMPTY_ROOT.moved(path))
    return Manifest(groups=groups, arrays=arrays, sources=tuple(sources), report=ScanReport(entries=tuple(entries)))


def _plan_of(node: Found) -> Plan:
    if node.version == 2:
        return v2.plan(node.document, node.attributes)
    plan = v3.plan(node.document)
    plan.document["attributes"], notes = v2.strict_attributes(plan.document["attributes"])
    plan.notes += notes
    return plan


def _group(node: Found, report: Callable[[str, Status, str], None]) -> Node:
    raw: Any = node.document.get("attributes", {}) if node.version == 3 else node.attributes
    attributes, notes = v2.strict_attributes(members(raw, "attributes"))
    for note in notes:
        report(node.path, Status.NOTE, note)
    return Node(path=node.path, document=_text(group_document(attributes)))


def _text(document: dict[str, Any]) -> str:
    text = dumps(document)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(f"its metadata is not Unicode: {error}") from error
    return text


def _array(member: _Member, numbers: IntArray, sources: Sequence[Source], pool: SourcePool, where: str) -> Array:
    plan, rows = member.plan, member.rows
    source = np.where(rows.url == INLINE, INLINE, numbers[np.maximum(rows.url, 0)] if len(numbers) else INLINE)
    offset, length = rows.offset, rows.length.copy()
    referred = np.flatnonzero(source != INLINE)
    if len(referred):
        sizes = np.array([s.size for s in sources], dtype=np.int64)[source[referred]]
        whole = length[referred] == WHOLE
        length[referred] = np.where(whole, sizes - offset[referred], length[referred])
        outside = referred[
            (offset[referred] < 0) | (length[referred] < 0) | (length[referred] > sizes - offset[referred])
        ]
        if len(outside):
            row = int(outside[0])
            file = sources[int(source[row])]
            raise FormatError(
                f"{where}: {len(outside)} references of /{member.path} reach beyond their files, e.g. chunk "
                f"{int(rows.chunk[row])}: bytes {int(offset[row])} to {int(offset[row] + length[row])} of "
                f"{urls.display(file.url)}, which has {file.size}"
            )
    sharding = find_sharding(plan)
    if sharding is not None:
        return _of_shards(member, sharding, source, offset, length, pool)
    encoding = encoding_of(plan.document, plan.grid) if len(referred) else None
    encodings: tuple[Encoding, ...] = () if encoding is None else (encoding,)
    table = ChunkTable.from_columns(
        chunk=rows.chunk,
        source=source,
        offset=offset,
        length=length,
        encoding=np.where((source == INLINE) | (encoding is None), DECLARED, 0),
        data=rows.data,
    )
    return Array(path=member.path, document=_text(plan.document), chunks=table, encodings=encodings)


def _of_shards(
    member: _Member, sharding: Any, source: IntArray, offset: IntArray, length: IntArray, pool: SourcePool
) -> Array:
    """The inner chunks of shards, whose indexes are read."""
    plan, rows = member.plan, member.rows
    if np.any(source == INLINE):
        raise UnsupportedError("shards whose bytes are in the references themselves")

    def read(wanted: Any, starts: Any, lengths: Any) -> list[bytes]:
        return [
            pool.read(int(source[row]), int(offset[row]) + int(start), int(n))
            for row, start, n in zip(wanted, starts, lengths, strict=True)
        ]

    order = np.argsort(rows.chunk, kind="stable")
    shards = References(
        chunk=rows.chunk[order], row=order, offset=np.zeros(len(order), dtype=np.int64), length=length[order]
    )
    grid, inner = cut(sharding, plan.grid, shards, read)
    document = {**plan.document, "chunk_grid": grid.to_json(), "codecs": sharding.codecs}
    table = ChunkTable.from_columns(
        chunk=inner.chunk,
        source=source[inner.row],
        offset=offset[inner.row] + inner.offset,
        length=inner.length,
        encoding=DECLARED,
    )
    return Array(path=member.path, document=_text(document), chunks=table)


def refuse_strays(where: str, strays: Sequence[str]) -> None:
    """Raise if there are keys that nothing describes.

    Raises
    ------
    FormatError
        Naming them.
    """
    if strays:
        some = ", ".join(shortened(key) for key in strays[:_LINES])
        raise FormatError(
            f"{where}: {len(strays)} keys are neither documents nor chunks of the arrays that they describe: {some}"
            f"{', ...' if len(strays) > _LINES else ''}"
        )
