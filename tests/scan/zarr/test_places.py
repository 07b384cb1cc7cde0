"""Stores in zip files, in remote folders, among other files; stores that change."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import xarray as xr
import zarr
from fsspec.implementations.memory import MemoryFileSystem
from stores import compare, quietly
from zarr.storage import ZipStore

import refindex
from refindex import Status
from refindex.scan import expand
from refindex.scan.zarr import folder, listing, zipped


def fill(root: zarr.Group) -> None:
    root.attrs["title"] = "größer"
    rng = np.random.default_rng(0)
    plain = root.create_array("plain", shape=(70, 50), chunks=(20, 30), dtype="f8", compressors=None)
    plain[:45] = rng.random((45, 50))
    packed = root.create_group("g").create_array("packed", shape=(700, 50), chunks=(200, 30), dtype="f8")
    packed[...] = rng.random((700, 50))
    if root.metadata.zarr_format == 3:
        sharded = root.create_array("sharded", shape=(70, 50), chunks=(10, 6), shards=(20, 30), dtype="f8")
        sharded[:45] = rng.random((45, 50))


@pytest.fixture(params=[2, 3])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "data" / "s.zarr"
    with quietly():
        fill(zarr.open_group(path, mode="w", zarr_format=request.param))
    return path


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.rm("/", recursive=True)


@pytest.mark.parametrize("version", [2, 3])
def test_zip_store(tmp_path: Path, version: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "z.zarr.zip"
    with quietly(), ZipStore(path, mode="w") as to:
        fill(zarr.open_group(to, mode="w", zarr_format=version))
    with quietly(), ZipStore(path, mode="r") as original:
        report = compare(path, zarr.open_group(original, mode="r"))
    assert not report.problems
    assert {e.status for e in report} == {Status.NATIVE}
    manifest = refindex.scan(path)
    assert [s.url for s in manifest.sources] == [f"file://{path}"]
    # Members without gaps are found without reading their headers.
    monkeypatch.setattr(zipped.RangeGatherer, "gather", None)
    again = refindex.scan(path)
    assert all(a.chunks.same_references(again.arrays[p].chunks) for p, a in manifest.arrays.items())


def zip_of(store: Path, path: Path, compression: int, *, inside: str = "", gaps: bool = False) -> Path:
    with zipfile.ZipFile(path, "w", compression) as to:
        for file in sorted(store.rglob("*")):
            if not file.is_file():
                continue
            member = zipfile.ZipInfo(inside + str(file.relative_to(store)))
            member.compress_type = compression
            if gaps:
                member.extra = struct.pack("<2H3s", 0xCAFE, 3, b"xyz")
            to.writestr(member, file.read_bytes())
    return path


@pytest.mark.parametrize("gaps", [False, True])
def test_zipped_folders(store: Path, tmp_path: Path, gaps: bool) -> None:
    """As other programs zip them: with directories and extra fields."""
    path = zip_of(store, tmp_path / "z.zip", zipfile.ZIP_STORED, gaps=gaps)
    compare(path, store)
    shutil.make_archive(str(tmp_path / "m"), "zip", store)
    report = refindex.scan(tmp_path / "m.zip").report
    assert all("zip -0" in e.reason for e in report.problems)
    # The store within a folder of the zip file becomes a group.
    path = zip_of(store, tmp_path / "in.zip", zipfile.ZIP_STORED, inside="top/")
    assert set(refindex.scan(path).groups) == {"", "top", "top/g"}


def test_compressed_members(store: Path, tmp_path: Path) -> None:
    path = zip_of(store, tmp_path / "z.zip", zipfile.ZIP_DEFLATED)
    report = compare(path, store)  # small enough to be kept
    assert {e.status for e in report} == {Status.INLINED}
    with quietly():
        big = zarr.open_group(store).create_array("big", shape=(3 << 20,), dtype="u1", chunks=(1 << 20,))
        big[...] = np.random.default_rng(0).integers(0, 255, 3 << 20, dtype="u1")
    manifest = refindex.scan(zip_of(store, tmp_path / "b.zip", zipfile.ZIP_DEFLATED))
    (problem,) = manifest.report.problems
    assert problem.path == "/big"
    assert "3 of its chunks are compressed members" in problem.reason
    assert "plain" in manifest.arrays


def test_damaged_zip_files(store: Path, tmp_path: Path) -> None:
    """Any byte of the directory may be wrong: a manifest, or an error of ours."""
    sound = zip_of(store, tmp_path / "z.zip", zipfile.ZIP_STORED).read_bytes()
    path = tmp_path / "d.zip"
    rng = np.random.default_rng(0)
    start = sound.index(b"PK\x01\x02")
    wrong = 0
    for at in [*rng.integers(start, len(sound), 150), *range(len(sound) - 22, len(sound))]:
        damaged = bytearray(sound)
        damaged[at] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        try:
            refindex.scan(path)
        except refindex.RefindexError:
            wrong += 1
    assert wrong > 20
    for size in (4, 30, len(sound) // 2, len(sound) - 1):
        path.write_bytes(sound[:size])
        with pytest.raises(refindex.FormatError, match="not a sound zip file"):
            refindex.scan(path)
    with zipfile.ZipFile(path, "w") as to:
        to.writestr("readme.txt", "nothing")
    with pytest.raises(refindex.FormatError, match="a zip file without Zarr metadata"):
        refindex.scan(path)


def test_remote_folders(store: Path, memory: MemoryFileSystem, tmp_path: Path) -> None:
    memory.put(str(store), "/deep/s.zarr", recursive=True)
    report = compare("memory://deep/s.zarr", store)
    assert not report.problems
    manifest = refindex.scan("memory://deep/s.zarr")
    local = refindex.scan(store)
    assert [s.url.removeprefix("memory://deep") for s in manifest.sources] == [
        s.url.removeprefix(f"file://{store.parent}") for s in local.sources
    ]
    assert all(s.mtime is not None for s in manifest.sources)
    manifest.save(tmp_path / "m.refindex")
    compare(tmp_path / "m.refindex", store)
    memory.pipe_file("/deep/s.zarr.zip", zip_of(store, tmp_path / "z.zip", zipfile.ZIP_STORED, gaps=True).read_bytes())
    compare("memory://deep/s.zarr.zip", store)
    # A chained URL: the zip file is the folder.
    manifest = refindex.scan("zip://::memory://deep/s.zarr.zip")
    assert manifest.sources[0].url.endswith("::memory://deep/s.zarr.zip")
    compare("zip://::memory://deep/s.zarr.zip", store)


def test_one_listing_and_no_request_a_chunk(
    store: Path, memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.put(str(store), "/s.zarr", recursive=True)
    asked: list[str] = []
    for name in ("find", "info", "cat_file", "cat_ranges"):
        call = getattr(MemoryFileSystem, name)
        monkeypatch.setattr(
            MemoryFileSystem, name, lambda self, *a, _c=call, _n=name, **k: asked.append(_n) or _c(self, *a, **k)
        )
    manifest = refindex.scan("memory://s.zarr")
    assert manifest.n_references > 10
    documents = sum(1 for p in store.rglob("*") if p.name in listing.DOCUMENTS)
    shards = sum(1 for p in (store / "sharded").rglob("*") if p.is_file() and p.name != "zarr.json")
    assert asked.count("find") == 2
    assert asked.count("cat_file") <= documents + shards
    assert asked.count("info") < 30  # those of find


def test_storages_that_do_not_tell_sizes(memory: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    memory.pipe_file("/s.zarr/zarr.json", b"{}")
    found = MemoryFileSystem.find

    def without(self: MemoryFileSystem, *args: Any, **options: Any) -> Any:
        return {name: info | {"size": None} for name, info in found(self, *args, **options).items()}

    monkeypatch.setattr(MemoryFileSystem, "find", without)
    with pytest.raises(refindex.UnsupportedError, match="does not tell how large objects are"):
        refindex.scan("memory://s.zarr")


def test_stores_among_files(store: Path, memory: MemoryFileSystem, weather: Path) -> None:
    data = store.parent
    shutil.copytree(store, data / "more/deep/without_suffix")
    shutil.copy(weather, data / "more/w.nc")
    (store / "inside.nc").write_text("a file in a store is no source")
    zip_of(store, data / "z.zarr.zip", zipfile.ZIP_STORED)
    expected = ["more/deep/without_suffix", "more/w.nc", "s.zarr", "z.zarr.zip"]
    assert expand([data]) == [f"file://{data}/{name}" for name in expected]
    assert expand([store]) == [f"file://{store}"]
    assert expand([f"{data}/*.zarr"]) == [f"file://{store}"]
    memory.put(str(data), "/data", recursive=True)
    assert expand(["memory://data/"]) == [f"memory:///data/{name}" for name in expected]
    manifest = refindex.scan(data, workers=1)
    assert set(manifest.groups) >= {"without_suffix", "s", "z.zarr", "w", "s/g"}
    assert not manifest.report.problems
    with pytest.raises(refindex.NotFoundError, match="neither a refindex archive .* nor a Zarr store"):
        refindex.open(data)


def test_a_store_that_changes_meanwhile(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk, chunk = folder._walk, next(p for p in (store / "plain").rglob("*") if p.is_file() and "0" in p.name)
    for change in (
        lambda: (store / "new").write_text(""),
        lambda: chunk.write_bytes(b"longer" * 1000),
        lambda: os.utime(chunk, (1, 1)),
        chunk.unlink,
    ):
        calls = itertools.count()

        def changing(*place: Any, change: Any = change, calls: Iterator[int] = calls) -> Any:
            if next(calls) == 1:
                change()
            return walk(*place)

        monkeypatch.setattr(folder, "_walk", changing)
        with pytest.raises(refindex.SourceError, match="changed while it was scanned: 1 objects"):
            refindex.scan(store)


def test_links_and_bounds(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (store / "loop").symlink_to(store)
    (store / "nowhere").symlink_to(store / "not there")
    (store / os.fsdecode(b"\xff")).mkdir()
    (store / os.fsdecode(b"\xff") / ".zgroup").write_text("{}")
    manifest = refindex.scan(store)
    assert "loop" not in manifest.nodes
    assert any("not Unicode" in e.reason for e in manifest.report.problems)
    manifest.save(store.parent / "m.sqlite")
    monkeypatch.setattr(folder, "MAX_OBJECTS", 5)
    with pytest.raises(refindex.UnsupportedError, match="scan its groups or arrays one by one"):
        refindex.scan(store)
    nested = store.parent / "n.zarr"
    nested.joinpath(*["d"] * 200).mkdir(parents=True)
    (nested / "zarr.json").write_text('{"zarr_format":3,"node_type":"group"}')
    with pytest.raises(refindex.UnsupportedError, match="nested deeper"):
        refindex.scan(nested)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("decoding", [{}, {"mask_and_scale": False, "decode_times": False}])
@pytest.mark.parametrize("stored", ["", "a.refindex", "a.sqlite"])
def test_xarray(tmp_path: Path, version: Any, decoding: dict[str, bool], stored: str) -> None:
    rng = np.random.default_rng(0)
    field = np.where(rng.random((60, 40, 5)) > 0.5, rng.random((60, 40, 5)), np.nan)
    dataset = xr.Dataset(
        {
            "float": (("time", "y", "x"), field, {"units": "K", "range": [0.5, 2.5]}),
            "packed": (("time", "y"), np.where(rng.random((60, 40)) > 0.9, np.nan, rng.integers(0, 50, (60, 40)) / 4)),
            "count": (("y",), np.arange(40, dtype="i2")),
            "flag": (("x",), np.array([True, False, True, True, False])),
            "name": (("x",), np.array(["a", "bc", "ä", "", "e"])),
            "scalar": ((), 3.5),
        },
        coords={"time": np.arange(60).astype("M8[D]").astype("M8[ns]"), "y": np.linspace(0, 1, 40, dtype="f4")},
        attrs={"title": "t", "n": 3},
    )
    encoding: dict[str, Any] = {
        "float": {"_FillValue": -999.0, "chunks": (7, 40, 5)},
        "packed": {"dtype": "i2", "scale_factor": 0.25, "add_offset": 1.0, "_FillValue": -1},
    }
    path = tmp_path / "x.zarr"
    with quietly():
        dataset.to_zarr(path, zarr_format=version, encoding=encoding)
        where = path
        if stored:
            where = tmp_path / stored
            refindex.scan(path).save(where)
        original = xr.open_zarr(path, **decoding).load()
        if version == 2 and decoding:  # xarray shows what it would have masked with
            assert original["float"].attrs["_FillValue"] == -999
        with xr.open_dataset(where, engine="refindex", **decoding) as found:
            xr.testing.assert_identical(found.load(), original)
            assert {n: v.dtype for n, v in found.variables.items()} == {
                n: v.dtype for n, v in original.variables.items()
            }
        with refindex.open(where) as archive:
            through = xr.open_zarr(archive.store, consolidated=False, **decoding).load()
            if decoding.get("mask_and_scale", True):  # else _FillValue shows as each version spells it
                xr.testing.assert_identical(through, original)
