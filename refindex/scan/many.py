"""Many sources: from what people type to a list of files, and scanning them in parallel processes."""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import signal
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, as_completed
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from loky import ProcessPoolExecutor

from refindex.access import urls
from refindex.access.ahead import FILES, opened_ahead
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import StorageOptions, reading
from refindex.access.transport import RemoteStats
from refindex.errors import FormatError, NotFoundError, RefindexError
from refindex.model.manifest import Manifest, ReportEntry, Status, unite
from refindex.scan.registry import may_be_folder, scan_source
from refindex.scan.zarr import MARKERS, is_store, stores_among

SUFFIXES = (".nc", ".nc4", ".h5", ".hdf5", ".hdf", ".he5", ".h5netcdf", ".cdf", ".netcdf", ".zarr.zip")
"""Names of the files that a folder is searched for, beside Zarr stores, which are folders; a file named outright may be
called anything."""

_PATIENCE = 4.0
"""Seconds of scanning left from which on it pays to start other processes, which takes about one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a scan is: files done (of them failed), of how many, references found, seconds since the start."""

    done: int
    total: int
    failed: int
    references: int
    seconds: float
    url: str = ""


type ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """What came of many files, each by itself.

    Parameters
    ----------
    manifests:
        By URL, in the order in which the files were given.
    failures:
        Entries for the report: files that could not be scanned.
    """

    manifests: Mapping[str, Manifest]
    failures: tuple[ReportEntry, ...] = ()

    def side_by_side(self) -> Manifest:
        """One manifest, with a group for each file, named after it."""
        names = group_names([*self.manifests, *(urls.absolute(entry.source) for entry in self.failures)])
        return unite(dict(zip(names, self.manifests.values(), strict=False)), self.failures)


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
    head, chained, rest = url.partition("::")
    if not (glob.has_magic(head.partition("?")[0]) or head.endswith("/")) or (
        head.endswith("/") and is_store(url, options)
    ):
        yield url
        return
    with reading(url, "listing"):
        fs, root = fsspec.core.url_to_fs(url, **(options or {}))
        names = _sources_among(fs.find(root)) if head.endswith("/") else sorted(fs.glob(root))
    if not names:
        raise NotFoundError(f"{url}: no file matches")
    yield from (f"{fs.unstrip_protocol(name)}{chained}{rest}" for name in names)


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
    path = url.partition("::")[0].partition("://")[2]
    *folders, name = (path if urls.is_local(url) else path.partition("?")[0]).strip("/").split("/")
    stem, dot, suffix = name.rpartition(".")
    return [*folders, stem if dot and stem else suffix or "file"]


def scan_many(
    sources: Sequence[str],
    *,
    variables: Collection[str] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    storage_options: StorageOptions = None,
    strict: bool = False,
    progress: ProgressCallback | None = None,
    stats: RemoteStats | None = None,
) -> Scanned:
    """Scan files, each by itself. What remote ones cost is added to ``stats``.

    Raises
    ------
    RefindexError
        With ``strict``, the first failure; without, if all files fail.
    """
    start = time.monotonic()
    stats = RemoteStats() if stats is None else stats
    results: dict[str, Manifest | RefindexError] = {}
    failed = references = 0

    def finished(url: str, result: Manifest | RefindexError) -> None:
        nonlocal failed, references
        if isinstance(result, Manifest):
            references += result.n_references
        else:
            failed += 1
            if strict:
                raise result
        results[url] = result
        if progress is not None:
            progress(
                Progress(
                    done=len(results),
                    total=len(sources),
                    failed=failed,
                    references=references,
                    seconds=time.monotonic() - start,
                    url=url,
                )
            )

    if executor is not None:
        lost = _in_executor(executor, sources, finished, variables, storage_options, stats, batch=1, cancel=True)
        for url in lost:
            finished(url, FormatError(f"{urls.display(url)}: the worker that scanned it, or one beside it, died"))
    elif workers is not None and workers > 1:
        _in_processes(workers, sources, finished, variables, storage_options, stats)
    else:
        cores = len(os.sched_getaffinity(0))
        here = _scan_here(sources, variables, storage_options, stats)
        with contextlib.closing(here) as scans, _fewer_collections():
            for done, (url, result) in enumerate(scans, 1):
                finished(url, result)
                if done <= FILES and not urls.is_local(url):
                    continue  # until then, it is mostly waiting that took the time
                left = (time.monotonic() - start) / done * (len(sources) - done)
                if workers is None and cores > 1 and left > _PATIENCE and len(sources) - done > cores:
                    break
        if len(results) < len(sources):
            rest = [url for url in sources if url not in results]
            _in_processes(cores, rest, finished, variables, storage_options, stats)
    return _scanned(sources, results)


_COLLECT = 100_000
"""New objects after which garbage is looked for while many files are scanned; Python's own limit is 2,000."""


@contextlib.contextmanager
def _fewer_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage less often.

    Of what a scan makes, most is kept until the end: looking at it again and again takes a tenth of the time.
    """
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, _COLLECT), *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


def _scanned(sources: Sequence[str], results: dict[str, Manifest | RefindexError]) -> Scanned:
    manifests: dict[str, Manifest] = {}
    failures: list[ReportEntry] = []
    for url in sources:
        result = results[url]
        if isinstance(result, Manifest):
            manifests[url] = result
        else:
            where = urls.display(url)
            reason = str(result).removeprefix(f"{where}: ")
            failures.append(ReportEntry(source=where, path="/", status=Status.FAILED, reason=reason))
    if not manifests:
        first = failures[0]
        errors = {type(result) for result in results.values() if not isinstance(result, Manifest)}
        # All for one reason: that a caller would look for.
        kind = errors.pop() if len(errors) == 1 else FormatError
        if len(failures) == 1:
            raise kind(f"{first.source}: {first.reason}")
        raise kind(f"none of {len(failures)} sources could be scanned; the first: {first.source}: {first.reason}")
    return Scanned(manifests=manifests, failures=tuple(failures))


def _try_scan(
    url: str,
    variables: Collection[str] | None,
    storage_options: StorageOptions,
    stats: RemoteStats | None = None,
    opened: RemoteBlocks | RefindexError | None = None,
) -> Manifest | RefindexError:
    try:
        if isinstance(opened, RefindexError):
            if not may_be_folder(url, opened):
                raise opened
            opened = None
        return scan_source(url, variables=variables, storage_options=storage_options, stats=stats, blocks=opened)
    except RefindexError as error:
        # The chained cause may not travel between processes; its text is in the message.
        return type(error)(str(error))


def _scan_here(
    sources: Sequence[str], variables: Collection[str] | None, storage_options: StorageOptions, stats: RemoteStats
) -> Generator[tuple[str, Manifest | RefindexError]]:
    """Scan in this process, local files first; of remote ones, the next are fetched while one is scanned."""
    remote = []
    for url in sources:
        if urls.is_local(url):
            yield url, _try_scan(url, variables, storage_options, stats)
        else:
            remote.append(url)
    for url, opened in opened_ahead(remote, storage_options, stats=stats):
        yield url, _try_scan(url, variables, storage_options, stats, opened)


_COST: ContextVar[RemoteStats] = ContextVar("cost")
"""What the batch costs that is being scanned here; it goes back beside the results."""


def _scan_batch(
    batch: Sequence[str], variables: Collection[str] | None, storage_options: StorageOptions
) -> list[tuple[str, Manifest | RefindexError]]:
    with _fewer_collections():
        return list(_scan_here(batch, variables, storage_options, _COST.get()))


def _with_cost[**P, T](work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> tuple[T, RemoteStats]:
    stats = RemoteStats()
    token = _COST.set(stats)
    try:
        return work(*args, **kwargs), stats
    finally:
        _COST.reset(token)


def _ignore_interrupts() -> None:
    """Ctrl-C goes to every process of the terminal: only the parent acts on it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers are started.

    They inherit that, so that one which still imports what it needs does not die of it with a traceback.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _in_executor(
    executor: Executor,
    sources: Sequence[str],
    finished: Callable[[str, Manifest | RefindexError], None],
    variables: Collection[str] | None,
    storage_options: StorageOptions,
    stats: RemoteStats,
    *,
    batch: int,
    cancel: bool,
) -> list[str]:
    """Scan in an executor; returns the files whose worker died, or that it never began because another's did."""
    with _interrupts_held():
        futures: dict[Future[Any], Sequence[str]] = {
            executor.submit(_with_cost, _scan_batch, sources[i : i + batch], variables, storage_options): sources[
                i : i + batch
            ]
            for i in range(0, len(sources), batch)
        }
    lost: list[str] = []
    try:
        for future in as_completed(futures):
            try:
                scans, cost = future.result()
                stats.merge(cost)
                for url, result in scans:
                    finished(url, result)
            except BrokenExecutor:
                lost.extend(futures[future])
    except BaseException:
        if cancel:
            for future in futures:
                future.cancel()
        raise
    return lost


def _in_processes(
    count: int,
    sources: Sequence[str],
    finished: Callable[[str, Manifest | RefindexError], None],
    variables: Collection[str] | None,
    storage_options: StorageOptions,
    stats: RemoteStats,
) -> None:
    batch = max(1, min(16, len(sources) // (count * 8)))
    lost = _with_pool(count, sources, finished, variables, storage_options, stats, batch=batch)
    for url in lost:
        # A file can take libhdf5, and with it the worker, down: each of the lost ones gets a process of its own,
        # so that the one to blame is named and the others are scanned.
        if _with_pool(1, [url], finished, variables, storage_options, stats, batch=1):
            finished(
                url,
                FormatError(f"{urls.display(url)}: the process that scanned it crashed: the file is damaged"),
            )


def _with_pool(
    count: int,
    sources: Sequence[str],
    finished: Callable[[str, Manifest | RefindexError], None],
    variables: Collection[str] | None,
    storage_options: StorageOptions,
    stats: RemoteStats,
    *,
    batch: int,
) -> list[str]:
    pool = ProcessPoolExecutor(max_workers=count, initializer=_ignore_interrupts)
    try:
        # Ending our own pool kills its workers: there is nothing to cancel, and loky stumbles over cancelled work.
        lost = _in_executor(pool, sources, finished, variables, storage_options, stats, batch=batch, cancel=False)
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise
    pool.shutdown(wait=True)
    return lost
