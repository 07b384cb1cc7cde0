"""Sources and archives through obstore's filesystems: S3 (moto), HTTP and memory."""

from __future__ import annotations

import io
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
from fsspec.registry import _registry
from s3 import Log, s3_server
from serving import RangeServer

import refindex
from refindex import storage
from refindex.access.options import filesystem
from refindex.access.transport import RemoteStats
from refindex.scan.registry import scan_source
from refindex.storage.parquet import log

pytest.importorskip("obstore", reason="obstore is not installed")

from obstore.fsspec import register

pytestmark = pytest.mark.timeout(180)

BUCKET = "through-obstore"


@dataclass(kw_only=True)
class Served:
    options: dict[str, Any]
    requests: Log


@pytest.fixture
def registered() -> Iterator[None]:
    """obstore's filesystems in place of fsspec's, for one test."""
    before = dict(_registry)
    register(["s3", "http", "memory"])
    yield
    for name in ("s3", "http", "memory"):
        fsspec.get_filesystem_class(name).clear_instance_cache()
    _registry.clear()
    _registry.update(before)


@pytest.fixture
def s3(registered: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with s3_server(monkeypatch) as running:
        for call in (f"{running.url}/moto-api/reset", f"{running.url}/{BUCKET}"):
            method = "POST" if "reset" in call else "PUT"
            urllib.request.urlopen(urllib.request.Request(call, method=method), timeout=20).close()
        of_bucket = {
            "endpoint": running.url,
            "access_key_id": "test",
            "secret_access_key": "test",
            "region": "us-east-1",
            "client_options": {"allow_http": True},
            "retry_config": {"max_retries": 0},
        }
        yield Served(options={f"s3://{BUCKET}": of_bucket}, requests=running.log)


def put(url: str, data: bytes, options: dict[str, Any] | None = None) -> str:
    fs, path = filesystem(url, options)
    fs.pipe_file(path, data)
    return url


def other(path: Path) -> bytes:
    """The same file with another value."""
    copy = io.BytesIO(path.read_bytes())
    with h5py.File(copy, "r+") as file:
        file["rain"][0, 0, 0] += 1
    return copy.getvalue()


def assert_same_values(archive: refindex.Archive, path: Path) -> None:
    with h5py.File(path) as file:
        for name in ("t2m", "rain", "time", "derived/mean"):
            assert np.array_equal(archive.group[name][...], file[name][...], equal_nan=True), name


def test_a_source_on_s3(s3: Served, weather: Path) -> None:
    url = put(f"s3://{BUCKET}/in/a.nc", weather.read_bytes(), s3.options)
    s3.requests.lines.clear()
    stats = RemoteStats()
    found = scan_source(url, storage_options=s3.options, stats=stats)
    # Small: one request brings all of it, and says which version it is of.
    assert len(s3.requests.lines) == 1
    assert "GET" in s3.requests.lines[0]
    assert stats.requests == 1
    local = scan_source(f"file://{weather}")
    assert {p: n.document for p, n in found.nodes.items()} == {p: n.document for p, n in local.nodes.items()}
    assert all(a.chunks.same_references(found.arrays[p].chunks) for p, a in local.arrays.items())
    head = filesystem(url, s3.options)[0].info(f"{BUCKET}/in/a.nc")
    assert (found.sources[0].size, found.sources[0].etag) == (weather.stat().st_size, head["e_tag"])
    assert found.sources[0].mtime == int(head["last_modified"].timestamp() * 1e6)
    with refindex.open(url, storage_options=s3.options) as archive:
        assert_same_values(archive, weather)
    put(url, other(weather), s3.options)
    with pytest.raises(refindex.StaleSourceError, match="has changed since it was scanned"):
        storage_read(found, s3.options)


def storage_read(manifest: refindex.Manifest, options: dict[str, Any]) -> Any:
    url = f"s3://{BUCKET}/stale.refindex"
    manifest.save(url, storage_options=options)
    with refindex.open(url, storage_options=options) as archive:
        return archive.group["rain"][...]


@pytest.mark.parametrize("place", [f"s3://{BUCKET}/deep/er", "memory://deep/er"])
def test_archives(s3: Served, weather: Path, place: str) -> None:
    source = put(f"s3://{BUCKET}/deep/er/a.nc", weather.read_bytes(), s3.options)
    later = put(f"s3://{BUCKET}/deep/er/b.nc", other(weather), s3.options)
    manifest = refindex.scan(source, storage_options=s3.options)
    for name in ("archive.refindex", "archive.sqlite"):
        out = f"{place}/{name}"
        assert manifest.save(out, storage_options=s3.options) == 0
        with pytest.raises(refindex.ExistsError):
            manifest.save(out, storage_options=s3.options)
        with refindex.open(out, storage_options=s3.options) as archive:
            assert archive.sources[0].url == source
            assert_same_values(archive, weather)
    out = f"{place}/archive.refindex"
    refindex.append(out, later, overlap="last", storage_options=s3.options)
    assert [commit.version for commit in refindex.log(out, storage_options=s3.options)] == [1, 0]
    with refindex.open(out, version=0, storage_options=s3.options) as archive:
        assert_same_values(archive, weather)
    with pytest.raises(refindex.ConflictError):
        storage.commit(out, manifest, base=0, operation="write", details={}, storage_options=s3.options)


@pytest.mark.parametrize("place", [f"s3://{BUCKET}/race.refindex", "memory://race.refindex"])
def test_two_writers(s3: Served, place: str) -> None:
    """Its filesystems write over what is there, whatever the mode: the second writer must not."""
    fs, root = filesystem(place, s3.options)
    log.create(fs, root, place, 0, b"first")
    with pytest.raises(refindex.ConflictError, match="version 0 was committed by another writer"):
        log.create(fs, root, place, 0, b"second")
    assert fs.cat_file(log.entry_path(root, 0)) == b"first"


def test_what_is_refused(s3: Served, weather: Path) -> None:
    put(f"s3://{BUCKET}/empty.nc", b"", s3.options)
    with pytest.raises(refindex.FormatError, match=rf"^s3://{BUCKET}/empty.nc: the file is empty"):
        refindex.scan(f"s3://{BUCKET}/empty.nc", storage_options=s3.options)
    with pytest.raises(refindex.NotFoundError, match=rf"^s3://{BUCKET}/gone.nc: no such file$"):
        refindex.scan(f"s3://{BUCKET}/gone.nc", storage_options=s3.options)
    url = put(f"s3://{BUCKET}/a.nc", weather.read_bytes(), s3.options)
    closed = {"s3://": {**s3.options[f"s3://{BUCKET}"], "endpoint": "http://127.0.0.1:9"}}
    with pytest.raises(refindex.SourceError, match=rf"^{url}: Generic S3 error") as caught:
        refindex.scan(url, storage_options=closed)
    assert "\n" not in str(caught.value)
    assert "Debug source" not in str(caught.value)


def test_an_object_that_changes_meanwhile(s3: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.h5"
    with h5py.File(path, "w") as file:
        for number in range(12):
            file[f"v{number}"] = np.random.default_rng(number).random(200_000)
    url = put(f"s3://{BUCKET}/large.h5", path.read_bytes(), s3.options)
    from refindex.access import filesystems

    real, asked = filesystems._ObjectStore.get, []

    async def get(self: Any, start: int, stop: int, /) -> Any:
        asked.append(start)
        if len(asked) == 2:
            await self._fs._pipe_file(self._path, path.read_bytes() + b"x")
        return await real(self, start, stop)

    monkeypatch.setattr(filesystems._ObjectStore, "get", get)
    with pytest.raises(refindex.SourceError, match=r"large.h5 changed while it was scanned"):
        refindex.scan(url, storage_options=s3.options)
    assert len(asked) >= 2


def test_http(registered: None, weather: Path) -> None:
    options = {"http://127.0.0.1": {}, "http://": {"client_options": {"allow_http": True}}}
    with RangeServer(weather.parent) as server:
        url = f"{server.url}/{weather.name}"
        found = refindex.scan(url, storage_options=options)
        assert len(server.requests) == 1
        assert found.sources[0].etag
        with refindex.open(url, storage_options=options) as archive:
            assert_same_values(archive, weather)
