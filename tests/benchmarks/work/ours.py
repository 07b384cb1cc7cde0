"""refindex."""

from __future__ import annotations

import json
import mmap
import zlib
from dataclasses import replace
from pathlib import Path

import dask
import dask.array
import h5py
import numpy as np

import refindex
from refindex.access.gather import LocalGatherer
from refindex.scan.hdf5.chunk_index import read_chunks
from refindex.scan.hdf5.object_header import read_layout
from refindex.scan.hdf5.superblock import read_superblock
from refindex.serve.codec_pipeline import open_group
from refindex.serve.keys import ManifestKeys
from refindex.serve.opening import Opening
from refindex.serve.zarr_store import RefindexStore
from tests.benchmarks import make
from tests.benchmarks.columns import digest
from tests.benchmarks.suite import TIMES
from tests.benchmarks.work import Expected, Found, Measured, bare


def _references(manifest: refindex.Manifest) -> int:
    """References of the variables ``v0``, ``v1``, ...: coordinates are kept differently by each library."""
    return sum(len(a.chunks) for path, a in manifest.arrays.items() if path.rpartition("/")[2].startswith("v"))


def scan(data: Path, expected: Expected, *, save: str | None = None, workers: int = 1, join: bool = False) -> Measured:
    def run(out: Path) -> Found:
        manifest = refindex.scan(data, workers=workers, join=join)
        if save is not None:
            manifest.save(out / save)
        if "digest" in expected:
            table = manifest.arrays["v0"].chunks
            return lambda: digest(table.offset, table.length), "digest"
        return lambda: _references(manifest), "chunks"

    return run


def index(data: Path, expected: Expected, *, filtered: bool) -> Measured:
    """The chunk table of an open dataset as numpy columns, read directly."""
    file = h5py.File(data, "r")
    dataset = file["v0"]
    with data.open("rb") as opened:
        mapping = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    gatherer = LocalGatherer(mapping, name=str(data))
    address = h5py.h5o.get_info(dataset.id).addr

    def run(out: Path) -> Found:
        for _ in range(TIMES):
            superblock = read_superblock(gatherer)
            layout = read_layout(gatherer, superblock, address + superblock.base_address)
            columns = read_chunks(
                gatherer, superblock, layout, shape=dataset.shape, max_shape=dataset.maxshape, filtered=filtered
            )
        return lambda: digest(columns.offset, columns.length), "digest"

    return run


def save(data: Path, expected: Expected, *, save: str) -> Measured:
    manifest = make.manifest(expected["references"])

    def run(out: Path) -> Found:
        manifest.save(out / save)
        return _references(manifest), "references"

    return run


def find(data: Path, expected: Expected, *, name: str) -> Measured:
    def run(out: Path) -> Found:
        with refindex.open(data / name) as archive:
            return int(archive.find("v0", [expected["wanted"]]).offset[0]), "offset"

    return run


def read(data: Path, expected: Expected, *, save: str = "archive.refindex", lazy: bool = False) -> Measured:
    stored = data.with_name(f"{data.stem}-{save}")
    refindex.scan(data, workers=1).save(stored, overwrite=True)

    def run(out: Path) -> Found:
        with refindex.open(stored) as archive:
            values = archive["v0"].compute() if lazy else open_group(archive.store)["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run


def read_parts(data: Path, expected: Expected, *, kind: str, count: int, lazy: bool = False) -> Measured:
    archive = refindex.open(data)
    view, array = archive["v0"], open_group(archive.store)["v0"]
    selections = bare.parts(kind, count, array.shape)
    assert isinstance(archive.store.keys, ManifestKeys)
    cache = archive.store.keys.resolver.selections.cache

    def run(out: Path) -> Found:
        cache.clear()  # every run reads and decodes
        if kind == "together":
            found = list(view.vindex[selections[0]].compute() if lazy else array.vindex[selections[0]])
        elif lazy:
            found = [view[selection].compute() for selection in selections]
        else:
            found = [array[selection] for selection in selections]
        return lambda: int(len(found) == count), "ok"

    return run


def read_adapted(data: Path, expected: Expected, *, kind: str) -> Measured:
    def run(out: Path) -> Found:
        with refindex.open(data / f"{kind}.refindex") as archive:
            values = open_group(archive.store)["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run


def read_dask(data: Path, expected: Expected, *, gigabytes: float) -> Measured:
    """An array of any size over one file: its chunks are those of the file again and again."""
    manifest = refindex.scan(data, workers=1)
    array = manifest.arrays["v0"]
    times = max(1, round(gigabytes * 1e9 / (4 * np.prod(array.shape))))
    document = {**array.json, "shape": [array.shape[0] * times, *array.shape[1:]]}
    table, size = array.chunks, array.grid.size
    repeated = refindex.ChunkTable.from_columns(
        chunk=np.arange(size * times),
        source=0,
        offset=np.tile(table.offset, times),
        length=np.tile(table.length, times),
    )
    large = replace(array, document=json.dumps(document), chunks=repeated)
    whole = replace(manifest, arrays={"v0": large})

    def run(out: Path) -> Found:
        store = RefindexStore(Opening(manifest=whole))
        values = dask.array.from_array(open_group(store)["v0"], chunks=(64, 512, 512))
        with dask.config.set(scheduler="threads"):
            total = float(values.mean(dtype="f8").compute())
        return lambda: int(200 < total < 400), "ok"

    return run
