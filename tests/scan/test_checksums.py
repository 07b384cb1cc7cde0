"""Checksums of chunks: those of the bytes in the files, and a byte that changes is noticed however it is read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "gauntlet"))

from cases import cases
from oracle import compare_file
from serving import RangeServer
from typer.testing import CliRunner
from weather import write_weather

import refindex
from refindex.access import urls
from refindex.cli.app import app
from refindex.model.chunks import INLINE, UNCHECKED

CASES = cases()
SUFFIXES = (".refindex", ".sqlite")


def _table() -> list[int]:
    """The table of RFC 3720's polynomial, reflected: an implementation that has nothing in common with ours."""
    found = []
    for value in range(256):
        rest = value
        for _ in range(8):
            rest = (rest >> 1) ^ (0x82F63B78 if rest & 1 else 0)
        found.append(rest)
    return found


_TABLE = _table()


def crc32c(data: bytes) -> int:
    rest = 0xFFFFFFFF
    for byte in data:
        rest = _TABLE[(rest ^ byte) & 0xFF] ^ (rest >> 8)
    return rest ^ 0xFFFFFFFF


def test_the_oracle_is_right() -> None:
    """RFC 3720, B.4: 32 bytes of zeros, of ones, and 0 to 31."""
    assert [crc32c(data) for data in (bytes(32), b"\xff" * 32, bytes(range(32)))] == [
        0x8A9136AA,
        0x62A8AB43,
        0x46DD794E,
    ]


def check_table(manifest: refindex.Manifest, path: str, most: int = 1 << 14) -> int:
    """Compare the checksums of an array's references with the bytes of their files; how many were compared."""
    table, compared = manifest.arrays[path].chunks, 0
    for row in range(len(table)):
        if table.source[row] == INLINE:
            assert table.checksum is None or table.checksum[row] == UNCHECKED
        elif table.length[row] <= most:
            assert table.checksum is not None
            data = urls.local_path(manifest.sources[table.source[row]].url).read_bytes()
            start = int(table.offset[row])
            assert table.checksum[row] == crc32c(data[start : start + int(table.length[row])])
            compared += 1
    return compared


@pytest.mark.parametrize("name", CASES)
def test_checksums_are_those_of_the_bytes(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CASES[name](tmp_path / "case.h5")
    manifest = refindex.scan(tmp_path / "case.h5", checksum=True)
    for path in manifest.arrays:
        check_table(manifest, path)
    # Nothing else of a scan changes, and all values are served as without them.
    plain = refindex.scan(tmp_path / "case.h5")
    assert {p: n.document for p, n in manifest.nodes.items()} == {p: n.document for p, n in plain.nodes.items()}
    right = compare_file(str(tmp_path / "case.h5")).right
    with refindex.open(tmp_path / "case.h5") as one:
        manifest.save(tmp_path / "a.sqlite")
        with refindex.open(tmp_path / "a.sqlite") as two, zarr.config.set({"array.rectilinear_chunks": True}):
            for path in right:
                values = [zarr.open_array(archive.store, path=path, mode="r")[...] for archive in (one, two)]
                listed = [
                    v.tobytes() if v.dtype.kind not in ("O", "T") else v.tolist() for v in map(np.asarray, values)
                ]
                assert listed[0] == listed[1]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with chunks that are compressed, plain, and contiguous, and archives of it, with checksums."""
    folder = tmp_path_factory.mktemp("checksums")
    values = np.arange(60_000, dtype="<i4").reshape(300, 200)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("packed", data=values, chunks=(50, 60), compression="gzip", shuffle=True)
        file.create_dataset("plain", data=values, chunks=(50, 60))
        file.create_dataset("contiguous", data=values)
        file.create_dataset("turned", data=values.astype(">f8"), chunks=(300, 10))
    manifest = refindex.scan(folder / "a.h5", checksum=True)
    for suffix in SUFFIXES:
        manifest.save(folder / f"a{suffix}")
    return folder


def whole_key(archive: refindex.Archive, path: str, chunk: int) -> Any:
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    node = archive.nodes[path]
    return sync(archive.store.get(f"{path}/{node.grid.key(chunk)}", default_buffer_prototype()))


def part_of_key(archive: refindex.Archive, path: str, chunk: int) -> Any:
    from zarr.abc.store import RangeByteRequest
    from zarr.core.buffer import default_buffer_prototype
    from zarr.core.sync import sync

    key = f"{path}/{archive.nodes[path].grid.key(chunk)}"
    return sync(archive.store.get(key, default_buffer_prototype(), RangeByteRequest(0, 8)))


def by_fsspec(archive: refindex.Archive, path: str, chunk: int) -> Any:
    import fsspec

    fs = fsspec.filesystem("refindex", fo=archive.url)
    return fs.cat_file(f"{path}/{archive.nodes[path].grid.key(chunk)}", start=0, end=4)


def first(archive: refindex.Archive, path: str, chunk: int) -> tuple[int, ...]:
    return tuple(int(n) for n in archive.nodes[path].grid.origin(chunk))


def everything(archive: refindex.Archive, path: str, chunk: int) -> Any:
    return np.asarray(archive[path][...])


def element(archive: refindex.Archive, path: str, chunk: int) -> Any:
    return np.asarray(archive[path][first(archive, path, chunk)])


def column(archive: refindex.Archive, path: str, chunk: int) -> Any:
    return np.asarray(archive[path][:, first(archive, path, chunk)[1]])


def steps(archive: refindex.Archive, path: str, chunk: int) -> Any:
    row, at = first(archive, path, chunk)
    return archive.group[path][row : row + 40 : 7, at : at + 3]


def points(archive: refindex.Archive, path: str, chunk: int) -> Any:
    row, at = first(archive, path, chunk)
    return archive.group[path].vindex[[row, row + 1], [at, at + 1]]


def by_xarray(archive: refindex.Archive, path: str, chunk: int) -> Any:
    return archive.to_xarray()[path][first(archive, path, chunk)].values


READS: tuple[Callable[..., Any], ...] = (
    everything, element, column, steps, points, by_xarray, whole_key, part_of_key, by_fsspec,
)  # fmt: skip


@st.composite
def flips(draw: st.DrawFn) -> tuple[str, str, float, float, int, Callable[..., Any]]:
    return (
        draw(st.sampled_from(SUFFIXES)),
        draw(st.sampled_from(["packed", "plain", "contiguous", "turned"])),
        draw(st.floats(0, 0.999)),
        draw(st.floats(0, 0.999)),
        draw(st.integers(0, 7)),
        draw(st.sampled_from(READS)),
    )


@given(flips())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_a_flipped_bit_is_noticed(box: Path, flip: tuple[str, str, float, float, int, Callable[..., Any]]) -> None:
    suffix, path, which, where, bit, read = flip
    with refindex.open(box / f"a{suffix}") as archive:
        table = archive.find(path)
        row = int(which * len(table))
        chunk = int(table.chunk[row])
        expected = read(archive, path, chunk)
        at = int(table.offset[row]) + int(where * int(table.length[row]))
        with flipped(box / "a.h5", at, bit), refindex.open(box / f"a{suffix}") as other:
            with pytest.raises(refindex.DecodeError, match=rf"/{path}/.*a\.h5: the checksum \(CRC-32C\)"):
                read(other, path, chunk)
            for sound in [number for number in table.chunk.tolist() if number != chunk][:1]:
                origin = first(other, path, sound)
                with h5py.File(box / "a.h5") as file:
                    assert np.asarray(other[path][origin]) == file[path][origin]
    # The same file, mended.
    with refindex.open(box / f"a{suffix}") as archive:
        again = read(archive, path, chunk)
        assert again is not None
        if isinstance(expected, np.ndarray):
            assert np.array_equal(again, expected)


class flipped:
    """A file with one bit changed, and the time of its change as before."""

    def __init__(self, path: Path, at: int, bit: int) -> None:
        self.path, self.at, self.bit = path, at, bit

    def _turn(self) -> None:
        status = self.path.stat()
        with self.path.open("r+b") as file:
            file.seek(self.at)
            byte = file.read(1)[0]
            file.seek(self.at)
            file.write(bytes([byte ^ (1 << self.bit)]))
        os.utime(self.path, ns=(status.st_atime_ns, status.st_mtime_ns))

    def __enter__(self) -> None:
        self._turn()

    def __exit__(self, *error: object) -> None:
        self._turn()


@pytest.fixture
def days(tmp_path: Path) -> Iterator[list[Path]]:
    """Files of three days each."""
    import netCDF4

    paths = []
    for number in range(4):
        path = tmp_path / f"day{number}.nc"
        write_weather(path, days=2, seed=number)
        with netCDF4.Dataset(path, "a") as data:
            data["time"][:] = np.arange(2) + 2 * number
            for name in ("lat", "lon"):
                if name in data.variables:
                    data[name][:] = np.linspace(0, 1, len(data.dimensions[name]))
            data["station"][:] = np.array([f"{n}" for n in range(10)], dtype=object)
            data["derived"]["mean"][:] = 0
        paths.append(path)
    return iter([paths])


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_joined_and_appended_files_keep_them(days: Iterator[list[Path]], tmp_path: Path, suffix: str) -> None:
    (paths,) = days
    archive = tmp_path / f"a{suffix}"
    refindex.scan(paths[:2], checksum=True, concat_dim="time", workers=2).save(archive)
    refindex.append(archive, paths[2:3], checksum=True)
    with refindex.open(archive) as opened:
        manifest = opened.load()
    assert sum(check_table(manifest, path) for path in manifest.arrays) >= 6
    refindex.append(archive, paths[3:])  # without: its chunks alone have none
    with refindex.open(archive) as opened:
        table, sources = opened.find("rain"), opened.sources
        assert table.checksum is not None
        of_last = np.array([sources[n].url.endswith("day3.nc") for n in table.source.tolist()])
        assert ((table.checksum == UNCHECKED) == of_last).all()
        assert of_last.any()
        values = np.asarray(opened["rain"][...])
    for number, path in enumerate(paths):
        with h5py.File(path) as file:
            assert np.array_equal(values[2 * number : 2 * number + 2], file["rain"][...])


def test_an_interrupted_scan_goes_on_with_them(days: Iterator[list[Path]], tmp_path: Path) -> None:
    (paths,) = days
    refindex.scan(paths[:3], checksum=True, resume=tmp_path / "kept", join=False)
    found = refindex.scan(paths, checksum=True, resume=tmp_path / "kept", join=False)
    assert sum(check_table(found, path) for path in found.arrays) >= 8
    with pytest.raises(refindex.FormatError, match="all variables with checksums, and this is one of all variables"):
        refindex.scan(paths, resume=tmp_path / "kept", join=False)


def test_remote_files(tmp_path: Path) -> None:
    write_weather(tmp_path / "w.nc")
    with RangeServer(tmp_path) as server:
        manifest = refindex.scan(f"{server.url}/w.nc", checksum=True)
        local = refindex.scan(tmp_path / "w.nc", checksum=True)
        for path, array in local.arrays.items():
            assert manifest.arrays[path].chunks.same_references(array.chunks)
        table = local.arrays["t2m"].chunks
        manifest.save(tmp_path / "a.refindex")
        at = int(table.offset[1]) + 3
        with flipped(tmp_path / "w.nc", at, 0), refindex.open(tmp_path / "a.refindex") as archive:
            with pytest.raises(refindex.DecodeError, match=r"/t2m/c/1/0/0: .* the checksum"):
                np.asarray(archive["t2m"][2])
            np.asarray(archive["t2m"][0])


def test_a_chunk_beyond_the_end_has_none(tmp_path: Path) -> None:
    """A file that was cut is scanned as far as it goes, with checksums or without."""
    with h5py.File(tmp_path / "a.h5", "w", libver="latest") as file:
        file.create_dataset("x", data=np.arange(4000.0).reshape(40, 100), chunks=(10, 100))
    whole = refindex.scan(tmp_path / "a.h5", checksum=True)
    table = whole.arrays["x"].chunks
    from dataclasses import replace

    from refindex.scan.checksums import with_checksums

    moved = replace(table, offset=table.offset + np.array([0, 0, 0, 1 << 40]))
    array = replace(whole.arrays["x"], chunks=replace(moved, checksum=None))
    found = with_checksums(replace(whole, arrays={"x": array})).arrays["x"].chunks.checksum
    assert found is not None
    assert table.checksum is not None
    assert found.tolist() == [*table.checksum[:3].tolist(), UNCHECKED]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_verify_finds_a_flipped_bit(tmp_path: Path, suffix: str) -> None:
    write_weather(tmp_path / "w.nc")
    archive = str(tmp_path / f"a{suffix}")
    runner = CliRunner()
    assert runner.invoke(app, ["scan", str(tmp_path / "w.nc"), "--checksum", "-o", archive]).exit_code == 0
    assert refindex.verify(archive, sample="all").ok
    with refindex.open(archive) as opened:
        table = opened.find("derived/mean")
    with flipped(tmp_path / "w.nc", int(table.offset[0]) + 100, 3):
        found = refindex.verify(archive, sample="all")
        result = runner.invoke(app, ["verify", archive, "--all"])
    assert not found.ok
    assert [(p.path, p.chunk) for p in found.problems] == [("derived/mean", 0)]
    assert "checksum" in str(found)
    assert result.exit_code == 4
    assert "derived/mean" in result.output
