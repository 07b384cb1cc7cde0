"""What one commit does to an archive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Array, Manifest, Node, Placement, ReportEntry, ScanReport, Source


@dataclass(frozen=True, kw_only=True)
class Change:
    """A version in terms of the one before it: what an append writes.

    Parameters
    ----------
    nodes:
        All groups and arrays of the new version by path (references aside).
    sources:
        Sources that come new; they are numbered on from those that there are. All of them if ``replace_sources``:
        then each is the same file as the one of its number was, which is elsewhere now.
    dropped:
        For arrays whose references do not all stay: the chunk number from which on they go. An array that is
        in ``nodes`` and not here keeps all; one that is not in ``nodes`` any more loses all.
    chunks:
        References that come new, by array path. Their chunk numbers are not among those that stay.
    placements:
        Placements that come new, or all of them if ``replace_placements``.
    report:
        Report entries that come new, or all of them if ``replace_report``.
    """

    nodes: Mapping[str, Node]
    sources: tuple[Source, ...] = ()
    replace_sources: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)
    chunks: Mapping[str, ChunkTable] = field(default_factory=dict)
    placements: tuple[Placement, ...] = ()
    replace_placements: bool = False
    report: tuple[ReportEntry, ...] = ()
    replace_report: bool = False

    def applied_to(self, manifest: Manifest) -> Manifest:
        """The manifest that this change makes of one in memory."""
        arrays: dict[str, Array] = {}
        for path, node in self.nodes.items():
            if not node.is_array:
                continue
            parts = []
            before = manifest.arrays.get(path)
            if before is not None:
                end = self.dropped.get(path)
                table = before.chunks
                parts.append(table if end is None else table.take(slice(0, int(np.searchsorted(table.chunk, end)))))
            if path in self.chunks:
                parts.append(self.chunks[path])
            arrays[path] = Array(
                path=path,
                document=node.document,
                encodings=node.encodings,
                attribute_types=node.attribute_types,
                chunks=ChunkTable.concatenate(parts),
            )
        return Manifest(
            groups={path: node for path, node in self.nodes.items() if not node.is_array},
            arrays=arrays,
            sources=self.sources if self.replace_sources else (*manifest.sources, *self.sources),
            report=ScanReport(entries=self.report if self.replace_report else (*manifest.report, *self.report)),
            placements=self.placements if self.replace_placements else (*manifest.placements, *self.placements),
        )


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A version of an archive, as the log has it.

    Parameters
    ----------
    version:
        Counted from 0.
    timestamp:
        Milliseconds since 1970 UTC; later versions never have earlier ones.
    operation:
        ``write``, ``append``, ``replace``, ``remove``, ``relocate``, ``optimize``, ``restore``,
        ``publish``.
    details:
        What the operation says of itself: names of files added, numbers of references, the version restored.
    """

    version: int
    timestamp: int
    operation: str
    details: Mapping[str, Any] = field(default_factory=dict)


type Content = Manifest | Change
"""What can be committed: a whole manifest in place of all there was, or a change of it."""
