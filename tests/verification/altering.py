"""Archives in which one thing is not as it was scanned."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

import refindex
from refindex import Array, ChunkTable, Manifest, Node
from refindex.model.zarr_v3 import dumps

SUFFIXES = (".sqlite", ".refindex")


def with_row(manifest: Manifest, path: str, row: int, **columns: int) -> Manifest:
    """A manifest in which one reference says something else. What the model refuses is put in behind its back."""
    array = manifest.arrays[path]
    own = array.chunks
    table = ChunkTable(
        chunk=own.chunk.copy(),
        source=np.array(own.source),
        offset=own.offset.copy(),
        length=np.array(own.length),
        encoding=np.array(own.encoding),
        data=own.data,
    )
    changed = replace(manifest, arrays={**manifest.arrays, path: _array(array, table)})
    for name, value in columns.items():
        getattr(table, name)[row] = value
    return changed


def with_bytes(manifest: Manifest, path: str, at: int) -> Manifest:
    """A manifest in which one bit of the inline data of an array is another."""
    array = manifest.arrays[path]
    data = bytearray(array.chunks.data)
    data[at] ^= 1
    table = replace(array.chunks, data=bytes(data))
    return replace(manifest, arrays={**manifest.arrays, path: _array(array, table)})


def with_document(manifest: Manifest, path: str, change: Callable[[dict[str, Any]], None], **node: Any) -> Manifest:
    """A manifest in which a document says something else."""
    own = manifest.nodes[path]
    document = dict(own.json)
    document["attributes"] = dict(document.get("attributes", {}))
    change(document)
    if path in manifest.arrays:
        array = manifest.arrays[path]
        made = Array(
            path=path,
            document=dumps(document),
            encodings=array.encodings,
            attribute_types=node.get("attribute_types", array.attribute_types),
            chunks=array.chunks,
        ).knowing(json=own.json, grid=own.grid)  # so that the model has nothing to refuse
        return replace(manifest, arrays={**manifest.arrays, path: made})
    group = Node(path=path, document=dumps(document), attribute_types=own.attribute_types, joined=own.joined)
    return replace(manifest, groups={**manifest.groups, path: group})


def _array(array: Array, table: ChunkTable) -> Array:
    return Array(
        path=array.path,
        document=array.document,
        encodings=array.encodings,
        attribute_types=array.attribute_types,
        chunks=table,
    )


def kinds(found: refindex.Verification) -> Mapping[str, int]:
    """How many problems there are of each kind."""
    return {str(kind): count for kind, count in found.counts.items()}


def right(url: str | Path, **options: Any) -> refindex.Verification:
    """Verify all of an archive in which nothing is to be found."""
    found = refindex.verify(url, sample="all", **options)
    assert found.ok, str(found)
    assert found.complete
    return found
