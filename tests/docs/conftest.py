"""The files that the documentation's examples read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``t2m_2023.nc``, ``data/t2m_2019.nc`` to ``data/t2m_2021.nc``, and small archives to join.

    - ``months``: January to June 2024, of unequal length, each with the whole month in one chunk and time from its
      own first day;
    - ``packed``: three years, the last of which has another ``scale_factor`` and ``add_offset``;
    - ``members``: three runs of one model over the same times;
    - ``tiles``: two halves of a grid for each of two years;
    - ``parts``: two variables in files of their own;
    - ``differing``: three years that cannot be joined, for several reasons.
    """
    folder = tmp_path_factory.mktemp("examples")
    for name in ("data", "months", "packed", "members", "tiles", "parts", "differing"):
        (folder / name).mkdir()
    write_year(folder / "t2m_2023.nc", 2023)
    for year in (2019, 2020, 2021):
        write_year(folder / "data" / f"t2m_{year}.nc", year)
    write_small(folder)
    return folder


@pytest.fixture
def workplace(examples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of :func:`examples`, which is the current folder."""
    copy = tmp_path / "work"
    shutil.copytree(examples, copy)
    monkeypatch.chdir(copy)
    return copy


def write_small(folder: Path) -> None:
    """The small archives of :func:`examples`."""
    for month, days in enumerate((31, 29, 31, 30, 31, 30), start=1):
        write_series(
            folder / "months" / f"pr_2024-{month:02d}.nc",
            "pr",
            month + np.linspace(0, 1, days)[:, None] + np.zeros(50),
            since=f"2024-{month:02d}-01",
            attributes={"units": "mm/day"},
            history=f"made for month {month}",
        )
    for year, scale, offset in ((2001, 0.01, 273.15), (2002, 0.01, 273.15), (2003, 0.002, 280.0)):
        write_series(
            folder / "packed" / f"sst_{year}.nc",
            "sst",
            285 + np.sin(np.arange(365) / 58)[:, None] + np.zeros(20),
            since=f"{year}-01-01",
            dtype="i2",
            chunk=73,
            attributes={"units": "K", "scale_factor": np.float32(scale), "add_offset": np.float32(offset)},
        )
    for run in (1, 2, 3):
        write_series(
            folder / "members" / f"tas_r{run}.nc",
            "tas",
            280 + run + np.zeros((60, 50)),
            since="2001-01-01",
            attributes={"units": "K"},
            realization=np.int32(run),
        )
    for year in (2001, 2002):
        for half, lat in (("south", (-60, -20)), ("north", (20, 60))):
            write_series(
                folder / "tiles" / f"sst_{year}_{half}.nc",
                "sst",
                290 + np.zeros((365, 2)),
                since=f"{year}-01-01",
                along=("lat", lat),
                attributes={"units": "K"},
            )
    for name in ("wind", "rain"):
        write_series(folder / "parts" / f"{name}.nc", name, np.ones((60, 50)), since="2001-01-01")
    for year, first, units in ((2001, 0, "K"), (2002, 0, "degC"), (2003, -5, "K")):
        write_series(
            folder / "differing" / f"sst_{year}.nc",
            "sst",
            290 + np.zeros((365, 20)),
            since=f"{year}-01-01",
            first=first,
            attributes={"units": units},
        )


def write_series(
    path: Path,
    name: str,
    values: Any,
    *,
    since: str,
    first: int = 0,
    along: tuple[str, Any] = ("cell", None),
    dtype: str = "f4",
    chunk: int | None = None,
    attributes: dict[str, Any] | None = None,
    **of_file: Any,
) -> None:
    """A variable over days and one other dimension: compressed, in one chunk or in chunks of ``chunk`` days."""
    days, size = values.shape
    other, coordinate = along
    with netCDF4.Dataset(path, "w") as nc:
        nc.setncatts(of_file)
        nc.createDimension("time", days)
        nc.createDimension(other, size)
        time = nc.createVariable("time", "i4", ("time",))
        time.units = f"days since {since}"
        time[:] = np.arange(first, first + days)
        if coordinate is not None:
            nc.createVariable(other, "f4", (other,))[:] = coordinate
        variable = nc.createVariable(
            name,
            dtype,
            ("time", other),
            zlib=True,
            shuffle=True,
            chunksizes=(chunk or days, size),
            fill_value=-32767 if dtype == "i2" else None,
        )
        variable.setncatts(attributes or {})
        variable[:] = values


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
