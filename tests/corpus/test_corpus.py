"""Real files written by others: every dataset is served equal to h5py, or is in the report; none differs silently.

The corpus is not part of the project. The test runs where it lies beside the checkout (``../shared/corpus``, or the
folder that ``REFINDEX_CORPUS`` names) and is skipped elsewhere. Every batch of files runs in a child process, because
some of them crash libhdf5; a file that takes its child down is tried once more by itself and then counted as crashed.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from corpus import NOT_REPEATABLE, ROOT, judge

pytestmark = [
    pytest.mark.skipif(not (ROOT / "catalog.csv").exists(), reason="the corpus of real files is not here"),
    pytest.mark.timeout(600),
]


def files() -> list[str]:
    with (ROOT / "catalog.csv").open(newline="") as catalog:
        return [row["path"] for row in csv.DictReader(catalog) if row["format"].startswith(("hdf5", "netcdf4"))]


def test_every_dataset_is_right_or_reported(record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    paths = files()
    assert len(paths) > 250
    verdicts = judge(paths)
    wrong = [
        (Path(v["file"]).name, *entry)
        for v in verdicts
        for entry in v.get("wrong", ())
        if (Path(v["file"]).name, entry[0]) not in NOT_REPEATABLE
    ]
    right = sum(v.get("right", 0) for v in verdicts)
    reported = [reason for v in verdicts for _, reason in v.get("reported", ())]
    dimensions = sum(reason.startswith("dimension") for reason in reported)
    unserved = len(reported) - dimensions
    refused = [(Path(v["file"]).name, v["error"]) for v in verdicts if "error" in v]
    crashed = [Path(v["file"]).name for v in verdicts if "crash" in v]
    with capsys.disabled():
        print(
            f"\ncorpus: {len(paths)} files, {right} datasets right, {unserved} reported as not served, "
            f"{dimensions} netCDF dimensions without a variable, {len(wrong)} wrong; "
            f"{len(refused)} files refused, {len(crashed)} crash libhdf5"
        )
    record_property("right", right)
    assert wrong == []
    assert right >= 3300
    assert unserved <= right // 100
    # Damaged files, too: an answer in time, in little memory.
    assert [v["file"] for v in verdicts if v.get("seconds", 0) > 10] == []
    assert max(v.get("megabytes", 0) for v in verdicts) < 2048
    # Whole files are refused with an error of ours only: anything else is a bug.
    assert [r for r in refused if not r[1].startswith(("FormatError", "UnsupportedError", "h5py: "))] == []
    # One file crashes h5py when the oracle walks through it; refindex has scanned it before that.
    assert crashed == ["cve-2024-32609.h5"]
    assert not any(v["ours"] for v in verdicts if "crash" in v)
