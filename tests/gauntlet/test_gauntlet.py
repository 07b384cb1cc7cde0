"""Every case of the gauntlet: whole read, slice, raw keys and xarray, all equal to h5py."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr
import zarr

sys.path.insert(0, str(Path(__file__).parent))

from cases import cases
from oracle import compare_file, same

import refindex
from refindex import Status

CASES = cases()
DANGLING = {"link: dangling": "soft", "link: cycle": "group/up"}
"""Links that lead nowhere new: reported, as there is nothing to serve."""


def test_there_are_enough() -> None:
    assert len(CASES) >= 120


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # libhdf5 looks for external raw files in the working directory.
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "case.h5"
    CASES[name](path)
    verdict = compare_file(str(path))
    assert verdict.wrong == []
    assert verdict.right, "nothing was compared"
    assert [r for r in verdict.reported if not r[1].startswith("dimension")] == []
    with refindex.open(path) as archive, h5py.File(path) as file:
        problems = {e.path.strip("/") for e in archive.report.select(Status.UNSERVED)}
        assert problems == ({DANGLING[name]} if name in DANGLING else set())
        for where in verdict.right:
            check_parts(archive, file[where], where)


def check_parts(archive: refindex.Archive, dataset: h5py.Dataset, where: str) -> None:
    """A slice with steps, and xarray's reading, beside h5py."""
    node = archive.nodes[where]
    if node.dtype is None or node.dtype.names or dataset.shape is None or h5py.check_ref_dtype(dataset.dtype):
        return
    if h5py.check_vlen_dtype(dataset.dtype) is not None:
        return
    whole = dataset[()]
    with warnings.catch_warnings(), zarr.config.set({"array.rectilinear_chunks": True}):
        warnings.simplefilter("ignore")
        array = zarr.open_array(archive.store, path=where, mode="r")
        if whole.ndim if isinstance(whole, np.ndarray) else 0:
            part = tuple(slice(1, None, 3) if i % 2 == 0 else slice(None, -1) for i in range(np.ndim(whole)))
            assert same(whole[part], array[part]) == "" or same(whole[part].astype(node.dtype), array[part]) == ""
        group, _, name = where.rpartition("/")
        opened = xr.open_dataset(
            archive.store, engine="refindex", group=group, mask_and_scale=False, concat_characters=False
        )
        served = opened[name].values
    expected = np.asarray(whole)
    if expected.dtype.kind not in "M" and served.dtype.kind != "M":
        assert same(expected, served) == "" or same(expected.astype(node.dtype), served) == ""
