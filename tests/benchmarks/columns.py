"""References as columns, of which all storages of the same table are made. Imports numpy and nothing else."""

from __future__ import annotations

import zlib

import numpy as np

type IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]

SOURCES = 64
"""Files that the references point into; there are no such files."""

STRIDE = 1000
"""Bytes between two references of a source."""


def columns(references: int) -> dict[str, IntArray]:
    """Chunk references of one variable in many files, as an archive of model output has them."""
    chunk = np.arange(references, dtype=np.int64)
    each = -(-references // SOURCES)
    length = np.random.default_rng(0).integers(STRIDE // 2, STRIDE, size=references)
    return {"chunk": chunk, "source": chunk // each, "offset": 4096 + chunk % each * STRIDE, "length": length}


def digest(offset: IntArray, length: IntArray) -> int:
    """A checksum of references in C order, by which a scan is seen to be right and not only fast."""
    return zlib.crc32(length.astype("<i8").tobytes(), zlib.crc32(offset.astype("<i8").tobytes()))
