"""The benchmarks run to the end on tiny data. Nothing is asserted about times."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_every_measurement_works(tmp_path: Path) -> None:
    found, page = tmp_path / "found.json", tmp_path / "page.md"
    where = ("--json", str(found), "--markdown", str(page), "--data-dir", str(tmp_path / "data"))
    done = _run("--quick", "--no-peers", *where)
    assert done.returncode == 0, done.stdout + done.stderr
    tables = json.loads(found.read_text())["tables"]
    names = ["index"] * 3 + ["scan"] * 2 + ["scan-1m", "many", "many-small", "join", "append", "open-joined", "store"]
    names += ["open", "open", "read", "read-deflate", "read-flat"]
    names += ["read-parts"] * 4 + ["read-series"] * 2 + ["read-adapted", "read-dask"]
    names += ["remote"] * 3 + ["read-http"] * 2
    assert [table["name"] for table in tables] == names
    rows = [row for table in tables for row in table["rows"]]
    assert [row["case"] for row in rows if row["failed"]] == []
    for row in rows:
        assert row["case"] in done.stdout
        assert row["problem"] == ("left out" if row["peer"] else "")
        assert len(row["samples"]) == (0 if row["peer"] else 1)
        assert row["peer"] or row["ratio"] > 0
    text = page.read_text()
    assert "A run with `--quick`" in text
    assert all(f"| {row['case']} |" in text for row in rows)
    for table in tables:
        assert table["title"] in done.stdout
        assert f"## {table['name']}: {table['title']}" in text
        assert table["rows"][0]["ratio"] == pytest.approx(1)
    assert not (tmp_path / "data" / "scratch").exists()


def test_unknown_names_are_refused() -> None:
    done = _run("nothing")
    assert done.returncode == 2
    assert "there is no nothing; choose from index, scan, scan-1m, many, many-small, join" in done.stderr


@pytest.mark.parametrize("storage", [[], ["--sqlite"]])
def test_many_references_work(tmp_path: Path, storage: list[str]) -> None:
    page = tmp_path / "page.md"
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.large", "--millions", "0.1", "0.2", "--markdown", str(page), *storage],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| 200,001 | 2 |" in page.read_text()
