"""Chunk tables by libhdf5."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from h5py import h5d, h5s

from refindex.decode.libhdf5 import library_version

type IntArray = npt.NDArray[np.int64]


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


def iterate_chunks(
    dataset: h5d.DatasetID, chunk_shape: tuple[int, ...], *, user_block: int, few: bool = False
) -> StoredChunks:
    """The chunk table by ``H5Dchunk_iter``, straight into columns; ``few`` says that there are no more than hundreds.

    libhdf5 before 2.0 leaves the user block out of chunk addresses; 2.0 adds it.
    """
    ndim = len(chunk_shape)
    base = user_block if library_version() < (2, 0, 0) else 0
    if few:
        # One call of a function in C a chunk; the objects are few.
        found: list[h5d.StoreInfo] = []
        dataset.chunk_iter(found.append)
        columns = np.array([info[1:] for info in found], dtype=np.int64).reshape(-1, 3)
        return StoredChunks(
            scaled=np.array([info[0] for info in found], dtype=np.int64).reshape(-1, ndim) // chunk_shape,
            mask=columns[:, 0],
            offset=columns[:, 1] + base,
            length=columns[:, 2],
        )
    elements, rest = array("q"), array("q")
    put_elements: Callable[..., None] = elements.extend
    put_rest: Callable[..., None] = rest.extend

    def visit(info: h5d.StoreInfo) -> None:
        put_elements(info[0])
        put_rest(info[1:])

    dataset.chunk_iter(visit)
    columns = np.frombuffer(rest, dtype=np.int64).reshape(-1, 3)
    return StoredChunks(
        scaled=np.frombuffer(elements, dtype=np.int64).reshape(-1, ndim) // chunk_shape,
        mask=columns[:, 0],
        offset=columns[:, 1] + base,
        length=columns[:, 2],
    )


def one_unlimited_behind_first(maxima: tuple[int, ...]) -> bool:
    """Whether exactly one dimension is unlimited and it is not the first.

    With an extensible array index, libhdf5 2.0.0 iterates over such a dataset wrongly
    (``H5Dchunk_iter`` and ``H5Dget_chunk_info`` give offsets of other chunks).
    """
    unlimited = [axis for axis, extent in enumerate(maxima) if extent == h5s.UNLIMITED]
    return len(unlimited) == 1 and unlimited[0] != 0
