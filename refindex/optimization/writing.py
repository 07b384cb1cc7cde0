"""The values of a variable into shards: one block is read while the one before it is compressed and written."""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.model.grid import ChunkGrid
from refindex.optimization.codecs import Storing
from refindex.optimization.layout import Layout, Region
from refindex.optimization.progress import Rewriting
from refindex.optimization.shards import Folder, Shard

type Values = np.ndarray[Any, Any]

_AHEAD = 64
"""Blocks that are looked through for the next one in which there is something to do."""

_JOB_NBYTES = 4 << 20
"""Values that one thread compresses in one go."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was done of all variables so far."""

    total: int
    report: Callable[[Rewriting], None] | None = None
    done: int = 0
    kept: int = 0
    written: int = 0
    started: float = field(default_factory=time.monotonic)

    def add(self, path: str, nbytes: int, *, kept: bool) -> None:
        """Count values that are in their place."""
        self.done += nbytes
        self.kept += nbytes if kept else 0
        if self.report is not None:
            seconds = time.monotonic() - self.started
            self.report(
                Rewriting(
                    path=path,
                    done=self.done,
                    total=self.total,
                    kept=self.kept,
                    written=self.written,
                    seconds=seconds,
                )
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """Writes the shards of one variable.

    Parameters
    ----------
    path:
        Of the array.
    read:
        Gives the values of a region.
    fill:
        What lies beyond the array in a chunk that overhangs it.
    present:
        For each chunk whether it is to be written.
    sound:
        Shards that are in their place.
    """

    path: str
    layout: Layout
    storing: Storing
    folder: Folder
    read: Callable[[Region], Values]
    fill: Any
    present: npt.NDArray[np.bool_]
    sound: dict[int, int]
    workers: int

    def run(self, tally: Tally) -> None:
        """Write what is not there yet."""
        parts = self._parts()
        reader = ThreadPoolExecutor(1, thread_name_prefix="refindex-read")
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="refindex-write")
        shards = contextlib.ExitStack()
        try:
            waiting: deque[tuple[_Part, Future[Values] | None]] = deque()

            def look_ahead() -> None:
                while len(waiting) < _AHEAD and not any(future for _, future in waiting):
                    part = next(parts, None)
                    if part is None:
                        return
                    waiting.append((part, reader.submit(self.read, part.region) if part.todo else None))

            look_ahead()
            opened: dict[int, Shard] = {}
            while waiting:
                part, future = waiting.popleft()
                values = None if future is None else future.result()
                look_ahead()
                if values is not None:
                    for number in part.todo:
                        if number not in opened:
                            opened[number] = shards.enter_context(self.folder.shard(number))
                    self._encode(part, values, opened, pool)
                nbytes = math.prod(s.stop - s.start for s in part.region) * self.storing.dtype.itemsize
                if part.last:
                    for shard in opened.values():
                        tally.written += self.folder.publish(shard)
                    opened.clear()
                    shards.close()
                tally.add(self.path, nbytes, kept=values is None)
        finally:
            # What is not finished goes; finished shards stay for the next time.
            for executor in (reader, pool):
                executor.shutdown(wait=True, cancel_futures=True)
            shards.close()

    def _parts(self) -> Iterator[_Part]:
        """Blocks, and the shards in each that are not there yet and have chunks in it."""
        layout = self.layout
        for task in layout.tasks():
            for n, region in enumerate(task):
                chunks = layout.grid.index_of_elements(_corners(region, layout.chunk))
                chunks = chunks[self.present[chunks]]
                owners = self._shards_of(chunks)
                todo = ~np.isin(owners, list(self.sound)) if self.sound else np.ones(len(owners), dtype=bool)
                numbers = np.unique(owners[todo]).tolist()
                yield _Part(
                    region=region,
                    chunks=chunks[todo],
                    owners=owners[todo],
                    todo=numbers,
                    last=n == len(task) - 1,
                )

    def _ratio(self) -> npt.NDArray[np.int64]:
        """Chunks in a shard along each dimension."""
        return np.array(self.layout.shard, dtype=np.int64) // np.array(self.layout.chunk, dtype=np.int64)

    def _shards_of(self, chunks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return self.layout.shards.index(self.layout.grid.coordinates(chunks) // self._ratio())

    def _encode(self, part: _Part, values: Values, opened: dict[int, Shard], pool: ThreadPoolExecutor) -> None:
        """Compress the chunks of a block, and write them in their order."""
        ratio = self._ratio()
        inside = self.layout.grid.coordinates(part.chunks) % ratio
        local = ChunkGrid.regular(tuple(ratio.tolist()), (1,) * len(ratio)).index(inside)
        size = max(1, _JOB_NBYTES // (math.prod(self.layout.chunk) * self.storing.dtype.itemsize))
        jobs = [slice(at, at + size) for at in range(0, len(part.chunks), size)]
        pending: deque[tuple[slice, Future[list[bytes]]]] = deque()

        def write() -> None:
            rows, future = pending.popleft()
            for number, at, data in zip(part.owners[rows].tolist(), local[rows].tolist(), future.result(), strict=True):
                opened[number].add(at, data)

        for rows in jobs:
            pending.append((rows, pool.submit(self._compress, part, values, part.chunks[rows])))
            if len(pending) > 2 * self.workers:
                write()
        while pending:
            write()

    def _compress(self, part: _Part, values: Values, chunks: npt.NDArray[np.int64]) -> list[bytes]:
        shape, dtype = self.layout.chunk, self.storing.dtype
        origins = self.layout.grid.coordinates(chunks) * np.array(shape, dtype=np.int64)
        origins -= np.array([s.start for s in part.region], dtype=np.int64)
        out = []
        for origin in origins.tolist():
            found = values[tuple(slice(at, at + n) for at, n in zip(origin, shape, strict=True))]
            if found.shape != shape:
                padded: Values = np.full(shape, self.fill, dtype=dtype)
                padded[tuple(slice(0, n) for n in found.shape)] = found
                found = padded
            out.append(self.storing.codec.encode(np.ascontiguousarray(found, dtype=dtype)))
        return out


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """A block: the chunks in it that are to be written, the shard of each, and whether it is the last of its shards."""

    region: Region
    chunks: npt.NDArray[np.int64]
    owners: npt.NDArray[np.int64]
    todo: list[int]
    last: bool


def _corners(region: Region, step: tuple[int, ...]) -> npt.NDArray[np.int64]:
    """First elements, ``(n, ndim)``, of the chunks in a region, in C order."""
    axes = [np.arange(s.start, s.stop, n, dtype=np.int64) for s, n in zip(region, step, strict=True)]
    return np.stack([m.reshape(-1) for m in np.meshgrid(*axes, indexing="ij")], axis=1)
