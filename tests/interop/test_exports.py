"""How exports appear: complete or not at all, and with everything that stands in the way named at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from foreign import OUTPUTS, foreign_group, icechunk_session, reference_filesystem

import refindex
from refindex import ExistsError, NotFoundError, SourceError, UnsupportedError

LZF = np.arange(3000, dtype="i4") // 50
"""Values that lzf makes smaller: it leaves chunks alone that it does not."""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """A file with chunks that are native, adapted, and absent, in groups."""
    with h5py.File(tmp_path / "odd.h5", "w") as file:
        file.create_dataset("native", data=np.arange(3000, dtype="f8"), chunks=(500,), compression="gzip")
        file.create_dataset("g/lzf", data=LZF, chunks=(500,), compression="lzf")
        masked = file.create_dataset("g/masked", data=np.arange(3000, dtype="i4"), chunks=(500,), compression="gzip")
        masked.id.write_direct_chunk((500,), np.arange(500, dtype="i4").tobytes(), filter_mask=1)
    return tmp_path / "odd.h5"


REFERENCES = [(to, v) for to, v in OUTPUTS if to != "zarr"]


@pytest.mark.parametrize(("to", "zarr_format"), REFERENCES)
def test_all_problems_are_named(to: str, zarr_format: int, odd: Path, tmp_path: Path) -> None:
    if to == "icechunk":
        pytest.importorskip("icechunk")
    with pytest.raises(UnsupportedError) as raised:
        refindex.export(odd, tmp_path / "out", to=to, zarr_format=zarr_format)
    lines = str(raised.value).splitlines()
    assert "materialize=True (--materialize)" in lines[0]
    assert [line.strip().partition(":")[0] for line in lines[1:]] == ["/g/lzf", "/g/masked"]
    assert "6 of its 6 chunks" in lines[1]
    assert "(lzf)" in lines[1]
    assert "1 of its 6 chunks" in lines[2]
    assert [p.name for p in tmp_path.iterdir()] == ["odd.h5"], "nothing is left"


@pytest.mark.parametrize(("to", "zarr_format"), OUTPUTS)
def test_overwrite(to: str, zarr_format: int, odd: Path, tmp_path: Path) -> None:
    """What is there stays unless it may be replaced; then all of it goes, the second file, too."""
    if to == "icechunk":
        pytest.importorskip("icechunk")
    options: dict[str, Any] = {"to": to, "zarr_format": zarr_format}
    dest = tmp_path / "out"
    refindex.export(odd, dest, materialize=True, **options)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(ExistsError, match="out"):
        refindex.export(odd, dest, materialize=True, **options)
    with pytest.raises(NotFoundError, match="nowhere"):
        refindex.export(odd, dest, variables=["nowhere"], overwrite=True, **options)
    assert before == {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    refindex.export(odd, dest, variables=["native"], overwrite=True, **options)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.h5", "out"]
    group = foreign_group(dest, to, zarr_format)
    np.testing.assert_array_equal(group["native"][...], np.arange(3000))
    assert "g" not in group


@pytest.mark.parametrize(("to", "zarr_format"), OUTPUTS)
def test_nothing_is_left_of_a_failure(to: str, zarr_format: int, odd: Path, tmp_path: Path) -> None:
    """A source that has gone while chunks are made from it."""
    if to == "icechunk":
        pytest.importorskip("icechunk")
    manifest = refindex.scan(odd)
    odd.unlink()
    with pytest.raises(SourceError, match="odd.h5"):
        refindex.export(manifest, tmp_path / "out", to=to, zarr_format=zarr_format, materialize=True)
    assert list(tmp_path.iterdir()) == []


def test_companion_next_to_something_else(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "out.data").write_text("precious")
    with pytest.raises(ExistsError, match=r"out\.data"):
        refindex.export(odd, tmp_path / "out")
    assert (tmp_path / "out.data").read_text() == "precious"


def test_a_file_beside_a_copy_is_left_alone(odd: Path, tmp_path: Path) -> None:
    (tmp_path / "out.data").write_text("precious")
    for overwrite in (False, True):
        refindex.export(odd, tmp_path / "out", to="zarr", overwrite=overwrite)
    assert (tmp_path / "out.data").read_text() == "precious"


def test_variables_bring_their_coordinates(weather: Path, tmp_path: Path) -> None:
    refindex.export(weather, tmp_path / "out", variables=["rain", "derived/mean"], zarr_format=2)
    keys = json.loads((tmp_path / "out").read_text())["refs"]
    arrays = {key.removesuffix("/.zarray") for key in keys if key.endswith("/.zarray")}
    assert arrays == {"rain", "derived/mean", "time", "lat"}


def test_versions(weather: Path, odd: Path, tmp_path: Path) -> None:
    refindex.scan(weather).save(tmp_path / "a.refindex")
    refindex.scan(odd, variables=["native"]).save(tmp_path / "a.refindex", overwrite=True)
    refindex.export(tmp_path / "a.refindex", tmp_path / "new")
    refindex.export(tmp_path / "a.refindex", tmp_path / "old", version=0)
    assert "native" in refindex.import_references(tmp_path / "new").arrays
    assert "t2m" in refindex.import_references(tmp_path / "old").arrays


def test_options_that_do_not_go_together(odd: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"to": "hdf5"}, "to must be one of"),
        ({"to": "kerchunk", "chunks": {"x": 1}}, 'go with to="zarr"'),
        ({"to": "zarr", "zarr_format": 2}, "zarr is of Zarr v3"),
        ({"to": "kerchunk", "zarr_format": 4}, "must be 2 or 3"),
    ):
        with pytest.raises(ValueError, match=message):
            refindex.export(odd, tmp_path / "out", **options)


def test_chained_urls_are_refused_or_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["d"] = np.arange(3000, dtype="i4")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        packed.write(tmp_path / "a.h5", "a.h5")
    url = f"zip://a.h5::file://{tmp_path}/a.zip"
    with pytest.raises(UnsupportedError, match="/d: 1 of its 1 chunks are in zip://a.h5::.*a chained URL"):
        refindex.export(url, tmp_path / "out")
    refindex.export(url, tmp_path / "out", materialize=True)
    np.testing.assert_array_equal(foreign_group(tmp_path / "out", "kerchunk", 3)["d"][...], np.arange(3000))


@pytest.fixture
def memory() -> Any:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("to", ["kerchunk", "kerchunk-parquet", "zarr"])
def test_remote_outputs(to: str, odd: Path, tmp_path: Path, memory: Any) -> None:
    refindex.export(odd, "memory://bucket/out", to=to, materialize=True)
    with pytest.raises(ExistsError):
        refindex.export(odd, "memory://bucket/out", to=to, materialize=True)
    refindex.export(odd, "memory://bucket/out", to=to, materialize=True, overwrite=True)
    memory.get("memory://bucket/out", str(tmp_path / "out"), recursive=True)
    if to == "zarr":
        group = zarr.open_group(tmp_path / "out", mode="r")
        np.testing.assert_array_equal(group["g/lzf"][...], LZF)
        return
    manifest = refindex.import_references("memory://bucket/out", allow=["memory://bucket", tmp_path])
    assert {source.url for source in manifest.sources} == {f"file://{odd}", "memory://bucket/out.data"}
    with refindex.exchange._opened(manifest, None, None) as archive:
        np.testing.assert_array_equal(archive.group["g/lzf"][...], LZF)


class TestZarr:
    @pytest.mark.parametrize(
        ("options", "chunks", "shards"),
        [
            ({}, (2, 10, 20), None),
            ({"chunks": {"time": 4, "lon": -1}}, (4, 10, 20), None),
            ({"chunks": {"time": 1}, "shards": {"time": 3, "lat": -1}}, (1, 10, 20), (3, 10, 20)),
            ({"chunks": {"lat": 4}, "shards": {"lat": -1}}, (2, 4, 20), (2, 12, 20)),
        ],
    )
    def test_chunks(self, options: Any, chunks: Any, shards: Any, weather: Path, tmp_path: Path) -> None:
        refindex.export(weather, tmp_path / "out", to="zarr", **options)
        array = zarr.open_group(tmp_path / "out", mode="r")["t2m"]
        assert (array.chunks, array.shards) == (chunks, shards)
        with h5py.File(weather) as file:
            np.testing.assert_array_equal(array[...], file["t2m"][...])
        with xr.open_zarr(tmp_path / "out") as copy, xr.open_dataset(weather, engine="netcdf4") as opened:
            xr.testing.assert_allclose(copy.load(), opened.load())

    def test_wrong_lengths(self, weather: Path, tmp_path: Path) -> None:
        for options, message in (
            ({"chunks": {"month": 1}}, "chunks: no dimension month; there are .*time"),
            ({"chunks": {"time": 0}}, "lengths must be 1 or more"),
            ({"chunks": {"time": 2}, "shards": {"time": 3}}, r"/time: shards of \(3,\) do not consist|shards of"),
        ):
            with pytest.raises(ValueError, match=message):
                refindex.export(weather, tmp_path / "out", to="zarr", **options)
        assert list(tmp_path.iterdir()) == []

    def test_bounded_memory_and_progress(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Values come block by block, and what does not exist is not written."""
        monkeypatch.setattr("refindex.interop.zarr_copy.BLOCK_NBYTES", 1 << 14)
        with h5py.File(tmp_path / "a.h5", "w") as file:
            data = file.create_dataset("d", (100, 400), "f4", chunks=(10, 100), fillvalue=-1)
            data[:20] = np.arange(8000).reshape(20, 400)
        seen: list[tuple[int, int]] = []
        refindex.export(tmp_path / "a.h5", tmp_path / "out", to="zarr", progress=lambda *n: seen.append(n))
        assert len(seen) == 10
        assert seen[-1] == (160000, 160000)
        assert [done for done, _ in seen] == sorted(done for done, _ in seen)
        array = zarr.open_group(tmp_path / "out", mode="r")["d"]
        assert array.nchunks_initialized == 8
        assert array[25, 3] == -1
        np.testing.assert_array_equal(array[:20], np.arange(8000).reshape(20, 400))

    def test_the_root_comes_last(self, weather: Path, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a copy to an object store that fails, nothing is left, and nothing could be opened meanwhile."""

        def fail(done: int, total: int) -> None:
            assert memory.exists("/bucket/out/time/zarr.json")
            assert not memory.exists("/bucket/out/zarr.json")
            if done > 2000:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            refindex.export(weather, "memory://bucket/out", to="zarr", progress=fail)
        assert not memory.exists("/bucket/out")


class TestIcechunk:
    @pytest.fixture(autouse=True)
    def installed(self) -> None:
        pytest.importorskip("icechunk")

    def test_changed_files_are_noticed(self, odd: Path, tmp_path: Path) -> None:
        import os

        refindex.export(odd, tmp_path / "repo", to="icechunk", variables=["native"])
        group = zarr.open_group(icechunk_session(tmp_path / "repo").store, mode="r")
        np.testing.assert_array_equal(group["native"][...], np.arange(3000))
        os.utime(odd, (2e9, 2e9))
        with pytest.raises(Exception, match="has changed"):
            zarr.open_group(icechunk_session(tmp_path / "repo").store, mode="r")["native"][...]

    def test_native_chunks_come_back(self, tmp_path: Path) -> None:
        """Chunks in Icechunk's own files, large and small, of one that others have written."""
        import icechunk

        storage = icechunk.local_filesystem_storage(str(tmp_path / "repo"))
        repository = icechunk.Repository.create(storage)
        session = repository.writable_session("main")
        group = zarr.open_group(session.store, mode="a")
        values = np.random.default_rng(0).random((20, 400))
        group.create_array("deep/large", data=values, chunks=(5, 400))
        group.create_array("small", data=np.arange(5), chunks=(2,))
        session.commit("made")
        manifest = refindex.import_references(tmp_path / "repo")
        assert not manifest.arrays["deep/large"].chunks.is_inline
        assert manifest.arrays["small"].chunks.is_inline
        with refindex.exchange._opened(manifest, None, None) as archive:
            np.testing.assert_array_equal(archive.group["deep/large"][...], values)
            np.testing.assert_array_equal(archive.group["small"][...], np.arange(5))
        with pytest.raises(UnsupportedError, match="chunks in files of its own"):
            refindex.import_references(repository)
        with pytest.raises(NotFoundError, match="no such Icechunk repository, branch or snapshot"):
            refindex.from_icechunk(tmp_path / "repo", branch="other")
        with pytest.raises(NotFoundError, match="no such"):
            refindex.from_icechunk(tmp_path / "nothing")

    def test_a_storage_of_ones_own(self, odd: Path) -> None:
        import icechunk

        storage = icechunk.in_memory_storage()
        refindex.export(odd, storage, to="icechunk", variables=["native"])
        assert "native" in refindex.from_icechunk(icechunk.Repository.open(storage)).arrays
        with pytest.raises(ExistsError):
            refindex.export(odd, storage, to="icechunk", variables=["native"])


def test_packages_that_are_missing(odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "icechunk", None)
    with pytest.raises(UnsupportedError, match=r"icechunk is not installed; pip install 'refindex\[exchange\]'"):
        refindex.export(odd, tmp_path / "out", to="icechunk")


def test_a_million_references_take_seconds(tmp_path: Path) -> None:
    """No Python object a reference: a hundredth of a second for ten thousand, and some room."""
    import time

    from refindex import Array, ChunkGrid, ChunkTable, Manifest, Node, Source
    from refindex.model.zarr_v3 import array_document, dumps, group_document

    n = 300_000
    table = ChunkTable.from_columns(
        chunk=np.arange(n), source=np.arange(n) // 1000, offset=np.arange(n), length=4, encoding=-1
    )
    document = array_document(
        grid=ChunkGrid.regular((n,), (1,)), data_type="float32", fill_value=0, dimension_names=["x"], attributes={},
        codecs=[{"name": "bytes", "configuration": {"endian": "little"}}],
    )  # fmt: skip
    manifest = Manifest(
        groups={"": Node(path="", document=dumps(group_document({})))},
        arrays={"a": Array(path="a", document=dumps(document), chunks=table)},
        sources=tuple(Source(url=f"s3://bucket/{k}.nc", size=n + 4) for k in range(n // 1000)),
    )
    for to in ("kerchunk", "kerchunk-parquet"):
        start = time.process_time()
        refindex.export(manifest, tmp_path / to, to=to)
        assert time.process_time() - start < 6
    assert len(reference_filesystem(tmp_path / "kerchunk").references) == n + 2
