"""Chunk tables of one open HDF5 file."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import h5py
import numpy as np
import numpy.typing as npt

from refindex.access.files import StorageOptions
from refindex.errors import FormatError, UnsupportedError
from refindex.model.encoding import Filter
from refindex.model.manifest import Source
from refindex.scan.hdf5.chunks import StoredChunks, iterate_chunks, one_unlimited_behind_first
from refindex.scan.hdf5.walk import Found


class FileIndex:
    def __init__(self, *, size: int, user_block: int) -> None:
        self.size = size
        self._user_block = user_block

    def chunks(self, found: Found, *, pipeline: tuple[Filter, ...]) -> StoredChunks:
        if one_unlimited_behind_first(found.id):
            raise UnsupportedError("extensible")
        return iterate_chunks(found.id, user_block=self._user_block)

    def check_range(self, offset: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> None:
        if len(offset) and int((offset + length).max()) > self.size:
            raise FormatError(f"data ends at byte {int((offset + length).max())} of a file of {self.size} bytes")


@contextlib.contextmanager
def open_index(file: h5py.File, source: Source, options: StorageOptions) -> Iterator[FileIndex]:
    yield FileIndex(size=source.size, user_block=file.userblock_size)
