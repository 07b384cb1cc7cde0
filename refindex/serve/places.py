"""Which chunks a selection touches, what is wanted of each, and where that goes. All by columns, an axis at a time.

A selection says for every dimension of the array which elements are wanted: a :class:`Strided` range, or an array of
indices in any order. What is wanted along one dimension is divided among its chunks once; the places of all chunks are
the product of these few divisions, and the selections of one place are made when they are asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from refindex.errors import UnsupportedError
from refindex.model.grid import ChunkGrid
from refindex.serve.parts import Selection

type IntArray = npt.NDArray[np.int64]
type BoolArray = npt.NDArray[np.bool_]
type Axis = Strided | IntArray


@dataclass(frozen=True, slots=True)
class Strided:
    """Elements ``start``, ``start + step``, ... of a dimension; ``step`` is positive."""

    start: int
    step: int
    count: int

    @property
    def last(self) -> int:
        """The last element, if there is one."""
        return self.start + (self.count - 1) * self.step

    def __len__(self) -> int:
        return self.count


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What is known of places that are the product of one division a dimension.

    Parameters
    ----------
    axis:
        The dimension along which a place follows the one before it.
    follows:
        Whether each place continues, in the chunks and in the result, the one before it along ``axis``.
    kinds:
        Places of the same kind have the same ``inside``.
    """

    axis: int
    follows: BoolArray
    kinds: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Chunks of an array, what is wanted of each, and where that goes.

    Parameters
    ----------
    chunks:
        Chunk numbers, in any order.
    inside:
        For each the selection in the chunk.
    outside:
        For each the selection in the result.
    partial:
        Whether no more than a part of the chunk is wanted, as far as that is known without looking at the selection.
    layout:
        How the places lie to each other, where that is known: many of them are then handled at a time.
    """

    chunks: IntArray
    inside: Sequence[Selection]
    outside: Sequence[Any]
    partial: BoolArray
    layout: Layout | None = None

    def take(self, rows: IntArray) -> Places:
        """Some of the places, in increasing order."""
        layout = self.layout
        if layout is not None:
            apart = np.diff(rows, prepend=-2) != 1
            layout = Layout(axis=layout.axis, follows=layout.follows[rows] & ~apart, kinds=layout.kinds[rows])
        numbers = rows.tolist()
        return Places(
            chunks=self.chunks[rows],
            inside=[self.inside[number] for number in numbers],
            outside=[self.outside[number] for number in numbers],
            partial=self.partial[rows],
            layout=layout,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Division:
    """What is wanted along one dimension, divided among its chunks.

    Parameters
    ----------
    chunks:
        Coordinates of the chunks, increasing.
    inside, outside:
        For each chunk what is wanted in it, and where that goes: slices or arrays.
    whole:
        Whether all of the chunk that lies in the array is wanted.
    follows:
        Whether each is next to the one before it in the result.
    kinds:
        Equal numbers have equal ``inside``.
    basic:
        Whether there are slices only.
    """

    chunks: IntArray
    inside: list[Any]
    outside: list[Any]
    whole: BoolArray
    follows: BoolArray
    kinds: IntArray
    basic: bool


class _Product(Sequence[Selection]):
    """The selections of places that are the product of the selections along each dimension, made when asked for."""

    def __init__(self, axes: list[list[Any]], combine: Callable[[tuple[Any, ...]], Selection] | None) -> None:
        self._axes = axes
        self._combine = combine
        self._length = math.prod(len(axis) for axis in axes)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, number: int) -> Selection: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Selection]: ...
    def __getitem__(self, number: int | slice) -> Selection | Sequence[Selection]:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(self._length))]
        if not 0 <= number < self._length:
            raise IndexError(f"there is no place {number} of {self._length}")
        found: list[Any] = []
        for axis in reversed(self._axes):
            number, at = divmod(number, len(axis))
            found.append(axis[at])
        selection = tuple(reversed(found))
        return selection if self._combine is None else self._combine(selection)

    def __iter__(self) -> Iterator[Selection]:
        return (self[number] for number in range(self._length))


def outer(grid: ChunkGrid, axes: Sequence[Axis]) -> Places:
    """Places of what is selected along each dimension by itself; its result has the lengths of ``axes``.

    Every axis selects at least one element, and none that the array does not have.
    """
    divisions = [
        _divide(start, extent, count, axis)
        for start, extent, count, axis in zip(grid.starts, grid.shape, grid.counts, axes, strict=True)
    ]
    ndim = grid.ndim
    chunks, kinds = np.zeros((1,) * ndim, dtype=np.int64), np.zeros((1,) * ndim, dtype=np.int64)
    whole = np.ones((1,) * ndim, dtype=bool)
    for axis, (division, count) in enumerate(zip(divisions, grid.counts, strict=True)):
        along = (1,) * axis + (-1,) + (1,) * (ndim - axis - 1)
        chunks = chunks * count + division.chunks.reshape(along)
        kinds = kinds * (int(division.kinds.max()) + 1) + division.kinds.reshape(along)
        whole = whole & division.whole.reshape(along)
    several = [axis for axis, division in enumerate(divisions) if len(division.chunks) > 1]
    last = several[-1] if several else ndim - 1
    follows = np.zeros(1, dtype=bool)
    if ndim:
        follows = np.tile(divisions[last].follows, chunks.size // len(divisions[last].chunks))
    arrays = sum(not division.basic for division in divisions)
    return Places(
        chunks=chunks.reshape(-1),
        inside=_Product([division.inside for division in divisions], _open if arrays > 1 else None),
        outside=_Product([division.outside for division in divisions], _open if arrays > 1 else None),
        partial=~whole.reshape(-1),
        layout=Layout(axis=last, follows=follows, kinds=kinds.reshape(-1)),
    )


def layout_of(inside: Sequence[Selection], outside: Sequence[Any]) -> Layout | None:
    """How places that are given one by one lie to each other; None where that is not easily seen."""
    if len(inside) < 2 or not isinstance(outside[0], tuple):
        return None
    numbers: dict[Selection, int] = {}
    try:
        kinds = [numbers.setdefault(part, len(numbers)) for part in inside]
        differing = [axis for axis, (a, b) in enumerate(zip(outside[0], outside[1], strict=True)) if a != b]
        if len(differing) != 1:
            return None
        axis = differing[0]
        follows = [False]
        for before, after in itertools.pairwise(outside):
            follows.append(
                before[axis].stop == after[axis].start
                and before[:axis] == after[:axis]
                and before[axis + 1 :] == after[axis + 1 :]
            )
    except (TypeError, ValueError, AttributeError):  # there are arrays in them
        return None
    return Layout(axis=axis, follows=np.array(follows), kinds=np.array(kinds, dtype=np.int64))


def _open(selection: tuple[Any, ...]) -> Selection:
    """Selections along several dimensions as numpy takes them where more than one is an array: an open mesh."""
    if sum(isinstance(part, np.ndarray) for part in selection) < 2:
        return selection
    return np.ix_(*(np.arange(p.start, p.stop, p.step) if isinstance(p, slice) else p for p in selection))


def _divide(start: int | IntArray, extent: int, count: int, axis: Axis) -> _Division:
    return _divide_strided(start, extent, axis) if isinstance(axis, Strided) else _divide_array(start, extent, axis)


def chunk_of(start: int | IntArray, element: int) -> int:
    """The chunk along a dimension in which an element lies."""
    if isinstance(start, int):
        return element // start
    return int(np.searchsorted(start, element, side="right")) - 1


def _edges(start: int | IntArray, chunk: int) -> tuple[int, int]:
    """First and last-plus-one element of a chunk along a dimension."""
    if isinstance(start, int):
        return chunk * start, (chunk + 1) * start
    return int(start[chunk]), int(start[chunk + 1])


def _divide_strided(start: int | IntArray, extent: int, axis: Strided) -> _Division:
    first, last = chunk_of(start, axis.start), chunk_of(start, axis.last)
    if first == last:
        begin, end = _edges(start, first)
        inside = slice(axis.start - begin, axis.last - begin + 1, axis.step)
        return _Division(
            chunks=np.array([first], dtype=np.int64),
            inside=[inside],
            outside=[slice(0, axis.count)],
            whole=np.array([axis.step == 1 and axis.count == min(end, extent) - begin]),
            follows=np.zeros(1, dtype=bool),
            kinds=np.zeros(1, dtype=np.int64),
            basic=True,
        )
    chunks = np.arange(first, last + 1, dtype=np.int64)
    begins = chunks * start if isinstance(start, int) else start[chunks]
    ends = begins + start if isinstance(start, int) else start[chunks + 1]
    # Numbers of the first wanted element at or after the begin of each chunk, and at or after its end.
    firsts = np.maximum(-((axis.start - begins) // axis.step), 0)
    stops = np.minimum(-((axis.start - ends) // axis.step), axis.count)
    if axis.step > 1:  # chunks may lie between two elements
        hit = stops > firsts
        chunks, begins, ends, firsts, stops = chunks[hit], begins[hit], ends[hit], firsts[hit], stops[hit]
    insides = axis.start + firsts * axis.step - begins
    counts = stops - firsts
    lasts = insides + (counts - 1) * axis.step + 1
    whole = counts == np.minimum(ends, extent) - begins if axis.step == 1 else counts == -1
    follows = np.ones(len(chunks), dtype=bool)
    follows[0] = False
    return _Division(
        chunks=chunks,
        inside=[slice(a, b, axis.step) for a, b in zip(insides.tolist(), lasts.tolist(), strict=True)],
        outside=[slice(a, b) for a, b in zip(firsts.tolist(), stops.tolist(), strict=True)],
        whole=whole,
        follows=follows,
        kinds=_kinds(insides, lasts),
        basic=True,
    )


def _kinds(begins: IntArray, ends: IntArray) -> IntArray:
    """Equal numbers for equal pairs."""
    if bool((begins == begins[0]).all()) and bool((ends == ends[0]).all()):
        return np.zeros(len(begins), dtype=np.int64)
    _, numbers = np.unique(begins * (int(ends.max()) + 1) + ends, return_inverse=True)
    return np.asarray(numbers, dtype=np.int64).reshape(-1)


def _divide_array(start: int | IntArray, extent: int, indices: IntArray) -> _Division:
    found = indices // start if isinstance(start, int) else np.searchsorted(start, indices, side="right") - 1
    order = None
    if len(found) > 1 and not bool((found[1:] >= found[:-1]).all()):
        order = np.argsort(found, kind="stable")
        found, indices = found[order], indices[order]
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(found)) + 1))
    bounds = [*firsts.tolist(), len(found)]
    chunks = found[firsts].astype(np.int64)
    begins = chunks * start if isinstance(start, int) else start[chunks]
    local = indices - np.repeat(begins, np.diff(bounds))
    single = np.diff(bounds) == 1
    inside: list[Any] = []
    outside: list[Any] = []
    for a, b in itertools.pairwise(bounds):
        if b - a == 1:  # one element is a slice: these are handled many at a time
            at, to = int(local[a]), a if order is None else int(order[a])
            inside.append(slice(at, at + 1, 1))
            outside.append(slice(to, to + 1))
        else:
            inside.append(local[a:b])
            outside.append(slice(a, b) if order is None else order[a:b])
    basic = bool(single.all())
    follows = np.zeros(len(chunks), dtype=bool)
    kinds = np.arange(len(chunks), dtype=np.int64)
    if basic:
        kinds = _kinds(local, local + 1)
        places = np.arange(len(found)) if order is None else order
        follows[1:] = np.diff(places) == 1
    edges = begins + start if isinstance(start, int) else start[chunks + 1]
    whole = single & (np.minimum(edges, extent) - begins == 1)
    return _Division(
        chunks=chunks, inside=inside, outside=outside, whole=whole, follows=follows, kinds=kinds, basic=basic
    )


def points(grid: ChunkGrid, coordinates: IntArray) -> Places:
    """Places of single elements, ``(n, ndim)`` of them; the result is a vector of ``n``."""
    numbers = grid.index_of_elements(coordinates)
    order = np.argsort(numbers, kind="stable")
    numbers, coordinates = numbers[order], coordinates[order]
    firsts = np.concatenate(([0], np.flatnonzero(np.diff(numbers)) + 1))
    bounds = [*firsts.tolist(), len(numbers)]
    chunks = numbers[firsts]
    local = coordinates - np.repeat(origins(grid, chunks), np.diff(bounds), axis=0)
    columns = [np.ascontiguousarray(local[:, axis]) for axis in range(grid.ndim)]
    pairs = list(itertools.pairwise(bounds))
    return Places(
        chunks=chunks,
        inside=[tuple(column[a:b] for column in columns) for a, b in pairs],
        outside=[order[a:b] for a, b in pairs],
        partial=np.ones(len(chunks), dtype=bool),
    )


def origins(grid: ChunkGrid, chunks: IntArray) -> IntArray:
    """First elements of chunks, ``(n, ndim)``."""
    found = grid.coordinates(chunks)
    for axis, start in enumerate(grid.starts):
        found[:, axis] = found[:, axis] * start if isinstance(start, int) else start[found[:, axis]]
    return found


def progression(indices: IntArray) -> Axis:
    """Indices as a range where they are one that goes forward."""
    if len(indices) == 1:
        return Strided(int(indices[0]), 1, 1)
    if len(indices) > 1:
        step = int(indices[1] - indices[0])
        if step > 0 and bool((np.diff(indices) == step).all()):
            return Strided(int(indices[0]), step, len(indices))
    return indices


def check(grid: ChunkGrid, axes: Sequence[Axis]) -> None:
    """Raise unless all elements are in the array.

    Raises
    ------
    IndexError
        Naming the dimension.
    UnsupportedError
        If the array has another number of dimensions.
    """
    if len(axes) != grid.ndim:
        raise UnsupportedError(f"a selection of {len(axes)} dimensions of an array of {grid.ndim}")
    for number, (axis, extent) in enumerate(zip(axes, grid.shape, strict=True)):
        if not len(axis):
            continue
        low, high = (axis.start, axis.last) if isinstance(axis, Strided) else (int(axis.min()), int(axis.max()))
        if low < 0 or high >= extent:
            raise IndexError(f"dimension {number} has {extent} elements; {low if low < 0 else high} is selected")
