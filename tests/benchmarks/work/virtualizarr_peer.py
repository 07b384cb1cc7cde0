"""VirtualiZarr."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr import open_virtual_dataset, open_virtual_mfdataset
from virtualizarr.manifests import ManifestArray, ManifestStore
from virtualizarr.parsers import HDFParser

from tests.benchmarks.work import Expected, Found, Measured


def _arrays(found: Any) -> dict[str, Any]:
    if isinstance(found, ManifestStore):
        return dict(found._group.arrays)
    return {str(name): variable._data for name, variable in found.variables.items()}


def _count(found: list[Any]) -> int:
    arrays = (item for one in found for item in _arrays(one).items())
    return sum(
        math.prod(array.manifest.shape_chunk_grid)
        for name, array in arrays
        if name.startswith("v") and isinstance(array, ManifestArray)
    )


def scan(data: Path, expected: Expected, *, dataset: bool = False) -> Measured:
    registry = ObjectStoreRegistry({"file://": LocalStore()})

    def run(out: Path) -> Found:
        paths = sorted(data.glob("*.nc")) if data.is_dir() else [data]
        found: list[Any] = []
        for path in paths:
            parser = HDFParser()
            if dataset:
                found.append(open_virtual_dataset(path.as_uri(), registry=registry, parser=parser))
            else:
                found.append(parser(path.as_uri(), registry))
        return lambda: _count(found), "chunks"

    return run


def join_by_coordinates(data: Path, expected: Expected) -> Measured:
    """What people write: coordinates are read, and put the files in order."""
    registry = ObjectStoreRegistry({"file://": LocalStore()})

    def run(out: Path) -> Found:
        joined = open_virtual_mfdataset(
            [path.as_uri() for path in sorted(data.glob("*.nc"))],
            registry=registry,
            parser=HDFParser(),
            combine="by_coords",
            coords="minimal",
            data_vars="minimal",
            compat="override",
            combine_attrs="drop_conflicts",
        )
        joined.vz.to_kerchunk(str(out / "references.json"), format="json")
        return lambda: _count([joined]), "chunks"

    return run


def join(data: Path, expected: Expected) -> Measured:
    """The least that it takes: coordinates are not read, the files lie in the order of their names."""
    registry = ObjectStoreRegistry({"file://": LocalStore()})

    def run(out: Path) -> Found:
        parser = HDFParser()
        found = [
            open_virtual_dataset(path.as_uri(), registry=registry, parser=parser, loadable_variables=[])
            for path in sorted(data.glob("*.nc"))
        ]
        joined = xr.concat(
            found, "time", coords="minimal", data_vars="minimal", compat="override", combine_attrs="drop_conflicts"
        )
        joined.vz.to_kerchunk(str(out / "references.json"), format="json")
        return lambda: _count([joined]), "chunks"

    return run


def read(data: Path, expected: Expected) -> Measured:
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    store = HDFParser()(data.as_uri(), registry)

    def run(out: Path) -> Found:
        values = zarr.open_group(store, mode="r")["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run
