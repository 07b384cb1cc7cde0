"""Real files written by others: every dataset is served equal to h5py, or is in the report; none differs silently.

The corpus is not part of the project. The test runs where it lies beside the checkout (``../shared/corpus``, or the
folder that ``REFINDEX_CORPUS`` names) and is skipped elsewhere. Every batch of files runs in a child process, because
some of them crash libhdf5; a file that takes its child down is tried once more by itself and then counted as crashed.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(os.environ.get("REFINDEX_CORPUS", Path(__file__).parents[3] / "shared" / "corpus"))

# libhdf5 reads beyond the end of this damaged chunk: what it returns changes from run to run.
NOT_REPEATABLE = {("cve-2025-2308.h5", "Scale_offset_long_long_data_le")}

pytestmark = [
    pytest.mark.skipif(not (ROOT / "catalog.csv").exists(), reason="the corpus of real files is not here"),
    pytest.mark.timeout(600),
]


def files() -> list[str]:
    with (ROOT / "catalog.csv").open(newline="") as catalog:
        return [row["path"] for row in csv.DictReader(catalog) if row["format"].startswith(("hdf5", "netcdf4"))]


def judge(paths: list[str]) -> list[dict[str, Any]]:
    """Compare files in a child process; one that crashes it gets an entry that says so."""
    verdicts: list[dict[str, Any]] = []
    while paths:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("judge.py")), *(str(ROOT / p) for p in paths)],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        verdicts += found
        scanned = {line.partition(" ")[2] for line in done.stdout.splitlines() if line.startswith("scanned ")}
        paths = paths[len(found) :]
        if paths:
            ours = str(ROOT / paths[0]) not in scanned
            verdicts.append({"file": paths[0], "crash": done.returncode, "ours": ours})
            paths = paths[1:]
    return verdicts


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
