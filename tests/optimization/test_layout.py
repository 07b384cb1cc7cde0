"""Chunks, shards and blocks of rewritten variables, and which chunks there are, beside brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex.model.chunks import ChunkTable
from refindex.model.grid import ChunkGrid, encode_runs
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import array_document, dumps
from refindex.optimization.codecs import Codec
from refindex.optimization.layout import Layout, chunk_shape
from refindex.optimization.presence import present

NAMES = ("time", "lat", "lon")


def node_of(grid: ChunkGrid, path: str = "x", names: tuple[str, ...] = NAMES, **attributes: str) -> Node:
    document = array_document(
        grid=grid,
        data_type="float32",
        codecs=[{"name": "bytes", "configuration": {"endian": "little"}}],
        fill_value=0.0,
        dimension_names=names[: grid.ndim],
        attributes=attributes,
    )
    return Node(path=path, document=dumps(document))


@st.composite
def grids(draw: st.DrawFn, shape: tuple[int, ...]) -> ChunkGrid:
    """Chunks of a shape, of one length or of several along each dimension."""
    edges = []
    for extent in shape:
        if draw(st.booleans()):
            edges.append(draw(st.integers(1, extent + 2)))
            continue
        cuts = sorted({0, extent, *draw(st.lists(st.integers(1, extent), max_size=3))})
        edges.append(encode_runs(np.diff(cuts)))
    return ChunkGrid(shape=shape, edges=tuple(edges))


@st.composite
def cases(draw: st.DrawFn) -> tuple[ChunkGrid, tuple[int, ...], tuple[int, ...]]:
    """A stored grid, and a chunk and a shard of the same array."""
    shape = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    chunk = tuple(draw(st.integers(1, extent)) for extent in shape)
    shard = tuple(draw(st.integers(1, 3)) * length for length in chunk)
    return draw(grids(shape)), chunk, shard


def elements(grid: ChunkGrid, chunk: int) -> set[tuple[int, ...]]:
    ranges = [
        range(at, min(at + n, extent))
        for at, n, extent in zip(grid.origin(chunk), grid.chunk_shape(chunk), grid.shape, strict=True)
    ]
    return set(itertools.product(*ranges))


@given(cases(), st.data())
def test_a_chunk_is_there_if_any_element_of_it_was(
    case: tuple[ChunkGrid, tuple[int, ...], tuple[int, ...]], data: st.DataObject
) -> None:
    stored, chunk, _ = case
    new = ChunkGrid.regular(stored.shape, chunk)
    numbers = sorted(data.draw(st.sets(st.integers(0, stored.size - 1))))
    table = ChunkTable.from_columns(chunk=numbers, source=0, offset=np.zeros(len(numbers)), length=1)
    there = set().union(*(elements(stored, n) for n in numbers))
    wanted = [bool(elements(new, n) & there) for n in range(new.size)]
    assert present(table, stored, new).tolist() == wanted


@given(cases(), st.integers(1, 300))
def test_blocks_are_the_array_in_whole_shards_or_parts_of_one(
    case: tuple[ChunkGrid, tuple[int, ...], tuple[int, ...]], most: int
) -> None:
    stored, chunk, shard = case
    node = node_of(stored)
    shards = dict(zip(NAMES, shard, strict=False))
    if math.prod(chunk) > most:
        with pytest.raises(ValueError, match="memory="):
            Layout.of(node, chunk=chunk, shards=shards, itemsize=4, block_nbytes=4 * most)
        return
    layout = Layout.of(node, chunk=chunk, shards=shards, itemsize=4, block_nbytes=4 * most)
    read = np.zeros(stored.shape, dtype=int)
    decoded = 0
    shards_done: set[int] = set()
    for task in layout.tasks():
        of_task: set[int] = set()
        for region in task:
            assert math.prod(layout.block) <= most
            assert math.prod(s.stop - s.start for s in region) <= most
            assert all(s.start % n == 0 for s, n in zip(region, chunk, strict=True))
            read[region] += 1
            inside = set(itertools.product(*(range(s.start, s.stop) for s in region)))
            touched = [n for n in range(stored.size) if elements(stored, n) & inside]
            decoded += sum(len(elements(stored, n)) for n in touched)
            of_task |= set(layout.shards.index_of_elements(np.array(sorted(inside))).tolist())
        assert not of_task & shards_done, "a shard is written in one go"
        shards_done |= of_task
    assert (read == 1).all()
    assert layout.reads == pytest.approx(decoded / read.size)


def test_blocks_follow_the_stored_chunks() -> None:
    """Days of maps are cut as seldom as memory allows: every map is decoded twice, not once a shard."""
    node = node_of(ChunkGrid.regular((365, 180, 360), (1, 180, 360)))
    nbytes = 4 * 365 * 180 * 360
    layout = Layout.of(
        node, chunk=(365, 18, 36), shards={"lat": 36, "lon": 72}, itemsize=4, block_nbytes=nbytes * 6 // 10
    )
    assert layout.shards.size == 25
    assert layout.reads <= 2


@pytest.mark.parametrize(
    ("use", "shape", "wanted"),
    [
        ("map", (365, 180, 360), (1, 180, 360)),
        ("map", (365, 8, 4000, 8000), (1, 1, 512, 512)),
        ("time-series", (365, 180, 360), (365, 26, 27)),
        ("time-series", (100_000_000,), (262_144,)),
        ("map", (10,), (1,)),
    ],
)
def test_chunks_for_a_use(use: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> None:
    node = node_of(ChunkGrid.regular(shape, (1,) * len(shape)), names=("time", "level", "lat", "lon"))
    assert chunk_shape(node, {}, use, 4) == wanted  # type: ignore[arg-type]
    assert math.prod(wanted) * 4 <= 1 << 20


def test_time_is_found_by_its_coordinate() -> None:
    node = node_of(ChunkGrid.regular((10, 20, 300_000), (1, 1, 1)), path="g/x", names=("y", "x", "t"))
    times = node_of(ChunkGrid.regular((300_000,), (1,)), path="g/t", names=("t",), units="hours since 1900-01-01")
    assert chunk_shape(node, {"g/t": times}, "time-series", 4) == (1, 1, 262_144)
    assert chunk_shape(node, {"g/t": times}, "map", 4) == (10, 20, 1)


@pytest.mark.parametrize("text", ["zstd:0", "zstd:23", "blosc-zstd:10", "gzip", "none:1", "zstd:", "zstd:x", ""])
def test_codecs_that_there_are_not(text: str) -> None:
    with pytest.raises(ValueError, match="codec"):
        Codec.parse(text)
