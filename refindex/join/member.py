"""What is joined: a scanned file, or an archive to which files are appended."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from refindex.access import urls
from refindex.access.options import StorageOptions
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Manifest, Node, Placement, ReportEntry, Source


class Reader(Protocol):
    """What a join needs of a stored manifest."""

    @property
    def url(self) -> str: ...

    @property
    def nodes(self) -> Mapping[str, Node]: ...

    @property
    def sources(self) -> Sequence[Source]: ...

    @property
    def placements(self) -> Sequence[Placement]: ...

    def find(self, path: str, chunks: Any = None, *, start: int = 0) -> ChunkTable: ...


class ScannedFile(Protocol):
    """What a join needs of a scanned file whose references are kept somewhere."""

    @property
    def nodes(self) -> Mapping[str, Node]: ...

    @property
    def sources(self) -> Sequence[Source]: ...

    @property
    def report(self) -> Iterable[ReportEntry]: ...

    def count(self, path: str, /) -> int: ...

    def table(self, path: str, start: int = 0, stop: int | None = None, /) -> ChunkTable: ...


@dataclass(frozen=True, kw_only=True)
class Member:
    """One of the hierarchies that are joined.

    Parameters
    ----------
    name:
        As messages call it.
    nodes:
        Groups and arrays by path.
    sources:
        As the references number them.
    find:
        References of an array with chunk numbers from one on, up to another (None: to the end).
    count:
        Number of references of an array.
    placements:
        Of an archive: where its sources lie.
    is_base:
        Whether it is the archive that is appended to, of which as much as possible stays as it is.
    storage_options:
        Options for fsspec with which its sources are read.
    """

    name: str
    nodes: Mapping[str, Node]
    sources: Sequence[Source]
    find: Callable[[str, int, int | None], ChunkTable]
    count: Callable[[str], int]
    report: Sequence[ReportEntry] = ()
    placements: Sequence[Placement] = ()
    is_base: bool = False
    storage_options: StorageOptions = field(default=None, repr=False)

    @classmethod
    def of_file(cls, manifest: Manifest, name: str = "", storage_options: StorageOptions = None) -> Member:
        """A scanned file."""
        arrays = manifest.arrays

        def find(path: str, start: int, stop: int | None) -> ChunkTable:
            return arrays[path].chunks.between(start, stop)

        return cls(
            name=name or (urls.display(manifest.sources[0].url) if manifest.sources else "manifest"),
            nodes=manifest.nodes,
            sources=manifest.sources,
            find=find,
            count=lambda path: len(arrays[path].chunks),
            report=manifest.report.entries,
            storage_options=storage_options,
        )

    @classmethod
    def of_scanned(cls, file: ScannedFile, name: str, storage_options: StorageOptions = None) -> Member:
        """A scanned file of many."""
        return cls(
            name=name,
            nodes=file.nodes,
            sources=file.sources,
            find=file.table,
            count=file.count,
            report=tuple(file.report),
            storage_options=storage_options,
        )

    @classmethod
    def of_archive(cls, reader: Reader, storage_options: StorageOptions = None) -> Member:
        """An archive that was joined before."""
        return cls(
            name=urls.display(reader.url) if reader.url else "the archive",
            nodes=reader.nodes,
            sources=reader.sources,
            find=lambda path, start, stop: reader.find(path, start=start).between(start, stop),
            count=lambda path: len(reader.find(path)),
            placements=reader.placements,
            is_base=True,
            storage_options=storage_options,
        )

    def table(self, path: str, start: int = 0, stop: int | None = None) -> ChunkTable:
        """References of an array from a chunk number on, up to another."""
        return self.find(path, start, stop)

    @cached_property
    def arrays(self) -> dict[str, Node]:
        """Arrays by path."""
        return {path: node for path, node in self.nodes.items() if node.is_array}

    def name_at(self, dim: str, element: int) -> str:
        """Name of the file that an element of a joined dimension comes from."""
        for placement in self.placements:
            if placement.dim == dim and placement.start <= element < placement.start + placement.length:
                return urls.display(self.sources[placement.source].url)
        return self.name


def numeric_attributes(node: Node) -> dict[str, Any]:
    """The attributes of an array with the types that they have in its file, ``_FillValue`` included.

    Documents spell ``_FillValue`` of floating-point arrays as base64 of a double, as xarray reads it.
    """
    attributes = node.typed_attributes
    fill, dtype = attributes.get("_FillValue"), node.dtype
    if fill is not None and dtype is not None and dtype.kind in "iufb":
        if isinstance(fill, str):
            fill = struct.unpack("<d", base64.b64decode(fill))[0]
        attributes = dict(attributes)
        attributes["_FillValue"] = np.asarray(fill).astype(dtype.newbyteorder("="))[()]
    return attributes


@dataclass(slots=True, kw_only=True)
class Variants:
    """The different documents that the members have for one array path.

    A thousand files of a year have one or two kinds of document for each variable: what documents say is
    worked out once a kind.

    Parameters
    ----------
    nodes:
        One node of each kind.
    members:
        Numbers of the members that have the array.
    kinds:
        For each of them, the number of its kind.
    """

    nodes: list[Node] = field(default_factory=list)
    members: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)
    _kind_of: dict[int, int] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, members: Sequence[Member], path: str) -> Variants:
        found = cls()
        known: dict[tuple[str, bool], list[int]] = {}
        for number, member in enumerate(members):
            node = member.nodes.get(path)
            if node is None or not node.is_array:
                continue
            same = known.setdefault((node.document, member.is_base), [])
            for kind in same:
                other = found.nodes[kind]
                if other.encodings == node.encodings and other.attribute_types == node.attribute_types:
                    break
            else:
                kind = len(found.nodes)
                found.nodes.append(node)
                same.append(kind)
            found.members.append(number)
            found.kinds.append(kind)
        return found

    def kind_of(self, member: int) -> int:
        """The kind of a member's document."""
        if len(self._kind_of) != len(self.members):
            self._kind_of = dict(zip(self.members, self.kinds, strict=True))
        return self._kind_of[member]

    def first_of(self, kind: int) -> int:
        """Number of the first member of a kind."""
        return self.members[self.kinds.index(kind)]
