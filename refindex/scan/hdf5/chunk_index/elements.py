"""The elements of fixed and extensible arrays of chunks, and the grid positions they stand for.

HDF5 File Format Specification 4.0, sections VII.C and VII.D (Appendix C), client IDs 0 "non-filtered dataset
chunks" and 1 "filtered dataset chunks": an address, and with filters the stored size and the filter mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from refindex.access.gather import Block
from refindex.scan.hdf5.chunk_index.columns import Indexed, RawColumns
from refindex.scan.hdf5.fields import Cursor, Signed, unsigned


def element_size(target: Indexed) -> int:
    return target.space.offset_size + (target.size_width + 4 if target.filtered else 0)


def expect_client(cursor: Cursor, target: Indexed) -> None:
    """The client ID must say what the filter pipeline message says."""
    cursor.expect(int(target.filtered), "client ID (1: filtered chunks)")


def page_bits_set(bitmap: Block, count: int) -> Signed:
    """Indices of the pages marked as initialised; the first page is the most significant bit."""
    return np.flatnonzero(np.unpackbits(bitmap, count=count))


def decode_elements(elements: Block, slots: Signed, target: Indexed, *, order: Sequence[int]) -> RawColumns:
    """Rows for the elements (n, element size) of the given slots, without those that are not stored.

    Slots number the grid of the *maximum* extent, with the dimensions in the given ``order``, the last one
    fastest. Slots beyond the current extent are dropped: they are left behind when a dataset shrinks.
    """
    address = unsigned(elements, 0, target.space.offset_size)
    stored = address != target.space.undefined
    if not stored.all():
        elements, slots, address = elements[stored], slots[stored], address[stored]
    scaled = _coordinates(slots, target, order)
    inside = np.ones(len(slots), dtype=np.bool_)
    for dim in range(target.rank):
        # An unlimited or growing dimension is the only one that can leave the extent.
        if target.max_grid[dim] != target.grid[dim]:
            inside &= scaled[:, dim] < target.grid[dim]
    if not inside.all():
        elements, scaled, address = elements[inside], scaled[inside], address[inside]
    if not target.filtered:
        return RawColumns(scaled=scaled.view(np.uint64), address=address, length=None, filter_mask=None)
    start, width = target.space.offset_size, target.size_width
    return RawColumns(
        scaled=scaled.view(np.uint64),
        address=address,
        length=unsigned(elements, start, width),
        filter_mask=unsigned(elements, start + width, 4),
    )


def _coordinates(slots: Signed, target: Indexed, order: Sequence[int]) -> Signed:
    scaled = np.empty((len(slots), target.rank), dtype=np.int64)
    # Division takes most of the time that a fixed array takes, and half of it on 32 bits.
    rest = slots.astype(np.uint32) if len(slots) and int(slots.max()) < 2**32 else slots
    for position, dim in enumerate(order):
        # The first dimension in order has no upper bound; the others have one, or they could not be numbered.
        step = math.prod(target.max_grid[faster] or 1 for faster in order[position + 1 :])
        if step >= 2**63:
            scaled[:, dim] = 0
            continue
        if step == 1:
            scaled[:, dim] = rest
            rest = np.zeros_like(rest)
            continue
        if rest.dtype == np.uint32 and step >= 2**32:
            quotient = np.zeros_like(rest)
        else:
            quotient = rest // rest.dtype.type(step)
            rest = rest - quotient * rest.dtype.type(step)
        scaled[:, dim] = quotient
    return scaled
