"""Whether every source is there, and what was scanned."""

from __future__ import annotations

from collections.abc import Sequence

from refindex.access import urls
from refindex.access.files import describe_change
from refindex.access.looking import look_again
from refindex.access.options import StorageOptions
from refindex.errors import NotFoundError, RefindexError
from refindex.model.manifest import Source
from refindex.verification.result import Findings, Kind

_WINDOW = 512
"""Sources that are looked at before it is told how far it is."""


def check_sources(sources: Sequence[Source | None], storage_options: StorageOptions, found: Findings) -> dict[int, str]:
    """Look at all sources, many at a time; gives those that are not right, by number."""
    wrong: dict[int, str] = {}
    found.told("sources", 0, len(sources))
    for start in range(0, len(sources), _WINDOW):
        some = [(n, s) for n, s in enumerate(sources[start : start + _WINDOW], start) if s is not None]
        seen = look_again([source for _, source in some], storage_options)
        for (number, source), now in zip(some, seen, strict=True):
            name = urls.display(source.url)
            if isinstance(now, RefindexError):
                moved = "if it has moved, say where to (refindex relocate)"
                remedy = moved if isinstance(now, NotFoundError) else "see that it can be read"
                found.add(Kind.SOURCE, str(now), source=name, remedy=remedy)
                wrong[number] = source.url
            elif (change := describe_change(source, now)) is not None:
                found.add(
                    Kind.SOURCE,
                    f"it is not what was scanned: {change}",
                    source=name,
                    expected=_identity(source),
                    got=_identity(now),
                    remedy="take it as it is now (refindex append --replace), or put back what was there",
                )
                wrong[number] = source.url
        found.tally["sources_checked"] += len(some)
        found.told("sources", min(start + _WINDOW, len(sources)), len(sources))
    return wrong


def _identity(source: Source) -> str:
    told = [f"{source.size} bytes"]
    told += [] if source.mtime is None else [f"mtime {source.mtime}"]
    told += [] if source.etag is None else [f"etag {source.etag}"]
    told += [] if source.version is None else [f"version {source.version}"]
    return ", ".join(told)
