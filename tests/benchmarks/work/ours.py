"""refindex."""

from __future__ import annotations

import mmap
import zlib
from pathlib import Path

import h5py

import refindex
from refindex.access.gather import LocalGatherer
from refindex.scan.hdf5.chunk_index import read_chunks
from refindex.scan.hdf5.object_header import read_layout
from refindex.scan.hdf5.superblock import read_superblock
from tests.benchmarks import make
from tests.benchmarks.columns import digest
from tests.benchmarks.suite import TIMES
from tests.benchmarks.work import Expected, Found, Measured


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


def read(data: Path, expected: Expected, *, save: str) -> Measured:
    stored = data.with_name(f"{data.stem}-{save}")
    refindex.scan(data, workers=1).save(stored, overwrite=True)

    def run(out: Path) -> Found:
        with refindex.open(stored) as archive:
            values = archive.group["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run
