"""Many sources: from what people type to a list of files, and scanning them, as far as needed in parallel."""

from __future__ import annotations

import contextlib
import glob
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from refindex.access import urls
from refindex.access.ahead import FILES
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.access.transport import RemoteStats
from refindex.access.trust import Allowed
from refindex.errors import FormatError, NotFoundError, RefindexError, SourceError
from refindex.model.manifest import Manifest, ReportEntry, unite
from refindex.scan import isolation as isolations
from refindex.scan import parallel
from refindex.scan.isolation import Isolation
from refindex.scan.packed import Interner, Packed
from refindex.scan.parallel import Job
from refindex.scan.spool import ScannedFile, Spool
from refindex.scan.zarr import MARKERS, is_store, stores_among

SUFFIXES = (".nc", ".nc4", ".h5", ".hdf5", ".hdf", ".he5", ".h5netcdf", ".cdf", ".netcdf", ".zarr.zip")
"""Names of the files that a folder is searched for, beside Zarr stores, which are folders; a file named outright may be
called anything."""

_PATIENCE = 4.0
"""Seconds of scanning left from which on it pays to start other processes, which takes about one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a scan is.

    Parameters
    ----------
    done:
        Files that are done with, those included that failed, and those that were kept.
    total:
        Files in all.
    failed:
        Files that cannot be scanned.
    references:
        References found.
    seconds:
        Since the scan began.
    url:
        The file that was finished just now.
    kept:
        Files that an interrupted scan had done before.
    """

    done: int
    total: int
    failed: int
    references: int
    seconds: float
    url: str = ""
    kept: int = 0

    @property
    def rate(self) -> float:
        """Files a second."""
        return (self.done - self.kept) / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the other files will take at this rate; None if nothing is known of that yet."""
        return (self.total - self.done) / self.rate if self.rate else None


type ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What came of many files, each by itself.

    Parameters
    ----------
    files:
        By URL, in the order in which the files were given.
    failures:
        Entries for the report: files that could not be scanned.
    """

    files: Mapping[str, ScannedFile]
    failures: tuple[ReportEntry, ...] = ()

    def side_by_side(self) -> Manifest:
        """One manifest, with a group for each file, named after it."""
        names = group_names([*self.files, *(urls.absolute(entry.source) for entry in self.failures)])
        named = zip(names, self.files.values(), strict=False)
        return unite({name: file.manifest() for name, file in named}, self.failures)


def expand(sources: Iterable[str | os.PathLike[str]], storage_options: StorageOptions = None) -> list[str]:
    """Files named by paths, URLs, globs and folders (searched through and through), as absolute URLs.

    Globs and folders are sorted; doubles are dropped.

    Raises
    ------
    NotFoundError
        If a glob or folder has no file; a file named outright is not looked at.
    """
    found: dict[str, None] = {}
    for source in sources:
        found |= dict.fromkeys(_expand_one(urls.absolute(source), storage_options))
    return list(found)


def _expand_one(url: str, options: StorageOptions) -> Iterator[str]:
    path = urls.local_path(url)
    names: list[str]
    if urls.is_local(url):
        if is_store(url):
            names = [str(path)]
        elif path.is_dir():
            names = sorted(_files_below(path))
            if not names:
                raise NotFoundError(f"{path}: no file named {', '.join('*' + s for s in SUFFIXES)} in this folder")
        elif glob.has_magic(str(path)) and not path.exists():
            names = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207 -- absolute patterns
            if not names:
                raise NotFoundError(f"{path}: no file matches")
        else:
            names = [str(path)]
        yield from (urls.absolute(name) for name in names)
        return
    links, at = urls.links_of(url)
    head = links[at]
    if not (glob.has_magic(head.partition("?")[0]) or head.endswith("/")) or (
        head.endswith("/") and is_store(url, options)
    ):
        yield url
        return
    with reading(url, "listing"):
        fs, root = filesystem(url, options)
        names = _sources_among(fs.find(root)) if head.endswith("/") else sorted(fs.glob(root))
    if not names:
        raise NotFoundError(f"{url}: no file matches")
    yield from ("::".join([*links[:at], fs.unstrip_protocol(name), *links[at + 1 :]]) for name in names)


def named(sources: Iterable[str | os.PathLike[str]], allowed: Allowed) -> Allowed:
    """Where files may be that sources refer to, besides what is ``allowed``: in and below the folders that people name,
    of globs those before the first wildcard."""
    folders: dict[str, None] = {}
    for source in sources:
        url = urls.absolute(source)
        links, at = urls.links_of(url)
        local = urls.is_local(url)
        head = links[at] if local else links[at].partition("?")[0]
        parts = head.split("/")
        wild = next((n for n, part in enumerate(parts) if glob.has_magic(part)), None)
        if wild is not None and not (local and os.path.lexists(urls.local_path(url))):
            links[at] = "/".join(parts[:wild])
            folders["::".join(links)] = None
        elif head.endswith("/") or (local and os.path.isdir(urls.local_path(url))):  # noqa: PTH112 -- may be thousands
            folders[url] = None
        else:
            folders |= dict.fromkeys(Allowed().beside(url).prefixes)
    return allowed.adding(folders)


def _files_below(folder: Path) -> Iterator[str]:
    for parent, folders, files in os.walk(folder):
        if not MARKERS.isdisjoint(files):
            folders.clear()
            yield parent
            continue
        folders[:] = sorted(f for f in folders if not f.endswith(".refindex") and not f.startswith("."))
        yield from (os.path.join(parent, f) for f in files if f.lower().endswith(SUFFIXES))  # noqa: PTH118


def _sources_among(names: list[str]) -> list[str]:
    """Of all files below a remote folder, those that are sources, and the folders that are Zarr stores."""
    stores = stores_among(names)
    inside = tuple(f"{store}/" for store in stores)
    return sorted([*stores, *(n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith(inside))])


def group_names(sources: Sequence[str]) -> list[str]:
    """A group for each file: its name without the suffix; with the folders before it, where that is not enough."""
    parts = [_parts(url) for url in sources]
    names = [p[-1] for p in parts]
    for depth in range(2, max((len(p) for p in parts), default=0) + 1):
        counts: dict[str, int] = {}
        for name in names:
            counts[name] = counts.get(name, 0) + 1
        if len(counts) == len(names):
            break
        names = ["_".join(p[-depth:]) if counts[name] > 1 else name for name, p in zip(names, parts, strict=True)]
    taken: set[str] = set()
    for i, name in enumerate(names):
        # Names in Zarr must not be empty, begin with "__", or consist of dots.
        clean = name.strip("/ ") if name.strip(". ") and not name.startswith("__") else f"file_{i}"
        unique, n = clean, 2
        while unique in taken:
            unique, n = f"{clean}_{n}", n + 1
        taken.add(unique)
        names[i] = unique
    return names


def _parts(url: str) -> list[str]:
    """The folders and the name, without its suffix, of a URL's path."""
    links, at = urls.links_of(url)
    path = links[at].partition("://")[2]
    *folders, name = (path if urls.is_local(url) else path.partition("?")[0]).strip("/").split("/")
    stem, dot, suffix = name.rpartition(".")
    return [*folders, stem if dot and stem else suffix or "file"]


def scan_many(
    sources: Sequence[str],
    *,
    variables: Collection[str] | None = None,
    checksum: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    storage_options: StorageOptions = None,
    strict: bool = False,
    progress: ProgressCallback | None = None,
    stats: RemoteStats | None = None,
    spool: Spool | None = None,
    retries: int = 1,
    isolation: Isolation | None = None,
    allowed: Allowed | None = None,
) -> Scanned:
    """Scan files, each by itself.

    Parameters
    ----------
    stats:
        What the scan costs is added to it: remote files, and to :class:`~refindex.scan.parallel.ScanStats` local ones.
    spool:
        Takes what comes of each file; what it has kept of an interrupted scan is not scanned again. It stays open, and
        is safe on disk whichever way this ends.
    retries:
        How often files are tried again, when all others are done, that failed for what may pass: a server that does not
        answer, a worker that died.
    allowed:
        Where files may be that sources refer to; beside each source if None.
    isolation:
        Scan each file in a child process that it may take down, within these limits; not with an ``executor``.

    Raises
    ------
    RefindexError
        With ``strict``, the first failure; without, if all files fail.
    """
    spool = Spool() if spool is None else spool
    stats = RemoteStats() if stats is None else stats
    job = Job(variables=variables, storage_options=storage_options, checksum=checksum, allowed=allowed)
    asked = {"variables": None if variables is None else sorted(set(variables)), "checksum": checksum}
    todo = spool.begin(asked, sources)
    watch = _Watch(spool=spool, sources=sources, kept=len(sources) - len(todo), strict=strict, progress=progress)
    try:
        for round_ in range(retries + 1):
            watch.again = [] if round_ < retries else None
            if isolation is not None:
                count = workers or len(os.sched_getaffinity(0))
                isolations.in_children(count, todo, job, isolation, watch.finished, stats)
            elif executor is not None:
                parallel.in_executor(executor, todo, job, watch.finished, stats, together=not round_)
            elif workers is not None and workers > 1:
                parallel.in_processes(workers, todo, job, watch.finished, stats)
            else:
                _here_first(todo, job, watch.finished, stats, spool.interner, may_leave=workers is None)
            todo = sorted(watch.again or (), key={url: n for n, url in enumerate(sources)}.__getitem__)
            if not todo:
                break
    finally:
        spool.flush()
    return _scanned(sources, spool)


@dataclass(slots=True, kw_only=True)
class _Watch:
    """What is done with what comes of each file."""

    spool: Spool
    sources: Sequence[str]
    kept: int
    strict: bool
    progress: ProgressCallback | None
    again: list[str] | None = None
    """Files to try again; None: it was their last try."""
    start: float = field(default_factory=time.monotonic)
    done: int = 0
    failed: int = 0
    references: int = 0

    def __post_init__(self) -> None:
        self.done = self.kept
        self.references = sum(
            self.spool.files[url].n_references for url in self.sources if self.kept and url in self.spool.files
        )
        if self.kept:
            self._tell("")

    def finished(self, url: str, result: Packed | RefindexError) -> None:
        if isinstance(result, Packed):
            self.spool.put(url, result)
            self.references += self.spool.files[url].n_references
        elif self.again is not None and isinstance(result, SourceError):
            self.again.append(url)
            return
        else:
            self.spool.fail(url, result)
            self.failed += 1
            if self.strict:
                raise result
        self.done += 1
        self._tell(url)

    def _tell(self, url: str) -> None:
        if self.progress is not None:
            self.progress(
                Progress(
                    done=self.done,
                    total=len(self.sources),
                    failed=self.failed,
                    references=self.references,
                    seconds=time.monotonic() - self.start,
                    url=url,
                    kept=self.kept,
                )
            )


def _here_first(
    sources: Sequence[str],
    job: Job,
    finished: parallel.Finished,
    stats: RemoteStats,
    interner: Interner,
    *,
    may_leave: bool,
) -> None:
    """Scan in this process; if that turns out to take long, and it ``may_leave``, the rest in as many as there are
    cores."""
    start = time.monotonic()
    cores = len(os.sched_getaffinity(0))
    seen: set[str] = set()
    here = parallel.scan_here(sources, job, stats, interner)
    with contextlib.closing(here) as scans, parallel.fewer_collections():
        for done, (url, result) in enumerate(scans, 1):
            finished(url, result)
            seen.add(url)
            if done <= FILES and not urls.is_local(url):
                continue  # until then, it is mostly waiting that took the time
            left = (time.monotonic() - start) / done * (len(sources) - done)
            if may_leave and cores > 1 and left > _PATIENCE and len(sources) - done > cores:
                break
    rest = [url for url in sources if url not in seen]
    if rest:
        parallel.in_processes(cores, rest, job, finished, stats)


def _scanned(sources: Sequence[str], spool: Spool) -> Scanned:
    files = {url: spool.files[url] for url in sources if url in spool.files}
    failures = tuple(spool.failure(url) for url in sources if url in spool.failures)
    if failures and not files:
        first = failures[0]
        errors = {type(spool.failures[url]) for url in sources}
        # All for one reason: that a caller would look for.
        kind = errors.pop() if len(errors) == 1 else FormatError
        if len(failures) == 1:
            raise kind(f"{first.source}: {first.reason}")
        raise kind(f"none of {len(failures)} sources could be scanned; the first: {first.source}: {first.reason}")
    return Scanned(files=files, failures=failures)
