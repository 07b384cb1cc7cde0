"""Scanning files here, in processes, or in an executor; what comes of them is told one by one."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from loky import ProcessPoolExecutor

from refindex.access import urls
from refindex.access.ahead import opened_ahead
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import StorageOptions
from refindex.access.transport import RemoteStats
from refindex.access.trust import Allowed
from refindex.errors import FormatError, RefindexError, SourceError
from refindex.model.manifest import Manifest
from refindex.scan.checksums import with_checksums
from refindex.scan.hdf5 import Known
from refindex.scan.packed import Interner, Packed, pack
from refindex.scan.registry import may_be_folder, scan_source

type Finished = Callable[[str, Packed | RefindexError], None]

BATCH = 16
"""Files that are scanned in one go by another process, at most."""

_WORKERS = 32
"""Workers that an executor is taken to have that does not say how many it has."""

_WINDOW = 256
"""Batches that an executor has at least: as many as it takes to keep it busy, as few as to keep them in memory."""

_COLLECT = 100_000
"""New objects after which garbage is looked for while many files are scanned; Python's own limit is 2,000."""


@dataclass(slots=True, kw_only=True)
class ScanStats(RemoteStats):
    """What a scan has cost: as of remote files, and of local ones.

    Attributes
    ----------
    local_files:
        Local files scanned.
    local_seconds:
        What they took, in all processes together.
    """

    local_files: int = 0
    local_seconds: float = 0.0

    def add_local(self, seconds: float, files: int = 1) -> None:
        with self._lock:
            self.local_files += files
            self.local_seconds += seconds

    def merge(self, other: RemoteStats) -> None:
        """Add what another process has counted."""
        RemoteStats.merge(self, other)
        if isinstance(other, ScanStats):
            self.add_local(other.local_seconds, other.local_files)

    def __getstate__(self) -> Any:
        return RemoteStats.__getstate__(self), self.local_files, self.local_seconds

    def __setstate__(self, state: Any) -> None:
        RemoteStats.__setstate__(self, state[0])
        self.local_files, self.local_seconds = state[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is asked of every file, and where what it costs is counted."""

    variables: Collection[str] | None = None
    storage_options: StorageOptions = field(default=None, repr=False)
    checksum: bool = False
    allowed: Allowed | None = None


@contextlib.contextmanager
def fewer_collections() -> Iterator[None]:
    """Let Python look for cyclic garbage less often.

    Of what a scan makes, most is kept until the end: looking at it again and again takes a tenth of the time.
    """
    first, *others = gc.get_threshold()
    gc.set_threshold(max(first, _COLLECT), *others)
    try:
        yield
    finally:
        gc.set_threshold(first, *others)


def try_scan(
    url: str,
    job: Job,
    stats: RemoteStats | None = None,
    opened: RemoteBlocks | RefindexError | None = None,
    known: Known | None = None,
) -> Manifest | RefindexError:
    """Scan a file, or say why it cannot be."""
    try:
        if isinstance(opened, RefindexError):
            if not may_be_folder(url, opened):
                raise opened
            opened = None
        return scan_alone(url, job, stats, opened, known=known)
    except RefindexError as error:
        # The chained cause may not travel between processes; its text is in the message.
        return type(error)(str(error))


def scan_alone(
    url: str,
    job: Job,
    stats: RemoteStats | None = None,
    opened: RemoteBlocks | None = None,
    known: Known | None = None,
) -> Manifest:
    """Scan one file, and count what it costs.

    Raises
    ------
    RefindexError
        As :func:`~refindex.scan.registry.scan_source`.
    """
    start = time.perf_counter()
    try:
        manifest = scan_source(
            url,
            variables=job.variables,
            storage_options=job.storage_options,
            stats=stats,
            blocks=opened,
            known=known,
            allowed=job.allowed,
        )
        return with_checksums(manifest, job.storage_options) if job.checksum else manifest
    finally:
        if isinstance(stats, ScanStats) and urls.is_local(url):
            stats.add_local(time.perf_counter() - start)


def scan_here(
    sources: Iterable[str], job: Job, stats: RemoteStats, interner: Interner, known: Known | None = None
) -> Generator[tuple[str, Packed | RefindexError]]:
    """Scan in this process, local files first; of remote ones, the next are fetched while one is scanned."""
    remote = []
    known = Known() if known is None else known
    for url in sources:
        if urls.is_local(url):
            yield url, _packed(url, try_scan(url, job, stats, known=known), interner)
        else:
            remote.append(url)
    for url, opened in opened_ahead(remote, job.storage_options, stats=stats):
        yield url, _packed(url, try_scan(url, job, stats, opened, known=known), interner)


def _packed(url: str, result: Manifest | RefindexError, interner: Interner) -> Packed | RefindexError:
    return pack(url, result, interner) if isinstance(result, Manifest) else result


type _Done = tuple[list[tuple[str, Packed | RefindexError]], ScanStats, Exception | None]


def scan_batch(batch: Sequence[str], job: Job) -> _Done:
    """Scan files in another process: what came of each, what it cost, and what went wrong in the program, if any."""
    stats = ScanStats()
    try:
        with fewer_collections():
            return list(scan_here(batch, job, stats, Interner(light=True))), stats, None
    except Exception as error:
        # Whatever the executor raises itself is then about the worker, and no fault of the program.
        return [], stats, error


_LOOK = 1.0
"""Seconds after which a worker looks whether its parent still lives."""


def _begin_worker(parent: int) -> None:
    """Ctrl-C goes to every process of the terminal: only the parent acts on it. Without the parent there is no work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os._exit(1)

    # A parent that is killed cannot tell: its workers would wait for it for ever.
    threading.Thread(target=watch, name="refindex-parent", daemon=True).start()


@contextlib.contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back while workers are started.

    They inherit that, so that one which still imports what it needs does not die of it with a traceback.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _batches(sources: Sequence[str], workers: int, most: int = BATCH) -> deque[Sequence[str]]:
    """Files in batches, small enough that no worker is left with much to do while others have nothing."""
    size = max(1, min(most, len(sources) // (workers * 8)))
    return deque(sources[i : i + size] for i in range(0, len(sources), size))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Lost:
    """A batch of which nothing came back, and what the executor says of that."""

    urls: Sequence[str]
    error: Exception


def _submitted(
    executor: Executor,
    batches: deque[Sequence[str]],
    job: Job,
    finished: Finished,
    stats: RemoteStats,
    *,
    window: int,
    cancel: bool,
) -> list[_Lost]:
    """Have batches scanned; returns those whose worker died, or that it never began because another's did.

    If the executor is no more good then, ``batches`` has those that it did not get.
    """
    pending: dict[Future[_Done], Sequence[str]] = {}
    done: SimpleQueue[Future[_Done]] = SimpleQueue()
    lost: list[_Lost] = []
    broken = False
    try:
        while pending or (batches and not broken):
            while batches and not broken and len(pending) < window:
                try:
                    with interrupts_held():
                        future = executor.submit(scan_batch, batches[0], job)
                except BrokenExecutor as error:
                    broken = True
                    if not pending and not lost:
                        lost.append(_Lost(urls=batches.popleft(), error=error))
                    break
                pending[future] = batches.popleft()
                future.add_done_callback(done.put)
            if not pending:
                break
            future = done.get()
            batch = pending.pop(future)
            try:
                results, cost, wrong = future.result()
            except (Exception, CancelledError) as error:
                lost.append(_Lost(urls=batch, error=error))
                broken = broken or isinstance(error, BrokenExecutor)
                continue
            finally:
                del future
            stats.merge(cost)
            if wrong is not None:
                raise wrong
            for url, result in results:
                finished(url, result)
    except BaseException:
        if cancel:
            for waiting in pending:
                waiting.cancel()
        raise
    return lost


def in_executor(
    executor: Executor,
    sources: Sequence[str],
    job: Job,
    finished: Finished,
    stats: RemoteStats,
    *,
    together: bool = True,
) -> None:
    """Scan in an executor, in batches or (``together=False``) each file by itself."""
    workers = getattr(executor, "_max_workers", None) or _WORKERS
    batches = _batches(sources, workers, BATCH if together else 1)
    window = max(_WINDOW, 4 * workers)
    lost = _submitted(executor, batches, job, finished, stats, window=window, cancel=True)
    why = lost[-1].error if lost else None
    for url in (url for batch in (*(some.urls for some in lost), *batches) for url in batch):
        said = f" ({type(why).__name__}: {why})" if why is not None and str(why) else ""
        finished(url, SourceError(f"{urls.display(url)}: the worker that scanned it, or one beside it, died{said}"))


def in_processes(count: int, sources: Sequence[str], job: Job, finished: Finished, stats: RemoteStats) -> None:
    """Scan in processes of our own.

    A file can take libhdf5, and with it the worker, down. What was under way then is scanned again, file by file; what
    is under way when that happens again, in a process for each, so that the file to blame is named and the others are
    scanned.
    """
    batches = _batches(sources, count)
    suspects: deque[Sequence[str]] = deque()
    while batches:
        for lost in _in_pool(count, batches, job, finished, stats, window=4 * count):
            suspects.extend([url] for url in lost.urls)
    while suspects:
        for lost in _in_pool(count, suspects, job, finished, stats, window=count):
            for url in lost.urls:
                if _in_pool(1, deque([[url]]), job, finished, stats, window=1):
                    where = urls.display(url)
                    finished(url, FormatError(f"{where}: the process that scanned it crashed: the file is damaged"))


def _in_pool(
    count: int, batches: deque[Sequence[str]], job: Job, finished: Finished, stats: RemoteStats, *, window: int
) -> list[_Lost]:
    pool = ProcessPoolExecutor(max_workers=count, initializer=_begin_worker, initargs=(os.getpid(),))
    try:
        # Ending our own pool kills its workers: there is nothing to cancel, and loky stumbles over cancelled work.
        lost = _submitted(pool, batches, job, finished, stats, window=window, cancel=False)
    except BaseException:
        pool.shutdown(wait=True, kill_workers=True)
        raise
    pool.shutdown(wait=True)
    return lost
