"""What one selection of an array takes: which chunks, which requests, how each chunk is decoded. Reads no source.

A plan is made of columns: there is no Python object a chunk, but for large chunks of which only a part is read.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.access.ranges import LOCAL, REMOTE, Merging, Requests, merge
from refindex.decode.decoder import Decoder
from refindex.errors import FormatError, ManifestError, UnsupportedError
from refindex.model.chunks import INLINE, ChunkTable
from refindex.model.manifest import Node
from refindex.serve.parts import Points, Runs, Selection, is_basic, points, runs
from refindex.serve.places import Places
from refindex.storage import ManifestReader

type IntArray = npt.NDArray[np.int64]
type Part = Runs | Points

WORTH = 0.75
"""A part of a chunk is read on its own where it takes less than this share of the chunk's bytes."""


_DECODED = 16 << 20
"""Bytes that one request decodes to, about, at most."""

_LARGE, _FAR = 16 << 20, 1 << 62
"""Bytes, and an offset, beyond which a range is compared with the size of its source before it is read."""

_LEAST = 1 << 16
"""Requests grow to this many bytes, whatever they decode to."""


class Decoders(Protocol):
    """Where decoders come from: they are kept from one selection to the next."""

    def decoder(self, node: Node, encoding: int, shape: tuple[int, ...]) -> Decoder | None: ...


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
    parts, part:
        What is read of references of which only a part is read, and for each reference which of them it is, -1 for all.
    first:
        For each reference of which a part is read the number of its first range.
    row, offset:
        For each range that is read: its reference, and its first byte in the source.
    local, remote:
        The requests.
    inline:
        References whose bytes are in the manifest.
    limit:
        Bytes of local requests that one thread reads at a time, about.
    """

    node: Node
    table: ChunkTable
    position: IntArray
    absent: IntArray
    decoders: tuple[Decoder, ...]
    which: IntArray
    shapes: IntArray
    covered: npt.NDArray[np.bool_]
    parts: tuple[Part, ...]
    part: IntArray
    first: IntArray
    row: IntArray
    offset: IntArray
    length: IntArray
    local: Requests
    remote: Requests
    inline: IntArray
    limit: int

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
    check_table(reader, node, table)
    shapes = _chunk_shapes(node, table.chunk)
    found, which = _choose(node, table, shapes, decoders)
    covered = np.zeros(len(table), dtype=bool)
    for number, decoder in enumerate(found):
        rows = which == number
        covered[rows] = decoder.covers(shapes[rows])
    here = _where(table.source, is_local)
    gaps = np.where(here, local.gap, remote.gap)
    plain = np.array([d.plain for d in found], dtype=bool)
    large = covered & plain[which] & (table.length > gaps) & (table.source != INLINE)
    if table.checksum is not None:
        large &= table.checksum < 0  # a checksum is of all bytes of a chunk
    parts, part = _parts(table, places, position, np.flatnonzero(large), found, which, gaps)
    row, offset, length, first = _ranges(table, parts, part, found, which)
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
        parts=parts,
        part=part,
        first=first,
        row=row,
        offset=offset,
        length=length,
        local=_requests(table.source[row], offset, length, near, local),
        remote=_requests(table.source[row], offset, length, ~near, remote),
        inline=np.flatnonzero(table.source == INLINE),
        limit=local.limit,
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


def check_table(reader: ManifestReader, node: Node, table: ChunkTable) -> None:
    """Raise ManifestError if references are to sources or encodings that there are none of."""
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
    check_ends(reader, node, table)


def check_ends(reader: ManifestReader, node: Node, table: ChunkTable) -> None:
    """Raise ManifestError for a large or a distant range that its source does not have: memory would be taken for it.

    All others are found out when they are read.
    """
    if not len(table) or (int(table.length.max()) <= _LARGE and int(table.offset.max()) <= _FAR):
        return
    rows = np.flatnonzero((table.source != INLINE) & ((table.length > _LARGE) | (table.offset > _FAR)))
    numbers, inverse = np.unique(table.source[rows], return_inverse=True)
    sizes = np.array([reader.sources[number].size for number in numbers.tolist()], dtype=np.int64)[inverse]
    over = table.offset[rows] > sizes - table.length[rows]
    if over.any():
        row = int(rows[np.argmax(over)])
        source = reader.sources[int(table.source[row])]
        raise ManifestError(
            f"{reader.url or 'manifest'}: /{node.path} chunk {int(table.chunk[row])} refers to "
            f"{int(table.length[row])} bytes at {int(table.offset[row])} of {urls.display(source.url)}, which had "
            f"{source.size} when it was scanned: the manifest is damaged"
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


def _parts(
    table: ChunkTable,
    places: Places,
    position: IntArray,
    rows: IntArray,
    decoders: Sequence[Decoder],
    which: IntArray,
    gaps: IntArray,
) -> tuple[tuple[Part, ...], IntArray]:
    """The parts of plain chunks to read instead of all, and for each reference which part it is, -1 for all of it."""
    found: list[Part] = []
    part = np.full(len(table), -1, dtype=np.int64)
    if not len(rows):
        return (), part
    groups: list[IntArray] = [rows[at : at + 1] for at in range(len(rows))] if places.layout is None else [rows]
    if places.layout is not None and len(rows) > 1:
        # Of the same decoder, selection, length and kind of source: what is read of one is what is read of all.
        same = np.stack((places.layout.kinds[position[rows]], which[rows], gaps[rows], table.length[rows]))
        if bool((same != same[:, :1]).any()):
            _, inverse = np.unique(same, axis=1, return_inverse=True)
            order = np.argsort(inverse.reshape(-1), kind="stable")
            groups = np.split(rows[order], np.flatnonzero(np.diff(inverse.reshape(-1)[order])) + 1)
    for group in groups:
        row = int(group[0])
        one = part_of(
            places.inside[int(position[row])], decoders[int(which[row])], int(table.length[row]), int(gaps[row])
        )
        if one is not None:
            part[group] = len(found)
            found.append(one)
    return tuple(found), part


def part_of(inside: Selection, decoder: Decoder, length: int, gap: int) -> Part | None:
    """The part of a plain chunk to read, None for all of it."""
    element, shape = decoder.element, decoder.encoding.shape
    if element is None or length != decoder.nbytes or len(inside) != len(shape):
        return None
    if is_basic(inside):
        part = runs(inside, shape, element.itemsize, gap)
        if math.prod(part.shape) == 0 or len(part.offsets) * part.span > WORTH * length:
            return None
        return part
    found = points(inside, shape, element.itemsize, gap)
    if found is None:
        return None
    begins, ends = found.at[found.first[:-1]], found.at[found.first[1:] - 1] + element.itemsize
    if int(ends[-1]) > length or int((ends - begins).sum()) > WORTH * length:
        return None
    return found


def _divided(merging: Merging, table: ChunkTable, decoders: Sequence[Decoder], which: IntArray) -> Merging:
    """Smaller requests where little is stored for much: what one thread decodes at a time takes memory, too."""
    stored = int(table.length.sum())
    decoded = int(np.array([d.nbytes for d in decoders], dtype=np.int64)[which].sum()) if len(which) else 0
    limit = min(merging.limit, max(_LEAST, stored * _DECODED // max(1, decoded)))
    return dataclasses.replace(merging, limit=limit)


def _ranges(
    table: ChunkTable, parts: Sequence[Part], part: IntArray, decoders: Sequence[Decoder], which: IntArray
) -> tuple[IntArray, IntArray, IntArray, IntArray]:
    """References, first bytes and lengths of all ranges, and where those of each part begin, which are together."""
    row = np.flatnonzero((table.source != INLINE) & (part < 0)).astype(np.int64)
    first = np.full(len(table), -1, dtype=np.int64)
    if not parts:
        return row, table.offset[row], table.length[row], first
    rows, offsets, lengths = [row], [table.offset[row]], [table.length[row]]
    count = len(row)
    order = np.argsort(part, kind="stable")
    bounds = np.searchsorted(part[order], np.arange(len(parts) + 1)).tolist()
    for number, one in enumerate(parts):
        members = order[bounds[number] : bounds[number + 1]]
        if isinstance(one, Runs):
            begins = one.offsets
            sizes = np.full(len(begins), one.span, dtype=np.int64)
        else:
            element = decoders[int(which[members[0]])].element
            if element is None:
                raise FormatError("a part of a chunk whose elements are not stored as they are")
            begins = one.at[one.first[:-1]]
            sizes = one.at[one.first[1:] - 1] + element.itemsize - begins
        first[members] = count + np.arange(len(members)) * len(begins)
        count += len(begins) * len(members)
        rows.append(np.repeat(members, len(begins)))
        offsets.append((table.offset[members][:, np.newaxis] + begins).reshape(-1))
        lengths.append(np.tile(sizes, len(members)))
    return np.concatenate(rows), np.concatenate(offsets), np.concatenate(lengths), first


def _requests(
    source: npt.NDArray[np.int32], offset: IntArray, length: IntArray, chosen: npt.NDArray[np.bool_], merging: Merging
) -> Requests:
    """Requests for the chosen ranges; their ``order`` numbers all ranges."""
    numbers = np.flatnonzero(chosen)
    requests = merge(source[numbers].astype(np.int64), offset[numbers], length[numbers], merging)
    return requests if len(numbers) == len(chosen) else dataclasses.replace(requests, order=numbers[requests.order])
