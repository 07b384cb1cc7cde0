"""Many files looked at at once: what each is now, or why that cannot be seen."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from refindex.access import urls
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import reading
from refindex.access.options import StorageOptions
from refindex.errors import RefindexError, SourceError
from refindex.model.manifest import Source

AT_ONCE = 32
"""Files that are looked at at the same time."""


def look(places: Sequence[str], storage_options: StorageOptions) -> dict[str, Source | RefindexError]:
    """What is at these URLs now, or why it cannot be seen. Local files are not opened for that."""

    def one(place: str) -> Source | RefindexError:
        try:
            if urls.is_local(place):
                with reading(place, "looking at it"):
                    status = urls.local_path(place).stat()
                if urls.local_path(place).is_dir():
                    return SourceError(f"{urls.display(place)}: a folder; name the file in it, or the folder of both")
                return Source(url=place, size=status.st_size, mtime=status.st_mtime_ns // 1000)
            with contextlib.closing(RemoteBlocks.open(place, storage_options, first=1, whole=0)) as blocks:
                return blocks.source
        except RefindexError as error:
            return error

    pool = ThreadPoolExecutor(max_workers=max(1, min(AT_ONCE, len(places))))
    try:
        return dict(zip(places, pool.map(one, places), strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
