"""What an archive does not know, it does not make up."""

from __future__ import annotations

import builtins
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import refindex
from refindex import FormatError, UnsupportedError
from refindex.model.packing import Number
from tests.join.archives import expected, open_manifest
from tests.join.files import Var, series, write


def test_overlapping_archives_are_not_cut(tmp_path: Path) -> None:
    """Of files that overlap only one is in the archive at each place: without it, nothing would be there."""
    paths = [write(tmp_path / "a.nc", series(0, 10)), write(tmp_path / "b.nc", series(5, 10))]
    refindex.scan(paths, overlap="first").save(tmp_path / "x.refindex")
    with pytest.raises(UnsupportedError, match=r"a\.nc: files of the archive overlap"):
        refindex.remove(tmp_path / "x.refindex", paths[0])
    refindex.append(tmp_path / "x.refindex", write(tmp_path / "c.nc", series(20, 2)))
    with pytest.raises(UnsupportedError, match="overlap"):  # also once more has come
        refindex.remove(tmp_path / "x.refindex", tmp_path / "c.nc")


def test_one_file_grows_along_a_dimension_without_coordinates(tmp_path: Path) -> None:
    for name, n in (("a", 3), ("b", 5)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["obs"] = np.arange(n * 400.0).reshape(n, 400)
    refindex.scan(tmp_path / "a.h5").save(tmp_path / "x.sqlite")
    with pytest.raises(refindex.JoinError, match="concat_dim='phony_dim_0'"):
        refindex.append(tmp_path / "x.sqlite", tmp_path / "b.h5")
    refindex.append(tmp_path / "x.sqlite", tmp_path / "b.h5", concat_dim="phony_dim_0")
    with refindex.open(tmp_path / "x.sqlite") as archive:
        whole = [np.arange(n * 400.0).reshape(n, 400) for n in (3, 5)]
        np.testing.assert_array_equal(archive.group["obs"][...], np.concatenate(whole))


def test_packed_limits_do_not_outlive_the_packing(tmp_path: Path) -> None:
    paths = []
    for number, scale in enumerate((0.5, 0.25)):
        values = np.arange(4 * 300).reshape(4, 300).astype("i2")
        attrs = {"scale_factor": scale, "valid_range": np.array([0, 100], "i2"), "valid_min": np.int16(0), "units": "K"}
        variables = {
            "time": Var(dims=("time",), values=np.arange(4.0) + 4 * number),
            "x": Var(dims=("time", "m"), values=values, attrs=attrs),
        }
        paths.append(write(tmp_path / f"{number}.nc", variables))
    manifest = refindex.scan(paths)
    assert manifest.arrays["x"].attributes == {"units": "K"}
    with open_manifest(manifest) as actual:
        np.testing.assert_array_equal(actual.x.values, expected(paths).x.values)


@pytest.mark.parametrize("value", [["<i1", 1000], ["<u1", 1.5], ["<u2", -1], ["<f4", "x"], ["S3", 1]])
def test_a_damaged_packing_is_refused(value: list[Any]) -> None:
    with pytest.raises(FormatError, match="packing"):
        Number.from_json(value)


def test_looking_whether_files_have_changed_opens_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [write(tmp_path / f"{n}.nc", series(n * 3, 3)) for n in range(4)]
    refindex.scan(paths[:3]).save(tmp_path / "x.refindex")
    opened: list[str] = []
    plain, low = builtins.open, os.open

    def watch(path: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(path))
        return plain(path, *arguments, **options)

    def watch_low(path: Any, *arguments: Any, **options: Any) -> Any:
        opened.append(str(path))
        return low(path, *arguments, **options)

    monkeypatch.setattr(builtins, "open", watch)
    monkeypatch.setattr(os, "open", watch_low)
    grown = refindex.append(tmp_path / "x.refindex", tmp_path / "*.nc", workers=1)
    monkeypatch.undo()
    assert len(grown.added) == 1
    assert len(grown.skipped) == 3
    assert {Path(name).name for name in opened if name.endswith(".nc")} == {"3.nc"}


def test_yearly_chunks_that_overhang_open_with_dask(tmp_path: Path) -> None:
    """The last chunk ends where the array does."""
    paths = []
    start = 0
    for year, days in ((2019, 365), (2020, 366)):
        values = np.random.default_rng(year).random((days, 40))
        variables = {
            "time": Var(dims=("time",), values=np.arange(start, start + days, dtype="f8")),
            "x": Var(dims=("time", "m"), values=values, options={"chunksizes": (61, 40), "zlib": True}),
        }
        paths.append(write(tmp_path / f"{year}.nc", variables))
        start += days
    refindex.scan(paths).save(tmp_path / "x.refindex")
    with xr.open_dataset(tmp_path / "x.refindex", engine="refindex", chunks={}) as actual:
        assert actual.x.chunks is not None
        assert sum(actual.x.chunks[0]) == start
        np.testing.assert_array_equal(actual.x.values, expected(paths).x.values)
