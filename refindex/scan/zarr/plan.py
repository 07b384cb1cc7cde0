"""What both versions of array metadata come to: the document that will be served, and where its chunks are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.errors import FormatError, UnsupportedError
from refindex.model.grid import ChunkGrid

type IntArray = npt.NDArray[np.int64]

MAX_NDIM = 64
"""What numpy arrays can have."""

_MAX_EXTENT = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkKeys:
    """How chunk keys are spelled (core specification 3.0, "Chunk key encoding"; storage specification 2, "Chunks").

    ``default``: ``c``, and the chunk's coordinates, joined by the separator. ``v2``: the coordinates alone, ``0`` for
    a scalar.
    """

    default: bool
    separator: str

    def numbers(self, keys: Sequence[str], grid: ChunkGrid) -> tuple[IntArray, npt.NDArray[np.intp]]:
        """The chunk numbers of the keys that name a chunk of the grid, and which of the keys these are."""
        head = f"c{self.separator}" if self.default else ""
        if grid.ndim == 0:
            scalar = "c" if self.default else "0"
            at = [i for i, key in enumerate(keys) if key == scalar]
            return np.zeros(len(at), dtype=np.int64), np.array(at, dtype=np.intp)
        # Only the canonical spelling is a key: no sign, no leading zeros, no other digits; 18 digits fit an int64.
        one = "(?:0|[1-9][0-9]{0,17})"
        pattern = re.compile(re.escape(head) + re.escape(self.separator).join([one] * grid.ndim), re.ASCII)
        spelled = [i for i, key in enumerate(keys) if pattern.fullmatch(key)]
        if not spelled:
            return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.intp)
        text = "/".join([keys[i][len(head) :] for i in spelled]).replace(".", "/")
        coordinates = np.fromstring(text, dtype=np.int64, sep="/").reshape(-1, grid.ndim)
        inside = np.all(coordinates < np.array(grid.counts, dtype=np.int64), axis=1)
        return grid.index(coordinates[inside]), np.array(spelled, dtype=np.intp)[inside]


@dataclass(slots=True, kw_only=True)
class Plan:
    """One array: the document to serve, and the grid and the keys of its chunk objects."""

    document: dict[str, Any]
    grid: ChunkGrid
    keys: ChunkKeys
    notes: list[str] = field(default_factory=list)


def extents(value: Any, what: str, *, least: int = 0) -> tuple[int, ...]:
    """A list of integers from metadata.

    Raises
    ------
    FormatError
        If it is not one, or a number is below ``least`` or beyond an int64.
    UnsupportedError
        If it is longer than numpy arrays have dimensions.
    """
    if not isinstance(value, list) or not all(type(n) is int and least <= n <= _MAX_EXTENT for n in value):
        raise FormatError(f"{what} is {shortened(value)}; expected a list of integers of {least} or more")
    if len(value) > MAX_NDIM:
        raise UnsupportedError(f"{what} has {len(value)} dimensions; numpy arrays have at most {MAX_NDIM}")
    return tuple(value)


def regular_grid(shape: tuple[int, ...], chunks: tuple[int, ...]) -> ChunkGrid:
    """A grid of equal chunks. A chunk length of 0, which some writers give to dimensions of length 0, counts as 1."""
    if len(chunks) != len(shape):
        raise FormatError(f"{len(chunks)} chunk lengths for {len(shape)} dimensions")
    repaired = tuple(1 if chunk == 0 and extent == 0 else chunk for chunk, extent in zip(chunks, shape, strict=True))
    return ChunkGrid.regular(shape, repaired)


def members(value: Any, what: str) -> dict[str, Any]:
    """A JSON object from metadata."""
    if not isinstance(value, dict):
        raise FormatError(f"{what} is {shortened(value)}; expected a JSON object")
    return value


def required(document: dict[str, Any], names: Iterable[str], what: str) -> None:
    """Raise FormatError naming all members that a document lacks."""
    missing = [name for name in names if name not in document]
    if missing:
        raise FormatError(f"{what} has no {', '.join(missing)}")


def understood(document: dict[str, Any], known: Collection[str]) -> None:
    """Raise UnsupportedError for a member that is not known and must not be ignored (3.0, "Extension points")."""
    for name, value in document.items():
        if name not in known and not (isinstance(value, dict) and value.get("must_understand") is False):
            raise UnsupportedError(f"its zarr.json has the member {name!r}, which must be understood to read it")


def shortened(value: Any) -> str:
    """A JSON value for a message."""
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
