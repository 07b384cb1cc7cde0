"""A scanned file as it travels between processes and is kept: what is the same in many files once, references as bytes.

Ten thousand files have a few kinds of documents, and pickling a hundred small columns costs more than making them.
"""

from __future__ import annotations

from collections.abc import Buffer, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import numpy as np

from refindex.access import urls
from refindex.model.chunks import ChunkTable, Pages, joined_checksums
from refindex.model.manifest import Manifest, Node, ReportEntry, ScanReport, Source, Status

COLUMNS: tuple[tuple[str, np.dtype[Any]], ...] = (
    ("chunk", np.dtype("<i8")),
    ("offset", np.dtype("<i8")),
    ("length", np.dtype("<i8")),
    ("source", np.dtype("<i4")),
    ("encoding", np.dtype("<i4")),
)
"""Columns of a record, in the order in which they lie in it: no row is at an odd address."""

CHECKED = (("checksum", np.dtype("<i8")), *COLUMNS)
"""Columns of a record with checksums."""


def columns_of(checked: bool) -> tuple[tuple[str, np.dtype[Any]], ...]:
    """The columns of a record."""
    return CHECKED if checked else COLUMNS


def row_size(checked: bool) -> int:
    """Bytes of a reference in a record."""
    return sum(dtype.itemsize for _, dtype in columns_of(checked))


ALIGNED = 8
"""Records begin, and end, at multiples of so many bytes."""

type Line = tuple[str, str, str, str]
"""An entry of a report: source (empty: the file itself), path, status, reason."""


_DERIVED = ("json", "grid", "shape", "dtype")
"""What nodes know that was worked out from their documents."""

_MANY_KINDS = 1000
"""Nodes from which on what was worked out is not kept: there is one of them for each file."""


def derived(node: Node) -> dict[str, Any]:
    """What is known of a node that was worked out from its document."""
    return {name: node.__dict__[name] for name in _DERIVED if name in node.__dict__}


class Interner:
    """One object for all that are equal.

    Parameters
    ----------
    light:
        Whether nodes are to travel: what can be worked out again stays behind.
    """

    def __init__(self, *, light: bool = False) -> None:
        self._light = light
        self._nodes: dict[tuple[str, str], list[Node]] = {}
        self._tuples: dict[tuple[int, ...], tuple[Node, ...]] = {}
        self._values: dict[Hashable, Hashable] = {}

    def node(self, node: Node) -> Node:
        """A plain node (no array with its references, nothing derived) that is equal to a node."""
        alike = self._nodes.setdefault((node.path, node.document), [])
        for other in alike:
            if other is node or (
                other.encodings == node.encodings
                and other.attribute_types == node.attribute_types
                and other.joined == node.joined
            ):
                return other
        plain = Node(
            path=node.path,
            document=node.document,
            encodings=node.encodings,
            attribute_types=node.attribute_types,
            joined=node.joined,
        )
        if not self._light and len(self._nodes) <= _MANY_KINDS:
            plain.knowing(**derived(node))
        alike.append(plain)
        return plain

    def nodes(self, nodes: Iterable[Node]) -> tuple[Node, ...]:
        """The plain nodes that are equal to some, and one tuple for all that have the same."""
        found = tuple(map(self.node, nodes))
        return self._tuples.setdefault(tuple(map(id, found)), found)

    def value[T: Hashable](self, value: T) -> T:
        """The first value that is equal to a value."""
        return cast("T", self._values.setdefault(value, value))


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A scanned file.

    Parameters
    ----------
    nodes:
        Groups, then arrays, without references.
    counts, sizes:
        Of each array, in the order of ``nodes``: its references, and the bytes of its inline chunks.
    record:
        The references of all arrays: a column of all arrays after the other (:data:`COLUMNS`), then the inline bytes,
        filled up to a multiple of 8.
    checked:
        Whether it has checksums, too (:data:`CHECKED`).
    """

    nodes: tuple[Node, ...]
    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    record: bytes = field(repr=False)
    sources: tuple[Source, ...]
    report: tuple[Line, ...]
    checked: bool = False


def pack(url: str, manifest: Manifest, interner: Interner) -> Packed:
    """A manifest of one file, packed. Placements, which files have that were joined, are left out."""
    tables = [array.chunks for array in manifest.arrays.values()]
    parts: list[Any] = []
    checksums = joined_checksums(tables)
    checked = checksums is not None
    if checksums is not None:
        parts.append(np.ascontiguousarray(checksums, dtype=CHECKED[0][1]))
    if tables:
        for name, dtype in COLUMNS:
            column = np.concatenate([getattr(table, name) for table in tables])
            parts.append(np.ascontiguousarray(column, dtype=dtype))
    parts += [table.data for table in tables]
    counts = tuple(map(len, tables))
    sizes = tuple(len(table.data) for table in tables)
    parts.append(bytes(record_size(counts, sizes, checked) - sum(counts) * row_size(checked) - sum(sizes)))
    shown = urls.display(url)
    return Packed(
        nodes=interner.nodes(manifest.nodes.values()),
        counts=interner.value(counts),
        sizes=interner.value(sizes),
        record=b"".join(parts),
        sources=manifest.sources,
        report=interner.value(
            tuple(
                ("" if e.source == shown else interner.value(e.source), e.path, str(e.status), e.reason)
                for e in manifest.report
            )
        ),
        checked=checked,
    )


def record_size(counts: Sequence[int], sizes: Sequence[int], checked: bool = False) -> int:
    """Bytes of a record of arrays with so many references, and bytes of inline chunks."""
    nbytes = sum(counts) * row_size(checked) + sum(sizes)
    return nbytes + -nbytes % ALIGNED


def unpack_report(url: str, lines: Sequence[Line]) -> ScanReport:
    """The report of a file."""
    shown = urls.display(url)
    return ScanReport(
        entries=tuple(
            ReportEntry(source=source or shown, path=path, status=Status(status), reason=reason)
            for source, path, status, reason in lines
        )
    )


class Hierarchy:
    """The groups and arrays of files that have the same ones."""

    __slots__ = ("arrays", "nodes")

    def __init__(self, nodes: Sequence[Node], arrays: Mapping[str, int]) -> None:
        self.nodes: Mapping[str, Node] = MappingProxyType({node.path: node for node in nodes})
        self.arrays = arrays

    @property
    def groups(self) -> dict[str, Node]:
        """The groups by path."""
        return {path: node for path, node in self.nodes.items() if path not in self.arrays}


class Hierarchies:
    """The hierarchies of files, each once."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, ...], Hierarchy] = {}
        self._arrays: dict[tuple[str, ...], Mapping[str, int]] = {}

    def of(self, nodes: Sequence[Node], n_arrays: int) -> Hierarchy:
        """The hierarchy of nodes, interned ones: they are the same if they are the same objects."""
        key = (n_arrays, *map(id, nodes))
        found = self._known.get(key)
        if found is None:
            paths = tuple(node.path for node in nodes[len(nodes) - n_arrays :])
            arrays = self._arrays.get(paths)
            if arrays is None:
                arrays = self._arrays[paths] = {path: number for number, path in enumerate(paths)}
            found = self._known[key] = Hierarchy(nodes, arrays)
        return found


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the references of each array lie in a record."""

    counts: tuple[int, ...]
    sizes: tuple[int, ...]
    checked: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of the record."""
        return record_size(self.counts, self.sizes, self.checked)

    def starts(self, array: int) -> tuple[int, int]:
        """The number of an array's first row, and of its first inline byte (as an offset into the record)."""
        return sum(self.counts[:array]), sum(self.counts) * row_size(self.checked) + sum(self.sizes[:array])

    def columns(self, array: int, rows: slice) -> dict[str, tuple[int, int]]:
        """Offset of each column of some rows of an array in the record, and its bytes."""
        first, _ = self.starts(array)
        total, before = sum(self.counts), 0
        found: dict[str, tuple[int, int]] = {}
        for name, dtype in columns_of(self.checked):
            start = before + (first + rows.start) * dtype.itemsize
            found[name] = start, (rows.stop - rows.start) * dtype.itemsize
            before += total * dtype.itemsize
        return found

    def tables(self, record: Buffer, pages: Pages | None) -> list[ChunkTable]:
        """The references of all arrays; their columns lie in the memory of the record."""
        view = memoryview(record)
        total, columns, at = sum(self.counts), {}, 0
        for name, dtype in columns_of(self.checked):
            columns[name] = np.frombuffer(view, dtype=dtype, count=total, offset=at)
            at += total * dtype.itemsize
        tables, first = [], 0
        for count, size in zip(self.counts, self.sizes, strict=True):
            rows = {name: column[first : first + count] for name, column in columns.items()}
            tables.append(ChunkTable(**rows, data=bytes(view[at : at + size]), pages=pages))
            first, at = first + count, at + size
        return tables
