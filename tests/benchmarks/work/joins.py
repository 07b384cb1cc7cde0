"""refindex: archives that are joined of many files."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import xarray as xr

import refindex
from refindex.join import JoinOptions, Member, join
from tests.benchmarks.work import Expected, Found, Measured


def join_only(data: Path, expected: Expected) -> Measured:
    """The join of files that are scanned already."""
    manifests = [refindex.scan(path) for path in sorted(data.glob("*.nc"))]

    def run(out: Path) -> Found:
        joined = join([Member.of_file(manifest) for manifest in manifests], JoinOptions()).to_manifest()
        return lambda: sum(len(a.chunks) for path, a in joined.arrays.items() if path.startswith("v")), "chunks"

    return run


def _archive(data: Path, save: str, files: int) -> Path:
    """The archive of all files but the last ``files``, beside them."""
    stored = data.with_name(f"{data.name}-{files}-{save}")
    if not stored.exists():
        paths = sorted(data.glob("*.nc"))
        refindex.scan(paths[: len(paths) - files], workers=1).save(stored)
    return stored


def append(data: Path, expected: Expected, *, save: str) -> Measured:
    """One file comes to all others. The archive is copied first, which is measured, too."""
    stored = _archive(data, save, 1)
    last = max(data.glob("*.nc"))

    def run(out: Path) -> Found:
        copy = out / save
        shutil.copytree(stored, copy) if stored.is_dir() else shutil.copy(stored, copy)
        refindex.append(copy, last, workers=1)
        with refindex.open(copy) as archive:
            found = sum(len(archive.find(path)) for path in archive.arrays if path.startswith("v"))
        return found, "chunks"

    return run


def open_dataset(data: Path, expected: Expected, *, save: str) -> Measured:
    """``xr.open_dataset`` of a joined archive, and the values of one chunk of one variable.

    xarray imports its engines, and dask, when it first opens something: that is not what is measured.
    """
    stored = _archive(data, save, 0)
    with xr.open_dataset(min(data.glob("*.nc")), engine="refindex", chunks={}) as dataset:
        dataset.v0[0].load()

    def run(out: Path) -> Found:
        with xr.open_dataset(stored, engine="refindex") as dataset:
            values = dataset.v0[0].load().values
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run
