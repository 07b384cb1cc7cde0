"""Every file of the gauntlet through every export: what others read is what h5py reads, or the export was refused."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import zarr
from cases import cases
from foreign import OUTPUTS, foreign_store, installed
from oracle import compare_file

import refindex

CASES = cases()


@pytest.mark.parametrize("name", CASES)
def test_case(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "case.h5"
    CASES[name](path)
    with refindex.open(path) as archive:
        for number, (to, zarr_format) in enumerate(OUTPUTS):
            if to == "icechunk" and not installed("icechunk"):
                continue
            dest = tmp_path / f"out{number}"
            refusals = []
            for materialize in (False, True):
                try:
                    refindex.export(archive, dest, to=to, zarr_format=zarr_format, materialize=materialize)
                    break
                except refindex.UnsupportedError as error:
                    refusals.append(str(error))
                assert not dest.exists()
                assert not Path(f"{dest}.data").exists()
            # It says of which arrays.
            assert all(any(f"/{where}:" in refusal for where in archive.arrays) for refusal in refusals)
            assert to != "zarr" or not refusals
            if not dest.exists():
                assert zarr_format == 2, (to, "Zarr v3 has all types")
                continue
            store = foreign_store(dest, to)
            with monkeypatch.context() as patch:
                # fsspec's Parquet reader takes a look for zarr.json in version 2 for a chunk key.
                patch.setattr(zarr, "open_array", partial(zarr.open_array, zarr_format=zarr_format))
                verdict = compare_file(str(path), store_of=lambda archive, store=store: store)
            assert verdict.wrong == [], (to, zarr_format)
            assert verdict.right
