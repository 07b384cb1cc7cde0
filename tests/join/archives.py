"""Archives of NetCDF-4 files that differ in what files of real archives differ in, and what xarray reads of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from refindex.model.manifest import Manifest
from refindex.serve.opening import Opening, open_keys
from refindex.serve.xarray_engine import RefindexBackendEntrypoint
from refindex.serve.zarr_store import RefindexStore


@dataclass(frozen=True, kw_only=True)
class Part:
    """One file of an archive: ``length`` steps of ``x(time, lat, lon)`` from ``start`` on."""

    start: int
    length: int
    dtype: str = "f4"
    endian: str = "little"
    chunks: tuple[int, int, int] | None = (2, 3, 40)
    zlib: bool = True
    shuffle: bool = True
    fletcher32: bool = False
    scale: float | None = None
    offset: float | None = None
    packing_dtype: str = "f8"
    fill: int | None = None
    units: str = "hours since 2000-01-01"
    calendar: str = "standard"
    time_dtype: str = "f8"
    holes: bool = False


SHAPE = (5, 70)
"""A step of one byte an element is small enough for the manifest, several are not: archives mix both."""


def write_part(path: Path, part: Part, seed: int = 0) -> Path:
    """Write one file; values are random integers, so that every type holds them."""
    random = np.random.default_rng((seed, part.start))
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", part.length)
        file.createDimension("lat", SHAPE[0])
        file.createDimension("lon", SHAPE[1])
        time = file.createVariable("time", part.time_dtype, ("time",))
        time.units, time.calendar = part.units, part.calendar
        origin = netCDF4.date2num(
            netCDF4.num2date(0, "hours since 2000-01-01", part.calendar), part.units, part.calendar
        )
        hours = {"hours": 1, "days": 24, "minutes": 1 / 60}[part.units.split()[0]]
        time[:] = origin + np.arange(part.start, part.start + part.length) / hours
        for name, size in zip(("lat", "lon"), SHAPE, strict=True):
            file.createVariable(name, "f8", (name,))[:] = np.arange(size)
        options: dict[str, Any] = {"endian": part.endian, "fill_value": part.fill}
        stored = np.dtype(part.dtype).newbyteorder(">" if part.endian == "big" else "<")
        if part.chunks is not None:
            chunks = tuple(min(c, n) for c, n in zip(part.chunks, (max(part.length, 1), *SHAPE), strict=True))
            options |= {
                "chunksizes": chunks,
                "zlib": part.zlib,
                "shuffle": part.shuffle,
                "fletcher32": part.fletcher32,
            }
        x = file.createVariable("x", stored, ("time", "lat", "lon"), **options)
        if part.scale is not None:
            x.setncattr("scale_factor", np.dtype(part.packing_dtype).type(part.scale))
        if part.offset is not None:
            x.setncattr("add_offset", np.dtype(part.packing_dtype).type(part.offset))
        x.units = "K"
        x.set_auto_maskandscale(False)
        values = random.integers(0, 100, size=(part.length, *SHAPE))
        if part.holes:
            x[:1] = values[:1]
        else:
            x[:] = values
    return path


def write_archive(folder: Path, parts: Sequence[Part], seed: int = 0) -> list[Path]:
    """Write the files of an archive, named by their first step."""
    folder.mkdir(parents=True, exist_ok=True)
    return [write_part(folder / f"{part.start:05d}.nc", part, seed) for part in parts]


def open_manifest(manifest: Manifest, **options: Any) -> xr.Dataset:
    """A manifest in memory as a dataset."""
    opening = Opening(manifest=manifest)
    store: Any = RefindexStore(opening, keys=open_keys(opening))
    return xr.open_dataset(store, engine=RefindexBackendEntrypoint, **options)


def expected(paths: Sequence[Path], dim: str = "time", **options: Any) -> xr.Dataset:
    """What xarray makes of the files: each decoded by itself, one after the other."""
    each = []
    for path in paths:
        with xr.open_dataset(path, engine="netcdf4", **options) as opened:
            each.append(opened.load())
    return xr.concat(
        each,
        dim,
        data_vars="minimal",
        coords="minimal",
        compat="override",
        combine_attrs="drop_conflicts",
        join="override",
    ).sortby(dim)


def assert_same(actual: xr.Dataset, wanted: xr.Dataset, names: Sequence[str] = ("x", "time", "lat", "lon")) -> None:
    """Equal values, NaN for NaN, and equal types."""
    for name in names:
        one, two = actual[name], wanted[name]
        assert one.dims == two.dims, name
        assert one.dtype == two.dtype, (name, one.dtype, two.dtype)
        np.testing.assert_array_equal(one.values, two.values, err_msg=name, strict=True)
