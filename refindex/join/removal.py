"""An archive without some of its files."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.access.options import StorageOptions
from refindex.errors import JoinError, NotFoundError, RefindexError, UnsupportedError
from refindex.join.axis import Use
from refindex.join.barriers import Findings
from refindex.join.dimensions import DimensionKeys, JoinedDim
from refindex.join.kept import Kept
from refindex.join.member import Member, Variants
from refindex.join.options import JoinOptions
from refindex.join.references import AxisCache, join_references, joined_node
from refindex.join.small import INLINE_NBYTES, is_small, join_values
from refindex.join.values import array_values
from refindex.join.variables import plan_array
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Array, Manifest, Placement

type IntArray = npt.NDArray[np.int64]
type Cell = tuple[tuple[int, int], ...]
"""Where a source lies: start and stop along each joined dimension."""


def without(
    manifest: Manifest,
    numbers: Collection[int],
    *,
    replaced: bool = False,
    storage_options: StorageOptions = None,
) -> Manifest:
    """The archive without some of its sources, shorter along the dimension along which they were joined.

    Where several dimensions were joined, a place that loses its file while others stay beside it reads as fill values.
    What is the same in all files is stored in one of them: if that one goes, it is read, and kept in the manifest; if
    it is ``replaced``, it is left out, since what comes in its place brings it along.

    Raises
    ------
    NotFoundError
        If nothing would be left.
    UnsupportedError
        If the archive is not joined, or was merged of files with different variables: which values came from which
        file is not known then. If files overlap, of which only one is in the archive at each place. If what all files
        share was stored in one that goes, and is large or cannot be read.
    """
    record = manifest.groups[""].joined or {}
    names = ", ".join(urls.display(manifest.sources[n].url) for n in sorted(numbers))
    if "options" not in record:
        raise UnsupportedError(f"{names}: the archive is not joined of files; scan those anew that are to stay")
    if JoinOptions.from_json(record["options"]).merge:
        raise UnsupportedError(
            f"{names}: the archive is merged of different variables; scan those anew that are to stay"
        )
    if record.get("overlapping"):
        raise UnsupportedError(
            f"{names}: files of the archive overlap, and what others have in its place is not in the archive; scan "
            "those anew that are to stay"
        )
    gone = [p for p in manifest.placements if p.source in numbers]
    stay = [p for p in manifest.placements if p.source not in numbers]
    if not stay:
        raise NotFoundError(f"nothing would be left of the archive without {names}")
    unplaced = np.array(sorted(set(numbers) - {p.source for p in gone}), dtype=np.int64)
    if any(np.isin(array.chunks.source, unplaced).any() for array in manifest.arrays.values()):
        raise UnsupportedError(
            f"{names}: not all of them lie along a joined dimension, and there are references into them; scan those "
            "anew that are to stay"
        )
    keys = [str(dim["key"]) for dim in record["dims"]]
    dims = {key: _shortened(manifest, key, stay) for key in keys}
    lost = set(_cells(gone, keys)) - set(_cells(stay, keys))
    member = Member.of_file(manifest, "the archive", storage_options)
    variants = {path: Variants.of([member], path) for path in member.arrays}
    resolved = DimensionKeys(variants)
    order = sorted(set(range(len(manifest.sources))) - set(numbers))
    renumber = np.full(len(manifest.sources), -1, dtype=np.int64)
    renumber[order] = np.arange(len(order))
    arrays = {}
    findings = Findings()
    cache, kept = AxisCache(), Kept(rows=sys.maxsize)  # the archive that they are taken from is in memory
    for path, array in manifest.arrays.items():
        axes = [dims.get(key) for key in resolved.of(path, array.dims)]
        joined = [dim for dim in axes if dim is not None]
        table, shared = _without_rows(array, numbers, axes, dims, lost)
        if shared and replaced and not joined:
            continue
        holes = bool(lost) and len(dims) > 1 and len(joined) == len(dims)
        plan = plan_array(path, variants[path], [member], findings, missing=holes)
        if plan is None:
            continue
        held = replace(manifest, arrays={**manifest.arrays, path: replace(array, chunks=table)})
        one = [Member.of_file(held, "the archive", storage_options)]
        use = [Use(member=0, kind=0, tracks=tuple(dim.tracks[0] for dim in joined))]
        if holes:
            # Each place that stays by itself: what is absent there reads as its file says, the holes as missing.
            use = [
                Use(member=0, kind=0, tracks=_tracks(joined, keys, cell)) for cell in sorted(set(_cells(stay, keys)))
            ]
        fill = plan.missing(0) if holes else plan.fill_of(0)
        shape = [n if dim is None else dim.size for n, dim in zip(array.shape, axes, strict=True)]
        if shared or is_small(plan, use, one, shape):
            values = _kept_values(member, path, names) if shared else array_values(one[0], path)
            plan.converted[0] = _without_values(plan.convert(values, 0), axes, keys, lost, fill)
            made = join_values(plan, use, one, axes, fill, findings)
        else:
            made = join_references(plan, use, one, axes, {0: renumber}, fill, cache, kept)
        if made is None:
            continue
        node = joined_node(plan, made, fill)
        arrays[path] = Array(
            path=path,
            document=node.document,
            encodings=node.encodings,
            attribute_types=node.attribute_types,
            chunks=kept.table(made.chunks),
        ).knowing(json=node.json, grid=made.grid)
    if findings.barriers:
        raise JoinError(findings.barriers[0])
    return replace(
        manifest,
        arrays=arrays,
        sources=tuple(manifest.sources[n] for n in order),
        placements=_moved(stay, dims, renumber),
    )


def _shortened(manifest: Manifest, key: str, stay: Sequence[Placement]) -> JoinedDim:
    """A joined dimension of which only the parts of files that stay are left."""
    here = [p for p in manifest.placements if p.dim == key]
    edges = sorted({edge for p in here for edge in (p.start, p.start + p.length)} | {0})
    parts = list(pairwise(edges))
    left = {p.start: p.start + p.length for p in stay if p.dim == key}
    covered = np.zeros(edges[-1], dtype=bool)
    for start, stop in left.items():
        covered[start:stop] = True
    kept = [n for n, (start, _) in enumerate(parts) if covered[start]]
    length = np.array([parts[n][1] - parts[n][0] for n in kept], dtype=np.int64)
    return JoinedDim(
        key=key,
        lengths=tuple(stop - start for start, stop in parts),
        tracks=(tuple((n, start) for n, (start, _) in enumerate(parts)),),
        segment=np.array(kept, dtype=np.int64),
        start=np.zeros(len(kept), dtype=np.int64),
        length=length,
        at=np.cumsum(length) - length,
    )


def _cells(placements: Sequence[Placement], keys: Sequence[str]) -> list[Cell]:
    """Where sources lie in all joined dimensions at once."""
    by_source: dict[int, dict[str, list[tuple[int, int]]]] = {}
    for p in placements:
        by_source.setdefault(p.source, {}).setdefault(p.dim, []).append((p.start, p.start + p.length))
    cells: list[Cell] = []
    for parts in by_source.values():
        partial: list[Cell] = [()]
        for key in keys:
            partial = [(*head, part) for head in partial for part in parts.get(key, [(0, np.iinfo(np.int64).max)])]
        cells += partial
    return cells


def _tracks(joined: Sequence[JoinedDim], keys: Sequence[str], cell: Cell) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The parts of joined dimensions that are in one place."""
    spans = dict(zip(keys, cell, strict=True))
    return tuple(
        tuple((n, start) for n, start in dim.tracks[0] if spans[dim.key][0] <= start < spans[dim.key][1])
        for dim in joined
    )


def _without_rows(
    array: Array,
    numbers: Collection[int],
    axes: Sequence[JoinedDim | None],
    dims: Mapping[str, JoinedDim],
    lost: Collection[Cell],
) -> tuple[ChunkTable, bool]:
    """References without those into files that go, or that lie where these were; whether some lay at places that stay.

    The latter are of values that several files have: of a constant, or of a series that all tiles share.
    """
    table = array.chunks
    away = np.isin(table.source, np.array(sorted(numbers), dtype=table.source.dtype))
    at = {dim.key: axis for axis, dim in enumerate(axes) if dim is not None}
    origins: dict[str, IntArray] = {}
    coordinates = array.grid.coordinates(table.chunk) if at else np.zeros((len(table), 0), dtype=np.int64)
    for key, axis in at.items():
        start = array.grid.starts[axis]
        origins[key] = coordinates[:, axis] * start if isinstance(start, int) else start[coordinates[:, axis]]
    stays = np.ones(len(table), dtype=bool)
    for key, origin in origins.items():
        dim = dims[key]
        kept = np.zeros(sum(dim.lengths), dtype=bool)
        for segment, start in (dim.tracks[0][n] for n in dim.segment.tolist()):
            kept[start : start + dim.lengths[segment]] = True
        stays &= kept[origin]
    if len(dims) > 1 and set(dims) <= set(at):
        for cell in lost:
            inside = np.ones(len(table), dtype=bool)
            for key, (low, high) in zip(dims, cell, strict=True):
                # A chunk that was rewritten from several files stays; only its parts outside are served.
                inside &= (origins[key] >= low) & (_ends(array, at[key], coordinates, origins[key]) <= high)
            away |= inside
            stays &= ~inside
    return (table.take(np.flatnonzero(~away)) if away.any() else table), bool(np.any(away & stays))


def _ends(array: Array, axis: int, coordinates: IntArray, origin: IntArray) -> IntArray:
    """Where chunks end along a dimension, at the array's end at most."""
    start = array.grid.starts[axis]
    end = origin + start if isinstance(start, int) else start[coordinates[:, axis] + 1]
    return np.asarray(np.minimum(end, array.shape[axis]))


def _kept_values(member: Member, path: str, names: str) -> npt.NDArray[Any]:
    """The values of an array that is stored in a file that goes, but is one of all files."""
    node = member.arrays[path]
    nbytes = math.prod(node.shape) * (node.dtype.itemsize if node.dtype is not None else 1)
    if nbytes > INLINE_NBYTES:
        raise UnsupportedError(
            f"{names}: /{path} is stored there for all files, and too large ({nbytes} bytes) to be kept in the "
            "archive; scan those anew that are to stay"
        )
    try:
        return array_values(member, path)
    except RefindexError as error:
        raise UnsupportedError(
            f"{names}: /{path} is stored there for all files, and cannot be read any more ({error}); scan those anew "
            "that are to stay"
        ) from error


def _without_values(
    values: npt.NDArray[Any], axes: Sequence[JoinedDim | None], keys: Sequence[str], lost: Collection[Cell], fill: Any
) -> npt.NDArray[Any]:
    """Values with the fill value where a file goes and others stay beside it."""
    names = {dim.key: axis for axis, dim in enumerate(axes) if dim is not None}
    if len(keys) < 2 or not set(keys) <= set(names):
        return values
    out = values.copy()
    for cell in lost:
        region = [slice(None)] * values.ndim
        for key, (start, stop) in zip(keys, cell, strict=True):
            region[names[key]] = slice(start, stop)
        out[tuple(region)] = fill
    return out


def _moved(stay: Sequence[Placement], dims: dict[str, JoinedDim], renumber: IntArray) -> tuple[Placement, ...]:
    """Where the files that stay lie now."""
    out = []
    for p in stay:
        dim = dims[p.dim]
        at = {start: n for n, start in dim.tracks[0]}
        place = dict(zip(dim.segment.tolist(), dim.at.tolist(), strict=True))
        start = place[at[p.start]]
        out.append(replace(p, source=int(renumber[p.source]), start=int(start)))
    return tuple(out)
