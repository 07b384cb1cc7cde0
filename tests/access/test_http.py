"""Sources and archives behind an HTTP server on this machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from aiohttp import web
from oracle import netcdf4

import refindex


class Server:
    """Static files with ranges and no listings, on a thread of its own."""

    def __init__(self, folder: Path) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.fail: set[str] = set()
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, args=(folder,), daemon=True)
        self._thread.start()
        assert self._ready.wait(10)

    def _run(self, folder: Path) -> None:
        asyncio.set_event_loop(self._loop)

        @web.middleware
        async def count(request: web.Request, handler) -> web.StreamResponse:
            self.requests.append((request.path, request.headers.get("Range")))
            if any(name in request.path for name in self.fail):
                raise web.HTTPInternalServerError
            return await handler(request)

        async def start() -> None:
            app = web.Application(middlewares=[count])
            app.router.add_static("/", folder)
            self._runner = web.AppRunner(app)
            await self._runner.setup()
            site = web.TCPSite(self._runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"
            self._ready.set()

        self._loop.run_until_complete(start())
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)


@pytest.fixture
def server(weather: Path, tmp_path: Path) -> Iterator[Server]:
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "w.nc").write_bytes(weather.read_bytes())
    for name in ("a.refindex", "a.sqlite"):
        refindex.scan(folder / "w.nc").save(folder / name)
    refindex.scan(folder / "w.nc", variables=["rain"]).save(folder / "a.refindex", overwrite=True)
    running = Server(folder)
    yield running
    running.close()


def test_a_remote_source(server: Server, weather: Path, tmp_path: Path) -> None:
    local = refindex.scan(weather)
    manifest = refindex.scan(f"{server.url}/w.nc")
    assert manifest.sources[0].size == weather.stat().st_size
    assert manifest.sources[0].etag
    for path, array in local.arrays.items():
        assert array.chunks.same_references(manifest.arrays[path].chunks)
    manifest.save(tmp_path / "a.refindex")
    expected = netcdf4(weather)
    xr.testing.assert_identical(xr.open_dataset(tmp_path / "a.refindex").load(), expected)
    xr.testing.assert_identical(xr.open_dataset(f"{server.url}/w.nc", engine="refindex").load(), expected)


def test_archives_behind_a_server_that_cannot_list(server: Server, weather: Path) -> None:
    with refindex.open(f"{server.url}/a.refindex") as archive:
        assert archive.version == 1
        assert archive.sources[0].url == f"{server.url}/w.nc"
        before = len(server.requests)
        assert np.array_equal(archive.group["rain"][...], netcdf4(weather)["rain"].values, equal_nan=True)
        read = [r for r in server.requests[before:] if r[0] == "/w.nc"]
        assert len(read) <= 30
    with refindex.open(f"{server.url}/a.refindex", version=0) as archive:
        assert "t2m" in archive.arrays
    with refindex.open(f"{server.url}/a.sqlite") as archive:
        assert archive.group["t2m"].shape == (6, 10, 20)
    group = zarr.open_group(f"refindex::{server.url}/a.refindex", mode="r")
    assert group["rain"][0, 0, 0] == netcdf4(weather)["rain"].values[0, 0, 0]


def test_failed_requests_are_errors_and_never_fill_values(server: Server) -> None:
    with refindex.open(f"{server.url}/a.refindex") as archive:
        assert archive.group["rain"].shape == (6, 10, 20)
        server.fail.add("w.nc")
        with pytest.raises(refindex.SourceError, match=r"127.0.0.1:\d+/w.nc"):
            archive.group["rain"][...]
    server.fail = {"kind=chunk"}
    with (
        refindex.open(f"{server.url}/a.refindex") as archive,
        pytest.raises(refindex.RefindexError, match="kind=chunk"),
    ):
        archive.group["rain"][...]
    server.fail = {"_delta_log"}
    with pytest.raises(refindex.RefindexError):
        refindex.open(f"{server.url}/a.refindex")


def test_a_source_that_is_gone(server: Server, tmp_path: Path) -> None:
    manifest = refindex.scan(f"{server.url}/w.nc")
    (tmp_path / "www/w.nc").unlink()
    manifest.save(tmp_path / "b.sqlite")
    with refindex.open(tmp_path / "b.sqlite") as archive, pytest.raises(refindex.SourceError, match="no such file"):
        archive.group["rain"][...]
    with pytest.raises(refindex.NotFoundError, match="w.nc"):
        refindex.scan(f"{server.url}/w.nc")


def test_what_is_not_there(server: Server) -> None:
    with pytest.raises(refindex.NotFoundError, match=r"nothing.nc"):
        refindex.scan(f"{server.url}/nothing.nc")
    with pytest.raises(refindex.RefindexError):
        refindex.open(f"{server.url}/nothing.refindex")
    with pytest.raises(refindex.SourceError, match="127.0.0.1:1"):
        refindex.scan("http://127.0.0.1:1/x.nc")


def test_several_remote_sources(server: Server, tmp_path: Path) -> None:
    (tmp_path / "www/v.nc").write_bytes((tmp_path / "www/w.nc").read_bytes())
    manifest = refindex.scan([f"{server.url}/w.nc", f"{server.url}/v.nc", f"{server.url}/gone.nc"], join=False)
    assert {p.partition("/")[0] for p in manifest.arrays} == {"w", "v"}
    assert [e.source for e in manifest.report.select(refindex.Status.FAILED)] == [f"{server.url}/gone.nc"]
