"""``scan`` of several files, ``append``, ``remove``, ``log``, ``diff``, ``restore`` and ``vacuum``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from refindex.cli.app import main

type Run = Callable[..., Done]


@dataclass
class Done:
    """What a command printed."""

    stdout: str
    stderr: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process: ``test_cli`` does it in one of its own."""

    def command(*arguments: object, code: int = 0) -> Done:
        monkeypatch.setattr(sys, "argv", ["refindex", *map(str, arguments)])
        try:
            main()
            ended: object = 0
        except SystemExit as stop:
            ended = stop.code or 0
        done = Done(*capsys.readouterr())
        assert ended == code, done.stdout + done.stderr
        return done

    return command


def write(path: Path, start: int, *, units: str = "K", seed: int = 0) -> Path:
    values = np.random.default_rng((start, seed)).random((4, 300))
    xr.Dataset(
        {"x": (("time", "m"), values, {"units": units})},
        coords={"time": ("time", np.arange(start, start + 4), {"units": "days since 2000-01-01"})},
    ).to_netcdf(path)
    return path


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [write(tmp_path / f"{start:02d}.nc", start) for start in (0, 4, 8)]


@pytest.mark.parametrize("suffix", ["refindex", "sqlite"])
def test_life_of_an_archive(run: Run, files: list[Path], tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"a.{suffix}"
    assert f"wrote {out} (version 0)" in run("scan", *files[:2], "-o", out).stdout
    dry = run("append", out, files[2], "--dry-run").stdout
    assert "1 file added" in dry
    assert "nothing was written" in dry
    assert f"wrote {out} (version 1)" in run("append", out, files[2]).stdout
    again = run("append", out, *files).stdout
    assert again.strip() == "3 files skipped"
    removed = json.loads(run("remove", out, files[0], "--json").stdout)
    assert (removed["version"], removed["removed"]) == (2, [str(files[0])])
    log = run("log", out).stdout.splitlines()
    assert [line.split()[0] for line in log] == ["2", "1", "0"]
    assert [line.split()[3] for line in log] == ["remove", "append", "write"]
    assert [c["operation"] for c in json.loads(run("log", out, "--json").stdout)] == ["remove", "append", "write"]
    difference = run("diff", out, 0, 1).stdout
    assert f"+ source {files[2]}" in difference
    assert "~ /x (8, 300) -> (12, 300)" in difference
    assert json.loads(run("diff", out, 1, "--json").stdout)["sources_removed"] == [str(files[0])]
    assert f"wrote {out} (version 3, the same as version 1)" in run("restore", out, 1).stdout
    assert "float64 (time: 12, m: 300)" in run("ls", "-l", out).stdout
    assert "float64 (time: 8, m: 300)" in run("ls", "-l", out, "--version", 0).stdout
    assert "would remove" in run("vacuum", out, "--keep-versions", 1, "--dry-run").stdout
    assert len(json.loads(run("log", out, "--json").stdout)) == 4
    assert json.loads(run("vacuum", out, "--keep-versions", 1, "--json").stdout)
    assert [c["version"] for c in json.loads(run("log", out, "--json").stdout)] == [3]
    assert run("vacuum", out).stdout.strip() == "nothing to remove"


def test_replace(run: Run, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    run("scan", *files, "-o", out)
    write(files[1], 4, seed=1)
    failed = run("append", out, *files, code=1)
    assert failed.stdout == ""
    assert str(files[1]) in failed.stderr
    assert "--replace" in failed.stderr
    done = json.loads(run("append", out, *files, "--replace", "--json").stdout)
    assert (done["version"], done["replaced"], len(done["skipped"])) == (1, [str(files[1])], 2)


def test_a_dry_run_lists_everything_that_stands_in_the_way(run: Run, files: list[Path], tmp_path: Path) -> None:
    bad = [write(tmp_path / "b1.nc", 12, units="degC"), write(tmp_path / "b2.nc", 6, seed=2)]
    before = sorted(p.name for p in tmp_path.iterdir())
    for arguments in ((), ("--dry-run",)):
        failed = run("scan", *files, *bad, "-o", tmp_path / "a.refindex", *arguments, code=1)
        assert failed.stdout == ""
        for text in ("/x: units are 'K'", "b1.nc", "overlap in time", "b2.nc", "Nothing was written"):
            assert text in failed.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    out = tmp_path / "a.sqlite"
    run("scan", *files, "-o", out)
    for arguments in ((), ("--dry-run",)):
        failed = run("append", out, *bad, *arguments, code=1)
        for text in ("/x: units are", "b1.nc", "overlap in time", "b2.nc"):
            assert text in failed.stderr
    assert len(json.loads(run("log", out, "--json").stdout)) == 1


def test_options_of_joins(run: Run, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    run("scan", *files, "-o", out, "--stack", r"run=(\d+)\.nc", "--concat-dim", "time")
    assert "float64 (run: 3, time: 12, m: 300)" in run("ls", "-l", out).stdout
    over = write(tmp_path / "over.nc", 2, seed=3)
    run("scan", *files, over, "-o", tmp_path / "b.refindex", "--overlap", "last")
    assert "(time: 12, m: 300)" in run("ls", "-l", tmp_path / "b.refindex").stdout
    run("scan", *files, "-o", tmp_path / "c.refindex", "--no-join")
    assert "00/" in run("ls", tmp_path / "c.refindex").stdout.split()
    assert run("scan", *files, "-o", tmp_path / "d.refindex", "--overlap", "none", code=2).stdout == ""
    assert run("append", out, files[0], "--on-difference", "none", code=2).stdout == ""


def test_exit_codes(run: Run, files: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    run("scan", *files, "-o", out)
    assert "no.refindex" in run("append", tmp_path / "no.refindex", files[0], code=1).stderr
    assert "no such file" in run("remove", out, tmp_path / "none.nc", code=1).stderr
    assert "nothing would be left" in run("remove", out, tmp_path / "*.nc", code=1).stderr
    run("restore", out, 9, code=1)
    run("diff", out, 0, 9, code=1)
    run("log", tmp_path / "no.sqlite", code=1)
    run("append", out, code=2)
    run("vacuum", out, "--older-than", "soon", code=2)
    broken = tmp_path / "broken.nc"
    broken.write_bytes(files[0].read_bytes()[:500])
    more = write(tmp_path / "12.nc", 12)
    done = run("append", out, more, broken, code=3)
    assert "broken.nc" in done.stderr
    assert "1 file added" in done.stdout
    assert "broken.nc" in run("append", out, broken, "--strict", code=1).stderr
    assert len(json.loads(run("log", out, "--json").stdout)) == 2
