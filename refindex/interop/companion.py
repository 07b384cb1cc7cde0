"""Chunks that no reference can say, as one file of chunks that references can point into."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt
import zarr
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from refindex.interop.content import Document
from refindex.model.grid import ChunkGrid
from refindex.model.zarr_v3 import dumps
from refindex.serve.quiet import quiet


class Companion:
    """A file to which chunks are appended. It is not made before the first of them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[bytes] | None = None
        self._at = 0

    def add(self, data: bytes) -> int:
        """Append a chunk, and return its offset."""
        if self._file is None:
            self._file = self.path.open("wb")
        offset, self._at = self._at, self._at + len(data)
        self._file.write(data)
        return offset

    def add_all(self, chunks: Iterable[bytes]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Append chunks, and return their offsets and lengths."""
        placed = [(self.add(data), len(data)) for data in chunks]
        columns = np.array(placed, dtype=np.int64).reshape(-1, 2)
        return columns[:, 0], columns[:, 1]

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Encoder:
    """Values -> chunks as a Zarr v3 document declares them, by zarr-python itself.

    Parameters
    ----------
    document:
        Of an array with a regular grid.
    every:
        Whether chunks that are all fill value are made, too.
    """

    def __init__(self, document: Document, *, every: bool = False) -> None:
        self.grid = ChunkGrid.from_json(tuple(document["shape"]), document["chunk_grid"])
        text = dumps({**document, "attributes": {}}).encode()
        self._objects: dict[str, Buffer] = {"zarr.json": default_buffer_prototype().buffer.from_bytes(text)}
        with quiet():
            self._array = zarr.open_array(MemoryStore(self._objects), mode="r+", config={"write_empty_chunks": every})

    @property
    def fill(self) -> Any:
        """The fill value."""
        return self._array.fill_value

    def encode(self, where: tuple[slice, ...], values: Any) -> dict[int, bytes]:
        """The chunks, by number, of values of a part of the array that consists of whole chunks."""
        with quiet():
            self._array[where if where else ...] = values
        chunks: dict[int, bytes] = {}
        for key in [key for key in self._objects if key != "zarr.json"]:
            number, data = self.grid.parse_key(key), self._objects.pop(key)
            if number is not None:
                chunks[number] = data.to_bytes()
        return dict(sorted(chunks.items()))
