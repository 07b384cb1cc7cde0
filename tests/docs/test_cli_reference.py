"""The command line page is what the command itself says."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from refindex.cli import app as cli

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def generated() -> str:
    page = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))["generate"]()
    assert isinstance(page, str)
    return page


def test_page_is_current(generated: str) -> None:
    page = (ROOT / "docs" / "reference" / "command-line.md").read_text(encoding="utf-8")
    assert page == generated, "run: .venv/bin/python docs/generate_cli.py"


def test_page_has_every_command(generated: str) -> None:
    names = [command.name for command in cli.app.registered_commands]
    assert re.findall(r"^## refindex (\S+)$", generated, re.MULTILINE) == names
    assert "scan" in names


def test_every_option_is_explained(generated: str) -> None:
    rows = re.findall(r"^\| (`.*) \| (.*) \|$", generated, re.MULTILINE)
    assert len(rows) > 15
    assert [name for name, meaning in rows if not meaning.strip()] == []
