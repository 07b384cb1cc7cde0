"""Archives that grow: files that come, are replaced, and go, each in one commit."""

from __future__ import annotations

import fnmatch
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

from refindex import storage
from refindex.access import urls
from refindex.access.files import StorageOptions, describe_change, open_reader, reading
from refindex.access.remembered import remembered
from refindex.access.trust import Allowed
from refindex.errors import ConflictError, NotFoundError, StaleSourceError, UnsupportedError
from refindex.join import JoinOptions, Member, join, without
from refindex.join.options import OnDifference, Overlap
from refindex.model import html
from refindex.model.change import Change, Content
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Manifest, ReportEntry, ScanReport, Source
from refindex.scan import Scanned, ScannedFile
from refindex.scan.many import group_names
from refindex.storage import ManifestReader, MemoryReader

_PATIENCE = 300.0
"""Seconds for which a commit is tried again while others commit."""


@dataclass(frozen=True, kw_only=True)
class Growth:
    """What an append or a removal did.

    Parameters
    ----------
    version:
        The version that it made, or the newest one if there was nothing to do.
    added, replaced, removed, skipped:
        Files, as people write them; ``skipped`` were there already, unchanged.
    report:
        What became of the new files, as in a scan.
    """

    version: int
    added: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    report: ScanReport = ScanReport()  # noqa: RUF009 -- frozen

    def _repr_html_(self) -> str:
        files = {name: getattr(self, name) for name in ("added", "replaced", "removed", "skipped")}
        return html.growth(self.version, files, self.report)


@dataclass(frozen=True, kw_only=True)
class How:
    """What an append says of how to join; None, or empty: as the archive was joined.

    ``concat_dim`` is for an archive of one file, of which nothing says yet along what it grows. ``storage_options`` are
    those with which sources are read.
    """

    overlap: Overlap | None = None
    on_difference: OnDifference | None = None
    concat_dim: tuple[str, ...] = ()
    storage_options: StorageOptions = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Sorted:
    """Files that are to be appended, by what the archive knows of them."""

    new: tuple[str, ...]
    changed: tuple[str, ...]
    same: tuple[str, ...]


def sort_files(found: Sequence[str], sources: Sequence[Source], storage_options: StorageOptions) -> Sorted:
    """Which files an archive does not have, which have changed since it was made, and which are the same.

    Raises
    ------
    NotFoundError, SourceError
        If a file that the archive has cannot be looked at.
    """
    known = {source.url: source for source in sources}
    new: list[str] = []
    changed: list[str] = []
    same: list[str] = []
    for url in found:
        recorded = known.get(url)
        if recorded is None:
            new.append(url)
            continue
        with reading(url, "looking at it"):
            now = _identity(url, storage_options)
        (same if describe_change(recorded, now) is None else changed).append(url)
    return Sorted(new=tuple(new), changed=tuple(changed), same=tuple(same))


def _identity(url: str, storage_options: StorageOptions) -> Source:
    """What a file is now; a local one is not opened for that."""
    if not urls.is_local(url):
        return open_reader(url, storage_options).identity()
    status = urls.local_path(url).stat()
    return Source(url=url, size=status.st_size, mtime=status.st_mtime_ns // 1000)


def refuse_changed(changed: Sequence[str]) -> None:
    """Raise for files that the archive has in another state."""
    if changed:
        names = ", ".join(urls.display(url) for url in changed[:5]) + (", ..." if len(changed) > 5 else "")
        what = "1 file is in the archive and has" if len(changed) == 1 else f"{len(changed)} files are in it and have"
        raise StaleSourceError(
            f"{what} changed since: {names}; pass replace=True (--replace) to take them as they are now"
        )


def append(
    url: str,
    scanned: Scanned,
    *,
    replaced: Sequence[str],
    skipped: Sequence[str],
    how: How,
    storage_options: StorageOptions,
    dry_run: bool = False,
    allowed: Allowed | None = None,
) -> Growth:
    """Join scanned files to an archive, and commit.

    Raises
    ------
    JoinError
        If they cannot be joined; nothing is written.
    ConflictError
        If others commit all the time.
    """
    entries: tuple[ReportEntry, ...] = ()
    names = tuple(urls.display(name) for name in scanned.files)

    def content(reader: ManifestReader) -> Content | None:
        nonlocal entries
        _hold(reader, allowed)
        # Another writer may have appended the same file meanwhile.
        have = {source.url for source in reader.sources}
        todo = {name: file for name, file in scanned.files.items() if name not in have or name in replaced}
        if not todo:
            return None
        opened = replace(how, storage_options=storage_options)
        made = _grown(reader, todo, [name for name in replaced if name in todo], opened)
        if isinstance(made, Change):
            entries = (*made.report, *scanned.failures)
            return replace(made, report=entries)
        entries = (*made.report, *scanned.failures)
        return replace(made, report=ScanReport(entries=entries))

    details = {
        "added": [urls.display(name) for name in scanned.files if name not in replaced],
        "replaced": [urls.display(name) for name in replaced],
    }
    version = commit_on_newest(
        url,
        content,
        operation="replace" if replaced else "append",
        details={key: value for key, value in details.items() if value},
        storage_options=storage_options,
        dry_run=dry_run,
    )
    again = {urls.display(name) for name in replaced}
    return Growth(
        version=version,
        added=tuple(name for name in names if name not in again),
        replaced=tuple(name for name in names if name in again),
        skipped=tuple(urls.display(name) for name in skipped),
        report=ScanReport(entries=entries),
    )


def _hold(reader: ManifestReader, allowed: Allowed | None) -> None:
    """Raise if an archive, of which values are to be read, refers to files that it may not read."""
    if allowed is not None:
        # Another process of this user may have appended files meanwhile.
        allowed = allowed.adding(remembered(reader.url))
        allowed.check((source.url for source in reader.sources), urls.display(reader.url), links=True)


def _grown(
    reader: ManifestReader,
    files: Mapping[str, ScannedFile],
    replaced: Sequence[str],
    how: How,
) -> Content:
    """The next version of an archive, with files joined to it."""
    record = reader.nodes[""].joined
    if replaced:
        # The files as they were go first: what is then joined is an archive in memory.
        manifest = storage.load(reader)
        gone = {n for n, source in enumerate(reader.sources) if source.url in replaced}
        if record is None:
            return _anew(manifest, files, gone, how)
        if "options" not in record:
            names = ", ".join(urls.display(name) for name in replaced)
            raise UnsupportedError(
                f"{names}: each file of the archive is a group of its own, and none can be replaced; scan all anew"
            )
        if all(p.source in gone for p in manifest.placements):
            options = _options(record, how)
            dims = tuple(str(dim["key"]) for dim in record["dims"] if dim["key"] not in options.stack)
            return join(_members(files, how.storage_options), replace(options, concat_dim=dims)).to_manifest()
        rest = without(manifest, gone, replaced=True, storage_options=how.storage_options)
        shown = {urls.display(reader.sources[n].url) for n in gone}
        rest = replace(rest, report=ScanReport(entries=tuple(e for e in rest.report if e.source not in shown)))
        change = _grown(MemoryReader(rest, url=reader.url), files, (), how)
        return change.applied_to(rest) if isinstance(change, Change) else change
    if record is None:
        return _anew(storage.load(reader), files, set(), how)
    if "options" not in record:
        return _beside(reader, files)
    opened = how.storage_options
    members = [Member.of_archive(reader, opened), *_members(files, opened)]
    return join(members, _options(record, how)).to_change()


def _options(record: Mapping[str, Any], how: How) -> JoinOptions:
    """How an archive was joined, so that more is joined alike."""
    options = JoinOptions.from_json(record["options"])
    return replace(
        options,
        overlap=how.overlap or options.overlap,
        on_difference=how.on_difference or options.on_difference,
    )


def _members(files: Mapping[str, ScannedFile], storage_options: StorageOptions) -> list[Member]:
    return [Member.of_scanned(file, urls.display(name), storage_options) for name, file in files.items()]


def _anew(
    manifest: Manifest,
    files: Mapping[str, ScannedFile],
    gone: set[int],
    how: How,
) -> Manifest:
    """An archive of one file, with others joined to it: nothing says yet how."""
    members = _members(files, how.storage_options)
    if 0 not in gone:  # the file itself; others are those that its virtual datasets lie in
        members.insert(0, Member.of_file(manifest, storage_options=how.storage_options))
    if len(members) == 1:
        return next(iter(files.values())).manifest()
    options = JoinOptions(
        concat_dim=how.concat_dim, overlap=how.overlap or "error", on_difference=how.on_difference or "error"
    )
    return join(members, options).to_manifest()


def _beside(reader: ManifestReader, files: Mapping[str, ScannedFile]) -> Change:
    """An archive with a group for each file, with more groups."""
    taken = {path for path in reader.nodes if path and "/" not in path}
    nodes = dict(reader.nodes)
    chunks: dict[str, ChunkTable] = {}
    numbers = {source: n for n, source in enumerate(reader.sources)}
    count = len(numbers)
    entries: list[ReportEntry] = []
    for name, file in zip(group_names(list(files)), files.values(), strict=True):
        unique, n = name, 2
        while unique in taken:
            unique, n = f"{name}_{n}", n + 1
        taken.add(unique)
        nested = file.manifest().nest(unique)
        mapping = [numbers.setdefault(source, len(numbers)) for source in nested.sources]
        nodes |= {path: node for path, node in nested.nodes.items() if path}
        chunks |= {path: array.chunks.with_sources(mapping or [0]) for path, array in nested.arrays.items()}
        entries += nested.report
    return Change(
        nodes=dict(sorted(nodes.items(), key=lambda item: item[1].is_array)),
        sources=tuple(numbers)[count:],
        chunks={path: table for path, table in chunks.items() if len(table)},
        report=tuple(entries),
    )


def remove(
    url: str,
    patterns: Sequence[str],
    *,
    storage_options: StorageOptions = None,
    dry_run: bool = False,
    allowed: Allowed | None = None,
) -> Growth:
    """Take files out of an archive, and commit.

    Parameters
    ----------
    patterns:
        Paths or URLs of files, or globs.

    Raises
    ------
    NotFoundError
        If the archive has no such file, or none would be left.
    UnsupportedError
        If the archive does not know which values came from which file.
    """
    names: tuple[str, ...] = ()

    def content(reader: ManifestReader) -> Content | None:
        nonlocal names
        _hold(reader, allowed)
        numbers = _matching(reader, patterns)
        names = tuple(urls.display(reader.sources[n].url) for n in sorted(numbers))
        return without(storage.load(reader), numbers, storage_options=storage_options)

    version = commit_on_newest(
        url,
        content,
        operation="remove",
        details=lambda: {"removed": list(names)},
        storage_options=storage_options,
        dry_run=dry_run,
    )
    return Growth(version=version, removed=names)


def _matching(reader: ManifestReader, patterns: Sequence[str]) -> set[int]:
    """Numbers of the sources that paths, URLs or globs name."""
    found: set[int] = set()
    for pattern in patterns:
        wanted = urls.absolute(pattern)
        matching = {n for n, source in enumerate(reader.sources) if fnmatch.fnmatchcase(source.url, wanted)}
        matching |= {n for n, source in enumerate(reader.sources) if source.url == wanted}
        if not matching:
            raise NotFoundError(f"{pattern}: {urls.display(reader.url)} has no such file")
        found |= matching
    return found


def commit_on_newest(
    url: str,
    content: Callable[[ManifestReader], Content | None],
    *,
    operation: str,
    details: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    storage_options: StorageOptions,
    dry_run: bool = False,
) -> int:
    """Make content from the newest version and commit it; anew from the next one if another writer was faster.

    Returns the version committed, or the newest if there was nothing to commit.
    """
    start = time.monotonic()
    attempt = 0
    while True:
        with closing(storage.open_reader(url, storage_options=storage_options)) as reader:
            made = content(reader)
            if made is None or dry_run:
                return reader.version
            try:
                return storage.commit(
                    url,
                    made,
                    base=reader.version,
                    operation=operation,
                    details=details() if callable(details) else details,
                    storage_options=storage_options,
                )
            except ConflictError:
                if time.monotonic() - start > _PATIENCE:
                    raise
        attempt += 1
        # Writers that wait for different times do not meet again and again.
        time.sleep(random.uniform(0, min(0.02 * 2 ** min(attempt, 5), 0.5)))
