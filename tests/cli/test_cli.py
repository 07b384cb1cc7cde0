"""The command, run as people run it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

import refindex

COMMAND = [sys.executable, "-m", "refindex.cli"]


def run(
    *arguments: object, code: int = 0, stdin: str = "", cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, input=stdin, cwd=cwd, check=False
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(weather: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("cli")
    for i in range(6):
        (where / f"day{i}.nc").write_bytes(weather.read_bytes())
    return where


def test_scan_ls_info(folder: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "a.refindex", tmp_path / "a.sqlite"):
        done = run("scan", folder / "day0.nc", "-o", out)
        assert "1 source, 9 arrays" in done.stdout
        assert f"wrote {out} (version 0)" in done.stdout
        assert done.stderr == ""
        assert "t2m" in run("ls", out).stdout.split()
        long = run("ls", "-l", out).stdout
        assert "int16 (time: 6, lat: 10, lon: 20)" in long
        assert run("ls", out, "derived").stdout.split() == ["deeper/", "mean"]
        assert "derived/deeper/count" in run("ls", "-r", out).stdout
        info = run("info", "-a", out).stdout
        assert "chunks [2, 10, 20] x 3, bytes + shuffle + zlib" in info
        assert "@units = 'days since 2000-01-01'" in info
        assert "day0.nc" in info
        facts = json.loads(run("info", "--json", out).stdout)
        assert facts["arrays"]["t2m"]["references"] == 3
        assert facts["arrays"]["t2m"]["bytes"] == 6 * 10 * 20 * 2
        assert {row["name"] for row in json.loads(run("ls", "--json", out).stdout)} >= {"t2m", "derived"}


def test_info_of_a_source(folder: Path) -> None:
    assert "t2m" in run("info", folder / "day0.nc").stdout


def test_several_sources(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    run("scan", f"{folder}/day*.nc", "-o", out, "-j", "2", "--no-join")
    assert run("ls", out).stdout.split() == [f"day{i}/" for i in range(6)]
    (tmp_path / "list").write_text(f"# files\n{folder}/day1.nc\n\n{folder}/day2.nc\n")
    run("scan", "--from-file", tmp_path / "list", "-o", tmp_path / "b.sqlite", "--no-join")
    assert run("ls", tmp_path / "b.sqlite").stdout.split() == ["day1/", "day2/"]
    run("scan", "--from-file", "-", "-o", tmp_path / "c.sqlite", stdin=f"{folder}/day3.nc\n")
    assert "t2m" in run("ls", tmp_path / "c.sqlite").stdout
    run("scan", folder, "-v", "t2m", "-o", tmp_path / "d.sqlite", "--workers", "1", "--no-join")
    assert run("ls", tmp_path / "d.sqlite", "day0").stdout.split() == ["lat", "t2m", "time"]


def test_json_and_dry_run(folder: Path, tmp_path: Path) -> None:
    done = json.loads(run("scan", folder / "day0.nc", "--dry-run", "--json").stdout)
    assert done["version"] is None
    assert done["counts"]["inlined"] >= 3
    assert {"source", "path", "status", "reason"} == set(done["report"][0])
    run("scan", folder / "day0.nc", "-o", tmp_path / "x.refindex", "--dry-run")
    assert list(tmp_path.iterdir()) == []


def test_overwriting(folder: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "a.refindex", tmp_path / "a.sqlite"):
        run("scan", folder / "day0.nc", "-o", out)
        refused = run("scan", folder / "day1.nc", "-o", out, code=1)
        assert "exists; pass --overwrite" in refused.stderr
        assert "(version 1)" in run("scan", folder / "day1.nc", "-o", out, "--overwrite").stdout
        assert "day0.nc" in run("info", out, "--version", "0").stdout
        assert "day1.nc" in run("info", out).stdout
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain/file").touch()
    assert "not a refindex archive" in run("scan", folder / "day0.nc", "-o", tmp_path / "plain", code=1).stderr


def test_errors_are_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.nc").write_text("hello")
    (tmp_path / "cut.h5").write_bytes((folder / "day0.nc").read_bytes()[:9000])
    cases = [
        (("scan", tmp_path / "nothing.nc", "-o", tmp_path / "o"), "nothing.nc: no such file"),
        (("scan", tmp_path / "text.nc", "-o", tmp_path / "o"), "text.nc: not HDF5"),
        (("scan", tmp_path / "cut.h5", "-o", tmp_path / "o"), "cut.h5: libhdf5 cannot open it"),
        (("scan", tmp_path / "*.grib", "-o", tmp_path / "o"), "no file matches"),
        (("scan", "--from-file", tmp_path / "nolist", "-o", tmp_path / "o"), "nolist: no such file"),
        (("ls", tmp_path / "nothing.refindex"), "no such file"),
        (("ls", tmp_path), "neither a refindex archive"),
        (("info", tmp_path / "text.nc"), "neither a refindex archive nor"),
        (("ls", folder / "day0.nc", "nothing"), "no group or array /nothing"),
        (("scan", folder / "day0.nc", "-o", "/proc/x/a.refindex"), "/proc/x/a.refindex"),
    ]
    for arguments, words in cases:
        done = run(*arguments, code=1)
        assert words in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("refindex: error: ")
    assert not (tmp_path / "o").exists()
    assert "Traceback" in run("ls", tmp_path / "x", "--debug", code=1).stderr


def test_a_wrong_command_line(folder: Path) -> None:
    assert "at least one source" in run("scan", code=2).stderr
    assert "--out" in run("scan", folder / "day0.nc", code=2).stderr
    assert "not JSON" in run("ls", folder / "day0.nc", "--storage-options", "{", code=2).stderr
    run("unknown", code=2)
    assert "Usage" in run(code=2).stdout + run(code=2).stderr


def test_some_sources_fail(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.nc").write_text("hello")
    done = run("scan", folder / "day0.nc", tmp_path / "bad.nc", "-o", tmp_path / "a.sqlite", "--no-join", code=3)
    assert f"failed: {tmp_path / 'bad.nc'}: not HDF5" in done.stderr
    assert run("ls", tmp_path / "a.sqlite").stdout.split() == ["day0/"]
    assert "bad.nc" in run("info", tmp_path / "a.sqlite").stdout
    done = run("scan", folder / "day0.nc", tmp_path / "bad.nc", "-o", tmp_path / "b.sqlite", "--strict", code=1)
    assert "bad.nc" in done.stderr
    assert not (tmp_path / "b.sqlite").exists()


def test_what_is_not_served_is_said(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as f:
        f["good"] = np.arange(10)
        f["ref"] = np.array([f["good"].ref] * 1000, dtype=h5py.ref_dtype)
        f["dangling"] = h5py.SoftLink("/nowhere")
    done = run("scan", tmp_path / "x.h5", "-o", tmp_path / "a.sqlite")
    assert "dangling: a soft link to '/nowhere', which is not there" in done.stderr
    assert "dangling" in run("info", tmp_path / "a.sqlite").stdout
    assert "no source has a variable named typo" in run("scan", tmp_path / "x.h5", "-v", "typo", "--dry-run").stderr


def test_version() -> None:
    assert run("--version").stdout.strip() == f"refindex {refindex.__version__}"


def test_progress_on_a_terminal_only(folder: Path, tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [*COMMAND, "scan", str(folder), "-o", str(tmp_path / "a.sqlite"), "-j", "1", "--no-join"],
        stdout=subprocess.PIPE,
        stderr=follower,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            part = os.read(leader, 65536)
        except OSError:
            break
        if not part:
            break
        seen += part
    out, _ = child.communicate(timeout=60)
    os.close(leader)
    assert b"scanning" in seen
    assert b"files/s" in seen
    assert b"6 sources" in out


def processes(group: int) -> list[int]:
    """The processes of a group, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def test_ctrl_c_leaves_nothing(tmp_path: Path) -> None:
    """Interrupted while it works: one line, exit code 130, no manifest, no worker left behind."""
    for i in range(400):
        with h5py.File(tmp_path / f"{i}.h5", "w") as f:
            for j in range(30):
                f[f"d{j}"] = np.arange(300)
    child = subprocess.Popen(
        [*COMMAND, "scan", str(tmp_path), "-o", str(tmp_path / "a.refindex"), "-j", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    # Its worker processes show that it has begun.
    deadline = time.monotonic() + 30
    while len(processes(child.pid)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    assert child.poll() is None, "the scan was done before it could be interrupted"
    os.killpg(child.pid, signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not (tmp_path / "a.refindex").exists()
    deadline = time.monotonic() + 10
    while processes(child.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes(child.pid) == []
