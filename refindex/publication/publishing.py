"""Publishing: a compact copy of one version of an archive, with sources that others reach, and what tells of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from refindex import storage
from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.options import lies_below
from refindex.access.remembered import remember
from refindex.archive import Archive
from refindex.errors import ExistsError, RefindexError, SourceError
from refindex.model.manifest import Source
from refindex.publication import beside, checks, places, stac
from refindex.publication.coverage import coverage_of
from refindex.publication.facts import Facts, title_of
from refindex.publication.page import MARK as PAGE_MARK
from refindex.publication.page import page
from refindex.serve.opening import Opening
from refindex.storage import ManifestReader, MemoryReader, disk

type Watch = Callable[[str, int, int], None]
"""Called with what is being done (``looking``, ``writing``), how much of it is done, and how much there is."""

_NAMED = 3
"""Sources that an error names one by one."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was published.

    Parameters
    ----------
    url:
        Where it is, as people write it.
    version:
        The version that was made there; None if nothing was written.
    arrays, references, sources:
        How many it has.
    relative:
        How many sources are recorded relative to it: these can be moved together with it.
    moved:
        How many sources are recorded elsewhere than they were scanned.
    renewed:
        Of these, those of which nothing but the size says that they are the files that were scanned: their time or
        entity tag was recorded anew.
    local:
        Sources that only this machine can read.
    problems:
        Why sources cannot be read at their public places; only with ``dry_run``, else these are an error.
    files:
        What lies beside it: the page and the STAC item.
    """

    url: str
    version: int | None
    arrays: int
    references: int
    sources: int
    relative: int
    moved: int = 0
    renewed: tuple[str, ...] = ()
    local: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    files: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is to be published, and how; see :func:`refindex.publish`."""

    dest: str
    sources: Mapping[str | os.PathLike[str], str | os.PathLike[str]]
    overwrite: bool = False
    check: bool = True
    summary: bool = True
    stac: bool = True
    title: str | None = None
    license: str | None = None
    allow_local: bool = False
    dest_options: StorageOptions = None
    dry_run: bool = False
    watch: Watch | None = None

    @property
    def is_file(self) -> bool:
        return self.dest.endswith(storage.SQLITE_SUFFIXES)

    def files(self, dest: str) -> dict[str, str]:
        """URLs of the small files by what they are, for an archive that is written to ``dest``."""
        if not self.is_file:
            found = {"page": beside.join(dest, "index.html"), "stac": beside.join(dest, "stac.json")}
        else:
            stem, folder = urls.name(dest).rpartition(".")[0], urls.parent(dest)
            found = {"page": beside.join(folder, f"{stem}.html"), "stac": beside.join(folder, f"{stem}.stac.json")}
        return {what: url for what, url in found.items() if (self.summary if what == "page" else self.stac)}


def publish(opening: Opening, wish: Wish) -> Published:
    """Write a copy of a version of an archive for others, as :func:`refindex.publish` says."""
    with closing(opening.reader()) as reader:
        _refuse_what_is_there(opening, wish)
        said = places.moves(wish.sources)
        base = urls.parent(wish.dest)
        public = places.public_sources(reader.sources, said)
        local = places.unreachable(public, base)
        if local and not wish.allow_local:
            raise SourceError(_only_here(local, len(public), base))
        looked = checks.Looked(sources=tuple(public), renewed=(), problems=())
        if wish.check:
            looked = checks.look(
                reader.sources, public, lambda url: _options(url, base, opening, wish), _about(wish.watch, "looking")
            )
        if looked.problems and not wish.dry_run:
            raise checks.refusal(looked.problems, len(public))
        found = Published(
            url=urls.display(wish.dest),
            version=None,
            arrays=sum(node.is_array for node in reader.nodes.values()),
            references=storage.count_references(reader),
            sources=len(public),
            relative=sum(urls.relative(source.url, base) != source.url for source in public),
            moved=sum(was.url != now.url for was, now in zip(reader.sources, public, strict=True)),
            renewed=looked.renewed,
            local=tuple(local),
            problems=tuple(map(str, looked.problems)),
            files=tuple(urls.display(url) for url in wish.files(wish.dest).values()),
        )
        if wish.dry_run:
            return found
        facts = _facts(opening, reader, wish, looked.sources, found.references)
        version = _write(reader, wish, facts, said)
        remember(wish.dest, (source.url for source in looked.sources), new=not version, within=opening.allowed)
        return replace(found, version=version)


def _facts(opening: Opening, reader: ManifestReader, wish: Wish, sources: Sequence[Source], references: int) -> Facts:
    # The very version that is copied, whatever is committed meanwhile.
    if isinstance(reader, MemoryReader):
        opening = replace(opening, manifest=reader.manifest)
    else:
        opening = replace(opening, version=reader.version)
    with Archive(opening) as archive:
        coverage = coverage_of(archive)
    root = reader.nodes[""]
    license_ = root.attributes.get("license") if wish.license is None else wish.license
    return Facts(
        url=wish.dest,
        is_file=wish.is_file,
        version=0,
        time=datetime.now(UTC),
        title=wish.title or title_of(root, wish.dest),
        license=license_ if isinstance(license_, str) else "",
        nodes=reader.nodes,
        sources=sources,
        references=references,
        coverage=coverage,
    )


def _write(reader: ManifestReader, wish: Wish, facts: Facts, said: Sequence[places.Move]) -> int:
    """Write all of it; the version that was made."""
    with _place(wish) as target:
        version = storage.copy(
            reader,
            target,
            sources=facts.sources,
            report=places.public_report(reader.report, said),
            overwrite=wish.overwrite,
            operation="publish",
            details={"of_version": reader.version} if reader.url else {},
            storage_options=wish.dest_options,
            progress=_about(wish.watch, "writing"),
        )
        facts = replace(facts, version=version)
        files = wish.files(target)
        names = {what: urls.name(url) for what, url in files.items()}
        if "stac" in files:
            text = json.dumps(stac.item(facts, page=names.get("page")), indent=2, ensure_ascii=False, allow_nan=False)
            beside.write(files["stac"], f"{text}\n", "application/geo+json", wish.dest_options)
        if "page" in files:
            beside.write(files["page"], page(facts, stac=names.get("stac")), "text/html", wish.dest_options)
    for url in (wish.dest, *wish.files(wish.dest).values()):
        if urls.is_local(url):
            beside.remove_leftovers(urls.local_path(url))
    if not wish.is_file and (version or not urls.is_local(wish.dest)):
        # What is published is published, whatever becomes of the files that others have left.
        with suppress(RefindexError):
            storage.vacuum(wish.dest, storage_options=wish.dest_options)
    return version


@contextmanager
def _place(wish: Wish) -> Iterator[str]:
    """Where to write: a new folder on this machine is made under another name, and is there when it is complete."""
    place = urls.local_path(wish.dest) if urls.is_local(wish.dest) else Path()
    if not urls.is_local(wish.dest) or wish.is_file or place.exists():
        yield wish.dest
        return
    temporary = beside.temporary_for(place)
    try:
        yield f"file://{temporary}"
        try:
            temporary.rename(place)
        except OSError as error:
            if place.exists():
                raise ExistsError(f"{place} was made by another writer meanwhile") from error
            raise SourceError(f"{place}: {error}") from error
        disk.sync(place.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refuse_what_is_there(opening: Opening, wish: Wish) -> None:
    """Raise for what must not be replaced, before anything that takes time is done."""
    if wish.dest == opening.url:
        raise ExistsError(f"{urls.display(wish.dest)} is the archive itself; publish it at another place")
    if storage.is_archive(wish.dest, wish.dest_options) and not wish.overwrite:
        raise ExistsError(
            f"{urls.display(wish.dest)} exists; pass overwrite=True (--overwrite) to publish a new version there"
        )
    marks = {"page": PAGE_MARK, "stac": stac.MARK}
    for what, url in wish.files(wish.dest).items():
        beside.check_ours(url, marks[what], wish.dest_options)


def _options(url: str, base: str, opening: Opening, wish: Wish) -> StorageOptions:
    """The options for a source: what lies below the folder of the archive is reached as that is."""
    return wish.dest_options if lies_below(url, base) else opening.storage_options


def _about(watch: Watch | None, what: str) -> Callable[[int, int], None] | None:
    return None if watch is None else lambda done, total: watch(what, done, total)


def _only_here(local: Sequence[str], total: int, base: str) -> str:
    names = ", ".join(local[:_NAMED]) + (", ..." if len(local) > _NAMED else "")
    return (
        f"{len(local)} of {total} sources are files of this machine that are not below {urls.display(base)}; others "
        f"cannot read them: {names}. Say where they are public with sources={{OLD: NEW}} (--sources OLD=NEW), put them "
        "there, or pass allow_local=True (--allow-local)"
    )


def watching(progress: bool | Callable[[str, int, int], None]) -> Any:
    """A context that gives what to call: a bar, the caller's function, or None."""
    return _bar() if progress is True else _given(progress or None)


@contextmanager
def _given(progress: Watch | None) -> Iterator[Watch | None]:
    yield progress


@contextmanager
def _bar() -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    names = {"looking": "looking at sources", "writing": "writing references"}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def watch(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(names[what], total=total)
            bar.update(tasks[what], completed=done)

        yield watch
