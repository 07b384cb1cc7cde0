"""Manifests that kerchunk and VirtualiZarr make, taken over: values as h5py has them, and references as ours."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from cases import cases

import refindex
from refindex.exchange import _opened

RIGHT = [
    "filter: deflate", "filter: shuffle + deflate", "filter: fletcher32", "filter: zstd", "filter: shuffle",
    "filter: shuffle, chunk bytes and all three", "filter: shuffle + blosc lz4", "filter: blosc zstd bitshuffle",
]  # fmt: skip
"""Cases that both tools serve rightly."""

NOT_OF_KERCHUNK = ("filter: fletcher32", "filter: shuffle, chunk bytes and all three")


@pytest.fixture
def collected() -> Iterator[None]:
    """No garbage collection: kerchunk's readers take locks that collections on other threads wait for."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def of_kerchunk(path: Path) -> refindex.Manifest:
    hdf = pytest.importorskip("kerchunk.hdf")
    return refindex.from_kerchunk(hdf.SingleHdf5ToZarr(str(path), error="raise", inline_threshold=0).translate())


def parsed(path: Path, parser: str = "HDFParser") -> Any:
    parsers = pytest.importorskip("virtualizarr.parsers")
    registry = pytest.importorskip("obspec_utils.registry").ObjectStoreRegistry
    local = pytest.importorskip("obstore.store").LocalStore
    return getattr(parsers, parser)()(f"file://{path}", registry=registry({"file://": local()}))


def of_virtualizarr(path: Path) -> refindex.Manifest:
    return refindex.from_virtualizarr(parsed(path))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("name", RIGHT)
@pytest.mark.parametrize("take", [of_kerchunk, of_virtualizarr])
def test_same_as_a_scan(take: Any, name: str, tmp_path: Path) -> None:
    if take is of_kerchunk and name in NOT_OF_KERCHUNK:
        pytest.skip("kerchunk does not know fletcher32")
    cases()[name](tmp_path / "case.h5")
    theirs, ours = take(tmp_path / "case.h5"), refindex.scan(tmp_path / "case.h5")
    with _opened(theirs, None, None) as archive, h5py.File(tmp_path / "case.h5") as file:
        np.testing.assert_array_equal(archive.group["d"][...], file["d"][...])
    one, other = theirs.arrays["d"], ours.arrays["d"]
    assert theirs.sources == ours.sources
    for column in ("chunk", "source", "offset", "length"):
        np.testing.assert_array_equal(getattr(one.chunks, column), getattr(other.chunks, column))
    if one.codecs == other.codecs:
        assert one.chunks.same_references(other.chunks)
        assert one.encodings == other.encodings
    else:  # levels and sizes that do not matter to who undoes them
        assert "zstd" in name or "blosc" in name


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("take", [of_kerchunk, of_virtualizarr])
def test_a_netcdf_file(take: Any, tmp_path: Path) -> None:
    """Packing, masks, times: what xarray decodes of the manifest is what it decodes of the file."""
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as data:
        data.createDimension("time", 6)
        data.createDimension("x", 500)
        time = data.createVariable("time", "f8", ("time",))
        time.units = "hours since 2001-02-03"
        time[:] = np.arange(6)
        packed = data.createVariable("packed", "i2", ("time", "x"), zlib=True, chunksizes=(2, 500), fill_value=-9)
        packed.scale_factor, packed.add_offset = 0.5, 10.0
        packed[:] = np.ma.masked_greater(np.arange(3000).reshape(6, 500) / 2.0, 1400)
        data.createVariable("f", "f4", ("x",), fill_value=np.nan)[:] = np.arange(500)
    manifest = take(tmp_path / "a.nc")
    with _opened(manifest, None, None) as archive:
        got = archive.to_xarray().load()
    with xr.open_dataset(tmp_path / "a.nc", engine="netcdf4") as opened:
        xr.testing.assert_equal(got, opened.load())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("take", [of_kerchunk, of_virtualizarr])
def test_chunks_that_do_not_exist(take: Any, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("d", (3000,), "i4", chunks=(500,), fillvalue=-3)[1000:1500] = np.arange(500)
    manifest = take(tmp_path / "a.h5")
    assert manifest.arrays["d"].chunks.chunk.tolist() == [2]
    with _opened(manifest, None, None) as archive, h5py.File(tmp_path / "a.h5") as file:
        np.testing.assert_array_equal(archive.group["d"][...], file["d"][...])


@pytest.mark.filterwarnings("ignore")
def test_what_virtualizarr_has_not_found(tmp_path: Path) -> None:
    """Compact data reads as fill values there; here it is not served."""
    cases()["layout: compact"](tmp_path / "case.h5")
    manifest = of_virtualizarr(tmp_path / "case.h5")
    assert not manifest.arrays
    assert [entry.path for entry in manifest.report.problems] == ["/d"]


@pytest.mark.filterwarnings("ignore")
def test_virtual_datasets(weather: Path) -> None:
    """Loaded variables, coordinates and times among virtual ones, and trees."""
    store = parsed(weather)
    with xr.open_dataset(weather, engine="netcdf4", drop_variables=["station", "code"]) as opened:
        expected = opened.load()
    vds = store.to_virtual_dataset(loadable_variables=["time", "lat"]).drop_vars(["station", "code"], errors="ignore")
    with _opened(refindex.from_virtualizarr(vds), None, None) as archive:
        got = archive.to_xarray().load()
    xr.testing.assert_allclose(got, expected)
    assert refindex.from_virtualizarr(vds).arrays["time"].chunks.is_inline


@pytest.mark.filterwarnings("ignore")
def test_groups(weather: Path) -> None:
    manifest = of_virtualizarr(weather)
    own = refindex.scan(weather)
    with _opened(manifest, None, None) as archive, h5py.File(weather) as file:
        for path in ("derived/mean", "derived/deeper/count", "rain"):
            if path in archive.arrays:
                np.testing.assert_array_equal(archive.group[path][...], file[path][...])
    assert "rain" in manifest.arrays
    assert set(manifest.arrays) <= set(own.arrays)


@pytest.mark.filterwarnings("ignore")
def test_netcdf3(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w", format="NETCDF3_CLASSIC") as data:
        data.createDimension("t", None)
        data.createDimension("x", 400)
        data.createVariable("v", "f4", ("t", "x"))[:] = np.arange(1200).reshape(3, 400)
    manifest = refindex.from_virtualizarr(parsed(tmp_path / "a.nc", "NetCDF3Parser"))
    with _opened(manifest, None, None) as archive:
        np.testing.assert_array_equal(archive.group["v"][...], np.arange(1200).reshape(3, 400))


@pytest.mark.filterwarnings("ignore")
def test_tiff(tmp_path: Path) -> None:
    tifffile, tiff = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    values = np.arange(64 * 64, dtype="u2").reshape(64, 64)
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(16, 16))
    registry = pytest.importorskip("obspec_utils.registry").ObjectStoreRegistry
    local = pytest.importorskip("obstore.store").LocalStore
    store = tiff.VirtualTIFF(ifd=0)(f"file://{tmp_path}/a.tif", registry=registry({"file://": local()}))
    with _opened(refindex.from_virtualizarr(store), None, None) as archive:
        (path,) = archive.arrays
        np.testing.assert_array_equal(np.squeeze(archive.group[path][...]), values)


@pytest.mark.filterwarnings("ignore")
def test_fits(tmp_path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    values = np.arange(2000, dtype=">i4").reshape(40, 50)
    fits.PrimaryHDU(values).writeto(tmp_path / "a.fits")
    manifest = refindex.from_virtualizarr(parsed(tmp_path / "a.fits", "FITSParser"))
    with _opened(manifest, None, None) as archive:
        (path,) = archive.arrays
        np.testing.assert_array_equal(archive.group[path][...], values)


def test_other_objects() -> None:
    pytest.importorskip("virtualizarr")
    with pytest.raises(refindex.FormatError, match="int is no ManifestStore"):
        refindex.from_virtualizarr(5)
    with pytest.raises(refindex.FormatError, match="int: neither"):
        refindex.import_references(5)
