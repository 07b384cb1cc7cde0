"""What keeps a rewriting from being begun, or from being committed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from refindex import storage
from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.archive import Archive
from refindex.errors import ConflictError, SourceError, UnsupportedError
from refindex.model.chunks import INLINE
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import EMPTY_ROOT, Array, Manifest, Source
from refindex.optimization.job import Job, Made
from refindex.optimization.layout import Region
from refindex.serve.opening import Opening
from refindex.storage import ManifestReader

type Values = np.ndarray[Any, Any]

_SAMPLE = 64
"""Places in each variable that are read back before anything is committed."""


def refuse_unwritable(url: str) -> None:
    """Raise for archives that nothing can be committed to, before hours of work are done for nothing."""
    where = urls.display(url)
    if any(link.startswith(("http://", "https://")) for link in url.split("::")):
        raise UnsupportedError(f"{where}: archives on HTTP servers cannot be changed; optimize a copy")
    if not urls.is_local(url):
        if url.endswith(storage.SQLITE_SUFFIXES):
            raise UnsupportedError(f"{where}: SQLite on remote storage cannot be changed; optimize a local copy")
        return
    path = urls.local_path(url)
    for needed in (path, path / "_delta_log") if path.is_dir() else (path, path.parent):
        if needed.exists() and not os.access(needed, os.W_OK):
            raise SourceError(f"{where}: {needed} is not writable; nothing can be committed to the archive")


def check_sample(read: Callable[[Region], Values], job: Job, made: Made, options: StorageOptions) -> None:
    """Compare chunks, the first and the last among them, with what the archive serves.

    Raises
    ------
    SourceError
        If any differs in a bit.
    """
    node, grid = made.node, job.layout.grid
    array = Array(
        path=node.path,
        document=node.document,
        encodings=node.encodings,
        attribute_types=node.attribute_types,
        chunks=made.table,
    )
    groups = {"": EMPTY_ROOT}
    parts = node.path.split("/")[:-1]
    groups |= {(at := "/".join(parts[: n + 1])): EMPTY_ROOT.moved(at) for n in range(len(parts))}
    manifest = Manifest(groups=groups, arrays={node.path: array}, sources=tuple(made.sources))
    random = np.random.default_rng(0)
    # Where a new chunk meets a stored one: so reading back a place decodes two chunks, and no more.
    places = [[0] * len(node.shape), [n - 1 for n in node.shape]]
    places += random.integers(0, node.shape, (_SAMPLE, len(node.shape))).tolist()
    opening = Opening(manifest=manifest, storage_options=dict(options or {}))
    with closing(Archive(opening)) as rewritten:
        for place in places:
            chunk = int(grid.index_of_elements([place])[0])
            region = _both(_box(grid, chunk), _box(job.node.grid, int(job.node.grid.index_of_elements([place])[0])))
            now, before = np.asarray(rewritten[node.path][region]), read(region)
            if now.astype(before.dtype).tobytes() != before.tobytes():
                raise SourceError(
                    f"/{node.path}: chunk {chunk} reads otherwise in {urls.display(job.folder.url)} than in the "
                    "archive; nothing was committed. Remove the folder, and try again"
                )


def _box(grid: ChunkGrid, chunk: int) -> Region:
    """The elements of an array that are in a chunk."""
    parts = zip(grid.origin(chunk), grid.chunk_shape(chunk), grid.shape, strict=True)
    return tuple(slice(at, min(at + length, extent)) for at, length, extent in parts)


def _both(one: Region, other: Region) -> Region:
    return tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True))


def refuse_changed(newest: ManifestReader, job: Job, sources: Sequence[Source]) -> None:
    """Raise if another writer has changed a variable while it was rewritten."""
    node = newest.nodes.get(job.node.path)
    same = (
        node is not None
        and node.document == job.node.document
        and node.encodings == job.node.encodings
        and dict(node.attribute_types) == dict(job.node.attribute_types)
    )
    if same:
        found = newest.find(job.node.path)
        numbers = np.unique(job.table.source)
        same = found.same_references(job.table) and all(
            newest.sources[n] == sources[n] for n in numbers.tolist() if n != INLINE
        )
    if not same:
        raise ConflictError(
            f"/{job.node.path} was changed by another writer while it was rewritten; nothing was committed. Try again: "
            "it is rewritten as it is now"
        )
