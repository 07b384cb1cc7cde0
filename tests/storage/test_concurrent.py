"""Several writers and a reader at once: nothing is lost, and every version is whole."""

from __future__ import annotations

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from manifests import make_manifest
from test_versions import append, read_state

from refindex import ChunkTable, storage
from refindex.access import urls

WRITERS = 4
LONG = bool(os.environ.get("REFINDEX_LONG"))
APPENDS = 250 if LONG else 8


def write(url: str, name: str, count: int, together: Any) -> None:
    together.wait(60)
    for number in range(count):
        append(url, name=f"{name}-{number}")


def check_version(url: str, version: int | None = None) -> int:
    """Open a version and look whether it is whole: every append leaves one row more of each kind."""
    reader = storage.open_reader(url, version=version)
    try:
        manifest = storage.load(reader)
        n = reader.version
        assert len(manifest.sources) == n + 1
        assert manifest.arrays["a"].chunks.chunk.tolist() == list(range(n + 1))
        assert manifest.arrays["a"].chunks.source.tolist() == list(range(n + 1))
        assert manifest.arrays["time"].chunks.length.tolist() == [n + 1]
        if n:
            assert manifest.arrays["a"].attributes["edition"] == n + 1
        return n
    finally:
        reader.close()


def watch(url: str, stop: Any, results: Any) -> None:
    """Open the newest version again and again."""
    opened, last = 0, -1
    while not stop.is_set():
        version = check_version(url)
        assert version >= last
        opened, last = opened + 1, version
    results.put(opened)


@pytest.mark.timeout(1200 if LONG else 120)
@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_nothing_is_lost_and_nothing_torn(kind: str, tmp_path: Path) -> None:
    out = tmp_path / f"a.{kind}"
    url = urls.absolute(out)
    table = ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[10])
    make_manifest({"a": table, "time": ChunkTable.inline([(0, b"x")])}, sources=1).save(out)
    context = multiprocessing.get_context("spawn")
    stop, results, together = context.Event(), context.Queue(), context.Barrier(WRITERS)
    watcher = context.Process(target=watch, args=(url, stop, results))
    writers = [context.Process(target=write, args=(url, f"w{i}", APPENDS, together)) for i in range(WRITERS)]
    start = time.perf_counter()
    try:
        for process in (watcher, *writers):
            process.start()
        for process in writers:
            process.join()
    finally:
        stop.set()
        if watcher.pid is not None:
            watcher.join()
    elapsed = time.perf_counter() - start
    assert [process.exitcode for process in (*writers, watcher)] == [0] * (WRITERS + 1)
    opened = results.get(timeout=10)
    results.close()
    results.join_thread()
    assert opened > 0
    commits = storage.history(url)
    assert [commit.version for commit in commits] == list(range(WRITERS * APPENDS, -1, -1))
    names = {commit.details["name"] for commit in commits[:-1]}
    assert names == {f"w{i}-{number}" for i in range(WRITERS) for number in range(APPENDS)}
    for version in range(0, WRITERS * APPENDS + 1, 10 if LONG else 1):
        assert check_version(url, version) == version
    if kind == "refindex":
        removed = storage.vacuum(url, dry_run=True, grace=storage.GRACE * 0)
        assert removed == []  # those who lost a race have removed what they wrote
    if LONG:
        print(f"{kind}: {WRITERS * APPENDS} appends in {elapsed:.1f} s, {opened} openings meanwhile")
    assert len(read_state(url).sources) == WRITERS * APPENDS + 1
