"""What happens on the way: interruptions, full disks, other writers, wrong wishes; nothing is committed by halves."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import fsspec
import h5py
import netCDF4
import numpy as np
import pytest
from serving import RangeServer, forget_s3
from typer.testing import CliRunner

import refindex
from refindex import ConflictError, ExistsError, NotFoundError, SourceError, StaleSourceError, UnsupportedError
from refindex.cli.app import app
from refindex.optimization import shards
from tests.optimization.test_growing import write

CHUNKS = {"time": 8, "lat": 2, "lon": 35}
SHARDS = {"time": 8, "lat": 2, "lon": 70}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """An archive of two files; ``x`` rewritten as above has three shards."""
    refindex.scan([write(tmp_path / f"{n}.nc", time=n) for n in (0, 1)]).save(tmp_path / "a.refindex")
    return tmp_path / "a.refindex"


def values(archive: Path) -> Any:
    with refindex.open(archive) as opened:
        return opened["x"].compute()


def small_blocks(**options: Any) -> dict[str, Any]:
    """One shard at a time."""
    return {"chunks": CHUNKS, "shards": SHARDS, "memory": 3 * 8 * 2 * 70 * 4, **options}


def folders(archive: Path) -> list[Path]:
    return sorted(archive.with_name(f"{archive.name}.data").glob("*"))


def files(archive: Path) -> dict[str, int]:
    """Shards that are there, and when they were written."""
    return {
        str(path.relative_to(archive.parent)): path.stat().st_mtime_ns
        for folder in folders(archive)
        for path in folder.rglob("*")
        if path.is_file() and path.name != "shards.json"
    }


class Stop:
    """Stops a rewriting when the second block is done."""

    def __init__(self) -> None:
        self.calls: list[refindex.Rewriting] = []

    def __call__(self, now: refindex.Rewriting) -> None:
        self.calls.append(now)
        if len(self.calls) == 2:
            raise KeyboardInterrupt


def test_an_interrupted_rewriting_goes_on(archive: Path) -> None:
    before = values(archive)
    with pytest.raises(KeyboardInterrupt):
        refindex.optimize(archive, "x", **small_blocks(progress=Stop()))
    assert len(refindex.log(archive)) == 1
    kept = files(archive)
    assert len(kept) == 2
    seen: list[refindex.Rewriting] = []
    done = refindex.optimize(archive, "x", **small_blocks(progress=seen.append))
    assert done.arrays[0].kept == 2
    assert done.arrays[0].files == 3
    assert {name: files(archive)[name] for name in kept} == kept
    assert seen[-1].done == seen[-1].total == before.nbytes
    assert seen[-1].kept == before.nbytes * 2 // 3
    assert seen[-1].left == 0
    assert values(archive).tobytes() == before.tobytes()


@pytest.mark.parametrize("other", ["codec", "chunks", "source", "no_resume"])
def test_what_was_written_for_another_wish_is_not_taken(archive: Path, other: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        refindex.optimize(archive, "x", **small_blocks(progress=Stop()))
    left = files(archive)
    options = small_blocks()
    if other == "codec":
        options["codec"] = "zstd:1"
    elif other == "chunks":
        options["chunks"] = {**CHUNKS, "lon": 10}
        options["shards"] = None
    elif other == "no_resume":
        options["resume"] = False
    else:
        changed = write(archive.parent / "1.nc", time=1, seed=9)
        refindex.append(archive, changed, replace=True)
    before = values(archive)
    done = refindex.optimize(archive, "x", **options)
    assert done.arrays[0].kept == 0
    assert len(folders(archive)) == 2
    assert {name: files(archive)[name] for name in left} == left
    assert values(archive).tobytes() == before.tobytes()


def test_damaged_shards_are_written_again(archive: Path) -> None:
    before = values(archive)
    with pytest.raises(KeyboardInterrupt):
        refindex.optimize(archive, "x", **small_blocks(progress=Stop()))
    first = archive.parent / min(files(archive))
    first.write_bytes(first.read_bytes()[:-7])
    (first.parent / ".part-0").write_bytes(b"of a process that was killed")
    done = refindex.optimize(archive, "x", **small_blocks())
    assert done.arrays[0].kept == 1
    assert values(archive).tobytes() == before.tobytes()


def test_a_full_disk(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, calls = values(archive), 0
    sync = os.fsync

    def full(number: int) -> None:
        nonlocal calls
        calls += stat.S_ISREG(os.fstat(number).st_mode)
        if calls == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SourceError, match=r"No space left.*[Nn]othing was committed; finished shards stay"):
        refindex.optimize(archive, "x", **small_blocks())
    monkeypatch.undo()
    assert len(refindex.log(archive)) == 1
    assert len(files(archive)) == 1, "what was not finished is removed"
    assert refindex.optimize(archive, "x", **small_blocks()).arrays[0].kept == 1
    assert values(archive).tobytes() == before.tobytes()


def test_shards_that_read_otherwise_are_not_committed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = refindex.optimization.codecs.Codec.encode  # type: ignore[attr-defined]
    monkeypatch.setattr(
        "refindex.optimization.codecs.Codec.encode", lambda codec, part: encode(codec, np.full_like(part, 1))
    )
    with pytest.raises(SourceError, match="reads otherwise"):
        refindex.optimize(archive, "x", **small_blocks())
    assert len(refindex.log(archive)) == 1


def test_two_processes_do_not_write_the_same(archive: Path) -> None:
    def second(now: refindex.Rewriting) -> None:
        with pytest.raises(ConflictError, match="another process"):
            refindex.optimize(archive, "x", **small_blocks())

    refindex.optimize(archive, "x", **small_blocks(progress=second))


def test_a_folder_of_something_else(archive: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        refindex.optimize(archive, "x", **small_blocks(progress=Stop()))
    sidecar = folders(archive)[0] / "shards.json"
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "key": "another"}))
    with pytest.raises(ExistsError, match="something else"):
        refindex.optimize(archive, "x", **small_blocks())


def test_another_writer_changes_the_variable(archive: Path) -> None:
    new = write(archive.parent / "2.nc", time=2)

    def meanwhile(now: refindex.Rewriting) -> None:
        refindex.append(archive, new)

    with pytest.raises(ConflictError, match="/x was changed by another writer"):
        refindex.optimize(archive, "x", **small_blocks(progress=meanwhile))
    assert [commit.operation for commit in refindex.log(archive)] == ["append", "write"]
    assert values(archive).shape[0] == 12


def test_another_writer_changes_something_else(archive: Path) -> None:
    before = values(archive)
    calls = 0

    def meanwhile(now: refindex.Rewriting) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            refindex.optimize(archive, "height", chunks={"lat": 1})

    refindex.optimize(archive, "x", **small_blocks(progress=meanwhile))
    with refindex.open(archive) as opened:
        assert opened.nodes["height"].grid.chunk_shape()[0] == 1
        assert opened.nodes["x"].grid.chunk_shape() == (8, 2, 35)
        assert opened["x"].compute().tobytes() == before.tobytes()
        assert np.array_equal(opened["height"].compute(), np.arange(420.0).reshape(6, 70))


def test_a_source_that_changed(archive: Path) -> None:
    write(archive.parent / "1.nc", time=1, seed=9)
    os.utime(archive.parent / "1.nc", ns=(1, 1))
    with pytest.raises(StaleSourceError):
        refindex.optimize(archive, "x", **small_blocks())
    assert len(refindex.log(archive)) == 1


@pytest.mark.parametrize(
    ("variable", "options", "error", "message"),
    [
        ("nothing", {"chunks": {"time": 1}}, NotFoundError, "no such array; there are"),
        ("x", {"chunks": {"time": 9}}, ValueError, r"time=9 are longer than it is \(8\)"),
        ("x", {"chunks": {"depth": 1}}, ValueError, "no dimension depth; there are time, lat, lon"),
        ("x", {"chunks": {"time": 0}}, ValueError, "time=0"),
        ("x", {"chunks": {"time": 2}, "shards": {"time": 3}}, ValueError, "do not consist of whole chunks"),
        ("x", {"chunks": {"time": 2}, "shards": {"depth": 3}}, ValueError, "no dimension depth"),
        ("x", {"chunks": {"time": 8}, "memory": 1000}, ValueError, "memory="),
        ("x", {"chunks": {"time": 8}, "codec": "lzma"}, ValueError, "codec must be one of"),
        ("name", {"chunks": {"lat": 1}}, UnsupportedError, "/name: values of string, of no fixed size"),
        ("number", {"chunks": "map"}, UnsupportedError, r"/number: of the shape \(\)"),
    ],
)
def test_wishes_that_cannot_be(
    tmp_path: Path, variable: str, options: Any, error: type[Exception], message: str
) -> None:
    path = write(tmp_path / "0.nc", time=0)
    with netCDF4.Dataset(path, "a") as nc:
        nc.createVariable("name", str, ("lat",))[:] = np.array(list("abcdef"), dtype=object)
        nc.createVariable("number", "f4", ())[...] = 1
    refindex.scan([path, write(tmp_path / "1.nc", time=1)], merge=True).save(tmp_path / "a.refindex")
    with pytest.raises(error, match=message):
        refindex.optimize(tmp_path / "a.refindex", variable, **options)
    assert len(refindex.log(tmp_path / "a.refindex")) == 1
    assert not (tmp_path / "a.refindex.data").exists()


def test_archives_that_cannot_be_changed(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with RangeServer(archive.parent) as server, pytest.raises(UnsupportedError, match="HTTP"):
        refindex.optimize(f"{server.url}/a.refindex", "x", chunks=CHUNKS)
    with pytest.raises(UnsupportedError, match="SQLite on remote storage"):
        refindex.optimize("memory://optimize/a.sqlite", "x", chunks=CHUNKS)
    with pytest.raises(NotFoundError, match="no refindex archive"):
        refindex.optimize(archive.parent / "0.nc", "x", chunks=CHUNKS)
    # Whoever may write everywhere does so on a read-only disk, too, as far as permissions tell.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SourceError, match="is not writable"):
        refindex.optimize(archive, "x", chunks=CHUNKS)
    assert not folders(archive)


def test_what_is_so_already_is_left_alone(archive: Path) -> None:
    refindex.optimize(archive, "x", **small_blocks())
    again = refindex.optimize(archive, ["x", "x"], **small_blocks())
    assert again.skipped == ("x",)
    assert again.version == 1


def test_a_dry_run_writes_nothing(archive: Path) -> None:
    done = refindex.optimize(archive, "x", **small_blocks(dry_run=True))
    assert done.version == 0
    assert done.arrays[0].files == 3
    assert done.arrays[0].reads > 1
    assert not folders(archive)
    assert len(refindex.log(archive)) == 1


def test_shards_elsewhere(archive: Path) -> None:
    """In another storage, which takes whole objects only; and resumed there."""
    before = values(archive)
    root = "memory://optimize-elsewhere/shards"
    with pytest.raises(KeyboardInterrupt):
        refindex.optimize(archive, "x", **small_blocks(to=root, progress=Stop()))
    done = refindex.optimize(archive, "x", **small_blocks(to=root))
    assert done.arrays[0].kept == 2
    assert not folders(archive)
    with refindex.open(archive) as opened:
        assert {source.url.partition("://")[0] for source in opened.sources[2:]} == {"memory"}
    assert values(archive).tobytes() == before.tobytes()
    fsspec.filesystem("memory").rm("/optimize-elsewhere", recursive=True)


@pytest.mark.timeout(120)
def test_all_of_it_in_object_storage(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    before = values(archive)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"s3": {"endpoint_url": f"http://{host}:{port}"}}
        fs = fsspec.filesystem("s3", **options["s3"])
        fs.mkdir("optimized")
        for n in (0, 1):
            fs.put_file(str(archive.parent / f"{n}.nc"), f"optimized/{n}.nc")
        there: Any = "s3://optimized/a.refindex"
        sources = ["s3://optimized/0.nc", "s3://optimized/1.nc"]
        refindex.scan(sources, storage_options=options).save(there, storage_options=options)
        with pytest.raises(KeyboardInterrupt):
            refindex.optimize(there, "x", **small_blocks(progress=Stop(), storage_options=options))
        done = refindex.optimize(there, "x", **small_blocks(storage_options=options))
        assert done.arrays[0].kept == 2
        with refindex.open(there, storage_options=options) as opened:
            folder = done.arrays[0].folder
            assert folder.startswith("s3://optimized/a.refindex.data/x-")
            assert [source.url for source in opened.sources] == [*sources, *(f"{folder}/c/0/{n}/0" for n in range(3))]
            assert opened["x"].compute().tobytes() == before.tobytes()
    finally:
        server.stop()
        forget_s3()


def test_folders_of_shards_are_no_sources(archive: Path) -> None:
    refindex.optimize(archive, "x", **small_blocks())
    found = refindex.append(archive, archive.parent)
    assert [Path(name).name for name in found.skipped] == ["0.nc", "1.nc"]
    assert not found.added


def test_no_file_is_made_for_what_does_not_exist(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        made = file.create_dataset("v", (100, 100), "f8", chunks=(10, 10), fillvalue=3.5)
        made[0, 0] = 1
    refindex.scan(tmp_path / "a.h5").save(tmp_path / "a.refindex")
    done = refindex.optimize(tmp_path / "a.refindex", "v", chunks={}, shards=None)
    assert done.skipped == () or done.arrays == ()
    with refindex.open(tmp_path / "a.refindex") as opened:
        assert len(opened.find("v")) == 1
        assert opened["v"].compute().sum() == 3.5 * 9999 + 1


def test_the_command(archive: Path) -> None:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["optimize", str(archive), *arguments])

    assert run("-v", "x").exit_code == 2
    assert run("-v", "x", "--chunks", "time").exit_code == 2
    assert run("-v", "x", "--chunks", "time=9").exit_code == 2
    assert run("-v", "x", "--for", "fun").exit_code == 2
    dry = run("-v", "x", "--for", "time-series", "--dry-run")
    assert "x: 13.4 kB in chunks of 8 x 6 x 70, at most 1 shard; values are decoded 1.0 times" in dry.stdout
    assert "nothing was written" in dry.stdout
    done = run("-v", "x", "--chunks", "time=8,lat=2", "--chunks", "lon=35", "--shards", "lon=70", "--codec", "zstd:3")
    assert done.exit_code == 0, done.output
    assert "x: 13.4 kB in chunks of 8 x 2 x 35, 3 shards" in done.stdout
    assert done.stdout.endswith(f"wrote {archive} (version 1)\n")
    told = json.loads(run("-v", "x", "-v", "height", "--for", "map", "--shards", "none", "--json").stdout)
    assert told["version"] == 2
    assert [array["chunks"] for array in told["arrays"]] == [[1, 6, 70], [1, 70]]
    assert run("-v", "x", "--for", "map", "--shards", "none").stdout == "x: stored so already\n"


def test_the_command_says_what_is_kept(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(self: shards.Folder, shard: shards.Shard) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(shards.Folder, "publish", stop)
    result = CliRunner().invoke(app, ["optimize", str(archive), "-v", "x", "--for", "map"])
    assert result.exit_code == 130
    assert "nothing was committed; finished shards stay" in result.stderr
    assert not files(archive)
