"""Whether the sources of an archive can be read where it says that they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from refindex.access import urls
from refindex.access.files import StorageOptions, describe_change
from refindex.access.looking import look_at
from refindex.errors import RefindexError, SourceError, StaleSourceError
from refindex.model.manifest import Source

_AT_ONCE = 32
"""Files that are looked at at the same time."""

_LINES = 50
"""Files that an error names one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Looked:
    """What was seen of sources.

    Parameters
    ----------
    sources:
        As they are to be recorded: those that are elsewhere than they were scanned with what identifies them there.
    renewed:
        Of these, those of which nothing but the size says that they are the files that were scanned.
    problems:
        What is wrong with the others.
    """

    sources: tuple[Source, ...]
    renewed: tuple[str, ...]
    problems: tuple[RefindexError, ...]


def look(
    scanned: Sequence[Source],
    public: Sequence[Source],
    options: Callable[[str], StorageOptions],
    progress: Callable[[int, int], None] | None = None,
) -> Looked:
    """Look at the first byte of each file at its public place: is it there, of the same size, and read by ranges?

    Parameters
    ----------
    scanned, public:
        The same files, where they were scanned and where they are public.
    options:
        Gives the options for fsspec of a URL.
    progress:
        Is called with how many were looked at, and how many there are.
    """
    seen: list[Source | RefindexError] = []
    pool = ThreadPoolExecutor(max_workers=max(1, min(_AT_ONCE, len(public))))
    try:
        for found in pool.map(
            lambda source: look_at(source.url, options(source.url), by_ranges=True, version=source.version), public
        ):
            seen.append(found)
            if progress is not None:
                progress(len(seen), len(public))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    sources: list[Source] = []
    renewed: list[str] = []
    problems: list[RefindexError] = []
    for was, place, now in zip(scanned, public, seen, strict=True):
        sources.append(place)
        if isinstance(now, RefindexError):
            problems.append(now)
            continue
        change = describe_change(was, now)
        same_place = was.url == now.url
        if now.size != was.size or (same_place and change is not None):
            problems.append(StaleSourceError(f"{urls.display(now.url)}: not the file that was scanned: {change}"))
        elif not same_place:
            sources[-1] = now
            told = bool(was.etag and now.etag) or (was.mtime is not None and now.mtime is not None)
            if change is not None or not told:
                renewed.append(urls.display(now.url))
    return Looked(sources=tuple(sources), renewed=tuple(renewed), problems=tuple(problems))


def refusal(problems: Sequence[RefindexError], total: int) -> RefindexError:
    """One error for all problems, of their kind if they have one."""
    kinds = {type(problem) for problem in problems}
    kind = kinds.pop() if len(kinds) == 1 else SourceError
    lines = [str(problem) for problem in problems[:_LINES]]
    if len(problems) > _LINES:
        lines.append(f"and {len(problems) - _LINES} more")
    return kind(
        "\n  ".join(
            [
                f"{len(problems)} of {total} sources cannot be read at their public places as they were scanned; "
                "nothing was written. sources={OLD: NEW} (--sources OLD=NEW) says where they are, check=False "
                "(--no-check) publishes without looking:",
                *lines,
            ]
        )
    )
