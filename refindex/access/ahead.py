"""Many remote files, opened before they are needed: while one is scanned, the requests for the next are under way.

h5py has one lock, and libhdf5 waits for its bytes under it: threads that scan do not overlap. What overlaps is what
comes before: the first request of every file, and all of a small one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait

from refindex.access.blocks import WHOLE, RemoteBlocks, submit
from refindex.access.files import StorageOptions
from refindex.access.transport import RemoteStats
from refindex.errors import RefindexError

FILES = 16
"""Files that are being opened, or open and not yet taken."""

HELD = 128 << 20
"""Bytes that these may hold in memory; one that is being opened is counted as :data:`~refindex.access.blocks.WHOLE`."""


def opened_ahead(
    sources: Sequence[str], storage_options: StorageOptions = None, *, stats: RemoteStats | None = None
) -> Iterator[tuple[str, RemoteBlocks | RefindexError]]:
    """Each of the remote files, open, or why it cannot be opened; in the order in which they are ready."""
    left = deque(sources)
    coming: dict[Future[None], RemoteBlocks] = {}
    ready: deque[tuple[str, RemoteBlocks | RefindexError]] = deque()
    try:
        while left or coming or ready:
            while left and _has_room(len(coming), ready):
                blocks = RemoteBlocks(left.popleft(), storage_options, stats=stats)
                coming[submit(blocks.begin())] = blocks
            # What is ready is told only now and then: one look at a time.
            done = wait(coming, timeout=0 if ready else None, return_when=FIRST_COMPLETED).done if coming else ()
            for future in done:
                blocks = coming.pop(future)
                error = future.exception()
                if error is not None and not isinstance(error, RefindexError):
                    raise error
                ready.append((blocks.url, blocks if error is None else error))
            if ready:
                yield ready.popleft()
    finally:
        for future, blocks in coming.items():
            future.cancel()
            blocks.close()
        for _, found in ready:
            if isinstance(found, RemoteBlocks):
                found.close()


def _has_room(coming: int, ready: Sequence[tuple[str, RemoteBlocks | RefindexError]]) -> bool:
    held = sum(found.held for _, found in ready if isinstance(found, RemoteBlocks))
    return coming + len(ready) < FILES and (coming + 1) * WHOLE + held <= HELD
