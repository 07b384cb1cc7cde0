"""What cannot be read is never answered as if it did not exist: clients fill that with fill values."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from aiohttp import web
from asking import ask
from serving import RangeServer

import refindex

CHUNK = "t2m/c/0/0/0"


@pytest.fixture
def copied(weather: Path, tmp_path: Path) -> Path:
    """An archive of a copy of the weather file."""
    (tmp_path / "weather.nc").write_bytes(weather.read_bytes())
    refindex.scan(tmp_path / "weather.nc").save(tmp_path / "a.refindex")
    return tmp_path


def reason(url: str, path: str, status: int, **headers: str) -> str:
    found = ask(url, path, **headers)
    assert found.status == status, found.body
    assert found.body.count(b"\n") == 1
    assert found.headers["cache-control"] == "no-store"
    return str(json.loads(found.body)["error"])


@pytest.mark.parametrize("view", ["", "plain/"])
@pytest.mark.parametrize("headers", [{}, {"Range": "bytes=0-9"}], ids=["whole", "range"])
def test_a_source_that_is_gone(copied: Path, view: str, headers: dict[str, str]) -> None:
    (copied / "weather.nc").unlink()
    with refindex.open(copied / "a.refindex") as archive, archive.serve() as running:
        assert "weather.nc: no such file" in reason(running.url, view + CHUNK, 502, **headers)
        assert ask(running.url, f"{view}zarr.json").status == 200
        assert ask(running.url, f"{view}time/c/0").status == 200  # is in the manifest
        with pytest.raises(Exception, match="502"):
            zarr.open_array(running.url + view + "t2m", mode="r")[...]


@pytest.mark.parametrize("view", ["", "plain/"])
def test_a_source_that_has_changed(copied: Path, view: str) -> None:
    os.utime(copied / "weather.nc", (0, 0))
    with refindex.open(copied / "a.refindex") as archive, archive.serve() as running:
        assert "has changed" in reason(running.url, view + CHUNK, 502)


def test_a_damaged_chunk(copied: Path) -> None:
    with refindex.open(copied / "a.refindex") as archive:
        table = archive.find("t2m", [0])
        status = (copied / "weather.nc").stat()
        with (copied / "weather.nc").open("r+b") as file:
            file.seek(int(table.offset[0]))
            file.write(b"\xff" * int(table.length[0]))
        os.utime(copied / "weather.nc", ns=(status.st_atime_ns, status.st_mtime_ns))
        with archive.serve() as running:
            assert "/t2m/c/0/0/0" in reason(running.url, f"plain/{CHUNK}", 500)
            assert "/t2m/c/0/0/0" in reason(running.url, f"plain/{CHUNK}", 500, Range="bytes=0-3")


@pytest.mark.parametrize("status", [403, 404, 410, 416, 429, 500, 503])
@pytest.mark.parametrize("view", ["", "plain/"])
def test_a_source_behind_a_failing_server(weather: Path, tmp_path: Path, status: int, view: str) -> None:
    failing = threading.Event()

    def trouble(_: Any, request: web.Request, __: int) -> web.Response | None:
        return web.Response(status=status) if failing.is_set() else None

    with RangeServer(weather.parent, trouble=trouble) as source:
        refindex.scan(f"{source.url}/weather.nc").save(tmp_path / "a.refindex")
        with refindex.open(tmp_path / "a.refindex") as archive, archive.serve() as running:
            expected = ask(running.url, view + CHUNK).body
            failing.set()
            other = ask(running.url, f"{view}t2m/c/1/0/0")
            assert other.status == 502, other.body
            failing.clear()
            assert ask(running.url, f"{view}t2m/c/1/0/0").status == 200
            assert ask(running.url, view + CHUNK).body == expected


def test_only_what_positively_does_not_exist_is_absent(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        sparse = file.create_dataset("d", (9000, 40), "f4", chunks=(2000, 40), compression="gzip", fillvalue=-1)
        sparse[4000:6000] = 7
    with refindex.open(tmp_path / "a.h5") as archive, archive.serve() as running:
        for view in ("", "plain/"):
            for chunk in range(5):
                for method in ("GET", "HEAD"):
                    for headers in ({}, {"Range": "bytes=-4"}, {"If_None_Match": "*"}):
                        found = ask(running.url, f"{view}d/c/{chunk}/0", method=method, **headers)
                        assert (found.status == 404) is (chunk != 2)
            served: Any = zarr.open_array(running.url + view + "d", mode="r")
            expected = np.full((9000, 40), -1, "f4")
            expected[4000:6000] = 7
            assert np.array_equal(served[...], expected)


def test_trouble_that_nobody_thought_of(
    archive: refindex.Archive, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A defect is 500, tells nothing that clients should not know, and is in the log."""
    from refindex.serve.plain import PlainHierarchy

    def broken(*_: Any) -> None:
        raise FileNotFoundError("/secret/place")

    monkeypatch.setattr(PlainHierarchy, "_read", broken)
    with archive.serve() as running:
        assert "secret" not in reason(running.url, f"plain/{CHUNK}", 500)
    assert "/secret/place" in caplog.text


def test_secrets_in_urls_stay_secret(weather: Path, tmp_path: Path) -> None:
    with RangeServer(weather.parent) as source:
        refindex.scan(f"{source.url}/weather.nc?token=hushhush").save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex") as archive, archive.serve() as running:
        for path in (CHUNK, f"plain/{CHUNK}"):
            assert "hushhush" not in reason(running.url, path, 502)
        for accept in ("text/html", "application/json"):
            assert b"hushhush" not in ask(running.url, Accept=accept).body
