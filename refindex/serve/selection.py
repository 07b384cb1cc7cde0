"""Reading selections of arrays: many chunks of an array at once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.access.files import SourcePool
from refindex.access.ranges import LOCAL, REMOTE, Merging
from refindex.decode.decoder import Decoder, declared
from refindex.model.chunks import INLINE
from refindex.model.manifest import Node
from refindex.serve.cache import ChunkCache
from refindex.serve.places import Places
from refindex.serve.plan import IntArray, Plan, check_table, make_plan
from refindex.serve.reading import Reading
from refindex.serve.scatter import Scatter
from refindex.storage import ManifestReader

type Values = np.ndarray[Any, Any]


_MOST_ROWS = 4096
"""References that are kept, of chunks that were read by themselves."""


_BYTE = np.dtype(np.uint8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """The reference of a chunk, and whether its elements can be read from where they are.

    Parameters
    ----------
    plain:
        Whether it is of a local file and the stored bytes are all of the chunk's elements; else nothing else counts.
    element, shape, strides:
        Dtype, shape and bytes between elements of the stored chunk.
    """

    plain: bool
    source: int = INLINE
    offset: int = 0
    length: int = 0
    element: np.dtype[Any] = _BYTE
    shape: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()


class SelectionReader:
    """Reads selections of one version of an archive. Safe to use from several threads, event loops, and after a fork.

    Parameters
    ----------
    reader:
        The manifest.
    pool:
        Its sources.
    cache:
        Where decoded chunks are kept of which only a part was wanted.

    Attributes
    ----------
    local, remote:
        When ranges become one request.
    """

    local: Merging = LOCAL
    remote: Merging = REMOTE

    def __init__(self, reader: ManifestReader, pool: SourcePool, *, cache: ChunkCache | None = None) -> None:
        self.reader = reader
        self.pool = pool
        self.cache = ChunkCache() if cache is None else cache
        self._decoders: dict[tuple[str, int, tuple[int, ...]], Decoder | None] = {}
        self._rows: dict[tuple[str, int], Kept | None] = {}

    def decoder(self, node: Node, encoding: int, shape: tuple[int, ...]) -> Decoder | None:
        """The decoder of an encoding of an array, for declared ones that of a chunk shape; None if there is none."""
        key = (node.path, encoding, shape if encoding < 0 else ())
        found = self._decoders.get(key)
        if found is None and key not in self._decoders:
            found = _decoder(node, encoding, shape)
            self._decoders[key] = found
        return found

    def plan(self, node: Node, places: Places) -> Plan:
        """What reading the chunks takes. Reads no source.

        Raises
        ------
        UnsupportedError
            If they are stored in a declared codec chain that is not decoded here.
        ManifestError
            If the manifest is damaged.
        """
        return make_plan(
            self.reader, node, places, self, is_local=self.pool.is_local, local=self.local, remote=self.remote
        )

    def row(self, node: Node, chunk: int) -> Kept | None:
        """The reference of one chunk, None where there is none. It is looked up once: a version never changes.

        Raises
        ------
        ManifestError
            If the manifest is damaged.
        """
        key = (node.path, chunk)
        try:
            return self._rows[key]
        except KeyError:
            found = self._look_up(node, chunk)
        if len(self._rows) >= _MOST_ROWS:
            self._rows.clear()
        self._rows[key] = found
        return found

    def _look_up(self, node: Node, chunk: int) -> Kept | None:
        table = self.reader.find(node.path, np.array([chunk], dtype=np.int64))
        rows = np.flatnonzero(table.chunk == chunk)
        if not len(rows):
            return None
        check_table(self.reader, node, table)
        row = int(rows[0])
        source, length, encoding = int(table.source[row]), int(table.length[row]), int(table.encoding[row])
        shape = node.grid.chunk_shape(chunk)
        decoder = self.decoder(node, encoding, shape)
        checked = table.checksum is not None and int(table.checksum[row]) >= 0
        if source == INLINE or checked or decoder is None or not decoder.plain or decoder.element is None:
            return Kept(plain=False)
        covers = bool(decoder.covers(np.array([shape], dtype=np.int64).reshape(1, -1))[0])
        if not covers or length != decoder.nbytes or not self.pool.is_local(source):
            return Kept(plain=False)
        stored, size = decoder.encoding.shape, decoder.element.itemsize
        return Kept(
            plain=True,
            source=source,
            offset=int(table.offset[row]),
            length=length,
            element=decoder.element,
            shape=stored,
            strides=tuple(size * math.prod(stored[axis + 1 :]) for axis in range(len(stored))),
        )

    def prepare(
        self, node: Node, places: Places, out: Values, *, fill: Any, drop_axes: tuple[int, ...] = ()
    ) -> tuple[Reading, IntArray]:
        """Plan a selection, and put what is kept of it into ``out``; running the result reads the rest.

        Returns
        -------
        What reads it, and the places of the chunks that do not exist.
        """
        cache = self._cache_for(node, places)
        kept: list[tuple[int, Values]] = []
        if cache is not None and cache.nbytes:
            some = np.flatnonzero(places.partial).tolist()
            numbers = places.chunks[some].tolist()
            hits = [(at, cache.get((node.path, number))) for at, number in zip(some, numbers, strict=True)]
            kept = [(at, values) for at, values in hits if values is not None]
        rest: IntArray | None = None
        if kept:
            left = np.ones(len(places.chunks), dtype=bool)
            left[[at for at, _ in kept]] = False
            for at, values in kept:
                selected = values[places.inside[at]]
                out[places.outside[at]] = selected.squeeze(axis=drop_axes) if drop_axes else selected
            rest = np.flatnonzero(left).astype(np.int64)
            places = places.take(rest)
        plan = self.plan(node, places)
        scatter = Scatter(
            plan,
            places,
            out,
            fill=fill,
            drop_axes=drop_axes,
            cache=cache,
            sources=self.reader.sources,
            everything=rest is None,
        )
        absent = plan.absent if rest is None else rest[plan.absent]
        return Reading(plan, scatter, self.pool), absent

    def _cache_for(self, node: Node, places: Places) -> ChunkCache | None:
        """The cache, if the chunks that would be kept fit into it: what only streams through must not empty it."""
        partial = int(places.partial.sum())
        if not partial or not self.cache.budget or node.dtype is None:
            return None
        shape = node.grid.chunk_shape(int(places.chunks[0]))
        size = int(np.prod(shape, dtype=np.int64)) * node.dtype.itemsize
        return self.cache if partial * size <= self.cache.budget else None


def _decoder(node: Node, encoding: int, shape: tuple[int, ...]) -> Decoder | None:
    if node.dtype is None:
        return None
    if encoding >= 0:
        return Decoder(node.encodings[encoding], node.dtype)
    found = declared(node.codecs, shape, node.dtype)
    return None if found is None else Decoder(found, node.dtype)
