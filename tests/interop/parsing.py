"""What the tests of VirtualiZarr's parsers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import refindex

SQUARE = np.arange(400, dtype="i4").reshape(20, 20)


def problems(path: Path, format: str) -> dict[str, str]:  # noqa: A002
    return {e.path: e.reason for e in refindex.import_references(path, format=format).report.problems}


def numbers(dtype: str, *shape: int) -> np.ndarray[Any, Any]:
    """Values that horizontal differences wrap around in."""
    rng = np.random.default_rng(len(dtype) + shape[0])
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(0, 250, size=shape).cumsum(axis=-1).astype(dtype)
