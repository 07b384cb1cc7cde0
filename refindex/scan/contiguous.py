"""Contiguous data, cut into chunks of a sensible size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

type IntArray = npt.NDArray[np.int64]

CONTIGUOUS_CHUNK = 16 << 20
"""Contiguous data is cut into chunks of about this many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContiguousSplit:
    """Contiguous data as chunks: C-order numbers are ``0 .. n - 1``.

    ``chunk_shape`` is the grid's; chunks whose ``short`` is true end before it does, with ``edge_shape``.
    """

    chunk_shape: tuple[int, ...]
    edge_shape: tuple[int, ...]
    offset: IntArray
    length: IntArray
    short: npt.NDArray[np.bool_]


def split_contiguous(
    shape: tuple[int, ...], itemsize: int, offset: int, target: int = CONTIGUOUS_CHUNK
) -> ContiguousSplit:
    """Cut contiguous data along its leading dimensions into chunks of about ``target`` bytes.

    The dimensions behind the one that is cut stay whole, those before it are cut to single elements,
    so that every chunk is one range of bytes. A length that divides the dimension is preferred
    (every chunk is then native); otherwise the last chunk along it is short.
    """
    axis, row = 0, itemsize * math.prod(shape[1:])
    while axis < len(shape) - 1 and row > target:
        axis += 1
        row = itemsize * math.prod(shape[axis + 1 :])
    if not shape:
        extent, step = 1, 1
    else:
        extent = shape[axis]
        most = max(1, min(extent, target // row))
        step = next((k for k in range(most, max(most // 2, 1) - 1, -1) if extent % k == 0), most)
    per_lead = -(-extent // step)
    lead = math.prod(shape[:axis])
    position = np.tile(np.arange(per_lead, dtype=np.int64), lead)
    start = np.repeat(np.arange(lead, dtype=np.int64) * extent, per_lead) + position * step
    rows = np.minimum(step, extent - position * step)
    chunk_shape = (*(1,) * axis, step, *shape[axis + 1 :]) if shape else ()
    edge = extent - (per_lead - 1) * step
    return ContiguousSplit(
        chunk_shape=chunk_shape,
        edge_shape=(*(1,) * axis, edge, *shape[axis + 1 :]) if shape else (),
        offset=offset + start * row,
        length=rows * row,
        short=rows < step,
    )
