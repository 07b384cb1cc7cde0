"""Scans from S3 (moto): counted at the server, and equal to the scan of the local file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import h5py
import netCDF4
import numpy as np
import pytest
from s3 import Log, s3_server

import refindex
from refindex.access.transport import RemoteStats
from refindex.scan.many import scan_many
from refindex.scan.registry import scan_source

pytest.importorskip("s3fs", reason="s3fs is not installed")

MB = 1_000_000


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, dict[str, Any], Log]]:
    with s3_server(monkeypatch) as running:
        options = {"endpoint_url": running.url}
        fs = fsspec.filesystem("s3", **options)
        if not fs.exists("remote-scan"):
            fs.mkdir("remote-scan")
        try:
            yield fs, options, running.log
        finally:
            type(fs).clear_instance_cache()


def put(fs: Any, path: Path) -> str:
    fs.pipe_file(f"remote-scan/{path.name}", path.read_bytes())
    return f"s3://remote-scan/{path.name}"


def write_daily(path: Path, step: int) -> Path:
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("time", 24), ("x", step)):
            file.createDimension(name, size)
            file.createVariable(name, "f8", (name,))[:] = np.arange(size)
        for number in range(10):
            data = file.createVariable(f"v{number}", "f4", ("time", "x"), zlib=True, chunksizes=(1, step))
            data[:] = np.random.default_rng(number).random((24, step), dtype="f4")
    return path


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("step", "requests"), [(1000, 1), (5000, 2), (30_000, 16)])
def test_daily_files(s3: tuple[Any, dict[str, Any], Log], tmp_path: Path, step: int, requests: int) -> None:
    fs, options, log = s3
    path = write_daily(tmp_path / "daily.nc", step)
    url = put(fs, path)
    log.lines.clear()
    stats = RemoteStats()
    found = scan_source(url, storage_options=options, stats=stats)
    assert stats.requests == len([line for line in log.lines if "GET" in line or "HEAD" in line]) <= requests
    local = scan_source(f"file://{path}")
    assert {p: n.document for p, n in found.nodes.items()} == {p: n.document for p, n in local.nodes.items()}
    assert all(a.chunks.same_references(found.arrays[p].chunks) for p, a in local.arrays.items())
    # What other ways of asking say of the file is the same: nothing will take it for another.
    info = fs.info(url)
    assert found.sources[0].etag == info["ETag"]
    assert found.sources[0].mtime == int(info["LastModified"].timestamp() * 1_000_000)


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("libver", "requests", "nbytes"), [(None, 40, 30 * MB), ("latest", 4, 3 * MB)])
def test_a_large_index(
    s3: tuple[Any, dict[str, Any], Log], tmp_path: Path, libver: str | None, requests: int, nbytes: int
) -> None:
    """S3 has no several ranges in a request: nodes that are near are read with the chunks between them."""
    fs, options, _ = s3
    path = tmp_path / "index.h5"
    with h5py.File(path, "w", libver=libver) as file:
        dataset = file.create_dataset("v", shape=(128 * 32, 128 * 32), dtype="f4", chunks=(32, 32), compression=1)
        for number in range(128 * 128):
            dataset.id.write_direct_chunk((number // 128 * 32, number % 128 * 32), bytes(1200 + number % 64))
    url = put(fs, path)
    stats = RemoteStats()
    found = scan_source(url, storage_options=options, stats=stats)
    assert stats.requests <= requests
    assert stats.nbytes <= nbytes
    assert found.arrays["v"].chunks.same_references(scan_source(f"file://{path}").arrays["v"].chunks)


@pytest.mark.timeout(120)
def test_what_s3_refuses(s3: tuple[Any, dict[str, Any], Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, options, _ = s3
    fs.pipe_file("remote-scan/empty.nc", b"")
    with pytest.raises(refindex.FormatError, match=r"s3://remote-scan/empty.nc: the file is empty"):
        scan_source("s3://remote-scan/empty.nc", storage_options=options)
    for url in ("s3://remote-scan/gone.nc", "s3://no-such-bucket/x.nc"):
        with pytest.raises(refindex.NotFoundError, match=f"{url}: no such file"):
            scan_source(url, storage_options=options)
    good = put(fs, write_daily(tmp_path / "good.nc", 100))
    found = scan_many([good, "s3://remote-scan/gone.nc"], workers=1, storage_options=options)
    assert list(found.files) == [good]
    assert "no such file" in found.failures[0].reason
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    type(fs).clear_instance_cache()
    with pytest.raises(refindex.SourceError, match=r"s3://remote-scan/good.nc: .*credentials; set them in the"):
        scan_source(good, storage_options=options)


@pytest.mark.timeout(120)
def test_an_object_that_changes_meanwhile(
    s3: tuple[Any, dict[str, Any], Log], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs, options, _ = s3
    path = write_daily(tmp_path / "changing.nc", 30_000)
    url = put(fs, path)
    real, asked = type(fs)._call_s3, []

    async def call(self: Any, method: str, *args: Any, **kwargs: Any) -> Any:
        if method == "get_object":
            asked.append(kwargs["Range"])
            if len(asked) == 3:
                await real(self, "put_object", Bucket="remote-scan", Key="changing.nc", Body=path.read_bytes() + b"x")
        return await real(self, method, *args, **kwargs)

    monkeypatch.setattr(type(fs), "_call_s3", call)
    with pytest.raises(refindex.SourceError, match=r"changing.nc changed while it was scanned: size was"):
        scan_source(url, storage_options=options)


@pytest.mark.timeout(120)
def test_the_first_read_checks_without_a_request_of_its_own(
    s3: tuple[Any, dict[str, Any], Log], tmp_path: Path
) -> None:
    fs, options, log = s3
    path = tmp_path / "checked.h5"
    values = np.arange(400_000, dtype="i4")
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=values, chunks=(1000,))
    url = put(fs, path)
    refindex.scan(url, storage_options=options).save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex", storage_options=options) as archive:
        log.lines.clear()
        np.testing.assert_array_equal(archive["a"][10:20].compute(), values[10:20])
        assert len(log.lines) == 1, log.lines
        np.testing.assert_array_equal(archive["a"][300_000:300_010].compute(), values[300_000:300_010])
        assert len(log.lines) == 2, log.lines
    for size in (400_000, 100):  # of the same size, and so short that the range is none any more
        with h5py.File(path, "w") as file:
            file.create_dataset("a", data=values[:size] + 1, chunks=(100,) if size < 1000 else (1000,))
        put(fs, path)
        with (
            refindex.open(tmp_path / "a.refindex", storage_options=options) as archive,
            pytest.raises(refindex.StaleSourceError, match=r"checked\.h5 has changed .*(etag|size) was .*--overwrite"),
        ):
            archive["a"][300_000:300_010].compute()
