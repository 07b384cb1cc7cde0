"""Small archives with a history, and what h5py says of each of their versions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

import refindex

type Values = np.ndarray[Any, Any]

SUFFIXES = (".refindex", ".sqlite")
STEPS, WIDTH = 4, 1200


def write_source(path: Path, start: int, *, seed: int = 0) -> Path:
    """Four steps of an array without zeros, which are its fill value."""
    with h5py.File(path, "w") as file:
        file["time"] = np.arange(start, start + STEPS, dtype="f8")
        file["time"].make_scale("time")
        data = np.random.default_rng((seed, start)).random((STEPS, WIDTH)) + 1
        x = file.create_dataset("x", data=data, chunks=(1, 4))
        x.dims[0].attach_scale(file["time"])
    os.utime(path, (1e9, 1e9))
    return path


def x_of(*paths: Path) -> Values:
    """What h5py reads of files, one after the other."""
    found = []
    for path in paths:
        with h5py.File(path) as file:
            found.append(file["x"][()])
    return np.concatenate(found)


def grow(folder: Path, suffix: str, *, seed: int = 0, appended: int = 2) -> tuple[Path, list[Values]]:
    """An archive of some versions, and the values of each: written, files appended, one removed, the first restored."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [write_source(folder / f"{seed}-{n:02}.h5", STEPS * n, seed=seed) for n in range(2 + appended)]
    out = folder / f"archive{suffix}"
    refindex.scan(files[:2], workers=1).save(out)
    expected = [x_of(*files[:2])]
    for n in range(2, len(files)):
        refindex.append(out, files[n], workers=1)
        expected.append(x_of(*files[: n + 1]))
    refindex.remove(out, files[1])
    expected.append(x_of(files[0], *files[2:]))
    refindex.restore(out, 0)
    expected.append(expected[0])
    return out, expected


def read_x(archive: Path, version: int | None = None) -> Values:
    with refindex.open(archive, version=version) as opened:
        str(opened.report)
        np.asarray(opened.group["time"][...])
        return np.asarray(opened.group["x"][...])


def outcome(archive: Path, expected: list[Values], versions: list[int] | None = None) -> str:
    """``right`` if all versions read as they must, ``refused`` if one is refused by an error that names the archive.

    Anything else fails the test that asks.
    """
    said = "right"
    for version in versions if versions is not None else range(len(expected)):
        try:
            found = read_x(archive, version)
        except refindex.RefindexError as error:
            if archive.name not in str(error):
                raise AssertionError(f"it is not said which archive: {error}") from error
            said = "refused"
            continue
        np.testing.assert_array_equal(found, expected[version], err_msg=f"version {version}")
    return said
