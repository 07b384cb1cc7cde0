"""Scans over HTTP from a server of this machine that delays each request: h5py over fsspec, refindex, the others."""

from __future__ import annotations

import atexit
import subprocess
import sys
from pathlib import Path
from typing import Any

import fsspec
import fsspec.implementations.http
import h5py
import numpy as np

import refindex
from tests.benchmarks.columns import digest
from tests.benchmarks.work import Expected, Found, Measured

DELAY = 0.02


def _served(data: Path, *, several: bool = True) -> list[str]:
    """The URLs of a file, or of those in a folder, on a server of their own."""
    folder = data if data.is_dir() else data.parent
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.serving", str(folder), str(DELAY), *([] if several else ["single"])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    if process.stdout is None:
        raise RuntimeError("no pipe to the server")
    base = f"http://127.0.0.1:{int(process.stdout.readline())}"
    names = sorted(path.name for path in data.glob("*.nc")) if data.is_dir() else [data.name]
    return [f"{base}/{name}" for name in names]


def scan(data: Path, expected: Expected, *, several: bool = True, workers: int | None = 1) -> Measured:
    urls = _served(data, several=several)

    def run(out: Path) -> Found:
        manifest = refindex.scan(urls, workers=workers, join=False)
        if "digest" in expected:
            table = manifest.arrays["v0"].chunks
            return lambda: digest(table.offset, table.length), "digest"
        tables = [a.chunks for path, a in manifest.arrays.items() if path.rpartition("/")[2].startswith("v")]
        return lambda: sum(map(len, tables)), "chunks"

    return run


def h5py_fsspec(data: Path, expected: Expected) -> Measured:
    """What an index consists of, by the plainest means: attributes and chunk tables of all datasets."""
    urls = _served(data)

    def run(out: Path) -> Found:
        chunks: list[Any] = []
        for url in urls:
            with fsspec.open(url, "rb") as opened, h5py.File(opened, "r") as file:
                for name, dataset in file.items():
                    for key in dataset.attrs:
                        if key not in ("DIMENSION_LIST", "REFERENCE_LIST"):
                            dataset.attrs[key]
                    if dataset.chunks is not None:
                        dataset.id.chunk_iter(chunks.append if name.startswith("v") else lambda info: None)
        if "digest" in expected:
            chunks.sort(key=lambda chunk: chunk.chunk_offset)
            columns = [np.array([getattr(c, name) for c in chunks]) for name in ("byte_offset", "size")]
            return lambda: digest(*columns), "digest"
        return len(chunks), "chunks"

    return run


def kerchunk(data: Path, expected: Expected) -> Measured:
    from tests.benchmarks.work import kerchunk_peer

    urls = _served(data)

    def run(out: Path) -> Found:
        found = [kerchunk_peer._translate(url) for url in urls]  # type: ignore[arg-type]
        return lambda: kerchunk_peer._count(found), "chunks"

    return run


def virtualizarr(data: Path, expected: Expected) -> Measured:
    from obspec_utils.registry import ObjectStoreRegistry
    from obstore.store import HTTPStore
    from virtualizarr.parsers import HDFParser

    from tests.benchmarks.work import virtualizarr_peer

    urls = _served(data)
    base = urls[0].rpartition("/")[0]
    registry = ObjectStoreRegistry({base: HTTPStore.from_url(base, client_options={"allow_http": True})})

    def run(out: Path) -> Found:
        found = [HDFParser()(url, registry) for url in urls]
        return lambda: virtualizarr_peer._count(found), "chunks"

    return run
