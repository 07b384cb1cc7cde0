"""Other people's readers over HTTP: what they get equals what h5py reads."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import xarray as xr
import zarr
from asking import ask
from cases import cases
from oracle import compare_file, h5py_datasets, netcdf4
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, ObjectStore

import refindex

CASES = {name: write for name, write in cases().items() if "dangling" not in name and "cycle" not in name}


@pytest.fixture(scope="session")
def months(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    """Three months in files of their own, joined: chunks of unequal lengths; and what netCDF4 reads of them."""
    folder = tmp_path_factory.mktemp("months")
    parts = []
    for number, days in enumerate((31, 28, 31)):
        time = np.datetime64("2023-01-01", "ns") + np.arange(days).astype("m8[D]") + np.timedelta64(31 * number, "D")
        values = np.random.default_rng(number).random((days, 90, 180)).astype("f4")
        part = xr.Dataset({"t2m": (("time", "lat", "lon"), values)}, {"time": time, "lat": np.linspace(-89, 89, 90)})
        encoding = {"t2m": {"chunksizes": (days, 90, 180), "zlib": True, "shuffle": True}}
        part.to_netcdf(folder / f"{number}.nc", encoding=encoding)
        parts.append(netcdf4(folder / f"{number}.nc"))
    refindex.scan(folder).save(folder / "months.refindex")
    return folder / "months.refindex", xr.concat(parts, "time", data_vars="minimal")


@pytest.fixture(params=["fsspec", "obstore"])
def store_at(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Any]]:
    """zarr-python's stores over HTTP."""
    opened = ExitStack()

    def fsspec_store(url: str) -> FsspecStore:
        filesystem = fsspec.filesystem("http", asynchronous=True, skip_instance_cache=True)

        def close() -> None:
            if filesystem._session is not None:
                zarr.core.sync.sync(filesystem._session.close())

        opened.callback(close)
        return FsspecStore(filesystem, path=url.rstrip("/"), read_only=True)

    def object_store(url: str) -> ObjectStore[Any]:
        obstore = pytest.importorskip("obstore.store")
        return ObjectStore(
            obstore.HTTPStore.from_url(url.rstrip("/"), client_options={"allow_http": True}), read_only=True
        )

    with opened:
        yield fsspec_store if request.param == "fsspec" else object_store


@pytest.mark.parametrize("view", ["", "plain/"], ids=["declared", "plain"])
@pytest.mark.parametrize("name", list(CASES)[::3])
def test_the_gauntlet_equals_h5py(
    name: str, view: str, store_at: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    CASES[name](tmp_path / "case.h5")
    running: list[Any] = []
    with ExitStack() as serving:

        def over_http(archive: refindex.Archive) -> Any:
            if not running:
                server = serving.enter_context(archive.serve())
                running.append(store_at(server.url + view))
            return running[0]

        verdict = compare_file(str(tmp_path / "case.h5"), store_of=over_http)
    assert not verdict.wrong


@pytest.mark.parametrize("name", list(CASES)[1::3])
def test_tensorstore_reads_the_gauntlet(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    monkeypatch.chdir(tmp_path)
    CASES[name](tmp_path / "case.h5")
    compared = 0
    with (
        refindex.open(tmp_path / "case.h5") as archive,
        h5py.File(tmp_path / "case.h5") as file,
        archive.serve() as running,
    ):
        for path, dataset, _ in h5py_datasets(file):
            node = archive.nodes.get(path)
            if dataset is None or node is None or node.dtype is None or node.dtype.kind not in "biufc":
                continue
            if dataset.dtype.kind not in "biufc" or dataset.shape != node.shape:
                continue
            spec = {"driver": "zarr3", "kvstore": f"{running.url}plain/{path}/"}
            served = tensorstore.open(spec, read=True).result().read().result()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)
                assert np.array_equal(served, dataset[()], equal_nan=dataset.dtype.kind in "fc"), path
            compared += 1
    if not compared:
        pytest.skip("no numbers in it")


def test_tensorstore_reads_unequal_chunks(months: tuple[Path, xr.Dataset]) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    with refindex.open(months[0]) as archive, archive.serve() as running:
        assert archive.nodes["t2m"].json["chunk_grid"]["name"] == "rectilinear"
        spec = {"driver": "zarr3", "kvstore": f"{running.url}plain/t2m/"}
        array = tensorstore.open(spec, read=True).result()
        assert np.array_equal(array.read().result(), months[1].t2m.values)
        assert np.array_equal(array[28:62, 3, ::7].read().result(), months[1].t2m.values[28:62, 3, ::7])


@pytest.mark.parametrize("view", ["", "plain/"], ids=["declared", "plain"])
def test_a_joined_archive(months: tuple[Path, xr.Dataset], view: str, store_at: Callable[[str], Any]) -> None:
    # In the plain view no client needs to know of unequal chunks.
    known = zarr.config.set({"array.rectilinear_chunks": not view})
    with refindex.open(months[0]) as archive, archive.serve() as running, warnings.catch_warnings(), known:
        warnings.simplefilter("ignore")
        with xr.open_zarr(store_at(running.url + view), chunks=None) as served:
            xr.testing.assert_equal(served.load(), months[1])


async def test_stores_over_http_know_what_there_is(
    months: tuple[Path, xr.Dataset], store_at: Callable[[str], Any]
) -> None:
    with refindex.open(months[0]) as archive, archive.serve() as running:
        expected = archive.store
        if isinstance(store_at(running.url), FsspecStore):
            pytest.skip("its session belongs to zarr-python's loop")
        store = store_at(running.url)
        for key in ("zarr.json", "t2m/c/1/0/0", "t2m/c/9/0/0", "none"):
            assert await store.exists(key) is await expected.exists(key)
            one, other = [await s.get(key, default_buffer_prototype()) for s in (store, expected)]
            assert (one is None) is (other is None)
            if one is not None:
                assert one.to_bytes() == other.to_bytes()
                assert await store.getsize(key) == await expected.getsize(key)


def test_fsspec_reads_parts(server: str, archive: refindex.Archive) -> None:
    filesystem = fsspec.filesystem("http", skip_instance_cache=True)
    try:
        key = "t2m/c/0/0/0"
        whole = archive.store.keys.read(key)
        assert whole is not None
        assert filesystem.cat(server + key) == whole
        assert filesystem.cat_file(server + key, start=10, end=50) == whole[10:50]
        assert filesystem.cat_file(server + key, start=-5) == whole[-5:]
        ranges = [(3, 9), (0, 4), (600, 634)]
        found = filesystem.cat_ranges([server + key] * 3, *map(list, zip(*ranges, strict=True)))
        assert found == [whole[a:b] for a, b in ranges]
        assert filesystem.size(server + key) == len(whole)
        with filesystem.open(server + key, block_size=100) as file:
            file.seek(200)
            assert file.read(50) == whole[200:250]
        assert filesystem.exists(server + key)
        assert not filesystem.exists(f"{server}t2m/c/8/8/8")
        with pytest.raises(FileNotFoundError):
            filesystem.cat(f"{server}t2m/c/8/8/8")
    finally:
        fsspec.asyn.sync(filesystem.loop, filesystem._session.close)


def test_one_request_opens_everything(server: str, archive: refindex.Archive) -> None:
    """The root's document has all others in it."""
    for view in ("", "plain/"):
        root = json.loads(ask(server, f"{view}zarr.json").body)
        inline = root["consolidated_metadata"]["metadata"]
        assert set(inline) == set(archive.nodes) - {""}
        for path, document in inline.items():
            single = json.loads(ask(server, f"{view}{path}/zarr.json").body)
            single.pop("consolidated_metadata", None)
            assert single == document
