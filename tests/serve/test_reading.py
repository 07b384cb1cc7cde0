"""Reading chunks: native, adapted, absent, and every way in which a source can fail."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import zarr
from oracle import compare_file

import refindex
from refindex import ChunkGrid, ChunkTable, Encoding, Filter, Manifest, Status
from refindex.model.dtype import Leaf
from refindex.model.encoding import native_codecs
from refindex.model.manifest import EMPTY_ROOT, Array, ScanReport, Source
from refindex.model.zarr_v3 import array_document, dumps
from refindex.serve.keys import ManifestKeys
from refindex.serve.opening import Opening
from refindex.serve.resolver import Resolver
from refindex.serve.zarr_store import RefindexStore
from refindex.storage import MemoryReader


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as f:
        f.create_dataset("deflate", data=np.arange(4000).reshape(40, 100), chunks=(10, 50), compression="gzip")
        f.create_dataset("sum", data=np.arange(4000.0).reshape(40, 100), chunks=(10, 50), fletcher32=True)
        f.create_dataset("plain", data=np.arange(4000, dtype="f4").reshape(40, 100))
        f.create_dataset("lzf", data=np.arange(4000).reshape(40, 100), chunks=(10, 50), compression="lzf")
    return path


def keep_time(path: Path, change) -> None:
    """Change a file behind the back of its modification time."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    change(data)
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def offsets(path: Path, name: str) -> tuple[int, int]:
    table = refindex.scan(path).arrays[name].chunks
    return int(table.offset[0]), int(table.length[0])


@pytest.mark.parametrize("name", ["deflate", "sum", "lzf"])
def test_damaged_chunks_raise(file: Path, name: str) -> None:
    offset, length = offsets(file, name)
    archive = refindex.open(file)
    keep_time(
        file,
        lambda data: data.__setitem__(
            slice(offset, offset + length), b"\xa5\x5a" * (length // 2) + b"\1" * (length % 2)
        ),
    )
    with pytest.raises(Exception, match=r"(?i)checksum|decompress|filter|incorrect header|deflate|error -3") as caught:
        archive.group[name][...]
    assert not isinstance(caught.value, AssertionError)
    # Other chunks are not touched by it.
    assert archive.group[name][20:, :].shape == (20, 100)
    archive.close()


def test_a_damaged_adapted_chunk_names_file_and_key(file: Path) -> None:
    offset, length = offsets(file, "lzf")
    archive = refindex.open(file)
    keep_time(file, lambda data: data.__setitem__(slice(offset, offset + length), b"\xff" * length))
    with pytest.raises(refindex.DecodeError, match=rf"/lzf/c/0/0: {length} bytes at {offset} of {file}: libhdf5"):
        archive.group["lzf"][0, 0]
    archive.close()


@pytest.mark.parametrize("stored", [False, True])
def test_a_changed_source_raises(file: Path, tmp_path: Path, stored: bool) -> None:
    where = file
    if stored:
        where = tmp_path / "a.refindex"
        refindex.scan(file).save(where)
    with (
        refindex.open(where) as archive,
        refindex.open(where, stale="warn") as warned,
        refindex.open(where, stale="ignore") as ignored,
    ):
        os.utime(file, ns=(1, 1))
        if not stored:
            return  # the scan on the spot saw the file as it is
        with pytest.raises(refindex.StaleSourceError, match=r"modified .* when scanned"):
            archive.group["plain"][...]
        with pytest.warns(UserWarning, match="has changed"):
            warned.group["plain"][...]
        assert ignored.group["plain"][0, 5] == 5


def test_a_shorter_source_raises(file: Path, tmp_path: Path) -> None:
    refindex.scan(file).save(tmp_path / "a.sqlite")
    os.truncate(file, 5000)
    with refindex.open(tmp_path / "a.sqlite") as archive, pytest.raises(refindex.StaleSourceError, match="size was"):
        archive.group["plain"][...]
    with (
        refindex.open(tmp_path / "a.sqlite", stale="ignore") as archive,
        pytest.raises(refindex.SourceError, match="got"),
    ):
        archive.group["plain"][...]


def test_a_missing_source_raises(file: Path, tmp_path: Path) -> None:
    """zarr takes a missing key for fill values: a missing source must never look like one."""
    refindex.scan(file).save(tmp_path / "a.refindex")
    file.unlink()
    with refindex.open(tmp_path / "a.refindex") as archive:
        with pytest.raises(refindex.SourceError, match="f.h5: no such file"):
            archive.group["deflate"][...]
        with pytest.raises(refindex.SourceError, match="f.h5: no such file"):
            archive.to_xarray()["deflate"].load()
        import xarray as xr

        with pytest.raises(refindex.SourceError, match="f.h5: no such file"):
            xr.open_zarr(f"refindex::{tmp_path / 'a.refindex'}")["deflate"].load()


def test_chunks_that_skip_filters_are_adapted(tmp_path: Path) -> None:
    path = tmp_path / "masks.h5"
    values = np.arange(6000, dtype="<i4").reshape(60, 100)
    with h5py.File(path, "w") as f:
        data = f.create_dataset("d", (60, 100), "<i4", chunks=(20, 50), shuffle=True, compression="gzip")
        data[...] = values
        data.id.write_direct_chunk((0, 0), values[:20, :50].tobytes(), filter_mask=3)
        import zlib

        data.id.write_direct_chunk((20, 50), zlib.compress(values[20:40, 50:].tobytes()), filter_mask=1)
    manifest = refindex.scan(path)
    assert len(manifest.arrays["d"].encodings) == 3
    assert manifest.report.counts == {Status.ADAPTED: 1}
    verdict = compare_file(str(path))
    assert verdict.right == ["d"]
    assert not verdict.wrong


def test_the_short_last_chunk_of_contiguous_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refindex.scan.hdf5 import stored as module

    def small(*args, **kwargs):
        return split(*args, target=1000, **kwargs)

    split = module.split_contiguous
    path = tmp_path / "c.h5"
    with h5py.File(path, "w") as f:
        f["prime"] = np.arange(101 * 7, dtype=">f4").reshape(101, 7)
        f["even"] = np.arange(1600.0).reshape(40, 40)
        f["deep"] = np.arange(3 * 5 * 400, dtype="i2").reshape(3, 5, 400)
        f["line"] = np.arange(1001, dtype="i8")
    monkeypatch.setattr(module, "split_contiguous", small)
    manifest = refindex.scan(path)
    statuses = {e.path: e.status for e in manifest.report}
    assert statuses == {
        "/prime": Status.ADAPTED,
        "/even": Status.NATIVE,
        "/deep": Status.NATIVE,
        "/line": Status.NATIVE,
    }
    assert len(manifest.arrays["deep"].chunks) == 15
    assert sorted(compare_file(str(path)).right) == ["deep", "even", "line", "prime"]


def test_rectilinear_chunks_of_many_encodings(tmp_path: Path) -> None:
    """What joining will make: chunks of unequal length, byte order, compression; one stored larger than its place."""
    import zlib

    values = np.arange(12 * 7, dtype="<f4").reshape(12, 7)
    pieces = [
        (values[:3].astype("<f4"), Encoding(type=Leaf("<f4"), shape=(3, 7))),
        (values[3:8].astype(">f4"), Encoding(type=Leaf(">f4"), shape=(5, 7))),
        (values[8:9], Encoding(type=Leaf("<f4"), shape=(1, 7), filters=(Filter(id=1, values=(5,)),))),
        (np.vstack([values[9:], np.full((2, 7), -1, "<f4")]), Encoding(type=Leaf("<f4"), shape=(5, 7))),
    ]
    blobs = [zlib.compress(data.tobytes()) if encoding.filters else data.tobytes() for data, encoding in pieces]
    (tmp_path / "s").write_bytes(b"".join(blobs))
    lengths = np.array([len(b) for b in blobs])
    grid = ChunkGrid(shape=(12, 7), edges=(((3, 1), (5, 1), (1, 1), (3, 1)), 7))
    codecs = native_codecs(pieces[0][1], np.dtype("<f4"))
    assert codecs is not None
    document = array_document(
        grid=grid, data_type="float32", codecs=codecs, fill_value="NaN", dimension_names=["x", "y"], attributes={}
    )
    array = Array(
        path="a",
        document=dumps(document),
        encodings=tuple(e for _, e in pieces),
        chunks=ChunkTable.from_columns(
            chunk=range(4), source=0, offset=np.cumsum(lengths) - lengths, length=lengths, encoding=range(4)
        ),
    )
    status = (tmp_path / "s").stat()
    manifest = Manifest(
        groups={"": EMPTY_ROOT},
        arrays={"a": array},
        sources=(Source(url=f"file://{tmp_path}/s", size=status.st_size, mtime=status.st_mtime_ns // 1000),),
        report=ScanReport(),
    )
    for name in ("a.refindex", "a.sqlite"):
        manifest.save(tmp_path / name)
        with refindex.open(tmp_path / name) as archive:
            with zarr.config.set({"array.rectilinear_chunks": True}):
                found = zarr.open_array(archive.store, path="a", mode="r")
            assert np.array_equal(found[...], values)
            assert np.array_equal(found[2:10:3, 1], values[2:10:3, 1])
            assert np.array_equal(archive.group["a"][...], values)
            opened = archive.to_xarray(chunks={})
            assert opened["a"].chunks == ((3, 5, 1, 3), (7,))
            assert np.array_equal(opened["a"].values, values)
    # The same with a compressed declaration: adapted chunks are encoded again as declared.
    declared = replace(array, document=dumps({**document, "codecs": native_codecs(pieces[2][1], np.dtype("<f4"))}))
    store = RefindexStore(Opening(manifest=replace(manifest, arrays={"a": declared})))
    with zarr.config.set({"array.rectilinear_chunks": True}):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.array_equal(zarr.open_array(store, path="a", mode="r")[...], values)


def test_sync_and_async_reads_are_the_same(file: Path) -> None:
    import asyncio

    keys = ManifestKeys(Resolver(MemoryReader(refindex.scan(file))))

    async def read_all() -> list[bytes | None]:
        return [await keys.read_async(key) for key in keys.keys()]

    assert asyncio.run(read_all()) == [keys.read(key) for key in keys.keys()]


def test_more_sources_than_may_be_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refindex.access import files

    for i in range(12):
        with h5py.File(tmp_path / f"f{i}.h5", "w") as f:
            f["d"] = np.full(5000, i)
    monkeypatch.setattr(files, "_MAX_OPEN", 3)
    manifest = refindex.scan(tmp_path, workers=1, join=False)
    manifest.save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex") as archive:
        assert np.all(archive.group["f0/d"][...] == 0)
        before = len(os.listdir("/proc/self/fd"))
        for i in range(12):
            assert np.all(archive.group[f"f{i}/d"][...] == i)
        assert len(os.listdir("/proc/self/fd")) <= before + 4


@pytest.mark.parametrize("wanted", [slice(None), slice(0, 300_000, 7), slice(40_000, 60_001)])
@pytest.mark.parametrize("codec", [{}, {"compression": "gzip", "shuffle": True}])
def test_sources_here_and_elsewhere_in_one_selection(tmp_path: Path, wanted: slice, codec: dict[str, Any]) -> None:
    """An archive may lie on several storages: all chunks of a selection are read, whichever of them is asked first."""
    memory = fsspec.filesystem("memory")
    expected, sources = [], []
    for number in range(6):
        path = tmp_path / f"{number}.nc"
        expected.append(number * 1_000_000 + np.arange(50_000))
        with h5py.File(path, "w") as file:
            file["time"] = number * 50_000 + np.arange(50_000)
            file["time"].make_scale("time")
            file.create_dataset("x", data=expected[-1], chunks=(5_000,), **codec).dims[0].attach_scale(file["time"])
        sources.append(str(path))
        if number in (1, 4):
            memory.put_file(str(path), f"/mixed/{number}.nc")
            sources[-1] = f"memory://mixed/{number}.nc"
    refindex.scan(sources).save(tmp_path / "a.refindex")
    values = np.concatenate(expected)
    with refindex.open(tmp_path / "a.refindex") as archive:
        assert {archive.sources[n].url.partition("://")[0] for n in archive.find("x").source} == {"file", "memory"}
        np.testing.assert_array_equal(archive.group["x"][wanted], values[wanted])
        np.testing.assert_array_equal(np.asarray(archive["x"][wanted]), values[wanted])
