"""Rewritten variables read as they did, bit for bit, by refindex, and by zarr-python alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr

import refindex
from refindex.serve.plain import PlainStore
from tests.join.archives import Part, expected, write_archive

COMPOUND = np.dtype([("a", "<i2"), ("b", "<f8")])
KINDS: dict[str, np.dtype[Any]] = {
    name: np.dtype(name) for name in ("<f4", ">f8", "<i2", ">u4", "u1", "<c8", "S5", "S1", "?")
} | {"compound": COMPOUND}
CODECS = ("blosc-zstd:3", "zstd:5", "blosc-lz4:1", "none")
CHUNKS = [
    ({"t": 7, "y": 3, "x": 4}, "auto"),
    ({"t": -1, "y": 1, "x": 1}, {"y": 4, "x": -1}),
    ({"t": 1, "y": -1, "x": -1}, None),
    ({"t": 2, "y": 5, "x": 3}, {"t": 4, "y": 10, "x": 9}),
]


def write(path: Path, dtype: np.dtype[Any], *, absent: bool = True) -> np.ndarray[Any, Any]:
    """A dataset in chunks of (2, 4, 5), of which some were never written; returns what h5py reads."""
    random = np.random.default_rng(1)
    shape = (9, 10, 11)
    raw = random.bytes(int(np.prod(shape)) * dtype.itemsize)
    values = np.frombuffer(raw, dtype=dtype if dtype.kind != "b" else "u1").reshape(shape)
    if dtype.kind == "b":
        values = (values > 127).astype(bool)
    if dtype.kind == "S":
        values = np.array([str(n % 997).encode() for n in range(int(np.prod(shape)))], dtype).reshape(shape)
    with h5py.File(path, "w") as file:
        options: dict[str, Any] = {} if dtype.names or dtype.kind in "Sb" else {"fillvalue": dtype.type(7)}
        made = file.create_dataset("v", shape, dtype, chunks=(2, 4, 5), compression="gzip", **options)
        made.attrs["units"], made.attrs["number"] = "K", np.float32(1.5)
        for axis, name in enumerate("tyx"):
            made.dims[axis].label = name
            scale = file.create_dataset(name, data=np.arange(shape[axis]))
            scale.make_scale(name)
            made.dims[axis].attach_scale(scale)
        if absent:
            made[:4] = values[:4]
            made[:, :, 7:9] = values[:, :, 7:9]
        else:
            made[...] = values
        return np.asarray(made[...])


def bits(values: Any) -> bytes:
    return np.asarray(values).astype(np.asarray(values).dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("chunks", "shards"), CHUNKS)
def test_values_stay_bit_for_bit(tmp_path: Path, kind: str, chunks: Any, shards: Any) -> None:
    wanted = write(tmp_path / "a.h5", KINDS[kind])
    refindex.scan(tmp_path / "a.h5").save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex") as archive:
        old = archive.nodes["v"]
        there = np.zeros(wanted.shape, dtype=bool)
        for chunk in archive.find("v").chunk.tolist():
            lengths = zip(old.grid.origin(chunk), old.grid.chunk_shape(chunk), strict=True)
            there[tuple(slice(a, a + n) for a, n in lengths)] = True
    assert there.all() == (wanted.nbytes <= 1024)  # which are kept in the manifest as a whole
    codec = CODECS[CHUNKS.index((chunks, shards))]
    done = refindex.optimize(tmp_path / "a.refindex", "v", chunks=chunks, shards=shards, codec=codec)
    assert done.version == 1
    (array,) = done.arrays
    with refindex.open(tmp_path / "a.refindex") as archive:
        new = archive.nodes["v"]
        assert bits(archive["v"].compute()) == bits(wanted)
        assert bits(archive.group["v"][...]) == bits(wanted)
        # Without what refindex adds to zarr-python: chunk by chunk, through the store alone.
        assert bits(zarr.open_array(archive.store, path="v", mode="r")[...]) == bits(wanted)
        assert bits(zarr.open_array(archive.plain_store, path="v", mode="r")[...]) == bits(wanted)
        assert isinstance(archive.plain_store, PlainStore)
        table = archive.find("v")
        assert all(new.is_native(int(c), int(e)) for c, e in zip(table.chunk, table.encoding, strict=True))
        assert len(archive.sources) == 1 + array.files
        assert archive.sources[0].url.endswith("a.h5")
        # Absent are those chunks of which no element was there.
        for n in range(new.grid.size):
            at = tuple(slice(a, a + b) for a, b in zip(new.grid.origin(n), array.chunks, strict=True))
            assert (n in table.chunk) == there[at].any()
    assert new.grid.chunk_shape() == array.chunks
    assert {k: v for k, v in new.json.items() if k not in ("chunk_grid", "codecs")} == {
        k: v for k, v in old.json.items() if k not in ("chunk_grid", "codecs")
    }
    assert new.attribute_types == old.attribute_types
    # The shards alone are a Zarr array to anyone who has their document.
    folder = Path(array.folder)
    document = json.loads((folder / "shards.json").read_text())["document"]
    (folder / "zarr.json").write_text(json.dumps(document))
    assert bits(zarr.open_array(folder, mode="r")[...]) == bits(wanted)


def test_what_is_packed_stays_packed(tmp_path: Path) -> None:
    parts = [Part(start=0, length=4, dtype="i2", scale=0.5), Part(start=4, length=4, dtype="i2", scale=0.5)]
    files = write_archive(tmp_path / "files", parts)
    refindex.scan(files).save(tmp_path / "a.refindex")
    refindex.optimize(tmp_path / "a.refindex", "x", chunks={"time": 8, "lon": 7})
    with refindex.open(tmp_path / "a.refindex") as archive:
        assert archive["x"].dtype == "i2"
        assert archive.nodes["x"].attributes["scale_factor"] == 0.5
        xr.testing.assert_equal(archive.to_xarray().load(), expected(files))


def test_what_is_packed_differently_becomes_what_is_served(tmp_path: Path) -> None:
    parts = [
        Part(start=0, length=4, dtype="i2", scale=0.5, fill=-1),
        Part(start=4, length=4, dtype="i2", scale=0.25, fill=-2),
    ]
    files = write_archive(tmp_path / "files", parts)
    refindex.scan(files).save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex") as archive:
        before = archive["x"].compute()
    refindex.optimize(tmp_path / "a.refindex", "x", chunks={"time": 8, "lat": 2, "lon": 7})
    with refindex.open(tmp_path / "a.refindex") as archive:
        assert archive["x"].dtype.kind == "f"
        assert bits(archive["x"].compute()) == bits(before)
        xr.testing.assert_equal(archive.to_xarray().load(), expected(files))


def test_memory_is_bounded(tmp_path: Path) -> None:
    """An array, and even a shard of it, that is far larger than what may be held."""
    import tracemalloc

    with netCDF4.Dataset(tmp_path / "a.nc", "w") as nc:
        for name, size in (("time", 64), ("lat", 256), ("lon", 1024)):
            nc.createDimension(name, size)
        v = nc.createVariable("v", "f4", ("time", "lat", "lon"), zlib=True, complevel=1, chunksizes=(1, 256, 1024))
        for t in range(64):
            v[t] = t + np.arange(256 * 1024).reshape(256, 1024) % 97
    refindex.scan(tmp_path / "a.nc").save(tmp_path / "a.refindex")
    total, memory = 64 << 20, 12 << 20
    tracemalloc.start()
    try:
        done = refindex.optimize(
            tmp_path / "a.refindex", "v", chunks={"time": 64, "lat": 16, "lon": 32}, shards={"lat": -1, "lon": -1},
            memory=memory, workers=2,
        )  # fmt: skip
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert done.arrays[0].files == 1
    assert done.arrays[0].nbytes == total
    assert peak < 2 * memory
    with refindex.open(tmp_path / "a.refindex") as archive, netCDF4.Dataset(tmp_path / "a.nc") as nc:
        assert np.array_equal(archive["v"].compute(), nc["v"][...])
