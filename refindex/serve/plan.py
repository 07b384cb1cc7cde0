"""What one selection of an array takes: which chunks, which requests, how each chunk is decoded. Reads no source.

A plan is made of columns: there is no Python object a chunk, but for large chunks of which only a part is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refindex.access.ranges import LOCAL, REMOTE, Merging, Requests, merge
from refindex.decode.decoder import Decoder
from refindex.errors import FormatError, ManifestError, UnsupportedError
from refindex.model.chunks import INLINE, ChunkTable
from refindex.model.manifest import Node
from refindex.serve.parts import Points, Runs, Selection, is_basic, points, runs
from refindex.storage import ManifestReader

type IntArray = npt.NDArray[np.int64]
type Part = Runs | Points

_WORTH = 0.75
"""A part of a chunk is read on its own where it takes less than this share of the chunk's bytes."""


_DECODED = 16 << 20
"""Bytes that one request decodes to, about, at most."""

_LEAST = 1 << 16
"""Requests grow to this many bytes, whatever they decode to."""


class Decoders(Protocol):
    """Where decoders come from: they are kept from one selection to the next."""

    def decoder(self, node: Node, encoding: int, shape: tuple[int, ...]) -> Decoder | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Chunks of an array, what is wanted of each, and where that goes.

    Parameters
    ----------
    chunks:
        Chunk numbers, in any order.
    inside:
        For each the selection in the chunk.
    outside:
        For each the selection in the result.
    partial:
        Whether no more than a part of the chunk is wanted, as far as that is known without looking at the selection.
    """

    chunks: IntArray
    inside: Sequence[Selection]
    outside: Sequence[Any]
    partial: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a selection is read.

    Parameters
    ----------
    node:
        The array.
    table:
        The references of the chunks that exist.
    position:
        For each reference where its chunk is among the places.
    absent:
        Places of chunks that do not exist.
    decoders, which:
        How chunks are decoded, and for each reference which of them it is.
    shapes:
        Shape of each reference's chunk in the array, ``(n, ndim)``.
    covered:
        For each reference whether the stored chunk, as it is, fills its place.
    parts:
        References of which only a part is read: which, and the number of its first range.
    row, offset:
        For each range that is read: its reference, and its first byte in the source.
    local, remote:
        The requests.
    """

    node: Node
    table: ChunkTable
    position: IntArray
    absent: IntArray
    decoders: tuple[Decoder, ...]
    which: IntArray
    shapes: IntArray
    covered: npt.NDArray[np.bool_]
    parts: dict[int, tuple[Part, int]]
    row: IntArray
    offset: IntArray
    length: IntArray
    local: Requests
    remote: Requests
    inline: IntArray

    @property
    def chunks(self) -> int:
        """Chunks of the selection that exist."""
        return len(self.table)

    @property
    def requests(self) -> int:
        """Ranges of sources that are read."""
        return len(self.local) + len(self.remote)

    @property
    def nbytes(self) -> int:
        """Bytes that are read from sources."""
        return self.local.nbytes + self.remote.nbytes

    @property
    def nbytes_referenced(self) -> int:
        """Bytes of those that are of the selected chunks: the rest lies between them."""
        return int(self.length.sum())

    @property
    def decoded_nbytes(self) -> int:
        """Bytes of all chunks once they are decoded."""
        sizes = np.array([decoder.nbytes for decoder in self.decoders], dtype=np.int64)
        return int(sizes[self.which].sum()) if len(self.which) else 0


def make_plan(
    reader: ManifestReader,
    node: Node,
    places: Places,
    decoders: Decoders,
    *,
    is_local: Callable[[int], bool],
    local: Merging = LOCAL,
    remote: Merging = REMOTE,
) -> Plan:
    """Plan how the chunks of a selection are read: one look-up in the manifest, whatever their number.

    Raises
    ------
    UnsupportedError
        If chunks are stored in a declared codec chain that is not decoded here.
    ManifestError
        If the manifest is damaged.
    """
    table, position, absent = _look_up(reader, node, places.chunks)
    _check(reader, node, table)
    shapes = _chunk_shapes(node, table.chunk)
    found, which = _choose(node, table, shapes, decoders)
    covered = np.zeros(len(table), dtype=bool)
    for number, decoder in enumerate(found):
        rows = which == number
        covered[rows] = decoder.covers(shapes[rows])
    here = _where(table.source, is_local)
    gaps = np.where(here, local.gap, remote.gap)
    parts: dict[int, Part] = {}
    plain = np.array([d.plain for d in found], dtype=bool)
    for large in np.flatnonzero(covered & plain[which] & (table.length > gaps) & (table.source != INLINE)).tolist():
        inside, decoder = places.inside[int(position[large])], found[int(which[large])]
        part = _part(inside, decoder, int(table.length[large]), int(gaps[large]))
        if part is not None:
            parts[large] = part
    row, offset, length, first = _ranges(table, parts, found, which)
    local, remote = (_divided(merging, table, found, which) for merging in (local, remote))
    near = here[row] if len(row) else np.zeros(0, dtype=bool)
    return Plan(
        node=node,
        table=table,
        position=position,
        absent=absent,
        decoders=found,
        which=which,
        shapes=shapes,
        covered=covered,
        parts={number: (part, first[number]) for number, part in parts.items()},
        row=row,
        offset=offset,
        length=length,
        local=_requests(table.source[row], offset, length, near, local),
        remote=_requests(table.source[row], offset, length, ~near, remote),
        inline=np.flatnonzero(table.source == INLINE),
    )


def _look_up(reader: ManifestReader, node: Node, chunks: IntArray) -> tuple[ChunkTable, IntArray, IntArray]:
    order = None
    if len(chunks) > 1 and not bool((chunks[1:] > chunks[:-1]).all()):
        order = np.argsort(chunks, kind="stable")
        chunks = chunks[order]
        if bool((chunks[1:] == chunks[:-1]).any()):
            raise UnsupportedError(f"/{node.path}: a chunk is selected twice in one plan")
    table = reader.find(node.path, chunks)
    if len(table) == len(chunks) and np.array_equal(table.chunk, chunks):
        position = np.arange(len(chunks), dtype=np.int64)
        absent = np.zeros(0, dtype=np.int64)
    else:
        position = np.searchsorted(chunks, table.chunk).astype(np.int64)
        asked = np.isin(table.chunk, chunks)
        if not bool(asked.all()):  # what was not asked for has no place
            table, position = table.take(asked), position[asked]
        missing = np.ones(len(chunks), dtype=bool)
        missing[position] = False
        absent = np.flatnonzero(missing).astype(np.int64)
    if order is not None:
        position, absent = order[position], order[absent]
    return table, position, absent


def _check(reader: ManifestReader, node: Node, table: ChunkTable) -> None:
    if not len(table):
        return
    source, encoding = table.source, table.encoding
    if (
        source.max() >= len(reader.sources)
        or encoding.max() >= len(node.encodings)
        or source.min() < INLINE
        or encoding.min() < -1
    ):
        raise ManifestError(
            f"{reader.url or 'manifest'}: chunks of /{node.path} refer to sources up to {source.max()} and encodings "
            f"up to {encoding.max()}, which the manifest does not have: it is damaged"
        )


def _chunk_shapes(node: Node, chunks: IntArray) -> IntArray:
    """Full shapes of chunks, ``(n, ndim)``."""
    grid = node.grid
    if grid.is_regular:
        return np.broadcast_to(np.array(grid.chunk_shape(), dtype=np.int64), (len(chunks), grid.ndim))
    coordinates = grid.coordinates(chunks)
    shapes = np.empty_like(coordinates)
    for axis, start in enumerate(grid.starts):
        shapes[:, axis] = start if isinstance(start, int) else np.diff(start)[coordinates[:, axis]]
    return shapes


def _choose(
    node: Node, table: ChunkTable, shapes: IntArray, decoders: Decoders
) -> tuple[tuple[Decoder, ...], IntArray]:
    """The decoders of all references, and for each which it is. Only declared ones depend on the chunk's shape."""
    found: list[Decoder] = []
    which = np.zeros(len(table), dtype=np.int64)
    for encoding in np.unique(table.encoding).tolist():
        rows = np.flatnonzero(table.encoding == encoding)
        groups = [rows]
        if encoding < 0 and not node.grid.is_regular:
            _, inverse = np.unique(shapes[rows], axis=0, return_inverse=True)
            groups = [rows[inverse.reshape(-1) == n] for n in range(int(inverse.max()) + 1)]
        for group in groups:
            decoder = decoders.decoder(node, encoding, tuple(shapes[group[0]].tolist()))
            if decoder is None:
                raise UnsupportedError(f"/{node.path}: its declared codecs are not decoded here")
            which[group] = len(found)
            found.append(decoder)
    return tuple(found), which


def _where(source: npt.NDArray[np.int32], is_local: Callable[[int], bool]) -> npt.NDArray[np.bool_]:
    """For each reference whether its source is local (inline ones are)."""
    if not len(source):
        return np.zeros(0, dtype=bool)
    numbers, inverse = np.unique(source, return_inverse=True)
    return np.array([n == INLINE or is_local(n) for n in numbers.tolist()], dtype=bool)[inverse.reshape(-1)]


def _part(inside: Selection, decoder: Decoder, length: int, gap: int) -> Part | None:
    """The part of a plain chunk to read, None for all of it."""
    element, shape = decoder.element, decoder.encoding.shape
    if element is None or length != decoder.nbytes or len(inside) != len(shape):
        return None
    if is_basic(inside):
        part = runs(inside, shape, element.itemsize, gap)
        if math.prod(part.shape) == 0 or len(part.offsets) * part.span > _WORTH * length:
            return None
        return part
    found = points(inside, shape, element.itemsize, gap)
    if found is None:
        return None
    begins, ends = found.at[found.first[:-1]], found.at[found.first[1:] - 1] + element.itemsize
    if int(ends[-1]) > length or int((ends - begins).sum()) > _WORTH * length:
        return None
    return found


def _divided(merging: Merging, table: ChunkTable, decoders: Sequence[Decoder], which: IntArray) -> Merging:
    """Smaller requests where little is stored for much: what one thread decodes at a time takes memory, too."""
    stored = int(table.length.sum())
    decoded = int(np.array([d.nbytes for d in decoders], dtype=np.int64)[which].sum()) if len(which) else 0
    limit = min(merging.limit, max(_LEAST, stored * _DECODED // max(1, decoded)))
    return dataclasses.replace(merging, limit=limit)


def _ranges(
    table: ChunkTable, parts: dict[int, Part], decoders: Sequence[Decoder], which: IntArray
) -> tuple[IntArray, IntArray, IntArray, dict[int, int]]:
    """References, first bytes and lengths of all ranges, and where those of each part begin, which are together."""
    whole = table.source != INLINE
    if not parts:
        row = np.flatnonzero(whole).astype(np.int64)
        return row, table.offset[row], table.length[row], {}
    whole[list(parts)] = False
    row = np.flatnonzero(whole).astype(np.int64)
    rows, offsets, lengths = [row], [table.offset[row]], [table.length[row]]
    first, count = {}, len(row)
    for number, part in parts.items():
        if isinstance(part, Runs):
            begins = part.offsets
            sizes = np.full(len(begins), part.span, dtype=np.int64)
        else:
            element = decoders[int(which[number])].element
            if element is None:
                raise FormatError("a part of a chunk whose elements are not stored as they are")
            begins = part.at[part.first[:-1]]
            sizes = part.at[part.first[1:] - 1] + element.itemsize - begins
        first[number] = count
        count += len(begins)
        rows.append(np.full(len(begins), number, dtype=np.int64))
        offsets.append(table.offset[number] + begins)
        lengths.append(sizes)
    return np.concatenate(rows), np.concatenate(offsets), np.concatenate(lengths), first


def _requests(
    source: npt.NDArray[np.int32], offset: IntArray, length: IntArray, chosen: npt.NDArray[np.bool_], merging: Merging
) -> Requests:
    """Requests for the chosen ranges; their ``order`` numbers all ranges."""
    numbers = np.flatnonzero(chosen)
    requests = merge(source[numbers].astype(np.int64), offset[numbers], length[numbers], merging)
    return requests if len(numbers) == len(chosen) else dataclasses.replace(requests, order=numbers[requests.order])
