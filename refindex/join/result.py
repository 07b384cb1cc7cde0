"""What a join gives: a manifest, or a change of the archive that was appended to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.model.change import Change
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Array, Manifest, Node, Placement, ReportEntry, ScanReport, Source

type IntArray = npt.NDArray[np.int64]
type Values = np.ndarray[Any, Any]

BOUNDS = ("bounds", "climatology")


@dataclass(frozen=True, kw_only=True)
class Joined:
    """The result of a join.

    ``tables`` holds, for each array, its references and the chunk number from which on they replace those of the
    archive that was appended to (None: it did not have the array).
    """

    nodes: Mapping[str, Node]
    tables: Mapping[str, tuple[ChunkTable, int | None]]
    sources: tuple[Source, ...]
    known_sources: int
    placements: tuple[Placement, ...]
    moved: bool
    report: tuple[ReportEntry, ...]

    def to_manifest(self) -> Manifest:
        """As a manifest of its own: nothing was appended to."""
        arrays = {
            path: Array(
                path=path,
                document=self.nodes[path].document,
                encodings=self.nodes[path].encodings,
                attribute_types=self.nodes[path].attribute_types,
                chunks=table,
            ).knowing(json=self.nodes[path].json, grid=self.nodes[path].grid)
            for path, (table, _) in self.tables.items()
        }
        return Manifest(
            groups={path: node for path, node in self.nodes.items() if path not in self.tables},
            arrays=arrays,
            sources=self.sources,
            report=ScanReport(entries=self.report),
            placements=self.placements,
        )

    def to_change(self) -> Change:
        """As a change of the archive that was appended to."""
        return Change(
            nodes=self.nodes,
            sources=self.sources[self.known_sources :],
            dropped={path: start for path, (_, start) in self.tables.items() if start is not None},
            chunks={path: table for path, (table, _) in self.tables.items() if len(table)},
            placements=self.placements,
            replace_placements=self.moved,
            report=self.report,
        )
