"""Everything at once: threads, event loops and processes, forked and spawned, read one archive while it grows."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import multiprocessing
import os
import pickle
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from serving import RangeServer

import refindex
from refindex.serve import filesystem, zarr_store
from refindex.serve.codec_pipeline import open_group
from refindex.serve.opening import Opening, open_keys

FILES, ROWS, COLUMNS = 6, 40, 90
KINDS = ("deflated", "plain", "adapted")


def write(folder: Path, number: int) -> Path:
    """One file of a series: the values of a row say which row it is."""
    path = folder / f"part{number:02}.h5"
    rows = np.arange(ROWS * number, ROWS * (number + 1))
    values = rows[:, None] * 1000.0 + np.arange(COLUMNS)
    with h5py.File(path, "w") as file:
        time_ = file.create_dataset("time", data=rows.astype("f8"))
        time_.make_scale("time")
        file.create_dataset("deflated", data=values, chunks=(7, 30), compression=1, shuffle=True)
        file.create_dataset("plain", data=values, chunks=(20, 90))
        file.create_dataset("adapted", data=values, chunks=(10, 90), compression="lzf")
        for name in KINDS:
            file[name].dims[0].attach_scale(time_)
    return path


def right(values: Any, rows: slice, columns: slice) -> bool:
    """Whether values are those of the series at these rows and columns."""
    wanted = np.arange(rows.start, rows.stop)[:, None] * 1000.0 + np.arange(columns.start, columns.stop)
    return np.array_equal(values, wanted)


def some(random: np.random.Generator, total: int) -> tuple[str, slice, slice]:
    row, column = int(random.integers(0, total - 1)), int(random.integers(0, COLUMNS - 1))
    rows = slice(row, min(total, row + int(random.integers(1, 50))))
    return str(random.choice(KINDS)), rows, slice(column, min(COLUMNS, column + int(random.integers(1, 60))))


def read_many(group: zarr.Group, seed: int, rounds: int) -> int:
    """Read at random; how often values were wrong."""
    random, total = np.random.default_rng(seed), int(group["time"].shape[0])
    wrong = 0
    for _ in range(rounds):
        name, rows, columns = some(random, total)
        wrong += not right(group[name][rows, columns], rows, columns)
    return wrong


async def read_many_async(group: zarr.Group, seed: int, rounds: int) -> int:
    random, total = np.random.default_rng(seed), int(group["time"].shape[0])

    async def one(name: str, rows: slice, columns: slice) -> bool:
        return not right(await group[name].async_array.getitem((rows, columns)), rows, columns)

    return sum(await asyncio.gather(*(one(*some(random, total)) for _ in range(rounds))))


def spawned(store: Any, seed: int, rounds: int) -> None:
    """In a process that was started anew: the store travels to it."""
    sys.exit(0 if read_many(open_group(store), seed, rounds) == 0 else 3)


def forked(url: str, seed: int, rounds: int) -> None:
    """In a forked process: its own archive, beside one that its parent has open and reads from."""
    try:
        # zarr-python's event loop does not survive a fork (its threads do not); it makes another when it is told to.
        from zarr.core import sync

        sync.loop[0] = None
        sync.iothread[0] = None
        with refindex.open(url) as archive:
            wrong = 0
            random, total = np.random.default_rng(seed), archive["time"].shape[0]
            for _ in range(rounds):
                name, rows, columns = some(random, total)
                wrong += not right(np.asarray(archive[name][rows, columns]), rows, columns)
        os._exit(0 if wrong == 0 else 3)
    except BaseException:
        traceback.print_exc()
        os._exit(4)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("where", ["here", "remote"])
@pytest.mark.parametrize("suffix", [".refindex", ".sqlite"])
def test_everything_at_once(tmp_path: Path, suffix: str, where: str) -> None:
    paths = [write(tmp_path, number) for number in range(FILES)]
    url = str(tmp_path / f"a{suffix}")
    with contextlib.ExitStack() as stack:
        base = stack.enter_context(RangeServer(tmp_path)).url if where == "remote" else str(tmp_path)
        names = [f"{base}/{path.name}" for path in paths]
        refindex.scan(names[:3]).save(url)
        archive = stack.enter_context(refindex.open(url))
        group, total = archive.group, 3 * ROWS
        assert group["time"].shape == (total,)
        fork, spawn = multiprocessing.get_context("fork"), multiprocessing.get_context("spawn")
        rounds = 25
        children: list[Any] = [spawn.Process(target=spawned, args=(archive.store, n, rounds)) for n in range(2)]
        if where == "here":  # what fsspec and aiohttp have open does not survive a fork
            children += [fork.Process(target=forked, args=(url, 10 + n, rounds)) for n in range(2)]
        for child in children:
            child.start()
        try:
            with ThreadPoolExecutor(8) as pool:
                answers = [pool.submit(read_many, group, 20 + n, rounds) for n in range(4)]
                answers += [pool.submit(lambda n=n: asyncio.run(read_many_async(group, n, rounds))) for n in (30, 31)]
                # Meanwhile the archive grows; nobody who has it open sees that.
                for name in names[3:]:
                    refindex.append(url, name)
                assert [answer.result(60) for answer in answers] == [0] * len(answers)
            for child in children:
                child.join(60)
            assert [child.exitcode for child in children] == [0] * len(children)
        finally:
            for child in children:
                if child.is_alive():
                    child.kill()
                    child.join()
        assert group["time"].shape == (total,)
        # When the version that is open expires, that is an error, and never fill values.
        refindex.vacuum(url, keep_versions=1)
        try:
            values = np.asarray(archive["deflated"][:, :])
        except refindex.RefindexError:
            pass
        else:
            assert right(values, slice(0, total), slice(0, COLUMNS))
        with refindex.open(url) as newest:
            assert right(np.asarray(newest["adapted"][:, :]), slice(0, FILES * ROWS), slice(0, COLUMNS))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resident() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10


@pytest.fixture
def series(tmp_path: Path) -> Iterator[Path]:
    for number in range(2):
        write(tmp_path, number)
    return iter([tmp_path])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("suffix", [".refindex", ".sqlite", ""])
def test_nothing_stays_open(series: Iterator[Path], suffix: str) -> None:
    (folder,) = series
    url = str(folder / f"a{suffix}") if suffix else str(folder / "part00.h5")
    if suffix:
        refindex.scan(sorted(folder.glob("*.h5"))).save(url)

    def once() -> None:
        with refindex.open(url) as archive:
            assert right(np.asarray(archive["deflated"][3:9, :]), slice(3, 9), slice(0, COLUMNS))
            assert right(archive.group["adapted"][3:9], slice(3, 9), slice(0, COLUMNS))
            archive.to_xarray().close()

    for _ in range(5):
        once()
    gc.collect()
    before, memory, threads = descriptors(), resident(), threading.active_count()
    for _ in range(60):
        once()
    gc.collect()
    assert descriptors() <= before
    assert threading.active_count() <= threads
    assert resident() - memory < 16 << 20


@pytest.mark.parametrize("way", ["filesystem", "store"])
def test_whoever_asks_first_opens_it_once(series: Iterator[Path], way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = series
    refindex.scan(sorted(folder.glob("*.h5"))).save(folder / "a.sqlite")
    opened: list[object] = []

    def slowly(opening: Opening) -> Any:
        opened.append(opening)
        time.sleep(0.1)
        return open_keys(opening)

    for module in (filesystem, zarr_store):
        monkeypatch.setattr(module, "open_keys", slowly)
    asked: Any = filesystem.RefindexFileSystem(fo=str(folder / "a.sqlite"))
    if way == "store":
        with refindex.open(folder / "a.sqlite") as archive:
            asked = pickle.loads(pickle.dumps(archive.store))
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: asked.keys, range(8)))
    assert len(opened) == len(set(map(id, found))) == 1
    found[0].resolver.reader.close()
