"""A file with what real ones have."""

from __future__ import annotations

from pathlib import Path

import netCDF4
import numpy as np


def write_weather(path: Path, *, days: int = 6, seed: int = 0) -> Path:
    """A small NetCDF-4 file with what real ones have: groups, packing, characters, strings, unlimited time."""
    rng = np.random.default_rng(seed)
    with netCDF4.Dataset(path, "w") as data:
        data.title = "made-up weather"
        data.history = np.float32(1.5)
        data.createDimension("time", None)
        data.createDimension("lat", 10)
        data.createDimension("lon", 20)
        data.createDimension("nv", 2)
        time = data.createVariable("time", "f8", ("time",))
        time.units = "days since 2000-01-01"
        time[:] = np.arange(days)
        lat = data.createVariable("lat", "f4", ("lat",))
        lat.units = "degrees_north"
        lat[:] = np.linspace(-90, 90, 10)
        t2m = data.createVariable(
            "t2m", "i2", ("time", "lat", "lon"), zlib=True, shuffle=True, fill_value=-999, chunksizes=(2, 10, 20)
        )
        t2m.scale_factor = np.float32(0.01)
        t2m.add_offset = np.float32(273.15)
        t2m.valid_range = np.array([-900, 900], "i2")
        t2m[:] = np.ma.masked_less(rng.normal(273, 2, (days, 10, 20)), 270)
        rain = data.createVariable(
            "rain", "f4", ("time", "lat", "lon"), zlib=True, fletcher32=True, chunksizes=(4, 5, 10), fill_value=np.nan
        )
        rain[:] = rng.random((days, 10, 20))
        bounds = data.createVariable("time_bnds", "f8", ("time", "nv"))
        bounds[:] = np.stack([np.arange(days), np.arange(days) + 1], axis=1)
        station = data.createVariable("station", str, ("lat",))
        station[:] = np.array([f"Ort {i} ü" for i in range(10)], dtype=object)
        code = data.createVariable("code", "S1", ("lat", "nv"))
        code[:] = np.array([list("ab")] * 10, dtype="S1")
        group = data.createGroup("derived")
        mean = group.createVariable("mean", "f8", ("lat", "lon"))
        mean.cell_methods = "time: mean"
        mean[:] = rng.random((10, 20))
        sub = group.createGroup("deeper")
        sub.createVariable("count", "i8", ())[...] = 42
    return path
