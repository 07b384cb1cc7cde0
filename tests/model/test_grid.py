"""Chunk geometry, beside numpy's and zarr's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zarr.core.chunk_key_encodings import DefaultChunkKeyEncoding

from refindex import ChunkGrid, FormatError
from refindex.model.grid import encode_runs


@st.composite
def edges(draw: st.DrawFn) -> tuple[int, int | tuple[tuple[int, int], ...]]:
    """An extent and chunk lengths that cover it."""
    if draw(st.booleans()):
        return draw(st.integers(0, 40)), draw(st.integers(1, 50))
    runs = tuple(draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=4)))
    total = sum(n * k for n, k in runs)
    return draw(st.integers(max(0, total - runs[-1][0] + 1), total)), runs


@st.composite
def grids(draw: st.DrawFn) -> ChunkGrid:
    dims = draw(st.lists(edges(), max_size=4))
    return ChunkGrid(shape=tuple(n for n, _ in dims), edges=tuple(e for _, e in dims))


def spelled_out(grid: ChunkGrid) -> list[list[int]]:
    """Chunk lengths along each dimension, one by one."""
    return [
        [edge] * (-(-extent // edge)) if isinstance(edge, int) else [n for n, k in edge for _ in range(k)]
        for extent, edge in zip(grid.shape, grid.edges, strict=True)
    ]


@given(grid=grids())
def test_numbering_is_c_order(grid: ChunkGrid) -> None:
    lengths = spelled_out(grid)
    assert grid.counts == tuple(len(axis) for axis in lengths)
    assert grid.size == np.prod(grid.counts, dtype=object)
    if not grid.size:
        return
    numbers = np.arange(grid.size)
    expected = np.stack(np.unravel_index(numbers, grid.counts), axis=1) if grid.ndim else np.empty((1, 0), int)
    assert np.array_equal(grid.coordinates(numbers), expected)
    assert np.array_equal(grid.index(expected), numbers)
    for number, coordinates in zip(numbers.tolist(), expected.tolist(), strict=True):
        origin = tuple(sum(axis[:c]) for axis, c in zip(lengths, coordinates, strict=True))
        assert grid.origin(number) == origin
        assert grid.chunk_shape(number) == tuple(axis[c] for axis, c in zip(lengths, coordinates, strict=True))
        assert grid.index_of_elements([origin])[0] == number


@given(grid=grids())
def test_keys_are_zarrs(grid: ChunkGrid) -> None:
    encoding = DefaultChunkKeyEncoding(separator="/")
    for number in range(min(grid.size, 50)):
        key = encoding.encode_chunk_key(tuple(grid.coordinates([number])[0].tolist()))
        assert grid.key(number) == key
        assert grid.parse_key(key) == number


@pytest.mark.parametrize(
    "key",
    ["", "c", "c/0", "c/0/0/0", "c/00/0", "c/+1/0", "c/-1/0", "c/1_0/0", "c/٣/0", "c/9/0", "d/0/0", "c/0/", "c//0"],
)
def test_what_is_no_key(key: str) -> None:
    assert ChunkGrid.regular((20, 20), (10, 5)).parse_key(key) is None


@given(grid=grids())
def test_json_round_trip(grid: ChunkGrid) -> None:
    again = ChunkGrid.from_json(grid.shape, grid.to_json())
    assert spelled_out(again) == spelled_out(grid)


@given(lengths=st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_runs(lengths: list[int]) -> None:
    runs = encode_runs(lengths)
    again = [runs] * len(lengths) if isinstance(runs, int) else [n for n, k in runs for _ in range(k)]
    assert again == lengths


@pytest.mark.parametrize(
    ("shape", "edges"),
    [
        ((5,), (0,)),
        ((5,), (((2, 2),),)),
        ((-1,), (2,)),
        ((5, 5), (5,)),
        ((5,), (((2, 0),),)),
        ((2**62, 2**62), (1, 1)),
    ],
)
def test_impossible_grids(shape: tuple[int, ...], edges: tuple[object, ...]) -> None:
    with pytest.raises(FormatError, match="chunk grid"):
        ChunkGrid(shape=shape, edges=edges)  # type: ignore[arg-type]


@pytest.mark.parametrize("document", [{}, {"name": "regular"}, {"name": "odd", "configuration": {}}, None, []])
def test_impossible_documents(document: object) -> None:
    with pytest.raises(FormatError, match="chunk grid"):
        ChunkGrid.from_json((5,), document)  # type: ignore[arg-type]
