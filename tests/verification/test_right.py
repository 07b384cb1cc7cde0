"""On archives that are right, a verification finds nothing, and leaves nothing out."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
import zipfile
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr

sys.path.insert(0, str(Path(__file__).parents[1] / "gauntlet"))

from cases import cases
from serving import RangeServer
from weather import write_weather

import refindex
from tests.join.archives import Part, write_archive
from tests.join.files import Var, series, write
from tests.verification.altering import SUFFIXES, right

CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_every_case_of_the_gauntlet(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CASES[name](tmp_path / "case.h5")
    # Half of the cases in each storage.
    archive = tmp_path / f"a{SUFFIXES[list(CASES).index(name) % 2]}"
    manifest = refindex.scan(tmp_path / "case.h5")
    manifest.save(archive)
    found = right(archive)
    assert not found.uncompared
    assert found.chunks == manifest.n_references
    assert found.documents == len(manifest.arrays)


@pytest.fixture(params=SUFFIXES)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"archive{request.param}"


ARCHIVES: dict[str, list[Part]] = {
    "months of unequal length": [
        Part(start=start, length=length)
        for length, start in zip((31, 28, 31, 30) * 9, itertools.accumulate((0, *(31, 28, 31, 30) * 9)), strict=False)
    ],
    "scale and offset": [
        Part(start=0, length=4, dtype="i2", scale=0.5, offset=1.0, fill=-1),
        Part(start=4, length=5, dtype="i2", scale=0.25, offset=2.0, fill=-2, packing_dtype="f4"),
        Part(start=9, length=3, dtype="u1", scale=0.5, offset=1.0, fill=255),
    ],
    "units of time": [
        Part(start=0, length=4, units="hours since 2000-01-01"),
        Part(start=4, length=5, units="days since 1999-12-01", time_dtype="f8"),
        Part(start=9, length=3, units="minutes since 2000-01-01", time_dtype="i4"),
    ],
    "types, byte orders, chunks, compression": [
        Part(start=0, length=4, dtype="i2", chunks=None),
        Part(start=4, length=5, dtype="f4", endian="big", zlib=False, shuffle=False),
        Part(start=9, length=3, dtype="u1", chunks=(3, 2, 70), fletcher32=True),
    ],
    "holes": [
        Part(start=0, length=6, dtype="i2", fill=-1, holes=True),
        Part(start=6, length=6, dtype="i2", fill=-1, holes=True, chunks=(3, 3, 40)),
    ],
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_joined(name: str, archive: Path, tmp_path: Path) -> None:
    refindex.scan(write_archive(tmp_path / "data", ARCHIVES[name]), workers=1).save(archive)
    found = right(archive)
    assert not found.uncompared
    assert found.originals == found.sources == len(ARCHIVES[name])
    assert found.parts > found.chunks


def test_an_archive_and_its_life(archive: Path, tmp_path: Path) -> None:
    paths = write_archive(tmp_path / "data", [Part(start=4 * n, length=4) for n in range(6)])
    refindex.scan(paths[1:3], workers=1).save(archive)
    refindex.append(archive, [paths[5], paths[0]], workers=1)
    right(archive)
    refindex.append(archive, paths, workers=1)
    right(archive)
    refindex.remove(archive, paths[2])
    right(archive)
    write_archive(tmp_path / "data", [Part(start=12, length=4, dtype="f8")], seed=7)
    refindex.append(archive, paths[3], replace=True, workers=1)
    assert right(archive).originals == 5
    old = refindex.verify(archive, version=3)
    assert [(p.kind, p.source) for p in old.problems] == [("source", str(paths[3]))]
    assert old.chunks
    newest = refindex.restore(archive, 4)
    assert right(archive).version == newest
    (tmp_path / "data").rename(tmp_path / "moved")
    assert not refindex.verify(archive).ok
    refindex.relocate(archive, tmp_path / "data", tmp_path / "moved")
    right(archive)


def test_that_came_to_be_joined_along_more(archive: Path, tmp_path: Path) -> None:
    def tile(name: str, time: int, lat: int) -> Path:
        variables = {
            "time": Var(dims=("time",), values=np.arange(time, time + 4.0)),
            "lat": Var(dims=("lat",), values=np.arange(lat, lat + 3.0)),
            "x": Var(dims=("time", "lat"), values=np.random.default_rng((time, lat)).random((4, 3))),
        }
        return write(tmp_path / name, variables)

    refindex.scan([tile("a.nc", 0, 0), tile("b.nc", 0, 3)], workers=1).save(archive)
    refindex.append(archive, [tile("c.nc", 4, 0), tile("d.nc", 4, 3)], workers=1)
    assert right(archive).originals == 4


@pytest.mark.parametrize("how", ["first", "stack"])
def test_variables_that_differ(how: Any, archive: Path, tmp_path: Path) -> None:
    paths = []
    for n in range(3):
        variables = series(4 * n, 4) | {"z": Var(dims=("lat",), values=np.arange(3.0) + n)}
        paths.append(write(tmp_path / f"{n}.nc", variables))
    refindex.scan(paths, on_difference=how, workers=1).save(archive)
    assert not right(archive).uncompared


def test_stacked(archive: Path, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"run_r{n}.nc", series(0, 5, seed=n)) for n in (1, 2, 3)]
    refindex.scan(paths, stack="member=_r(\\d)", workers=1).save(archive)
    found = right(archive)
    # No file has the numbers in the names of files.
    assert [u.examples for u in found.uncompared.values()] == [("/member",)]


def test_merged_and_missing(archive: Path, tmp_path: Path) -> None:
    one = series(0, 5)
    other = {"time": one["time"], "y": Var(dims=("time",), values=np.arange(5.0))}
    still = {"land": Var(dims=("cell",), values=np.arange(400.0))}
    paths = [
        write(tmp_path / "x.nc", one),
        write(tmp_path / "y.nc", other),
        write(tmp_path / "z.nc", series(5, 4)),
        write(tmp_path / "land.nc", still),
    ]
    refindex.scan(paths, merge=True, workers=1).save(archive)
    assert not right(archive).uncompared


def test_side_by_side(archive: Path, tmp_path: Path) -> None:
    write_weather(tmp_path / "a.nc")
    write_weather(tmp_path / "b.nc", seed=1)
    (tmp_path / "deeper").mkdir()
    write_weather(tmp_path / "deeper" / "a.nc", seed=2)
    refindex.scan([tmp_path / "a.nc", tmp_path / "b.nc"], join=False, workers=1).save(archive)
    refindex.append(archive, tmp_path / "deeper" / "a.nc", workers=1)
    found = right(archive)
    assert not found.uncompared
    assert found.originals == 3


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
def test_netcdf3(kind: Any, archive: Path, tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        with netCDF4.Dataset(tmp_path / f"{n}.nc", "w", format=kind) as file:
            file.title = "made up"
            file.createDimension("time", None)
            file.createDimension("x", 700)
            file.createVariable("time", "i4", ("time",))[:] = np.arange(3) + 3 * n
            a = file.createVariable("a", "i2", ("time", "x"), fill_value=-5)
            a.scale_factor = np.float32(0.5)
            a[:] = np.random.default_rng(n).integers(0, 99, (3, 700))
            file.createVariable("letters", "S1", ("x",))[:] = np.array(list("ab" * 350), "S1")
        paths.append(tmp_path / f"{n}.nc")
    refindex.scan(paths[0]).save(archive)
    assert not right(archive).uncompared
    refindex.append(archive, paths[1], workers=1)
    found = right(archive)
    assert found.originals == 2
    assert not found.uncompared


@pytest.mark.parametrize("version", [2, 3])
def test_zarr(version: Any, archive: Path, tmp_path: Path) -> None:
    for n in range(2):
        data = xr.Dataset(
            {
                "x": (("time", "lat"), np.random.default_rng(n).random((4, 500)), {"units": "K"}),
                "n": (("time",), np.arange(4, dtype="i2"), {"_FillValue": 9}),
            },
            {"time": np.arange(4) + 4 * n, "lat": np.arange(500.0)},
        )
        data.chunk({"time": 2}).to_zarr(tmp_path / f"{n}.zarr", zarr_format=version, consolidated=False)
    with zipfile.ZipFile(tmp_path / "0.zip", "w") as file:
        for path in sorted((tmp_path / "0.zarr").rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(tmp_path / "0.zarr"))
    for source in (tmp_path / "0.zip", tmp_path / "0.zarr"):
        refindex.scan(source).save(archive, overwrite=True)
        assert not right(archive).uncompared
    refindex.append(archive, tmp_path / "1.zarr", workers=1)
    found = right(archive)
    assert found.originals == 2
    assert not found.uncompared


def test_one_zarr_array(archive: Path, tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "alone.zarr", shape=(7, 900), chunks=(2, 300), dtype="f4", fill_value=3)
    array[:4] = 1
    refindex.scan(tmp_path / "alone.zarr").save(archive)
    found = right(archive)
    assert found.absent == 6


def test_remote(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    write_archive(tmp_path / "www" / "data", [Part(start=0, length=5), Part(start=5, length=3, dtype="f8")])
    with RangeServer(tmp_path / "www") as server:
        refindex.scan([f"{server.url}/data/00000.nc", f"{server.url}/data/00005.nc"], workers=1).save(archive)
        found = right(archive)
        assert found.originals == found.sources_checked == 2
        assert not found.uncompared
        shutil.rmtree(tmp_path / "www" / "data")
        gone = refindex.verify(archive)
    assert [p.kind for p in gone.problems] == ["source", "source"]


def test_a_file_without_an_archive(weather: Path) -> None:
    found = right(weather)
    assert found.version == 0
    assert found.chunks == refindex.scan(weather).n_references


def test_external_data_is_looked_for_beside_its_file(archive: Path, tmp_path: Path) -> None:
    """The working directory has no part in it."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("d", (500,), "f8", external=[("raw.bin", 0, 4000)])[:] = np.arange(500)
    if not (tmp_path / "raw.bin").exists():
        shutil.move("raw.bin", tmp_path / "raw.bin")
    refindex.scan(tmp_path / "x.h5").save(archive)
    here = os.getcwd()  # noqa: PTH109
    assert not right(archive).uncompared
    assert os.getcwd() == here  # noqa: PTH109


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sample_has_all_arrays_encodings_and_sources(seed: int, archive: Path, tmp_path: Path) -> None:
    parts = [Part(start=4 * n, length=4, chunks=(1, 2, 20), zlib=n % 2 == 0, shuffle=n % 3 == 0) for n in range(12)]
    manifest = refindex.scan(write_archive(tmp_path / "data", parts), workers=1)
    manifest.save(archive)
    found = refindex.verify(archive, sample=40, seed=seed)
    assert found.ok
    assert found.chunks == 40
    assert found.originals == 12
    assert found.documents >= len(manifest.arrays)
    one = refindex.verify(archive, sample=17, variables=["x"], seed=seed)  # so few at random would leave files out
    assert one.originals == 12
    less = refindex.verify(archive, sample=len(manifest.arrays), seed=seed)
    assert less.chunks == len(manifest.arrays)
    assert refindex.verify(archive, sample=0).chunks == 0
    only = refindex.verify(archive, sample="all", variables=["lat"])
    assert only.chunks == len(manifest.arrays["lat"].chunks)
    with pytest.raises(refindex.NotFoundError, match="nothing"):
        refindex.verify(archive, variables=["nothing"])
