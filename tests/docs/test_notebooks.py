"""Every notebook runs from start to end, and is kept without outputs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "notebooks").rglob("*.ipynb"))
RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=sys.argv[2])
"""


def run_notebook(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a notebook in a process of its own: what Jupyter's libraries warn about is not ours to fix."""
    return subprocess.run(
        [sys.executable, "-c", RUN, os.fspath(path), os.fspath(folder)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    done = run_notebook(path, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir()), "a notebook cleans up behind itself"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_valid_and_kept_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs"), f"clear the outputs of {path.name}: they change with every run"
        assert cell.get("execution_count") is None


def test_a_notebook_that_fails_is_noticed(tmp_path: Path) -> None:
    broken = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("raise ValueError('on purpose')")])
    path = tmp_path / "broken.ipynb"
    nbformat.write(broken, path)
    done = run_notebook(path, tmp_path)
    assert done.returncode != 0
    assert "on purpose" in done.stderr
