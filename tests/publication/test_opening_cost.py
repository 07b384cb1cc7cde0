"""What opening a published archive costs over plain HTTP, counted; and that other engines read it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable
from manifests import assert_equal, make_manifest, read
from serving import RangeServer
from test_versions import append

import refindex
from refindex import ChunkTable, storage
from refindex.access import urls
from refindex.storage import parquet
from refindex.storage.parquet.log import checksum

ROWS = 400_000


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 12 versions, and one of its newest that was published."""
    folder = tmp_path_factory.mktemp("cost")
    chunk = np.arange(ROWS)
    # Offsets that do not compress: a file of several megabytes.
    offset = np.random.default_rng(0).integers(0, 1 << 40, ROWS)
    table = ChunkTable.from_columns(chunk=chunk, source=0, offset=offset, length=chunk % 97)
    first = ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[10])
    make_manifest({"a": first, "big": table}, sources=1).save(folder / "work.refindex")
    for _ in range(12):
        append(urls.absolute(folder / "work.refindex"))
    refindex.publish(folder / "work.refindex", folder / "pub.refindex", allow_local=True, check=False)
    return folder


@pytest.fixture
def server(large: Path, tmp_path: Path) -> Iterator[RangeServer]:
    shutil.copytree(large, tmp_path / "www")
    with RangeServer(tmp_path / "www") as running:
        yield running


def test_requests_and_bytes(server: RangeServer) -> None:
    costs = {}
    for name in ("work", "pub"):
        server.forget()
        with refindex.open(f"{server.url}/{name}.refindex", allow="/data") as archive:
            assert len(archive.nodes) > 2
            opened = len(server.requests), server.nbytes
            assert len(archive.sources) == 13
            table = archive.find("big", [ROWS // 2])
            assert table.chunk.tolist() == [ROWS // 2]
            costs[name] = (*opened, len(server.requests), server.nbytes)
    # What the log says, that there is no newer version, groups and arrays, sources; the end of a file, a row group.
    assert costs["pub"][0] == 4
    assert costs["pub"][2] <= 6
    assert costs["pub"][0] < costs["work"][0]
    assert costs["pub"][2] <= costs["work"][2] - 4
    # A look-up fetches a row group of the file, and not megabytes that follow it.
    size = sum(p.stat().st_size for p in (server.folder / "pub.refindex/kind=chunk").iterdir())
    assert size > 2_000_000
    assert costs["pub"][3] < size / 3


def test_every_file_of_a_small_one_is_fetched_once(tmp_path: Path) -> None:
    manifest = make_manifest({"a": ChunkTable.from_columns(chunk=[3], source=0, offset=[1], length=[2])}, sources=1)
    refindex.publish(manifest, tmp_path / "a.refindex", allow_local=True, check=False)
    with RangeServer(tmp_path, ranges=False) as server:  # for which it needs no ranges
        with closing(storage.open_reader(f"{server.url}/a.refindex")) as reader:
            found = storage.load(reader)
        assert_equal(found, read(tmp_path / "a.refindex"))
        paths = [path for path, _ in server.requests]
        assert len(paths) == len(set(paths))


def test_what_is_appended_to_a_published_archive_is_seen(server: RangeServer) -> None:
    url = f"{server.url}/pub.refindex"
    out = server.folder / "pub.refindex"
    reader = storage.open_reader(url)
    for number in range(1, 13):  # beyond the next checkpoint
        append(urls.absolute(out))
        with closing(storage.open_reader(url)) as newer:
            assert newer.version == number == storage.newest_version(url)
            assert len(newer.sources) == 13 + number
    assert len(reader.sources) == 13
    reader.close()
    with closing(storage.open_reader(url, version=0)) as old:
        assert len(old.sources) == 13
    assert [c.version for c in storage.history(url)] == list(range(12, -1, -1))
    # One look at the log gives any version, in any order.
    found = parquet.find_log(url)
    assert found is not None
    sizes = [len(found.snapshot(version).of_kind("source")) for version in (12, 10, 12, 10)]
    assert sizes[:2] == sizes[2:]
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize("damage", ["digit", "cut", "not text", "not there"])
def test_a_damaged_hint_costs_requests_and_no_more(damage: str, server: RangeServer) -> None:
    hint = server.folder / "pub.refindex/_delta_log/_last_checkpoint"
    said = json.loads(hint.read_text())
    entry = said["refindex.entry"]
    said["refindex.entry"] = {
        "digit": entry.replace('"numRecords', '"numRecorbs', 1).replace("kind=source", "kind=sauce"),
        "cut": entry[: len(entry) // 2],
        "not text": 5,
        "not there": None,
    }[damage]
    hint.write_text(json.dumps(said))
    server.forget()
    with closing(storage.open_reader(f"{server.url}/pub.refindex")) as reader:
        assert reader.version == 0
        assert len(reader.sources) == 13
        assert len(reader.find("big", [5, 6])) == 2
    assert any(path.endswith(f"{0:020d}.json") for path, _ in server.requests)


def test_a_newer_format_in_the_hint(server: RangeServer) -> None:
    hint = server.folder / "pub.refindex/_delta_log/_last_checkpoint"
    said = json.loads(hint.read_text())
    data = said["refindex.entry"].replace('"refindex.format":"1"', '"refindex.format":"2"')
    sums = checksum(data.encode())
    assert sums is not None
    said["refindex.entry"] = data.replace(*sums, 1)
    hint.write_text(json.dumps(said))
    with pytest.raises(refindex.ManifestError, match="format 2"):
        storage.open_reader(f"{server.url}/pub.refindex")


@pytest.mark.parametrize("what", ["longer", "cut", "replaced"])
def test_damaged_files_are_noticed_over_http(what: str, server: RangeServer) -> None:
    for kind in ("node", "chunk"):
        file = max((server.folder / f"pub.refindex/kind={kind}").iterdir(), key=lambda p: p.stat().st_size)
        data = file.read_bytes()
        if what == "longer" and kind == "chunk":
            continue  # what the log names is all there
        changed = {"longer": data + b"x", "cut": data[:-9], "replaced": data[:-60] + bytes(40) + data[-20:]}[what]
        file.write_bytes(changed)
        with pytest.raises(refindex.ManifestError, match=file.name):
            look(f"{server.url}/pub.refindex")
        file.write_bytes(data)
        look(f"{server.url}/pub.refindex")


def look(url: str) -> None:
    with closing(storage.open_reader(url)) as reader:
        str(reader.nodes)
        reader.find("big", [5])


def test_other_engines_read_it(large: Path) -> None:
    """delta-rs, with the hint that has more in it than Delta knows, and after a second version."""
    out = large / "twice.refindex"
    refindex.publish(large / "work.refindex", out, version=0, allow_local=True, check=False)
    refindex.publish(large / "work.refindex", out, allow_local=True, check=False, overwrite=True)
    for version, sources in ((1, 13), (0, 1)):
        table = DeltaTable(out, version=version)
        assert table.version() == version
        rows = table.to_pyarrow_table(columns=["kind", "path", "chunk"])
        kinds = rows.column("kind").to_pylist()
        with closing(storage.open_reader(urls.absolute(out), version=version)) as reader:
            manifest = storage.load(reader)
        assert kinds.count("source") == len(manifest.sources) == sources
        assert kinds.count("chunk") == manifest.n_references
        assert kinds.count("node") == len(manifest.nodes)
    # Where the first entries are gone, the checkpoint is all that there is.
    storage.vacuum(urls.absolute(out), keep_versions=1, grace=storage.GRACE * 0)
    assert not (out / f"_delta_log/{0:020d}.json").exists()
    assert DeltaTable(out).version() == 1
