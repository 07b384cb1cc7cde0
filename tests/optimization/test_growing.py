"""Archives of which a variable was rewritten grow and shrink as if it had not been: a twin says what is right."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

import refindex
from refindex import UnsupportedError
from tests.join.archives import assert_same, expected, open_manifest

SIZES = {"time": 4, "lat": 6, "lon": 70}


def write(
    path: Path,
    *,
    time: int,
    lat: int = 0,
    seed: int = 0,
    chunks: tuple[int, int, int] = (2, 3, 40),
    height: bool = True,
) -> Path:
    """A file of ``x(time, lat, lon)``, of which some chunks were never written, and what does not depend on time."""
    values = np.random.default_rng((seed, time, lat)).random((4, 6, 70)).astype("f4")
    with netCDF4.Dataset(path, "w") as nc:
        for name, size in SIZES.items():
            nc.createDimension(name, size)
        axis = nc.createVariable("time", "f8", ("time",))
        axis.units = "days since 2000-01-01"
        axis[:] = 4 * time + np.arange(4)
        nc.createVariable("lat", "f4", ("lat",))[:] = 6 * lat + np.arange(6)
        nc.createVariable("lon", "f4", ("lon",))[:] = np.arange(70)
        x = nc.createVariable("x", "f4", ("time", "lat", "lon"), zlib=True, chunksizes=chunks)
        x.units = "K"
        x[:2] = values[:2]
        x[2:, 3:] = values[2:, 3:]
        if height:
            constant = nc.createVariable("height", "f8", ("lat", "lon"), zlib=True, chunksizes=(3, 35))
            constant[:] = lat + np.arange(420.0).reshape(6, 70)
    return path


class Twins:
    """Two archives of the same files; of one, variables are rewritten now and then."""

    def __init__(self, folder: Path, files: list[Path], suffix: str) -> None:
        self.paths = [str(folder / f"{name}.{suffix}") for name in ("rewritten", "as_it_was")]
        for path in self.paths:
            refindex.scan(files).save(path)

    def optimize(self, **options: Any) -> refindex.Optimized:
        with refindex.open(self.paths[0]) as archive:
            variables = [name for name in ("x", "height") if name in archive.arrays]
        return refindex.optimize(self.paths[0], variables, **options)

    def do(self, name: str, *arguments: Any, **options: Any) -> None:
        for path in self.paths:
            getattr(refindex, name)(path, *arguments, **options)
        self.check()

    def check(self) -> None:
        with refindex.open(self.paths[0]) as one, refindex.open(self.paths[1]) as other:
            assert list(one.arrays) == list(other.arrays)
            for name in one.arrays:
                values = one[name].compute(), other[name].compute()
                assert values[0].dtype == values[1].dtype, name
                assert values[0].tobytes() == values[1].tobytes(), name
                assert one[name].attrs == other[name].attrs
            xr.testing.assert_identical(one.to_xarray().load(), other.to_xarray().load())


@pytest.mark.parametrize("suffix", ["refindex", "sqlite"])
@pytest.mark.parametrize("chunks", [{"time": 5, "lat": 4, "lon": 9}, {"time": -1, "lat": -1, "lon": 7}, "map"])
def test_append_replace_remove(tmp_path: Path, suffix: str, chunks: Any) -> None:
    files = [write(tmp_path / f"{n}.nc", time=n) for n in (0, 1, 3)]
    twins = Twins(tmp_path, files, suffix)
    twins.optimize(chunks=chunks)
    twins.check()
    last = write(tmp_path / "4.nc", time=4, chunks=(4, 6, 70))
    twins.do("append", last)
    between = write(tmp_path / "2.nc", time=2)
    twins.do("append", between)
    write(files[1], time=1, seed=5)  # one of which values lie in shards
    twins.do("append", files[1], replace=True)
    twins.do("remove", files[0])
    twins.optimize(chunks={"time": 3, "lat": 6, "lon": 70})
    twins.do("remove", [last, files[2]])
    left = sorted([files[1], between], key=lambda path: path.name)
    with refindex.open(twins.paths[0]) as archive:
        assert_same(archive.to_xarray().load(), expected(left))
        assert_same(open_manifest(refindex.scan(left)).load(), archive.to_xarray().load())


@pytest.mark.parametrize("seed", range(8))
def test_tiles_in_any_order(tmp_path: Path, seed: int) -> None:
    """Files along two dimensions come, change and go; chunks of several files are cut where one of them goes."""
    choose = random.Random(seed)
    # What lies in one of several files keeps that one from being replaced, rewritten or not.
    height = seed % 2 == 0
    places = [(time, lat) for time in range(3) for lat in range(3)]
    files = {place: tmp_path / f"{place[0]}_{place[1]}.nc" for place in places}
    for (time, lat), path in files.items():
        write(path, time=time, lat=lat, height=height)
    there = set(places)
    twins = Twins(tmp_path, list(files.values()), "refindex")
    for step in range(7):
        if step % 3 == 0:
            sizes = {"time": 4 * len({t for t, _ in there}), "lat": 6 * len({n for _, n in there}), "lon": 70}
            chunks = {name: choose.randint(1, size) for name, size in sizes.items()}
            twins.optimize(chunks=chunks, shards=choose.choice(["auto", None, dict.fromkeys(SIZES, -1)]))
        action = choose.choice(["remove", "replace", "append"])
        gone = sorted(set(places) - there)
        if action == "append" and gone:
            place = choose.choice(gone)
            twins.do("append", files[place])
            there.add(place)
        elif action == "replace" and not height:
            place = choose.choice(sorted(there))
            write(files[place], time=place[0], lat=place[1], seed=step + 10, chunks=(1, 6, 70), height=False)
            twins.do("append", files[place], replace=True)
        elif len(there) > 1:
            place = choose.choice(sorted(there))
            twins.do("remove", files[place])
            there.discard(place)


def test_archives_of_one_file(tmp_path: Path) -> None:
    """Nothing says along what it grows, until it does."""
    first = write(tmp_path / "0.nc", time=0)
    twins = Twins(tmp_path, [first], "refindex")
    twins.optimize(chunks={"time": 3, "lon": 70})
    twins.check()
    with pytest.raises(UnsupportedError, match="not joined"):
        refindex.remove(twins.paths[0], first)
    twins.do("append", write(tmp_path / "1.nc", time=1))
    twins.do("remove", first)


def test_shards_cannot_be_removed_as_files(tmp_path: Path) -> None:
    twins = Twins(tmp_path, [write(tmp_path / f"{n}.nc", time=n) for n in (0, 1)], "refindex")
    twins.optimize(chunks={"time": 3})
    with refindex.open(twins.paths[0]) as archive:
        shard = archive.sources[-1].url
    with pytest.raises(UnsupportedError, match="there are references into them"):
        refindex.remove(twins.paths[0], [shard])
    twins.check()


def test_versions_and_a_move(tmp_path: Path) -> None:
    """An old version reads the originals again; archive, originals and shards move together."""
    folder = tmp_path / "here"
    folder.mkdir()
    files = [write(folder / f"{n}.nc", time=n) for n in (0, 1)]
    twins = Twins(folder, files, "refindex")
    done = twins.optimize(chunks={"time": 8, "lat": 1, "lon": 7})
    shards = {Path(array.folder) for array in done.arrays}
    difference = refindex.diff(twins.paths[0], 0)
    assert {array.path for array in difference.arrays} == {"x", "height"}
    assert len(difference.sources_added) == sum(array.files for array in done.arrays)
    (newest, _) = refindex.log(twins.paths[0])
    assert newest.operation == "optimize"
    assert newest.details["variables"] == ["x", "height"]
    assert newest.details["chunks"] == ["8 x 1 x 7", "1 x 7"]
    refindex.restore(twins.paths[0], 0)
    with refindex.open(twins.paths[0]) as archive:
        assert len(archive.sources) == 2
    twins.check()
    refindex.restore(twins.paths[0], 1)
    refindex.vacuum(twins.paths[0], keep_versions=1)
    assert all(path.is_dir() for path in shards)
    twins.check()
    there = tmp_path / "there"
    shutil.move(folder, there)
    for file in there.glob("*.nc"):
        file.unlink()
    with refindex.open(there / "rewritten.refindex") as archive:
        values = archive["x"].compute()
    assert values.shape == (8, 6, 70)
    assert refindex.scan([write(tmp_path / f"{n}.nc", time=n) for n in (0, 1)]).arrays["x"].shape == values.shape
