"""What users do to an archive, on a disk that is full or loses power: values as h5py reads them, before or after."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import Disk, PowerLossError, failing
from grown import SUFFIXES, Values, read_x, write_source, x_of

import refindex
from refindex.storage.parquet import checkpoint

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is synchronised is seen through /proc")

STRIDE = 4
"""Of so many steps, one fails."""


def scan(out: Path) -> None:
    refindex.scan(sorted((out.parent / "data").glob("*.h5")), workers=1).save(out, overwrite=True)


def append(out: Path) -> None:
    refindex.append(out, out.parent / "more.h5", workers=1)


def remove(out: Path) -> None:
    refindex.remove(out, out.parent / "data" / "1.h5")


def relocate(out: Path) -> None:
    refindex.relocate(out, out.parent / "data", out.parent / "same")


def optimize(out: Path) -> None:
    refindex.optimize(out, "x", chunks="time-series", workers=1)


def publish(out: Path) -> None:
    refindex.publish(out, out.with_name("published" + out.suffix), allow_local=True)


WORK: dict[str, Callable[[Path], Any]] = {
    work.__name__: work for work in (scan, append, remove, relocate, optimize, publish)
}


@pytest.fixture(params=SUFFIXES)
def start(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive with its files, and another file."""
    monkeypatch.setattr(checkpoint, "EVERY", 2)
    folder = tmp_path / "start"
    (folder / "data").mkdir(parents=True)
    for number in range(2):
        write_source(folder / "data" / f"{number}.h5", 4 * number)
    write_source(folder / "more.h5", 8)
    shutil.copytree(folder / "data", folder / "same", copy_function=shutil.copy2)
    out = folder / f"archive{request.param}"
    refindex.scan(sorted((folder / "data").glob("*.h5")), workers=1).save(out)
    return out


def values(what: str, start: Path) -> tuple[Values, Values]:
    """What h5py reads before and after."""
    files = [start.parent / "data" / f"{number}.h5" for number in range(2)]
    before = x_of(*files)
    after = {"append": [*files, start.parent / "more.h5"], "remove": files[:1]}
    return before, x_of(*after.get(what, files))


def check(what: str, out: Path, old: Values, new: Values, *, done: bool) -> None:
    found = read_x(out)
    if found.shape == new.shape:
        np.testing.assert_array_equal(found, new)
    else:
        assert not done, "what was committed is lost"
        np.testing.assert_array_equal(found, old)
    versions = [commit.version for commit in refindex.log(out)]
    np.testing.assert_array_equal(read_x(out, min(versions)), old)
    copy = out.with_name("published" + out.suffix)
    if what == "publish":
        with suppress(*(() if done else (FileNotFoundError,))):
            np.testing.assert_array_equal(read_x(copy), old)
    elif done:
        assert len(versions) == 2
    # And on it goes.
    if what == "publish":
        with suppress(refindex.ExistsError):
            publish(out)
        np.testing.assert_array_equal(read_x(copy), old)
    elif len(versions) == 1:
        WORK[what](out)
        np.testing.assert_array_equal(read_x(out), new)


@pytest.mark.parametrize("what", WORK)
def test_a_full_disk(what: str, start: Path) -> None:
    old, new = values(what, start)
    for number in itertools.count(0, STRIDE):
        folder = start.parents[1] / f"box{number}"
        shutil.copytree(start.parent, folder)
        out = folder / start.name
        disk = Disk(below=folder, at=number, fault="full")
        error = None
        with failing(disk):
            try:
                WORK[what](out)
            except (refindex.RefindexError, OSError) as raised:
                error = raised
        assert error is None or "space" in str(error) or "full" in str(error), error
        check(what, out, old, new, done=error is None)
        shutil.rmtree(folder)
        if len(disk.steps) <= number:
            break
    assert error is None
    assert number > STRIDE


@pytest.mark.parametrize("what", WORK)
def test_the_power_goes(what: str, start: Path) -> None:
    old, new = values(what, start)
    for number in itertools.count(1, STRIDE):
        folder = start.parents[1] / f"box{number}"
        shutil.copytree(start.parent, folder)
        disk = Disk(below=folder, at=number)
        with failing(disk):
            with suppress(PowerLossError):
                WORK[what](folder / start.name)
            after = start.parents[1] / f"after{number}"
            disk.after_power_loss(after, names=number % 2 == 0, seed=number)
        check(what, after / start.name, old, new, done=not disk.lost)
        shutil.rmtree(folder)
        shutil.rmtree(after)
        if not disk.lost:
            break
    assert number > STRIDE
