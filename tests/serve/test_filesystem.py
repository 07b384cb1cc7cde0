"""The filesystem over real archives: chained URLs, sync and async, beside the store."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from oracle import netcdf4

import refindex


@pytest.fixture(scope="module")
def stored(weather: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fs") / "a.refindex"
    refindex.scan(weather).save(out)
    return out


@pytest.fixture
def fs(stored: Path) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("refindex", fo=str(stored))


def test_every_file_equals_the_store(fs: fsspec.AbstractFileSystem, stored: Path) -> None:
    with refindex.open(stored) as archive:

        async def read_all() -> dict[str, bytes]:
            from zarr.core.buffer.core import default_buffer_prototype

            found = {}
            async for key in archive.store.list():
                value = await archive.store.get(key, default_buffer_prototype())
                assert value is not None
                found[key] = value.to_bytes()
            return found

        expected = asyncio.run(read_all())
    assert sorted(fs.find("")) == sorted(expected)
    assert fs.cat(list(expected)) == expected
    assert {name: info["size"] for name, info in fs.find("", detail=True).items()} == {
        key: len(value) for key, value in expected.items()
    }
    for key, value in expected.items():
        assert fs.cat_file(key, start=3, end=7) == value[3:7]
        assert fs.cat_file(key, start=-5) == value[-5:]
        assert fs.cat_file(key, start=2, end=-2) == value[2:-2]
        with fs.open(key) as file:
            assert file.read() == value


def test_folders(fs: fsspec.AbstractFileSystem) -> None:
    assert sorted(fs.ls("derived", detail=False)) == ["derived/deeper", "derived/mean", "derived/zarr.json"]
    assert fs.isdir("derived")
    assert fs.isdir("t2m/c/0")
    assert fs.isfile("t2m/c/0/0/0")
    assert fs.info("refindex://t2m/c")["type"] == "directory"
    assert fs.exists("")
    assert not fs.exists("t2m/c/9/0/0")
    assert [len(files) for _, _, files in fs.walk("derived")] == [1, 1, 2, 2] or len(list(fs.walk("derived"))) >= 3
    with pytest.raises(FileNotFoundError):
        fs.cat_file("t2m/c/9/0/0")
    with pytest.raises(FileNotFoundError):
        fs.info("nothing")
    with pytest.raises(FileNotFoundError):
        fs.ls("nothing")


def test_it_cannot_be_written(fs: fsspec.AbstractFileSystem) -> None:
    with pytest.raises(OSError, match="read-only"):
        fs.open("x", "wb")
    with pytest.raises(NotImplementedError):
        fs.pipe_file("x", b"")
    with pytest.raises(NotImplementedError):
        fs.rm_file("zarr.json")


def test_chained_url(stored: Path, weather: Path) -> None:
    with fsspec.open(f"refindex://t2m/zarr.json::{stored}") as file:
        assert b'"t2m"' not in file.read()
    expected = netcdf4(weather)["rain"].values
    for url in (f"refindex::{stored}", f"refindex::file://{stored}"):
        assert np.array_equal(zarr.open_group(url, mode="r")["rain"][...], expected, equal_nan=True)
        with xr.open_zarr(url, chunks=None) as opened:
            assert np.array_equal(opened["rain"].values, expected, equal_nan=True)


def test_archive_on_another_filesystem(weather: Path) -> None:
    """Manifest and source both in fsspec's memory filesystem; the reference is relative, as they lie together."""
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/box/data/w.nc", weather.read_bytes())
    try:
        for name in ("a.refindex", "a.sqlite"):
            refindex.scan("memory://box/data/w.nc").save(f"memory://box/{name}")
            fs = fsspec.filesystem("refindex", fo=f"memory://box/{name}")
            group = zarr.open_group(f"refindex::memory://box/{name}", mode="r")
            expected = netcdf4(weather, mask_and_scale=False)["t2m"].values
            assert np.array_equal(group["t2m"][...], expected)
            assert fs.exists("t2m/zarr.json")
            # Moving both together keeps the references right.
            memory.copy("/box", "/moved", recursive=True)
            with refindex.open(f"memory://moved/{name}", stale="ignore") as archive:
                assert archive.sources[0].url == "memory://moved/data/w.nc"
                assert np.array_equal(archive.group["t2m"][...], expected)
            memory.rm("/moved", recursive=True)
    finally:
        memory.rm("/box", recursive=True)
        MemoryFileSystem.store.clear()


async def test_asynchronous(stored: Path) -> None:
    fs = fsspec.filesystem("refindex", fo=str(stored), asynchronous=True)
    found = await fs._find("t2m")
    values = await asyncio.gather(*(fs._cat_file(path) for path in found))
    sync = fsspec.filesystem("refindex", fo=str(stored))
    assert values == [await asyncio.to_thread(sync.cat_file, path) for path in found]
    # zarr drives an asynchronous filesystem on its own loop.
    store = zarr.storage.FsspecStore(fs, path="", read_only=True)
    array = await zarr.api.asynchronous.open_array(store=store, path="t2m", mode="r")
    assert (await array.getitem((0, 0, 0))).shape == ()


def test_a_new_version_is_seen(weather: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.sqlite"
    refindex.scan(weather, variables=["t2m"]).save(out)
    assert not fsspec.filesystem("refindex", fo=str(out)).exists("rain")
    refindex.scan(weather).save(out, overwrite=True)
    assert fsspec.filesystem("refindex", fo=str(out)).exists("rain")
    assert not fsspec.filesystem("refindex", fo=str(out), version=0).exists("rain")


def test_the_protocol_is_registered_by_the_entry_point(stored: Path) -> None:
    code = f"import fsspec; print(fsspec.filesystem('refindex', fo={str(stored)!r}).exists('t2m'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "True"
