"""Archives on S3 (moto, on the loopback): every export there, read by others, and taken over again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
import zarr
from foreign import Mapper
from zarr.core.sync import sync

import refindex

moto_server = pytest.importorskip("moto.server")
pytest.importorskip("s3fs")
NAME = "s3://exchange/ü 100%#?.h5"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Options for a bucket with one file, some of whose chunks are adapted."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    fs = fsspec.filesystem("s3", **options)
    if fs.exists("exchange"):  # moto's buckets outlive its servers
        fs.rm("exchange", recursive=True)
    fs.mkdir("exchange")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("d", data=np.arange(3000, dtype="f8"), chunks=(500,), compression="gzip")
        file.create_dataset("z", data=np.arange(3000, dtype="i4") // 50, chunks=(500,), compression="lzf")
    with fs.open(NAME, "wb") as target:
        target.write((tmp_path / "a.h5").read_bytes())
    try:
        yield options
    finally:
        server.stop()
        type(fs).clear_instance_cache()


def check(group: Any) -> None:
    np.testing.assert_array_equal(group["d"][...], np.arange(3000))
    np.testing.assert_array_equal(group["z"][...], np.arange(3000) // 50)


@pytest.mark.parametrize("to", ["kerchunk", "kerchunk-parquet", "zarr"])
def test_out_and_back(to: str, bucket: dict[str, Any], tmp_path: Path) -> None:
    dest = f"s3://exchange/out.{to}"
    refindex.export(NAME, dest, to=to, zarr_format=3 if to == "zarr" else 2, materialize=True, storage_options=bucket)
    if to == "zarr":
        fsspec.filesystem("s3", **bucket).get(dest, str(tmp_path / "out"), recursive=True)
        check(zarr.open_group(tmp_path / "out", mode="r"))
        return
    fs = fsspec.filesystem("s3", **bucket)
    remote = fsspec.filesystem("s3", **bucket, asynchronous=True, skip_instance_cache=True)
    fo: Any = dest if to == "kerchunk" else Mapper("exchange/out.kerchunk-parquet", fs=fs, engine="pyarrow")
    references = fsspec.filesystem("reference", fo=fo, asynchronous=True, target_options=bucket, fs=remote)
    store = zarr.storage.FsspecStore(references, read_only=True, path="")
    check(zarr.open_group(store, mode="r", zarr_format=2))
    sync(remote._s3.close())
    again = refindex.import_references(dest, storage_options=bucket)
    assert {source.url for source in again.sources} == {NAME, f"{dest}.data"}
    assert all(source.etag for source in again.sources)


def test_icechunk(bucket: dict[str, Any], tmp_path: Path) -> None:
    icechunk = pytest.importorskip("icechunk")
    for dest in ("s3://exchange/repo", str(tmp_path / "repo")):
        refindex.export(NAME, dest, to="icechunk", materialize=True, storage_options=bucket)
        if dest.startswith("s3"):
            storage = icechunk.s3_storage(
                bucket="exchange", prefix="repo", region="us-east-1", endpoint_url=bucket["endpoint_url"],
                allow_http=True, force_path_style=True, access_key_id="test", secret_access_key="test",
            )  # fmt: skip
        else:
            storage = icechunk.local_filesystem_storage(dest)
        credentials = icechunk.s3_credentials(access_key_id="test", secret_access_key="test")
        access = icechunk.containers_credentials({"s3://exchange/": credentials})
        repository = icechunk.Repository.open(storage, authorize_virtual_chunk_access=access)
        check(zarr.open_group(repository.readonly_session("main").store, mode="r"))
        again = refindex.import_references(dest, storage_options=bucket)
        assert again.sources[0].url == NAME
        with refindex.exchange._opened(again, None, bucket) as archive:
            check({path: zarr.open_array(archive.store, path=path, mode="r") for path in ("d", "z")})
    with pytest.raises(refindex.ExistsError, match="there is a repository already"):
        refindex.export(NAME, "s3://exchange/repo", to="icechunk", materialize=True, storage_options=bucket)
