"""The keys of a Zarr v3 hierarchy, which the store, the filesystem and HTTP all serve.

A :class:`KeySpace` answers what a store must: the bytes of a key or of a part of it, whether there is
one, how long it is, and what lies below a prefix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from refindex.model.manifest import Node
from refindex.model.zarr_v3 import consolidated
from refindex.serve.resolver import WHOLE, ByteRange, Resolver

DOCUMENT = "zarr.json"


class KeySpace(Protocol):
    """Keys to bytes, read only. Absent keys are None; anything else that goes wrong raises."""

    def read(self, key: str, part: ByteRange = WHOLE) -> bytes | None: ...

    async def read_async(self, key: str, part: ByteRange = WHOLE) -> bytes | None: ...

    def size(self, key: str) -> int | None: ...

    def exists(self, key: str) -> bool: ...

    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys that start with ``prefix``."""
        ...

    def children(self, folder: str) -> Iterator[tuple[str, bool]]:
        """Names directly below a folder (no slashes at the ends) and whether each is a folder itself."""
        ...


class Hierarchy(Protocol):
    """Nodes, and the bytes of their chunks as their documents declare them."""

    @property
    def nodes(self) -> Mapping[str, Node]: ...

    def read(self, node: Node, chunk: int, part: ByteRange = WHOLE) -> bytes | None: ...

    async def read_async(self, node: Node, chunk: int, part: ByteRange = WHOLE) -> bytes | None: ...

    def size(self, node: Node, chunk: int) -> int | None: ...

    def chunks(self, node: Node, wanted: Sequence[int] | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Numbers of the chunks of an array that exist (of those wanted)."""
        ...

    def may_decode(self, node: Node) -> bool:
        """Whether :meth:`decodes` is true of some chunk of an array, as far as that is known without looking one up."""
        ...

    def decodes(self, node: Node, chunk: int) -> bool:
        """Whether reading any part of a chunk means decoding all of it."""
        ...


class HierarchyKeys:
    """The keys of a hierarchy."""

    def __init__(self, hierarchy: Hierarchy) -> None:
        self.hierarchy = hierarchy

    @cached_property
    def _nodes(self) -> Mapping[str, Node]:
        return self.hierarchy.nodes

    @cached_property
    def _members(self) -> dict[str, list[str]]:
        """Names of the nodes directly in each group."""
        members: dict[str, list[str]] = {path: [] for path, node in self._nodes.items() if not node.is_array}
        for path in self._nodes:
            if path:
                folder, _, name = path.rpartition("/")
                members[folder].append(name)
        return members

    @cached_property
    def _documents(self) -> dict[str, bytes]:
        return {}

    def document(self, path: str) -> bytes | None:
        """The ``zarr.json`` of a node; of a group with those of all nodes below it."""
        node = self._nodes.get(path)
        if node is None:
            return None
        if node.is_array:
            return node.document.encode()
        if path not in self._documents:
            prefix = f"{path}/" if path else ""
            below = ((p.removeprefix(prefix), n.document) for p, n in self._nodes.items() if p and p.startswith(prefix))
            self._documents[path] = consolidated(node.document, below).encode()
        return self._documents[path]

    def locate(self, key: str) -> tuple[Node, int] | None:
        """The array and the chunk number that a chunk key names."""
        parts = key.split("/")
        for at in range(len(parts) - 1, -1, -1):
            if parts[at] != "c":
                continue
            node = self._nodes.get("/".join(parts[:at]))
            if node is not None and node.is_array:
                chunk = node.grid.parse_key("/".join(parts[at:]))
                return None if chunk is None else (node, chunk)
        return None

    def _document_of(self, key: str) -> bytes | None:
        if key == DOCUMENT or key.endswith(f"/{DOCUMENT}"):
            return self.document(key[: -len(DOCUMENT)].removesuffix("/"))
        return None

    def read(self, key: str, part: ByteRange = WHOLE) -> bytes | None:
        document = self._document_of(key)
        if document is not None:
            return document[slice(*part.within(len(document)))]
        found = self.locate(key)
        return None if found is None else self.hierarchy.read(*found, part)

    async def read_async(self, key: str, part: ByteRange = WHOLE) -> bytes | None:
        document = self._document_of(key)
        if document is not None:
            return document[slice(*part.within(len(document)))]
        found = self.locate(key)
        return None if found is None else await self.hierarchy.read_async(*found, part)

    def size(self, key: str) -> int | None:
        document = self._document_of(key)
        if document is not None:
            return len(document)
        found = self.locate(key)
        return None if found is None else self.hierarchy.size(*found)

    def exists(self, key: str) -> bool:
        if self._document_of(key) is not None:
            return True
        found = self.locate(key)
        return found is not None and len(self.hierarchy.chunks(found[0], [found[1]])) > 0

    def keys(self, prefix: str = "") -> Iterator[str]:
        for path, node in self._nodes.items():
            folder = f"{path}/" if path else ""
            if not (folder.startswith(prefix) or prefix.startswith(folder)):
                continue
            document = folder + DOCUMENT
            if document.startswith(prefix):
                yield document
            if node.is_array:
                for key in self._chunk_keys(node):
                    if f"{folder}{key}".startswith(prefix):
                        yield f"{folder}{key}"

    def _chunk_keys(self, node: Node) -> Iterator[str]:
        chunks = self.hierarchy.chunks(node)
        for start in range(0, len(chunks), 4096):
            for coordinates in node.grid.coordinates(chunks[start : start + 4096]).tolist():
                yield "/".join(("c", *map(str, coordinates)))

    def children(self, folder: str) -> Iterator[tuple[str, bool]]:
        node = self._nodes.get(folder)
        if node is not None:
            yield DOCUMENT, False
            if not node.is_array:
                for name in self._members[folder]:
                    yield name, True
            elif len(self.hierarchy.chunks(node)):
                yield "c", bool(node.shape)
            return
        parts = folder.split("/")
        for at in range(len(parts) - 1, -1, -1):
            owner = self._nodes.get("/".join(parts[:at])) if parts[at] == "c" else None
            if owner is not None and owner.is_array:
                yield from self._chunk_children(owner, parts[at + 1 :])
                return

    def _chunk_children(self, node: Node, outer: list[str]) -> Iterator[tuple[str, bool]]:
        """Next coordinates of the chunks whose first coordinates are ``outer``."""
        depth = len(outer)
        if depth >= len(node.shape) or not all(p.isascii() and p.isdigit() and str(int(p)) == p for p in outer):
            return
        coordinates = node.grid.coordinates(self.hierarchy.chunks(node))
        rows = np.all(coordinates[:, :depth] == np.array([int(p) for p in outer], dtype=np.int64), axis=1)
        for value in np.unique(coordinates[rows, depth]).tolist():
            yield str(value), depth + 1 < len(node.shape)


class ManifestKeys(HierarchyKeys):
    """The keys of one version of an archive, with chunks as it declares them."""

    def __init__(self, resolver: Resolver) -> None:
        super().__init__(resolver)
        self.resolver = resolver
