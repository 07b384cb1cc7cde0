"""Real files that are damaged, or made to do harm: no crash, no hang, no memory without bound, no wrong value.

All are scanned twice: in this process with ``isolate``, and without it in one that a crash would end.
"""

from __future__ import annotations

import csv
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from refindex import Isolation
from refindex.access import urls
from refindex.scan import scan_many

sys.path.insert(0, str(Path(__file__).parent))
from corpus import NOT_REPEATABLE, ROOT, judge
from scan_and_read import digest

pytestmark = [
    pytest.mark.skipif(not (ROOT / "catalog.csv").exists(), reason="the corpus of real files is not here"),
    pytest.mark.timeout(900),
]

SECONDS, MEGABYTES = 10, 2048


def files() -> list[str]:
    """All files that are not sound, and those that crash or hang the reference libraries."""
    hazards = {line.split("\t")[1] for line in (ROOT / "HAZARDS.txt").read_text().splitlines() if "\t" in line}
    with (ROOT / "catalog.csv").open(newline="") as catalog:
        return [row["path"] for row in csv.DictReader(catalog) if row["corrupt"] or row["path"] in hazards]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What comes of each file when it is scanned and read without isolation; of one that ends the process, how."""
    folder = tmp_path_factory.mktemp("archive")
    left = [str(ROOT / path) for path in files()]
    found: dict[str, dict[str, Any]] = {}
    while left:
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("scan_and_read.py")), str(folder), *left],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        lines = [json.loads(line) for line in done.stdout.splitlines() if line.endswith("}")]
        begun = {line["begun"] for line in lines if "begun" in line}
        assert begun, done.stderr
        found |= {path: {"ended": done.returncode, "said": done.stderr[-500:]} for path in begun}
        found |= {line["file"]: line for line in lines if "file" in line}
        left = [path for path in left if path not in begun]
    return found


def test_without_isolation(here: dict[str, dict[str, Any]]) -> None:
    assert len(here) > 80
    assert {path: told for path, told in here.items() if "ended" in told} == {}
    assert {path: told["seconds"] for path, told in here.items() if told["seconds"] > SECONDS} == {}
    assert max(told["megabytes"] for told in here.values()) < MEGABYTES
    refused = [told["refused"] for told in here.values() if "refused" in told]
    assert [why for why in refused if not why.startswith(("FormatError", "UnsupportedError"))] == []
    assert len(refused) < len(here)


def test_with_isolation(here: dict[str, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """The same files fail, for the same reasons, and what comes of the others is the same, to the byte."""
    found = scan_many([urls.absolute(path) for path in here], isolation=Isolation(time_limit=SECONDS), workers=2)
    failed = {str(urls.local_path(urls.absolute(entry.source))): entry.reason for entry in found.failures}
    assert failed.keys() == {path for path, told in here.items() if "refused" in told}
    for path, reason in failed.items():
        assert here[path]["refused"].endswith(reason)
    scanned = {str(urls.local_path(url)): file for url, file in found.files.items()}
    vague = {name for name, _ in NOT_REPEATABLE}
    digests = {path: told["digest"] for path, told in here.items() if "digest" in told and Path(path).name not in vague}
    assert {path: digest(file.manifest()) for path, file in scanned.items() if Path(path).name not in vague} == digests
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10 < MEGABYTES
    with capsys.disabled():
        print(f"\n{len(here)} damaged or dangerous files: {len(scanned)} scanned, {len(failed)} refused")


def test_no_value_is_wrong() -> None:
    """What is served equals what h5py reads; one file crashes h5py as it walks through it."""
    verdicts = judge(files())
    wrong = [(Path(v["file"]).name, *entry) for v in verdicts for entry in v.get("wrong", ())]
    assert [entry for entry in wrong if entry[:2] not in NOT_REPEATABLE] == []
    assert sum(v.get("right", 0) for v in verdicts) > 100
    assert [Path(v["file"]).name for v in verdicts if "crash" in v] == ["cve-2024-32609.h5"]
