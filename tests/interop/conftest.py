"""Warnings of the other tools, which are theirs to mend; files and archives for the tests of parsers."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import refindex

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "gauntlet"))

FOREIGN = [
    "ignore:.*does not have a Zarr V3 specification.*",
    "ignore:.*not in the Zarr version 3 specification.*",
    "ignore:.*[Rr]ectilinear.*:FutureWarning",
    "ignore:.*Consolidated metadata is currently not part.*",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for line in FOREIGN:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(params=[".refindex", ".sqlite"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Imports a file, saves the archive, and opens it."""
    opened: list[Any] = []

    def serve(path: Path, format: str, **options: Any) -> Any:  # noqa: A002
        manifest = refindex.import_references(path, format=format, **options)
        out = tmp_path / f"{path.name}{len(opened)}{request.param}"
        manifest.save(out)
        opened.append(refindex.open(out, **options))
        return opened[-1]

    yield serve
    for archive in opened:
        archive.close()


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "a b#ü%41.h5", "w") as file:
        file.attrs["title"] = "all of it"
        for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"):
            values = rng.integers(0, 100, (60, 80)).astype(dtype)
            file.create_dataset(f"{dtype} packed", data=values, chunks=(17, 19), compression=4, shuffle=True)
            file.create_dataset(f"{dtype} plain", data=values)
        group = file.create_group("below/deeper")
        group.create_dataset("chunks", data=values, chunks=(17, 19))
        group.create_dataset("checked", data=values, chunks=(17, 19), compression=1, fletcher32=True)
        group.create_dataset("shuffled", data=values, chunks=(17, 19), shuffle=True)
        sparse = group.create_dataset("sparse", (30, 40), "i4", chunks=(10, 10), fillvalue=-7)
        sparse[0:10], sparse[20:30, 30:40] = 5, 6
        masked = file.create_group("packed").create_dataset("masked", data=rng.normal(size=(50, 60)).astype("f4"))
        masked[4] = -9
        masked.attrs["_FillValue"] = np.float32(-9)
        masked.attrs["units"] = "K"
    return tmp_path / "a b#ü%41.h5"
