"""Objects of S3 in a bucket that keeps their versions (moto): what was scanned is what is read, whatever came since."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
import h5py
import netCDF4
import numpy as np
import pytest
from fsspec.asyn import sync
from s3 import Log, s3_server
from serving import forget_s3

import refindex
from refindex import storage
from refindex.access.files import SourcePool
from refindex.access.looking import look
from refindex.model.manifest import Source

pytest.importorskip("s3fs", reason="s3fs is not installed")

pytestmark = pytest.mark.timeout(120)

CHUNK = 1000


@dataclass
class Buckets:
    """A server with the buckets ``kept``, which keeps versions, and ``plain``, which does not."""

    fs: Any
    options: dict[str, Any]
    log: Log
    folder: Path
    written: dict[str, list[str]] = field(default_factory=dict)

    def call(self, method: str, **arguments: Any) -> Any:
        return sync(self.fs.loop, self.fs._call_s3, method, **arguments)

    def put(self, bucket: str, key: str, values: np.ndarray[Any, Any]) -> str:
        """Write a file with an array ``a``; gives its URL."""
        path = self.folder / "written.h5"
        with h5py.File(path, "w") as file:
            file.create_dataset("a", data=values, chunks=(CHUNK,))
        answer = self.call("put_object", Bucket=bucket, Key=key, Body=path.read_bytes())
        url = f"s3://{bucket}/{key}"
        self.written.setdefault(url, []).append(answer.get("VersionId"))
        return url

    @contextlib.contextmanager
    def counted(self) -> Iterator[list[str]]:
        """The requests for objects that are made meanwhile."""
        self.log.lines.clear()
        lines: list[str] = []
        yield lines
        lines += self.log.lines


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Buckets]:
    with s3_server(monkeypatch) as running:
        options = {"endpoint_url": running.url}
        fs = fsspec.filesystem("s3", **options)
        made = Buckets(fs, options, running.log, tmp_path)
        for bucket in ("kept", "plain"):
            if not fs.exists(bucket):
                fs.mkdir(bucket)
        made.call("put_bucket_versioning", Bucket="kept", VersioningConfiguration={"Status": "Enabled"})
        try:
            yield made
        finally:
            forget_s3()


@pytest.fixture(params=["a.refindex", "a.sqlite"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Where an archive is written, of both storages."""
    return tmp_path / str(request.param)


OLD = np.arange(400 * CHUNK, dtype="i4")
NEW = OLD[::-1].copy()
PART = slice(300 * CHUNK + 7, 301 * CHUNK + 9)


def read(place: Path, s3: Buckets, part: slice = PART) -> np.ndarray[Any, Any]:
    with refindex.open(place, storage_options=s3.options) as archive:
        return np.asarray(archive["a"][part].compute())


def test_the_version_that_was_scanned_is_read(s3: Buckets, place: Path) -> None:
    """Of a key that was written over, in as many requests as of one in a bucket that keeps nothing."""
    requests: dict[str, tuple[int, int]] = {}
    for bucket in ("plain", "kept"):
        url = s3.put(bucket, "written-over.h5", OLD)
        target = place.with_name(f"{bucket}-{place.name}")
        with s3.counted() as scanning:
            manifest = refindex.scan(url, storage_options=s3.options)
        assert [s.version for s in manifest.sources] == [s3.written[url][-1]]
        manifest.save(target)
        with contextlib.closing(storage.open_reader(str(target))) as reader:
            assert [s.version for s in reader.sources] == s3.written[url]
        if bucket == "kept":
            assert s3.written[url][0]
            s3.put(bucket, "written-over.h5", NEW)
        with s3.counted() as reading:
            np.testing.assert_array_equal(read(target, s3), OLD[PART])
        requests[bucket] = len(scanning), len(reading)
        if bucket == "kept":
            with refindex.open(target, storage_options=s3.options) as archive:
                np.testing.assert_array_equal(archive["a"][:].compute(), OLD)
    assert requests["kept"] == requests["plain"]
    assert requests["kept"][1] == 1


def test_what_is_written_over_in_a_bucket_that_keeps_nothing(s3: Buckets, place: Path) -> None:
    url = s3.put("plain", "written-over.h5", OLD)
    refindex.scan(url, storage_options=s3.options).save(place)
    s3.put("plain", "written-over.h5", NEW)
    with pytest.raises(refindex.StaleSourceError, match=r"written-over\.h5 has changed since it was scanned: etag was"):
        read(place, s3)


def test_a_key_that_was_deleted_and_a_version_that_is_gone(s3: Buckets, place: Path) -> None:
    url = s3.put("kept", f"deleted-{place.suffix[1:]}.h5", OLD)
    key, version = url.rpartition("/")[2], s3.written[url][0]
    refindex.scan(url, storage_options=s3.options).save(place)
    s3.call("delete_object", Bucket="kept", Key=key)
    assert not s3.fs.exists(url)
    np.testing.assert_array_equal(read(place, s3), OLD[PART])
    assert refindex.verify(place, storage_options=s3.options).ok
    s3.call("delete_object", Bucket="kept", Key=key, VersionId=version)
    with pytest.raises(refindex.SourceError, match=rf"{key}: version {version}, which was scanned, is gone") as caught:
        read(place, s3)
    assert not isinstance(caught.value, FileNotFoundError)  # which zarr takes for a chunk that is not there
    found = refindex.verify(place, storage_options=s3.options, sources_only=True)
    assert [version in problem.what for problem in found.problems] == [True]


def test_reading_one_by_one(s3: Buckets) -> None:
    """The pool's own calls: those that block, and those of other event loops."""
    url = s3.put("kept", "one-by-one.h5", OLD)
    (source,) = refindex.scan(url, storage_options=s3.options).sources
    whole = s3.fs.cat_file(url)
    s3.put("kept", "one-by-one.h5", NEW)
    assert s3.fs.cat_file(url) != whole
    pool = SourcePool([source], storage_options=s3.options)
    assert pool.read(0, 5000, 4000) == whole[5000:9000]
    assert pool.reader(0).identity() == source
    pool.close()


def test_a_scan_that_goes_on_knows_the_versions(s3: Buckets, tmp_path: Path) -> None:
    urls = [s3.put("kept", f"resumed-{number}.h5", OLD[:CHUNK]) for number in range(2)]

    def scan() -> set[str | None]:
        found = refindex.scan(urls, join=False, resume=tmp_path / "kept", storage_options=s3.options, workers=1)
        return {source.version for source in found.sources}

    wanted = {s3.written[url][-1] for url in urls}
    assert scan() == wanted
    for url in urls:
        s3.put("kept", url.rpartition("/")[2], NEW[:CHUNK])
    assert scan() == wanted  # they were scanned before


def test_verify_compares_the_version_that_was_scanned(s3: Buckets, place: Path) -> None:
    url = s3.put("kept", "verified.h5", OLD[: 20 * CHUNK])
    refindex.scan(url, storage_options=s3.options).save(place)
    s3.put("kept", "verified.h5", NEW[: 20 * CHUNK])
    with s3.counted() as lines:
        found = refindex.verify(place, storage_options=s3.options)
    assert found.ok, str(found)
    assert (found.originals, found.chunks) == (1, 20)
    version = s3.written[url][0]
    assert {f"versionId={version}" in line for line in lines if "verified.h5" in line} == {True}


def test_netcdf3_is_verified_at_its_version(s3: Buckets, tmp_path: Path, place: Path) -> None:
    """Such files are downloaded to be compared."""
    for first in (0, 100):
        with netCDF4.Dataset(tmp_path / "three.nc", "w", format="NETCDF3_CLASSIC") as file:
            file.createDimension("x", 50)
            file.createVariable("a", "i4", ("x",))[:] = np.arange(first, first + 50)
        s3.call("put_object", Bucket="kept", Key="three.nc", Body=(tmp_path / "three.nc").read_bytes())
        if not first:
            refindex.scan("s3://kept/three.nc", storage_options=s3.options).save(place)
    np.testing.assert_array_equal(read(place, s3, slice(None)), np.arange(50))
    found = refindex.verify(place, storage_options=s3.options)
    assert found.ok, str(found)


def test_append_takes_what_was_written_over(s3: Buckets, place: Path) -> None:
    url = s3.put("kept", "appended.h5", OLD)
    refindex.scan(url, storage_options=s3.options).save(place)
    assert refindex.append(place, url, storage_options=s3.options).skipped == (url,)
    for values in (NEW, NEW):  # written over, and once more with the same bytes: another version
        s3.put("kept", "appended.h5", values)
        with pytest.raises(refindex.StaleSourceError, match=r"has changed since.*replace=True"):
            refindex.append(place, url, storage_options=s3.options)
        assert refindex.append(place, url, replace=True, storage_options=s3.options).replaced == (url,)
        with contextlib.closing(storage.open_reader(str(place))) as reader:
            assert [s.version for s in reader.sources if s.url == url] == s3.written[url][-1:]
        np.testing.assert_array_equal(read(place, s3), NEW[PART])


def test_who_may_not_ask_for_versions(s3: Buckets, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the newest version takes another permission: it is as good, as long as it is the one that was scanned."""
    url = s3.put("kept", "permitted.h5", OLD)
    refindex.scan(url, storage_options=s3.options).save(place)
    real, asked = type(s3.fs)._call_s3, []

    async def call(self: Any, method: str, *args: Any, **more: Any) -> Any:
        if method in ("get_object", "head_object"):
            asked.append("VersionId" in more)
            if "VersionId" in more:
                raise PermissionError("Access Denied")
        return await real(self, method, *args, **more)

    monkeypatch.setattr(type(s3.fs), "_call_s3", call)
    with refindex.open(place, storage_options=s3.options) as archive:
        for number in (3, 200):
            part = slice(number * CHUNK, (number + 1) * CHUNK)
            np.testing.assert_array_equal(archive["a"][part].compute(), OLD[part])
        assert asked == [True, False, False]
        s3.put("kept", "permitted.h5", NEW)
        with pytest.raises(refindex.StaleSourceError, match=r"version was .*, is .*s3:GetObjectVersion"):
            archive["a"][PART].compute()  # a file that is open already


def test_other_places_have_other_versions(s3: Buckets, tmp_path: Path) -> None:
    url = s3.put("kept", "here/moved.h5", OLD)
    refindex.scan(url, storage_options=s3.options).save(tmp_path / "a.refindex")
    whole = s3.fs.cat_file(url)
    s3.call("put_object", Bucket="kept", Key="there/moved.h5", Body=whole)
    (tmp_path / "moved.h5").write_bytes(whole)

    def versions() -> list[str | None]:
        with contextlib.closing(storage.open_reader(str(tmp_path / "a.refindex"))) as reader:
            return [s.version for s in reader.sources]

    assert versions() == s3.written[url]
    refindex.relocate(tmp_path / "a.refindex", "s3://kept/here", "s3://kept/there", storage_options=s3.options)
    now = look(["s3://kept/there/moved.h5"], s3.options)["s3://kept/there/moved.h5"]
    assert isinstance(now, Source)
    assert versions() == [now.version] != s3.written[url]
    np.testing.assert_array_equal(read(tmp_path / "a.refindex", s3), OLD[PART])
    refindex.relocate(tmp_path / "a.refindex", "s3://kept/there", "s3://kept/here", check=False)
    assert versions() == [None]
    refindex.relocate(tmp_path / "a.refindex", "s3://kept/here", tmp_path)
    assert versions() == [None]
    np.testing.assert_array_equal(read(tmp_path / "a.refindex", s3), OLD[PART])


def test_where_versions_mean_nothing(s3: Buckets, tmp_path: Path) -> None:
    """Behind a cache the version cannot be asked for; of references that were made elsewhere nobody knows it."""
    url = s3.put("kept", "cached.h5", OLD[:CHUNK])
    options = {"s3": s3.options, "cache_storage": str(tmp_path / "cache")}
    assert [s.version for s in refindex.scan(f"simplecache::{url}", storage_options=options).sources] == [None]
    with h5py.File(tmp_path / "written.h5") as file:
        chunk = file["a"].id.get_chunk_info(0)
    array = {"shape": [CHUNK], "chunks": [CHUNK], "dtype": "<i4", "compressor": None, "filters": None}
    described = json.dumps({**array, "fill_value": 0, "order": "C", "zarr_format": 2})
    references = {".zgroup": '{"zarr_format":2}', "a/.zarray": described, "a/0": [url, chunk.byte_offset, chunk.size]}
    (tmp_path / "k.json").write_text(json.dumps({"version": 1, "refs": references}))
    imported = refindex.from_kerchunk(tmp_path / "k.json", allow=["s3://kept/"], storage_options=s3.options)
    assert [(s.url, s.version) for s in imported.sources] == [(url, None)]


@pytest.mark.parametrize("check", [True, False])
def test_a_published_archive_keeps_the_versions(s3: Buckets, tmp_path: Path, check: bool) -> None:
    url = s3.put("kept", "published.h5", OLD)
    refindex.scan(url, storage_options=s3.options).save(tmp_path / "a.refindex")
    s3.put("kept", "published.h5", NEW)
    refindex.publish(tmp_path / "a.refindex", tmp_path / "p.sqlite", check=check, storage_options=s3.options)
    np.testing.assert_array_equal(read(tmp_path / "p.sqlite", s3), OLD[PART])
