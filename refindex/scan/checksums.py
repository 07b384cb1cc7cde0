"""Checksums of stored chunks, taken when a file is scanned: by them, a byte that changes later is noticed.

CRC-32C (Castagnoli, RFC 3720, appendix B.4), of the bytes as they lie in the file: filters are not undone for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

import numpy as np

from refindex.access import urls
from refindex.access.files import SourcePool, StorageOptions
from refindex.access.ranges import LOCAL, REMOTE, Requests, merge
from refindex.decode.checksum import checksum
from refindex.model.chunks import INLINE, UNCHECKED, IntArray
from refindex.model.manifest import Manifest

_PIECE = 16 << 20
"""Bytes of a chunk that are read at a time, and bytes that are in memory at a time, for each thread."""

_AT_ONCE = 16
"""Requests to remote files that are under way at the same time."""


def with_checksums(manifest: Manifest, storage_options: StorageOptions = None) -> Manifest:
    """A manifest whose references to files have checksums. All bytes that it refers to are read.

    References beyond the end of their file, which cannot be read, get none.

    Raises
    ------
    SourceError
        If something cannot be read, or a file is no longer what was scanned.
    """
    tables = [array.chunks for array in manifest.arrays.values()]
    if not tables:
        return manifest
    source = np.concatenate([table.source for table in tables]).astype(np.int64)
    offset = np.concatenate([table.offset for table in tables])
    length = np.concatenate([table.length for table in tables])
    sizes = np.array([*(s.size for s in manifest.sources), 0], dtype=np.int64)
    rows = np.flatnonzero((source != INLINE) & (length <= sizes[source]) & (offset <= sizes[source] - length))
    if not len(rows):
        return manifest
    found = np.full(len(source), UNCHECKED)
    # Chunks may share bytes; each range is read once.
    ranges, inverse = np.unique(np.stack((source[rows], offset[rows], length[rows])), axis=1, return_inverse=True)
    found[rows] = _checksums(manifest, *ranges, storage_options=storage_options)[inverse.reshape(-1)]
    ends = np.cumsum([len(table) for table in tables])[:-1]
    arrays = {
        path: replace(array, chunks=replace(array.chunks, checksum=part if (part >= 0).any() else None))
        for (path, array), part in zip(manifest.arrays.items(), np.split(found, ends), strict=True)
    }
    return replace(manifest, arrays=arrays)


def _checksums(
    manifest: Manifest, source: IntArray, offset: IntArray, length: IntArray, *, storage_options: StorageOptions
) -> IntArray:
    """The checksums of ranges of the sources."""
    here = np.array([*(urls.is_local(s.url) for s in manifest.sources), True])[source]
    found = np.zeros(len(source), dtype=np.int64)
    with closing(SourcePool(manifest.sources, storage_options=storage_options)) as pool:
        for chosen, merging, threads in ((here, LOCAL, 1), (~here, REMOTE, _AT_ONCE)):
            some = np.flatnonzero(chosen)
            requests = merge(source[some], offset[some], length[some], merging)
            if not len(requests):
                continue

            def take(number: int, requests: Requests = requests, some: IntArray = some) -> None:
                members = some[requests.order[int(requests.first[number]) : int(requests.first[number + 1])]]
                start, stop = int(requests.start[number]), int(requests.stop[number])
                if len(members) == 1:
                    found[members[0]] = _of_pieces(pool, int(requests.source[number]), start, stop)
                    return
                data = memoryview(pool.read(int(requests.source[number]), start, stop - start))
                begins = (offset[members] - start).tolist()
                found[members] = [
                    checksum(data[at : at + n]) for at, n in zip(begins, length[members].tolist(), strict=True)
                ]

            if threads == 1:
                for number in range(len(requests)):
                    take(number)
            else:
                with ThreadPoolExecutor(threads) as executor:
                    for _ in executor.map(take, range(len(requests))):
                        pass
    return found


def _of_pieces(pool: SourcePool, source: int, start: int, stop: int) -> int:
    """The checksum of a range of any length."""
    value = 0
    for at, end in _pieces(start, stop):
        value = checksum(pool.read(source, at, end - at), value)
    return value


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for at in range(start, stop, _PIECE):
        yield at, min(at + _PIECE, stop)
