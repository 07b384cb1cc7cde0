"""A small archive from start to end: write it, index it, open it beside netCDF4, compare, plot.

``make demo`` runs this. Everything it makes goes to ``demo/`` in the current folder; running it again starts afresh.
"""

from __future__ import annotations

import shutil
import sys
import time
from pathlib import Path

import matplotlib as mpl
import netCDF4
import numpy as np
import xarray as xr

import refindex

mpl.use("Agg")
import matplotlib.pyplot as plt

FOLDER = Path("demo")
YEAR = 2023
DAYS = 365
FILL = np.int16(-32767)


def temperature(lat: np.ndarray, lon: np.ndarray) -> np.ma.MaskedArray:
    """A field that looks like daily 2 m temperature (K): latitude, continents, seasons, weather; two gaps."""
    noise = np.random.default_rng(YEAR)
    day = np.arange(DAYS)[:, None, None]
    phi, lam = np.deg2rad(lat)[None, :, None], np.deg2rad(lon)[None, None, :]
    mean = 301.0 - 46.0 * np.sin(phi) ** 2 - 14.0 * np.clip(-np.sin(phi), 0, None) ** 6
    land = 0.5 + 0.5 * np.tanh(2.0 * (np.sin(2.0 * lam - 0.6) + 0.6 * np.sin(phi) + 0.3 * np.cos(3.0 * phi)))
    season = -(3.0 + 16.0 * land) * np.sin(phi) * np.cos(2.0 * np.pi * (day - 20) / 365.25)
    waves = sum(
        amplitude * np.cos(k * lam - speed * 2.0 * np.pi * day / 365.25 * k + shift) * np.sin(2.0 * phi) ** 2
        for k, amplitude, speed, shift in ((3, 2.2, 9, 0.4), (5, 2.8, 14, 1.9), (8, 1.6, 21, 4.0))
    )
    field = mean + 3.0 * land + season + waves + 0.6 * noise.standard_normal((DAYS, lat.size, lon.size))
    gaps = np.zeros(field.shape, dtype=bool)
    gaps[40:43, 4, 10:14] = True  # a few cells that were never observed
    gaps[200, 30:33, 60] = True
    return np.ma.array(field, mask=gaps)


def write_archive(path: Path) -> None:
    """One NetCDF-4 file as archives have them: packed, compressed, chunked, with two groups."""
    lat, lon = np.linspace(-88.0, 88.0, 45), np.arange(0.0, 360.0, 4.0)
    with netCDF4.Dataset(path, "w", format="NETCDF4") as nc:
        nc.title = "Made-up daily temperatures"
        nc.Conventions = "CF-1.8"

        surface = nc.createGroup("surface")
        surface.createDimension("time", None)
        surface.createDimension("lat", lat.size)
        surface.createDimension("lon", lon.size)
        stamps = surface.createVariable("time", "f8", ("time",))
        stamps.units, stamps.calendar, stamps.standard_name = f"days since {YEAR}-01-01", "standard", "time"
        stamps[:] = np.arange(DAYS)
        for name, values, units in (("lat", lat, "degrees_north"), ("lon", lon, "degrees_east")):
            axis = surface.createVariable(name, "f4", (name,))
            axis.units = units
            axis[:] = values
        t2m = surface.createVariable(
            "t2m",
            "i2",
            ("time", "lat", "lon"),
            zlib=True,
            shuffle=True,
            complevel=4,
            chunksizes=(31, 23, 45),
            fill_value=FILL,
        )
        t2m.scale_factor, t2m.add_offset = np.float32(0.01), np.float32(273.15)
        t2m.units, t2m.long_name = "K", "2 metre temperature"
        t2m[:] = temperature(lat, lon)

        stations = nc.createGroup("stations")
        stations.createDimension("station", 4)
        names = stations.createVariable("name", str, ("station",))
        names[:] = np.array(["Reykjavík", "São Paulo", "Nairobi", "Hobart"], dtype=object)
        for name, values in (("lat", (64.1, -23.5, -1.3, -42.9)), ("lon", (338.1, 313.4, 36.8, 147.3))):
            stations.createVariable(name, "f4", ("station",))[:] = values


def compare(served: xr.Dataset, original: xr.Dataset, what: str) -> None:
    """Stop with exit code 1 unless names, dimensions, attributes and values, and types of numbers, are identical."""
    try:
        xr.testing.assert_identical(served.load(), original.load())
        for name, variable in original.variables.items():
            # Text is left out: xarray gives it as fixed-width Unicode from netCDF4, as objects from Zarr.
            if variable.dtype.kind not in "OU" and served[name].dtype != variable.dtype:
                raise AssertionError(f"{name} is {served[name].dtype}, netCDF4 gives {variable.dtype}")
    except AssertionError as error:
        sys.exit(f"{what}: refindex and netCDF4 DISAGREE\n{error}")
    print(f"{what}: refindex and netCDF4 agree (assert_identical: values, attributes; and dtypes)")


def plot(surface: xr.Dataset, stations: xr.Dataset, path: Path) -> None:
    """A map of one day, and a year at each station, whose markers have the colours of their lines."""
    with plt.rc_context({"font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold"}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=(1.5, 1), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
        day = surface.t2m.sel(time=f"{YEAR}-07-15") - 273.15
        colours = ("#1b9e77", "#7b3294", "#e7298a", "#222222")
        mesh = left.pcolormesh(day.lon, day.lat, day, cmap="RdYlBu_r", vmin=-45, vmax=45, rasterized=True)
        figure.colorbar(mesh, ax=left, label="°C", shrink=0.9, extend="both")
        left.set(
            title=f"2 m temperature, 15 July {YEAR}",
            xlabel="longitude",
            ylabel="latitude",
            xticks=range(0, 361, 60),
            yticks=range(-90, 91, 30),
        )
        for colour, name, lat, lon in zip(
            colours, stations.name.values, stations.lat.values, stations.lon.values, strict=True
        ):
            left.plot(lon, lat, "o", color=colour, markeredgecolor="white", markersize=7)
            series = surface.t2m.sel(lat=lat, lon=lon, method="nearest") - 273.15
            right.plot(series.time, series, color=colour, linewidth=0.9, label=name)
        right.set(title="Nearest grid cell, all year", ylabel="°C")
        right.margins(x=0)
        right.grid(alpha=0.25)
        right.spines[["top", "right"]].set_visible(False)
        right.legend(frameon=False, ncols=2, loc="lower center", fontsize=8)
        right.set_ylim(bottom=right.get_ylim()[0] - 9)
        right.xaxis.set_major_locator(mpl.dates.MonthLocator(bymonth=(1, 4, 7, 10)))
        right.xaxis.set_major_formatter(mpl.dates.DateFormatter("%b"))
        figure.savefig(path, dpi=140)
        plt.close(figure)


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())


def main() -> None:
    if FOLDER.exists():
        shutil.rmtree(FOLDER)
    FOLDER.mkdir()
    source = FOLDER / f"t2m_{YEAR}.nc"
    write_archive(source)
    print(f"wrote    {source} ({size(source):,} bytes)")

    start = time.perf_counter()
    manifest = refindex.scan(source)
    milliseconds = 1e3 * (time.perf_counter() - start)
    print(f"scanned  {len(manifest.arrays)} arrays, {manifest.n_references} references in {milliseconds:.0f} ms")
    for name in ("archive.refindex", "archive.sqlite"):
        manifest.save(FOLDER / name)
        print(f"saved    {FOLDER / name} ({size(FOLDER / name):,} bytes)")
    print(f"\n{manifest.report}\n")

    for group in ("surface", "stations"):
        with xr.open_dataset(source, engine="netcdf4", group=group) as original:
            for name in ("archive.refindex", "archive.sqlite"):
                with xr.open_dataset(FOLDER / name, engine="refindex", group=group) as served:
                    compare(served, original, f"{name}:/{group}")

    with (
        xr.open_dataset(FOLDER / "archive.refindex", engine="refindex", group="surface") as surface,
        xr.open_dataset(FOLDER / "archive.refindex", engine="refindex", group="stations") as stations,
    ):
        print(f"\n{surface}\n")
        plot(surface, stations, FOLDER / "demo.png")
    print(f"plotted  {FOLDER / 'demo.png'}")


if __name__ == "__main__":
    main()
