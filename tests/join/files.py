"""NetCDF files of any content in one call, and what xarray makes of several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import xarray as xr

from tests.join.archives import assert_same, open_manifest

__all__ = ["Var", "assert_same", "decoded", "joined", "open_manifest", "series", "write"]


@dataclass(frozen=True, kw_only=True)
class Var:
    """A variable: its dimensions, values as they are stored, attributes, and options of ``createVariable``."""

    dims: tuple[str, ...] = ()
    values: Any = None
    attrs: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


def write(
    path: Path, variables: Mapping[str, Var], attrs: Mapping[str, Any] | None = None, unlimited: Sequence[str] = ()
) -> Path:
    """Write a file; ``a/b`` is the variable ``b`` of the group ``a``, whose new dimensions are its own."""
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts(dict(attrs or {}))
        for name, var in variables.items():
            folder, _, own = name.rpartition("/")
            group = file.createGroup(folder) if folder else file
            values = np.asarray(var.values)
            for dim, size in zip(var.dims, values.shape, strict=True):
                if not _sees(group, dim):
                    group.createDimension(dim, None if dim in unlimited else size)
            text = values.dtype.kind in "OUT"
            options = dict(var.options) | ({"endian": "big"} if values.dtype.str[0] == ">" else {})
            made = group.createVariable(own, str if text else values.dtype, var.dims, **options)
            made.set_auto_maskandscale(False)
            made.setncatts(dict(var.attrs))
            if values.size:
                made[...] = values.astype(object) if text and values.ndim else values.item() if text else values
    return path


def _sees(group: Any, dim: str) -> bool:
    while group is not None:
        if dim in group.dimensions:
            return True
        group = group.parent
    return False


def series(start: int, length: int, *, seed: int = 0, units: str = "days since 2000-01-01", **x: Any) -> dict[str, Var]:
    """``x(time, lat)`` and its coordinates."""
    values = np.random.default_rng((seed, start)).integers(1, 100, (length, 3)).astype(x.pop("dtype", "f4"))
    return {
        "time": Var(dims=("time",), values=np.arange(start, start + length, dtype="f8"), attrs={"units": units}),
        "lat": Var(dims=("lat",), values=np.arange(3.0)),
        "x": Var(dims=("time", "lat"), values=values, **x),
    }


def decoded(path: Path, **options: Any) -> xr.Dataset:
    """A file as xarray reads it, closed at once."""
    with xr.open_dataset(path, engine="netcdf4", **options) as opened:
        return opened.load()


def joined(paths: Sequence[Path], dim: str = "time", **options: Any) -> xr.Dataset:
    """The files one after the other, each decoded by itself, in the order of the coordinate."""
    return xr.concat([decoded(path) for path in paths], dim, **options).sortby(dim)
