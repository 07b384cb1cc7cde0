"""``make demo`` works, twice, and what it writes is right by netCDF4's own reading."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
from matplotlib.image import imread

import refindex

DEMO = Path(__file__).parents[2] / "notebooks" / "demo.py"
SECONDS = 60
"""Alone it takes about 3; other tests may be running beside it."""


def run_demo(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", os.fspath(DEMO)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


def test_demo_runs_twice_and_serves_what_netcdf4_reads(tmp_path: Path) -> None:
    for _ in range(2):
        done = run_demo(tmp_path)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count("refindex and netCDF4 agree") == 4
    assert "references" in done.stdout

    with netCDF4.Dataset(tmp_path / "demo" / "t2m_2023.nc") as nc:
        nc.set_auto_maskandscale(False)
        packed = nc["surface/t2m"][:]
        names = nc["stations/name"][:].tolist()
    assert (packed == -32767).sum() > 0, "the demo has missing cells"
    for name in ("archive.refindex", "archive.sqlite"):
        with refindex.open(tmp_path / "demo" / name) as archive:
            assert not archive.report.problems
            np.testing.assert_array_equal(archive.group["surface/t2m"][:], packed)
            assert archive.group["stations/name"][:].tolist() == names


def test_demo_draws_a_picture(tmp_path: Path) -> None:
    assert run_demo(tmp_path).returncode == 0
    picture = tmp_path / "demo" / "demo.png"
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    pixels = imread(picture)
    height, width, _ = pixels.shape
    assert width > 1000
    assert height > 400
    assert len(np.unique((pixels[..., :3] * 255).astype(np.uint8).reshape(-1, 3), axis=0)) > 200


def test_demo_stops_where_values_disagree() -> None:
    compare = runpy.run_path(os.fspath(DEMO))["compare"]
    original = xr.Dataset({"t2m": ("x", np.array([1.0, 2.0], dtype="f4"))})
    compare(original.copy(deep=True), original, "the same")
    for served in (original + 1, original.astype("f8")):
        with pytest.raises(SystemExit) as stop:
            compare(served, original, "another")
        assert stop.value.code not in (None, 0)
