"""The page of the gauntlet is what its cases make."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_page_is_current() -> None:
    page = (ROOT / "docs" / "reference" / "gauntlet.md").read_text(encoding="utf-8")
    made = runpy.run_path(str(ROOT / "docs" / "generate_gauntlet.py"))["generate"]()
    assert page == made, "run: .venv/bin/python docs/generate_gauntlet.py"
