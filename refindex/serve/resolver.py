"""From an array and a chunk number to bytes or values.

One look-up in the manifest, one range of a source, and, for an adapted chunk, one decoding. Absent is
not unreadable: None means that the manifest positively has no row for a chunk; whatever else goes
wrong raises.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.access.files import SourcePool, Stale, StorageOptions
from refindex.access.trust import Allowed
from refindex.decode.checksum import check
from refindex.decode.pipeline import decode, encode, place
from refindex.errors import DecodeError, FormatError, ManifestError
from refindex.model.chunks import INLINE, UNCHECKED, ChunkTable
from refindex.model.dtype import fill_value_from_json
from refindex.model.manifest import Node
from refindex.serve.batching import WINDOW, BatchedReads
from refindex.serve.plan import check_ends
from refindex.serve.selection import SelectionReader
from refindex.storage import ManifestReader

_SMALL_DECODE = 1 << 16
"""Adapted chunks up to this many stored bytes are decoded on the event loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """A part of a value: from ``start`` to ``stop`` (None: to its end), negative ``start``: the last bytes."""

    start: int = 0
    stop: int | None = None

    def within(self, size: int) -> tuple[int, int]:
        """First and last-plus-one byte in a value of ``size`` bytes."""
        if self.start < 0:
            return max(0, size + self.start), size
        stop = size if self.stop is None else min(self.stop, size)
        return min(self.start, size), max(min(self.start, size), stop)


WHOLE = ByteRange()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One chunk: its bytes if they are inline, else where they are, and whether they must be adapted."""

    node: Node
    chunk: int
    inline: bytes | None = None
    source: int = INLINE
    offset: int = 0
    length: int = 0
    encoding: int = -1
    checksum: int = UNCHECKED
    native: bool = True


class Resolver:
    """Reads chunks of one version of an archive. Safe to use from several threads and event loops."""

    def __init__(
        self,
        reader: ManifestReader,
        *,
        storage_options: StorageOptions = None,
        stale: Stale = "error",
        allowed: Allowed | None = None,
    ) -> None:
        self.reader = reader
        self._options = storage_options
        self._stale: Stale = stale
        self._allowed = allowed
        self._pool: SourcePool | None = None
        self._selections: SelectionReader | None = None
        self._batched: BatchedReads | None = None
        self._quick = not reader.url or urls.is_local(reader.url)

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Groups and arrays by path."""
        return self.reader.nodes

    @property
    def pool(self) -> SourcePool:
        if self._pool is None:
            self._pool = SourcePool(
                self.reader.sources,
                storage_options=self._options,
                stale=self._stale,
                allowed=self._allowed,
                archive=urls.display(self.reader.url) if self.reader.url else "",
            )
        return self._pool

    @property
    def selections(self) -> SelectionReader:
        """What reads many chunks of an array at once."""
        if self._selections is None:
            self._selections = SelectionReader(self.reader, self.pool)
        return self._selections

    async def _fetch(self, source: int, offset: int, length: int) -> bytes:
        """A range, read together with others that are asked for at the same time where the source is remote."""
        pool = self.pool
        if pool.is_local(source):
            return await pool.read_async(source, offset, length)
        if self._batched is None:
            # Look-ups in threads do not all end in the same turn of the event loop.
            self._batched = BatchedReads(pool, window=0 if self._quick else WINDOW)
        return await self._batched.read(source, offset, length)

    def close(self) -> None:
        if self._selections is not None:
            self._selections.cache.clear()
        if self._pool is not None:
            self._pool.close()

    def _request(self, node: Node, table: ChunkTable) -> _Request | None:
        if not len(table):
            return None
        chunk, source, encoding = int(table.chunk[0]), int(table.source[0]), int(table.encoding[0])
        if source >= len(self.reader.sources) or encoding >= len(node.encodings):
            raise ManifestError(
                f"{self.reader.url or 'manifest'}: /{node.path} chunk {chunk} refers to source {source} and "
                f"encoding {encoding}, which the manifest does not have: it is damaged"
            )
        check_ends(self.reader, node, table)
        return _Request(
            node=node,
            chunk=chunk,
            inline=table.inline_bytes(0) if source == INLINE else None,
            source=source,
            offset=int(table.offset[0]),
            length=int(table.length[0]),
            encoding=encoding,
            checksum=UNCHECKED if table.checksum is None else int(table.checksum[0]),
            native=node.is_native(chunk, encoding),
        )

    def read(self, node: Node, chunk: int, part: ByteRange = WHOLE) -> bytes | None:
        """Bytes of a chunk as its array declares them, or None if it does not exist.

        Raises
        ------
        SourceError, DecodeError, ManifestError
            If it exists and cannot be read.
        """
        request = self._request(node, self.reader.find(node.path, [chunk]))
        if request is None:
            return None
        if request.inline is not None:
            data = request.inline if request.native else self._adapt(request, request.inline)
            return data[slice(*part.within(len(data)))]
        if request.native and request.checksum == UNCHECKED:
            start, stop = part.within(request.length)
            return self.pool.read(request.source, request.offset + start, stop - start)
        stored = self.pool.read(request.source, request.offset, request.length)
        data = self._checked(request, stored) if request.native else self._adapt(request, stored)
        return data[slice(*part.within(len(data)))]

    async def read_async(self, node: Node, chunk: int, part: ByteRange = WHOLE) -> bytes | None:
        """:meth:`read` without blocking the event loop."""
        if self._quick:
            table = self.reader.find(node.path, [chunk])
        else:
            table = await asyncio.to_thread(self.reader.find, node.path, [chunk])
        request = self._request(node, table)
        if request is None:
            return None
        if request.inline is not None:
            data = request.inline if request.native else self._adapt(request, request.inline)
            return data[slice(*part.within(len(data)))]
        if request.native and request.checksum == UNCHECKED:
            start, stop = part.within(request.length)
            return await self._fetch(request.source, request.offset + start, stop - start)
        stored = await self._fetch(request.source, request.offset, request.length)
        if request.native:
            data = self._checked(request, stored)
        elif request.length <= _SMALL_DECODE:
            data = self._adapt(request, stored)
        else:
            data = await asyncio.to_thread(self._adapt, request, stored)
        return data[slice(*part.within(len(data)))]

    def size(self, node: Node, chunk: int) -> int | None:
        """Length of what :meth:`read` returns, without reading where that is known."""
        request = self._request(node, self.reader.find(node.path, [chunk]))
        if request is None:
            return None
        if request.native:
            return request.length
        if len(node.codecs) == 1 and node.dtype is not None:
            return math.prod(node.grid.chunk_shape(chunk)) * node.dtype.itemsize
        data = self.read(node, chunk)
        return None if data is None else len(data)

    def may_decode(self, node: Node) -> bool:
        """Whether some chunk of an array may be adapted."""
        if not all(node.native_encodings):
            return True
        shapes = {encoding.shape for encoding in node.encodings}
        return bool(shapes) and not (node.grid.is_regular and shapes == {node.grid.chunk_shape()})

    def decodes(self, node: Node, chunk: int) -> bool:
        """Whether a chunk is adapted: reading any part of it means decoding all of it."""
        request = self._request(node, self.reader.find(node.path, [chunk]))
        return request is not None and not request.native

    def chunks(self, node: Node, wanted: Sequence[int] | None = None) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Numbers of the chunks of an array that exist (of those wanted)."""
        return self.reader.find(node.path, wanted).chunk

    def _checked(self, request: _Request, stored: bytes) -> bytes:
        try:
            check(stored, request.checksum)
        except DecodeError as error:
            raise self._undecoded(request, error) from error
        return stored

    def _adapt(self, request: _Request, stored: bytes) -> bytes:
        node, dtype = request.node, request.node.dtype
        try:
            check(stored, request.checksum)
            if dtype is None:
                raise FormatError("an array of variable-length values has a reference into a file")
            fill = fill_value_from_json(dtype, node.json["fill_value"])
            encoding = node.encodings[request.encoding]
            shape = node.grid.chunk_shape(request.chunk)
            return encode(place(decode(stored, encoding, dtype), encoding, shape, fill), node.codecs)
        except (DecodeError, FormatError) as error:
            raise self._undecoded(request, error) from error

    def _undecoded(self, request: _Request, error: Exception) -> DecodeError:
        where = "the manifest"
        if request.source != INLINE:
            where = f"{request.offset} of {urls.display(self.reader.sources[request.source].url)}"
        return DecodeError(
            f"/{request.node.path}/{request.node.grid.key(request.chunk)}: {request.length} bytes at {where}: {error}. "
            "The file is damaged, or the manifest does not belong to it: scan it again."
        )
