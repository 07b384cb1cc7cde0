"""Archives whose data has moved: the same sources at other URLs, in one commit that touches no reference."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from refindex.access import urls
from refindex.access.files import StorageOptions, describe_change
from refindex.access.looking import look as _look
from refindex.access.prefixes import Prefix, common_folders, moved
from refindex.errors import ExistsError, NotFoundError, RefindexError, SourceError, StaleSourceError
from refindex.growth import commit_on_newest
from refindex.model.change import Change
from refindex.model.manifest import ReportEntry, Source
from refindex.storage import ManifestReader

_LINES = 50
"""Files that an error names one by one."""

_FOLDERS = 5
"""Folders that an error names to say where the sources are."""


@dataclass(frozen=True, kw_only=True)
class Relocation:
    """What a relocation did.

    Parameters
    ----------
    version:
        The version that it made, or the newest one if nothing was written.
    moved:
        Where files were and where they are now, as people write them.
    renewed:
        Of these, those (at their new places) of which the size was as recorded, and nothing else that identifies them:
        their time or entity tag was recorded anew.
    stayed:
        How many sources lie elsewhere, and stay as they are.
    """

    version: int
    moved: tuple[tuple[str, str], ...] = ()
    renewed: tuple[str, ...] = ()
    stayed: int = 0


def relocate(
    url: str,
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    check: bool = True,
    storage_options: StorageOptions = None,
    dry_run: bool = False,
) -> Relocation:
    """Record the sources below one prefix below another, and commit; see :func:`refindex.api.relocate`."""
    here, there = Prefix.of(old), Prefix.of(new)
    if here == there:
        raise ValueError(
            f"{urls.display(here.join(''))}: the old place and the new one are the same; files that have changed there "
            "are to be appended with replace=True (--replace)"
        )
    looked: dict[str, Source | RefindexError] = {}
    pairs: dict[int, tuple[Source, Source]] = {}
    total = 0

    def content(reader: ManifestReader) -> Change:
        nonlocal pairs, total
        total = len(reader.sources)
        pairs = {
            n: (source, source.at(place))
            for n, source in enumerate(reader.sources)
            if (place := moved(source.url, here, there)) is not None
        }
        if not pairs:
            raise NotFoundError(_nothing_below(reader, here, there))
        sources = [pairs[n][1] if n in pairs else source for n, source in enumerate(reader.sources)]
        _refuse_doubles(reader.sources, sources)
        if check:
            # Files that were looked at before another writer was faster are not looked at again.
            wanted = dict.fromkeys(now.url for _, now in pairs.values() if now.url not in looked)
            looked.update(_look(list(wanted), storage_options))
            pairs = dict(zip(pairs, _found(pairs.values(), looked), strict=True))
            sources = [pairs[n][1] if n in pairs else source for n, source in enumerate(reader.sources)]
        names = {urls.display(was.url): urls.display(now.url) for was, now in pairs.values()}
        return Change(
            nodes=reader.nodes,
            sources=tuple(sources),
            replace_sources=True,
            report=tuple(_moved_entry(entry, names, here, there) for entry in reader.report),
            replace_report=True,
        )

    version = commit_on_newest(
        url,
        content,
        operation="relocate",
        details=lambda: {
            "old": urls.display(here.join("")),
            "new": urls.display(there.join("")),
            "sources": len(pairs),
        },
        storage_options=storage_options,
        dry_run=dry_run,
    )
    return Relocation(
        version=version,
        moved=tuple((urls.display(was.url), urls.display(now.url)) for was, now in pairs.values()),
        renewed=tuple(urls.display(now.url) for was, now in pairs.values() if check and not _recognised(was, now)),
        stayed=total - len(pairs),
    )


def _moved_entry(entry: ReportEntry, names: dict[str, str], old: Prefix, new: Prefix) -> ReportEntry:
    """An entry of the report; besides sources it may name a folder of them, or a file that could not be scanned."""
    name = names.get(entry.source)
    if name is None:
        place = moved(urls.absolute(entry.source), old, new)
        name = entry.source if place is None else urls.display(place)
    return entry if name == entry.source else replace(entry, source=name)


def _refuse_doubles(before: Sequence[Source], after: Sequence[Source]) -> None:
    """Raise if files that had URLs of their own would have the same one."""
    first: dict[str, str] = {}
    for was, now in zip(before, after, strict=True):
        other = first.setdefault(now.url, was.url)
        if other != was.url:
            raise ExistsError(
                f"{urls.display(other)} and {urls.display(was.url)} would both become {urls.display(now.url)}; nothing "
                "was written"
            )


def _found(
    pairs: Iterable[tuple[Source, Source]], looked: dict[str, Source | RefindexError]
) -> list[tuple[Source, Source]]:
    """Sources as recorded and as they are at their new places.

    Raises
    ------
    SourceError, NotFoundError, StaleSourceError
        If any is not there, cannot be seen, or has another size: all of them are named.
    """
    found: list[tuple[Source, Source]] = []
    problems: list[RefindexError] = []
    for was, moved_to in pairs:
        now = looked[moved_to.url]
        if isinstance(now, RefindexError):
            problems.append(now)
        elif now.size != was.size:
            where = urls.display(now.url)
            problems.append(
                StaleSourceError(f"{where}: not the file that was scanned: size {now.size}, not {was.size}")
            )
        else:
            found.append((was, now))
    if problems:
        kinds = {type(problem) for problem in problems}
        kind = kinds.pop() if len(kinds) == 1 else SourceError
        lines = [str(problem) for problem in problems[:_LINES]]
        if len(problems) > _LINES:
            lines.append(f"and {len(problems) - _LINES} more")
        total = len(found) + len(problems)
        raise kind(
            "\n  ".join(
                [
                    f"{len(problems)} of {total} files are not at their new places as they were scanned; nothing was "
                    "written. check=False (--no-check) records the new places without looking:",
                    *lines,
                ]
            )
        )
    return found


def _recognised(recorded: Source, found: Source) -> bool:
    """Whether more than its size says that a file is the one that was scanned."""
    told = bool(recorded.etag and found.etag) or (recorded.mtime is not None and found.mtime is not None)
    return told and describe_change(recorded, found) is None


def _nothing_below(reader: ManifestReader, old: Prefix, new: Prefix) -> str:
    """What to say if no source is where it is said to have been."""
    here = f"{urls.display(old.join(''))}: no source of {urls.display(reader.url)} is there"
    if not reader.sources:
        return f"{here}; it has none at all"
    already = sum(new.rest(source.url) is not None for source in reader.sources)
    if already == len(reader.sources):
        return f"{here}; all of them are below {urls.display(new.join(''))} already"
    folders, more = common_folders({urls.parent(source.url) for source in reader.sources}, _FOLDERS)
    return f"{here}; they are below {', '.join(map(urls.display, folders))}{' and elsewhere' if more else ''}"
