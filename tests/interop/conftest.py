"""Warnings of the other tools, which are theirs to mend."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "gauntlet"))

FOREIGN = [
    "ignore:.*does not have a Zarr V3 specification.*",
    "ignore:.*not in the Zarr version 3 specification.*",
    "ignore:.*[Rr]ectilinear.*:FutureWarning",
    "ignore:.*Consolidated metadata is currently not part.*",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for line in FOREIGN:
                item.add_marker(pytest.mark.filterwarnings(line))
