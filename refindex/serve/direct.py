"""Selections of a few elements, read with less around it than a plan for many chunks takes.

They make the very requests that the plan would make: what is here is faster and nothing else. Whatever is not simple
(filters, chunks that are adapted, remote sources) is left to the plan.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.access.ranges import Requests, merge
from refindex.errors import SourceError
from refindex.model.chunks import INLINE
from refindex.model.manifest import Node
from refindex.serve.parts import gather, runs
from refindex.serve.places import IntArray, Strided, chunk_of, origins
from refindex.serve.plan import WORTH, check_table
from refindex.serve.selection import Kept, SelectionReader

type Values = np.ndarray[Any, Any]

_DIRECT = 8 << 10
"""Bytes from which on they are read to where they go, and not copied there."""

_MOST = 4 << 20
"""Bytes that are read on the way, beside the result."""

_MOST_RUNS = 1 << 16


def read_one(reader: SelectionReader, node: Node, axes: Sequence[Strided], out: Values, fill: Any) -> bool:
    """Read a selection that lies in one chunk; whether that was done.

    Raises
    ------
    SourceError
        If the bytes cannot be read.
    """
    number, partial, within = 0, False, []
    for axis, start, count, extent in zip(axes, node.grid.starts, node.grid.counts, node.grid.shape, strict=True):
        if isinstance(start, int):
            chunk, at = divmod(axis.start, start)
            edge = start
        else:
            chunk = chunk_of(start, axis.start)
            at, edge = axis.start - int(start[chunk]), int(start[chunk + 1] - start[chunk])
        if at + (axis.count - 1) * axis.step >= edge:
            return False
        partial = partial or axis.step != 1 or axis.count != min(edge, extent - (axis.start - at))
        number = number * count + chunk
        within.append(at)
    kept = reader.row(node, number)
    if kept is None:
        out[...] = fill
        return True
    if partial and reader.cache.nbytes and not kept.plain:
        values = reader.cache.get((node.path, number))
        if values is not None:
            out[...] = values[_slices(axes, within)]
            return True
    if not kept.plain:
        return False
    try:
        return _read_plain(reader, kept, axes, within, partial, out)
    except SourceError as error:
        raise type(error)(f"{error} (for /{node.path}/{node.grid.key(number)})") from error


def _slices(axes: Sequence[Strided], within: Sequence[int]) -> tuple[slice, ...]:
    return tuple(
        slice(at, at + (axis.count - 1) * axis.step + 1, axis.step) for axis, at in zip(axes, within, strict=True)
    )


def _read_plain(
    reader: SelectionReader, kept: Kept, axes: Sequence[Strided], within: Sequence[int], partial: bool, out: Values
) -> bool:
    element, length, pool, gap = kept.element, kept.length, reader.pool, reader.local.gap
    steps = tuple([axis.step * stride for axis, stride in zip(axes, kept.strides, strict=True)])
    counts = tuple([axis.count for axis in axes])
    first = sum([at * stride for at, stride in zip(within, kept.strides, strict=True)])
    span, inside = element.itemsize, len(axes)
    while inside and (counts[inside - 1] == 1 or steps[inside - 1] - span <= gap):
        span += (counts[inside - 1] - 1) * steps[inside - 1]
        inside -= 1
    several = math.prod(counts[:inside])
    if length <= gap or several * span > WORTH * length:
        first_read, span_read, several = 0, length, 1
    else:
        first_read, span_read = first, span
    if several == 1:
        dense = out.nbytes == span_read and out.flags.c_contiguous and (partial or out.shape == kept.shape)
        if dense and span_read >= _DIRECT and element == out.dtype:
            pool.read_into(kept.source, kept.offset + first_read, [out.reshape(-1).view(np.uint8).data])
            return True
        if span_read > _MOST:
            return False
        data = pool.read(kept.source, kept.offset + first_read, span_read)
        out[...] = np.ndarray(counts, element, data, first - first_read, steps)
        return True
    if several > _MOST_RUNS or several * span > _MOST:
        return False
    part = runs(_slices(axes, within), kept.shape, element.itemsize, gap)
    if int(np.diff(part.offsets).min()) - span <= gap:
        return False  # some are read together
    blob = pool.read_each([kept.source], (kept.offset + part.offsets).tolist(), [span] * several)
    lead = counts[:inside]
    strides = [span * math.prod(lead[axis + 1 :]) for axis in range(inside)]
    out[...] = np.ndarray(counts, element, blob, 0, (*strides, *steps[inside:]))
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """How single elements are read whose bytes are stored as they are.

    Parameters
    ----------
    requests:
        Their ``order`` numbers the elements.
    address:
        First byte of each element in its source.
    element:
        Dtype of the stored bytes.
    chunks, nbytes_decoded:
        How many chunks they are in, and their bytes.
    """

    requests: Requests
    address: IntArray
    element: np.dtype[Any]
    chunks: int
    nbytes_decoded: int


def plan_elements(reader: SelectionReader, node: Node, coordinates: IntArray) -> Elements | None:
    """How elements ``(n, ndim)`` of an array are read, if all are stored as they are in local files. Reads no source.

    Raises
    ------
    ManifestError
        If the manifest is damaged.
    """
    grid = node.grid
    chunks, inverse = np.unique(grid.index_of_elements(coordinates), return_inverse=True)
    inverse = inverse.reshape(-1)
    table = reader.reader.find(node.path, chunks)
    if not len(chunks) or len(table) != len(chunks) or not np.array_equal(table.chunk, chunks):
        return None
    check_table(reader.reader, node, table)
    encoding = int(table.encoding[0])
    if bool((table.encoding != encoding).any()) or bool((table.source == INLINE).any()):
        return None
    if table.checksum is not None:
        return None  # a checksum is of all bytes of a chunk
    if encoding < 0 and not grid.is_regular:
        return None
    decoder = reader.decoder(node, encoding, grid.chunk_shape(int(chunks[0])))
    if decoder is None or not decoder.plain or decoder.element is None or bool((table.length != decoder.nbytes).any()):
        return None
    if not all(reader.pool.is_local(source) for source in np.unique(table.source).tolist()):
        return None
    inside = coordinates - origins(grid, chunks)[inverse]
    shape, size = decoder.encoding.shape, decoder.element.itemsize
    if len(shape) != grid.ndim or bool((inside >= np.array(shape, dtype=np.int64)).any()):
        return None  # some chunks are stored smaller than they are
    strides = np.array([size * math.prod(shape[axis + 1 :]) for axis in range(len(shape))], dtype=np.int64)
    address = table.offset[inverse] + inside @ strides
    sizes = np.full(len(address), size, dtype=np.int64)
    return Elements(
        requests=merge(table.source[inverse].astype(np.int64), address, sizes, reader.local),
        address=address,
        element=decoder.element,
        chunks=len(chunks),
        nbytes_decoded=len(chunks) * decoder.nbytes,
    )


def read_elements(reader: SelectionReader, plan: Elements, out: Values) -> None:
    """Read elements into a vector.

    Raises
    ------
    SourceError
        If they cannot be read.
    """
    requests = plan.requests
    sizes = requests.stop - requests.start
    group = np.cumsum(sizes) // _MOST
    bounds = [0, *(np.flatnonzero(np.diff(group)) + 1).tolist(), len(sizes)]
    for begin, end in itertools.pairwise(bounds):
        some = slice(begin, end)
        blob = reader.pool.read_each(
            requests.source[some].tolist(), requests.start[some].tolist(), sizes[some].tolist()
        )
        shift = np.cumsum(sizes[some]) - sizes[some] - requests.start[some]
        elements = requests.order[int(requests.first[begin]) : int(requests.first[end])]
        at = plan.address[elements] + np.repeat(shift, np.diff(requests.first[begin : end + 1]))
        out[elements] = gather(memoryview(blob), at, plan.element)
