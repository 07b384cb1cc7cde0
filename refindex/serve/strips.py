"""Neighbouring chunks as one block: numpy writes a strip of them as fast as a single one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.serve.parts import is_basic

type Values = np.ndarray[Any, Any]


def distinct(numbers: npt.NDArray[np.int64]) -> list[int]:
    """The different ones of one or more numbers, in increasing order."""
    first = int(numbers[0])
    if bool((numbers == first).all()):
        return [first]
    found: list[int] = np.unique(numbers).tolist()
    return found


def runs_of(joined: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and last-plus-one of runs of things, of which each but the first is ``joined`` to the one before it."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], joined.view(np.int8), [0]))))
    return [(first, last + 1) for first, last in edges.reshape(-1, 2).tolist()]


def put_strip(out: Values, begin: Any, end: Any, values: Values, axis: int) -> bool:
    """Put neighbours along a dimension where they go as one block; whether they do go side by side.

    Parameters
    ----------
    out:
        The result.
    begin, end:
        Where the first and the last of them go.
    values:
        What is wanted of them, in a first dimension.
    axis:
        The dimension along which they are neighbours.
    """
    if not (isinstance(begin, tuple) and isinstance(end, tuple) and is_basic(begin) and is_basic(end)):
        return False
    count, *shape = values.shape
    if len(begin) != len(shape) or not shape:
        return False
    axis %= len(shape)
    lead, along, trail = begin[:axis], begin[axis], begin[axis + 1 :]
    if lead != end[:axis] or trail != end[axis + 1 :] or not isinstance(along, slice):
        return False
    target = out[(*lead, slice(along.start, end[axis].stop), *trail)]
    if target.shape != (*shape[:axis], count * shape[axis], *shape[axis + 1 :]):
        return False
    divided = target.reshape(*shape[:axis], count, *shape[axis:])
    if not np.may_share_memory(divided, target):  # numpy had to copy
        return False
    divided[...] = np.moveaxis(values, 0, axis)
    return True
