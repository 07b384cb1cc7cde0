"""The xarray engine beside xarray's own netcdf4 engine."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr
from oracle import netcdf4

import refindex
from refindex.access.files import SourcePool


@pytest.fixture(scope="module", params=["source", "refindex", "sqlite"])
def where(request: pytest.FixtureRequest, weather: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "source":
        return weather
    out = tmp_path_factory.mktemp("xr") / f"a.{request.param}"
    refindex.scan(weather).save(out)
    return out


@pytest.mark.parametrize("decoding", [{}, {"mask_and_scale": False, "decode_times": False, "concat_characters": False}])
def test_dataset_is_identical(where: Path, weather: Path, decoding: dict[str, bool]) -> None:
    for group in (None, "derived", "derived/deeper"):
        expected = netcdf4(weather, group=group, **decoding)
        with xr.open_dataset(where, engine="refindex", group=group, **decoding) as opened:
            xr.testing.assert_identical(opened.load(), expected.load())
            for name, variable in expected.variables.items():
                if variable.dtype.kind not in "OUT":
                    assert opened[name].dtype == variable.dtype, name
                for key, value in variable.attrs.items():
                    assert np.asarray(opened[name].attrs[key]).dtype == np.asarray(value).dtype, (name, key)


def test_datatree_is_identical(where: Path, weather: Path) -> None:
    with xr.open_datatree(weather, engine="netcdf4") as expected, xr.open_datatree(where, engine="refindex") as opened:
        xr.testing.assert_identical(opened.load(), expected.load())
    below = xr.open_groups(where, engine="refindex", group="derived")
    assert list(below) == ["/", "/deeper"]


def test_opening_reads_no_source(where: Path, weather: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if where == weather:
        pytest.skip("a source that is opened directly is scanned, which reads it")

    def no_read(*_: object) -> bytes:
        raise AssertionError("a source was read")

    monkeypatch.setattr(SourcePool, "reader", no_read)
    opened = xr.open_dataset(where, engine="refindex")
    assert opened["time"].values[0] == np.datetime64("2000-01-01")
    with pytest.raises(AssertionError, match="a source was read"):
        opened["t2m"].load()


def test_dask_chunks_are_the_stored_ones(where: Path, weather: Path) -> None:
    opened = xr.open_dataset(where, engine="refindex", chunks={})
    assert opened["t2m"].chunks == ((2, 2, 2), (10,), (20,))
    expected = netcdf4(weather)
    with dask.config.set(scheduler="threads"):
        assert np.array_equal(opened["t2m"].values, expected["t2m"].values, equal_nan=True)
    with dask.config.set(scheduler="processes"):
        assert np.array_equal(opened["rain"].values, expected["rain"].values, equal_nan=True)
    with refindex.open(where) as archive:
        assert archive.to_xarray(chunks={"time": 4})["t2m"].chunks[0] == (4, 2)


def test_datasets_pickle(where: Path, weather: Path) -> None:
    opened = xr.open_dataset(where, engine="refindex")
    again = pickle.loads(pickle.dumps(opened))
    xr.testing.assert_identical(again.load(), netcdf4(weather))


def test_indexing(where: Path, weather: Path) -> None:
    opened, expected = xr.open_dataset(where, engine="refindex"), netcdf4(weather)
    for pick in (
        {"time": 3},
        {"time": slice(1, 5, 2), "lon": [3, 1, 7]},
        {"lat": slice(None, None, -1)},
        {"lat": xr.DataArray([1, 2], dims="p"), "lon": xr.DataArray([5, 6], dims="p")},
    ):
        xr.testing.assert_identical(opened.isel(pick).load(), expected.isel(pick).load())


def test_archives_need_no_engine_named(tmp_path: Path, weather: Path) -> None:
    for name in ("a.refindex", "a.sqlite"):
        refindex.scan(weather).save(tmp_path / name)
        assert "t2m" in xr.open_dataset(tmp_path / name)
    engine = refindex.serve.xarray_engine.RefindexBackendEntrypoint()
    assert not engine.guess_can_open(str(weather))
    assert not engine.guess_can_open(tmp_path / "not-there.sqlite")


def test_archive_to_xarray(weather: Path) -> None:
    with refindex.open(weather) as archive:
        xr.testing.assert_identical(archive.to_xarray().load(), netcdf4(weather))
        assert archive.to_datatree()["derived/deeper/count"].item() == 42
        assert archive.to_xarray(group="derived")["mean"].shape == (10, 20)
        assert archive.to_xarray(drop_variables=["t2m"]).data_vars.keys().isdisjoint({"t2m"})


def test_a_group_that_is_not_there(where: Path) -> None:
    with pytest.raises(FileNotFoundError, match="derived"):
        xr.open_dataset(where, engine="refindex", group="nothing")


def test_axes_that_xarray_could_not_open_get_names_of_their_own(tmp_path: Path) -> None:
    """HDF5 lets a dimension occur twice in an array, and one name stand for two lengths; xarray does not."""
    path = tmp_path / "odd.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("x", 3)
        file.createVariable("covariance", "f8", ("x", "x"))[:] = np.eye(3)
        file.createVariable("x", "f8", ("x",))[:] = [1, 2, 3]
    opened = xr.open_dataset(path, engine="refindex")
    assert opened["covariance"].dims == ("x", "x_3")
    assert np.array_equal(opened["covariance"], np.eye(3))
    with refindex.open(path) as archive:
        assert any("occurs once" in entry.reason for entry in archive.report)


def test_opened_in_many_threads_at_once(tmp_path: Path) -> None:
    """A chunk grid of unequal chunks needs a setting of the whole process: threads must not take it from each other."""
    for year, days in ((2019, 365), (2020, 366)):
        with h5py.File(tmp_path / f"{year}.nc", "w") as file:
            file["time"] = np.arange(days) + 365 * (year - 2019)
            file["time"].make_scale("time")
            data = file.create_dataset("x", data=np.arange(days) * 1.0, chunks=(61,))
            data.dims[0].attach_scale(file["time"])
    refindex.scan(tmp_path).save(tmp_path / "a.refindex")
    expected = [np.arange(n).sum() for n in (365, 366)]

    def read(_: int) -> float:
        with xr.open_dataset(tmp_path / "a.refindex", engine="refindex") as opened:
            return float(opened["x"].sum())

    before = zarr.config.get("array.rectilinear_chunks")
    with ThreadPoolExecutor(8) as threads:
        assert set(threads.map(read, range(80))) == {float(sum(expected))}
    assert zarr.config.get("array.rectilinear_chunks") == before
