"""Real files written by others, each scanned and verified: nothing is found that is not right.

As in tests/corpus, the files are not part of the project, and each batch runs in a child process, because some of them
crash libhdf5.
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

# libhdf5 reads beyond the end of a damaged chunk of it: what it returns changes from run to run.
NOT_REPEATABLE = {"cve-2025-2308.h5"}

pytestmark = [
    pytest.mark.skipif(not (ROOT / "catalog.csv").exists(), reason="the corpus of real files is not here"),
    pytest.mark.timeout(600),
]

CHILD = """
import json, sys
import refindex
for path in sys.argv[1:]:
    try:
        found = refindex.verify(path, sample=200, workers=2)
        print(json.dumps(found.to_json() | {"file": path}), flush=True)
    except refindex.RefindexError as error:
        print(json.dumps({"file": path, "refused": type(error).__name__}), flush=True)
"""


def verify(paths: list[str]) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    while paths:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, *(str(ROOT / path) for path in paths)],
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        results += found
        paths = paths[len(found) :]
        if paths:
            results.append({"file": paths[0], "crashed": done.returncode, "said": done.stderr[-2000:]})
            paths = paths[1:]
    return results


def test_nothing_is_found(capsys: pytest.CaptureFixture[str]) -> None:
    with (ROOT / "catalog.csv").open(newline="") as catalog:
        paths = [r["path"] for r in csv.DictReader(catalog) if r["format"].startswith(("hdf5", "netcdf", "zarr"))]
    results = verify(paths)
    crashed = [r for r in results if "crashed" in r]
    wrong = [
        (Path(r["file"]).name, p["path"], p["what"])
        for r in results
        for p in r.get("problems", ())
        if Path(r["file"]).name not in NOT_REPEATABLE
    ]
    uncompared = {u["reason"].split(":")[0] for r in results for u in r.get("uncompared", ())}
    compared = sum(r.get("chunks", 0) + r.get("absent", 0) for r in results)
    with capsys.disabled():
        print(f"\ncorpus: {len(paths)} files, {compared} chunks compared, {len(crashed)} crash libhdf5")
    assert len(paths) > 250
    assert wrong == []
    # Only what libhdf5 itself does to the process of whoever opens a damaged file.
    assert [r for r in crashed if r["crashed"] >= 0] == []
    assert len(crashed) <= 3
    assert len(uncompared) <= 3
    assert compared > 4000
