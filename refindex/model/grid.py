"""Chunk geometry: the one place that knows where a chunk lies in its array.

A :class:`ChunkGrid` covers an array of ``shape`` with chunks. Along each dimension the chunks have
either one length (regular) or a run-length list of lengths (rectilinear, Zarr's ``rectilinear``
chunk grid). Chunks are numbered in C order over the whole grid: that number is what a
:class:`~refindex.model.chunks.ChunkTable` and the manifest call ``chunk``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.errors import FormatError, UnsupportedError

type IntArray = npt.NDArray[np.int64]
type Runs = tuple[tuple[int, int], ...]
"""Chunk lengths along one dimension as ``((length, count), ...)``."""

_INT64_MAX = np.iinfo(np.int64).max
_MOST_RUNS = 10_000_000
"""Chunks of unequal length in a document, along all dimensions: their starts are in memory."""


@dataclass(frozen=True, kw_only=True)
class ChunkGrid:
    """The chunks of an array.

    Parameters
    ----------
    shape:
        Array shape, in elements. A scalar has the shape ``()`` and exactly one chunk.
    edges:
        Chunk lengths, one entry a dimension: an ``int`` for equal chunks (the last one may overhang
        the array), or runs ``((length, count), ...)`` whose sum covers the dimension.

    Raises
    ------
    FormatError
        If the edges do not cover the shape, or the grid has more chunks than an int64 can number.
    """

    shape: tuple[int, ...]
    edges: tuple[int | Runs, ...]

    def __post_init__(self) -> None:
        if len(self.shape) != len(self.edges):
            raise FormatError(
                f"chunk grid: {len(self.edges)} chunk dimensions for an array of {len(self.shape)} dimensions"
            )
        for axis, (extent, edge) in enumerate(zip(self.shape, self.edges, strict=True)):
            if extent < 0:
                raise FormatError(f"chunk grid: dimension {axis} has negative extent {extent}")
            runs = ((edge, 1),) if isinstance(edge, int) else edge
            if any(length < 1 or count < 1 for length, count in runs):
                raise FormatError(f"chunk grid: dimension {axis}: lengths and counts must be >= 1, got {runs}")
            if not isinstance(edge, int) and sum(length * count for length, count in edge) < extent:
                raise FormatError(
                    f"chunk grid: dimension {axis}: chunks cover "
                    f"{sum(length * count for length, count in edge)} of {extent} elements"
                )
        if math.prod(self.counts) > _INT64_MAX:
            raise FormatError(f"chunk grid: {self.counts} chunks are more than an int64 can number")

    @classmethod
    def regular(cls, shape: tuple[int, ...], chunk_shape: tuple[int, ...]) -> ChunkGrid:
        """A grid of equal chunks."""
        return cls(shape=tuple(shape), edges=tuple(chunk_shape))

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def is_regular(self) -> bool:
        """Whether every dimension has chunks of one length."""
        return all(isinstance(edge, int) for edge in self.edges)

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Number of chunks along each dimension."""
        return tuple(
            -(-extent // edge) if isinstance(edge, int) else sum(count for _, count in edge)
            for extent, edge in zip(self.shape, self.edges, strict=True)
        )

    @property
    def size(self) -> int:
        """Number of chunks in the whole grid."""
        return math.prod(self.counts)

    @cached_property
    def starts(self) -> tuple[int | IntArray, ...]:
        """First element of each chunk along each dimension: a step, or an explicit array with the end last."""
        return tuple(
            edge
            if isinstance(edge, int)
            else np.concatenate(
                (
                    [0],
                    np.cumsum(np.repeat([length for length, _ in edge], [count for _, count in edge])),
                )
            ).astype(np.int64)
            for edge in self.edges
        )

    def index(self, coordinates: npt.ArrayLike) -> IntArray:
        """C-order chunk numbers of chunk coordinates of shape ``(n, ndim)``."""
        coords = np.atleast_2d(np.asarray(coordinates, dtype=np.int64))
        index = np.zeros(len(coords), dtype=np.int64)
        for axis, count in enumerate(self.counts):
            index *= count
            index += coords[:, axis]
        return index

    def coordinates(self, index: npt.ArrayLike) -> IntArray:
        """Chunk coordinates, shape ``(n, ndim)``, of C-order chunk numbers."""
        rest = np.asarray(index, dtype=np.int64).reshape(-1).copy()
        coords = np.empty((len(rest), self.ndim), dtype=np.int64)
        for axis in range(self.ndim - 1, -1, -1):
            # Twice as fast as divmod: numpy divides by a scalar with vector instructions.
            quotient = rest // max(self.counts[axis], 1)
            coords[:, axis] = rest - quotient * max(self.counts[axis], 1)
            rest = quotient
        return coords

    def index_of_elements(self, offsets: npt.ArrayLike) -> IntArray:
        """C-order numbers of the chunks that start at, or contain, element offsets ``(n, ndim)``."""
        elements = np.atleast_2d(np.asarray(offsets, dtype=np.int64))
        index = np.zeros(len(elements), dtype=np.int64)
        for axis, start in enumerate(self.starts):
            index *= self.counts[axis]
            if isinstance(start, int):
                index += elements[:, axis] // start
            else:
                index += np.searchsorted(start, elements[:, axis], side="right") - 1
        return index

    def origin(self, chunk: int) -> tuple[int, ...]:
        """First element of one chunk along each dimension."""
        coords = self.coordinates([chunk])[0]
        return tuple(
            int(c) * start if isinstance(start, int) else int(start[c])
            for c, start in zip(coords, self.starts, strict=True)
        )

    def chunk_shape(self, chunk: int = 0) -> tuple[int, ...]:
        """Full shape of one chunk, overhang included: what its bytes must decode to."""
        if self.is_regular:
            return tuple(edge for edge in self.edges if isinstance(edge, int))
        coords = self.coordinates([chunk])[0]
        return tuple(
            start if isinstance(start, int) else int(start[c + 1] - start[c])
            for c, start in zip(coords, self.starts, strict=True)
        )

    def key(self, chunk: int) -> str:
        """Zarr v3 ``default`` chunk key (separator ``/``) of a chunk number: ``c/0/1``, ``c`` for a scalar."""
        return "/".join(("c", *(str(c) for c in self.coordinates([chunk])[0])))

    def parse_key(self, key: str) -> int | None:
        """Chunk number of a Zarr v3 ``default`` chunk key, or None if it names no chunk of this grid."""
        head, *parts = key.split("/")
        if head != "c" or len(parts) != self.ndim:
            return None
        number = 0
        for part, count in zip(parts, self.counts, strict=True):
            # Only the canonical spelling is a key: no sign, no leading zeros, no other digits.
            if not (part.isascii() and part.isdigit()) or (len(part) > 1 and part[0] == "0"):
                return None
            if len(part) > 19 or int(part) >= count:
                return None
            number = number * count + int(part)
        return number

    def to_json(self) -> dict[str, Any]:
        """The ``chunk_grid`` member of a Zarr v3 array document."""
        if self.is_regular:
            return {"name": "regular", "configuration": {"chunk_shape": list(self.edges)}}
        shapes = [
            edge if isinstance(edge, int) else [n if count == 1 else [n, count] for n, count in edge]
            for edge in self.edges
        ]
        return {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": shapes}}

    @classmethod
    def from_json(cls, shape: tuple[int, ...], grid: dict[str, Any]) -> ChunkGrid:
        """Read the ``chunk_grid`` member of a Zarr v3 array document.

        Raises
        ------
        FormatError
            If it is neither ``regular`` nor ``rectilinear`` with inline chunk shapes.
        UnsupportedError
            If it has more chunks of unequal length than are counted out.
        """
        try:
            name, configuration = grid["name"], grid["configuration"]
            if name == "regular":
                return cls.regular(shape, tuple(int(n) for n in configuration["chunk_shape"]))
            if name == "rectilinear" and configuration["kind"] == "inline":
                edges = tuple(
                    edge
                    if isinstance(edge, int)
                    else tuple((int(n), 1) if isinstance(n, int) else (int(n[0]), int(n[1])) for n in edge)
                    for edge in configuration["chunk_shapes"]
                )
                _check_runs(edges)
                return cls(shape=tuple(shape), edges=edges)
        except (KeyError, TypeError, IndexError, ValueError, OverflowError) as error:
            raise FormatError(f"chunk grid: cannot read {grid!r}: {error}") from error
        raise FormatError(f"chunk grid: unknown kind {name!r}; expected 'regular' or 'rectilinear' (inline)")


def _check_runs(edges: tuple[int | Runs, ...]) -> None:
    """Refuse chunks of unequal length that cannot be counted out in memory, or reach beyond an int64."""
    runs = [edge for edge in edges if not isinstance(edge, int)]
    count = sum(count for edge in runs for _, count in edge)
    if count > _MOST_RUNS:
        raise UnsupportedError(f"a rectilinear chunk grid with {count} chunks along its dimensions")
    if any(sum(length * count for length, count in edge) > _INT64_MAX for edge in runs):
        raise ValueError("chunks of unequal length reach beyond an int64")


def encode_runs(lengths: npt.ArrayLike) -> int | Runs:
    """Run-length encode chunk lengths; an ``int`` where all but a shorter last one are equal.

    A shorter last chunk may be written as a full one only where the chunk data really is padded to
    the full length; callers that hold unpadded data pass what the data is.
    """
    values = np.asarray(lengths, dtype=np.int64)
    if len(values) == 0:
        return 1
    change = np.flatnonzero(np.diff(values)) + 1
    firsts = np.concatenate(([0], change))
    counts = np.diff(np.concatenate((firsts, [len(values)])))
    if len(firsts) == 1:
        return int(values[0])
    return tuple((int(values[f]), int(c)) for f, c in zip(firsts, counts, strict=True))
