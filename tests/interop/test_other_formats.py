"""TIFF, FITS and NetCDF-3 through VirtualiZarr's parsers: values as the formats' own libraries have them."""

from __future__ import annotations

import enum
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
from dmrpp_writing import write_dmrpp
from parsing import SQUARE, numbers, problems

import refindex
from refindex.exchange import _opened

pytest.importorskip("virtualizarr")
pytest.importorskip("obstore")

# TIFF

CODINGS: list[tuple[str | None, int | None]] = [
    (None, None), ("deflate", None), ("deflate", 2), ("lzw", None), ("lzw", 2), ("zstd", None), ("zstd", 2),
    ("packbits", None), ("lzma", None), ("deflate", 3), ("lzw", 3),
]  # fmt: skip


@pytest.mark.parametrize(("compression", "predictor"), CODINGS)
@pytest.mark.parametrize("order", "<>")
def test_tiff(order: str, compression: str | None, predictor: int | None, served: Any, tmp_path: Path) -> None:
    """Tiles and strips, all types, both byte orders. What comes out wrong upstream is left out."""
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    types = {2: ("u1", "i2", "u4"), 3: ("f2", "f4", "f8"), None: ("u1", "i1", "u2", "i4", "f4", "f8")}[predictor]
    for dtype in types:
        for layout in ({"tile": (16, 32)}, {"rowsperstrip": 10}):
            path = tmp_path / f"{dtype}{len(layout)}{'tile' in layout}.tif"
            options: dict[str, Any] = {"compression": compression, "predictor": predictor, "byteorder": order, **layout}
            tifffile.imwrite(path, numbers(dtype, 60, 70), photometric="minisblack", **options)
            if predictor == 2 and order == ">" and dtype != "u1":
                assert "horizontal predictor" in problems(path, "tiff")["/0"]
                continue
            archive = served(path, "tiff")
            # Where zarr's own codecs do, chunks can be joined to those of other files.
            if predictor is None and compression in (None, "deflate"):
                assert refindex.import_references(path).arrays["0"].encodings
            array = archive.group["0"]
            expected = tifffile.imread(path)
            assert array.dtype == expected.dtype.newbyteorder("=")
            np.testing.assert_array_equal(array[...], expected)
            np.testing.assert_array_equal(array[17:45, 31:33], expected[17:45, 31:33])


@pytest.mark.parametrize("predictor", [None, 2, 3])
def test_tiff_of_planes(predictor: int | None, served: Any, tmp_path: Path) -> None:
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    for order in "<>" if predictor != 2 else "<":
        values = numbers("f4" if predictor == 3 else "u2", 3, 60, 70)
        path = tmp_path / f"planes{ord(order)}.tif"
        options: dict[str, Any] = {"photometric": "rgb", "planarconfig": "separate", "byteorder": order}
        tifffile.imwrite(path, values, compression="deflate", predictor=predictor, tile=(16, 32), **options)
        np.testing.assert_array_equal(served(path, "tiff").group["0"][...], tifffile.imread(path))


class _Endian(enum.Enum):
    little = "little"
    big = "big"


@pytest.mark.parametrize("predictor", [None, 2])
@pytest.mark.parametrize("patched", [False, True])
def test_tiff_of_pixels(
    patched: bool, predictor: int | None, served: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bands of one pixel after the other: not with every zarr-python, but never wrong."""
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    if patched:  # as zarr-python had it when virtual-tiff was written
        monkeypatch.setattr("virtual_tiff.codecs.Endian", _Endian)
    for order in "<>":
        for dtype in ("u1", "u2"):
            path = tmp_path / f"{ord(order)}{dtype}.tif"
            options: dict[str, Any] = {"photometric": "rgb", "byteorder": order, "tile": (16, 32)}
            tifffile.imwrite(path, numbers(dtype, 60, 70, 3), compression="deflate", predictor=predictor, **options)
            try:
                if problems(path, "tiff"):
                    assert (predictor, order, dtype) == (2, ">", "u2")
                    continue
            except refindex.UnsupportedError:
                assert not patched
                with pytest.raises(refindex.UnsupportedError, match="parser for tiff does not take it: TypeError"):
                    refindex.import_references(path)
                continue
            expected = np.moveaxis(tifffile.imread(path), -1, 0)
            np.testing.assert_array_equal(served(path, "tiff").group["0"][...], expected)


def test_tiff_in_another_process(tmp_path: Path) -> None:
    """Codecs are found where nobody has imported the parser."""
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    values = numbers("u2", 64, 64)
    tifffile.imwrite(tmp_path / "a.tif", values, compression="lzw", predictor=2, tile=(16, 16))
    refindex.import_references(tmp_path / "a.tif").save(tmp_path / "a.refindex")
    code = "import refindex, sys; print(int(refindex.open(sys.argv[1]).group['0'][...].sum()))"
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "a.refindex")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == f"{values.sum()}\n", done.stderr


def test_tiff_of_several_images(served: Any, tmp_path: Path) -> None:
    """Pages are arrays beside each other; overviews, whose dimensions are others, have groups."""
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    values = numbers("u2", 3, 64, 64)
    tifffile.imwrite(tmp_path / "pages.tif", values, tile=(16, 16), photometric="minisblack")
    archive = served(tmp_path / "pages.tif", "auto")
    np.testing.assert_array_equal([archive.group[str(n)][...] for n in range(3)], values)
    with tifffile.TiffWriter(tmp_path / "overviews.tif") as writer:
        for step in (1, 2, 4):
            writer.write(values[0, ::step, ::step], tile=(16, 16), photometric="minisblack")
    archive = served(tmp_path / "overviews.tif", "auto")
    for n, step in enumerate((1, 2, 4)):
        np.testing.assert_array_equal(archive.group[f"{n}/{n}"][...], values[0, ::step, ::step])


def test_tiff_nodata(served: Any, tmp_path: Path) -> None:
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    values = numbers("i2", 32, 32)
    tag = (42113, "s", 0, str(values[3, 4]), True)
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(16, 16), photometric="minisblack", extratags=[tag])
    expected = np.where(values == values[3, 4], np.nan, values.astype("f4"))
    np.testing.assert_array_equal(served(tmp_path / "a.tif", "tiff").to_xarray()["0"].values, expected)


def test_tiff_that_is_refused(tmp_path: Path) -> None:
    """Reversed bits, which virtual-tiff does not see; and what it does not take, a panic among it."""
    tifffile, _ = pytest.importorskip("tifffile"), pytest.importorskip("virtual_tiff")
    values = numbers("u1", 64, 64)
    options: dict[str, Any] = {"photometric": "minisblack"}
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(16, 16), extratags=[(40000, "H", 1, 2, True)], **options)
    data = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(data.replace(struct.pack("<HH", 40000, 3), struct.pack("<HH", 266, 3)))
    assert not np.array_equal(tifffile.imread(tmp_path / "a.tif"), values)
    tifffile.imwrite(tmp_path / "b.tif", values > 100, **options)
    tifffile.imwrite(tmp_path / "c.tif", values, rowsperstrip=10, **options)
    tifffile.imwrite(tmp_path / "d.tif", values.astype("u8"), tile=(16, 16), **options)
    (tmp_path / "e.tif").write_bytes(data[:200])
    for name, reason in {"a": "FillOrder 2", "b": "panic", "c": "rows per", "d": "parser", "e": "parser"}.items():
        with pytest.raises(refindex.UnsupportedError, match=reason):
            refindex.import_references(tmp_path / f"{name}.tif", format="tiff")


# FITS


def test_fits(served: Any, tmp_path: Path) -> None:
    fits = pytest.importorskip("astropy.io.fits")
    types = ("u1", "i2", "i4", "i8", "f4", "f8")
    units = [fits.ImageHDU(numbers(dtype, 40, 50), name=dtype) for dtype in types]
    units[4].data[2, 3] = np.nan
    units += [fits.ImageHDU(numbers("i2", 2, 3, 4), name="cube"), fits.ImageHDU(numbers("i2", 70), name="i2")]
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(tmp_path / "a.fits")
    archive = served(tmp_path / "a.fits", "auto")
    assert sorted(archive.arrays) == sorted([*(t.upper() for t in types), "CUBE", "I2_8"])
    with fits.open(tmp_path / "a.fits") as file:
        for number, path in enumerate([*(t.upper() for t in types), "CUBE", "I2_8"], start=1):
            assert archive.group[path].dtype == file[number].data.dtype.newbyteorder("=")
            np.testing.assert_array_equal(archive.group[path][...], file[number].data)


def test_fits_that_is_scaled(served: Any, tmp_path: Path) -> None:
    """Unsigned integers are exact; others are computed in another order of operations than astropy's."""
    fits = pytest.importorskip("astropy.io.fits")
    units = []
    for dtype in ("u2", "u4", "i1"):
        units.append(fits.ImageHDU(numbers(dtype, 40, 50), name=dtype))
    for dtype in ("i2", "i4", "f4"):
        unit = fits.ImageHDU(numbers("i2", 40, 50).astype(dtype), name=f"scaled {dtype}")
        unit.header["BSCALE"], unit.header["BZERO"] = 0.3, 10.0
        units.append(unit)
    fits.HDUList([fits.PrimaryHDU(), *units]).writeto(tmp_path / "a.fits")
    archive = served(tmp_path / "a.fits", "fits")
    with fits.open(tmp_path / "a.fits") as file, fits.open(tmp_path / "a.fits", do_not_scale_image_data=True) as raw:
        for number, unit in enumerate(units, start=1):
            got = archive.group[unit.name][...]
            if number <= 3:
                np.testing.assert_array_equal(got, file[number].data)
            else:
                exact = raw[number].data.astype("f8") * 0.3 + 10
                np.testing.assert_allclose(got, exact, rtol=3e-7 if number == 6 else 1e-13)


@pytest.mark.parametrize("scale", [None, 0.101, 0.7, 3.3])
def test_fits_undefined_pixels(scale: float | None, served: Any, tmp_path: Path) -> None:
    """What astropy masks, xarray masks."""
    fits = pytest.importorskip("astropy.io.fits")
    values = numbers("i2", 40, 50)
    blanks = np.unique(values)[::100].tolist()
    for blank in blanks:
        unit = fits.PrimaryHDU(values)
        unit.header["BLANK"] = blank
        if scale is not None:
            unit.header["BSCALE"], unit.header["BZERO"] = scale, 10.0
        unit.writeto(tmp_path / f"{blank}.fits")
        got = served(tmp_path / f"{blank}.fits", "fits").to_xarray()["PRIMARY"].values
        expected = fits.getdata(tmp_path / f"{blank}.fits")
        assert np.isnan(expected).sum() == np.sum(values == blank)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(expected))


def test_fits_that_is_left_out(served: Any, tmp_path: Path) -> None:
    """A compressed image's bytes are no pixels."""
    fits = pytest.importorskip("astropy.io.fits")
    columns = [fits.Column(name="a", format="J", array=np.arange(5))]
    text = [fits.Column(name="a", format="I6", array=np.arange(5))]
    units = [
        fits.PrimaryHDU(numbers("i2", 4, 5)),
        fits.CompImageHDU(numbers("i2", 64, 64), name="packed"),
        fits.BinTableHDU.from_columns(columns, name="table"),
        fits.TableHDU.from_columns(text, name="text"),
        fits.ImageHDU(numbers("f4", 200, 100), name="last"),
    ]
    fits.HDUList(units).writeto(tmp_path / "a.fits")
    found = problems(tmp_path / "a.fits", "fits")
    assert {path: reason.split(",")[0] for path, reason in found.items() if path != "/TEXT"} == {
        "/PACKED": "a compressed FITS image",
        "/TABLE": "a FITS table in binary",
    }
    assert "/TEXT" in found
    archive = served(tmp_path / "a.fits", "fits")
    assert sorted(archive.arrays) == ["LAST", "PRIMARY"]
    np.testing.assert_array_equal(archive.group["LAST"][...], units[4].data)


# NetCDF-3 and HDF5, which refindex scans itself


@pytest.mark.parametrize("form", ["NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA"])
@pytest.mark.parametrize("records", [0, 1, 3])
@pytest.mark.parametrize("one", [False, True])
def test_netcdf3(form: str, records: int, one: bool, served: Any, tmp_path: Path) -> None:
    """One record variable lies without padding; several take turns. What a scan serves, from the same bytes."""
    types = ["i1", "i2", "i4", "f4", "f8", "S1", *(["u1", "u2", "u4", "i8", "u8"] if form.endswith("DATA") else [])]
    path = tmp_path / "a.nc"
    with netCDF4.Dataset(path, "w", format=form) as data:
        for name, size in {"t": None, "x": 501, "y": 3}.items():
            data.createDimension(name, size)
        for dtype in types:
            for dims in ((), ("x",), ("x", "y"), ("t", "x"), ("t",), ("t", "x", "y")):
                if one and "t" in dims and (dtype, dims) != ("i1", ("t", "x")):
                    continue
                fill = 3 if dtype != "S1" and len(dims) == 2 else None
                made = data.createVariable(f"{dtype}_{''.join(dims)}", dtype, dims, fill_value=fill)
                shape = tuple(records if dim == "t" else data.dimensions[dim].size for dim in dims)
                values = np.random.default_rng(len(dims)).integers(0, 50, shape)
                made[...] = np.full(shape, b"q") if dtype == "S1" else values.astype(dtype)
                made.units = "m"
    archive, own = served(path, "netcdf3"), refindex.scan(path)
    assert set(archive.arrays) == set(own.arrays)
    theirs = refindex.import_references(path, format="netcdf3")
    with netCDF4.Dataset(path) as data:
        data.set_auto_maskandscale(False)
        for name in data.variables:
            np.testing.assert_array_equal(archive.group[name][...], data[name][...])
            references = [m.arrays[name].chunks for m in (theirs, own)]
            if references[1].is_inline:  # too small for a reference of its own
                continue
            if len({len(table) for table in references}) == 1:
                for column in ("chunk", "offset", "length"):
                    np.testing.assert_array_equal(*(getattr(table, column) for table in references))
            else:  # records that lie one after the other are one chunk for a scan
                np.testing.assert_array_equal(references[0].offset[0], references[1].offset[0])
                assert references[0].length.sum() == references[1].length.sum()
    with _opened(own, None, None, None) as scanned:
        xr.testing.assert_identical(archive.to_xarray().load(), scanned.to_xarray().load())


def test_hdf(weather: Path, served: Any) -> None:
    archive = served(weather, "hdf")
    with h5py.File(weather) as file:
        np.testing.assert_array_equal(archive.group["rain"][...], file["rain"][...])


def test_hdf_with_external_links(tmp_path: Path) -> None:
    """What a link names in another file is not taken for what has the same name here."""
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["d"] = np.zeros((20, 20))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["d"] = SQUARE
        file["below/link"] = h5py.ExternalLink("b.h5", "d")
    with pytest.raises(refindex.UnsupportedError, match="such as /below/link; refindex scan"):
        refindex.import_references(tmp_path / "a.h5", format="hdf")


# Where files are, and what is not there


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    moto_server = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}", "key": "test", "secret": "test"}
    fs = fsspec.filesystem("s3", **options)
    if not fs.exists("formats"):  # moto's buckets outlive its servers
        fs.mkdir("formats")
    try:
        yield options
    finally:
        server.stop()
        type(fs).clear_instance_cache()


def test_s3(bucket: dict[str, Any], hdf5: Path) -> None:
    fs = fsspec.filesystem("s3", **bucket)
    for path in (hdf5, write_dmrpp(hdf5)):
        fs.put(str(path), f"formats/x/{path.name}")
    url = f"s3://formats/x/{hdf5.name}"
    for name, form in ((url, "hdf"), (f"{url}.dmrpp", "dmrpp")):
        manifest = refindex.import_references(name, format=form, storage_options=bucket)
        assert [source.url for source in manifest.sources] == [url]
        with _opened(manifest, None, bucket, None) as archive, h5py.File(hdf5) as file:
            np.testing.assert_array_equal(archive.group["f4 packed"][...], file["f4 packed"][...])


def test_http(hdf5: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    from serving import RangeServer

    hdf5 = hdf5.rename(tmp_path / "a b.h5")
    write_dmrpp(hdf5)
    with RangeServer(tmp_path) as server:
        url = f"{server.url}/a%20b.h5"
        for name, form in ((url, "hdf"), (f"{url}.dmrpp", "dmrpp")):
            manifest = refindex.import_references(name, format=form)
            assert [source.url for source in manifest.sources] == [url]
            with _opened(manifest, None, None, None) as archive, h5py.File(hdf5) as file:
                np.testing.assert_array_equal(archive.group["f4 packed"][...], file["f4 packed"][...])
        with pytest.raises(refindex.UnsupportedError, match="no URL with a query"):
            refindex.import_references(f"{url}?a=1", format="hdf")


@pytest.mark.parametrize(
    ("form", "module", "package"),
    [
        ("tiff", "virtual_tiff", "virtual-tiff"),
        ("grib", "gribberish.virtualizarr", "gribberish"),
        ("fits", "astropy.io.fits", "astropy"),
        ("netcdf3", "virtualizarr.parsers", r"'refindex\[exchange\]'"),
    ],
)
def test_without_the_package(form: str, module: str, package: str, hdf5: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(refindex.UnsupportedError, match=f"{module} is not installed; pip install {package}"):
        refindex.import_references(hdf5, format=form)


def test_what_cannot_be_imported(hdf5: Path, tmp_path: Path) -> None:
    with pytest.raises(refindex.FormatError, match="refindex scan reads it"):
        refindex.import_references(hdf5)
    with pytest.raises(ValueError, match="one of auto, kerchunk, icechunk, virtualizarr, tiff, grib, fits, dmrpp"):
        refindex.import_references(hdf5, format="png")  # type: ignore[arg-type]
    with pytest.raises(refindex.NotFoundError):
        refindex.import_references(tmp_path / "nothing.nc", format="netcdf3")
    with pytest.raises(refindex.UnsupportedError, match="parser for netcdf3 does not take it: ValueError"):
        refindex.import_references(hdf5, format="netcdf3")


def test_command_line(
    hdf5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from refindex.cli.app import main

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["refindex", "import", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            return int(stop.code or 0)
        return 0

    with h5py.File(hdf5, "a") as file:
        file["big"] = SQUARE.astype(">i4")
    path = write_dmrpp(hdf5)
    assert run(path, "--format", "dmrpp", "--out", tmp_path / "a.sqlite") == 0
    told = capsys.readouterr()
    assert told.out.startswith("1 source, 25 arrays, ")
    assert told.err.startswith("not served: /big: DMR++ with big-endian values")
    monkeypatch.setenv("COLUMNS", "200")
    assert run(path, "--format", "png", "--out", tmp_path / "b.sqlite") == 2
    assert "must be one of auto, kerchunk, icechunk, tiff, grib, fits, dmrpp, netcdf3, hdf" in capsys.readouterr().err
