"""Files that change: while they are scanned, and after."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from serving import RangeServer
from typer.testing import CliRunner

import refindex
from refindex.cli.app import app
from refindex.errors import SourceError, StaleSourceError
from refindex.scan.hdf5 import scanner

VALUES = np.arange(2000, dtype="i4")


def write(path: Path, values: Any = VALUES, first: int = 0, filters: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        time = file.create_dataset("time", data=np.arange(first, first + len(values)), maxshape=(None,))
        time.make_scale("time")
        file.create_dataset("a", data=values, chunks=(500,), maxshape=(None,), shuffle=filters).dims[0].attach_scale(
            time
        )
    return path


def touch(path: Path) -> None:
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 5_000_000_000))


@pytest.mark.parametrize("files", [1, 2])
@pytest.mark.parametrize("name", ["an archive.refindex", "a.sqlite"])
def test_the_message_names_all_and_its_command_repairs(files: int, name: str, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"it's {n}.h5", VALUES + n, first=2000 * n) for n in range(files)]
    archive = tmp_path / name
    refindex.scan(paths).save(archive)
    last = write(paths[-1], VALUES * 2, first=2000 * (files - 1), filters=False)
    touch(last)
    with refindex.open(archive) as opened, pytest.raises(StaleSourceError) as caught:
        opened["a"].compute()
    said = str(caught.value)
    assert said.startswith(f"{last} has changed since it was scanned: ")
    assert " was " in said or "modified" in said
    assert " is " in said or " now" in said
    command = said.partition(". refindex ")[2].partition(" takes it as it is now")[0]
    done = CliRunner().invoke(app, shlex.split(command))
    assert done.exit_code == 0, done.output
    with refindex.open(archive) as opened:
        np.testing.assert_array_equal(opened["a"].compute()[-2000:], VALUES * 2)


def test_warned_or_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "x.h5")
    refindex.scan(path).save(tmp_path / "a.refindex")
    touch(path)
    with refindex.open(tmp_path / "a.refindex", stale="warn") as opened, pytest.warns(UserWarning, match="has changed"):
        np.testing.assert_array_equal(opened["a"].compute(), VALUES)
    with refindex.open(tmp_path / "a.refindex", stale="ignore") as opened:
        np.testing.assert_array_equal(opened["a"].compute(), VALUES)
    with pytest.raises(ValueError, match="stale must be"):
        refindex.open(tmp_path / "a.refindex", stale="maybe")  # type: ignore[arg-type]


def test_remotely_the_first_read_checks(tmp_path: Path) -> None:
    """Without a request of its own; and no read after it does."""
    path = write(tmp_path / "x.h5", np.arange(500_000, dtype="i4"), filters=False)
    with RangeServer(tmp_path) as server:
        refindex.scan(f"{server.url}/x.h5").save(tmp_path / "a.refindex")
        with refindex.open(tmp_path / "a.refindex") as opened:
            server.forget()
            assert opened["a"][10:11].compute() == 10
            assert len(server.requests) == 1
            assert opened["a"][400_000:400_001].compute() == 400_000
            assert len(server.requests) == 2
        touch(path)
        with refindex.open(tmp_path / "a.refindex") as opened:
            server.forget()
            with pytest.raises(StaleSourceError, match=r"x.h5 has changed .*(etag was|modified)"):
                opened["a"][10:11].compute()
            assert len(server.requests) == 1


LINKS: dict[str, Callable[[h5py.File], Any]] = {
    "external link": lambda file: file.__setitem__("b", h5py.ExternalLink("other.h5", "/a")),
    "external data": lambda file: file.create_dataset("b", (2000,), "i4", external=[("other.bin", 0, 8000)]),
}


@pytest.mark.parametrize("how", LINKS)
@pytest.mark.parametrize("which", ["main.h5", "other"])
def test_a_file_that_changes_while_it_is_scanned(
    how: str, which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scanned one, and those that it refers to; scanned again, once, all is well."""
    write(tmp_path / "other.h5")
    (tmp_path / "other.bin").write_bytes(VALUES.tobytes())
    with h5py.File(tmp_path / "main.h5", "w") as file:
        file["c"] = VALUES
        LINKS[how](file)
    name = {"external link": "other.h5", "external data": "other.bin"}[how] if which == "other" else which
    real, times = scanner._scan_file, []

    def changing(*arguments: Any) -> Any:
        made = real(*arguments)
        if len(times) < limit:
            times.append(1)
            touch(tmp_path / name)
        return made

    monkeypatch.setattr(scanner, "_scan_file", changing)
    limit = 10
    with pytest.raises(SourceError, match=f"{name} changed while it was scanned: modified"):
        refindex.scan(tmp_path / "main.h5")
    times.clear()
    limit = 1
    manifest = refindex.scan([tmp_path / "main.h5", write(tmp_path / "plain/x.h5")], join=False, workers=1)
    assert not manifest.report.problems
    assert "main/b" in manifest.arrays
    assert times
