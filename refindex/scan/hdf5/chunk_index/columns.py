"""What every chunk index is turned into, and what its reader has to know about the dataset."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refindex.scan.hdf5.fields import AddressSpace, Signed, Unsigned
from refindex.scan.hdf5.layout_message import Chunking

ALL_FILTERS_MASKED = 0xFFFFFFFF
"""Filter mask of a chunk that went through no filter at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkColumns:
    """The stored chunks of one dataset, one row each, in C order of their coordinates.

    ``scaled``: int64 (n, rank), coordinates in the chunk grid (element offset // chunk dimension).
    ``offset``: int64 (n,), absolute file offset, the base address (user block) included.
    ``length``: int64 (n,), stored bytes. ``filter_mask``: uint32 (n,), bit i set: filter i was skipped.
    A chunk that is not listed is not stored: all its elements are the fill value.
    """

    scaled: Signed
    offset: Signed
    length: Signed
    filter_mask: npt.NDArray[np.uint32]

    def __len__(self) -> int:
        return len(self.offset)


@dataclass(frozen=True, slots=True, kw_only=True)
class RawColumns:
    """Rows as an index reader finds them: on-disk (relative) addresses, all defined, in any order.

    All are uint64, as on disk; ``length`` and ``filter_mask`` are None where the index leaves them out
    because every chunk has full size and no filter.
    """

    scaled: Unsigned
    address: Unsigned
    length: Unsigned | None
    filter_mask: Unsigned | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Indexed:
    """One chunked dataset: where its index is and the grid that the index numbers.

    ``address`` is absolute. ``max_grid`` is the chunk grid of the largest extent, None where unlimited.
    """

    space: AddressSpace
    address: int
    layout_version: int
    chunking: Chunking
    shape: tuple[int, ...]
    grid: tuple[int, ...]
    max_grid: tuple[int | None, ...]
    filtered: bool
    indexed_storage_k: int
    verify: bool

    @property
    def rank(self) -> int:
        return len(self.grid)

    @property
    def size_width(self) -> int:
        """Bytes of a stored chunk size in the indexes of layout versions 4 and 5, if filtered.

        Version 4 writes one byte more than the unfiltered size needs, up to 8; version 5 (HDF5 2.0) a
        "size of lengths".
        """
        if self.layout_version >= 5:
            return self.space.length_size
        return min(8, 1 + (self.chunking.nbytes.bit_length() + 7) // 8)


def concatenate(parts: list[RawColumns], rank: int) -> RawColumns:
    """One table from several; column by column, and each part is dropped as soon as it is copied."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        none = np.empty(0, dtype=np.uint64)
        return RawColumns(scaled=none.reshape(0, rank), address=none, length=none, filter_mask=none)
    scaled = [part.scaled for part in parts]
    address = [part.address for part in parts]
    length = [part.length for part in parts if part.length is not None]
    mask = [part.filter_mask for part in parts if part.filter_mask is not None]
    parts.clear()
    return RawColumns(
        scaled=_joined(scaled),
        address=_joined(address),
        length=_joined(length) if length else None,
        filter_mask=_joined(mask) if mask else None,
    )


def _joined[T: np.generic](column: list[npt.NDArray[T]]) -> npt.NDArray[T]:
    whole = np.concatenate(column)
    column.clear()
    return whole
