"""Where the bytes of a dataset lie: chunk tables, contiguous data cut into chunks."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from h5py import h5d, h5p, h5s

from refindex.decode.libhdf5 import library_version

type IntArray = npt.NDArray[np.int64]

CONTIGUOUS_CHUNK = 16 << 20
"""Contiguous data is cut into chunks of about this many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredChunks:
    """Columns of the chunks that a dataset has allocated.

    ``scaled`` is the place of each chunk in the chunk grid, shape ``(n, ndim)``; ``offset`` is absolute in the
    file; ``mask`` has a bit set for each filter that was skipped.
    """

    scaled: IntArray
    offset: IntArray
    length: IntArray
    mask: IntArray


def iterate_chunks(dataset: h5d.DatasetID, chunk_shape: tuple[int, ...], *, user_block: int) -> StoredChunks:
    """The chunk table by ``H5Dchunk_iter``, straight into columns.

    libhdf5 before 2.0 leaves the user block out of chunk addresses; 2.0 adds it.
    """
    ndim = dataset.rank
    elements, rest = array("q"), array("q")
    put_elements: Callable[..., None] = elements.extend
    put_rest: Callable[..., None] = rest.extend

    def visit(info: h5d.StoreInfo) -> None:
        put_elements(info[0])
        put_rest(info[1:])

    dataset.chunk_iter(visit)
    columns = np.frombuffer(rest, dtype=np.int64).reshape(-1, 3)
    base = user_block if library_version() < (2, 0, 0) else 0
    return StoredChunks(
        scaled=np.frombuffer(elements, dtype=np.int64).reshape(-1, ndim) // chunk_shape,
        mask=columns[:, 0],
        offset=columns[:, 1] + base,
        length=columns[:, 2],
    )


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


def one_unlimited_behind_first(maxima: tuple[int, ...]) -> bool:
    """Whether exactly one dimension is unlimited and it is not the first.

    With an extensible array index, libhdf5 2.0.0 iterates over such a dataset wrongly
    (``H5Dchunk_iter`` and ``H5Dget_chunk_info`` give offsets of other chunks).
    """
    unlimited = [axis for axis, extent in enumerate(maxima) if extent == h5s.UNLIMITED]
    return len(unlimited) == 1 and unlimited[0] != 0


def fill_time_is_never(creation: h5p.PropDCID) -> bool:
    """Whether libhdf5 never writes fill values into what it allocates (netCDF's no-fill mode)."""
    return bool(creation.get_fill_time() == h5d.FILL_TIME_NEVER)
