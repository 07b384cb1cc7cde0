"""A dataset of exactly one chunk: the layout message points at the chunk itself.

HDF5 File Format Specification 4.0, section IV.A.2.i "Data Layout Message", chunk indexing type 1, and
section VII.A (Appendix C) "The Single Chunk Index".
"""

from __future__ import annotations

import numpy as np

from refindex.access.gather import Walk
from refindex.scan.hdf5.chunk_index.columns import Indexed, RawColumns
from refindex.scan.hdf5.layout_message import SingleChunkParameters


def walk(target: Indexed) -> Walk[RawColumns]:
    yield from ()
    if any(count != 1 for count in target.grid):
        raise target.space.damaged(
            target.address, "single chunk index", expected="a grid of one chunk", found=target.grid
        )
    parameters = target.chunking.parameters
    if isinstance(parameters, SingleChunkParameters) is not target.filtered:
        raise target.space.damaged(
            target.address,
            "single chunk index",
            expected=f"{'a' if target.filtered else 'no'} filtered size in the layout message",
            found=parameters,
        )
    address = np.array([target.address - target.space.base], dtype=np.uint64)
    scaled = np.zeros((1, target.rank), dtype=np.uint64)
    if not isinstance(parameters, SingleChunkParameters):
        return RawColumns(scaled=scaled, address=address, length=None, filter_mask=None)
    return RawColumns(
        scaled=scaled,
        address=address,
        length=np.array([parameters.nbytes], dtype=np.uint64),
        filter_mask=np.array([parameters.filter_mask], dtype=np.uint64),
    )
