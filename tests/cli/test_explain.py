"""``refindex explain``: the cost of positions and of coordinates."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import refindex
from refindex.cli.app import main


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Sixty days in six files, each in chunks of five days."""
    for number in range(6):
        days = np.datetime64("2024-01-01", "ns") + np.arange(number * 10, number * 10 + 10).astype("m8[D]")
        values = np.random.default_rng(number).random((10, 8, 16))
        data = xr.Dataset(
            {"t2m": (("time", "lat", "lon"), values)}, {"time": days, "lat": np.linspace(70, -70, 8), "name": "x"}
        )
        data.to_netcdf(tmp_path / f"{number}.nc", encoding={"t2m": {"chunksizes": (5, 8, 16), "zlib": True}})
        data.close()
    refindex.scan(tmp_path).save(tmp_path / "a.refindex")
    return tmp_path / "a.refindex"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object, code: int = 0) -> None:
    monkeypatch.setattr(sys, "argv", ["refindex", "explain", *map(str, arguments)])
    try:
        main()
        ended: object = 0
    except SystemExit as stop:
        ended = stop.code or 0
    assert ended == code


def test_costs(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, archive, "t2m", "--isel", "time=12:31", "--isel", "lat=3", "--json")
    first, series, one_map = json.loads(capsys.readouterr().out)["selections"]
    # Days 12 to 30 are in the chunks 2 to 6, of files 1, 2 and 3.
    assert (first["chunks"], first["sources"], first["shape"]) == (5, 3, [19, 16])
    assert first["nbytes_wanted"] == 19 * 16 * 8
    assert (series["chunks"], series["sources"], series["shape"]) == (12, 6, [60])
    assert (one_map["chunks"], one_map["requests"], one_map["shape"]) == (1, 1, [8, 16])
    with refindex.open(archive) as opened:
        table = opened.find("t2m", [6])
        assert one_map["nbytes_read"] == int(table.length[0])
        assert str(opened.explain("t2m", time=slice(12, 31), lat=3)).splitlines()[0] == "/t2m"


def test_coordinates(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, archive, "t2m", "--sel", "time=2024-01-13..2024-01-31", "--sel", "lat=28", "--json")
    assert json.loads(capsys.readouterr().out)["selections"][0]["shape"] == [19, 16]
    run(monkeypatch, archive, "t2m", "--sel", "time=2024-02-01T03:00", "--sel", "lat=10..60", "--json")
    assert json.loads(capsys.readouterr().out)["selections"][0]["shape"] == [3, 16]
    run(monkeypatch, archive, "t2m", "--sel", "time=..2024-01-03")
    assert "3 x 8 x 16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--isel", "time"], "takes DIM="),
        (["--isel", "time=x"], "in whole numbers"),
        (["--isel", "depth=1"], "no dimension depth"),
        (["--isel", "time=99"], "--isel"),
        (["--sel", "lon=3"], "no coordinate of that name"),
        (["--sel", "time=never"], "is no coordinate"),
    ],
)
def test_mistakes(
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    run(monkeypatch, archive, "t2m", *arguments, code=2)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_no_such_array(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, archive, "t3m", code=1)
    assert "no group or array /t3m" in capsys.readouterr().err
