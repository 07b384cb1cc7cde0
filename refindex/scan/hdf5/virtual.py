"""Virtual datasets: chunks of other datasets, by reference where a mapping keeps them whole.

A mapping of a block onto a block that begins and ends where chunks of the source do becomes references into the
source's file, with the source's encodings. What is not so (strides, points, cut chunks, blocks one above the
other, numbered or growing sources) is read through libhdf5 and kept in the manifest, up to a size.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
from h5py import h5d

from refindex.errors import UnsupportedError
from refindex.model.chunks import ChunkTable
from refindex.model.dtype import Leaf, StoredType, same_bytes
from refindex.model.encoding import Encoding, bytes_codec, native_codecs
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Status
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.plan import Plan, plan_array, type_reason
from refindex.scan.hdf5.stored import Stored, inline
from refindex.scan.hdf5.types import read_kind
from refindex.scan.hdf5.values import cut_values
from refindex.scan.hdf5.virtual_cut import cut_block, padded
from refindex.scan.hdf5.virtual_grid import Irregular, Placed, any_overlap, common_grid, pair_axes
from refindex.scan.hdf5.virtual_sources import (
    Box,
    Mapping,
    box_of,
    read_mappings,
    require_sources,
    source_dataset,
)

type IntArray = npt.NDArray[np.int64]

ASSEMBLED_NBYTES = 64 << 20
"""Virtual datasets that cannot be referenced are kept in the manifest up to this many bytes."""


@dataclass(slots=True, kw_only=True)
class _Table:
    """References in the making: first elements of the chunks in the virtual array, and columns."""

    encodings: dict[Encoding, int] = field(default_factory=dict)
    origin: list[IntArray] = field(default_factory=list)
    source: list[IntArray] = field(default_factory=list)
    offset: list[IntArray] = field(default_factory=list)
    length: list[IntArray] = field(default_factory=list)
    encoding: list[IntArray] = field(default_factory=list)


def store_virtual(dataset: h5d.DatasetID, plan: Plan, index: FileIndex, *, small: bool) -> Stored:
    """References into the files that a virtual dataset is made of, or its values.

    Raises
    ------
    UnsupportedError
        If a source is missing, or it can be kept neither as references nor, for its size, as values.
    """
    why = ""
    if not small and 0 not in plan.shape:
        try:
            return _references(dataset, plan, index)
        except Irregular as error:
            why = str(error)
    if plan.nbytes > ASSEMBLED_NBYTES:
        raise UnsupportedError(
            f"a virtual dataset of {plan.nbytes} bytes: {why}. Values are kept in the manifest up to "
            f"{ASSEMBLED_NBYTES} bytes"
        )
    require_sources(index, dataset)
    if 0 in plan.shape:
        grid, table = cut_values(np.empty(plan.shape, dtype=plan.served))
        return Stored(grid=grid, codecs=[bytes_codec(plan.served)], chunks=table, status=Status.INLINED, reason=why)
    whole = inline(dataset, plan)
    values = np.frombuffer(whole.chunks.inline_bytes(0), dtype=plan.served).reshape(plan.shape)
    grid, table = cut_values(values)
    reason = f"a virtual dataset, put together by libhdf5: {why}" if why else "a virtual dataset"
    return replace(whole, grid=grid, chunks=table, reason=reason)


def _references(dataset: h5d.DatasetID, plan: Plan, index: FileIndex) -> Stored:
    shape = tuple(dataset.shape)
    if not shape:
        raise Irregular("it is a scalar")
    placed: list[Placed] = []
    table = _Table()
    for (filename, name), members in _by_source(read_mappings(plan.creation)).items():
        origin, found = source_dataset(index, filename, name)
        for mapping in members:
            if mapping.is_empty:
                continue
            target, box = box_of(mapping.target, shape), box_of(mapping.source, tuple(found.shape))
            if target is None or box is None:
                raise Irregular("a mapping takes strides, points or several blocks")
            if not target.within(shape) or not box.within(tuple(found.shape)):
                raise Irregular("a mapping reaches beyond its source, or beyond the virtual dataset")
            if math.prod(target.shape) != math.prod(box.shape):
                raise Irregular("a mapping has selections of different size")
            placed.append(_place(dataset, plan, index, origin, found, box, target, table))
    if any_overlap(placed):
        raise Irregular("mappings lie one above the other")
    edges = common_grid(shape, placed)
    grid = ChunkGrid(shape=plan.shape, edges=(*edges, *plan.type_dims))
    return _stored(plan, grid, table, len(shape))


def _by_source(mappings: list[Mapping]) -> dict[tuple[str, str], list[Mapping]]:
    """Mappings by source, so that each is opened once."""
    result: dict[tuple[str, str], list[Mapping]] = {}
    for mapping in mappings:
        if mapping.is_pattern:
            raise Irregular("its sources are numbered (%b)")
        if mapping.is_unlimited:
            raise Irregular("a mapping is unlimited")
        result.setdefault((mapping.filename, mapping.dataset), []).append(mapping)
    return result


def _place(
    dataset: h5d.DatasetID,
    plan: Plan,
    index: FileIndex,
    origin: FileIndex,
    source: h5d.DatasetID,
    box: Box,
    target: Box,
    table: _Table,
) -> Placed:
    """Add the chunks of one mapping to the table."""
    kind = read_kind(source.get_type())
    # libhdf5 converts where types differ, enumerations by the names of their members: only byte order is done here.
    if kind.stored is None or not (
        source.get_type().equal(dataset.get_type())
        or (not kind.flags and not plan.kind.flags and _differ_in_byte_order(kind.stored, plan.stored))
    ):
        raise Irregular("a source has another type")
    theirs = plan_array(source, kind, kind.stored)
    axes = pair_axes(target.shape, box.shape)
    cut = cut_block(theirs, origin, source, box)
    if not cut.complete and _fill_bytes(theirs, plan) != _fill_bytes(plan, plan):
        raise Irregular("a source has unwritten chunks, and another fill value")
    ndim = len(box.shape)
    for axis in set(range(ndim)) - {axis for axis in axes if axis is not None}:
        if cut.steps[axis] != 1:
            raise Irregular("a mapping cuts chunks of its source")

    def moved(values: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(1 if axis is None else values[axis] for axis in axes)

    steps = moved(cut.steps)
    numbers = []
    for encoding in cut.encodings:
        stored_shape = (*moved(encoding.shape[:ndim]), *encoding.shape[ndim:])
        numbers.append(table.encodings.setdefault(replace(encoding, shape=stored_shape), len(table.encodings)))
    place = np.zeros((len(cut.place), len(axes)), dtype=np.int64)
    for axis, their_axis in enumerate(axes):
        if their_axis is not None:
            place[:, axis] = cut.place[:, their_axis]
    number = 0 if origin.url == index.url else index.add_source(origin.sources[0])
    table.origin.append(place * np.array(steps) + np.array(target.start))
    table.source.append(np.full(len(place), number, dtype=np.int64))
    table.offset.append(cut.offset)
    table.length.append(cut.length)
    table.encoding.append(np.array(numbers, dtype=np.int64)[cut.encoding])
    return Placed(start=target.start, shape=target.shape, steps=steps)


def _differ_in_byte_order(theirs: StoredType, ours: StoredType) -> bool:
    """Whether elements are numbers of one type but for the byte order."""
    return (
        isinstance(theirs, Leaf)
        and isinstance(ours, Leaf)
        and np.dtype(theirs.dtype).kind in "iuf"
        and np.dtype(theirs.dtype).newbyteorder("=") == np.dtype(ours.dtype).newbyteorder("=")
    )


def _fill_bytes(plan: Plan, like: Plan) -> bytes:
    return np.asarray(plan.fill, dtype=plan.served).astype(like.served).tobytes()


def _stored(plan: Plan, grid: ChunkGrid, table: _Table, ndim: int) -> Stored:
    def column(parts: list[IntArray]) -> IntArray:
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    starts = np.concatenate(table.origin) if table.origin else np.zeros((0, ndim), dtype=np.int64)
    number = grid.index_of_elements(padded(starts, plan))
    rows = column(table.encoding)
    encodings = tuple(table.encodings)
    codecs = [bytes_codec(plan.served)]
    native = [native_codecs(encoding, plan.served) for encoding in encodings]
    if len(rows):
        majority = native[Counter(rows.tolist()).most_common(1)[0][0]]
        codecs = majority if majority is not None else codecs
    adapted = _count_adapted(grid, number, rows, encodings, [chain == codecs for chain in native])
    reasons = []
    if not same_bytes(plan.stored, plan.served):
        reasons.append(type_reason(plan))
    elif adapted:
        reasons.append(
            f"{adapted} of {len(rows)} chunks of its sources are cut at a seam, or encoded differently from the others"
        )
    return Stored(
        grid=grid,
        codecs=codecs,
        encodings=encodings,
        chunks=ChunkTable.from_columns(
            chunk=number,
            source=column(table.source),
            offset=column(table.offset),
            length=column(table.length),
            encoding=rows,
        ),
        status=Status.ADAPTED if reasons else Status.NATIVE,
        reason="; ".join(["a virtual dataset", *reasons]),
    )


def _count_adapted(
    grid: ChunkGrid, number: IntArray, rows: IntArray, encodings: tuple[Encoding, ...], native: list[bool]
) -> int:
    """Chunks that are not passed through as they are."""
    if not len(rows):
        return 0
    stored = np.array([encoding.shape for encoding in encodings], dtype=np.int64)[rows]
    coordinates = grid.coordinates(number)
    same = np.array(native, dtype=bool)[rows]
    for axis, start in enumerate(grid.starts):
        at = coordinates[:, axis]
        wanted = start if isinstance(start, int) else start[at + 1] - start[at]
        same &= stored[:, axis] == wanted
    return int((~same).sum())
