"""An archive reads what lies below it and what was allowed, and nothing else: every way to open one, and scans."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from serving import RangeServer
from typer.testing import CliRunner

import refindex
from refindex.cli.app import app
from refindex.errors import NotAllowedError
from refindex.model.manifest import Manifest, Status

VALUES = np.arange(2000, dtype="i4")


def write(path: Path, values: Any = VALUES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=values, chunks=(500,))
    return path


@pytest.fixture(autouse=True)
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to be somebody else: who has scanned nothing."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))

    def forget() -> None:
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state of another"))

    return forget


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """An archive that names what it must not, where it is, and what would allow it."""

    url: str
    allow: list[str]
    said: str
    loopback: RangeServer | None = None


def naming(manifest: Manifest, url: str) -> Manifest:
    return replace(manifest, sources=(replace(manifest.sources[0], url=url),))


@pytest.fixture(
    params=["/etc/hostname", "loopback", "link out", "folder out", "absolute in remote", "loopback in remote"]
)
def hostile(request: pytest.FixtureRequest, tmp_path: Path, stranger: Callable[[], None]) -> Iterator[Hostile]:
    secret = write(tmp_path / "secret" / "x.h5")
    own = tmp_path / "own"
    own.mkdir()
    manifest = refindex.scan(secret)
    archive = own / "archive.refindex"
    kind = request.param
    with RangeServer(tmp_path / "secret") as loopback, RangeServer(own) as server:
        if kind == "/etc/hostname":
            naming(manifest, "file:///etc/hostname").save(archive)
            found = Hostile(url=str(archive), allow=["/etc/hostname"], said="/etc/hostname")
        elif kind == "loopback":
            naming(manifest, f"{loopback.url}/x.h5").save(archive)
            found = Hostile(url=str(archive), allow=[loopback.url], said=f"{loopback.url}/x.h5", loopback=loopback)
        elif kind == "link out":
            (own / "x.h5").symlink_to(secret)
            naming(manifest, f"file://{own}/x.h5").save(archive)
            found = Hostile(url=str(archive), allow=[str(secret)], said=str(secret))
        elif kind == "folder out":
            (own / "sub").symlink_to(secret.parent)
            naming(manifest, f"file://{own}/sub/x.h5").save(archive)
            found = Hostile(url=str(archive), allow=[str(secret.parent)], said=str(secret))
        elif kind == "absolute in remote":
            manifest.save(archive)
            url = f"{server.url}/archive.refindex"
            found = Hostile(url=url, allow=[str(secret.parent)], said=str(secret))
        else:
            naming(manifest, f"{loopback.url}/x.h5").save(archive)
            url = f"{server.url}/archive.refindex"
            found = Hostile(url=url, allow=[loopback.url], said=f"{loopback.url}/x.h5", loopback=loopback)
        stranger()
        loopback.forget()
        yield found


def read(archive: refindex.Archive) -> Any:
    with archive:
        return np.asarray(archive["a"].compute())


def a_link(hostile: Hostile) -> bool:
    return (
        "own" in hostile.url and "secret" in hostile.said and "http" not in hostile.said and "http" not in hostile.url
    )


OPENING: dict[str, Callable[[str], Any]] = {
    "open": lambda url: read(refindex.open(url)),
    "open and load": lambda url: refindex.open(url).load(),
    "xarray": lambda url: xr.open_dataset(url, engine="refindex")["a"].values,
    "xarray tree": lambda url: xr.open_datatree(url, engine="refindex")["a"].values,
    "fsspec": lambda url: fsspec.filesystem("refindex", fo=url).cat("a/c/0"),
    "zarr": lambda url: zarr.open_group(f"refindex://::{url}", mode="r")["a"][:],
    "verify": lambda url: refindex.verify(url),
    "verify, sources only": lambda url: refindex.verify(url, sources_only=True),
    "append": lambda url: refindex.append(url, Path(__file__).parent / "no such file.nc"),
    "remove": lambda url: refindex.remove(url, "*"),
    "optimize": lambda url: refindex.optimize(url, "a", chunks={}),
    "export": lambda url: refindex.export(url, "out.zarr", to="zarr"),
    "export, written out": lambda url: refindex.export(url, "out.json", materialize=True),
    "publish": lambda url: refindex.publish(url, "out.refindex", allow_local=True),
}


@pytest.mark.parametrize("way", OPENING)
def test_refused(way: str, hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "http" in hostile.url and way in ("append", "remove", "optimize"):
        pytest.skip("nothing can be committed over HTTP")
    if a_link(hostile) and way in ("publish", "export, written out"):
        # Chunks that are passed through are not read.
        pytest.skip("where links lead is known when a file is read")
    with pytest.raises(NotAllowedError) as caught:
        OPENING[way](hostile.url)
    assert hostile.said in str(caught.value)
    assert hostile.loopback is None or not hostile.loopback.requests
    assert not (tmp_path / "out.refindex").exists()
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.parametrize("command", ["serve", "verify", "info --sources", "ls", "explain", "export", "publish"])
def test_refused_by_commands(command: str, hostile: Hostile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if a_link(hostile) and command not in ("verify",):
        pytest.skip("where links lead is known when a file is read")
    name, *options = command.split()
    rest = {
        "explain": ["a"],
        "export": ["out.json"],
        "publish": ["out.refindex", "--allow-local"],
        "serve": ["--port", "0"],
    }
    found = CliRunner().invoke(app, [name, hostile.url, *rest.get(name, []), *options])
    assert isinstance(found.exception, NotAllowedError)
    assert hostile.said in str(found.exception)
    assert "--allow " in str(found.exception)
    assert hostile.loopback is None or not hostile.loopback.requests


def test_allowed(hostile: Hostile) -> None:
    """What the message says to pass is enough, and so is everything."""
    if hostile.said == "/etc/hostname":
        with refindex.open(hostile.url, allow=hostile.allow) as archive, pytest.raises(refindex.SourceError):
            archive["a"].compute()  # which is no HDF5 file
        return
    for allow in (hostile.allow, "*", True):
        np.testing.assert_array_equal(read(refindex.open(hostile.url, allow=allow)), VALUES)
    ds = xr.open_dataset(hostile.url, engine="refindex", allow=hostile.allow)
    np.testing.assert_array_equal(ds["a"].values, VALUES)
    fs = fsspec.filesystem("refindex", fo=hostile.url, allow=hostile.allow)
    assert len(fs.cat("a/c/0")) == 2000
    assert refindex.verify(hostile.url, allow=hostile.allow).ok


def test_a_store_that_travels(tmp_path: Path, stranger: Callable[[], None]) -> None:
    """Other processes, and machines, have what the one that opened it has: its record, or what it was given."""
    write(tmp_path / "data/x.h5")
    (tmp_path / "own").mkdir()
    refindex.scan(tmp_path / "data/x.h5").save(tmp_path / "own/a.refindex")
    store = refindex.open(tmp_path / "own/a.refindex").store
    stranger()
    again = pickle.loads(pickle.dumps(store))
    np.testing.assert_array_equal(zarr.open_group(again, mode="r")["a"][:], VALUES)
    with pytest.raises(NotAllowedError):
        refindex.open(tmp_path / "own/a.refindex")
    given = refindex.open(tmp_path / "own/a.refindex", allow=tmp_path / "data").store
    np.testing.assert_array_equal(zarr.open_group(pickle.loads(pickle.dumps(given)), mode="r")["a"][:], VALUES)


@pytest.mark.parametrize("name", ["a.refindex", "a.sqlite"])
def test_what_the_user_has_named_needs_no_option(name: str, tmp_path: Path, stranger: Callable[[], None]) -> None:
    for n in (1, 2, 3):
        write(tmp_path / f"data{n}/x{n}.h5")
    (tmp_path / "data3/link.h5").symlink_to(write(tmp_path / "pool/y.h5"))
    (tmp_path / "own").mkdir()
    archive = tmp_path / "own" / name
    refindex.scan([tmp_path / "data1/x1.h5", tmp_path / "data2"], join=False).save(archive)
    with refindex.open(archive) as opened:
        np.testing.assert_array_equal(opened["x1/a"].compute(), VALUES)
        np.testing.assert_array_equal(opened["x2/a"].compute(), VALUES)
    refindex.append(archive, tmp_path / "data3/*.h5")
    with refindex.open(archive) as opened:
        np.testing.assert_array_equal(opened["x3/a"].compute(), VALUES)
        np.testing.assert_array_equal(opened["link/a"].compute(), VALUES)
    assert refindex.verify(archive).ok
    # The files have moved: who says so has named where to.
    (tmp_path / "data1").rename(tmp_path / "moved")
    refindex.relocate(archive, tmp_path / "data1", tmp_path / "moved")
    with refindex.open(archive) as opened:
        np.testing.assert_array_equal(opened["x1/a"].compute(), VALUES)
    # A copy elsewhere is for others: published by this user, it is not refused to him, but to others.
    (tmp_path / "public").mkdir()
    refindex.publish(archive, tmp_path / "public" / name, allow_local=True)
    np.testing.assert_array_equal(refindex.open(tmp_path / "public" / name)["x1/a"].compute(), VALUES)
    stranger()
    for place in (archive, tmp_path / "public" / name):
        with pytest.raises(NotAllowedError, match="--allow"):
            refindex.open(place)


def test_an_archive_beside_its_files_needs_nothing(tmp_path: Path, stranger: Callable[[], None]) -> None:
    write(tmp_path / "own/deep/x.h5")
    refindex.scan(tmp_path / "own/deep/x.h5").save(tmp_path / "own/a.refindex")
    assert not (tmp_path / "state").exists()
    stranger()
    shutil.move(tmp_path / "own", tmp_path / "other")
    np.testing.assert_array_equal(read(refindex.open(tmp_path / "other/a.refindex", stale="ignore")), VALUES)
    with RangeServer(tmp_path / "other") as server:
        np.testing.assert_array_equal(read(refindex.open(f"{server.url}/a.refindex", stale="ignore")), VALUES)


def test_a_relative_url_that_climbs_out(tmp_path: Path) -> None:
    """URLs in a manifest that are relative, and were not written by refindex."""
    from refindex.access import urls

    base = f"file://{tmp_path}/own"
    for name in ("../secret/x.h5", "a/../../secret/x.h5", "%2e%2e/secret/x.h5"):
        with pytest.raises(NotAllowedError):
            refindex.access.trust.Allowed().beside(f"{base}/a.refindex").check([urls.resolve(name, base)], "a")


# References of other tools


def references(source: Any, at: Path) -> Path:
    """kerchunk's JSON for the first chunk of an array."""
    refs = {
        ".zgroup": '{"zarr_format":2}',
        "a/.zarray": json.dumps(
            {
                "zarr_format": 2, "shape": [500], "chunks": [500], "dtype": "<i4", "compressor": None, "filters": None,
                "fill_value": 0, "order": "C",
            }
        ),
        "a/0": [source, 0, 2000],
    }  # fmt: skip
    at.write_text(json.dumps({"version": 1, "refs": refs}))
    return at


@pytest.mark.parametrize("kind", ["/etc/hostname", "loopback", "link out", "absolute in remote", "climbs"])
def test_imports(kind: str, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/x.bin").write_bytes(VALUES.tobytes())
    own = tmp_path / "own"
    with RangeServer(tmp_path / "secret") as loopback, RangeServer(own) as server:
        place, where = f"file://{tmp_path}/secret/x.bin", str(own / "a.json")
        match kind:
            case "/etc/hostname":
                place = "/etc/hostname"
            case "loopback":
                place = f"{loopback.url}/x.bin"
            case "link out":
                (own / "link").symlink_to(tmp_path / "secret/x.bin")
                place = f"file://{own}/link"
            case "climbs":
                place = f"{own}/../secret/x.bin"
            case _:
                where = f"{server.url}/a.json"
        references(place, own / "a.json")
        with pytest.raises(NotAllowedError):
            refindex.import_references(where)
        found = CliRunner().invoke(app, ["import", where, "--out", str(tmp_path / "out.refindex")])
        assert isinstance(found.exception, NotAllowedError)
        assert not (tmp_path / "out.refindex").exists()
        assert not loopback.requests
        if kind == "/etc/hostname":
            return
        allow = loopback.url if kind == "loopback" else str(tmp_path / "secret")
        manifest = refindex.import_references(where, allow=[allow])
        manifest.save(tmp_path / "out.refindex")
        np.testing.assert_array_equal(read(refindex.open(tmp_path / "out.refindex")), VALUES[:500])
        with pytest.raises(NotAllowedError):
            refindex.import_references(where, allow=[f"{allow}/2"])


def test_what_was_exported_here_can_be_imported_here(tmp_path: Path, stranger: Callable[[], None]) -> None:
    write(tmp_path / "data/x.h5")
    (tmp_path / "own").mkdir()
    manifest = refindex.scan(tmp_path / "data/x.h5")
    refindex.export(manifest, tmp_path / "own/a.json")
    assert refindex.import_references(tmp_path / "own/a.json").n_references == 4
    stranger()
    with pytest.raises(NotAllowedError):
        refindex.import_references(tmp_path / "own/a.json")
    # Base says where references are; who says it has named it.
    references("x.bin", tmp_path / "own/b.json")
    (tmp_path / "data/x.bin").write_bytes(VALUES.tobytes())
    assert refindex.import_references(tmp_path / "own/b.json", base=tmp_path / "data").n_references == 1


# Scans


def linking(path: Path, other: str, how: str) -> Path:
    """A file that takes its array from another one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        if how == "external link":
            file["b"] = h5py.ExternalLink(other, "/a")
        elif how == "virtual":
            layout = h5py.VirtualLayout(shape=(2000,), dtype="i4")
            layout[:] = h5py.VirtualSource(other, "a", shape=(2000,))
            file.create_virtual_dataset("b", layout)
        elif how == "virtual, by the library":
            layout = h5py.VirtualLayout(shape=(1000,), dtype="i4")
            layout[:] = h5py.VirtualSource(other, "a", shape=(2000,))[::2]
            file.create_virtual_dataset("b", layout)
        else:
            file.create_dataset("b", shape=(2000,), dtype="i4", external=[(other, 0, 8000)])
        file["c"] = VALUES
    return path


HOW = ["external link", "virtual", "virtual, by the library", "external data"]


@pytest.mark.parametrize("spelled", ["absolute", "relative", "link"])
@pytest.mark.parametrize("how", HOW)
def test_files_that_refer_to_others(how: str, spelled: str, tmp_path: Path) -> None:
    secret = write(tmp_path / "secret/x.h5")
    (tmp_path / "secret/x.bin").write_bytes(VALUES.tobytes())
    name = "x.bin" if how == "external data" else "x.h5"
    (tmp_path / "own").mkdir()
    match spelled:
        case "absolute":
            other = str(secret.parent / name)
        case "relative":
            other = f"../secret/{name}"
        case _:
            (tmp_path / "own" / name).symlink_to(secret.parent / name)
            other = name
    path = linking(tmp_path / "own/main.h5", other, how)
    with h5py.File(path) as file:
        expected = VALUES[::2] if how == "virtual, by the library" else VALUES
        if how != "external data":
            np.testing.assert_array_equal(file["b"][:], expected)
    manifest = refindex.scan(path)
    assert set(manifest.arrays) == {"c"}
    (entry,) = manifest.report.problems
    assert entry.path == "/b"
    assert entry.status is Status.UNSERVED
    assert "outside of what may be read" in entry.reason
    assert "--allow" in entry.reason
    assert str(tmp_path / "secret") in entry.reason
    assert all("secret" not in source.url for source in manifest.sources)
    with refindex.open(path) as archive:  # scanned on the spot
        assert set(archive.arrays) == {"c"}
    for allow in (tmp_path / "secret", "*"):
        with refindex.open(path, allow=allow) as archive:
            np.testing.assert_array_equal(archive["b"].compute(), expected)
    # What is named together may refer to each other; so what is below a glob's fixed part.
    for sources in ([path, secret], tmp_path / "**/main.h5"):
        found = refindex.scan(sources, join=False)
        assert {name for name in found.arrays if name.endswith("b")}, sources


@pytest.mark.parametrize("how", HOW)
def test_remote_files_that_refer_to_others(how: str, tmp_path: Path) -> None:
    """Of the machine that reads them, of the folder above, and of another host."""
    write(tmp_path / "www/secret/x.h5")
    (tmp_path / "www/secret/x.bin").write_bytes(VALUES.tobytes())
    name = "x.bin" if how == "external data" else "x.h5"
    linking(tmp_path / "www/own/local.h5", str(tmp_path / "www/secret" / name), how)
    linking(tmp_path / "www/own/above.h5", f"../secret/{name}", how)
    linking(tmp_path / "www/own/chain.h5", f"{name}::file://{tmp_path}/www/secret/{name}", how)
    with RangeServer(tmp_path / "www") as server:
        for file in ("local", "above", "chain"):
            server.forget()
            manifest = refindex.scan(f"{server.url}/own/{file}.h5")
            assert set(manifest.arrays) == {"c"}, file
            assert not any("secret" in path for path, _ in server.requests)
            (entry,) = manifest.report.problems
            assert entry.path == "/b"
        assert len(manifest.sources) <= 1
        found = refindex.scan(f"{server.url}/own/above.h5", allow=f"{server.url}/secret/")
        assert ("b" in found.arrays) == (how != "virtual, by the library")  # which reads local files only


def test_the_file_behind_a_link_that_the_user_names(tmp_path: Path) -> None:
    """Who names a link has named where it leads, and what lies beside that."""
    write(tmp_path / "pool/x.h5")
    linking(tmp_path / "pool/main.h5", "x.h5", "external link")
    (tmp_path / "own").mkdir()
    (tmp_path / "own/main.h5").symlink_to(tmp_path / "pool/main.h5")
    manifest = refindex.scan(tmp_path / "own/main.h5")
    assert set(manifest.arrays) == {"b", "c"}
    manifest.save(tmp_path / "own/a.refindex")
    np.testing.assert_array_equal(refindex.open(tmp_path / "own/a.refindex")["b"].compute(), VALUES)


def test_links_in_zarr_stores(tmp_path: Path) -> None:
    store = tmp_path / "own/store.zarr"
    group = zarr.open_group(store, mode="w", zarr_format=3)
    for name in ("plain", "chunk", "inside", "folder", "gone"):
        array = group.create_array(name, shape=(4000,), chunks=(1000,), dtype="i4", compressors=None)
        array[:] = np.arange(4000)
    pool = tmp_path / "pool"
    pool.mkdir()
    (store / "chunk/c/1").rename(pool / "1")
    (store / "chunk/c/1").symlink_to(pool / "1")
    (store / "inside/c/1").rename(store / "inside/other")
    (store / "inside/c/1").symlink_to(store / "inside/other")
    for name in ("folder/c", "gone"):
        shutil.move(store / name, pool / name.replace("/", "_"))
        (store / name).symlink_to(pool / name.replace("/", "_"))
    manifest = refindex.scan(store)
    assert set(manifest.arrays) == {"plain", "inside"}
    reasons = {entry.path: entry.reason for entry in manifest.report.problems}
    assert {"/chunk", "/folder", "/gone"} <= set(reasons)
    assert all("--allow" in reason for reason in reasons.values())
    allowed = refindex.scan(store, allow=pool)
    assert set(allowed.arrays) == {"plain", "chunk", "inside", "folder", "gone"}
    allowed.save(tmp_path / "own/a.refindex")
    with refindex.open(tmp_path / "own/a.refindex") as archive:
        for name in allowed.arrays:
            np.testing.assert_array_equal(archive[name].compute(), np.arange(4000))


def test_appended_files_are_held_to_it(tmp_path: Path) -> None:
    write(tmp_path / "secret/x.h5")
    refindex.scan([write(tmp_path / "own/1.h5"), write(tmp_path / "own/2.h5")], join=False).save(
        tmp_path / "own/a.refindex"
    )
    linking(tmp_path / "own/3.h5", "../secret/x.h5", "external link")
    refindex.append(tmp_path / "own/a.refindex", tmp_path / "own/3.h5")
    assert "3/b" not in refindex.open(tmp_path / "own/a.refindex").arrays
    linking(tmp_path / "own/4.h5", "../secret/x.h5", "external link")
    refindex.append(tmp_path / "own/a.refindex", tmp_path / "own/4.h5", allow=tmp_path / "secret")
    np.testing.assert_array_equal(refindex.open(tmp_path / "own/a.refindex")["4/b"].compute(), VALUES)


@pytest.mark.parametrize("spelled", ["absolute", "relative", "in between"])
@pytest.mark.parametrize("how", HOW)
def test_verify_does_not_let_libraries_follow_links(how: str, spelled: str, tmp_path: Path) -> None:
    """A manifest that names its own file alone; what it calls the original of an array is made of another file."""
    secret = write(tmp_path / "secret/x.h5", VALUES + 7777)
    (tmp_path / "secret/x.bin").write_bytes((VALUES + 7777).tobytes())
    name = "x.bin" if how == "external data" else "x.h5"
    other = f"../secret/{name}" if spelled == "relative" else str(secret.parent / name)
    path = linking(tmp_path / "own/main.h5", other, how)
    if spelled == "in between":
        path.rename(tmp_path / "own/between.h5")
        with h5py.File(path, "w") as file:
            file["b"] = h5py.ExternalLink("between.h5", "/b")
            file["c"] = VALUES
    manifest = refindex.scan(path)
    posing = manifest.arrays["c"].moved("b")
    manifest = replace(manifest, arrays={**manifest.arrays, "b": posing})
    manifest.save(tmp_path / "own/a.refindex")
    found = refindex.verify(tmp_path / "own/a.refindex", sample="all")
    said = str(found)
    assert "outside of what may be read" in said
    assert "7777" not in said
    found = refindex.verify(tmp_path / "own/a.refindex", sample="all", allow=tmp_path / "secret")
    assert not found.ok
    assert "outside of what may be read" not in str(found)
