"""The same ranges over HTTP with a delay: by aiohttp alone, and as an array by refindex."""

from __future__ import annotations

import asyncio
import atexit
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import aiohttp
import fsspec.implementations.http  # noqa: F401 -- fsspec imports it late; imports are not what is measured
import numpy as np

import refindex
from refindex.model.zarr_v3 import dumps
from refindex.serve.codec_pipeline import open_group
from refindex.serve.keys import ManifestKeys
from refindex.serve.lazy import LazyArray
from refindex.serve.opening import Opening
from refindex.serve.zarr_store import RefindexStore
from tests.benchmarks.work import Expected, Found, Measured

DELAY = 0.02


def _serve(folder: Path) -> str:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.slow_server", str(folder), str(DELAY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(process.kill)
    assert process.stdout is not None
    return f"http://127.0.0.1:{int(process.stdout.readline())}"


def _manifest(data: Path, files: int, base: str) -> refindex.Manifest:
    """One array of the chunks of all files, one after the other."""
    parts = [refindex.scan(data / f"{n}.h5", workers=1) for n in range(files)]
    tables = [part.arrays["v0"].chunks for part in parts]
    array = parts[0].arrays["v0"]
    chunks = refindex.ChunkTable.from_columns(
        chunk=np.arange(sum(map(len, tables))),
        source=np.repeat(np.arange(files), [len(table) for table in tables]),
        offset=np.concatenate([table.offset for table in tables]),
        length=np.concatenate([table.length for table in tables]),
    )
    document = {**array.json, "shape": [len(chunks), *array.shape[1:]]}
    sources = tuple(replace(part.sources[0], url=f"{base}/{n}.h5") for n, part in enumerate(parts))
    long = replace(array, document=dumps(document), chunks=chunks)
    return replace(parts[0], arrays={"v0": long}, sources=sources)


def read(data: Path, expected: Expected, *, lazy: bool = False) -> Measured:
    manifest = _manifest(data, expected["files"], _serve(data))
    store = RefindexStore(Opening(manifest=manifest))
    array = open_group(store)["v0"]
    view = LazyArray(array, store.nodes["v0"])

    def run(out: Path) -> Found:
        if lazy:
            found = (view if expected["files"] == 1 else view[:, 5, 5]).compute()
        else:
            found = array[...] if expected["files"] == 1 else array[:, 5, 5]
        return lambda: int(len(found) == expected["chunks"] and bool(found.any())), "ok"

    return run


def bare(data: Path, expected: Expected) -> Measured:
    manifest = _manifest(data, expected["files"], _serve(data))
    store = RefindexStore(Opening(manifest=manifest))
    assert isinstance(store.keys, ManifestKeys)
    reader, node = store.keys.resolver.selections, store.nodes["v0"]
    from refindex.serve.places import Places

    count = expected["chunks"]
    whole = (slice(0, 1), *(slice(0, n) for n in node.shape[1:]))
    places = Places(
        chunks=np.arange(count), inside=[whole] * count, outside=[whole] * count, partial=np.zeros(count, dtype=bool)
    )
    requests = reader.plan(node, places).remote
    ranges = list(zip(requests.source.tolist(), requests.start.tolist(), requests.stop.tolist(), strict=True))

    async def fetch() -> int:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=128)) as session:

            async def one(source: int, start: int, stop: int) -> int:
                headers = {"Range": f"bytes={start}-{stop - 1}"}
                async with session.get(manifest.sources[source].url, headers=headers) as response:
                    return len(await response.read())

            return sum(await asyncio.gather(*(one(*part) for part in ranges)))

    def run(out: Path) -> Found:
        return int(asyncio.run(fetch()) == requests.nbytes), "ok"

    return run
