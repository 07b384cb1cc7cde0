"""Published archives: what others open, wherever it is moved, and what stays when publishing fails."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import xarray as xr
from aiohttp import web
from serving import RangeServer, forget_s3
from test_killed import in_child, kill_at_file_operation
from typer.testing import CliRunner

import refindex
from refindex import storage
from refindex.access import urls
from refindex.cli.app import app
from refindex.publication import beside

KINDS = ("refindex", "sqlite")


def write(path: Path, first: int, days: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = xr.Dataset(
        {"t2m": (("time", "lat", "lon"), np.random.default_rng(first).random((days, 45, 80)).astype("f4"))},
        {
            "time": (
                "time",
                np.arange(first, first + days),
                {"units": "days since 2001-01-01", "calendar": "standard"},
            ),
            "lat": ("lat", np.arange(-88, 92, 4.0), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0, 360, 4.5), {"units": "degrees_east"}),
        },
        {"title": "<script>alert(1)</script>"},
    )
    dataset.to_netcdf(path, engine="netcdf4", encoding={"t2m": {"zlib": True}})
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with an archive of several versions and its sources below it."""
    folder = tmp_path / "here"
    first, second = write(folder / "data/a.nc", 0), write(folder / "data/b.nc", 4)
    refindex.scan(first, concat_dim="time").save(folder / "work.refindex")
    refindex.append(folder / "work.refindex", second, concat_dim="time")
    return folder


def values(url: object) -> xr.Dataset:
    with xr.open_dataset(str(url), engine="refindex", decode_times=False) as dataset:
        return dataset.load()


def expected(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    """What h5py says."""
    found = {}
    for name, axis in (("t2m", 0), ("time", 0), ("lat", None), ("lon", None)):
        parts = []
        for path in sorted((folder / "data").iterdir()):
            with h5py.File(path) as file:
                parts.append(file[name][...])
        found[name] = parts[0] if axis is None else np.concatenate(parts)
    return found


def check(url: object, wanted: dict[str, np.ndarray[Any, Any]]) -> None:
    found = values(url)
    assert set(found.variables) == set(wanted)
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name].values, array)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_opens_wherever_it_is_moved(kind: str, place: Path, tmp_path: Path) -> None:
    """Two servers, two folders; what was scanned is no more."""
    wanted = expected(place)
    done = refindex.publish(place / "work.refindex", place / f"pub.{kind}")
    assert (done.version, done.relative, done.sources, done.moved, done.local) == (0, 2, 2, 0, ())
    shutil.rmtree(place / "work.refindex")
    (tmp_path / "served").mkdir()
    place.rename(tmp_path / "served" / "deep")
    check(tmp_path / f"served/deep/pub.{kind}", wanted)
    with RangeServer(tmp_path / "served") as one, RangeServer(tmp_path / "served/deep") as other:
        check(f"{one.url}/deep/pub.{kind}", wanted)
        check(f"{other.url}/pub.{kind}", wanted)
        # The page and the item are there.
        folder = f"{other.url}/pub.{kind}" if kind == "refindex" else other.url
        names = ("index.html", "stac.json") if kind == "refindex" else ("pub.html", "pub.stac.json")
        for name in names:
            with fsspec.open(f"{folder}/{name}") as file:
                assert file.read(1)


def test_sources_that_are_public_elsewhere(place: Path, tmp_path: Path) -> None:
    wanted = expected(place)
    (tmp_path / "site/data").mkdir(parents=True)
    for path in (place / "data").iterdir():
        os.utime(shutil.copy(path, tmp_path / "site/data"), (5e8, 5e8))
    with RangeServer(tmp_path / "site") as data:
        done = refindex.publish(
            place / "work.refindex", tmp_path / "out/pub.refindex", sources={place / "data": f"{data.url}/data"}
        )
        assert (done.moved, done.relative, len(done.renewed)) == (2, 0, 2)
        shutil.rmtree(place)
        check(tmp_path / "out/pub.refindex", wanted)
        with refindex.open(tmp_path / "out/pub.refindex") as archive:
            assert [s.url for s in archive.sources] == [f"{data.url}/data/{name}.nc" for name in "ab"]
            assert all(s.etag for s in archive.sources)  # as it is there
            assert {entry.source for entry in archive.report} <= {f"{data.url}/data/{name}.nc" for name in "ab"}
        # What is recorded of the public file is compared when it is read.
        write(tmp_path / "site/data/a.nc", 1)
        with pytest.raises(refindex.StaleSourceError):
            values(tmp_path / "out/pub.refindex")


def test_to_be_copied_together(place: Path, tmp_path: Path) -> None:
    """The data is put beside the archive later: relative, and nothing is there to look at."""
    out = tmp_path / "stage/pub.sqlite"
    moves = {place / "data": tmp_path / "stage/files"}
    with pytest.raises(refindex.NotFoundError, match="2 of 2 sources cannot be read"):
        refindex.publish(place / "work.refindex", out, sources=moves)
    assert not (tmp_path / "stage").exists()
    done = refindex.publish(place / "work.refindex", out, sources=moves, check=False)
    assert (done.relative, done.moved) == (2, 2)
    wanted = expected(place)
    (place / "data").rename(tmp_path / "stage/files")
    (tmp_path / "stage").rename(tmp_path / "elsewhere")
    check(tmp_path / "elsewhere/pub.sqlite", wanted)


def test_the_longest_prefix_counts(place: Path, tmp_path: Path) -> None:
    moves = {place / "data": "https://data.example.org/era5", place / "data/b.nc": "s3://bucket/b.nc"}
    refindex.publish(place / "work.refindex", tmp_path / "a.refindex", sources=moves, check=False)
    with refindex.open(tmp_path / "a.refindex") as archive:
        assert [s.url for s in archive.sources] == ["https://data.example.org/era5/a.nc", "s3://bucket/b.nc"]
    with pytest.raises(refindex.NotFoundError, match="nowhere: no source of the archive is there"):
        refindex.publish(place / "work.refindex", tmp_path / "b.refindex", sources={"/nowhere": "s3://b"}, check=False)
    both = {place / "data/a.nc": "s3://b/x.nc", place / "data/b.nc": "s3://b/x.nc"}
    with pytest.raises(refindex.ExistsError, match="would both become"):
        refindex.publish(place / "work.refindex", tmp_path / "b.refindex", sources=both, check=False)
    assert not (tmp_path / "b.refindex").exists()


def test_files_of_this_machine(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "out/pub.refindex"
    with pytest.raises(refindex.SourceError, match=r"2 of 2 sources are files of this machine .*data/a\.nc"):
        refindex.publish(place / "work.refindex", out)
    assert not out.parent.exists()
    done = refindex.publish(place / "work.refindex", out, allow_local=True)
    assert done.local == tuple(str(place / f"data/{name}.nc") for name in "ab")
    check(out, expected(place))
    # In a zip file, too.
    with zipfile.ZipFile(place / "all.zip", "w") as file:
        file.write(place / "data/a.nc", "a.nc")
    refindex.scan(f"zip://a.nc::{place}/all.zip").save(place / "zipped.refindex")
    with pytest.raises(refindex.SourceError, match=r"1 of 1 sources are files"):
        refindex.publish(place / "zipped.refindex", out, overwrite=True)
    assert refindex.publish(place / "zipped.refindex", place / "z.refindex").relative == 1


def no_ranges(server: RangeServer, request: web.Request, number: int) -> web.Response | None:
    return web.Response(body=(server.folder / request.path.lstrip("/")).read_bytes())


def fails(server: RangeServer, request: web.Request, number: int) -> web.Response | None:
    return web.Response(status=403) if request.path.endswith("b.nc") else None


@pytest.mark.parametrize(
    ("trouble", "change", "error", "match"),
    [
        (no_ranges, None, refindex.SourceError, r"2 of 2 .*(?s:.*)knows no ranges"),
        (fails, None, refindex.SourceError, r"1 of 2 .*(?s:.*)b\.nc: permission denied"),
        (None, lambda p: p.write_bytes(p.read_bytes() + b"x"), refindex.StaleSourceError, r"1 of 2 (?s:.*)b\.nc: not "),
        (None, lambda p: p.unlink(), refindex.NotFoundError, r"1 of 2 (?s:.*)b\.nc: no such file"),
    ],
    ids=["ranges", "denied", "size", "missing"],
)
def test_sources_that_do_not_answer(
    trouble: Any, change: Any, error: type[Exception], match: str, place: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pub.refindex"
    shutil.copytree(place / "data", tmp_path / "site")
    if change is not None:
        change(tmp_path / "site/b.nc")
    with RangeServer(tmp_path / "site", trouble=trouble, delay=0.1) as server:
        moves = {place / "data": server.url}
        with pytest.raises(error, match=match):
            refindex.publish(place / "work.refindex", out, sources=moves)
        assert not out.exists()
        assert server.most_at_once == 2
        done = refindex.publish(place / "work.refindex", out, sources=moves, dry_run=True)
        assert done.version is None
        assert len(done.problems) == (2 if trouble is no_ranges else 1)
        assert not out.exists()
        server.forget()
        refindex.publish(place / "work.refindex", out, sources=moves, check=False)
        assert server.requests == []


def test_options_of_the_sources_and_of_the_copy(place: Path, tmp_path: Path) -> None:
    """What lies elsewhere is not asked with the options of what is written."""

    def guarded(server: RangeServer, request: web.Request, number: int) -> web.Response | None:
        return None if request.headers.get("X-Key") == "right" else web.Response(status=401)

    with RangeServer(place, trouble=guarded) as server:
        refindex.publish(
            place / "work.refindex",
            tmp_path / "pub.refindex",
            sources={place / "data": f"{server.url}/data"},
            storage_options={"http": {"headers": {"X-Key": "right"}}},
            dest_options={"http": {"headers": {"X-Key": "wrong"}}},
        )


def test_a_source_that_has_changed_where_it_was_scanned(place: Path) -> None:
    """Its new state must not be recorded as if it had been scanned."""
    os.utime(place / "data/a.nc", (0, 0))
    with pytest.raises(refindex.StaleSourceError, match=r"a\.nc: not the file that was scanned: modified"):
        refindex.publish(place / "work.refindex", place / "pub.refindex")


@pytest.mark.parametrize("kind", KINDS)
def test_over_another(kind: str, place: Path) -> None:
    out = place / f"pub.{kind}"
    refindex.publish(place / "work.refindex", out, version=0)
    old = values(out)
    before = tree(place)
    with pytest.raises(refindex.ExistsError, match="--overwrite"):
        refindex.publish(place / "work.refindex", out)
    with pytest.raises(refindex.ExistsError, match="is the archive itself"):
        refindex.publish(out, out, overwrite=True)
    assert tree(place) == before
    with refindex.open(out) as reader:
        assert refindex.publish(place / "work.refindex", out, overwrite=True).version == 1
        # Who has it open reads on, and can move on.
        np.testing.assert_array_equal(reader.group["t2m"][:], old["t2m"].values)
        assert reader.refresh()
        assert reader.version == 1
    check(out, expected(place))
    assert [c.operation for c in refindex.log(out)] == ["publish"] * (2 if kind == "refindex" else 1)
    # What is published is an archive like any other.
    write(place / "data/c.nc", 8)
    refindex.append(out, place / "data/c.nc")
    check(out, expected(place))


def test_what_is_not_ours_stays(place: Path) -> None:
    (place / "pub.html").write_text("years of work")
    with pytest.raises(refindex.ExistsError, match=r"pub\.html exists and was not written by refindex"):
        refindex.publish(place / "work.refindex", place / "pub.sqlite")
    assert not (place / "pub.sqlite").exists()
    done = refindex.publish(place / "work.refindex", place / "pub.sqlite", summary=False)
    assert done.files == (str(place / "pub.stac.json"),)
    (place / "folder").mkdir()
    (place / "folder/thesis.txt").write_text("years of work")
    with pytest.raises(refindex.ExistsError, match="not a refindex archive"):
        refindex.publish(place / "work.refindex", place / "folder", overwrite=True)
    assert (place / "pub.html").read_text() == (place / "folder/thesis.txt").read_text() == "years of work"


def opened(url: Path) -> str:
    """Which archive is there."""
    try:
        with closing(storage.open_reader(urls.absolute(url))) as reader:
            manifest = storage.load(reader)
    except refindex.NotFoundError:
        return "none"
    return str(manifest.arrays["time"].shape[0])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_every_file_operation(kind: str, over: bool, place: Path, tmp_path: Path) -> None:
    """There is the old one or the new one; the next run replaces it, and removes what the killed one has left."""
    outcomes = []
    if over:
        refindex.publish(place / "work.refindex", place / f"pub.{kind}", version=0)
    for number in itertools.count():
        box = tmp_path / f"box{number}"
        shutil.copytree(place, box)
        out = box / f"pub.{kind}"
        code = in_child(
            lambda b=box, o=out: refindex.publish(b / "work.refindex", o, overwrite=True),
            lambda n=number, b=box: kill_at_file_operation(n, b),
        )
        assert code in (0, -9)
        outcomes.append(opened(out))
        assert outcomes[-1] in (("4" if over else "none"), "8"), number
        if code == 0:
            break
        for path in [box, *box.rglob("*")]:  # an hour goes by
            if path.name.endswith(".tmp") or ".tmp/" in str(path) or "kind=" in str(path):
                os.utime(path, (path.stat().st_mtime - 4000,) * 2)
        refindex.publish(box / "work.refindex", out, overwrite=True)
        assert opened(out) == "8"
        assert not list(box.rglob(".*"))
        if kind == "refindex":
            assert storage.vacuum(str(out), grace=storage.GRACE * 0) == []
        shutil.rmtree(box)
    assert number >= 4
    assert outcomes == sorted(outcomes, key=lambda found: found == "8")


def test_what_a_busy_run_has_written_stays(place: Path) -> None:
    busy = place / f".pub.refindex.{'0' * 32}.tmp"
    (busy / "kind=chunk").mkdir(parents=True)
    other = place / ".pub.refindex.mine.tmp"
    other.write_text("not ours")
    for path in (busy, other):
        os.utime(path, (0, 0))
    refindex.publish(place / "work.refindex", place / "pub.refindex")
    assert busy.exists()  # a file in it has changed just now
    os.utime(busy / "kind=chunk", (0, 0))
    os.utime(busy, (0, 0))
    beside.remove_leftovers(place / "pub.refindex")
    assert not busy.exists()
    assert other.exists()


def test_from_memory_a_source_and_an_open_archive(place: Path) -> None:
    manifest = refindex.scan(place / "data/a.nc")
    with refindex.open(place / "work.refindex", version=0) as archive:
        for number, what in enumerate((manifest, place / "data/a.nc", archive)):
            refindex.publish(what, place / f"{number}.sqlite")
            assert values(place / f"{number}.sqlite").identical(values(place / "work.refindex").isel(time=slice(4)))


@pytest.mark.parametrize("to", KINDS)
def test_from_a_server(to: str, place: Path, tmp_path: Path) -> None:
    """Read in place; its sources are those beside it there."""
    wanted = expected(place)
    refindex.publish(place / "work.refindex", place / "pub.refindex")
    with RangeServer(place) as server:
        for name in ("work", "pub"):
            out = tmp_path / f"{name}.{to}"
            seen: list[tuple[str, int, int]] = []

            def watch(*said: Any, seen: list[tuple[str, int, int]] = seen) -> None:
                seen.append(said)  # type: ignore[arg-type]

            done = refindex.publish(f"{server.url}/{name}.refindex", out, progress=watch)
            assert (done.moved, done.relative, done.local) == (0, 0, ())
            assert {what for what, _, _ in seen} == {"looking", "writing"}
            assert [said for said in seen if said[0] == "looking"] == [("looking", 1, 2), ("looking", 2, 2)]
            assert seen[-1] == ("writing", 5, 5)
            check(out, wanted)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    options = {"endpoint_url": "http://{}:{}".format(*server.get_host_and_port())}
    fs = fsspec.filesystem("s3", **options)
    if not fs.exists("published"):
        fs.mkdir("published")
    for path in fs.find("published"):
        fs.rm_file(path)
    try:
        yield options
    finally:
        forget_s3()
        server.stop()


@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", KINDS)
def test_to_object_storage(kind: str, place: Path, s3: dict[str, Any]) -> None:
    fs = fsspec.filesystem("s3", **s3)
    for path in (place / "data").iterdir():
        fs.put_file(str(path), f"published/data/{path.name}")
    out = f"s3://published/pub.{kind}"
    options = {"dest_options": s3, "sources": {place / "data": "s3://published/data"}}
    stray = "published/pub.refindex/kind=chunk/part-00000-stray.zstd.parquet"
    if kind == "refindex":
        fs.pipe_file(stray, b"what a run that was killed has left")
    assert refindex.publish(place / "work.refindex", out, version=0, **options).version == 0
    with refindex.open(out, storage_options=s3) as reader:
        done = refindex.publish(place / "work.refindex", out, overwrite=True, **options)
        assert (done.version, done.relative) == (1, 2)
        assert reader.group["t2m"].shape[0] == 4
        np.testing.assert_array_equal(reader.group["t2m"][:], expected(place)["t2m"][:4])
    with refindex.open(out, storage_options=s3) as archive:
        np.testing.assert_array_equal(archive.group["t2m"][:], expected(place)["t2m"])
    page = "published/pub.refindex/index.html" if kind == "refindex" else "published/pub.html"
    assert fs.info(page)["ContentType"] == "text/html"
    assert out.encode() in fs.cat_file(page)  # how to open it


runner = CliRunner()


def test_the_command(place: Path, tmp_path: Path) -> None:
    work, out = str(place / "work.refindex"), str(place / "pub.refindex")
    found = runner.invoke(app, ["publish", work, out, "--dry-run"])
    assert found.exit_code == 0
    assert "2 sources: 2 relative to" in found.stdout
    assert "nothing was written; would write" in found.stdout
    assert not Path(out).exists()
    found = runner.invoke(app, ["publish", work, out, "--json", "--title", "T", "--license", "CC-BY-4.0"])
    said = json.loads(found.stdout)
    assert (said["version"], said["arrays"], said["references"], said["relative"]) == (0, 4, 5, 2)
    assert "problems" not in said
    item = json.loads(Path(out, "stac.json").read_text())
    assert (item["properties"]["title"], item["properties"]["license"]) == ("T", "CC-BY-4.0")
    elsewhere = str(tmp_path / "out/x.sqlite")
    found = runner.invoke(app, ["publish", work, elsewhere, "--allow-local", "--no-stac", "--no-summary"])
    assert found.exit_code == 0
    assert f"warning: 2 sources of this machine that others cannot read, such as {place}/data/a.nc" in found.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["x.sqlite"]
    os.utime(place / "data/a.nc", (0, 0))
    found = runner.invoke(app, ["publish", work, out, "--dry-run", "--overwrite"])
    assert found.exit_code == 1
    assert "1 source cannot be read at the public place:" in found.stderr
    assert "a.nc: not the file that was scanned" in found.stderr


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("/data=https://h/x", "/data", "https://h/x"),
        ("/data/year=2001=s3://b/year=2001", "/data/year=2001", "s3://b/year=2001"),
        ("s3://b/k=v/x=/data/k=v", "s3://b/k=v/x", "/data/k=v"),
        ("data=public", "data", "public"),
        ("zip://a::/d=zip://a::s3://b", "zip://a::/d", "zip://a::s3://b"),
        ("a=b=c", None, None),
        ("data", None, None),
        ("=/data", None, None),
        ("/a=/b=/c", None, None),
    ],
)
def test_old_and_new(text: str, old: str | None, new: str | None) -> None:
    import typer

    from refindex.cli.publish import _moves

    if old is None:
        with pytest.raises(typer.BadParameter, match="OLD=NEW"):
            _moves([text])
    else:
        assert _moves([text]) == {old: new}
