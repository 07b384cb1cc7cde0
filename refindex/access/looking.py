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
    seen = _look_at_each([(place, None) for place in places], storage_options)
    return {url: found for (url, _), found in seen.items()}


def look_again(sources: Sequence[Source], storage_options: StorageOptions) -> list[Source | RefindexError]:
    """What these files are now, at the versions that are recorded, or why that cannot be seen; each once."""
    places = [(source.url, source.version) for source in sources]
    seen = _look_at_each(list(dict.fromkeys(places)), storage_options)
    return [seen[place] for place in places]


def _look_at_each(
    places: Sequence[tuple[str, str | None]], storage_options: StorageOptions
) -> dict[tuple[str, str | None], Source | RefindexError]:
    pool = ThreadPoolExecutor(max_workers=max(1, min(AT_ONCE, len(places))))
    try:
        found = pool.map(lambda place: look_at(place[0], storage_options, version=place[1]), places)
        return dict(zip(places, found, strict=True))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def look_at(
    url: str, storage_options: StorageOptions, *, by_ranges: bool = False, version: str | None = None
) -> Source | RefindexError:
    """What is at a URL now, or a version of it, or why it cannot be seen, or (``by_ranges``) be read in parts."""
    where = urls.display(url)
    try:
        if urls.is_local(url):
            with reading(url, "looking at it"):
                status = urls.local_path(url).stat()
            if urls.local_path(url).is_dir():
                return SourceError(f"{where}: a folder; name the file in it, or the folder of both")
            return Source(url=url, size=status.st_size, mtime=status.st_mtime_ns // 1000)
        with contextlib.closing(RemoteBlocks.open(url, storage_options, first=1, whole=0, version=version)) as blocks:
            if by_ranges and blocks.held > 1:
                return SourceError(
                    f"{where}: the server knows no ranges: it was asked for one byte, and sent all {blocks.size}. Each "
                    "chunk would cost the whole file; put it on a server that does"
                )
            return blocks.source
    except RefindexError as error:
        return error
