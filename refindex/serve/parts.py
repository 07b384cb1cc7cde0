"""Which bytes of a stored chunk a selection needs, where the chunk's elements are stored as they are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

type IntArray = npt.NDArray[np.int64]
type Selection = tuple[Any, ...]
"""A selection as zarr hands it to a codec pipeline: slices, integers, and arrays of integers."""

_MOST_ELEMENTS = 1 << 20
"""Of an irregular selection; beyond it, finding the bytes costs more than reading all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Equal runs of bytes, in each of which the same elements are wanted.

    Parameters
    ----------
    offsets:
        First byte of each run in the chunk, increasing.
    span:
        Bytes of each run.
    outer:
        Shape of the runs; its dimensions are the first ones of the result.
    inner, strides:
        Shape of the wanted elements of a run, and the bytes between them.
    """

    offsets: IntArray
    span: int
    outer: tuple[int, ...]
    inner: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.outer + self.inner

    def at(self, number: int) -> tuple[int, ...]:
        """Place of a run in the first dimensions of the result."""
        place = []
        for extent in reversed(self.outer):
            number, rest = divmod(number, extent)
            place.append(rest)
        return tuple(reversed(place))

    def is_dense(self, itemsize: int) -> bool:
        """Whether all bytes of a run are wanted, in their order."""
        return self.span == itemsize * math.prod(self.inner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Elements in no particular order.

    Parameters
    ----------
    shape:
        Of the selection.
    order:
        Elements of the flattened selection by their place in the chunk.
    at:
        First byte of each in the chunk, increasing.
    first:
        Where in ``order`` each run of elements that are read together begins; one more entry for the end.
    """

    shape: tuple[int, ...]
    order: npt.NDArray[np.intp]
    at: IntArray
    first: IntArray


def is_basic(selection: Any) -> bool:
    """Whether a selection consists of slices and integers only."""
    return isinstance(selection, slice) or (
        isinstance(selection, tuple) and all(isinstance(part, slice | int | np.integer) for part in selection)
    )


def _byte_strides(shape: Sequence[int], itemsize: int) -> list[int]:
    return [itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape))]


def runs(selection: Selection, shape: tuple[int, ...], itemsize: int, gap: int) -> Runs:
    """The runs of a selection of slices and integers; elements less than ``gap`` bytes apart are in one run."""
    axes: list[tuple[int, int, int, bool]] = []  # first byte, count, bytes between two, whether a dimension is left
    for part, extent, stride in zip(selection, shape, _byte_strides(shape, itemsize), strict=True):
        if isinstance(part, slice):
            elements = range(*part.indices(extent))
            axes.append((elements.start * stride, len(elements), elements.step * stride, True))
        else:
            axes.append((int(part) * stride, 1, stride, False))
    if any(step <= 0 for _, _, step, _ in axes):
        raise IndexError(f"a selection {selection!r} does not go forward")
    span, inside = itemsize, len(axes)
    while inside and (axes[inside - 1][1] == 1 or axes[inside - 1][2] - span <= gap):
        _, count, step, _ = axes[inside - 1]
        span += (count - 1) * step
        inside -= 1
    offsets = np.full((), sum(first for first, _, _, _ in axes), dtype=np.int64)
    for _, count, step, _ in axes[:inside]:
        offsets = offsets[..., np.newaxis] + np.arange(count, dtype=np.int64) * step
    left = [(count, step) for _, count, step, kept in axes[inside:] if kept]
    return Runs(
        offsets=offsets.reshape(-1),
        span=span,
        outer=tuple(count for _, count, _, kept in axes[:inside] if kept),
        inner=tuple(count for count, _ in left),
        strides=tuple(step for _, step in left),
    )


def points(selection: Selection, shape: tuple[int, ...], itemsize: int, gap: int) -> Points | None:
    """The elements of a selection with arrays in it; None where it is of another kind, or of very many elements."""
    strides = _byte_strides(shape, itemsize)
    arrays = [isinstance(part, np.ndarray) for part in selection]
    if any(isinstance(part, np.ndarray) and part.dtype.kind not in "iu" for part in selection):
        return None
    if all(arrays):
        terms = [part.astype(np.int64) * stride for part, stride in zip(selection, strides, strict=True)]
    elif sum(arrays) == 1 and selection[arrays.index(True)].ndim == 1:
        # numpy leaves the dimension of a single array where it is.
        axes = [
            np.arange(*part.indices(extent)) if isinstance(part, slice) else np.atleast_1d(part)
            for part, extent in zip(selection, shape, strict=True)
        ]
        if any(isinstance(part, int | np.integer) for part in selection):
            return None
        terms = [
            (axis.astype(np.int64) * stride).reshape((-1,) + (1,) * (len(axes) - 1 - at))
            for at, (axis, stride) in enumerate(zip(axes, strides, strict=True))
        ]
    else:
        return None
    try:
        result = np.broadcast_shapes(*(term.shape for term in terms))
    except ValueError:
        return None
    if not 0 < math.prod(result) <= _MOST_ELEMENTS or any(int(term.min()) < 0 for term in terms):
        return None
    at = np.broadcast_to(sum(terms, start=np.zeros((), dtype=np.int64)), result).reshape(-1)
    order = np.argsort(at, kind="stable")
    at = at[order]
    cuts = np.flatnonzero(np.diff(at) > gap + itemsize) + 1
    return Points(shape=result, order=order, at=at, first=np.concatenate(([0], cuts, [len(at)])).astype(np.int64))


def gather(buffer: memoryview, offsets: IntArray, element: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Elements at byte offsets of a buffer, which the caller has checked."""
    size = element.itemsize
    overlapping = np.ndarray((buffer.nbytes - size + 1,), dtype=f"V{size}", buffer=buffer, strides=(1,))
    return overlapping[offsets].view(element)


def strided(
    buffer: memoryview,
    begins: IntArray,
    span: int,
    element: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> np.ndarray[Any, Any]:
    """The elements of equal runs of bytes that begin anywhere in a buffer, in a first dimension."""
    if bool((np.diff(begins) == span).all()):
        return np.ndarray((len(begins), *shape), element, buffer, int(begins[0]), (span, *strides))
    joined = gather(buffer, begins, np.dtype(f"V{span}"))
    return np.ndarray((len(begins), *shape), element, memoryview(joined).cast("B"), 0, (span, *strides))
