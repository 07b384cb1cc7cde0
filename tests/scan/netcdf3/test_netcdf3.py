"""NetCDF classic files of all three formats, as netCDF4-python writes them, beside what it reads from them."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path
from typing import Any

import fsspec
import netCDF4
import numpy as np
import pytest
import xarray as xr
from classic import FORMATS, TYPES, compare
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import netcdf4

import refindex
from refindex import Status
from refindex.access.files import LocalFile, SourcePool
from refindex.model.manifest import ReportEntry
from refindex.scan.netcdf3 import inline, variable


def write_ocean(path: Path, format_: str, *, days: int = 6) -> Path:
    """Interleaved records, packing, characters, unsigned bytes, masked values, scalars, attributes of every type."""
    rng = np.random.default_rng(0)
    with netCDF4.Dataset(path, "w", format=format_) as data:
        data.title = "made-up ocean, größer"
        data.version = np.int16(3)
        data.range = np.array([0.5, 2.5], "f4")
        data.empty = ""
        data.createDimension("time", None)
        data.createDimension("lat", 10)
        data.createDimension("lon", 20)
        data.createDimension("name", 5)
        time = data.createVariable("time", "f8", ("time",))
        time.units = "days since 2000-01-01"
        lat = data.createVariable("lat", "f4", ("lat",))
        lat[:] = np.linspace(-90, 90, 10)
        sst = data.createVariable("sst", "i2", ("time", "lat", "lon"), fill_value=-999)
        sst.scale_factor = np.float32(0.01)
        sst.add_offset = np.float32(273.15)
        sst.valid_range = np.array([-900, 900], "i2")
        salt = data.createVariable("salt", "f4", ("time", "lat", "lon"), fill_value=np.nan)
        quality = data.createVariable("quality", "i1", ("time", "lon"), fill_value=-1)
        quality.setncattr("_Unsigned", "true")
        station = data.createVariable("station", "S1", ("lat", "name"))
        station[:] = np.array([list(f"st{i:03}") for i in range(10)], "S1")
        crs = data.createVariable("crs", "i4", ())
        crs.semi_major_axis = 6378137.0
        crs[...] = 7
        field = data.createVariable("field", "f8", ("lat", "lon"))
        field.missing_value = -1e30
        field[:] = rng.random((10, 20))
        if days:
            time[:] = np.arange(days)
            sst[:] = np.ma.masked_less(rng.normal(273, 2, (days, 10, 20)), 270)
            salt[:] = np.where(rng.random((days, 10, 20)) > 0.5, rng.random((days, 10, 20)), np.nan)
            quality[:] = rng.integers(-128, 127, (days, 20))
    return path


@pytest.fixture(scope="module", params=FORMATS.values())
def ocean(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ocean(tmp_path_factory.mktemp("nc3") / "ocean.nc", request.param)


def entries(report: refindex.ScanReport) -> dict[str, ReportEntry]:
    return {e.path[1:]: e for e in report if e.status not in (Status.NOTE, Status.DIMENSION)}


def test_values_and_attributes(ocean: Path) -> None:
    report = compare(ocean)
    assert {name: e.status for name, e in entries(report).items()} == {
        **dict.fromkeys(("time", "lat", "station", "crs", "quality"), Status.INLINED),
        **dict.fromkeys(("sst", "salt", "field"), Status.NATIVE),
    }
    assert {e.path for e in report.select(Status.DIMENSION)} == {"/lon", "/name"}


@pytest.mark.parametrize("decoding", [{}, {"mask_and_scale": False, "decode_times": False, "concat_characters": False}])
@pytest.mark.parametrize("stored", ["", "a.refindex", "a.sqlite"])
def test_xarray_is_identical(ocean: Path, decoding: dict[str, bool], stored: str, tmp_path: Path) -> None:
    where = ocean
    if stored:
        where = tmp_path / stored
        refindex.scan(ocean).save(where)
    expected = netcdf4(ocean, **decoding)
    with xr.open_dataset(where, engine="refindex", **decoding) as found:
        xr.testing.assert_identical(found.load(), expected)
        for name, of in expected.variables.items():
            assert found[name].dtype == of.dtype, name
            for key, value in of.attrs.items():
                assert np.asarray(found[name].attrs[key]).dtype == np.asarray(value).dtype, (name, key)
        for key, value in expected.attrs.items():
            assert np.asarray(found.attrs[key]).dtype == np.asarray(value).dtype, key


def test_opening_a_manifest_reads_no_source(ocean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refindex.scan(ocean).save(tmp_path / "a.refindex")

    def no_read(*_: object) -> bytes:
        raise AssertionError("a source was read")

    monkeypatch.setattr(SourcePool, "reader", no_read)
    opened = xr.open_dataset(tmp_path / "a.refindex", engine="refindex")
    assert opened["time"].values[-1] == np.datetime64("2000-01-06")
    with pytest.raises(AssertionError, match="a source was read"):
        opened["sst"].load()


def test_interleaved_records_are_a_chunk_each(ocean: Path) -> None:
    chunks = refindex.scan(ocean).arrays["salt"].chunks
    manifest = refindex.scan(ocean)
    assert manifest.arrays["salt"].grid.chunk_shape() == (1, 10, 20)
    assert len(chunks) == 6
    # time 8, sst 400, salt 800, quality 20
    assert np.all(np.diff(chunks.offset) == 8 + 400 + 800 + 20)
    assert np.all(chunks.length == 800)


def test_chosen_variables_bring_their_coordinates(ocean: Path) -> None:
    manifest = refindex.scan(ocean, variables=["salt"])
    assert set(manifest.arrays) == {"time", "lat", "salt"}
    assert set(refindex.scan(ocean, variables=["/crs", "nothing"]).arrays) == {"crs"}
    assert {e.path for e in manifest.report} == {"/time", "/lat", "/salt"}


@pytest.mark.parametrize("format_", FORMATS.values())
def test_no_records(tmp_path: Path, format_: str) -> None:
    path = write_ocean(tmp_path / "o.nc", format_, days=0)
    report = compare(path)
    assert entries(report)["sst"].status == Status.INLINED
    manifest = refindex.scan(path)
    assert manifest.arrays["sst"].shape == (0, 10, 20)
    assert len(manifest.arrays["sst"].chunks) == 0
    xr.testing.assert_identical(xr.open_dataset(path, engine="refindex").load(), netcdf4(path))


@pytest.mark.parametrize("version", FORMATS)
def test_fill_values(tmp_path: Path, version: int) -> None:
    """What an element has that was never written: the variable's own fill value, or its type's."""
    path = tmp_path / "f.nc"
    with netCDF4.Dataset(path, "w", format=FORMATS[version]) as file:
        file.createDimension("x", 3)
        for kind in TYPES[version]:
            file.createVariable(f"default_{kind}", kind, ("x",))
            if kind != "S1":
                file.createVariable(f"own_{kind}", kind, ("x",), fill_value=7)
    compare(path)
    with refindex.open(path) as archive:
        for name in archive.arrays:
            array = archive.group[name]
            assert np.all(array[...] == array.fill_value), name


@pytest.mark.parametrize("version", FORMATS)
def test_a_single_record_variable_is_cut_like_contiguous_data(
    tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records lie next to each other, whatever their length: nothing is padded."""
    split = variable.split_contiguous
    monkeypatch.setattr(variable, "split_contiguous", lambda *args: split(*args, 1000))
    for kind in TYPES[version]:
        path = tmp_path / f"{kind}.nc"
        with netCDF4.Dataset(path, "w", format=FORMATS[version]) as file:
            file.createDimension("t", None)
            file.createDimension("x", 3)
            file.createVariable("fixed", "i1", ("x",))[:] = [1, 2, 3]
            of = file.createVariable("v", kind, ("t", "x"))
            of.set_auto_chartostring(False)
            of[:] = np.arange(1, 3 * 1201 + 1).reshape(1201, 3).astype("u1").view("S1" if kind == "S1" else "u1")
        report = compare(path)
        # 1201 is a prime: the last chunk is always short
        assert entries(report)["v"].status == Status.ADAPTED
        assert "is short" in entries(report)["v"].reason
        manifest = refindex.scan(path)
        rows = manifest.arrays["v"].grid.chunk_shape()[0]
        assert rows == 1000 // (3 * np.dtype(kind).itemsize)
        assert len(manifest.arrays["v"].chunks) == -(-1201 // rows)


def test_large_records_are_cut_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = variable.split_contiguous
    monkeypatch.setattr(variable, "split_contiguous", lambda *args: split(*args, 1000))
    path = tmp_path / "l.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_64BIT_DATA") as file:
        file.createDimension("t", None)
        for name, length in (("a", 3), ("b", 7), ("c", 40), ("p", 503)):
            file.createDimension(name, length)
        for name, dims in (("deep", "tabc"), ("flat", "tp"), ("wide", "tcp"), ("fixed", "bcp"), ("byte", "t")):
            of = file.createVariable(name, "i2" if name != "byte" else "i1", tuple(dims))
            shape = tuple(5 if d == "t" else len(file.dimensions[d]) for d in dims)
            of[:] = np.arange(np.prod(shape)).reshape(shape) % (30000 if name != "byte" else 100)
    report = compare(path)
    manifest = refindex.scan(path)
    shapes = {name: a.grid.chunk_shape() for name, a in manifest.arrays.items()}
    assert shapes["deep"] == (1, 1, 7, 40)
    assert shapes["flat"] == (1, 500)
    assert shapes["wide"] == (1, 1, 500)
    assert entries(report)["deep"].status == Status.NATIVE
    assert entries(report)["flat"].status == Status.ADAPTED
    assert len(manifest.arrays["wide"].chunks) == 5 * 40 * 2


@pytest.mark.parametrize("gap", [0, 100, 1 << 20])
@pytest.mark.parametrize("slab", [64, 5000, 1 << 23])
def test_coordinates_are_gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gap: int, slab: int) -> None:
    """Record by record, several records at a time, or all at once: the same bytes."""
    path = tmp_path / "c.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        file.createDimension("t", None)
        file.createDimension("x", 100)
        file.createVariable("t", "f8", ("t",))[:] = np.arange(1000) / 7
        file.createVariable("v", "f4", ("t", "x"))[:] = 1
        file.createVariable("w", "i2", ("t",))[:] = np.arange(1000)
    for name, value in (("_LOCAL_GAP", gap), ("COALESCE_GAP", gap), ("_SLAB", slab), ("_ROUND", 7000)):
        monkeypatch.setattr(inline, name, value)
    compare(path)
    assert refindex.scan(path).arrays["t"].chunks.inline_bytes(0) == (np.arange(1000) / 7).astype(">f8").tobytes()
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/netcdf3/c.nc", path.read_bytes())
    manifest = refindex.scan("memory://netcdf3/c.nc")
    assert manifest.arrays["t"].chunks.inline_bytes(0) == (np.arange(1000) / 7).astype(">f8").tobytes()
    with refindex.open("memory://netcdf3/c.nc") as archive:
        assert np.array_equal(archive.group["w"][...], np.arange(1000))


def test_few_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The header's window holds what follows it; close records come with what is between them."""
    path = tmp_path / "r.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        file.createDimension("t", None)
        for name in "abcde":
            file.createVariable(name, "i4", ())[...] = 1
        file.createVariable("t", "f8", ("t",))[:] = np.arange(10_000)
        file.createVariable("v", "f8", ("t",))[:] = np.arange(10_000)
    reads: list[tuple[int, int]] = []
    read = LocalFile.read
    monkeypatch.setattr(LocalFile, "read", lambda self, o, n: reads.append((o, n)) or read(self, o, n))
    refindex.scan(path)
    assert len(reads) == 3  # the signature, the header, the times
    monkeypatch.setattr(LocalFile, "read", lambda self, o, n: read(self, o, n - 1 if o else n))
    with pytest.raises(refindex.SourceError, match=r"r\.nc: expected \d+ bytes from offset \d+, found \d+"):
        refindex.scan(path)


def test_datasets_pickle(ocean: Path) -> None:
    opened = xr.open_dataset(ocean, engine="refindex")
    xr.testing.assert_identical(pickle.loads(pickle.dumps(opened)).load(), netcdf4(ocean))


def test_joins_the_other_formats_in_one_archive(ocean: Path, weather: Path, tmp_path: Path) -> None:
    manifest = refindex.scan([ocean, weather], workers=1, join=False)
    manifest.save(tmp_path / "a.refindex")
    tree = xr.open_datatree(tmp_path / "a.refindex", engine="refindex")
    xr.testing.assert_identical(tree["ocean"].to_dataset().load(), netcdf4(ocean))


@st.composite
def files(draw: st.DrawFn) -> dict[str, Any]:
    version = draw(st.sampled_from(list(FORMATS)))
    dims = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    one = st.tuples(
        st.sampled_from(TYPES[version]),
        st.booleans(),  # has the record dimension
        st.lists(st.integers(0, len(dims) - 1), max_size=3, unique=True),
    )
    return {
        "version": version,
        "dims": dims,
        "variables": draw(st.lists(one, max_size=6)),
        "records": draw(st.integers(0, 9)),
        "inline": draw(st.sampled_from([0, 16, 1024])),
        "target": draw(st.sampled_from([1, 7, 64, 1 << 24])),
        "text": draw(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)),
    }


@settings(max_examples=150)
@given(files())
def test_random_files(spec: dict[str, Any]) -> None:
    rng = np.random.default_rng(len(spec["variables"]) + 10 * spec["records"])
    split = variable.split_contiguous
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = Path(folder) / "r.nc"
        with netCDF4.Dataset(path, "w", format=FORMATS[spec["version"]]) as file:
            file.createDimension("record", None)
            for i, length in enumerate(spec["dims"]):
                file.createDimension(f"d{i}", length)
            file.text = spec["text"]
            for number, (kind, is_record, axes) in enumerate(spec["variables"]):
                names = (*(["record"] if is_record else []), *(f"d{i}" for i in axes))
                of = file.createVariable(f"v{number}", kind, names)
                of.set_auto_maskandscale(False)
                of.set_auto_chartostring(False)
                shape = (*([spec["records"]] if is_record else []), *(spec["dims"][i] for i in axes))
                if 0 not in shape and number % 4 != 3:  # every fourth is left to its fill value
                    values = rng.integers(1, 120, shape).astype("i1")
                    of[...] = values.view("S1") if kind == "S1" else values
        patch.setattr(variable, "INLINE_NBYTES", spec["inline"])
        patch.setattr(variable, "split_contiguous", lambda *args: split(*args, spec["target"]))
        compare(path)


@pytest.mark.parametrize("version", [1, 2])
def test_files_of_another_writer(tmp_path: Path, version: int) -> None:
    """SciPy reads and writes the format with code of its own. (Of a scalar beside records it writes a damaged file.)"""
    scipy_io = pytest.importorskip("scipy.io", reason="SciPy, the second library to compare with, is not installed")
    path = tmp_path / "s.nc"
    with scipy_io.netcdf_file(path, "w", version=version, mmap=False) as file:
        file.history = b"made by SciPy"
        file.createDimension("t", None)
        file.createDimension("x", 3)
        for name, kind, dims in (
            ("r", "i2", "tx"),
            ("f", "f8", "x"),
            ("b", "i1", "t"),
            ("c", "c", "tx"),
        ):
            of = file.createVariable(name, kind, tuple(dims))
            of.units = b"1"
            for i in range(5 if "t" in dims else 0):
                of[i] = [b"a", b"b", b"c"] if kind == "c" else i
            if "t" not in dims:
                of.data[...] = 7
    compare(path)
    with refindex.open(path) as archive, scipy_io.netcdf_file(path, "r", mmap=False) as file:
        for name, of in file.variables.items():
            assert np.array_equal(archive.group[name][...], of.data), name
