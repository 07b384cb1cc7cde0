"""NetCDF classic files: headers, and the arrays that come of them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import netCDF4
import numpy as np

from refindex.model.manifest import Source
from refindex.scan.netcdf3 import scan_netcdf3
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import FindingError, Target
from tests.fuzz.targets.scratch import folder


def run(data: bytes) -> Any:
    path = folder("netcdf3") / "f.nc"
    path.write_bytes(data)
    manifest = scan_netcdf3(Source(url=f"file://{path}", size=len(data), mtime=0))
    for array in manifest.arrays.values():
        table = array.chunks
        referred = table.source >= 0
        ends = table.offset[referred].astype(object) + table.length[referred].astype(object)
        if len(ends) and max(ends) > len(data):
            raise FindingError(f"/{array.path} refers to byte {max(ends)} of {len(data)}")
    return manifest


def seeds() -> list[bytes]:
    return [
        _written(kind, fixed)
        for kind in ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA")
        for fixed in (0, 1)
    ]


def _written(kind: Any, fixed: int) -> bytes:
    with tempfile.TemporaryDirectory() as where:
        path = Path(where) / "f.nc"
        with netCDF4.Dataset(path, "w", format=kind) as file:
            file.createDimension("time", 4 if fixed else None)
            file.createDimension("x", 3)
            file.title = "a title"
            file.numbers = np.arange(3, dtype="f4")
            file.createVariable("time", "f8", ("time",))[:] = np.arange(4)
            made = file.createVariable("v", "i2", ("time", "x"), fill_value=-1)
            made.setncatts({"scale_factor": np.float32(0.5), "units": "K", "missing_value": np.int16(-9)})
            made[:] = np.arange(12).reshape(4, 3)
            file.createVariable("text", "S1", ("x",))[:] = np.array([b"a", b"b", b"c"])
            file.createVariable("large", "f8", ("time", "x", "x", "x"))[:] = np.zeros((4, 3, 3, 3))
            file.createVariable("scalar", "i4", ())[:] = 7
        return path.read_bytes()


def mutate(data: bytes, rng: Random) -> bytes:
    # The header is a few hundred bytes; what is behind it are values.
    return mutate_bytes(data, rng, lambda found, r: int(r.random() * min(len(found), 700)), resize=0.1)


TARGETS = [
    Target(
        name="netcdf3",
        run=run,
        seeds=seeds,
        mutate=mutate,
        modules=tuple(
            f"refindex.scan.netcdf3.{name}" for name in ("header", "layout", "variable", "scanner", "attributes")
        ),
    )
]
