"""Contiguous data, cut into chunks of a sensible size."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from refindex.errors import UnsupportedError

type IntArray = npt.NDArray[np.int64]

CONTIGUOUS_CHUNK = 16 << 20
"""Contiguous data is cut into chunks of about this many bytes."""


MOST_CHUNKS = 1 << 24
"""Chunks into which contiguous data is cut at most, which are 256 TB. A few bytes of a file can claim more."""

_CANDIDATES = 1 << 16
"""Lengths that are tried together."""


@dataclass(frozen=True, kw_only=True)
class ContiguousSplit:
    """Contiguous data as chunks: C-order numbers are ``0 .. count - 1``.

    ``chunk_shape`` is the grid's; chunks whose ``short`` is true end before it does, with ``edge_shape``.

    Raises
    ------
    UnsupportedError
        By the columns, if there are too many chunks.
    """

    chunk_shape: tuple[int, ...]
    edge_shape: tuple[int, ...]
    count: int
    _per_lead: int
    _extent: int
    _step: int
    _row: int
    _offset: int

    @cached_property
    def offset(self) -> IntArray:
        """Where each chunk begins, in bytes."""
        lead = np.arange(self.count // self._per_lead, dtype=np.int64) if self._per_lead else self._position
        return self._offset + (np.repeat(lead * self._extent, self._per_lead) + self._position * self._step) * self._row

    @cached_property
    def length(self) -> IntArray:
        """How many bytes each has."""
        return self._rows * self._row

    @cached_property
    def short(self) -> npt.NDArray[np.bool_]:
        """Which end before the grid's chunk does."""
        return self._rows < self._step

    @cached_property
    def _position(self) -> IntArray:
        if self.count > MOST_CHUNKS:
            raise UnsupportedError(
                f"contiguous data that would be cut into {self.count} chunks; up to {MOST_CHUNKS} are served"
            )
        along = np.arange(self._per_lead, dtype=np.int64)
        return np.tile(along, self.count // self._per_lead) if self._per_lead else along

    @cached_property
    def _rows(self) -> IntArray:
        return np.minimum(self._step, self._extent - self._position * self._step)


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
        step = _divisor(extent, most, max(most // 2, 1)) or most
    per_lead = -(-extent // step)
    edge = extent - (per_lead - 1) * step
    return ContiguousSplit(
        chunk_shape=(*(1,) * axis, step, *shape[axis + 1 :]) if shape else (),
        edge_shape=(*(1,) * axis, edge, *shape[axis + 1 :]) if shape else (),
        count=per_lead * math.prod(shape[:axis]),
        _per_lead=per_lead,
        _extent=extent,
        _step=step,
        _row=row,
        _offset=offset,
    )


def _divisor(extent: int, most: int, least: int) -> int:
    """The largest divisor of an extent from ``least`` to ``most``; 0 if there is none."""
    if extent % most == 0:
        return most
    for start in range(most, least - 1, -_CANDIDATES):
        lengths = np.arange(start, max(least, start - _CANDIDATES + 1) - 1, -1, dtype=np.int64)
        found = np.flatnonzero(extent % lengths == 0)
        if len(found):
            return int(lengths[found[0]])
    return 0
