"""Where the sources of a published archive are for those who read it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from refindex.access import urls
from refindex.access.prefixes import Prefix, moved
from refindex.errors import ExistsError, NotFoundError
from refindex.model.manifest import ReportEntry, Source

_THIS_MACHINE = ("file://", "memory://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Files below one prefix are public below another."""

    old: Prefix
    new: Prefix

    def of(self, url: str) -> str | None:
        """The public URL of a file, None if it is not below the old prefix."""
        return moved(url, self.old, self.new)


def moves(sources: Mapping[str | os.PathLike[str], str | os.PathLike[str]]) -> list[Move]:
    """What was said of where files are public; the longest prefixes first, as they say most."""
    found = [Move(old=Prefix.of(old), new=Prefix.of(new)) for old, new in sources.items()]
    return sorted(found, key=lambda move: len(move.old.join("")), reverse=True)


def public_url(url: str, said: Sequence[Move]) -> str:
    """Where a file is public: as the longest prefix says that it is below, else where it is."""
    return next((place for move in said if (place := move.of(url)) is not None), url)


def public_sources(sources: Sequence[Source], said: Sequence[Move]) -> list[Source]:
    """The sources at their public places.

    Raises
    ------
    NotFoundError
        If a prefix has none of them.
    ExistsError
        If files that had URLs of their own would have the same one.
    """
    for move in said:
        if all(move.old.rest(source.url) is None for source in sources):
            raise NotFoundError(f"{urls.display(move.old.join(''))}: no source of the archive is there")
    found = [source.at(public_url(source.url, said)) for source in sources]
    first: dict[str, str] = {}
    for was, now in zip(sources, found, strict=True):
        if (other := first.setdefault(now.url, was.url)) != was.url:
            raise ExistsError(
                f"{urls.display(other)} and {urls.display(was.url)} would both become {urls.display(now.url)}; nothing "
                "was written"
            )
    return found


def public_report(report: Iterable[ReportEntry], said: Sequence[Move]) -> list[ReportEntry]:
    """The report with the files at their public places."""
    known: dict[str, str] = {}

    def place(name: str) -> str:
        if name not in known:
            url = urls.absolute(name)
            now = public_url(url, said)
            known[name] = name if now == url else urls.display(now)
        return known[name]

    return [entry if not said else replace(entry, source=place(entry.source)) for entry in report]


def unreachable(sources: Iterable[Source], base: str) -> list[str]:
    """The sources that only this machine can read: local files that are not below the folder of the archive."""
    return [
        urls.display(source.url)
        for source in sources
        if source.url.rpartition("::")[2].startswith(_THIS_MACHINE) and urls.relative(source.url, base) == source.url
    ]
