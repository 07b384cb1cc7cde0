"""What a verification must find, each in both storages."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "gauntlet"))

from altered import altering
from cases import cases
from oracle import compare_file
from serving import RangeServer
from weather import write_weather

import refindex
from refindex import Manifest, Node, Placement
from refindex.model.chunks import INLINE
from tests.join.archives import Part, write_archive
from tests.verification.altering import SUFFIXES, kinds, right, with_bytes, with_document, with_row

CASES = cases()
FOUND = ["filter: mask on some chunks", "filter: shuffle + deflate", "type: fixed string, chunked", "layout: compact",
         "index: sparse v2 B-tree", "type: strings of variable length", "layout: virtual, whole chunks"]  # fmt: skip


@pytest.fixture(params=SUFFIXES)
def suffix(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def archive(suffix: str, tmp_path: Path) -> Path:
    return tmp_path / f"archive{suffix}"


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Manifest]]:
    """Files of the gauntlet, and their manifests."""
    found = {}
    for name in FOUND:
        folder = tmp_path_factory.mktemp("case")
        before = Path.cwd()
        os.chdir(folder)
        try:
            CASES[name](folder / "case.h5")
        finally:
            os.chdir(before)
        found[name] = folder / "case.h5", refindex.scan(folder / "case.h5")
    return found


@given(data=st.data())
@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_any_row_that_is_altered(
    scanned: dict[str, tuple[Path, Manifest]], tmp_path: Path, data: st.DataObject
) -> None:
    """Where any value is not what h5py reads any more, or none can be read, there is a problem."""
    path, manifest = scanned[data.draw(st.sampled_from(FOUND))]
    name = data.draw(st.sampled_from([n for n, a in manifest.arrays.items() if len(a.chunks)]))
    table = manifest.arrays[name].chunks
    row = data.draw(st.integers(0, len(table) - 1))
    column = data.draw(st.sampled_from(["chunk", "offset", "length", "source", "encoding", "data"]))
    if column == "data":
        if not table.data:
            return
        altered = with_bytes(manifest, name, data.draw(st.integers(0, len(table.data) - 1)))
    else:
        by = data.draw(st.sampled_from([-1, 1, 7, -64, 1 << 20]))
        altered = with_row(manifest, name, row, **{column: int(getattr(table, column)[row]) + by})
    url = tmp_path / f"altered{data.draw(st.sampled_from(SUFFIXES))}"
    try:
        altered.save(url, overwrite=True)
    except (refindex.RefindexError, OverflowError, IndexError, ValueError):
        event("cannot be written")
        return
    found = refindex.verify(url, sample="all")
    try:
        with refindex.open(url) as opened:
            wrong = compare_file(str(path), store_of=lambda _: opened.store).wrong
    except refindex.RefindexError as error:
        wrong = [(name, str(error))]
    event("wrong" if wrong else "right all the same")
    assert not wrong or not found.ok, wrong
    assert all(problem.path in (name, None) for problem in found.problems)


@pytest.mark.parametrize(
    ("column", "change", "kind"),
    [
        ("chunk", lambda n, size: 1 << 40, "manifest"),
        ("source", lambda n, size: 5, "manifest"),
        ("encoding", lambda n, size: 9, "manifest"),
        ("offset", lambda n, size: size - 3, "manifest"),
        ("length", lambda n, size: 1 << 50, "manifest"),
        ("offset", lambda n, size: n + 1, None),
        ("length", lambda n, size: n - 9, None),
    ],
)
def test_rows_that_the_model_refuses(
    column: str, change: Callable[[int, int], int], kind: str | None, archive: Path, tmp_path: Path
) -> None:
    """They come from other writers, or from damage; the place of each is named."""
    path = write_weather(tmp_path / "w.nc")
    manifest = refindex.scan(path)
    table = manifest.arrays["rain"].chunks
    row = len(table) - 1
    value = change(int(getattr(table, column)[row]), path.stat().st_size)
    if archive.suffix == ".sqlite":
        manifest.save(archive)
        with altering(archive) as db:
            node = db.execute("SELECT id FROM node WHERE path = 'rain'").fetchone()[0]
            db.execute(
                f'UPDATE chunk SET "{column}" = ? WHERE node = ? AND chunk = ?', (value, node, int(table.chunk[row]))
            )
    else:
        with_row(manifest, "rain", row, **{column: value}).save(archive)
    found = refindex.verify(archive, sample="all")
    assert not found.ok
    problem = found.problems[0]
    assert problem.path == "rain"
    assert problem.chunk == (value if column == "chunk" else int(table.chunk[row]))
    if kind is not None:
        assert problem.kind == kind
        assert str(value) in f"{problem.got} {problem.chunk} {problem.expected}" or column == "length"
    assert str(problem) in str(found)


def test_every_row_is_counted(archive: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("d", data=np.arange(3000), chunks=(1,))
    manifest = refindex.scan(tmp_path / "x.h5")
    table = manifest.arrays["d"].chunks
    table.length[:] = 1 << 40
    manifest.save(archive)
    found = refindex.verify(archive, sources_only=True)
    assert found.count >= 3000
    assert len(found.problems) <= 1000


def edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        for name, value in changes.items():
            document["attributes" if name in ("attributes",) else name] = value

    return change


def attribute(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(document: dict[str, Any]) -> None:
        document["attributes"].pop(name, None)
        if value is not None:
            document["attributes"][name] = value

    return change


DOCUMENTS: dict[str, tuple[str, Callable[[dict[str, Any]], None], str]] = {
    "an attribute": ("time", attribute("units", "days since 2001-01-01"), "'units' differs"),
    "one that is gone": ("lat", attribute("units", None), "'units' is missing"),
    "one that is new": ("lat", attribute("axis", "Y"), "no attribute 'axis'"),
    "of the root": ("", attribute("title", "another"), "'title' differs"),
    "of a group's array": ("derived/mean", attribute("cell_methods", "time: sum"), "'cell_methods' differs"),
    "scale_factor": ("t2m", attribute("scale_factor", 0.02), "'scale_factor' differs"),
    "_FillValue": ("t2m", attribute("_FillValue", -998), "'_FillValue' differs"),
    "fill_value": ("rain", edit(fill_value=0.0), "fill value differs"),
    "of an integer": ("t2m", edit(fill_value=-998), "fill value differs"),
    "a dimension": ("t2m", edit(dimension_names=["time", "lon", "lat"]), "name of dimension"),
    "another name": ("rain", edit(dimension_names=["when", "lat", "lon"]), "name of dimension 0"),
    "the shape": ("t2m", edit(shape=[7, 10, 20]), "length of dimension 0"),
    "the type": ("rain", edit(data_type="int32", fill_value=0), "type"),
    "a codec": ("t2m", edit(codecs=[{"name": "nothing"}]), ""),
    "no grid": ("t2m", edit(chunk_grid={"name": "other"}), "chunk grid"),
    "no array": ("t2m", edit(node_type="thing"), "node_type"),
}


@pytest.mark.parametrize("what", DOCUMENTS)
@pytest.mark.parametrize("joined", [False, True])
def test_documents_that_say_something_else(what: str, joined: bool, archive: Path, tmp_path: Path) -> None:
    path, change, words = DOCUMENTS[what]
    first = write_weather(tmp_path / "0.nc", days=6)
    manifest = refindex.scan(first)
    if joined:
        with_later = write_weather(tmp_path / "1.nc", days=4, seed=1)
        with h5py.File(with_later, "a") as file:
            file["time"][:] += 6
        manifest = refindex.scan([first, with_later], on_difference="first", workers=1)
        if what in ("one that is gone", "the shape"):
            words = "" if what == "the shape" else words
    altered = with_document(manifest, path, change)
    altered.save(archive)
    found = refindex.verify(archive, sample="all")
    if joined and what == "one that is gone":
        assert found.ok  # files that are joined need not agree in attributes
        return
    assert not found.ok
    assert all(problem.path == path for problem in found.problems if problem.path is not None)
    if not joined:
        assert words in str(found)


def test_the_type_of_a_number(archive: Path, tmp_path: Path) -> None:
    manifest = refindex.scan(write_weather(tmp_path / "w.nc"))
    with_document(
        manifest, "t2m", lambda document: None, attribute_types={"scale_factor": "float64", "add_offset": "float32"}
    ).save(archive)
    found = refindex.verify(archive)
    assert [p.what for p in found.problems] == ["the type of the attribute 'scale_factor' differs"]
    assert (found.problems[0].expected, found.problems[0].got) == ("float32", "float64")


def test_sources(archive: Path, tmp_path: Path) -> None:
    paths = write_archive(tmp_path / "data", [Part(start=4 * n, length=4) for n in range(4)])
    refindex.scan(paths, workers=1).save(archive)
    whole = paths[1].read_bytes()
    paths[0].unlink()
    paths[1].write_bytes(whole[:-100])
    write_archive(tmp_path / "data", [Part(start=8, length=4, zlib=False)])
    found = refindex.verify(archive, sample="all")
    assert kinds(found) == {"source": 3}
    assert [p.source for p in found.problems] == [str(p) for p in paths[:3]]
    assert "relocate" in found.problems[0].remedy
    assert "append --replace" in found.problems[1].remedy
    assert found.chunks, "what lies in the other file is compared"
    assert any("problem of its own" in reason for reason in found.uncompared)


def test_a_checksum_that_is_wrong(archive: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("d", data=np.arange(4000), chunks=(500,), fletcher32=True)
    manifest = refindex.scan(tmp_path / "x.h5")
    manifest.save(archive)
    _flip(tmp_path / "x.h5", int(manifest.arrays["d"].chunks.offset[3]) + 40)
    found = refindex.verify(archive, sample="all")
    assert kinds(found) == {"unreadable": 1}
    assert (found.problems[0].path, found.problems[0].chunk) == ("d", 3)
    assert found.chunks == 7


def test_values_that_both_read_alike(archive: Path, tmp_path: Path) -> None:
    """Without a checksum, a byte that was flipped is what the original's own library reads, too."""
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["d"] = np.arange(4000)
    manifest = refindex.scan(tmp_path / "x.h5")
    manifest.save(archive)
    _flip(tmp_path / "x.h5", int(manifest.arrays["d"].chunks.offset[0]) + 40)
    right(archive)


def _flip(path: Path, at: int) -> None:
    """Flip a bit of a file that looks as it did before."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_chunks_of_another_file(archive: Path, tmp_path: Path) -> None:
    """Rows that are sound in themselves, and lead to the values of another time."""
    paths = write_archive(tmp_path / "data", [Part(start=4 * n, length=4) for n in range(3)])
    manifest = refindex.scan(paths, workers=1)
    table = manifest.arrays["x"].chunks
    row = int(np.flatnonzero(table.source == 0)[0])
    other = int(np.flatnonzero(table.source == 2)[0])
    columns = {name: int(getattr(table, name)[other]) for name in ("source", "offset", "length")}
    with_row(manifest, "x", row, **columns).save(archive)
    found = refindex.verify(archive, sample="all")
    assert kinds(found) == {"values": 1}
    problem = found.problems[0]
    assert (problem.path, problem.chunk, problem.source) == ("x", int(table.chunk[row]), str(paths[0]))


@pytest.mark.parametrize(
    "placements",
    [
        {"start": 3},
        {"length": 3},
        {"start": 5},
        {"source": 0},
        {"offset": 1},
    ],
)
def test_placements(placements: dict[str, int], archive: Path, tmp_path: Path) -> None:
    paths = write_archive(tmp_path / "data", [Part(start=4 * n, length=4) for n in range(3)])
    manifest = refindex.scan(paths, workers=1)
    middle = replace(manifest.placements[1], **placements)
    replace(manifest, placements=(manifest.placements[0], middle, manifest.placements[2])).save(archive)
    assert not refindex.verify(archive, sample="all").ok
    crosses = placements in ({"start": 3}, {"start": 5})
    assert ("contradict each other" in str(refindex.verify(archive, sources_only=True))) == crosses


def test_relations_that_contradict_themselves(tmp_path: Path) -> None:
    archive = tmp_path / "a.sqlite"
    paths = write_archive(tmp_path / "data", [Part(start=4 * n, length=4) for n in range(3)])
    refindex.scan(paths, workers=1).save(archive)
    with altering(archive) as db:
        db.execute("UPDATE source SET source = 7 WHERE source = 1")
        db.execute("UPDATE report SET status = 'fine' WHERE number = 0")
        db.execute("UPDATE placement SET source = 99 WHERE number = 2")
        db.execute("UPDATE node SET path = 'no/where' WHERE path = 'lon'")
        db.execute("UPDATE node SET document = '{' WHERE path = 'lat'")
    found = refindex.verify(archive)
    said = str(found)
    for words in ("source are not numbered", "row 0 of report", "names source 99", "no group above", "/lat"):
        assert words in said, words
    assert list(found.uncompared) == ["the manifest contradicts itself, so that nothing can be read by it"]


def test_a_chunk_in_two_files_of_a_manifest(tmp_path: Path) -> None:
    from refindex.model.change import Change
    from refindex.storage import commit

    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("d", data=np.arange(3000), chunks=(500,))
    manifest = refindex.scan(tmp_path / "x.h5")
    url = str(tmp_path / "a.refindex")
    manifest.save(url)
    again = manifest.arrays["d"].chunks.take(np.array([2, 4]))
    nodes = {path: Node(path=path, document=n.document, encodings=n.encodings) for path, n in manifest.nodes.items()}
    commit(url, Change(nodes=nodes, chunks={"d": again}), base=0, operation="append", details={})
    found = refindex.verify(url)
    twice = [p for p in found.problems if "two files" in p.what]
    assert [(p.path, p.chunk) for p in twice] == [("d", 2), ("d", 4)]


def test_inline_bytes_and_what_is_absent(archive: Path, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        sparse = file.create_dataset("d", (4000,), "i4", chunks=(500,), fillvalue=3)
        sparse[600:1700] = 1
    manifest = refindex.scan(tmp_path / "x.h5")
    table = manifest.arrays["d"].chunks
    assert len(table) == 3
    assert right(tmp_path / "x.h5").absent == 5
    # A reference that is lost reads as fill values.
    array = manifest.arrays["d"]
    lost = type(array)(
        path="d", document=array.document, encodings=array.encodings, chunks=table.take(np.array([0, 2]))
    )
    replace(manifest, arrays={"d": lost}).save(archive)
    found = refindex.verify(archive)
    assert [(p.kind, p.path, p.chunk) for p in found.problems] == [("values", "d", 2)]
    assert (table.source != INLINE).all()


def test_remote(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "www").mkdir()
    write_archive(tmp_path / "www", [Part(start=0, length=5), Part(start=5, length=3)])
    with RangeServer(tmp_path / "www") as server:
        refindex.scan([f"{server.url}/00000.nc", f"{server.url}/00005.nc"], workers=1).save(archive)
        write_archive(tmp_path / "www", [Part(start=5, length=3, zlib=False)])
        found = refindex.verify(archive, sample="all")
    assert [(p.kind, p.source) for p in found.problems] == [("source", f"{server.url}/00005.nc")]


def test_placement_of_a_source_that_is_not_there(archive: Path, tmp_path: Path) -> None:
    paths = write_archive(tmp_path / "data", [Part(start=4 * n, length=4) for n in range(2)])
    manifest = refindex.scan(paths, workers=1)
    wrong = (*manifest.placements, Placement(dim="time", source=9, start=8, length=1))
    replace(manifest, placements=wrong).save(archive)
    assert "names source 9" in str(refindex.verify(archive, sources_only=True))
