"""Scans of remote files: as few requests as they can be, and the manifest of a local scan."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import fsspec
import h5py
import netCDF4
import numpy as np
import pytest
from serving import RangeServer

import refindex
from refindex import Manifest
from refindex.access import blocks as blocks_module
from refindex.access.blocks import RemoteBlocks
from refindex.access.gather import Ranges
from refindex.access.transport import RemoteStats
from refindex.scan.many import scan_many
from refindex.scan.registry import is_source, scan_source

KB, MB = 1000, 1_000_000


def write_chunks(path: Path, *, side: int, nbytes: int, libver: str | None = None) -> Path:
    """A dataset of side x side chunks, whose nodes lie between chunks of about ``nbytes``."""
    random = np.random.default_rng(0)
    lengths = random.integers(nbytes // 2, nbytes * 3 // 2, side * side)
    with h5py.File(path, "w", libver=libver) as file:
        dataset = file.create_dataset("v", shape=(side * 32, side * 32), dtype="f4", chunks=(32, 32), compression=1)
        for number, length in enumerate(lengths.tolist()):
            dataset.id.write_direct_chunk((number // side * 32, number % side * 32), bytes(length))
    return path


def write_daily(path: Path, *, step: int = 40, day: int = 0, variables: int = 10) -> Path:
    """As models write them: every variable of a day's 24 steps, and the index of each behind the data of the last."""
    random = np.random.default_rng(day)
    with netCDF4.Dataset(path, "w") as file:
        file.title = f"day {day}"
        for name, size in (("time", None), ("lat", 40), ("lon", step)):
            file.createDimension(name, size)
            axis = file.createVariable(name, "f8", (name,))
            axis.units = "days since 2000-01-01" if name == "time" else "degrees"
            axis[:] = np.arange(24 if size is None else size) / 24 + (day if size is None else 0)
        for number in range(variables):
            data = file.createVariable(f"v{number}", "f4", ("time", "lat", "lon"), zlib=True, chunksizes=(1, 40, step))
            data.units = "K"
            data[:] = random.random((24, 40, step), dtype="f4")
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("www")
    write_chunks(folder / "tree.h5", side=256, nbytes=1250)
    write_chunks(folder / "array.h5", side=256, nbytes=1100, libver="latest")
    write_daily(folder / "small.nc", step=20)
    write_daily(folder / "daily.nc", step=120)
    write_daily(folder / "large.nc", step=400)
    return folder


@pytest.fixture(scope="module")
def running(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as server:
        yield server


@pytest.fixture
def server(running: RangeServer) -> Iterator[RangeServer]:
    running.forget()
    yield running
    running.several, running.delay = True, 0


def same(found: Manifest, local: Manifest) -> None:
    """Equal but for where the files are."""
    assert {p: n.document for p, n in found.nodes.items()} == {p: n.document for p, n in local.nodes.items()}
    assert found.arrays.keys() == local.arrays.keys()
    for path, array in local.arrays.items():
        assert found.arrays[path].encodings == array.encodings
        assert found.arrays[path].chunks.same_references(array.chunks), path
    assert [(s.url.rpartition("/")[2], s.size) for s in found.sources] == [
        (s.url.rpartition("/")[2], s.size) for s in local.sources
    ]
    mine, theirs = ([(e.path, e.status, e.reason) for e in m.report.entries] for m in (found, local))
    assert mine == theirs


def scanned(server: RangeServer, name: str) -> RemoteStats:
    """Scan over HTTP and locally; what it took, which is what the server counted."""
    stats = RemoteStats()
    found = scan_source(f"{server.url}/{name}", stats=stats)
    assert stats.requests == len(server.requests)
    same(found, scan_source(f"file://{server.folder}/{name}"))
    assert found.sources[0].etag
    return stats


def test_a_tree_of_65536_chunks(server: RangeServer) -> None:
    """Its nodes lie 2.6 kB each between some 70 kB of data: several ranges go into one request."""
    size = (server.folder / "tree.h5").stat().st_size
    assert size > 70 * MB
    stats = scanned(server, "tree.h5")
    assert stats.requests <= 40
    assert stats.nbytes <= 12 * MB
    assert server.nbytes <= 12 * MB
    # The oracle is libhdf5.
    chunks: list[tuple[int, int]] = []
    with h5py.File(server.folder / "tree.h5") as file:
        file["v"].id.chunk_iter(lambda info: chunks.append((info.byte_offset, info.size)))
    table = scan_source(f"{server.url}/tree.h5").arrays["v"].chunks
    assert sorted(zip(table.offset.tolist(), table.length.tolist(), strict=True)) == sorted(chunks)


def test_a_tree_on_a_server_that_takes_one_range_a_request(server: RangeServer) -> None:
    server.several, server.delay = False, 0.005
    stats = scanned(server, "tree.h5")
    assert sum("," in (asked or "") for _, asked in server.requests) == 1  # found out once
    assert stats.nbytes <= 12 * MB
    assert 16 < server.most_at_once <= 64


def test_whether_a_server_takes_several_ranges_is_found_out_once(server: RangeServer) -> None:
    server.several = False
    data = (server.folder / "tree.h5").read_bytes()
    with contextlib.closing(RemoteBlocks.open(f"{server.url}/tree.h5", first=1000, whole=0)) as blocks:
        offsets = np.arange(0, 70 * MB, 100 * KB)
        (found,) = blocks.gather((Ranges(offsets=offsets, length=10),))
    assert found.tobytes() == b"".join(data[offset : offset + 10] for offset in offsets.tolist())
    assert sum("," in (asked or "") for _, asked in server.requests) == 1


def test_a_fixed_array_of_65536_chunks(server: RangeServer) -> None:
    stats = scanned(server, "array.h5")
    assert stats.requests <= 4
    assert stats.nbytes <= 4 * MB


@pytest.mark.parametrize(("name", "requests"), [("small.nc", 1), ("daily.nc", 2)])
def test_small_files_are_fetched_whole(server: RangeServer, name: str, requests: int) -> None:
    stats = scanned(server, name)
    assert stats.requests == requests
    assert stats.nbytes == (server.folder / name).stat().st_size


def test_the_indexes_of_all_variables_are_fetched_together(server: RangeServer) -> None:
    size = (server.folder / "large.nc").stat().st_size
    assert size > 12 * MB
    stats = scanned(server, "large.nc")
    assert stats.requests <= 8  # one after the other they are one each
    assert stats.nbytes < 2 * MB
    server.forget()
    server.several = False
    assert scanned(server, "large.nc").requests <= 16


@pytest.mark.parametrize("kind", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
def test_netcdf3(server: RangeServer, kind: str) -> None:
    path = server.folder / f"{kind}.nc"
    with netCDF4.Dataset(path, "w", format=kind) as file:
        file.createDimension("time", None)
        file.createDimension("x", 200_000)
        for name, dims in (("time", ("time",)), ("v", ("time", "x"))):
            file.createVariable(name, "f4", dims)
        file["time"][:] = np.arange(12)
        file["v"][:] = np.arange(12)[:, None]
    stats = scanned(server, path.name)
    assert stats.requests <= 3  # the times lie between the records
    assert stats.nbytes < 2 * MB


def test_what_a_file_is_takes_one_request(server: RangeServer) -> None:
    assert is_source(f"{server.url}/large.nc")
    (server.folder / "text.nc").write_text("hello" * 10_000)
    (server.folder / "empty.nc").write_text("")
    assert not is_source(f"{server.url}/text.nc")
    assert not is_source(f"{server.url}/empty.nc")
    assert len(server.requests) <= 9  # a text may have a signature behind a user block; an empty file, be a folder
    with pytest.raises(refindex.FormatError, match=r"text\.nc: not HDF5 or NetCDF"):
        scan_source(f"{server.url}/text.nc")
    with pytest.raises(refindex.FormatError, match="empty"):
        scan_source(f"{server.url}/empty.nc")


def test_a_user_block_and_a_writer_that_did_not_close(server: RangeServer) -> None:
    for name, block in (("block.h5", 512), ("far.h5", 1 << 21)):
        with h5py.File(server.folder / name, "w", userblock_size=block) as file:
            file.create_dataset("d", data=np.arange(1000), chunks=(1,))
    with h5py.File(server.folder / "swmr.h5", "w", libver="latest") as file:
        file.create_dataset("d", data=np.arange(3_000_000), chunks=(10_000,))
        file.swmr_mode = True
        file.flush()
        shutil.copy(server.folder / "swmr.h5", server.folder / "open.h5")
    for name in ("block.h5", "far.h5", "open.h5"):
        server.forget()
        assert scanned(server, name).requests <= 14


def test_linked_files_are_counted_and_read_with_ranges(server: RangeServer) -> None:
    with h5py.File(server.folder / "linking.h5", "w") as file:
        file["there"] = h5py.ExternalLink("large.nc", "/v3")
    stats = RemoteStats()
    found = scan_source(f"{server.url}/linking.h5", stats=stats)
    local = scan_source(f"file://{server.folder}/linking.h5")
    assert found.arrays["there"].chunks.same_references(local.arrays["there"].chunks)
    assert stats.files == 2
    assert stats.requests <= 10
    assert stats.nbytes < 3 * MB


def test_many_files_overlap(server: RangeServer, tmp_path: Path) -> None:
    for number in range(40):
        write_daily(server.folder / f"many-{number}.nc", step=10, day=number, variables=2)
    remote = [f"{server.url}/many-{number}.nc" for number in range(40)]
    server.delay = 0.02
    stats = RemoteStats()
    found = scan_many(remote, workers=1, stats=stats)
    assert stats.requests == len(server.requests) == stats.files == 40
    assert 8 < server.most_at_once <= 16
    counted = RemoteStats()
    apart = scan_many(remote, workers=2, stats=counted)
    assert counted == stats
    assert list(found.files) == list(apart.files) == remote
    for url in remote:
        same(found.files[url].manifest(), scan_source(f"file://{server.folder}/{url.rpartition('/')[2]}"))
        same(apart.files[url].manifest(), found.files[url].manifest())


def test_ways_to_a_file_other_than_http(folder: Path, tmp_path: Path) -> None:
    """Filesystems without an event loop, with one of their own, and archives in archives."""
    memory = fsspec.filesystem("memory")
    shutil.make_archive(str(tmp_path / "zipped"), "zip", folder, "large.nc")
    try:
        memory.pipe_file("/m/large.nc", (folder / "large.nc").read_bytes())
        for url in ("memory://m/large.nc", f"zip://large.nc::file://{tmp_path}/zipped.zip"):
            stats = RemoteStats()
            found = scan_source(url, stats=stats)
            local = scan_source(f"file://{folder}/large.nc")
            assert all(a.chunks.same_references(found.arrays[p].chunks) for p, a in local.arrays.items())
            assert 3 < stats.requests <= 20  # two of them ask for size and time
            assert stats.nbytes < 3 * MB
    finally:
        memory.rm("/m", recursive=True)


def test_reading_on_and_on_reads_ahead(server: RangeServer) -> None:
    """Twice as much with every fetch that goes on where the last one ended; elsewhere little."""
    size = (server.folder / "tree.h5").stat().st_size
    data = (server.folder / "tree.h5").read_bytes()
    with contextlib.closing(RemoteBlocks.open(f"{server.url}/tree.h5", first=1000, whole=0)) as blocks:
        for at in range(5 * MB, 15 * MB, 300):
            assert blocks.read(at, 300) == data[at : at + 300]
        assert blocks.stats.requests <= 14
        assert blocks.stats.nbytes < 14 * MB
        before = blocks.stats.nbytes
        for at in (20 * MB, 50 * MB, 30 * MB):
            assert blocks.read(at, 300) == data[at : at + 300]
        assert blocks.stats.nbytes - before <= 3 * 70 * KB
        assert blocks.read(size - 10, 300) == data[-10:]
        assert blocks.read(size, 300) == b""


def test_no_more_is_kept_than_so_much(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "KEPT", 3 * MB)
    data = (server.folder / "tree.h5").read_bytes()
    with contextlib.closing(RemoteBlocks.open(f"{server.url}/tree.h5", first=1000, whole=0)) as blocks:
        for at in range(0, 60 * MB, 500 * KB):
            assert blocks.read(at, 300) == data[at : at + 300]
            assert blocks.held <= 3 * MB
        for at in range(0, 60 * MB, 500 * KB):
            (found,) = blocks.gather((Ranges(offsets=np.array([at + 9 * MB, 7, at]), length=100),))
            assert [row.tobytes() for row in found] == [data[o : o + 100] for o in (at + 9 * MB, 7, at)]
            assert blocks.held <= 6 * MB


def test_what_lies_between_small_structures_is_kept(server: RangeServer) -> None:
    """Object headers of a group by our own reader; then libhdf5 reads all of each object."""
    path = server.folder / "attributes.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.zeros(9 * MB, "u1")
        for number in range(3000):
            file.create_group(f"g{number:04}").attrs["a"] = np.zeros(100)
    stats = RemoteStats()
    found = scan_source(f"{server.url}/{path.name}", stats=stats)
    assert len(found.groups) == 3001
    assert stats.requests <= 10
    with contextlib.closing(RemoteBlocks.open(f"{server.url}/tree.h5", first=1000, whole=0)) as blocks:
        blocks.gather((Ranges(offsets=np.arange(5 * MB, 6 * MB, 10_000), length=100),))
        before = blocks.stats.requests
        assert blocks.read(5 * MB, 900 * KB)
        assert blocks.stats.requests == before
