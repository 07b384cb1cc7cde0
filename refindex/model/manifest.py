"""What a manifest is: nodes, arrays with their references, sources, and the report of the scan."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np

from refindex.errors import FormatError, RefindexError
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.dtype import dtype_from_json
from refindex.model.encoding import Encoding, native_codecs
from refindex.model.grid import ChunkGrid
from refindex.model.zarr_v3 import dumps, group_document, loads

_LARGEST_NUMBER = 64
"""Bytes of a number of an attribute, at most: the name of a type can claim gigabytes."""

FORMAT_VERSION = 1
"""Version of the manifest format that this module models (see the manifest format reference)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file that references point into, and how to recognise that it has not changed.

    Parameters
    ----------
    url:
        Absolute URL with its protocol (``file:///data/a.nc``, ``s3://bucket/a.nc``).
    size:
        Size in bytes.
    mtime:
        Modification time in microseconds since 1970 UTC, None where the storage has none.
    etag:
        Entity tag where the storage has one.
    version:
        What the storage calls this version of the file, where it keeps versions: it is read at this one.
    """

    url: str
    size: int
    mtime: int | None = None
    etag: str | None = None
    version: str | None = None

    def at(self, url: str) -> Source:
        """The same file at another URL, where its versions have other names."""
        return self if url == self.url else replace(self, url=url, version=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a part of a source lies along a dimension along which files were joined.

    Parameters
    ----------
    dim:
        Path of the dimension: its name behind that of the group whose coordinate (or arrays) it belongs to, as
        ``time`` or ``swath/time``.
    source:
        Number of the source.
    start, length:
        The elements of the joined dimension that come from it.
    offset:
        The element of the source's own dimension at which they begin.
    """

    dim: str
    source: int
    start: int
    length: int
    offset: int = 0


class Status(StrEnum):
    """What became of an object of a source."""

    NATIVE = "native"
    """Its chunks are passed through as they are."""
    ADAPTED = "adapted"
    """Some chunks are decoded here and encoded again; the reason says why."""
    INLINED = "inlined"
    """Its values are in the manifest."""
    NOTE = "note"
    """Served, with something that a reader of the report should know."""
    DIMENSION = "dimension"
    """A netCDF dimension without a variable: it lives on as a dimension name."""
    UNSERVED = "unserved"
    """Not served; the reason says why."""
    FAILED = "failed"
    """A whole source that could not be scanned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportEntry:
    """One line of a scan report: an object's path in its source, what became of it, and why."""

    source: str
    path: str
    status: Status
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class ScanReport:
    """What a scan served, how, and what it did not serve."""

    entries: tuple[ReportEntry, ...] = ()

    def __iter__(self) -> Iterator[ReportEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @cached_property
    def counts(self) -> Mapping[Status, int]:
        """Number of entries of each status."""
        return MappingProxyType(Counter(entry.status for entry in self.entries))

    def select(self, *statuses: Status) -> tuple[ReportEntry, ...]:
        """The entries of the given statuses."""
        return tuple(entry for entry in self.entries if entry.status in statuses)

    @property
    def problems(self) -> tuple[ReportEntry, ...]:
        """What is not served: objects and whole sources."""
        return self.select(Status.UNSERVED, Status.FAILED)

    def __str__(self) -> str:
        total = ", ".join(f"{count} {status}" for status, count in sorted(self.counts.items()))
        lines = [
            f"  {entry.status}: {entry.source}{'' if entry.path == '/' else ':' + entry.path}: {entry.reason}"
            for entry in self.entries
            if entry.status not in (Status.NATIVE, Status.INLINED, Status.DIMENSION)
        ]
        return "\n".join([f"scan report: {total or 'nothing scanned'}", *lines])

    def _repr_html_(self) -> str:
        from refindex.model import html  # which imports this module

        return html.report(self.entries)


@dataclass(frozen=True, kw_only=True)
class Node:
    """A group or an array as the manifest keeps it: a path and its final ``zarr.json`` text.

    Parameters
    ----------
    path:
        Path in the hierarchy without slashes at the ends; the root is ``""``.
    document:
        The final ``zarr.json`` text.
    encodings:
        For arrays: the encodings that the rows of the chunk table number.
    attribute_types:
        Numpy dtypes of numeric attributes whose type JSON does not keep, as ``{"scale_factor": "float32"}``.
    joined:
        For the root of an archive that was joined: how, as JSON, so that more files can be appended alike.
    """

    path: str
    document: str
    encodings: tuple[Encoding, ...] = ()
    attribute_types: Mapping[str, str] = field(default_factory=dict)
    joined: Mapping[str, Any] | None = None

    def knowing(self, **known: Any) -> Self:
        """The same node with properties that were derived before (``json``, ``grid``): they are not derived again."""
        self.__dict__.update(known)
        return self

    def moved(self, path: str, **changes: Any) -> Self:
        """The same node at another path."""
        derived = {name: self.__dict__[name] for name in ("json", "grid", "shape", "dtype") if name in self.__dict__}
        return replace(self, path=path, **changes).knowing(**derived)

    @cached_property
    def json(self) -> dict[str, Any]:
        """The parsed document."""
        parsed = loads(self.document, f"document of /{self.path}")
        if not isinstance(parsed, dict) or parsed.get("node_type") not in ("array", "group"):
            raise FormatError(f"document of /{self.path}: neither a Zarr v3 array nor a group")
        if not isinstance(parsed.get("attributes", {}), dict):
            raise FormatError(f"document of /{self.path}: its attributes are no JSON object")
        if parsed["node_type"] == "array":
            self._check_array(parsed)
        return parsed

    def _check_array(self, document: dict[str, Any]) -> None:
        """What is taken for granted of an array's document from here on."""
        shape, codecs, names = (document.get(name) for name in ("shape", "codecs", "dimension_names"))
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise FormatError(f"document of /{self.path}: its shape is {shape!r}; expected a list of integers")
        if not isinstance(codecs, list) or not all(
            isinstance(c, dict) and isinstance(c.get("name"), str) and isinstance(c.get("configuration", {}), dict)
            for c in codecs
        ):
            raise FormatError(f"document of /{self.path}: its codecs are {codecs!r}; expected a list of named ones")
        if names is not None and (not isinstance(names, list) or len(names) not in (0, len(shape))):
            raise FormatError(f"document of /{self.path}: its dimension names are {names!r}, for a shape of {shape}")
        if missing := {"data_type", "chunk_grid"} - document.keys():
            raise FormatError(f"document of /{self.path}: it has no {' and no '.join(sorted(missing))}")

    @property
    def is_array(self) -> bool:
        return bool(self.json["node_type"] == "array")

    @property
    def attributes(self) -> dict[str, Any]:
        return dict(self.json.get("attributes", {}))

    @cached_property
    def typed_attributes(self) -> dict[str, Any]:
        """Attributes with the numpy types that they have in the source."""
        attributes = self.attributes
        for name, dtype in self.attribute_types.items():
            if name in attributes and not isinstance(attributes[name], str):
                try:
                    kind = np.dtype(dtype)
                    if kind.itemsize > _LARGEST_NUMBER:
                        raise TypeError(f"no number has {kind.itemsize} bytes")
                    value = np.asarray(attributes[name], dtype=kind)
                except (TypeError, ValueError, OverflowError, SyntaxError) as error:
                    raise FormatError(f"/{self.path}: attribute {name!r} is not of type {dtype!r}: {error}") from error
                attributes[name] = value if value.ndim else value[()]
        return attributes

    # What follows is meaningful for arrays only.

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(n) for n in self.json["shape"])

    @cached_property
    def grid(self) -> ChunkGrid:
        return ChunkGrid.from_json(self.shape, self.json["chunk_grid"])

    @property
    def codecs(self) -> list[dict[str, Any]]:
        return list(self.json["codecs"])

    @property
    def dims(self) -> tuple[str | None, ...]:
        """Dimension names."""
        return tuple(self.json.get("dimension_names") or (None,) * len(self.shape))

    @cached_property
    def dtype(self) -> np.dtype[Any] | None:
        """Dtype of decoded chunk bytes, in the declared byte order; None for types of variable length."""
        endian = next((c.get("configuration", {}).get("endian") for c in self.codecs if c["name"] == "bytes"), None)
        return dtype_from_json(self.json["data_type"], endian)

    @cached_property
    def native_encodings(self) -> tuple[bool, ...]:
        """For each encoding, whether its bytes are what the codec chain declares (the shape aside)."""
        dtype = self.dtype
        return tuple(dtype is not None and native_codecs(encoding, dtype) == self.codecs for encoding in self.encodings)

    def is_native(self, chunk: int, encoding: int) -> bool:
        """Whether a chunk of this number with this encoding passes through untouched."""
        if encoding == DECLARED:
            return True
        return self.native_encodings[encoding] and (self.encodings[encoding].shape == self.grid.chunk_shape(chunk))


@dataclass(frozen=True, kw_only=True)
class Array(Node):
    """An array node with its references."""

    chunks: ChunkTable


class _Writer:
    """What :meth:`Manifest.save` calls; storage plugs itself in, so that the model needs not know it."""

    save: ClassVar[Callable[..., int] | None] = None


def set_writer(save: Callable[..., int]) -> None:
    """Give manifests their ``save``."""
    _Writer.save = staticmethod(save)


EMPTY_ROOT = Node(path="", document=dumps(group_document({})))


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A hierarchy of groups and arrays whose chunks lie in other files.

    Parameters
    ----------
    groups, arrays:
        By path; the root group, ``""``, is always there.
    sources:
        The files that ``ChunkTable.source`` numbers.
    report:
        What the scan served, how, and what it did not.
    placements:
        Where the sources lie along the dimensions along which they were joined.

    Raises
    ------
    FormatError
        If a parent group is missing, or a table refers to a source or an encoding that is not there.
    """

    groups: Mapping[str, Node]
    arrays: Mapping[str, Array]
    sources: tuple[Source, ...] = ()
    report: ScanReport = field(default_factory=ScanReport)
    placements: tuple[Placement, ...] = ()

    def __post_init__(self) -> None:
        if "" not in self.groups:
            raise FormatError("manifest: there is no root group")
        for path in (*self.groups, *self.arrays):
            if "/" in path and path.rpartition("/")[0] not in self.groups:
                raise FormatError(f"manifest: /{path} has no parent group")
        for path, array in self.arrays.items():
            table = array.chunks
            if not len(table):
                continue
            if _outside(table.bounds("source"), INLINE, len(self.sources)):
                raise FormatError(f"manifest: /{path} refers to a source that is not listed")
            if _outside(table.bounds("encoding"), DECLARED, len(array.encodings)):
                raise FormatError(f"manifest: /{path} refers to an encoding that is not listed")
            if table.chunk[-1] >= array.grid.size:
                raise FormatError(
                    f"manifest: /{path} has chunk {table.chunk[-1]} in a grid of {array.grid.size} chunks"
                )

    @property
    def nodes(self) -> dict[str, Node]:
        """All nodes by path: groups, then arrays, each in the order of the sources."""
        return {**self.groups, **self.arrays}

    @property
    def n_references(self) -> int:
        """Number of chunk references in all arrays."""
        return sum(len(array.chunks) for array in self.arrays.values())

    def save(
        self,
        url: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        storage_options: Mapping[str, Any] | None = None,
    ) -> int:
        """Write the manifest and return the version that was committed.

        Parameters
        ----------
        url:
            Where to: SQLite if the name ends in ``.sqlite`` (``.sqlite3``, ``.db``), else a folder of Parquet
            files, by custom ``NAME.refindex``.
        overwrite:
            Whether an archive that exists gets a new version.
        storage_options:
            Options for fsspec.

        Raises
        ------
        ExistsError
            If something is there and ``overwrite`` is not set; nothing is changed then.
        SourceError
            If it cannot be written.
        """
        if _Writer.save is None:
            raise RefindexError("no manifest storage is loaded: import refindex before saving")
        return _Writer.save(self, os.fspath(url), overwrite=overwrite, storage_options=storage_options)

    def nest(self, name: str) -> Manifest:
        """The same hierarchy one level down, in a group ``name``; nothing can be appended to it there."""
        groups = {"": EMPTY_ROOT}
        groups |= {f"{name}/{path}".rstrip("/"): group for path, group in self.groups.items()}
        arrays = {f"{name}/{path}": array for path, array in self.arrays.items()}
        return replace(
            self,
            groups={path: group.moved(path, joined=None) for path, group in groups.items()},
            placements=(),
            arrays={path: array.moved(path) for path, array in arrays.items()},
        )

    def __repr__(self) -> str:
        return (
            f"<refindex.Manifest: {len(self.arrays)} arrays, {len(self.groups)} groups, "
            f"{self.n_references} references into {len(self.sources)} sources>"
        )

    def _repr_html_(self) -> str:
        from refindex.model import html  # which imports this module

        return html.hierarchy("refindex.Manifest", nodes=self.nodes, sources=self.sources, report=self.report)


def _outside(bounds: tuple[int, int], low: int, stop: int) -> bool:
    return bounds[0] < low or bounds[1] >= stop


def unite(manifests: Mapping[str, Manifest], extra: tuple[ReportEntry, ...] = ()) -> Manifest:
    """Manifests side by side, each in the group that is its key; sources are renumbered once.

    ``extra`` entries (sources that could not be scanned) are appended to the report.
    """
    groups: dict[str, Node] = {"": EMPTY_ROOT.moved("", joined={"side_by_side": True})}
    arrays: dict[str, Array] = {}
    sources: dict[Source, int] = {}
    entries: list[ReportEntry] = []
    for name, manifest in manifests.items():
        nested = manifest.nest(name)
        mapping = [sources.setdefault(source, len(sources)) for source in nested.sources]
        groups |= {path: group for path, group in nested.groups.items() if path}
        for path, array in nested.arrays.items():
            arrays[path] = array.moved(path, chunks=array.chunks.with_sources(mapping or [0]))
        entries.extend(manifest.report)
    return Manifest(
        groups=groups,
        arrays=arrays,
        sources=tuple(sources),
        report=ScanReport(entries=(*entries, *extra)),
    )
