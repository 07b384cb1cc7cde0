"""Views that slices and integers make, and what is wanted of an array by any view: a selection for each dimension."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr_indexing as zi

from refindex.serve.places import Axis, IntArray, Strided, progression

type Values = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Affine:
    """A view in which the index along each dimension of the array follows at most one dimension of the view.

    Made and composed in a few microseconds: a point of an array is read in not many more.

    Parameters
    ----------
    shape:
        Of the view.
    maps:
        For each dimension of the array ``offset``, ``stride`` and ``axis``: it is indexed by ``offset + stride * i``,
        where ``i`` is the index along that axis of the view, or 0 where that is None.
    """

    shape: tuple[int, ...]
    maps: tuple[tuple[int, int, int | None], ...]

    @classmethod
    def whole(cls, shape: Sequence[int]) -> Affine:
        """All of an array."""
        return cls(tuple(shape), tuple((0, 1, axis) for axis in range(len(shape))))

    def select(self, selection: Any) -> Affine | None:
        """The view of a basic selection, None for whatever is none, or lies outside: others know what to say of it."""
        parts = selection if isinstance(selection, tuple) else (selection,)
        given = sum(part is not None and part is not Ellipsis for part in parts)
        ellipses = sum(part is Ellipsis for part in parts)
        if ellipses > 1 or given > len(self.shape):
            return None
        if not ellipses:
            parts = (*parts, Ellipsis)
        shape: list[int] = []
        chosen: list[tuple[int, int, int | None]] = []
        for part in parts:
            if part is None:
                shape.append(1)
            elif part is Ellipsis:
                for extent in self.shape[len(chosen) : len(chosen) + len(self.shape) - given]:
                    chosen.append((0, 1, len(shape)))
                    shape.append(extent)
            else:
                extent = self.shape[len(chosen)]
                if isinstance(part, slice):
                    try:
                        elements = range(*part.indices(extent))
                    except (TypeError, ValueError):
                        return None
                    chosen.append((elements.start, elements.step, len(shape)))
                    shape.append(len(elements))
                    continue
                if isinstance(part, bool | np.bool_ | np.ndarray):
                    return None
                try:
                    index = operator.index(part)
                except TypeError:
                    return None
                if not -extent <= index < extent:
                    return None
                chosen.append((index % extent, 0, None))
        maps: list[tuple[int, int, int | None]] = []
        for offset, stride, axis in self.maps:
            if axis is None:
                maps.append((offset, stride, None))
            else:
                start, step, to = chosen[axis]
                maps.append((offset + stride * start, stride * step, to))
        return Affine(tuple(shape), tuple(maps))

    @property
    def transform(self) -> zi.IndexTransform:
        """The view in the terms of zarr-indexing."""
        return zi.IndexTransform(
            domain=zi.IndexDomain.from_shape(self.shape),
            output=tuple(
                zi.ConstantMap(offset)
                if axis is None
                else zi.DimensionMap(input_dimension=axis, offset=offset, stride=stride)
                for offset, stride, axis in self.maps
            ),
        )


def follows(output: zi.OutputIndexMap) -> list[int]:
    """The dimensions of a view on which an index along the array depends."""
    if isinstance(output, zi.DimensionMap):
        return [output.input_dimension]
    if isinstance(output, zi.ArrayMap):
        return [axis for axis, n in enumerate(output.index_array.shape) if n > 1]
    return []


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a view wants of its array along each dimension.

    Parameters
    ----------
    shape:
        Of the view.
    axes:
        For each dimension of the array its elements, going forward or in any order.
    along:
        For each of them the dimension of the view along which they lie, None for a single element.
    backward:
        The dimensions of the array whose elements go backward in the view.
    """

    shape: tuple[int, ...]
    axes: tuple[Axis, ...]
    along: tuple[int | None, ...]
    backward: tuple[int, ...] = ()

    @property
    def is_strided(self) -> bool:
        """Whether all that is wanted are ranges."""
        return all(isinstance(axis, Strided) for axis in self.axes)

    def result(self, dtype: np.dtype[Any]) -> tuple[Values, Values]:
        """Memory for the values of the view, and the same memory with the dimensions of the array."""
        shape, along = self.shape, self.along
        present = [axis for axis in along if axis is not None]
        if len(present) == len(shape) and present == sorted(present):
            values: Values = np.empty(shape, dtype)
            target = values
        else:
            stored = np.empty([shape[axis] for axis in sorted(present)], dtype)
            target = stored.transpose(np.argsort(np.argsort(present))) if present else stored
            values = stored.reshape([n if axis in present else 1 for axis, n in enumerate(shape)])
        if None in along or self.backward:
            flip = slice(None, None, -1)
            target = target[
                tuple(
                    np.newaxis if axis is None else flip if number in self.backward else slice(None)
                    for number, axis in enumerate(along)
                )
                if along
                else ...
            ]
        return values, target

    def shown(self, values: Values) -> Values:
        """The values as the view has them: along dimensions that the array does not have, all are the same."""
        return values if values.shape == self.shape else np.broadcast_to(values, self.shape).copy()


def wanted(view: Affine | zi.IndexTransform) -> Wanted | None:
    """What a view wants along each dimension of its array; None for a view of points, as along a diagonal."""
    if isinstance(view, Affine):
        return _wanted_affine(view)
    if view.index_array_structure == "general":
        return None
    used = [axis for output in view.output for axis in follows(output)]
    if len(used) != len(set(used)):
        return None
    shape, origin = tuple(int(n) for n in view.domain.shape), view.domain.inclusive_min
    axes: list[Axis] = []
    along: list[int | None] = []
    backward: list[int] = []
    for number, output in enumerate(view.output):
        if isinstance(output, zi.DimensionMap):
            to = output.input_dimension
            start, stride = output.offset + output.stride * origin[to], output.stride
            axis, flipped = _forward(int(start), int(stride), shape[to])
            axes.append(axis)
            along.append(to)
            if flipped:
                backward.append(number)
        elif isinstance(output, zi.ArrayMap):
            index = output.offset + output.stride * np.asarray(output.index_array, dtype=np.int64).reshape(-1)
            axes.append(progression(index))
            along.append(next(iter(follows(output)), None))
        else:
            axes.append(Strided(int(output.offset), 1, 1))
            along.append(None)
    return Wanted(shape, tuple(axes), tuple(along), tuple(backward))


def _wanted_affine(view: Affine) -> Wanted | None:
    axes: list[Axis] = []
    along: list[int | None] = []
    backward: list[int] = []
    for number, (offset, stride, to) in enumerate(view.maps):
        if to is None:
            axes.append(Strided(offset, 1, 1))
        else:
            axis, flipped = _forward(offset, stride, view.shape[to])
            axes.append(axis)
            if flipped:
                backward.append(number)
        along.append(to)
    return Wanted(view.shape, tuple(axes), tuple(along), tuple(backward))


def _forward(start: int, stride: int, count: int) -> tuple[Axis, bool]:
    """A progression going forward, and whether it went backward."""
    if count <= 1:
        return Strided(start, 1, count), False
    if stride < 0:
        return Strided(start + stride * (count - 1), -stride, count), True
    if stride == 0:
        return np.full(count, start, dtype=np.int64), False
    return Strided(start, stride, count), False


def coordinates(view: zi.IndexTransform) -> IntArray:
    """The elements that a view wants one by one, ``(n, ndim)``, in C order of the view."""
    shape = view.domain.shape
    where = np.indices(shape, dtype=np.intp).reshape(len(shape), -1).T
    found: npt.NDArray[Any] = view.apply_many(where + np.array(view.domain.inclusive_min, dtype=np.intp))
    return np.ascontiguousarray(found, dtype=np.int64)
