"""Baseline: h5py with nothing around it."""

from __future__ import annotations

import math
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.benchmarks.columns import digest
from tests.benchmarks.suite import TIMES
from tests.benchmarks.work import Expected, Found, Measured


def chunk_iter(data: Path, expected: Expected, *, collect: bool = False) -> Measured:
    def run(out: Path) -> Found:
        with h5py.File(data, "r") as file:
            dataset = file["v0"].id
            if collect:
                chunks: list[Any] = []
                dataset.chunk_iter(chunks.append)
                return len(chunks), "chunks"
            dataset.chunk_iter(lambda info: None)
            # All are there; libhdf5 would count them by iterating once more.
            return math.prod(file["v0"].shape) // math.prod(file["v0"].chunks), "chunks"

    return run


def chunk_columns(data: Path, expected: Expected, *, collect: bool = True) -> Measured:
    """The chunk table of an open dataset as numpy columns, by libhdf5."""
    dataset = h5py.File(data, "r")["v0"]

    def run(out: Path) -> Found:
        for _ in range(TIMES):
            chunks: list[Any] = []
            if not collect:
                dataset.id.chunk_iter(lambda info: None)
                continue
            dataset.id.chunk_iter(chunks.append)
            offset = np.array([chunk.byte_offset for chunk in chunks], dtype=np.int64)
            length = np.array([chunk.size for chunk in chunks], dtype=np.int64)
            place = np.array([chunk.chunk_offset for chunk in chunks], dtype=np.int64)
        if not collect:
            return math.prod(dataset.shape) // math.prod(dataset.chunks), "chunks"
        order = np.lexsort(place.T[::-1])
        return lambda: digest(offset[order], length[order]), "digest"

    return run


def chunk_iter_all(data: Path, expected: Expected) -> Measured:
    def run(out: Path) -> Found:
        found = 0

        def visit(info: h5py.h5d.StoreInfo) -> None:
            nonlocal found
            found += 1

        for path in sorted(data.glob("*.nc")):
            with h5py.File(path, "r") as file:
                for name, dataset in file.items():
                    if dataset.chunks is not None:
                        dataset.id.chunk_iter(visit if name.startswith("v") else lambda info: None)
        return found, "chunks"

    return run


def read(data: Path, expected: Expected) -> Measured:
    def run(out: Path) -> Found:
        with h5py.File(data, "r") as file:
            values = file["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run


def read_netcdf4(data: Path, expected: Expected) -> Measured:
    import netCDF4

    def run(out: Path) -> Found:
        with netCDF4.Dataset(data) as file:
            file.set_auto_maskandscale(False)
            values = file["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run


def parts(kind: str, count: int, shape: tuple[int, ...]) -> list[Any]:
    """Selections of an array of three dimensions; ``together`` is one of all points."""
    places = np.random.default_rng(1).integers(0, shape, size=(count, 3))
    match kind:
        case "maps":
            return [(int(t),) for t, _, _ in places]
        case "series":
            return [(slice(None), int(y), int(x)) for _, y, x in places]
        case "points":
            return [tuple(map(int, place)) for place in places]
    return [tuple(places.T)]


def read_parts(data: Path, expected: Expected, *, kind: str, count: int) -> Measured:
    dataset = h5py.File(data, "r")["v0"]
    selections = parts(kind, count, dataset.shape)
    if kind == "together":  # h5py has no selection of points
        selections = list(zip(*(axis.tolist() for axis in selections[0]), strict=True))

    def run(out: Path) -> Found:
        found = [dataset[selection] for selection in selections]
        return lambda: int(len(found) == len(selections)), "ok"

    return run
