"""What a selection costs before it is paid: chunks, requests, bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.model import html

nbytes = html.nbytes

_COLUMNS = ("selection", "shape", "chunks", "requests", "read", "wanted", "decoded", "files")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What reading one selection of an array takes.

    Parameters
    ----------
    label:
        Which selection.
    shape:
        Of the result.
    chunks:
        Chunks that it touches, those that do not exist included.
    absent, inline:
        Of those: chunks that do not exist, and chunks that are in the manifest.
    requests:
        Ranges that are read from sources, neighbours merged.
    nbytes_read:
        Bytes of these ranges.
    nbytes_wanted:
        Bytes of the result.
    nbytes_decoded:
        Bytes of the chunks once they are decoded.
    sources:
        Files that are read.
    """

    label: str
    shape: tuple[int, ...]
    chunks: int
    absent: int
    inline: int
    requests: int
    nbytes_read: int
    nbytes_wanted: int
    nbytes_decoded: int
    sources: int

    def row(self) -> tuple[str, ...]:
        """The columns of a table."""
        chunks = f"{self.chunks:,}"
        if self.absent:
            chunks += f" ({self.absent:,} absent)"
        return (
            self.label,
            " x ".join(str(n) for n in self.shape) or "scalar",
            chunks,
            f"{self.requests:,}",
            nbytes(self.nbytes_read),
            nbytes(self.nbytes_wanted),
            nbytes(self.nbytes_decoded),
            f"{self.sources:,}",
        )


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """What a selection of an array costs, beside selections that people often make of it.

    Parameters
    ----------
    array:
        Path of the array.
    cost:
        Of the selection itself.
    others:
        Of others: a series along the first dimension at one point, and a map at one element of it.
    """

    array: str
    cost: Cost
    others: tuple[Cost, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"array": self.array, "selections": [_fields(cost) for cost in (self.cost, *self.others)]}

    def __str__(self) -> str:
        rows = [_COLUMNS, *(cost.row() for cost in (self.cost, *self.others))]
        widths = [max(len(row[n]) for row in rows) for n in range(len(_COLUMNS))]
        lines = [
            "  ".join(
                cell.ljust(width) if n < 2 else cell.rjust(width)
                for n, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in rows
        ]
        return "\n".join([f"/{self.array}", *lines])

    def _repr_html_(self) -> str:
        rows = [cost.row() for cost in (self.cost, *self.others)]
        return html.view(html.table(_COLUMNS, rows, numbers=len(_COLUMNS) - 2, caption=f"/{self.array}"))


def _fields(cost: Cost) -> dict[str, Any]:
    return {name: getattr(cost, name) for name in cost.__dataclass_fields__}


def usual_selections(shape: tuple[int, ...], dims: tuple[str | None, ...]) -> Mapping[str, tuple[Any, ...]]:
    """Selections that people often make of an array: in the middle, a series at a point and a map at a time."""
    if len(shape) < 2 or 0 in shape:
        return {}
    middle = tuple(int(n) for n in np.array(shape) // 2)
    first = dims[0] or "dimension 0"
    series = (slice(None), *middle[1:])
    one_map = (middle[0], *(slice(None) for _ in shape[1:]))
    return {f"series along {first} at a point": series, f"all at one {first}": one_map}
