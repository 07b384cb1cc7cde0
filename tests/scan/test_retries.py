"""What may pass is tried again at the end; what cannot is not; and a worker that dies takes nothing with it."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cloudpickle
import h5py
import numpy as np
import pytest
from aiohttp import web
from relations import assert_same
from serving import RangeServer

import refindex
from refindex import Progress
from refindex.access import fetching, retry
from refindex.scan import ScanStats, Spool, expand, parallel, scan_many, scan_source


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(30):
        with h5py.File(folder / f"{number:02}.h5", "w") as file:
            file.attrs["number"] = number
            file.create_dataset("a", data=np.full((8, 500), number), chunks=(2, 500))
    return folder


@pytest.fixture
def server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(fetching, "PATIENCE", 1.0)
    with RangeServer(folder) as running:
        yield running


class Failing:
    """A server that has no answer to the first requests for some files, each of which is asked for several times."""

    def __init__(self, names: tuple[str, ...], times: int) -> None:
        self.names, self.times = names, times
        self.asked: Counter[str] = Counter()

    def __call__(self, server: RangeServer, request: web.Request, number: int) -> Any:
        name = request.path.strip("/")
        self.asked[name] += 1
        if name in self.names and self.asked[name] <= self.times:
            return web.Response(status=503)
        return None


def tries_of_a_request(server: RangeServer) -> int:
    """How often one request is sent before it counts as failed."""
    server.trouble = Failing(("00.h5",), 1000)
    with pytest.raises(refindex.SourceError):
        scan_source(f"{server.url}/00.h5")
    return server.trouble.asked["00.h5"]


def test_what_a_server_did_not_answer_is_tried_again_at_the_end(server: RangeServer) -> None:
    once = tries_of_a_request(server)
    urls = [f"{server.url}/{number:02}.h5" for number in range(6)]
    for retries, failing in ((0, 1), (1, 1), (1, 2), (2, 2)):
        server.trouble = trouble = Failing(("01.h5", "04.h5"), once * failing)
        server.forget()
        seen: list[Progress] = []
        stats = ScanStats()
        found = scan_many(urls, workers=1, retries=retries, progress=seen.append, stats=stats)
        assert [p.done for p in seen] == [1, 2, 3, 4, 5, 6]
        if failing > retries:
            assert [entry.source for entry in found.failures] == [urls[1], urls[4]]
            assert seen[-1].failed == 2
            assert "503" in found.failures[0].reason
            continue
        assert not found.failures
        assert list(found.files) == urls
        assert {Path(p.url).name for p in seen[-2:]} == {"01.h5", "04.h5"}
        assert stats.requests == len(server.requests) == sum(trouble.asked.values())
        assert stats.retries == 2 * failing * (once - 1)
        assert stats.files == 6 + 2 * failing
        for url in urls:
            local = scan_source(f"file://{server.folder}/{Path(url).name}")
            assert found.files[url].manifest().arrays["a"].chunks.same_references(local.arrays["a"].chunks)


def test_what_cannot_pass_is_not_tried_again(server: RangeServer) -> None:
    (server.folder / "bad.h5").write_bytes(b"no such thing")
    server.trouble = trouble = Failing((), 0)
    names = ["00.h5", "gone.h5", "bad.h5"]
    found = scan_many([f"{server.url}/{name}" for name in names], workers=1, retries=5)
    assert len(found.failures) == 2
    assert trouble.asked["gone.h5"] == trouble.asked["bad.h5"] == trouble.asked["00.h5"] == 1


def test_strict_waits_for_the_last_try(server: RangeServer) -> None:
    once = tries_of_a_request(server)
    urls = [f"{server.url}/{number:02}.h5" for number in range(3)]
    server.trouble = Failing(("01.h5",), once)
    assert len(scan_many(urls, workers=1, strict=True).files) == 3
    server.trouble = Failing(("01.h5",), once)
    with pytest.raises(refindex.SourceError, match="503"):
        scan_many(urls, workers=1, strict=True, retries=0)


def test_every_way_of_scanning_gives_the_same_to_the_byte(folder: Path, tmp_path: Path) -> None:
    (folder / "05b.h5").write_bytes(b"broken")
    one = refindex.scan(folder, workers=1, join=False)
    for options in ({"workers": 2}, {}, {"workers": 3, "resume": tmp_path / "kept"}):
        assert_same(refindex.scan(folder, join=False, **options), one)
    with ThreadPoolExecutor(3) as pool:
        assert_same(refindex.scan(folder, executor=pool, join=False), one)
        assert_same(refindex.scan(folder, executor=Backwards(), join=False), one)
    joined = refindex.scan(folder, workers=1, stack="number=@number")
    assert_same(refindex.scan(folder, workers=2, stack="number=@number"), joined)


class Backwards(Executor):
    """Finishes what it got last first; remembers how much it had at a time."""

    def __init__(self) -> None:
        self.most = 0
        self.waiting: list[tuple[Future[Any], Any]] = []
        self.lock = threading.Lock()

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        with self.lock:
            self.waiting.append((future, lambda: work(*args, **kwargs)))
            self.most = max(self.most, len(self.waiting))
            if len(self.waiting) == 1:
                threading.Timer(0.05, self.work).start()
        return future

    def work(self) -> None:
        while True:
            with self.lock:
                if not self.waiting:
                    return
                future, work = self.waiting[-1]
            future.set_result(work())
            with self.lock:
                self.waiting.remove((future, work))


def test_an_executor_gets_a_window_of_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "_WINDOW", 4)
    monkeypatch.setattr(parallel, "_WORKERS", 1)
    executor = Backwards()
    assert len(scan_many(expand([folder]), executor=executor).files) == 30
    assert 1 < executor.most <= 4


def test_futures_are_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of a file is in the spool, and nowhere else."""
    monkeypatch.setattr(parallel, "_WINDOW", 4)
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Watched(Executor):
        _max_workers = 1

        def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            future: Future[Any] = Future()
            alive.append(weakref.ref(future))
            future.set_result(work(*args, **kwargs))
            return future

    def tell(progress: Progress) -> None:
        nonlocal most
        most = max(most, sum(ref() is not None for ref in alive))

    urls = expand([folder])
    scan_many(urls, executor=Watched(), progress=tell)
    assert len(alive) == 10  # batches of three
    assert 0 < most <= 5


class Dying(Executor):
    """Loses batches: raises for the first ones as an executor whose worker died, and ``breaks`` for good."""

    def __init__(self, losing: int, *, breaks: bool) -> None:
        self.losing, self.breaks, self.sizes = losing, breaks, list[int]()

    def submit(self, work: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self.breaks and len(self.sizes) > self.losing:
            raise BrokenExecutor("it is broken")
        future: Future[Any] = Future()
        self.sizes.append(len(args[0]))
        if len(self.sizes) <= self.losing:
            future.set_exception(RuntimeError("a worker is gone"))
        else:
            future.set_result(work(*args, **kwargs))
        return future


def test_batches_that_an_executor_loses_are_tried_again_one_by_one(folder: Path) -> None:
    urls = expand([folder])
    executor = Dying(9, breaks=False)
    executor._max_workers = 1  # type: ignore[attr-defined]
    found = scan_many(urls, executor=executor)
    assert not found.failures
    assert list(found.files) == urls
    assert executor.sizes == [3] * 10 + [1] * 27
    with pytest.raises(refindex.SourceError, match="none of 30 sources .* died .RuntimeError: a worker is gone"):
        scan_many(urls, executor=Dying(1000, breaks=False))


def test_an_executor_that_breaks(folder: Path) -> None:
    executor = Dying(0, breaks=True)
    found = scan_many(expand([folder]), executor=executor, retries=3)
    assert len(found.files) == 1
    assert len(found.failures) == 29
    assert all("the worker that scanned it, or one beside it, died" in entry.reason for entry in found.failures)


def test_mistakes_of_the_program_are_no_lost_workers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(url: str, **options: object) -> None:
        raise ZeroDivisionError("a mistake")

    monkeypatch.setattr(parallel, "scan_source", wrong)
    with ThreadPoolExecutor(2) as pool, pytest.raises(ZeroDivisionError):
        scan_many(expand([folder]), executor=pool)


_scan_batch = parallel.scan_batch


def _crashing(batch: Any, job: Any) -> Any:
    if any(url.endswith(("07.h5", "19.h5")) for url in batch):
        os.kill(os.getpid(), 9)
    return _scan_batch(batch, job)


def test_crashes_among_many(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two files that kill whoever scans them: the other 28 are there, and few processes were started for that."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(parallel, "scan_batch", _crashing)
    started: list[int] = []
    pool = parallel.ProcessPoolExecutor

    def counted(max_workers: int, **options: Any) -> Any:
        started.append(max_workers)
        return pool(max_workers=max_workers, **options)

    monkeypatch.setattr(parallel, "ProcessPoolExecutor", counted)
    start = time.monotonic()
    spool = Spool(tmp_path / "kept")
    found = scan_many(expand([folder]), workers=2, spool=spool)
    spool.close()
    assert [Path(entry.source).name for entry in found.failures] == ["07.h5", "19.h5"]
    assert all("crashed" in entry.reason for entry in found.failures)
    assert len(found.files) == 28
    assert len(started) <= 2 + 2 * 4
    assert time.monotonic() - start < 60


def test_stats_of_local_files(folder: Path) -> None:
    for options in ({"workers": 1}, {"workers": 2}):
        stats = ScanStats()
        refindex.scan(folder, join=False, stats=stats, **options)
        assert stats.local_files == 30
        assert 0 < stats.local_seconds < 30
        assert stats.requests == stats.files == 0
    stats = ScanStats()
    refindex.scan(folder / "00.h5", stats=stats)
    assert stats.local_files == 1
