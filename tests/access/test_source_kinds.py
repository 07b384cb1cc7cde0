"""One contract for sources of all kinds: scanned, saved in both storages, opened, moved, and noticed when they change.

What h5py reads from the local file is what every kind must serve.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import zarr
from oracle import h5py_datasets, same
from serving import RangeServer

import refindex
from refindex.access import filesystems
from refindex.access.files import open_reader
from refindex.access.layered import KeptOpen
from refindex.access.options import filesystem
from refindex.scan.registry import scan_source

STORAGES = ("archive.refindex", "archive.sqlite")


@dataclass(kw_only=True)
class Place:
    """Where sources of a kind are put: a local folder, which a server serves, too."""

    folder: Path
    served: str
    cache: Path
    memory: str = field(default_factory=lambda: f"memory://kinds{next(_numbers)}")


_numbers = itertools.count()


def zipped(path: Path, data: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in data.items():
            archive.writestr(name, content)


def tarred(path: Path, data: bytes, mode: str) -> None:
    with tarfile.open(path, mode) as archive:
        member = tarfile.TarInfo("in/a.nc")
        member.size, member.mtime = len(data), int(time.time()) + 10 * next(_numbers)
        archive.addfile(member, io.BytesIO(data))


def put_file(place: Place, data: bytes) -> None:
    (place.folder / "a.nc").write_bytes(data)


def put_stored(place: Place, data: bytes) -> None:
    zipped(place.folder / "x.zip", {"in/a.nc": data, "b.txt": b"other"})


def put_deflated(place: Place, data: bytes) -> None:
    zipped(place.folder / "x.zip", {"b.txt": b"other", "in/a.nc": data}, zipfile.ZIP_DEFLATED)


def put_nested(place: Place, data: bytes) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("in/a.nc", data)
    zipped(place.folder / "x.zip", {"inner.zip": inner.getvalue()})


def put_tar(place: Place, data: bytes) -> None:
    tarred(place.folder / "x.tar", data, "w")


def put_tar_gz(place: Place, data: bytes) -> None:
    tarred(place.folder / "x.tar.gz", data, "w:gz")


def put_memory(place: Place, data: bytes) -> None:
    fsspec.filesystem("memory").pipe_file(f"{place.memory}/a.nc", data)


def put_memory_zip(place: Place, data: bytes) -> None:
    put_deflated(place, data)
    fsspec.filesystem("memory").put_file(os.fspath(place.folder / "x.zip"), f"{place.memory}/x.zip")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A way to a source.

    Parameters
    ----------
    name:
        URL of the source, with ``{folder}``, ``{served}`` and ``{memory}``.
    below:
        What a manifest records beside which the sources lie; of these, where that is.
    options:
        Storage options, with ``{cache}``.
    """

    name: str
    url: str
    put: Callable[[Place, bytes], None]
    below: str = ""
    recorded: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def at(self, place: Place) -> str:
        return self.url.format(folder=place.folder, served=place.served, memory=place.memory)

    def opened_with(self, place: Place) -> dict[str, Any]:
        return {k: {n: os.fspath(place.cache) for n in v} for k, v in self.options.items()}


CACHED = {"cache_storage": "{cache}"}

KINDS = [
    Kind(name="file", url="file://{folder}/a.nc", put=put_file, below="folder", recorded="a.nc"),
    Kind(name="http", url="{served}/a.nc", put=put_file),
    Kind(name="memory", url="{memory}/a.nc", put=put_memory, below="memory", recorded="a.nc"),
    Kind(
        name="zip", url="zip://in/a.nc::file://{folder}/x.zip", put=put_stored, below="folder",
        recorded="zip://in/a.nc::x.zip",
    ),
    Kind(
        name="deflated zip", url="zip://in/a.nc::file://{folder}/x.zip", put=put_deflated, below="folder",
        recorded="zip://in/a.nc::x.zip",
    ),
    Kind(
        name="zip in zip", url="zip://in/a.nc::zip://inner.zip::file://{folder}/x.zip", put=put_nested, below="folder",
        recorded="zip://in/a.nc::zip://inner.zip::x.zip",
    ),
    Kind(name="zip, http", url="zip://in/a.nc::{served}/x.zip", put=put_deflated),
    Kind(
        name="zip, memory", url="zip://in/a.nc::{memory}/x.zip", put=put_memory_zip, below="memory",
        recorded="zip://in/a.nc::x.zip",
    ),
    Kind(
        name="zip, simplecache, http", url="zip://in/a.nc::simplecache::{served}/x.zip", put=put_stored,
        options={"simplecache://": CACHED},
    ),
    Kind(
        name="tar", url="tar://in/a.nc::file://{folder}/x.tar", put=put_tar, below="folder",
        recorded="tar://in/a.nc::x.tar",
    ),
    Kind(name="tar.gz, http", url="tar://in/a.nc::{served}/x.tar.gz", put=put_tar_gz),
    Kind(name="simplecache, http", url="simplecache::{served}/a.nc", put=put_file, options={"simplecache://": CACHED}),
    Kind(name="filecache, http", url="filecache::{served}/a.nc", put=put_file, options={"filecache://": CACHED}),
    Kind(name="blockcache, http", url="blockcache::{served}/a.nc", put=put_file, options={"blockcache://": CACHED}),
    Kind(
        name="simplecache, file", url="simplecache::file://{folder}/a.nc", put=put_file, below="folder",
        recorded="simplecache::a.nc", options={"simplecache://": CACHED},
    ),
]  # fmt: skip


def of(kinds: list[Kind]) -> pytest.MarkDecorator:
    # fsspec's block cache leaves the file that it maps to the garbage collector.
    ignore = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return pytest.mark.parametrize(
        "kind", [pytest.param(k, id=k.name, marks=[ignore] if "blockcache" in k.name else []) for k in kinds]
    )


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "www"
    folder.mkdir()
    with RangeServer(folder) as server:
        place = Place(folder=folder, served=server.url, cache=tmp_path / "cache")
        yield place
        memory = fsspec.filesystem("memory")
        if memory.exists(place.memory):
            memory.rm(place.memory, recursive=True)


def assert_values(archive: refindex.Archive, path: Path) -> None:
    with h5py.File(path) as file:
        found = {name: dataset for name, dataset, _ in h5py_datasets(file) if name in archive.arrays}
        assert found.keys() >= {"t2m", "rain", "time", "lat", "station", "derived/mean", "derived/deeper/count"}
        for name, dataset in found.items():
            served = zarr.open_array(archive.store, path=name, mode="r")[...]
            assert same(dataset[()], served) == "", name


@of(KINDS)
@pytest.mark.timeout(120)
def test_values(kind: Kind, place: Place, weather: Path, tmp_path: Path) -> None:
    kind.put(place, weather.read_bytes())
    url, options = kind.at(place), kind.opened_with(place)
    manifest = refindex.scan(url, storage_options=options)
    local = scan_source(f"file://{weather}")
    assert {p: n.document for p, n in manifest.nodes.items()} == {p: n.document for p, n in local.nodes.items()}
    assert all(a.chunks.same_references(manifest.arrays[p].chunks) for p, a in local.arrays.items())
    assert [s.url for s in manifest.sources] == [url]
    with refindex.open(url, storage_options=options) as archive:
        assert_values(archive, weather)
    for name in STORAGES:
        out = tmp_path / name
        manifest.save(out)
        with refindex.open(out, storage_options=options) as archive:
            assert [s.url for s in archive.sources] == [url]
            assert_values(archive, weather)


def changed(data: bytes) -> bytes:
    """Another file of the same size: one value differs."""
    copy = io.BytesIO(data)
    with h5py.File(copy, "r+") as file:
        dataset = file["derived/mean"]
        dataset[0, 0] = 1 - dataset[0, 0]
    assert len(copy.getvalue()) == len(data)
    assert copy.getvalue() != data
    return copy.getvalue()


def touch(place: Place, seconds: float) -> None:
    for path in place.folder.iterdir():
        os.utime(path, (time.time() + seconds,) * 2)


@of(KINDS)
@pytest.mark.timeout(120)
def test_a_change_is_noticed(kind: Kind, place: Place, weather: Path, tmp_path: Path) -> None:
    data = weather.read_bytes()
    kind.put(place, data)
    url, options = kind.at(place), kind.opened_with(place)
    out = tmp_path / "archive.refindex"
    refindex.scan(url, storage_options=options).save(out)
    time.sleep(0.05)
    kind.put(place, changed(data))
    if kind.options:  # HTTP tells whole seconds, and a cache when it made its copy
        touch(place, +5)
    with (
        refindex.open(out, storage_options=options) as archive,
        pytest.raises(refindex.SourceError, match=r"has changed since it was scanned|is older than the file"),
    ):
        archive.group["rain"][...]


@of([k for k in KINDS if k.url.startswith(("zip", "tar"))])
@pytest.mark.timeout(120)
def test_a_change_meanwhile(kind: Kind, place: Place, weather: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An open archive says of its members what they were: it must be asked anew whether all was of one version."""
    data = weather.read_bytes()
    kind.put(place, data)
    asked = []
    real = filesystems._Blocking.get

    async def get(self: Any, start: int, stop: int, /) -> Any:
        answer = await real(self, start, stop)
        if not asked:
            kind.put(place, changed(data))
            shutil.rmtree(place.cache, ignore_errors=True)
            place.cache.mkdir()
        asked.append(start)
        return answer

    monkeypatch.setattr(filesystems._Blocking, "get", get)
    with pytest.raises(refindex.SourceError, match=r"changed while it was scanned"):
        refindex.scan(kind.at(place), storage_options=kind.opened_with(place))
    assert asked


@of([k for k in KINDS if k.options])
@pytest.mark.timeout(120)
def test_an_old_copy_is_not_scanned(kind: Kind, place: Place, weather: Path) -> None:
    """The cache has the old file: its references with the time of the new one would lead to other bytes."""
    data = weather.read_bytes()
    kind.put(place, data)
    url, options = kind.at(place), kind.opened_with(place)
    refindex.scan(url, storage_options=options)
    kind.put(place, changed(data))
    touch(place, +5)
    with pytest.raises(refindex.SourceError, match="is older than the file: clear the cache"):
        refindex.scan(url, storage_options=options)
    shutil.rmtree(place.cache)
    fsspec.filesystem("http").clear_instance_cache()
    touch(place, -5)
    with refindex.open(url, storage_options=options) as archive, h5py.File(io.BytesIO(changed(data))) as file:
        assert np.array_equal(archive.group["derived/mean"][...], file["derived/mean"][...])


@of([k for k in KINDS if k.below])
@pytest.mark.timeout(120)
def test_the_folder_moves(kind: Kind, place: Place, weather: Path, tmp_path: Path) -> None:
    """A manifest beside its sources, or above them, and they are moved together."""
    kind.put(place, weather.read_bytes())
    url, options = kind.at(place), kind.opened_with(place)
    manifest = refindex.scan(url, storage_options=options)
    base = os.fspath(place.folder) if kind.below == "folder" else place.memory
    for name in STORAGES:
        manifest.save(f"{base}/{name}")
    new = tmp_path / "elsewhere/deeper"
    memory = fsspec.filesystem("memory")
    if kind.below == "folder":
        new.parent.mkdir()
        place.folder.rename(new)
    else:
        memory.get(place.memory, os.fspath(new), recursive=True)
        memory.rm(place.memory, recursive=True)
        for path in new.rglob("*.nc"):  # a copy is younger, and that is all that tells versions apart here
            os.utime(path, ns=(manifest.sources[0].mtime * 1000,) * 2)
    for name in STORAGES:
        with refindex.open(new / name, storage_options=options) as archive:
            assert [s.url for s in archive.sources] == [
                kind.recorded.rpartition("::")[0] + ("::" if "::" in kind.recorded else "") + f"file://{new}/"
                + kind.recorded.rpartition("::")[2]
            ]  # fmt: skip
            assert_values(archive, weather)


def test_files_in_a_zip(place: Place, weather: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {f"day{i}.nc": tmp_path / f"day{i}.nc" for i in range(3)}
    for number, path in enumerate(files.values()):
        shutil.copy(weather, path)
        with h5py.File(path, "r+") as file:
            file["rain"][0, 0] = number
    zipped(
        place.folder / "x.zip",
        {**{f"in/{name}": path.read_bytes() for name, path in files.items()}, "in/readme.txt": b"x", "top.nc": b"x"},
    )
    monkeypatch.chdir(place.folder)
    for spelled, wanted in (
        ("zip://in/*.nc::x.zip", 3),
        (f"zip://in/day[01].nc::file://{place.folder}/x.zip", 2),
        ("zip://in/::x.zip", 3),
        (f"simplecache::zip://in/*.nc::{place.served}/x.zip", 3),
    ):
        found = refindex.scan(spelled, join=False)
        names = sorted(files)[:wanted]
        assert sorted(group for group in found.groups if group and "/" not in group) == [n[:-3] for n in names]
        last = f"{place.served}/x.zip" if "simplecache" in spelled else f"file://{place.folder}/x.zip"
        assert [s.url for s in found.sources] == [
            ("simplecache::" if "simplecache" in spelled else "") + f"zip://in/{name}::{last}" for name in names
        ]
        with refindex.open(_saved(found, tmp_path)) as archive:
            for name in names:
                with h5py.File(files[name]) as file:
                    assert np.array_equal(archive.group[f"{name[:-3]}/rain"][...], file["rain"][...])
    with pytest.raises(refindex.NotFoundError, match=r"zip://\*\.grib::file://.*x.zip: no file matches"):
        refindex.scan("zip://*.grib::x.zip")
    with pytest.raises(refindex.NotFoundError, match=r"zip://gone.nc::file://.*x.zip: no such file"):
        refindex.scan("zip://gone.nc::x.zip")


def _saved(manifest: refindex.Manifest, folder: Path) -> Path:
    out = folder / f"{next(_numbers)}.refindex"
    manifest.save(out)
    return out


def test_an_archive_zipped_with_its_files(place: Place, weather: Path, tmp_path: Path) -> None:
    folder = tmp_path / "all"
    folder.mkdir()
    (folder / "a.nc").write_bytes(weather.read_bytes())
    manifest = refindex.scan(folder / "a.nc")
    for name in STORAGES:
        manifest.save(folder / name)
    with zipfile.ZipFile(place.folder / "all.zip", "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    for name, place_of_zip in itertools.product(STORAGES, (f"file://{place.folder}", place.served)):
        url = f"zip://{name}::{place_of_zip}/all.zip"
        with refindex.open(url) as opened:
            assert [s.url for s in opened.sources] == [url.replace(name, "a.nc")]
            # Members of a zip have no time that says more than a checksum: what was recorded is the time of the file.
            assert_values(opened, weather)


@of([k for k in KINDS if k.url.startswith(("zip", "tar", "simplecache", "filecache", "blockcache"))])
def test_threads(kind: Kind, place: Place, weather: Path) -> None:
    """What is open of a tar, or of a zip, shares its position: threads must not get each other's bytes."""
    kind.put(place, weather.read_bytes())
    reader = open_reader(kind.at(place), kind.opened_with(place))
    data = weather.read_bytes()
    spans = [(i * 997 % (len(data) - 500), 500) for i in range(2000)]
    with ThreadPoolExecutor(8) as threads:
        for (start, length), got in zip(spans, threads.map(lambda span: reader.read(*span), spans), strict=True):
            assert got == data[start : start + length]


def test_a_read_that_fails_leaves_nothing_behind(place: Place, weather: Path) -> None:
    """Where a member is after half of a read, nobody knows: the next one must not go on from there."""
    put_deflated(place, weather.read_bytes())
    fs, path = filesystem(f"zip://in/a.nc::file://{place.folder}/x.zip")
    data = weather.read_bytes()
    opened: list[Any] = []

    class Failing:
        def open(self, path: str, mode: str) -> Any:
            file = fs.open(path, mode)
            if not opened:
                read = file.read
                file.read = lambda n: (read(n // 2), file._fileobj.seek(0), 1 / 0)
            opened.append(file)
            return file

    kept = KeptOpen(Failing(), path)
    with pytest.raises(ZeroDivisionError):
        kept.read(0, 20_000)
    assert kept.read(10_000, 20_000) == data[10_000:20_000]
    assert kept.read(5, 7) == data[5:7]
    assert len(opened) == 2
    assert opened[0].closed
    kept.close()
    assert opened[1].closed
