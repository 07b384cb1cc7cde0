"""Where the corpus of real files lies, and the judging of its files in child processes.

It is not part of the project: it lies beside the checkout (``../shared/corpus``), or in the folder that
``REFINDEX_CORPUS`` names.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("REFINDEX_CORPUS", Path(__file__).parents[3] / "shared" / "corpus"))

# libhdf5 reads beyond the end of this damaged chunk: what it returns changes from run to run.
NOT_REPEATABLE = {("cve-2025-2308.h5", "Scale_offset_long_long_data_le")}


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
