"""Values that are kept in the manifest, cut into chunks."""

from __future__ import annotations

import numpy as np

from refindex.decode.pipeline import Values, fit
from refindex.model.chunks import ChunkTable
from refindex.model.grid import ChunkGrid
from refindex.scan.contiguous import split_contiguous

INLINE_CHUNK = 4 << 20
"""Values in the manifest are cut into chunks of about this many bytes."""


def cut_values(values: Values) -> tuple[ChunkGrid, ChunkTable]:
    """Chunks of an array, as the ``bytes`` codec writes them."""
    shape = values.shape
    if not values.size:
        return ChunkGrid.regular(shape, tuple(max(1, n) for n in shape)), ChunkTable.empty()
    cut = split_contiguous(shape, values.dtype.itemsize, 0, INLINE_CHUNK)
    flat = np.ascontiguousarray(values).reshape(-1)
    size = values.dtype.itemsize
    pieces = []
    for number, (offset, length) in enumerate(zip(cut.offset.tolist(), cut.length.tolist(), strict=True)):
        piece = flat[offset // size : (offset + length) // size]
        stored = cut.edge_shape if cut.short[number] else cut.chunk_shape
        padded = fit(piece.reshape(stored), cut.chunk_shape, np.zeros((), dtype=values.dtype))
        pieces.append((number, padded.tobytes()))
    return ChunkGrid.regular(shape, cut.chunk_shape), ChunkTable.inline(pieces)
