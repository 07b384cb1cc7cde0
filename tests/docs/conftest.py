"""The files that the documentation's examples read."""

from __future__ import annotations

import shutil
from pathlib import Path

import netCDF4
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``t2m_2023.nc`` and ``data/t2m_2019.nc`` to ``data/t2m_2021.nc``."""
    folder = tmp_path_factory.mktemp("examples")
    (folder / "data").mkdir()
    write_year(folder / "t2m_2023.nc", 2023)
    for year in (2019, 2020, 2021):
        write_year(folder / "data" / f"t2m_{year}.nc", year)
    return folder


@pytest.fixture
def workplace(examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of :func:`examples`, which is the current folder."""
    copy = tmp_path / "work"
    shutil.copytree(examples, copy)
    monkeypatch.chdir(copy)
    return copy


def write_year(path: Path, year: int) -> None:
    """Daily temperatures of a year: packed, compressed, chunked; a group with strings beside them."""
    days = 366 if year % 4 == 0 else 365
    lat, lon = np.linspace(-85, 85, 18), np.arange(0, 360, 10.0)
    with netCDF4.Dataset(path, "w") as nc:
        nc.title = "made-up temperatures"
        nc.createDimension("time", None)
        nc.createDimension("lat", lat.size)
        nc.createDimension("lon", lon.size)
        for name, values, units in (
            ("time", np.arange(days), f"days since {year}-01-01"),
            ("lat", lat, "degrees_north"),
            ("lon", lon, "degrees_east"),
        ):
            axis = nc.createVariable(name, "f8" if name == "time" else "f4", (name,))
            axis.units = units
            axis[:] = values
        t2m = nc.createVariable(
            "t2m", "i2", ("time", "lat", "lon"), zlib=True, shuffle=True, chunksizes=(61, 18, 36), fill_value=-32767
        )
        t2m.scale_factor, t2m.add_offset, t2m.units = np.float32(0.01), np.float32(273.15), "K"
        day = np.arange(days)[:, None, None]
        phi, lam = np.deg2rad(lat)[:, None], np.deg2rad(lon)
        t2m[:] = 300 - 40 * np.sin(phi) ** 2 - 18 * np.sin(phi) * np.cos(2 * np.pi * day / days) + 3 * np.sin(3 * lam)
        stations = nc.createGroup("stations")
        stations.createDimension("station", 2)
        stations.createVariable("name", str, ("station",))[:] = np.array(["Nairobi", "São Paulo"], dtype=object)
