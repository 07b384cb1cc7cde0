"""Joined archives through every export: what others read is what was written into the files, or it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr
from foreign import OUTPUTS, foreign_group, gate, reference_filesystem, same_values

import refindex

WIDTH = 600
"""So wide that arrays are not kept in the manifest."""


def write(path: Path, start: int, values: np.ndarray, *, chunk: int, fill: Any = None, **attributes: Any) -> None:
    """One file with a time axis that begins at ``start``, and values of ``(time, x)`` as they are stored."""
    with netCDF4.Dataset(path, "w") as data:
        data.set_auto_maskandscale(False)
        data.createDimension("time", None)
        data.createDimension("x", values.shape[1])
        time = data.createVariable("time", "i4", ("time",))
        time.units = "days since 2000-01-01"
        time[:] = np.arange(start, start + len(values))
        made = data.createVariable(
            "v", values.dtype, ("time", "x"), zlib=True, chunksizes=(chunk, 400), fill_value=fill,
        )  # fmt: skip
        made.set_auto_maskandscale(False)
        made.setncatts(attributes)
        made[:] = values


def numbered(n: int, start: int, dtype: str) -> np.ndarray:
    return (np.arange(n * WIDTH).reshape(n, WIDTH) + start * WIDTH).astype(dtype)


def equal(folder: Path) -> np.ndarray:
    parts = [numbered(4, 4 * n, "f4") for n in range(3)]
    for n, part in enumerate(parts):
        write(folder / f"{n}.nc", 4 * n, part, chunk=2)
    return np.concatenate(parts)


def unequal(folder: Path) -> np.ndarray:
    parts, start = [], 0
    for n, days in enumerate((5, 3, 4)):
        parts.append(numbered(days, start, "i2"))
        write(folder / f"{n}.nc", start, parts[-1], chunk=2, fill=-1)
        start += days
    return np.concatenate(parts)


def other_types(folder: Path) -> np.ndarray:
    parts = [numbered(4, 0, "f4"), numbered(4, 4, "f8")]
    for n, part in enumerate(parts):
        write(folder / f"{n}.nc", 4 * n, part, chunk=2)
    return np.concatenate([part.astype("f8") for part in parts])


def other_packing(folder: Path) -> np.ndarray:
    parts = [numbered(4, 0, "i2"), numbered(4, 4, "i2")]
    for n, (part, scale) in enumerate(zip(parts, (0.5, 0.25), strict=True)):
        write(folder / f"{n}.nc", 4 * n, part, chunk=2, scale_factor=scale, add_offset=1.0)
    return np.concatenate([parts[0] * 0.5 + 1, parts[1] * 0.25 + 1])


def other_filters(folder: Path) -> np.ndarray:
    parts = [numbered(4, 0, "i4"), numbered(4, 4, "i4")]
    write(folder / "0.nc", 0, parts[0], chunk=2)
    with netCDF4.Dataset(folder / "1.nc", "w") as data:
        data.createDimension("time", None)
        data.createDimension("x", WIDTH)
        time = data.createVariable("time", "i4", ("time",))
        time.units = "days since 2000-01-01"
        time[:] = np.arange(4, 8)
        data.createVariable("v", "i4", ("time", "x"), chunksizes=(2, 400))[:] = parts[1]
    return np.concatenate(parts)


def padded(folder: Path) -> np.ndarray:
    """Equal lengths and chunks, but for a file that is stored in a chunk that reaches beyond it."""
    parts = [numbered(4, 4 * n, "f4") for n in range(3)]
    for n, part in enumerate(parts):
        write(folder / f"{n}.nc", 4 * n, part, chunk=8 if n == 1 else 4)
    return np.concatenate(parts)


ARCHIVES: list[tuple[Callable[[Path], np.ndarray], str]] = [
    (equal, ""),
    (unequal, "of unequal length|cropped or padded"),
    (padded, "cropped or padded"),
    (other_types, "another type|other filters"),
    (other_packing, "unpacked"),
    (other_filters, "other filters"),
]


@pytest.mark.parametrize(("to", "zarr_format"), OUTPUTS)
@pytest.mark.parametrize(("make", "reason"), ARCHIVES, ids=lambda v: v.__name__ if callable(v) else "")
def test_joined(make: Callable[[Path], np.ndarray], reason: str, to: str, zarr_format: int, tmp_path: Path) -> None:
    if to == "icechunk":
        pytest.importorskip("icechunk")
    folder = tmp_path / "files"
    folder.mkdir()
    expected = make(folder)
    manifest = refindex.scan(sorted(folder.iterdir()), concat_dim="time")
    dest = tmp_path / "out"
    if reason and to != "zarr":
        with pytest.raises(refindex.UnsupportedError, match=f"/v: .*({reason})"):
            refindex.export(manifest, dest, to=to, zarr_format=zarr_format)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["files"]
    refindex.export(manifest, dest, to=to, zarr_format=zarr_format, materialize=bool(reason))
    with gate():
        group = foreign_group(dest, to, zarr_format)
        values = group["v"][...]
        assert same_values(values, expected.astype(values.dtype)), values
        assert values.dtype.kind == expected.dtype.kind
        assert same_values(group["time"][...], np.arange(len(expected), dtype="i4"))
    assert sorted(p.name for p in tmp_path.iterdir())[-1] in ("out", "out.data")
    assert Path(f"{dest}.data").exists() == (bool(reason) and to.startswith("kerchunk"))


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_xarray_masks_alike(zarr_format: int, tmp_path: Path) -> None:
    """``_FillValue``, a fill value that is none, absent chunks and packing, as the netcdf4 engine decodes them."""
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as data:
        data.createDimension("x", 2000)
        for name, dtype, fill, scale in (
            ("plain", "f4", None, None),
            ("masked", "f4", 1e20, None),
            ("nan", "f8", np.nan, None),
            ("packed", "i2", -999, 0.5),
            ("zero", "i4", 0, None),
        ):
            made = data.createVariable(name, dtype, ("x",), fill_value=fill, chunksizes=(500,))
            if scale:
                made.scale_factor = scale
            if name == "plain":
                made[:] = np.arange(2000) % 7
            else:
                made[:1000] = np.arange(1000) % 7
                made[1] = np.ma.masked
    refindex.export(tmp_path / "a.nc", tmp_path / "out.json", zarr_format=zarr_format)
    with xr.open_dataset(tmp_path / "a.nc", engine="netcdf4") as opened:
        expected = opened.load()
    fs = reference_filesystem(tmp_path / "out.json")
    options = {"consolidated": False, "zarr_format": zarr_format}
    got = xr.open_dataset(fs.get_mapper(""), engine="zarr", backend_kwargs=options)
    for name in expected:
        np.testing.assert_array_equal(got[name].values, expected[name].values, err_msg=str(name))
        assert got[name].dims == expected[name].dims
    if zarr_format == 2:
        pytest.importorskip("kerchunk")
        with xr.open_dataset(str(tmp_path / "out.json"), engine="kerchunk") as again:
            xr.testing.assert_equal(again.load(), got.load())


def test_a_fill_value_that_is_no_mask(tmp_path: Path) -> None:
    """Zarr v2 has one value for both: refused, or chunks are written out."""
    import h5py

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("d", (3000,), "i4", chunks=(1000,), fillvalue=7)[:1000] = np.arange(1000)
    with pytest.raises(refindex.UnsupportedError, match="/d: 2 of its 3 chunks do not exist: it has no _FillValue"):
        refindex.export(tmp_path / "a.h5", tmp_path / "out", zarr_format=2)
    refindex.export(tmp_path / "a.h5", tmp_path / "out", zarr_format=2, materialize=True)
    store = reference_filesystem(tmp_path / "out").get_mapper("")
    got = xr.open_dataset(store, engine="zarr", backend_kwargs={"consolidated": False, "zarr_format": 2})
    assert got["d"].dtype == "i4"
    assert got["d"].values.tolist() == [*range(1000), *[7] * 2000]
    refindex.export(tmp_path / "a.h5", tmp_path / "out3")  # version 3 can say it
    assert len(refindex.import_references(tmp_path / "out3").arrays["d"].chunks) == 1
