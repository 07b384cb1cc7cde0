"""What is exported: the nodes and references of one version of an archive, and which chunks a client can read alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.errors import NotFoundError, UnsupportedError
from refindex.model.chunks import DECLARED, ChunkTable
from refindex.model.encoding import Encoding, native_codecs
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node, Source
from refindex.serve.keys import ManifestKeys
from refindex.serve.resolver import Resolver
from refindex.serve.zarr_store import RefindexStore

_LINES = 50
"""Problems that an error names one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The part of an archive that is exported: ``groups`` and ``arrays`` by path, the root group among them."""

    store: RefindexStore
    groups: dict[str, Node]
    arrays: dict[str, Node]

    @classmethod
    def of(cls, store: RefindexStore, variables: Collection[str] | None = None) -> Content:
        """All of an archive, or the arrays of these names or paths with the coordinates of their dimensions.

        Raises
        ------
        NotFoundError
            If there is no such array.
        """
        nodes = store.nodes
        groups = {path: node for path, node in nodes.items() if not node.is_array}
        arrays = {path: node for path, node in nodes.items() if node.is_array}
        if variables is None:
            return cls(store=store, groups=groups, arrays=arrays)
        asked = {name.strip("/") for name in variables}
        chosen = {p for p in arrays if p in asked or p.rpartition("/")[2] in asked}
        missing = asked - chosen - {p.rpartition("/")[2] for p in chosen}
        if missing:
            raise NotFoundError(f"{store}: no array {', '.join(sorted(missing))}; there are {', '.join(arrays)}")
        wanted = set(chosen)
        for path in chosen:
            for group in _above(path):
                wanted |= {f"{group}/{name}".lstrip("/") for name in arrays[path].dims if name}
        kept = {path: node for path, node in arrays.items() if path in wanted}
        above = {group for path in kept for group in _above(path)} | {""}
        return cls(store=store, groups={p: n for p, n in groups.items() if p in above}, arrays=kept)

    @property
    def resolver(self) -> Resolver:
        keys = self.store.keys
        if not isinstance(keys, ManifestKeys):
            raise TypeError(f"{self.store} is not a store over a manifest")
        return keys.resolver

    @property
    def sources(self) -> Sequence[Source]:
        return self.resolver.reader.sources

    def table(self, path: str) -> ChunkTable:
        """All references of an array."""
        return self.resolver.reader.find(path)


def _above(path: str) -> list[str]:
    """The groups around a path, the root included."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[:n]) for n in range(len(parts), -1, -1)]


def native_rows(node: Node, table: ChunkTable) -> npt.NDArray[np.bool_]:
    """Which references have the bytes that the array declares."""
    native: npt.NDArray[np.bool_] = table.encoding == DECLARED
    for number in np.unique(table.encoding).tolist():
        if number == DECLARED or not node.native_encodings[number]:
            continue
        rows, shape = table.encoding == number, node.encodings[number].shape
        if node.grid.is_regular:
            native[rows] = shape == node.grid.chunk_shape()
        elif len(shape) == node.grid.ndim:
            native[rows] = np.all(chunk_shapes(node.grid, table.chunk[rows]) == np.array(shape), axis=1)
    return native


def chunk_shapes(grid: ChunkGrid, chunks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The full shapes, ``(n, ndim)``, of chunks."""
    coordinates = grid.coordinates(chunks)
    shapes = np.empty_like(coordinates)
    for axis, start in enumerate(grid.starts):
        if isinstance(start, int):
            shapes[:, axis] = start
        else:
            shapes[:, axis] = np.diff(start)[coordinates[:, axis]]
    return shapes


def why_adapted(node: Node, encoding: Encoding) -> str:
    """Why chunks of an encoding are not what the array declares."""
    if encoding.packing is not None:
        return "they are packed otherwise than others, and are served unpacked"
    if encoding.broadcast or any(encoding.start):
        return "they are parts of stored chunks, or repeat one"
    dtype = node.dtype
    codecs = None if dtype is None else native_codecs(encoding, dtype)
    if codecs is None:
        names = ", ".join(f.name for f in encoding.filters)
        return f"they are stored as another type, or by filters that Zarr has no codecs for ({names or 'no filter'})"
    if codecs != node.codecs:
        names = ", ".join(f.name for f in encoding.filters)
        return f"they went through other filters than the array declares ({names or 'none'})"
    return f"they are stored as chunks of {encoding.shape}, which are cropped or padded"


def refused(what: str, problems: Sequence[str], advice: str) -> UnsupportedError:
    """One error for all that stands in the way of an export."""
    lines = [*problems[:_LINES], *([f"and {len(problems) - _LINES} more"] if len(problems) > _LINES else [])]
    head = f"{what} cannot say {len(problems)} thing{'s' if len(problems) > 1 else ''} of this archive; {advice}"
    return UnsupportedError("\n  ".join([f"{head}:", *lines]))


def blocks(shape: tuple[int, ...], step: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The parts of an array of ``shape`` that a grid of ``step`` makes, in C order; one of a scalar."""
    counts = [-(-extent // edge) for extent, edge in zip(shape, step, strict=True)]
    return [
        tuple(slice(i * e, min((i + 1) * e, n)) for i, e, n in zip(index, step, shape, strict=True))
        for index in np.ndindex(*counts)
    ]


def block_shape(shape: tuple[int, ...], chunk: tuple[int, ...], most: int) -> tuple[int, ...]:
    """Whole chunks, as many of them along the last dimensions as have at most ``most`` elements; at least one."""
    block = list(chunk)
    for axis in range(len(shape) - 1, -1, -1):
        others = int(np.prod(block, dtype=object)) // block[axis]
        fit = max(1, min(-(-shape[axis] // chunk[axis]), most // max(1, others * chunk[axis])))
        block[axis] = fit * chunk[axis]
        if block[axis] < shape[axis]:
            break
    return tuple(block)


def element_size(node: Node) -> int:
    """Bytes of an element in memory; of values of variable length a guess."""
    return 64 if node.dtype is None else node.dtype.itemsize


type Document = dict[str, Any]
