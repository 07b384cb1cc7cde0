"""Chunks allocated early, without filters, one after the other: there is no index to read.

HDF5 File Format Specification 4.0, section VII.B (Appendix C) "The Implicit Index": the chunks of the grid of
the maximum extent lie in C order from the address in the layout message on.
"""

from __future__ import annotations

import math

import numpy as np

from refindex.access.gather import Walk
from refindex.scan.hdf5.chunk_index.columns import Indexed, RawColumns


def walk(target: Indexed) -> Walk[RawColumns]:
    yield from ()
    fail, address = target.space.damaged, target.address
    if target.filtered:
        raise fail(address, "implicit chunk index", expected="no filters", found="a filter pipeline")
    if None in target.max_grid:
        raise fail(address, "implicit chunk index", expected="a bounded extent", found="an unlimited dimension")
    nbytes = target.chunking.nbytes
    steps = [math.prod(count or 1 for count in target.max_grid[dim + 1 :]) for dim in range(target.rank)]
    last = sum((count - 1) * step for count, step in zip(target.grid, steps, strict=True))
    # Before any memory is taken: the grid comes from the file, and every chunk of it must be in the file.
    if address + (last + 1) * nbytes > target.space.file_size:
        raise fail(
            address,
            "implicit chunk index",
            expected=f"{last + 1} chunks of {nbytes} bytes within the file",
            found=f"a file of {target.space.file_size} bytes",
        )
    slots = np.zeros((1,) * target.rank, dtype=np.int64)
    for dim, (count, step) in enumerate(zip(target.grid, steps, strict=True)):
        # The step of a dimension of one chunk counts for nothing and may not fit 64 bits.
        along = np.arange(count, dtype=np.int64) * (step if count > 1 else 0)
        slots = slots + along.reshape(-1, *(1,) * (target.rank - 1 - dim))
    scaled = np.indices(target.grid, dtype=np.uint64).reshape(target.rank, -1).T
    offsets = slots.reshape(-1) * nbytes + (address - target.space.base)
    return RawColumns(scaled=scaled, address=offsets.astype(np.uint64), length=None, filter_mask=None)
