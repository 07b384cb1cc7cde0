"""External raw storage: contiguous data that lies in other files, one after the other.

Format specification IV.A.2.h, "The Data Storage - External Data Files Message". As libhdf5 reads it
(``H5D__efl_read`` in H5Defl.c): a file that is shorter than its part goes on with zeros, not with fill values; a
file that is missing is an error.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from h5py import h5d, h5f, h5p

from refindex.access import urls
from refindex.access.files import open_reader, reading
from refindex.decode.pipeline import decode, fit
from refindex.errors import SourceError, UnsupportedError
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.dtype import numpy_dtype, same_bytes
from refindex.model.encoding import Encoding, bytes_codec
from refindex.model.grid import ChunkGrid, encode_runs
from refindex.model.manifest import Status
from refindex.scan.contiguous import split_contiguous
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.other_files import RAW_PREFIX, locate
from refindex.scan.hdf5.plan import Plan, type_reason
from refindex.scan.hdf5.stored import Stored, make_encoding
from refindex.scan.hdf5.values import cut_values

SEAM_NBYTES = 16 << 20
"""Data that is no single range of one file is kept in the manifest up to this many bytes an array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes ``[start, stop)`` of the data lie at ``offset`` of a file, ``there`` of them; the others are zero."""

    start: int
    stop: int
    source: int
    url: str
    offset: int
    there: int


def store_external(dataset: h5d.DatasetID, plan: Plan, index: FileIndex, *, small: bool) -> Stored:
    """References into the raw files of a dataset.

    Raises
    ------
    UnsupportedError
        If a raw file is missing, or too much of the data is in no single one.
    """
    itemsize = numpy_dtype(plan.stored).itemsize // max(1, math.prod(plan.type_dims))
    pieces = list(_pieces(plan.creation, index, math.prod(plan.shape) * itemsize))
    names = ", ".join(urls.display(piece.url) for piece in pieces[:3]) + (", ..." if len(pieces) > 3 else "")
    codecs = [bytes_codec(plan.served)]

    def encoded(shape: tuple[int, ...]) -> Encoding:
        return make_encoding(dataset, plan, shape, ())

    if small or 0 in plan.shape:
        values = decode(_gather(pieces, 0, math.prod(plan.shape) * itemsize, index), encoded(plan.shape), plan.served)
        grid, table = cut_values(values)
        return Stored(grid=grid, codecs=codecs, chunks=table, status=Status.INLINED, reason=f"from {names}")
    layout = _on_boundaries(plan.shape, itemsize, pieces) or _regular(plan.shape, itemsize)
    grid, starts, lengths, shapes = layout
    encodings: dict[tuple[int, ...], int] = {}
    rows: list[tuple[int, int, int, int, int]] = []
    inline: list[bytes] = []
    kept = used = 0
    firsts = [piece.start for piece in pieces]
    zero_is_fill = not any(np.asarray(plan.fill, dtype=plan.served).tobytes())
    for number, (start, length, shape) in enumerate(zip(starts, lengths, shapes, strict=True)):
        piece = pieces[bisect.bisect_right(firsts, start) - 1]
        if start + length <= piece.start + piece.there:
            encoding = encodings.setdefault(shape, len(encodings))
            rows.append((number, piece.source, piece.offset + start - piece.start, length, encoding))
            continue
        if zero_is_fill and start >= piece.start + piece.there and start + length <= piece.stop:
            continue  # behind the end of a file
        kept += length
        if kept > SEAM_NBYTES:
            raise UnsupportedError(
                f"more than {SEAM_NBYTES} bytes of it are in chunks that lie in several external files ({names}), or "
                "behind the end of one"
            )
        values = decode(_gather(pieces, start, length, index), encoded(shape), plan.served)
        data = fit(values, grid.chunk_shape(number), plan.fill).tobytes()
        rows.append((number, INLINE, used, len(data), DECLARED))
        inline.append(data)
        used += len(data)
    columns = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    reasons = []
    if not same_bytes(plan.stored, plan.served):
        reasons.append(type_reason(plan))
    if inline:
        reasons.append(f"{len(inline)} of {len(rows)} chunks are no single range of a file: kept in the manifest")
    if any(shape != grid.chunk_shape(number) for number, shape in enumerate(shapes)):
        reasons.append("the last chunk along the dimension that is cut is short")
    adapted = bool(reasons)
    reasons.append(f"in {names}")
    return Stored(
        grid=grid,
        codecs=codecs,
        encodings=tuple(encoded(shape) for shape in encodings),
        chunks=ChunkTable.from_columns(
            chunk=columns[0],
            source=columns[1],
            offset=columns[2],
            length=columns[3],
            encoding=columns[4],
            data=b"".join(inline),
        ),
        status=Status.ADAPTED if adapted else Status.NATIVE,
        reason="; ".join(reasons),
    )


def _pieces(creation: h5p.PropDCID, index: FileIndex, total: int) -> Iterator[Piece]:
    """The files in order; the last one may be unlimited (H5O_EFL_UNLIMITED)."""
    start = 0
    for i in range(creation.get_external_count()):
        raw, offset, size = creation.get_external(i)
        if start >= total:
            return
        name = raw.decode("utf-8", "surrogateescape")
        url = locate(
            name,
            index.url,
            prefix=RAW_PREFIX,
            storage_options=index.storage_options,
            allowed=index.files.allowed,
        )
        source = index.source_number(url)
        rest = total - start
        length = rest if size == h5f.UNLIMITED or size >= rest else int(size)
        there = min(length, max(0, index.sources[source].size - int(offset)))
        yield Piece(start=start, stop=start + length, source=source, url=url, offset=int(offset), there=there)
        start += length
    if start < total:
        raise UnsupportedError(f"its external files have {start} of {total} bytes")


type _Layout = tuple[ChunkGrid, list[int], list[int], list[tuple[int, ...]]]
"""Grid, and of each chunk: first byte, length, shape."""


def _regular(shape: tuple[int, ...], itemsize: int) -> _Layout:
    cut = split_contiguous(shape, itemsize, 0)
    return (
        ChunkGrid.regular(shape, cut.chunk_shape),
        cut.offset.tolist(),
        cut.length.tolist(),
        [cut.edge_shape if short else cut.chunk_shape for short in cut.short.tolist()],
    )


def _on_boundaries(shape: tuple[int, ...], itemsize: int, pieces: list[Piece]) -> _Layout | None:
    """Chunks that end where the files end; None if one file is all, or a file ends within a row."""
    if len(pieces) < 2 or not shape:
        return None
    row = itemsize * math.prod(shape[1:])
    if any(piece.start % row for piece in pieces):
        return None
    lengths: list[int] = []
    for piece in pieces:
        cut = split_contiguous(((piece.stop - piece.start) // row, *shape[1:]), itemsize, 0)
        if cut.chunk_shape[1:] != shape[1:]:
            return None
        lengths += (cut.length // row).tolist()
    starts = np.concatenate(([0], np.cumsum(lengths)))[:-1]
    edge = encode_runs(lengths)
    grid = ChunkGrid(shape=shape, edges=(edge, *shape[1:]))
    return grid, (starts * row).tolist(), [n * row for n in lengths], [(n, *shape[1:]) for n in lengths]


def _gather(pieces: list[Piece], start: int, length: int, index: FileIndex) -> bytes:
    """Bytes ``[start, start + length)`` of the data, from as many files as they are in."""
    out = bytearray(length)
    for piece in pieces:
        first, last = max(start, piece.start), min(start + length, piece.start + piece.there)
        if first >= last:
            continue
        with reading(piece.url, "reading external data", referenced=True):
            data = open_reader(piece.url, index.storage_options).read(piece.offset + first - piece.start, last - first)
        if len(data) != last - first:
            raise SourceError(f"{urls.display(piece.url)}: {len(data)} bytes at {first}, expected {last - first}")
        out[first - start : last - start] = data
    return bytes(out)
