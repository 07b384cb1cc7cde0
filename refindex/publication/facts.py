"""What a published archive tells of itself: what its page and its STAC item are made of."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from refindex.access import urls
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node, Source
from refindex.publication.coverage import Coverage

CITE = (
    "title",
    "summary",
    "description",
    "institution",
    "creator_name",
    "contact",
    "source",
    "references",
    "doi",
    "id",
    "license",
    "comment",
    "Conventions",
    "history",
)
"""Attributes of the root group that say what the data is, and how to cite it (CF conventions 2.6.2, ACDD)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What there is to say of a published archive.

    Parameters
    ----------
    url:
        Where it is published.
    is_file:
        Whether it is one SQLite file, not a folder.
    version, time:
        What was published, and when (UTC). A version of the published archive, not of the one that it is a copy of.
    title, license:
        As people write them; the licence may be empty.
    nodes:
        Groups and arrays by path.
    sources:
        At their public places.
    references:
        How many there are.
    """

    url: str
    is_file: bool
    version: int
    time: datetime
    title: str
    license: str
    nodes: Mapping[str, Node]
    sources: Sequence[Source]
    references: int
    coverage: Coverage

    @property
    def name(self) -> str:
        """Of the folder or file."""
        return urls.name(self.url)

    @property
    def arrays(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.is_array]

    @property
    def groups(self) -> list[Node]:
        """The groups, in order of their paths."""
        return sorted((node for node in self.nodes.values() if not node.is_array), key=lambda node: node.path)

    @property
    def nbytes(self) -> int:
        """Of all sources."""
        return sum(source.size for source in self.sources)

    @property
    def address(self) -> str:
        """What opens it: its URL, or its name beside the one who reads that, if it is on this machine."""
        return self.name if urls.is_local(self.url) else urls.masked(self.url)

    @property
    def citation(self) -> dict[str, str]:
        """What says how to cite it, by name."""
        attributes = self.nodes[""].attributes
        found = {name: str(attributes[name]) for name in CITE if isinstance(attributes.get(name), str | int | float)}
        return found | ({"license": self.license} if self.license else {})


def title_of(root: Node, url: str) -> str:
    """The title that the root group has, or the name of the archive."""
    title = root.attributes.get("title")
    return title.strip() if isinstance(title, str) and title.strip() else urls.name(url).rpartition(".")[0]


def members(nodes: Iterable[Node], group: str) -> list[Node]:
    """The arrays right in a group."""
    return [node for node in nodes if node.is_array and node.path.rpartition("/")[0] == group]


def dims_text(node: Node) -> str:
    """``time: 365, lat: 18``."""
    return ", ".join(f"{dim or '·'}: {n}" for dim, n in zip(node.dims, node.shape, strict=True)) or "a single value"


def type_text(node: Node) -> str:
    """The name of the data type."""
    kind: Any = node.json["data_type"]
    return kind if isinstance(kind, str) else str(kind.get("name", kind))


def chunks_text(grid: ChunkGrid) -> str:
    """Lengths of chunks along each dimension: one number, or the least and the greatest."""
    lengths = []
    for edge in grid.edges:
        each = [edge] if isinstance(edge, int) else [length for length, _ in edge]
        lengths.append(str(each[0]) if min(each) == max(each) else f"{min(each)}-{max(each)}")
    return ", ".join(lengths)


def meaning_of(node: Node) -> str:
    """What an array is, in words."""
    attributes = node.attributes
    return next((str(attributes[n]) for n in ("long_name", "standard_name", "description") if n in attributes), "")
