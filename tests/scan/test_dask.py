"""Scanning on a Dask cluster: the same as here, also when a worker is killed in the middle."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import cloudpickle
import h5py
import numpy as np
import pyarrow.parquet as pq
import pytest
from relations import assert_same, relations

import refindex
from refindex.cli import cluster as cluster_module
from refindex.cli.cluster import dask_executor
from refindex.scan import ScanStats, expand, parallel, scan_many

distributed = pytest.importorskip("distributed", reason="the extra `dask` is not installed")

N = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dask")
    for number in range(N):
        with h5py.File(folder / f"{number:02}.h5", "w") as file:
            file.attrs["number"] = number
            time = file.create_dataset("time", data=np.arange(4) + 4 * number)
            time.make_scale("time")
            data = file.create_dataset("a", data=np.full((4, 500), number), chunks=(2, 250))
            data.dims[0].attach_scale(time)
    (folder / "17b.h5").write_bytes(b"broken")
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", silence_logs=50
    ) as running:
        yield running


@pytest.fixture
def executor(cluster: Any) -> Iterator[Executor]:
    with dask_executor(cluster.scheduler_address) as found:
        assert found is not None
        yield found


def test_it_is_the_same_as_here(folder: Path, executor: Executor, tmp_path: Path) -> None:
    stats = ScanStats()
    for options in ({"join": False}, {"concat_dim": "time"}):
        here = refindex.scan(folder, workers=1, **options)
        there = refindex.scan(folder, executor=executor, stats=stats, **options)
        assert_same(there, here)
        assert len(there.report.problems) == 1
        for name, manifest in (("here", here), ("there", there)):
            manifest.save(tmp_path / f"{name}.refindex", overwrite=True)
    assert stats.local_files == 2 * (N + 1)
    with (
        refindex.open(tmp_path / "here.refindex") as one,
        refindex.open(tmp_path / "there.refindex") as other,
    ):
        assert np.array_equal(one.group["a"][...], other.group["a"][...])
        assert np.array_equal(other.group["a"][:, 0], np.repeat(np.arange(N), 4))


def test_saved_relations_are_the_same(folder: Path, executor: Executor, tmp_path: Path) -> None:
    refindex.scan(folder, workers=1).save(tmp_path / "here.refindex")
    refindex.scan(folder, executor=executor).save(tmp_path / "there.refindex")
    for kind in relations(refindex.scan(folder, workers=1)):
        found = []
        for name in ("here", "there"):
            files = sorted(
                (tmp_path / f"{name}.refindex/kind={kind}").glob("*.parquet"), key=lambda p: p.stat().st_size
            )
            found.append([pq.ParquetFile(path).read() for path in files])
        assert found[0] == found[1], kind
        assert found[0], kind


_scan_batch = parallel.scan_batch


def _waiting(batch: Any, job: Any) -> Any:
    """The first worker that gets to a certain file says who it is, and waits to be killed."""
    marker = Path(job.storage_options["marker"])
    if any(url.endswith("23.h5") for url in batch) and not marker.exists():
        temporary = marker.with_suffix(".tmp")
        temporary.write_text(str(os.getpid()))
        temporary.rename(marker)
        time.sleep(60)
    return _scan_batch(batch, job)


def test_a_worker_that_is_killed(folder: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules
    monkeypatch.setattr(parallel, "scan_batch", _waiting)
    marker = tmp_path / "pid"
    pids = set(cluster_pids(cluster))
    assert len(pids) == 2
    killed: list[int] = []

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        pid = int(marker.read_text())
        assert pid in pids
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with dask_executor(cluster.scheduler_address) as executor:
            found = scan_many(expand([folder]), executor=executor, storage_options={"marker": str(marker)})
    finally:
        killer.join(40)
    assert len(killed) == 1
    monkeypatch.undo()
    here = scan_many(expand([folder]), workers=1)
    assert [entry.source for entry in found.failures] == [entry.source for entry in here.failures]
    assert_same(found.side_by_side(), here.side_by_side())


def cluster_pids(cluster: Any) -> list[int]:
    with distributed.Client(cluster.scheduler_address, set_as_default=False) as client:
        return list(client.run(os.getpid).values())


def test_there_is_no_scheduler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "_PATIENCE", 1)
    for address, words in (("tcp://127.0.0.1:1", "no Dask scheduler answers"), ("nonsense://x", "unknown address")):
        with pytest.raises(refindex.SourceError, match=words), dask_executor(address):
            pass


def test_a_cluster_without_workers() -> None:
    with (
        distributed.LocalCluster(
            n_workers=0, processes=False, dashboard_address="127.0.0.1:0", silence_logs=50
        ) as empty,
        pytest.raises(refindex.SourceError, match="has no workers"),
        dask_executor(empty.scheduler_address),
    ):
        pass


def test_on_the_command_line(folder: Path, cluster: Any, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "refindex.cli"]
    out, address = str(tmp_path / "a.refindex"), cluster.scheduler_address
    done = subprocess.run(
        [*command, "scan", str(folder), "-o", out, "--dask", address, "--stats"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert f"{N + 1} local files in" in done.stdout
    with contextlib.closing(refindex.open(out)) as archive:
        assert archive.group["a"].shape == (4 * N, 500)
