"""A spool gives back what it was given, whether it keeps it in memory, in a temporary file or in a folder."""

from __future__ import annotations

import errno
import os
import re
import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from relations import assert_same

import refindex
from refindex import Array, ChunkTable, Manifest, Node, ScanReport, Source, storage
from refindex.model.manifest import ReportEntry, Status, unite
from refindex.model.zarr_v3 import dumps, group_document
from refindex.scan import Scanned, Spool, expand, journal, scan_many, scan_source
from refindex.scan import records as records_module
from refindex.scan.records import Records

ROOT = Node(path="", document=dumps(group_document({})))


def array(path: str, table: ChunkTable, size: int | None = None) -> Array:
    size = size or int(table.chunk[-1] + 1 if len(table) else 1)
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [size],
        "data_type": "uint8",
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
        "chunk_key_encoding": {"name": "default"},
        "fill_value": 0,
        "codecs": [{"name": "bytes"}],
    }
    return Array(path=path, document=dumps(document), chunks=table)


def manifest_of(url: str, tables: dict[str, ChunkTable], sources: int = 1, size: int | None = None) -> Manifest:
    return Manifest(
        groups={"": ROOT},
        arrays={path: array(path, table, size) for path, table in tables.items()},
        sources=tuple(Source(url=f"{url}{n or ''}", size=10, mtime=n) for n in range(sources)),
        report=ScanReport(
            entries=(
                ReportEntry(source=url.removeprefix("file://"), path="/", status=Status.NOTE, reason="of the file"),
                ReportEntry(source="/elsewhere.nc", path="/a", status=Status.NATIVE),
            )
        ),
    )


@st.composite
def tables(draw: st.DrawFn, sources: int) -> ChunkTable:
    numbers = sorted(draw(st.sets(st.integers(0, 1000), max_size=12)))
    n = len(numbers)
    column = st.lists(st.integers(0, 2**60), min_size=n, max_size=n).map(
        lambda values: np.array(values, dtype=np.int64)
    )
    source = np.array(draw(st.lists(st.integers(-1, sources - 1), min_size=n, max_size=n)))
    data = draw(st.binary(max_size=40))
    offset, length = draw(column), draw(column)
    offset = np.where(source < 0, offset % (len(data) + 1), offset)
    length = np.where(source < 0, length % np.maximum(len(data) - offset + 1, 1), length)
    return ChunkTable.from_columns(chunk=numbers, source=source, offset=offset, length=length, encoding=-1, data=data)


@st.composite
def manifests(draw: st.DrawFn) -> dict[str, Manifest]:
    found = {}
    for n in range(draw(st.integers(1, 5))):
        sources = draw(st.integers(1, 3))
        names = draw(st.lists(st.sampled_from("abcd"), max_size=4, unique=True))
        found[f"file:///f{n}.nc"] = manifest_of(
            f"file:///f{n}.nc", {name: draw(tables(sources)) for name in names}, sources, 1001
        )
    return found


SMAPS = Path("/proc/self/smaps")
KINDS = ["memory", "file", "folder", "between"]


def spool_of(kind: str, folder: Path) -> Spool:
    return {
        "memory": lambda: Spool(),
        "file": lambda: Spool(memory_rows=0),
        "between": lambda: Spool(memory_rows=10),
        "folder": lambda: Spool(folder / os.urandom(8).hex()),
    }[kind]()


@pytest.mark.parametrize("kind", KINDS)
@given(given_manifests=manifests(), start=st.integers(0, 1001))
def test_what_is_given_comes_back(
    kind: str, tmp_path_factory: pytest.TempPathFactory, given_manifests: dict[str, Manifest], start: int
) -> None:
    spool = spool_of(kind, tmp_path_factory.getbasetemp())
    for url, manifest in given_manifests.items():
        spool.add(url, manifest)
    spool.close()
    assert list(spool.files) == list(given_manifests)
    assert spool.rows == sum(manifest.n_references for manifest in given_manifests.values())
    for url, manifest in given_manifests.items():
        file = spool.files[url]
        assert_same(file.manifest(), manifest)
        assert file.sources == manifest.sources
        assert file.report == manifest.report
        assert file.n_references == manifest.n_references
        assert list(file.nodes) == list(manifest.nodes)
        assert file.arrays == list(manifest.arrays)
        for path, expected in manifest.arrays.items():
            rows = expected.chunks.chunk >= start
            assert file.count(path) == len(rows)
            found = file.table(path, start)
            for column in ("chunk", "source", "offset", "length", "encoding"):
                assert np.array_equal(getattr(found, column), getattr(expected.chunks, column)[rows])
            assert found.data == expected.chunks.data or not len(expected.chunks)
            assert found.pages is None
        with pytest.raises(KeyError):
            file.table("nothing")


def test_equal_nodes_are_kept_once(weather: Path, tmp_path: Path) -> None:
    spool = Spool()
    manifest = scan_source(f"file://{weather}")
    for number in range(50):
        # As they come out of other processes: equal, and none the same object.
        other = scan_source(f"file://{weather}") if number % 10 == 0 else manifest
        spool.add(f"file:///{number}.nc", other)
    first = spool.files["file:///0.nc"]
    for file in spool.files.values():
        assert all(file.nodes[path] is node for path, node in first.nodes.items())
    changed = {**manifest.groups, "": Node(path="", document=dumps(group_document({"title": "another"})))}
    spool.add("file:///x.nc", Manifest(groups=changed, arrays=manifest.arrays, sources=manifest.sources))
    assert spool.files["file:///x.nc"].nodes[""] is not first.nodes[""]
    assert spool.files["file:///x.nc"].nodes["t2m"] is first.nodes["t2m"]
    assert first.nodes[""].document == manifest.groups[""].document
    t2m = manifest.arrays["t2m"]
    for number, changes in enumerate(({"encodings": t2m.encodings * 2}, {"attribute_types": {}}, {"joined": {"a": 1}})):
        other = replace(t2m, **changes)
        url = f"file:///other{number}.nc"
        spool.add(url, replace(manifest, arrays={**manifest.arrays, "t2m": other}))
        found = spool.files[url].nodes["t2m"]
        assert (found.encodings, found.attribute_types) == (other.encodings, other.attribute_types)
        assert found.joined == other.joined
        assert found is not first.nodes["t2m"]


def test_real_files_and_what_is_saved_of_them(weather: Path, tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.nc").write_bytes(weather.read_bytes())
    found = expand([tmp_path])
    apart = {str(number): scan_source(url) for number, url in enumerate(found)}
    for spool in (Spool(), Spool(memory_rows=0), Spool(tmp_path / "kept")):
        scanned = scan_many(found, workers=1, spool=spool)
        for url, manifest in zip(found, apart.values(), strict=True):
            assert_same(scanned.files[url].manifest(), manifest)
        together = scanned.side_by_side()
        assert_same(together, unite(apart))
        together.save(tmp_path / "a.refindex", overwrite=True)
        spool.remove()
        with refindex.open(tmp_path / "a.refindex") as archive, refindex.open(weather) as original:
            assert np.array_equal(archive.group["3/t2m"][...], original.group["t2m"][...])
    assert not (tmp_path / "kept").exists()


ROWS, FILES = 20_000, 200


def many(spool: Spool) -> Iterator[str]:
    """128 MB of references."""
    for number in range(FILES):
        url = f"file:///{number}.nc"
        table = ChunkTable.from_columns(
            chunk=np.arange(ROWS), source=0, offset=np.arange(ROWS) + number, length=1, encoding=-1
        )
        spool.add(url, manifest_of(url, {"a": table}))
        yield url


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_memory_is_bounded(kind: str, tmp_path: Path) -> None:
    spool = Spool(memory_rows=100_000) if kind == "file" else Spool(tmp_path / "kept")
    tracemalloc.start()
    try:
        for _ in many(spool):
            pass
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.reset_peak()
        for number, file in enumerate(spool.files.values()):
            assert int(file.table("a").offset[-1]) == ROWS - 1 + number
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        tracemalloc.reset_peak()
        together = Scanned(files=spool.files).side_by_side()
        assert together.n_references == ROWS * FILES
        last = together.arrays[f"{FILES - 1}/a"].chunks
        assert last.source[-1] == FILES - 1
        assert last.source.strides == (0,)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
        together.save(tmp_path / "a.refindex")
        assert tracemalloc.get_traced_memory()[1] < 120 << 20
    finally:
        tracemalloc.stop()
    with closing(storage.open_reader(f"file://{tmp_path}/a.refindex")) as reader:
        saved = reader.find("7/a")
    assert np.array_equal(saved.offset, np.arange(ROWS) + 7)
    assert set(saved.source) == {7}
    spool.close()


def test_what_was_looked_at_does_not_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records_module, "_LOOKED_AT", 4 << 20)
    spool = Spool(memory_rows=0)
    for _ in many(spool):
        pass
    kept = [file.manifest() for file in spool.files.values()]
    total = sum(
        int(table.offset[rows].sum()) for m in kept for table in [m.arrays["a"].chunks] for rows in table.windows()
    )
    assert total == sum(range(ROWS)) * FILES + ROWS * sum(range(FILES))
    found = re.search(r"/refindex-\S+ \(deleted\)\nSize: +(\d+) kB.*?\nRss: +(\d+) kB", SMAPS.read_text(), re.DOTALL)
    assert found is not None
    assert int(found[1]) == ROWS * FILES * 32 // 1024
    assert int(found[2]) < 10 << 10


def test_without_a_folder_nothing_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = set(os.listdir("/proc/self/fd"))
    spool = Spool(memory_rows=10)
    for _ in zip(range(3), many(spool), strict=False):
        pass
    assert list(tmp_path.iterdir()) == []
    file = spool.files["file:///2.nc"]
    manifest = file.manifest()
    assert len(set(os.listdir("/proc/self/fd")) - before) <= 2  # listing takes one itself
    del spool, file
    assert manifest.arrays["a"].chunks.offset[5] == 7
    del manifest
    assert set(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_full_disk(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that says where; and what is there afterwards is right."""
    spool = Spool(memory_rows=0) if kind == "file" else Spool(tmp_path / "kept")
    room = 3 * ROWS * 32 + 1000
    written = os.pwrite

    def pwrite(file: int, data: Any, at: int) -> int:
        if at >= room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(file, data[: room - at], at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(records_module, "_PENDING", 0)
    with pytest.raises(refindex.SourceError, match=r"cannot be kept here: No space left") as caught:
        for _ in many(spool):
            pass
    assert (str(tmp_path) if kind == "folder" else "TMPDIR") in str(caught.value)
    assert len(spool.files) == 3
    monkeypatch.setattr(os, "pwrite", written)
    for number in range(3):
        assert spool.files[f"file:///{number}.nc"].table("a").offset[0] == number
    url = "file:///later.nc"
    spool.add(
        url, manifest_of(url, {"a": ChunkTable.from_columns(chunk=[0], source=0, offset=[77], length=1, encoding=-1)})
    )
    assert spool.files[url].table("a").offset[0] == 77
    spool.close()


def test_a_disk_that_was_full_for_a_while(tmp_path: Path) -> None:
    """Lines of which a part was written are written again; all that was taken is there in the end."""
    spool = Spool(tmp_path / "kept")
    table = ChunkTable.from_columns(chunk=[0], source=0, offset=[5], length=1, encoding=-1)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    failed = 0
    try:
        for number in range(30):
            url = f"file:///{number}.nc"
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000 if number < 20 else limits[0], limits[1]))
            spool.add(url, manifest_of(url, {"a": table}))
            try:
                spool.flush()
            except refindex.SourceError as error:
                failed += "what is scanned cannot be kept here: File too large" in str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    spool.close()
    assert 5 < failed < 20
    assert journal.kept(tmp_path / "kept") == 30


def test_a_file_that_is_cut_is_an_error(tmp_path: Path) -> None:
    records = Records(tmp_path / "r")
    at = records.append(bytes(1000))
    records.flush()
    os.truncate(tmp_path / "r", 500)
    with pytest.raises(refindex.SourceError, match="is cut: 500 bytes are missing"):
        records.read(at, [(0, 1000)])


def test_a_spool_takes_scans_that_ask_for_the_same(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"], file["b"] = np.arange(1000), np.arange(1000)
    spool = Spool()
    first = scan_many(expand([tmp_path]), variables=["a"], spool=spool)
    assert [file.arrays for file in first.files.values()] == [["a"]]
    with pytest.raises(refindex.FormatError, match="ask for the same"):
        scan_many(expand([tmp_path]), variables=["b"], spool=spool)
