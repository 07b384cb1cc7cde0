"""References of one array as the manifest has them."""

from __future__ import annotations

import numpy as np

from refindex.errors import FormatError, UnsupportedError
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.manifest import Source
from refindex.scan.zarr.listing import IntArray, Objects
from refindex.scan.zarr.shards import References

INLINE_NBYTES = 1024
"""Arrays whose chunks take no more than this are kept in the manifest."""

COORDINATE_NBYTES = 16 << 20
"""The same for coordinates, which every reader of a dataset reads."""

MEMBER_NBYTES = 1 << 20
"""The same for compressed members of zip files, which no reference can point into, of one array."""

INLINE_CHUNKS = 1024
"""More chunks than this are not read while scanning."""


def table(objects: Objects, sources: list[Source], references: References, *, is_coordinate: bool) -> ChunkTable:
    """References as the manifest has them. Chunks of coordinates and of small arrays are read; ``sources`` is
    extended by what the others are in.

    Raises
    ------
    FormatError
        If a chunk is there twice.
    UnsupportedError
        If chunks are compressed members of a zip file, and too large to be kept.
    """
    order = np.argsort(references.chunk, kind="stable")
    chunk, row = references.chunk[order], references.row[order]
    offset, length = references.offset[order], references.length[order]
    if not len(chunk):
        return ChunkTable.empty()
    if np.any(chunk[1:] == chunk[:-1]):
        raise FormatError("two objects are the same chunk")
    base = objects.offsets(row)
    total = int(length.sum())
    packed = base < 0
    if np.any(packed):
        if int(length[packed].sum()) > MEMBER_NBYTES:
            name = objects.listing.names[int(row[packed][0])]
            raise UnsupportedError(
                f"{int(packed.sum())} of its chunks are compressed members of the zip file, e.g. {name}: nothing can "
                "refer to what is in them. Zip the store without compression (zip -0)"
            )
        keep = packed | (total <= INLINE_NBYTES)
    else:
        small = total <= (COORDINATE_NBYTES if is_coordinate else INLINE_NBYTES) and len(chunk) <= INLINE_CHUNKS
        keep = np.full(len(chunk), small)
    data = b""
    source = np.full(len(chunk), INLINE, dtype=np.int64)
    position = offset + base
    kept = np.flatnonzero(keep)
    if len(kept):
        data = b"".join(objects.read(row[kept], offset[kept], length[kept]))
        position[kept] = np.cumsum(length[kept]) - length[kept]
    referred = np.flatnonzero(~keep)
    if len(referred):
        source[referred] = _sources(objects, sources, row[referred])
    return ChunkTable.from_columns(
        chunk=chunk, source=source, offset=position, length=length, encoding=DECLARED, data=data
    )


def _sources(objects: Objects, sources: list[Source], rows: IntArray) -> IntArray:
    """Numbers of the sources of objects, which are added."""
    if objects.whole is not None:
        return np.zeros(len(rows), dtype=np.int64)
    distinct, inverse = np.unique(rows, return_inverse=True)
    first = len(sources)
    sources += objects.sources(distinct)
    return np.asarray(first + inverse.reshape(-1), dtype=np.int64)
