"""Bytes of the variables that are kept in the manifest, in few reads."""

from __future__ import annotations

from collections.abc import Buffer, Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from refindex.access import urls
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import RangeReader, reading
from refindex.access.gather import COALESCE_GAP, Gatherer, Ranges
from refindex.errors import SourceError
from refindex.model.manifest import Source
from refindex.scan.netcdf3.layout import Placed

_LOCAL_GAP = 1 << 13
"""Bytes that are read faster than another call of the operating system takes."""

_SLAB = 1 << 23
"""Records near to each other are read this many bytes at a time."""

_ROUND = 1 << 26
"""Bytes read before what is not wanted of them is let go."""


type Gather = Callable[[Sequence[Ranges]], list[bytes]]
"""The bytes of ranges: for each group, those of all its ranges one after the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Slabs:
    """Reads of the same length, of ``rows`` records each, which make up part of one variable.

    ``cost`` is how many bytes may be read for them, gaps included.
    """

    variable: int
    ranges: Ranges
    rows: int
    cost: int


def read_inline(
    variables: Sequence[Placed], *, source: Source, reader: RangeReader | RemoteBlocks, head: bytes
) -> list[bytes]:
    """The values of variables, each as one piece. ``head`` is the start of the file, as far as it is known.

    Raises
    ------
    SourceError
        If they cannot be read.
    """
    local = urls.is_local(source.url)
    gap = _LOCAL_GAP if local else COALESCE_GAP
    parts: list[list[Buffer]] = [[] for _ in variables]
    rest: list[int] = []
    for number, placed in enumerate(variables):
        if placed.end <= len(head):
            parts[number].append(_pick(memoryview(head)[placed.offset :], placed, placed.count))
        else:
            rest.append(number)
    gather = _remote(reader.gatherer()) if isinstance(reader, RemoteBlocks) else _local(source, reader)
    for round_ in _rounds(_slabs(variables, rest, gap)):
        with reading(source.url, "reading small variables and coordinates"):
            blocks = gather([slabs.ranges for slabs in round_])
        for slabs, block in zip(round_, blocks, strict=True):
            placed = variables[slabs.variable]
            if slabs.rows == 1:
                parts[slabs.variable].append(block)
                continue
            length = slabs.ranges.length
            parts[slabs.variable].extend(
                _pick(memoryview(block)[start : start + length], placed, slabs.rows)
                for start in range(0, len(block), length)
            )
    return [b"".join(part) for part in parts]


def _pick(data: memoryview, placed: Placed, rows: int) -> Buffer:
    """The pieces of ``rows`` records out of data that begins with the first of them."""
    if rows <= 1 or placed.is_contiguous:
        return data[: rows * placed.nbytes]
    return np.ndarray((rows, placed.nbytes), np.uint8, data, strides=(placed.stride, 1)).tobytes()


def _slabs(variables: Sequence[Placed], chosen: Sequence[int], gap: int) -> Iterator[_Slabs]:
    """Records that lie close together (or fill a quarter of what is read) are read with what is between them."""
    for number in chosen:
        placed = variables[number]
        near = placed.is_contiguous or placed.stride - placed.nbytes <= gap or placed.stride <= 4 * placed.nbytes
        rows = min(placed.count, max(1, _SLAB // placed.stride)) if near else 1
        whole, left = divmod(placed.count, rows)
        starts = placed.offset + np.arange(whole, dtype=np.int64) * (placed.stride * rows)
        length = (rows - 1) * placed.stride + placed.nbytes
        most = max(1, _ROUND // max(length, gap))
        for first in range(0, whole, most):
            ranges = Ranges(offsets=starts[first : first + most], length=length)
            yield _Slabs(variable=number, ranges=ranges, rows=rows, cost=len(ranges.offsets) * max(length, gap))
        if left:
            start = placed.offset + whole * rows * placed.stride
            ranges = Ranges.one(start, (left - 1) * placed.stride + placed.nbytes)
            yield _Slabs(variable=number, ranges=ranges, rows=left, cost=ranges.nbytes)


def _rounds(slabs: Iterator[_Slabs]) -> Iterator[list[_Slabs]]:
    gathered: list[_Slabs] = []
    room = _ROUND
    for piece in slabs:
        if gathered and piece.cost > room:
            yield gathered
            gathered, room = [], _ROUND
        gathered.append(piece)
        room -= piece.cost
    if gathered:
        yield gathered


def _local(source: Source, reader: RangeReader) -> Gather:
    """Range by range: a call costs about as much as a page of memory."""

    def gather(asked: Sequence[Ranges]) -> list[bytes]:
        blocks = []
        for ranges in asked:
            read, length = reader.read, ranges.length
            block = b"".join([read(offset, length) for offset in ranges.offsets.tolist()])
            if len(block) != ranges.nbytes:
                raise SourceError(
                    f"{urls.display(source.url)}: expected {ranges.nbytes} bytes from offset {ranges.offsets[0]}, "
                    f"found {len(block)}: the file has become shorter; scan it when it is complete"
                )
            blocks.append(block)
        return blocks

    return gather


def _remote(gatherer: Gatherer) -> Gather:
    """Ranges near to each other in one request, all requests at a time."""
    return lambda asked: [block.tobytes() for block in gatherer.gather(asked)]
