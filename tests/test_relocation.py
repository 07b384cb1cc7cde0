"""Archives whose files move: other URLs, the same references, values and history."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import h5py
import numpy as np
import pyarrow.dataset as ds
import pytest
from altered import altering
from deltalake import DeltaTable
from hypothesis import given
from hypothesis import strategies as st
from serving import RangeServer, forget_s3
from typer.testing import CliRunner

import refindex
from refindex import ExistsError, NotFoundError, SourceError, StaleSourceError, relocation, storage
from refindex.access import urls
from refindex.access.prefixes import Prefix, common_folders, moved
from refindex.cli.app import app
from refindex.storage.parquet import merge

NAMES = st.text(alphabet="ab .ü%?#+:", min_size=1, max_size=4).filter(
    lambda name: name not in (".", "..") and "::" not in name and name == name.strip(":")
)
PARTS = st.lists(NAMES, min_size=1, max_size=3)
ROOTS = [
    "file:///{}",
    "s3://bucket/{}",
    "memory://{}",
    "https://host/{}",
    "simplecache::s3://b/{}",
    "zip://{}::s3://b/x.zip",
]


def spelled(root: str, parts: list[str]) -> str:
    """A URL of names, as its protocol spells them: written anew here, by the rule that HTTP has escapes."""
    escapes = {"%": "%25", "?": "%3F", "#": "%23"}
    if root.startswith("http"):
        parts = ["".join(escapes.get(c, c) for c in part) for part in parts]
    return root.replace("{}", "/".join(parts))


@given(st.sampled_from(ROOTS), PARTS, st.sampled_from(ROOTS), PARTS, PARTS, st.sampled_from(["", "/", "//"]))
def test_what_is_below_a_prefix(
    old_root: str, old: list[str], new_root: str, new: list[str], rest: list[str], slashes: str
) -> None:
    before, after = spelled(old_root, old), spelled(new_root, new)
    here, there = Prefix.of(before + slashes), Prefix.of(after + slashes)
    # One file, and files below a folder.
    assert moved(before, here, there) == after
    assert moved(spelled(old_root, old + rest), here, there) == spelled(new_root, new + rest)
    # And back again.
    assert moved(spelled(new_root, new + rest), there, here) == spelled(old_root, old + rest)


@given(PARTS, PARTS, PARTS)
def test_local_paths_as_pathlib_sees_them(path: list[str], old: list[str], new: list[str]) -> None:
    mine, here, there = (PurePosixPath("/", *parts) for parts in (path, old, new))
    expected = f"file://{there / mine.relative_to(here)}" if mine.is_relative_to(here) else None
    assert moved(f"file://{mine}", Prefix.of(str(here)), Prefix.of(str(there))) == expected


@pytest.mark.parametrize(
    ("url", "old", "new", "expected"),
    [
        ("s3://old/a/x.nc", "s3://old", "/data", "file:///data/a/x.nc"),
        ("s3://older/x.nc", "s3://old", "/data", None),
        ("s3://old/x.nc", "s3://", "gs://", "gs://old/x.nc"),
        ("http://h/x.nc", "http://", "https://", "https://h/x.nc"),
        ("file:///data/x.nc", "/", "s3://b", "s3://b/data/x.nc"),
        ("s3://b/data/x.nc", "s3://b", "/", "file:///data/x.nc"),
        ("file:///data/x.nc", "file:///data/", "local:///other", "file:///other/x.nc"),
        ("file:///data/x.nc", "/data/sub/..", "/other/./", "file:///other/x.nc"),
        ("file:///data/x.nc", "/data/x.nc/y", "/other", None),
        ("s3://b/x.nc?versionId=1", "s3://b", "/data", "file:///data/x.nc?versionId=1"),
        ("https://h/x.nc?sig=1", "https://h/x.nc?sig=1", "https://h/x.nc?sig=2", "https://h/x.nc?sig=2"),
        ("zip://a.nc::s3://old/x.zip", "s3://old", "/data", "zip://a.nc::file:///data/x.zip"),
        ("zip://a.nc::s3://old/x.zip", "s3://old/x.zip", "s3://new/y.zip", "zip://a.nc::s3://new/y.zip"),
        ("zip://a.nc::/old/x.zip", "/old", "/new", "zip://a.nc::file:///new/x.zip"),
        ("zip://d/a.nc::s3://o/x.zip", "zip://::s3://o/x.zip", "s3://n", "s3://n/d/a.nc"),
        ("s3://n/d/a.nc", "s3://n", "zip://::s3://o/x.zip", "zip://d/a.nc::s3://o/x.zip"),
        ("zip://a.nc::s3://old/x.zip", "zip://a.nc::s3://other", "/data", None),
        ("simplecache::s3://b/x.nc", "simplecache::s3://b", "s3://b", "s3://b/x.nc"),
        ("s3://b/x.nc", "simplecache::s3://b", "s3://b", None),
        ("zip://a.nc::simplecache::s3://b/x.zip", "simplecache::s3://b", "s3://b", "zip://a.nc::s3://b/x.zip"),
    ],
)
def test_chains_and_corners(url: str, old: str, new: str, expected: str | None) -> None:
    assert moved(url, Prefix.of(old), Prefix.of(new)) == expected


def write(path: Path, start: int) -> Path:
    with h5py.File(path, "w") as file:
        file["time"] = np.arange(start, start + 4.0)
        file["time"].make_scale("time")
        values = np.random.default_rng(start).random((4, 300))
        data = file.create_dataset("x", data=values, chunks=(2, 100), compression=1)
        data.dims[0].attach_scale(file["time"])
        file["odd"] = h5py.SoftLink("/nowhere")  # not served: it is in the report
    os.utime(path, (1e9, 1e9))  # long ago: what is made now has another time
    return path


@pytest.fixture(params=[".refindex", ".sqlite"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make(tmp_path, request.param)


def make(tmp_path: Path, suffix: str) -> Path:
    """Three files in ``old``, indexed from beside it."""
    (tmp_path / "old").mkdir()
    paths = [write(tmp_path / "old" / f"{start:02}.h5", start) for start in (0, 4, 8)]
    (tmp_path / "old" / "broken.h5").write_bytes(b"not HDF5")  # that, too, is in the report
    out = tmp_path / f"archive{suffix}"
    refindex.scan([*paths, tmp_path / "old" / "broken.h5"], workers=1).save(out)
    (tmp_path / "old" / "broken.h5").unlink()
    return out


def values(folder: Path) -> np.ndarray[Any, Any]:
    """What h5py reads."""
    found = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            found.append(file["x"][()])
    return np.concatenate(found)


def check(archive: Path, expected: np.ndarray[Any, Any], **options: Any) -> None:
    with refindex.open(archive, **options) as opened:
        np.testing.assert_array_equal(opened.group["x"][...], expected)


def stored_urls(archive: Path) -> list[str]:
    """URLs as the manifest spells them."""
    if archive.suffix == ".sqlite":
        with altering(archive) as db:
            return [row[0] for row in db.execute("SELECT url FROM source WHERE removed IS NULL ORDER BY source")]
    table = DeltaTable(archive).to_pyarrow_dataset().to_table(filter=ds.field("kind") == "source")
    return [row["url"] for row in sorted(table.to_pylist(), key=lambda row: row["source"])]


def chunk_rows(archive: Path) -> list[Any]:
    """All that there is of references: rows with the versions that added and removed them, or files."""
    if archive.suffix == ".sqlite":
        with altering(archive) as db:
            return db.execute("SELECT * FROM chunk ORDER BY node, chunk, added").fetchall()
    return sorted((path.name, path.stat().st_mtime_ns) for path in (archive / "kind=chunk").iterdir())


def test_a_folder_moves(archive: Path, tmp_path: Path) -> None:
    expected, before = values(tmp_path / "old"), chunk_rows(archive)
    assert stored_urls(archive) == ["old/00.h5", "old/04.h5", "old/08.h5"]
    (tmp_path / "far").mkdir()
    shutil.move(tmp_path / "old", tmp_path / "far" / "new")
    with pytest.raises(SourceError, match="no such file"):
        check(archive, expected)
    done = refindex.relocate(archive, tmp_path / "old", f"{tmp_path}/far/new/")
    assert done.version == 1
    assert done.moved == tuple((f"{tmp_path}/old/{n}.h5", f"{tmp_path}/far/new/{n}.h5") for n in ("00", "04", "08"))
    assert (done.renewed, done.stayed) == ((), 0)  # mv keeps the time
    assert stored_urls(archive) == ["far/new/00.h5", "far/new/04.h5", "far/new/08.h5"]
    assert chunk_rows(archive) == before
    check(archive, expected)
    with refindex.open(archive) as opened:
        with refindex.open(archive, version=0) as first:
            entries = [(entry.source.replace("/old/", "/far/new/"), entry.reason) for entry in first.report]
        assert [(entry.source, entry.reason) for entry in opened.report] == entries
        assert {source for source, _ in entries} == {done.moved[0][1], f"{tmp_path}/far/new/broken.h5"}
        assert any(entry.path == "/odd" for entry in opened.report.problems)
    commit = refindex.log(archive)[0]
    assert commit.operation == "relocate"
    assert commit.details == {"old": f"{tmp_path}/old", "new": f"{tmp_path}/far/new", "sources": 3}
    # What comes next knows the files by their new names.
    more = refindex.append(archive, [tmp_path / "far" / "new", write(tmp_path / "12.h5", 12)], workers=1)
    assert (len(more.skipped), len(more.added)) == (3, 1)
    with h5py.File(tmp_path / "12.h5") as file:
        check(archive, np.concatenate([expected, file["x"][()]]))
    # The old state is there, and comes back.
    assert refindex.restore(archive, 0) == 3
    shutil.move(tmp_path / "far" / "new", tmp_path / "old")
    check(archive, expected)
    check(archive, expected, version=0)


def test_files_out_of_the_folder_of_the_manifest_and_back(archive: Path, tmp_path: Path) -> None:
    """Absolute where they do not lie below it."""
    home = tmp_path / "home"
    home.mkdir()
    for part in (archive, archive.with_name(archive.name + "-wal"), archive.with_name(archive.name + "-shm")):
        if part.exists():
            shutil.move(part, home)
    archive = home / archive.name
    # The manifest moved, and its files did not.
    done = refindex.relocate(archive, home / "old", tmp_path / "old")
    assert [name for name, _ in done.moved] == [f"{home}/old/{n}.h5" for n in ("00", "04", "08")]
    assert stored_urls(archive) == [f"file://{tmp_path}/old/{n}.h5" for n in ("00", "04", "08")]
    check(archive, values(tmp_path / "old"))
    (home / "00.h5").symlink_to(tmp_path / "old" / "00.h5")
    done = refindex.relocate(archive, tmp_path / "old" / "00.h5", home / "00.h5")
    assert (len(done.moved), done.stayed) == (1, 2)
    assert stored_urls(archive)[0] == "00.h5"
    check(archive, values(tmp_path / "old"))


def test_nothing_but_names_is_written(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for start in range(12, 60, 4):
        refindex.append(archive, write(tmp_path / "old" / f"{start:02}.h5", start), workers=1)
    shutil.move(tmp_path / "old", tmp_path / "new")
    monkeypatch.setattr(merge, "FILES", 2)  # whatever is touched would be merged
    before = chunk_rows(archive)
    version = refindex.relocate(archive, tmp_path / "old", tmp_path / "new").version
    assert chunk_rows(archive) == before
    check(archive, values(tmp_path / "new"))
    if archive.suffix == ".refindex":
        lines = (archive / "_delta_log" / f"{version:020}.json").read_text().splitlines()
        actions = [action for action in map(json.loads, lines) if "add" in action or "remove" in action]
        kinds = {(what, path["path"].partition("/")[0]) for a in actions for what, path in a.items()}
        assert kinds == {(what, f"kind={kind}") for what in ("add", "remove") for kind in ("source", "report")}
    else:
        with altering(archive) as db:
            for table in ("chunk", "placement", "node"):
                found = db.execute(f"SELECT count(*) FROM {table} WHERE {version} IN (added, removed)").fetchone()
                assert found == (0,), table


def test_delta_rs_reads_it(tmp_path: Path) -> None:
    archive = make(tmp_path, ".refindex")
    shutil.move(tmp_path / "old", tmp_path / "new")
    refindex.relocate(archive, tmp_path / "old", tmp_path / "new")
    table = DeltaTable(archive)
    assert [entry["operation"] for entry in table.history()] == ["relocate", "write"]
    for kind, count in (("source", 3), ("chunk", None), ("report", None)):
        mine, old = (
            DeltaTable(archive, version=v).to_pyarrow_dataset().to_table(filter=ds.field("kind") == kind).to_pylist()
            for v in (1, 0)
        )
        if kind != "chunk":
            assert [row["url"].replace("new/", "old/") for row in mine] == [row["url"] for row in old]
            assert all(row["url"].startswith("new/") for row in mine)
        mine, old = ([row | {"url": None} for row in rows] for rows in (mine, old))
        assert mine == old
        assert count is None or len(mine) == count


def test_copies_have_another_time(archive: Path, tmp_path: Path) -> None:
    expected = values(tmp_path / "old")
    (tmp_path / "new").mkdir()
    for path in (tmp_path / "old").iterdir():
        shutil.copyfile(path, tmp_path / "new" / path.name)
        os.utime(tmp_path / "new" / path.name, (2e9, 2e9))
    shutil.copystat(tmp_path / "old" / "04.h5", tmp_path / "new" / "04.h5")
    done = refindex.relocate(archive, tmp_path / "old", tmp_path / "new", check=False)
    assert done.renewed == ()
    with pytest.raises(StaleSourceError):
        check(archive, expected)
    check(archive, expected, stale="ignore")
    refindex.restore(archive, 0)
    tried = refindex.relocate(archive, tmp_path / "old", tmp_path / "new", dry_run=True)
    assert (tried.version, len(tried.moved), len(tried.renewed)) == (2, 3, 2)
    done = refindex.relocate(archive, tmp_path / "old", tmp_path / "new")
    assert done.renewed == (f"{tmp_path}/new/00.h5", f"{tmp_path}/new/08.h5")
    assert done.version == 3
    check(archive, expected)
    os.utime(tmp_path / "new" / "00.h5", (1e9, 1e9))  # a change after that is noticed as ever
    with pytest.raises(StaleSourceError):
        check(archive, expected)


def test_files_that_are_not_there_or_others(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    shutil.copy2(tmp_path / "old" / "00.h5", tmp_path / "new")
    with pytest.raises(NotFoundError) as missing:
        refindex.relocate(archive, tmp_path / "old", tmp_path / "new")
    first, *lines = str(missing.value).splitlines()
    assert first.startswith("2 of 3 files are not at their new places")
    assert [line.strip().partition(":")[0] for line in lines] == [f"{tmp_path}/new/{n}.h5" for n in ("04", "08")]
    (tmp_path / "new" / "04.h5").write_bytes((tmp_path / "old" / "04.h5").read_bytes()[:-1])
    shutil.copy2(tmp_path / "old" / "08.h5", tmp_path / "new")
    size = (tmp_path / "old" / "04.h5").stat().st_size
    with pytest.raises(StaleSourceError, match=rf"{tmp_path}/new/04.h5: .* size {size - 1}, not {size}$"):
        refindex.relocate(archive, tmp_path / "old", tmp_path / "new")
    with pytest.raises(SourceError, match="new: a folder"):
        refindex.relocate(archive, tmp_path / "old" / "00.h5", tmp_path / "new")
    assert len(refindex.log(archive)) == 1
    assert refindex.relocate(archive, tmp_path / "old", tmp_path / "new", check=False).version == 1


def test_an_error_with_many_files_is_bounded(tmp_path: Path) -> None:
    pairs = [(refindex.Source(url=f"file:///{n}", size=1),) * 2 for n in range(2000)]
    looked = {now.url: refindex.Source(url=now.url, size=2) for _, now in pairs}
    with pytest.raises(StaleSourceError, match=r"(?s)2000 of 2000 .*and 1950 more$") as caught:
        relocation._found(pairs, dict(looked))
    assert len(str(caught.value).splitlines()) == 52


def test_places_that_cannot_be_meant(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=rf"/ol: no source of .* is there; they are below {tmp_path}/old$"):
        refindex.relocate(archive, tmp_path / "ol", tmp_path / "new")
    with pytest.raises(NotFoundError, match=rf"all of them are below {tmp_path}/old already"):
        refindex.relocate(archive, tmp_path / "older", tmp_path / "old")
    with pytest.raises(ValueError, match="the old place and the new one are the same"):
        refindex.relocate(archive, tmp_path / "old", f"{tmp_path}/old/")
    with pytest.raises(ExistsError, match=rf"{tmp_path}/old/00.h5 and {tmp_path}/old/04.h5 would both become"):
        refindex.relocate(archive, tmp_path / "old" / "04.h5", tmp_path / "old" / "00.h5")
    with pytest.raises(NotFoundError, match="no refindex archive"):
        refindex.relocate(tmp_path / "none", tmp_path / "old", tmp_path / "new")
    assert len(refindex.log(archive)) == 1


def test_sources_in_many_folders_are_named_by_few(tmp_path: Path) -> None:
    places = [f"file:///data/{year}/{month}" for year in range(30) for month in range(12)]
    assert common_folders(places, 5) == (["file:///data"], False)
    assert common_folders([*places, "s3://b"], 5) == (["file:///data", "s3://b"], False)
    assert common_folders([f"s3://b{n}" for n in range(9)], 5) == ([f"s3://b{n}" for n in range(5)], True)


def test_another_writer_is_faster(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it appended is there in the end, under the name that it has; files are looked at once."""
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    expected = values(tmp_path / "new")
    real: Callable[..., Any] = relocation._look
    asked: list[str] = []

    def look(places: list[str], options: Any) -> Any:
        if not asked:
            # One is where files were; the other is elsewhere.
            refindex.append(archive, [write(tmp_path / "old" / "12.h5", 12), write(tmp_path / "16.h5", 16)], workers=1)
            shutil.copy2(tmp_path / "old" / "12.h5", tmp_path / "new")
        asked.extend(places)
        return real(places, options)

    monkeypatch.setattr(relocation, "_look", look)
    done = refindex.relocate(archive, tmp_path / "old", tmp_path / "new")
    assert [Path(place).name for place in asked] == ["00.h5", "04.h5", "08.h5", "12.h5"]
    assert (done.version, len(done.moved), done.stayed) == (2, 4, 1)
    assert [commit.operation for commit in refindex.log(archive)] == ["relocate", "append", "write"]
    shutil.rmtree(tmp_path / "old")
    parts = [expected]
    for path in (tmp_path / "new" / "12.h5", tmp_path / "16.h5"):
        with h5py.File(path) as file:
            parts.append(file["x"][()])
    check(archive, np.concatenate(parts))


def test_difference_names_what_moved(archive: Path, tmp_path: Path) -> None:
    shutil.move(tmp_path / "old", tmp_path / "new")
    refindex.relocate(archive, tmp_path / "old", tmp_path / "new")
    (tmp_path / "new" / "04.h5").rename(tmp_path / "new" / "renamed.h5")
    refindex.relocate(archive, tmp_path / "new" / "04.h5", tmp_path / "new" / "renamed.h5")
    refindex.append(archive, write(tmp_path / "12.h5", 12), workers=1)
    found = refindex.diff(archive, 0, 1)
    assert found.sources_moved == tuple(
        (f"{tmp_path}/old/{n}.h5", f"{tmp_path}/new/{n}.h5") for n in ("00", "04", "08")
    )
    assert (found.sources_added, found.sources_removed, found.sources_changed, found.arrays) == ((), (), (), ())
    assert f"~ source {tmp_path}/old/00.h5 -> {tmp_path}/new/00.h5" in str(found).splitlines()
    found = refindex.diff(archive, 0, 3)
    assert [new for _, new in found.sources_moved] == [f"{tmp_path}/new/{n}.h5" for n in ("00", "renamed", "08")]
    assert found.sources_added == (f"{tmp_path}/12.h5",)
    assert [(a.path, a.added, a.removed, a.changed) for a in found.arrays if a.path == "x"] == [("x", 6, 0, 0)]
    assert [(new, old) for old, new in refindex.diff(archive, 3, 0).sources_moved] == list(found.sources_moved)


def test_other_storages(archive: Path, tmp_path: Path) -> None:
    """To HTTP, with names that need escapes there, into a zip file, and back."""
    expected = values(tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "a b%3F#")
    with RangeServer(tmp_path) as server:
        done = refindex.relocate(archive, tmp_path / "old", f"{server.url}/a b%253F%23")
        assert len(done.moved) == 3
        assert len(server.requests) <= 6
        check(archive, expected)
        with pytest.raises(
            NotFoundError, match=r"3 of 3 files .*(\n  http://127.0.0.1:\d+/none/0\d.h5: no such file.*){2}"
        ):
            refindex.relocate(archive, f"{server.url}/a b%253F%23", f"{server.url}/none")
        packed = tmp_path / "packed.zip"
        with zipfile.ZipFile(packed, "w") as file:
            for path in (tmp_path / "old").iterdir():
                file.write(path, f"in/{path.name}")
        fsspec.filesystem("memory").pipe_file("/m/packed.zip", packed.read_bytes())
        refindex.relocate(archive, f"{server.url}/a b%253F%23", "zip://in::memory://m/packed.zip")
    assert stored_urls(archive)[0] == "zip://in/00.h5::memory://m/packed.zip"
    check(archive, expected)
    refindex.relocate(archive, "memory://m", tmp_path)
    with refindex.open(archive) as opened:
        assert opened.sources[0].url == f"zip://in/00.h5::file://{tmp_path}/packed.zip"
    check(archive, expected)


@pytest.mark.timeout(120)
def test_to_object_storage_and_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive moves there, too, and is relocated there."""
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    archive = make(tmp_path, ".refindex")
    expected = values(tmp_path / "old")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"s3": {"endpoint_url": f"http://{host}:{port}"}}
        fs = fsspec.filesystem("s3", **options["s3"])
        if not fs.exists("relocated"):
            fs.mkdir("relocated")
        for path in (tmp_path / "old").iterdir():
            fs.pipe_file(f"relocated/data/{path.name}", path.read_bytes())
        done = refindex.relocate(archive, tmp_path / "old", "s3://relocated/data", storage_options=options)
        assert (len(done.moved), len(done.renewed)) == (3, 3)  # S3 has tags, and times of its own
        check(archive, expected, storage_options=options)
        fs.put(str(archive), "relocated/", recursive=True)
        there: Any = "s3://relocated/archive.refindex"
        with refindex.open(there, storage_options=options) as opened:
            assert opened.sources[0].url == "s3://relocated/data/00.h5"
        done = refindex.relocate(there, "s3://relocated/data", tmp_path / "old", storage_options=options)
        assert (done.version, len(done.renewed)) == (2, 3)
        check(there, expected, storage_options=options)
        assert refindex.relocate(there, tmp_path, "s3://relocated", storage_options=options, check=False).version == 3
    finally:
        server.stop()
        forget_s3()


def test_a_change_in_memory(archive: Path, tmp_path: Path) -> None:
    """What both storages make of a change, a manifest in memory does, too."""
    made: list[Any] = []

    class Stop(Exception):
        pass

    def commit(url: str, content: Any, **options: Any) -> int:
        made.append(content)
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "commit", commit)
        with pytest.raises(Stop):
            refindex.relocate(archive, tmp_path / "old", tmp_path / "new", check=False)
    with closing(storage.open_reader(urls.absolute(archive))) as reader:
        manifest = made[0].applied_to(storage.load(reader))
    refindex.relocate(archive, tmp_path / "old", tmp_path / "new", check=False)
    with closing(storage.open_reader(urls.absolute(archive))) as reader:
        assert manifest.sources == tuple(reader.sources)
        assert manifest.report.entries == reader.report.entries


def test_the_command(archive: Path, tmp_path: Path) -> None:
    def run(*arguments: object, code: int = 0) -> Any:
        done = CliRunner().invoke(app, ["relocate", *map(str, arguments)])
        assert done.exit_code == code, done.output
        return done

    shutil.copytree(tmp_path / "old", tmp_path / "new", copy_function=shutil.copyfile)
    refindex.append(archive, write(tmp_path / "12.h5", 12), workers=1)
    tried = json.loads(run(archive, tmp_path / "old", tmp_path / "new", "--dry-run", "--json").stdout)
    assert (tried["version"], len(tried["moved"]), tried["stayed"]) == (1, 3, 1)
    assert tried["renewed"] == [f"{tmp_path}/new/{n}.h5" for n in ("00", "04", "08")]
    assert run(archive, tmp_path / "old", tmp_path / "new", "--dry-run").stdout.endswith("nothing was written\n")
    lines = run(archive, tmp_path / "old", tmp_path / "new").stdout.splitlines()
    assert lines[0] == "3 files moved, 1 file elsewhere"
    assert lines[1] == "identity of 3 files taken anew: same size, another time or entity tag"
    assert lines[2] == f"wrote {archive} (version 2)"
    same = run(archive, tmp_path / "new", tmp_path / "new", code=2)
    assert "are the same" in same.output
    assert isinstance(
        CliRunner().invoke(app, ["relocate", str(archive), "/nowhere", "/x"]).exception, refindex.NotFoundError
    )
