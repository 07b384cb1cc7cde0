"""What a dataset claims to hold, beside what is stored of it: looked at before libhdf5 reads it whole.

libhdf5 makes whatever the bytes say: a chunk of 64 bytes whose 4 MB inflate to 4 GB fills the memory before its size is
found to be wrong, and a dataset of which nothing is stored is as large as its shape.
"""

from __future__ import annotations

import math
from collections.abc import Buffer

from h5py import h5d

from refindex.decode.bounded import room
from refindex.decode.filters import is_built_in, undo
from refindex.decode.libhdf5 import check_head
from refindex.errors import UnsupportedError
from refindex.model.encoding import DEFLATE, FLETCHER32, SHUFFLE
from refindex.scan.hdf5.filters import applied, header_messages, read_pipeline
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.walk import Found

LITTLE = 64 << 20
"""Bytes of memory about which nobody asks."""

_DEFLATE_RATIO = 1032
"""What deflate makes of a byte, at most: 258 bytes of one bit for the length and one for the distance."""

_SPARSE = 4096
"""Bytes that a large dataset may have for each that is stored."""


def check_claims(found: Found, index: FileIndex) -> None:
    """Refuse a dataset for which libhdf5 would need much more memory than is stored of it.

    Raises
    ------
    UnsupportedError
        If it is large, and hardly anything of it is stored.
    DecodeError
        If a chunk becomes larger than it should.
    """
    filtered = found.layout == h5d.CHUNKED and found.creation.get_nfilters() > 0
    nbytes = math.prod(found.shape) * found.id.get_type().get_size()
    if nbytes <= LITTLE and not filtered:
        return
    stored = int(found.id.get_storage_size())
    if nbytes > max(LITTLE, stored * _SPARSE):
        raise UnsupportedError(
            f"it claims {nbytes} bytes, and {stored} are stored: not read, for the memory that it would take"
        )
    if filtered:
        _check_chunks(found, index, stored)


def _check_chunks(found: Found, index: FileIndex, stored: int) -> None:
    pipeline = read_pipeline(found.creation, lambda: header_messages(found, index))
    numbers = [each.id for each in pipeline if each.id not in (SHUFFLE, FLETCHER32)]
    if not numbers or (numbers == [DEFLATE] and stored * _DEFLATE_RATIO <= LITTLE):
        return
    most = room(2 * math.prod(found.chunk) * found.id.get_type().get_size())
    chunks = index.chunks(found, pipeline=pipeline)
    for scaled, mask in zip((chunks.scaled * found.chunk).tolist(), chunks.mask.tolist(), strict=True):
        _, stream = found.id.read_direct_chunk(tuple(scaled))
        data: Buffer = stream
        for each in reversed(applied(pipeline, mask)):
            if not is_built_in(each):
                check_head(bytes(data), each, most)
                break
            data = undo(data, each, most)
