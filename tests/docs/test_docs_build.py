"""The documentation builds without a warning, and names all that is public."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import refindex
from refindex import errors

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"


def test_docs_build_strictly(tmp_path: Path) -> None:
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", site],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for notebook, plots in (
        ("open-a-legacy-archive", 1),
        ("join-unequal-years", 2),
        ("where-the-bytes-are", 3),
        ("publish-and-open-over-http", 1),
    ):
        page = (site / "tutorials" / notebook / "index.html").read_text(encoding="utf-8")
        assert page.count("data:image/png;base64,") == plots, "the plots of a notebook are on its page"
    api = (site / "reference" / "api" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r":(?:class|data|func|meth|mod):", api), "docstring roles are shown as code"
    assert not list(site.rglob("*.py")), "no source of the documentation in the site"


def test_the_api_page_has_every_public_name() -> None:
    page = (REFERENCE / "api.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^::: (\S+)$", page, re.MULTILINE))
    names = {path.rpartition(".")[2] for path in documented}
    public = {name for name in refindex.__all__ if not _is_error(name)}
    assert public <= names, public - names
    # What is no name of the package itself is a type of what its functions give or raise: it stands by its module.
    assert {path for path in documented if path.count(".") < 2} <= {f"refindex.{name}" for name in refindex.__all__}


def test_the_errors_page_has_every_error() -> None:
    page = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    documented = re.findall(r"^## `(\w+)`", page, re.MULTILINE)
    assert documented == [name for name, value in vars(errors).items() if isinstance(value, type)]


def _is_error(name: str) -> bool:
    value = getattr(refindex, name)
    return isinstance(value, type) and issubclass(value, BaseException)
