"""One archive read from several threads, processes and event loops, and what reading it costs."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import pickle
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import dask
import dask.array
import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from test_selection import crafted, make

import refindex
from refindex.access.ranges import LOCAL
from refindex.serve import reading as reading_module
from refindex.serve.cache import ChunkCache
from refindex.serve.codec_pipeline import RefindexCodecPipeline, open_group
from refindex.serve.keys import ManifestKeys
from refindex.serve.opening import Opening
from refindex.serve.places import Places
from refindex.serve.selection import SelectionReader
from refindex.serve.zarr_store import RefindexStore

ROWS, COLUMNS = 400, 300


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sharing") / "f.h5"
    with h5py.File(path, "w") as f:
        values = np.random.default_rng(0).integers(0, 99, size=(ROWS, COLUMNS)).astype("f8")
        f.create_dataset("deflated", data=values, chunks=(50, 100), compression=1, shuffle=True)
        f.create_dataset("plain", data=values)
        f.create_dataset("lzf", data=values, chunks=(50, 100), compression="lzf")
    return path


@pytest.fixture(scope="module")
def expected(file: Path) -> Any:
    with h5py.File(file) as f:
        return f["plain"][...]


@pytest.fixture(params=["memory", "refindex", "sqlite"])
def store(request: pytest.FixtureRequest, file: Path, tmp_path: Path) -> Any:
    where = file
    if request.param != "memory":
        where = tmp_path / f"a.{request.param}"
        refindex.scan(file).save(where)
    with refindex.open(where) as archive:
        yield archive.store


def selections(store: RefindexStore) -> SelectionReader:
    assert isinstance(store.keys, ManifestKeys)
    return store.keys.resolver.selections


@pytest.mark.parametrize("name", ["deflated", "plain", "lzf"])
def test_threads(store: RefindexStore, expected: Any, name: str) -> None:
    array = open_group(store)[name]

    def read(row: int) -> bool:
        return np.array_equal(array[row : row + 60, 5:], expected[row : row + 60, 5:])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(0, ROWS, 10)))


@pytest.mark.parametrize("scheduler", ["threads", "processes"])
def test_dask(store: RefindexStore, expected: Any, scheduler: str) -> None:
    with dask.config.set(scheduler=scheduler):
        for name in ("deflated", "plain", "lzf"):
            array = dask.array.from_array(open_group(store)[name], chunks=(130, 170))
            assert np.array_equal(array.compute(), expected)


def test_the_pipeline_travels(store: RefindexStore, expected: Any) -> None:
    for node in (open_group(store), open_group(store)["deflated"]):
        sent = pickle.dumps(node)
        array = pickle.loads(sent)
        array = array["deflated"] if isinstance(array, zarr.Group) else array
        assert type(array.async_array.codec_pipeline) is RefindexCodecPipeline
        assert np.array_equal(array[10:20], expected[10:20])
    if store.archive.url and not store.archive.manifest:
        assert len(pickle.dumps(open_group(store)["deflated"])) < 4000


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", ["deflated", "plain"])
def test_fork(store: RefindexStore, expected: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """zarr-python's own loop does not survive a fork: what is ours must, after threads, files and cache were in use."""
    monkeypatch.setattr(reading_module, "_SMALL", 0)
    monkeypatch.setattr(reading_module, "_WORTH_THREADS", 0)
    reader = selections(store)
    node = reader.reader.nodes[name]
    array = open_group(store)[name]
    assert np.array_equal(array[...], expected)
    assert np.array_equal(array[3], expected[3])
    places = everything(node)

    def child() -> None:
        out = np.empty(node.shape)
        reading, _ = reader.prepare(node, places, out, fill=0)
        reading.run()
        right = np.array_equal(out, expected)
        reading, _ = reader.prepare(node, replace(places, partial=~places.partial), out, fill=0)
        reading.run()
        os._exit(0 if right and np.array_equal(out, expected) else 3)

    # The locks may be held when a process is forked.
    with reader.pool._lock, reader.cache._lock:
        process = multiprocessing.get_context("fork").Process(target=child)
        process.start()
    process.join(60)
    assert process.exitcode == 0


def test_several_event_loops(store: RefindexStore, expected: Any) -> None:
    array = open_group(store)["deflated"].async_array

    async def read() -> bool:
        found = await asyncio.gather(*(array.getitem((slice(n, n + 70), slice(None))) for n in range(0, 300, 30)))
        return all(np.array_equal(part, expected[n : n + 70]) for n, part in zip(range(0, 300, 30), found, strict=True))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(lambda _: asyncio.run(read()), range(6)))


async def test_a_cancelled_read_stops(store: RefindexStore, expected: Any) -> None:
    array = open_group(store)["deflated"].async_array
    task = asyncio.create_task(array.getitem(...))
    await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert np.array_equal(await array.getitem(...), expected)


def everything(node: Any) -> Places:
    """All chunks of an array, whole."""
    grid = node.grid
    coordinates = grid.coordinates(np.arange(grid.size))
    edges = [
        start if not isinstance(start, int) else np.arange(n + 1) * start
        for start, n in zip(grid.starts, grid.counts, strict=True)
    ]
    outside = [
        tuple(
            slice(int(edge[c]), min(int(edge[c + 1]), extent))
            for edge, c, extent in zip(edges, row, node.shape, strict=True)
        )
        for row in coordinates
    ]
    inside = [tuple(slice(0, part.stop - part.start) for part in parts) for parts in outside]
    return Places(chunks=np.arange(grid.size), inside=inside, outside=outside, partial=np.zeros(grid.size, dtype=bool))


@settings(max_examples=60)
@given(how=crafted())
def test_predicted_requests_are_made(how: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = make(folder, how)
        store = RefindexStore(Opening(manifest=made.manifest))
        reader, node = selections(store), store.nodes["a"]
        plan = reader.plan(node, everything(node))
        assert reader.pool.requests == 0
        table = made.manifest.arrays["a"].chunks
        assert plan.chunks == len(table)
        assert plan.nbytes >= plan.nbytes_referenced == int(table.length[table.source >= 0].sum())
        assert np.array_equal(open_group(store)["a"][...], made.values)
        assert (reader.pool.requests, reader.pool.nbytes) == (plan.requests, plan.nbytes)
        store.keys.resolver.close()


def test_a_map_reads_what_it_needs(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as f:
        f["cube"] = np.arange(40 * 200 * 300, dtype="f4").reshape(40, 200, 300)
    with refindex.open(tmp_path / "f.h5") as archive, h5py.File(tmp_path / "f.h5") as f:
        array, pool = open_group(archive.store)["cube"], selections(archive.store).pool
        for selection, most, requests in (
            ((3,), 200 * 300 * 4, 1),
            ((3, slice(20, 40)), 20 * 300 * 4, 1),
            ((slice(None), 7, 11), 40 * 4, 40),
            ((5, 6, 7), 4, 1),
            ((slice(0, 40, 20), slice(3, 5)), 2 * 2 * 300 * 4, 2),
        ):
            before = pool.nbytes, pool.requests
            assert np.array_equal(array[selection], f["cube"][selection])
            assert (pool.nbytes - before[0], pool.requests - before[1]) == (most, requests), selection
        before = pool.nbytes
        points = tuple(np.random.default_rng(0).integers(0, n, 30) for n in array.shape)
        assert np.array_equal(array.vindex[points], f["cube"][...][points])
        assert pool.nbytes - before < 30 * LOCAL.gap
        before = pool.nbytes
        assert np.array_equal(array.oindex[[1, 30], 5], f["cube"][[1, 30], 5])
        assert pool.nbytes - before == 2 * 300 * 4


def test_a_loop_over_rows_decodes_each_chunk_once(store: RefindexStore, expected: Any) -> None:
    array, reader = open_group(store)["deflated"], selections(store)
    table = reader.reader.find("deflated")
    for row in range(ROWS):
        assert np.array_equal(array[row], expected[row])
    assert reader.pool.nbytes == table.length.sum()
    kept = reader.cache.get(("deflated", 0))
    assert kept is not None
    with pytest.raises(ValueError, match="read-only"):
        kept[...] = 0


def test_what_streams_through_is_not_kept(store: RefindexStore, expected: Any) -> None:
    reader = selections(store)
    reader.cache.budget = 60_000  # less than two chunks
    array = open_group(store)["deflated"]
    assert np.array_equal(array[3:-3, 3:-3], expected[3:-3, 3:-3])
    assert np.array_equal(array[...], expected)
    assert reader.cache.nbytes == 0
    assert np.array_equal(array[3, :50], expected[3, :50])
    assert reader.cache.nbytes == 50 * 100 * 8
    assert np.array_equal(array[60, :50], expected[60, :50])
    assert reader.cache.nbytes == 50 * 100 * 8


def test_the_cache_keeps_its_budget() -> None:
    cache = ChunkCache(1000)
    for n in range(30):
        cache.put(n, np.zeros(100, dtype="u1"))
    assert cache.nbytes == 1000
    assert [n for n in range(30) if cache.get(n) is not None] == list(range(20, 30))
    cache.put(20, np.zeros(50, dtype="u1"))
    assert cache.nbytes == 950
    cache.put("large", np.zeros(1001, dtype="u1"))
    assert cache.get("large") is None
    cache.clear()
    assert cache.nbytes == 0
