"""kerchunk, with ``inline_threshold=0``: by default it would copy chunks of less than 500 bytes into its output."""

from __future__ import annotations

import zlib
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd  # noqa: F401 -- fsspec imports it late; imports are not what is measured
import ujson
import zarr
from fsspec.implementations.reference import LazyReferenceMapper
from kerchunk.combine import MultiZarrToZarr
from kerchunk.hdf import SingleHdf5ToZarr

from tests.benchmarks.columns import columns
from tests.benchmarks.work import Expected, Found, Measured

_RECORDS = 65_536
"""References in one Parquet file, the same as in a row group of refindex."""


def _translate(path: Path) -> dict[str, Any]:
    scanner = SingleHdf5ToZarr(str(path), inline_threshold=0, error="raise")
    try:
        return scanner.translate()
    finally:
        scanner.close()


def _count(found: list[dict[str, Any]]) -> int:
    keys = (key.rpartition("/")[::2] for references in found for key in references["refs"])
    return sum(1 for folder, name in keys if folder.startswith("v") and not name.startswith("."))


def _translate_and_count(path: Path) -> int:
    return _count([_translate(path)])


def scan(data: Path, expected: Expected, *, processes: int = 1) -> Measured:
    """In several processes, only counts come back: less than what somebody needs who joins the files."""

    def run(out: Path) -> Found:
        paths = sorted(data.glob("*.nc")) if data.is_dir() else [data]
        if processes > 1:
            with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as pool:
                count = sum(pool.map(_translate_and_count, paths, chunksize=16))
            return lambda: count, "chunks"
        found = [_translate(path) for path in paths]
        return lambda: _count(found), "chunks"

    return run


def join(data: Path, expected: Expected) -> Measured:
    def run(out: Path) -> Found:
        found = [_translate(path) for path in sorted(data.glob("*.nc"))]
        joined = MultiZarrToZarr(
            found, concat_dims=["time"], identical_dims=["lat", "lon"], remote_protocol="file"
        ).translate()
        with (out / "references.json").open("w") as file:
            ujson.dump(joined, file)
        return lambda: _count([joined]), "chunks"

    return run


def _references(references: int) -> dict[str, Any]:
    """What :func:`columns` has, as kerchunk keeps it."""
    array = {
        "zarr_format": 2,
        "shape": [references // 64, 16 * 64, 32],
        "chunks": [1, 16, 32],
        "dtype": "<f4",
        "fill_value": 0.0,
        "order": "C",
        "compressor": None,
        "filters": [{"id": "shuffle", "elementsize": 4}, {"id": "zlib", "level": 1}],
    }
    found: dict[str, Any] = {
        ".zgroup": ujson.dumps({"zarr_format": 2}),
        "v0/.zarray": ujson.dumps(array),
        "v0/.zattrs": ujson.dumps({"_ARRAY_DIMENSIONS": ["time", "lat", "lon"]}),
    }
    rows = zip(*(column.tolist() for column in columns(references).values()), strict=True)
    for chunk, source, offset, length in rows:
        found[f"v0/{chunk // 64}.{chunk % 64}.0"] = [f"file:///archive/day-{source:04d}.nc", offset, length]
    return {"version": 1, "refs": found}


def _write_parquet(references: dict[str, Any], path: str) -> None:
    """``kerchunk.df.refs_to_dataframe``, with pyarrow instead of fastparquet, which it has no option for."""
    mapper = LazyReferenceMapper.create(
        path, fs=fsspec.filesystem("file"), record_size=_RECORDS, categorical_threshold=10, engine="pyarrow"
    )
    for key in sorted(references["refs"]):
        mapper[key] = references["refs"][key]
    mapper.flush()


def save_json(data: Path, expected: Expected) -> Measured:
    references = _references(expected["references"])

    def run(out: Path) -> Found:
        with (out / "references.json").open("w") as file:
            ujson.dump(references, file)
        return lambda: _count([references]), "references"

    return run


def save_parquet(data: Path, expected: Expected) -> Measured:
    references = _references(expected["references"])

    def run(out: Path) -> Found:
        _write_parquet(references, str(out / "references.parq"))
        return lambda: _count([references]), "references"

    return run


def find(data: Path, expected: Expected) -> Measured:
    stored = data / "kerchunk.parq"
    if not stored.exists():
        _write_parquet(_references(expected["references"]), str(stored))

    def run(out: Path) -> Found:
        filesystem = fsspec.filesystem("file")
        references = LazyReferenceMapper(str(stored), fs=filesystem, engine="pyarrow")
        chunk = expected["wanted"]
        return int(references[f"v0/{chunk // 64}.{chunk % 64}.0"][1]), "offset"

    return run


def read(data: Path, expected: Expected) -> Measured:
    references = _translate(data)

    def run(out: Path) -> Found:
        filesystem = fsspec.filesystem(
            "reference", fo=references, asynchronous=True, remote_protocol="file", skip_instance_cache=True
        )
        store = zarr.storage.FsspecStore(filesystem, read_only=True, path="")
        values = zarr.open_group(store, mode="r", zarr_format=2)["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run
