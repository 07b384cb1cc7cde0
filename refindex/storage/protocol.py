"""What a stored manifest offers to those who read it."""

from __future__ import annotations

import contextlib
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from refindex.access import urls
from refindex.errors import ManifestError, NotFoundError
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Array, Manifest, Node, Placement, ReportEntry, ScanReport, Source


class ManifestReader(Protocol):
    """One version of a manifest, read lazily. Safe to use from several threads."""

    @property
    def url(self) -> str:
        """Absolute URL of the archive, empty for a manifest in memory."""
        ...

    @property
    def version(self) -> int:
        """Snapshot that is read; it never changes under a reader."""
        ...

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Groups and arrays by path, without references."""
        ...

    @property
    def sources(self) -> Sequence[Source]:
        """The sources as ``ChunkTable.source`` numbers them, with absolute URLs."""
        ...

    @property
    def report(self) -> ScanReport: ...

    @property
    def placements(self) -> Sequence[Placement]:
        """Where the sources lie along the dimensions along which they were joined."""
        ...

    def find(self, path: str, chunks: npt.ArrayLike | None = None, *, start: int = 0) -> ChunkTable:
        """The references of the given chunks (sorted) of an array that exist, or all of them from ``start`` on.

        Raises
        ------
        ManifestError
            If the manifest is damaged: never an empty table instead.
        """
        ...

    def close(self) -> None: ...


class MemoryReader:
    """A manifest in memory as a reader."""

    def __init__(self, manifest: Manifest, *, url: str = "") -> None:
        self.manifest = manifest
        self.url = url
        self.version = 0
        self.nodes: Mapping[str, Node] = manifest.nodes
        self.sources: Sequence[Source] = manifest.sources
        self.report = manifest.report
        self.placements: Sequence[Placement] = manifest.placements

    def find(self, path: str, chunks: npt.ArrayLike | None = None, *, start: int = 0) -> ChunkTable:
        table = self.manifest.arrays[path].chunks
        if chunks is None:
            return table if not start else table.take(slice(int(np.searchsorted(table.chunk, start)), None))
        rows = table.find(chunks)
        return table.take(rows[rows >= 0])

    def close(self) -> None:
        """Nothing to close."""


def load(reader: ManifestReader) -> Manifest:
    """The whole manifest, references included, in memory."""
    if isinstance(reader, MemoryReader):
        return reader.manifest
    arrays = {
        path: Array(
            path=path,
            document=node.document,
            encodings=node.encodings,
            attribute_types=node.attribute_types,
            joined=node.joined,
            chunks=reader.find(path),
        )
        for path, node in reader.nodes.items()
        if node.is_array
    }
    groups = {path: node for path, node in reader.nodes.items() if not node.is_array}
    return Manifest(
        groups=groups,
        arrays=arrays,
        sources=tuple(reader.sources),
        report=reader.report,
        placements=tuple(reader.placements),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """A whole version as it is written in one go, of which the references are never all in memory.

    Parameters
    ----------
    chunks:
        Gives the references of the arrays that are inline as a whole (True), or of all others (False), as tables of
        one row group each, sorted by (path, chunk).
    """

    nodes: Mapping[str, Node]
    sources: Sequence[Source]
    placements: Sequence[Placement]
    report: Sequence[ReportEntry]
    chunks: Callable[[bool], Iterator[pa.Table]]


def damaged(why: object) -> ManifestError:
    """The error for references that cannot be copied."""
    return ManifestError(
        f"the references of the archive are damaged: {why}. Restore it from a copy, or scan again; nothing was written."
    )


@contextlib.contextmanager
def naming(url: str) -> Iterator[None]:
    """Errors about the rows of an archive say which archive it is."""
    try:
        yield
    except ManifestError as error:
        where = urls.display(url)
        if where in str(error):
            raise
        raise ManifestError(f"{where} is damaged: {error}. Restore it from a copy, or scan again.") from error


def require(nodes: Mapping[str, Node], path: str, url: str) -> Node:
    """The node at a path.

    Raises
    ------
    NotFoundError
        Naming the nearest paths there are.
    """
    node = nodes.get(path.strip("/"))
    if node is None:
        some = ", ".join(f"/{p}" for p in list(nodes)[:8]) + (", ..." if len(nodes) > 8 else "")
        raise NotFoundError(f"{url or 'manifest'}: no group or array /{path.strip('/')}; there are {some}")
    return node


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """What a vacuum removed: a file below the archive, or rows, and the bytes that this gave back."""

    name: str
    nbytes: int


def milliseconds(moment: datetime) -> int:
    """Milliseconds since 1970 UTC, rounded down; a time without a zone is local time."""
    return round(moment.timestamp() * 1_000_000) // 1000


def first_kept(
    n: int, timestamp: Callable[[int], int], *, keep_versions: int | None, older_than: timedelta | None
) -> int:
    """The index of the oldest of ``n`` versions that stays; those before it expired by all the limits that are given.

    Raises
    ------
    ValueError
        If a limit is negative, or would keep no version.
    """
    if keep_versions is not None and keep_versions < 1:
        raise ValueError(f"keep_versions must be at least 1, not {keep_versions}: the newest version always stays")
    if older_than is not None and older_than < timedelta(0):
        raise ValueError(f"older_than must not be negative, but is {older_than}")
    limits = []
    if keep_versions is not None:
        limits.append(max(0, n - keep_versions))
    if older_than is not None:
        limit = time.time_ns() // 1_000_000 - older_than // timedelta(milliseconds=1)
        limits.append(bisect_left(range(n), limit, key=timestamp))
    return min([*limits, n - 1]) if limits else 0
