"""The chunk grid of a virtual dataset, from the chunks of its sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refindex.model.grid import Runs, encode_runs

type IntArray = npt.NDArray[np.int64]

_MAX_CELLS = 1 << 26
_MAX_EDGES = 1 << 24


class Irregular(Exception):  # noqa: N818 -- not an error: says why something must be done another way
    """Why chunks of the sources cannot be chunks of the virtual dataset."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A block of the virtual dataset, and the lengths of the chunks that it is made of, from its first element on."""

    start: tuple[int, ...]
    shape: tuple[int, ...]
    steps: tuple[int, ...]


def pair_axes(target: tuple[int, ...], source: tuple[int, ...]) -> tuple[int | None, ...]:
    """For each dimension of a block, the dimension of the source's block that it is; None where it has length 1.

    Elements are mapped in C order: dimensions of length 1 may come and go, all others must be the same.
    """
    if target == source:
        return tuple(range(len(target)))
    theirs = [axis for axis, n in enumerate(source) if n != 1]
    if [n for n in target if n != 1] != [source[axis] for axis in theirs]:
        raise Irregular("a mapping changes the shape of its source")
    rest = iter(theirs)
    return tuple(None if n == 1 else next(rest) for n in target)


def any_overlap(placed: Sequence[Placed]) -> bool:
    """Whether two blocks have an element in common: libhdf5 lets the later mapping win."""
    if len(placed) < 2:
        return False
    starts = np.array([block.start for block in placed], dtype=np.int64)
    stops = starts + np.array([block.shape for block in placed], dtype=np.int64)
    edges = [np.unique(np.concatenate((starts[:, axis], stops[:, axis]))) for axis in range(starts.shape[1])]
    counts = tuple(len(edge) - 1 for edge in edges)
    if math.prod(counts) > _MAX_CELLS:
        raise Irregular("its mappings are too many to compare")
    first = np.stack([np.searchsorted(edge, starts[:, axis]) for axis, edge in enumerate(edges)], axis=1)
    last = np.stack([np.searchsorted(edge, stops[:, axis]) for axis, edge in enumerate(edges)], axis=1)
    taken = np.zeros(counts, dtype=bool)
    for low, high in zip(first.tolist(), last.tolist(), strict=True):
        cells = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        if taken[cells].any():
            return True
        taken[cells] = True
    return False


def common_grid(shape: tuple[int, ...], placed: Sequence[Placed]) -> tuple[int | Runs, ...]:
    """Chunk edges of which every block's chunks are chunks.

    Raises
    ------
    Irregular
        If chunks of one block end within those of another.
    """
    return tuple(
        _edges(extent, [(block.start[axis], block.shape[axis], block.steps[axis]) for block in placed])
        for axis, extent in enumerate(shape)
    )


def _edges(extent: int, blocks: list[tuple[int, int, int]]) -> int | Runs:
    """Edges along one dimension, from blocks of (start, length, step)."""
    spans = sorted(set(blocks))
    if not spans:
        return max(1, extent)
    if sum(-(-length // step) for _, length, step in spans) > _MAX_EDGES:
        raise Irregular("its blocks have too many chunks")
    cuts = [np.append(np.arange(start, start + length, step), start + length) for start, length, step in spans]
    bounds = np.unique(np.concatenate([*cuts, np.array([0, extent])]))
    for cut in cuts:
        if np.searchsorted(bounds, cut[-1]) - np.searchsorted(bounds, cut[0]) != len(cut) - 1:
            raise Irregular("chunks of its sources do not end at the same places")
    lengths = np.diff(bounds)
    longest = max(step for _, _, step in spans)
    if len(lengths) == 1:
        return max(longest, extent)
    if int(lengths.max()) > longest:
        lengths = _split_gaps(lengths, longest)
    if np.all(lengths[:-1] == lengths[0]) and lengths[-1] <= lengths[0]:
        return int(lengths[0])
    return encode_runs(lengths)


def _split_gaps(lengths: IntArray, step: int) -> IntArray:
    """Cut what no mapping covers into chunks of a usual length: they do not exist, but have to be numbered."""
    pieces: list[IntArray] = []
    for length in lengths.tolist():
        whole, rest = divmod(length, step)
        if length <= step:
            pieces.append(np.array([length], dtype=np.int64))
        elif whole > _MAX_EDGES:
            return lengths
        else:
            pieces.append(np.array([step] * whole + [rest] * bool(rest), dtype=np.int64))
    return np.concatenate(pieces)
