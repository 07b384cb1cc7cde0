"""VirtualiZarr."""

from __future__ import annotations

import itertools
import math
import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
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


def _parse(path: Path, registry: ObjectStoreRegistry, *, dataset: bool) -> Any:
    parser = HDFParser()
    if dataset:
        return open_virtual_dataset(path.as_uri(), registry=registry, parser=parser)
    return parser(path.as_uri(), registry)


def _parse_and_count(paths: list[Path], dataset: bool) -> int:
    registry = ObjectStoreRegistry({"file://": LocalStore()})
    return sum(_count([_parse(path, registry, dataset=dataset)]) for path in paths)


def scan(data: Path, expected: Expected, *, dataset: bool = False, processes: int = 1) -> Measured:
    """In several processes, only counts come back: less than what somebody needs who joins the files."""
    registry = ObjectStoreRegistry({"file://": LocalStore()})

    def run(out: Path) -> Found:
        paths = sorted(data.glob("*.nc")) if data.is_dir() else [data]
        if processes > 1:
            with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as pool:
                batches = [paths[at : at + 16] for at in range(0, len(paths), 16)]
                count = sum(pool.map(_parse_and_count, batches, itertools.repeat(dataset)))
            return lambda: count, "chunks"
        found = [_parse(path, registry, dataset=dataset) for path in paths]
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
