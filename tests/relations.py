"""Whether manifests say the same, in the same order, to the last byte."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from refindex import Manifest
from refindex.storage import tables


def relations(manifest: Manifest) -> dict[str, pa.Table]:
    """All that is stored of a manifest."""
    chunks = [*tables.chunk_batches({path: array.chunks for path, array in manifest.arrays.items()})]
    return {
        "node": tables.node_table(manifest.nodes.values()),
        "source": tables.source_table(manifest.sources, "file:///"),
        "chunk": pa.concat_tables(chunks) if chunks else None,
        "placement": tables.placement_table(manifest.placements),
        "report": tables.report_table(manifest.report, "file:///"),
    }


def assert_same(found: Manifest, expected: Manifest) -> None:
    ours, theirs = relations(found), relations(expected)
    for name, table in theirs.items():
        assert ours[name] == table, name
    assert list(found.arrays) == list(expected.arrays)
    for path, array in expected.arrays.items():
        for column in ("chunk", "source", "offset", "length", "encoding"):
            mine, other = getattr(found.arrays[path].chunks, column), getattr(array.chunks, column)
            assert np.array_equal(mine, other)
            assert mine.dtype == other.dtype
        assert found.arrays[path].chunks.data == array.chunks.data
        assert found.arrays[path].grid == array.grid
