"""The chunks, shards and blocks in which a variable is rewritten.

A block is what is read at a time: whole shards, or, of shards that do not fit into memory, a part of one in whole
chunks. What a block does not hold all of is decoded again for the next one. Blocks are made long along those
dimensions along which that costs most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np

from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node

type Shape = tuple[int, ...]
type Region = tuple[slice, ...]
type Lengths = Mapping[str, int]
type For = Literal["time-series", "map"]

CHUNK_NBYTES = 1 << 20
"""Values in a chunk whose shape is chosen here: a request's worth."""

SHARD_NBYTES = 64 << 20
"""Values in a shard whose shape is chosen here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How an array is rewritten.

    Parameters
    ----------
    grid:
        Of the chunks, all of one shape.
    shards:
        Of the shards: the same array.
    block:
        Shape of what is read at a time: of whole shards, or of whole chunks of one.
    reads:
        How often the values of the array are decoded, on average: 1 if no stored chunk is needed twice. At most, since
        of what is not compressed only what is needed is read.
    """

    grid: ChunkGrid
    shards: ChunkGrid
    block: Shape
    reads: float

    @classmethod
    def of(
        cls,
        node: Node,
        *,
        chunk: Shape,
        shards: Lengths | Literal["auto"] | None,
        itemsize: int,
        block_nbytes: int,
    ) -> Self:
        """The layout for chunks of one shape.

        Parameters
        ----------
        shards:
            Lengths by names of dimensions (others: that of a chunk); None: a shard is a chunk.
        block_nbytes:
            Bytes of values that may be read at a time.

        Raises
        ------
        ValueError
            If shards do not consist of whole chunks, or a chunk does not fit into the memory that there is.
        """
        most = block_nbytes // itemsize
        if math.prod(chunk) > most:
            raise ValueError(
                f"/{node.path}: a chunk of {chunk} takes {math.prod(chunk) * itemsize} bytes; {block_nbytes} are to be "
                "held at a time. Give memory= (--memory) three times as much as a chunk, or choose smaller ones"
            )
        stored = node.grid
        if shards == "auto":
            shard = _grown(stored, chunk, min(SHARD_NBYTES // itemsize, most), always=True)
        else:
            shard = _shard(node, chunk, shards or {})
        if math.prod(shard) <= most:
            block = _grown(stored, shard, most, always=False)
        else:
            block = _grown(stored, chunk, most, always=False, within=shard)
        return cls(
            grid=ChunkGrid.regular(node.shape, chunk),
            shards=ChunkGrid.regular(node.shape, shard),
            block=block,
            reads=_reads(stored, block),
        )

    @property
    def chunk(self) -> Shape:
        return self.grid.chunk_shape()

    @property
    def shard(self) -> Shape:
        return self.shards.chunk_shape()

    def tasks(self) -> Iterator[list[Region]]:
        """The parts of the array that are read one after the other; those of one list make whole shards."""
        outer = tuple(max(b, s) for b, s in zip(self.block, self.shard, strict=True))
        for region in regions(self.grid.shape, outer):
            origin = [part.start for part in region]
            extent = tuple(part.stop - part.start for part in region)
            yield [
                tuple(slice(at + p.start, at + p.stop) for at, p in zip(origin, inner, strict=True))
                for inner in regions(extent, self.block)
            ]


def regions(shape: Sequence[int], step: Sequence[int]) -> Iterator[Region]:
    """The parts of an array that a grid of ``step`` makes, in C order."""
    counts = [-(-extent // edge) for extent, edge in zip(shape, step, strict=True)]
    for index in np.ndindex(*counts):
        yield tuple(slice(i * e, min((i + 1) * e, n)) for i, e, n in zip(index, step, shape, strict=True))


def chunk_shape(node: Node, nodes: Mapping[str, Node], chunks: Lengths | For, itemsize: int) -> Shape:
    """The chunks that are asked for: lengths by names of dimensions (others as they are), or for a use.

    Raises
    ------
    ValueError
        If a chunk would be longer than the array.
    """
    own = tuple(
        min(edge if isinstance(edge, int) else max(n for n, _ in edge), extent)
        for edge, extent in zip(node.grid.edges, node.shape, strict=True)
    )
    if isinstance(chunks, str):
        return _chunk_for(chunks, node.shape, time_axis(node, nodes), CHUNK_NBYTES // itemsize)
    lengths = []
    for name, extent, length in zip(node.dims, node.shape, own, strict=True):
        asked = chunks.get(name or "", length)
        if asked > extent:
            raise ValueError(f"/{node.path}: chunks of {name}={asked} are longer than it is ({extent}); -1: all of it")
        lengths.append(extent if asked == -1 else asked)
    return tuple(lengths)


def check_lengths(what: str, lengths: Lengths, nodes: Sequence[Node]) -> None:
    """Raise a ValueError for lengths of dimensions that none of the arrays has, and for those that are none."""
    dims = dict.fromkeys(name for node in nodes for name in node.dims if name)
    unknown = [name for name in lengths if name not in dims]
    if unknown:
        raise ValueError(f"{what}: no dimension {', '.join(unknown)}; there are {', '.join(dims)}")
    for name, length in lengths.items():
        if length == 0 or length < -1:
            raise ValueError(f"{what}: lengths are 1 or more, or -1 for all; got {name}={length}")


def time_axis(node: Node, nodes: Mapping[str, Node]) -> int:
    """The dimension along which a series is: that of a coordinate of times, one called so, or else the first."""
    group = node.path.rpartition("/")[0]
    for axis, name in enumerate(node.dims):
        coordinate = nodes.get(f"{group}/{name}".lstrip("/")) or nodes.get(name or "")
        if coordinate is not None and " since " in str(coordinate.attributes.get("units", "")):
            return axis
    return next((axis for axis, name in enumerate(node.dims) if "time" in (name or "").lower()), 0)


def _chunk_for(use: For, shape: Shape, time: int, most: int) -> Shape:
    """Chunks that are long along time and short along all others, or the other way round."""
    last = [time] if use == "time-series" else [axis for axis in range(len(shape)) if axis != time][-2:]
    rest = [axis for axis in range(len(shape)) if axis not in last] if use == "time-series" else []
    chunk = [1] * len(shape)
    for group in (last, rest):
        # All of them alike, and what is short leaves more for the others.
        for done, axis in enumerate(sorted(group, key=lambda axis: shape[axis])):
            share = (max(most, 1) / math.prod(chunk)) ** (1 / (len(group) - done))
            chunk[axis] = max(1, min(shape[axis], math.floor(share + 1e-9)))
    return tuple(chunk)


def _shard(node: Node, chunk: Shape, shards: Lengths) -> Shape:
    lengths = []
    for name, extent, length in zip(node.dims, node.shape, chunk, strict=True):
        asked = shards.get(name or "", length)
        # A shard that reaches the end of the array is made of whole chunks, too.
        lengths.append(-(-extent // length) * length if asked == -1 or asked >= extent else asked)
    shard = tuple(lengths)
    if any(outer % inner for outer, inner in zip(shard, chunk, strict=True)):
        raise ValueError(f"/{node.path}: shards of {shard} do not consist of whole chunks of {chunk}")
    return shard


def _grown(stored: ChunkGrid, unit: Shape, most: int, *, always: bool, within: Shape | None = None) -> Shape:
    """A multiple of ``unit`` of at most ``most`` elements in which the fewest stored chunks are cut.

    Parameters
    ----------
    always:
        Whether to grow where nothing is won by it.
    within:
        What it must lie in; the array if None.
    """
    ends = stored.shape if within is None else within
    limits = tuple(-(-end // step) * step for end, step in zip(ends, unit, strict=True))
    block = list(unit)
    now = _reads(stored, unit)
    while True:
        tried: list[tuple[float, int, int]] = []
        for axis, step in enumerate(unit):
            fitting = most // (math.prod(block) // block[axis]) // step * step
            for length in {min(2 * block[axis], limits[axis]), min(fitting, limits[axis])}:
                if block[axis] < length <= fitting:
                    cost = _reads(stored, (*block[:axis], length, *block[axis + 1 :]))
                    tried.append((cost, -axis, length))
        if not tried:
            return tuple(block)
        cost, axis, length = min(tried)
        if cost >= now and not always:
            return tuple(block)
        now = cost
        block[-axis] = length


def _reads(stored: ChunkGrid, block: Sequence[int]) -> float:
    """How often elements are decoded on average, if an array is read in blocks."""
    product = 1.0
    for extent, starts, count, step in zip(stored.shape, stored.starts, stored.counts, block, strict=True):
        first: Any = np.arange(0, extent, step, dtype=np.int64)
        stop = np.minimum(first + step, extent)
        if isinstance(starts, int):
            decoded = np.minimum(-(-stop // starts) * starts, extent) - first // starts * starts
        else:
            low = np.searchsorted(starts, first, side="right") - 1
            high = np.minimum(np.searchsorted(starts, stop), count)
            decoded = np.minimum(starts[high], extent) - starts[low]
        product *= float(decoded.sum()) / extent
    return product
