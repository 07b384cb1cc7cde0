"""An archive for every client of Zarr v3: chunks of one size, uncompressed, in little endian.

Codecs that only zarr-python knows, and chunks of unequal lengths, are undone on the way. What has no plainer form
(strings of any length) keeps the codec of its values.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numcodecs.vlen import VLenBytes, VLenUTF8

from refindex.errors import SourceError, UnsupportedError
from refindex.model.dtype import fill_value_from_json, fill_value_json
from refindex.model.encoding import bytes_codec
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import dumps
from refindex.serve.codec_pipeline import open_group
from refindex.serve.keys import HierarchyKeys, KeySpace, ManifestKeys
from refindex.serve.opening import Opening, open_keys
from refindex.serve.places import IntArray, Strided, outer
from refindex.serve.quiet import quiet
from refindex.serve.resolver import WHOLE, ByteRange
from refindex.serve.zarr_store import KeysStore, RefindexStore

_LEAST = 1 << 20
"""Bytes up to which chunks of unequal lengths are taken together."""

_MOST = 32 << 20
"""Bytes above which they are divided."""

_VARIABLE = {"vlen-utf8": VLenUTF8, "vlen-bytes": VLenBytes}


def plain_grid(grid: ChunkGrid, itemsize: int) -> ChunkGrid:
    """Chunks of one size for an array whose chunks have unequal lengths; the same grid if they are equal already.

    Along a dimension of unequal lengths the length is that of the chunk which holds the middle element, several times
    over where chunks are small, and divided where they are large.
    """
    if grid.is_regular:
        return grid
    lengths = [edge if isinstance(edge, int) else _middle(edge) for edge in grid.edges]
    for axis, (edge, extent) in enumerate(zip(grid.edges, grid.shape, strict=True)):
        if isinstance(edge, int):
            continue
        nbytes = max(1, math.prod(lengths) * itemsize)
        if nbytes < _LEAST:
            lengths[axis] *= _LEAST // nbytes
        elif nbytes > _MOST:
            lengths[axis] = max(1, lengths[axis] * _MOST // nbytes)
        lengths[axis] = max(1, min(lengths[axis], extent))
    return ChunkGrid.regular(grid.shape, tuple(lengths))


def _middle(runs: tuple[tuple[int, int], ...]) -> int:
    ends = np.cumsum([length * count for length, count in runs])
    return runs[int(np.searchsorted(ends, ends[-1] / 2))][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plain:
    """An array in its plain form.

    Parameters
    ----------
    declared, node:
        The array as the archive declares it, and in its plain form.
    as_declared:
        Whether both are the same.
    dtype:
        Of the plain bytes; None for values of variable length.
    fill:
        What stands where nothing is, beyond the end of the array too.
    """

    declared: Node
    node: Node
    as_declared: bool
    dtype: np.dtype[Any] | None = None
    fill: Any = None


def _plain(declared: Node) -> _Plain:
    document, dtype = declared.json, declared.dtype
    if dtype is None:
        first = declared.codecs[0]
        if first["name"] not in _VARIABLE or (declared.grid.is_regular and len(declared.codecs) == 1):
            return _Plain(declared=declared, node=declared, as_declared=True)
        codec, fill, itemsize = first, document["fill_value"], 16
    else:
        served = dtype
        dtype = served.newbyteorder("<")
        codec, fill, itemsize = bytes_codec(dtype), fill_value_from_json(served, document["fill_value"]), dtype.itemsize
        if dtype != served:
            # The fill value of a compound is spelled as its bytes.
            document = {**document, "fill_value": fill_value_json(dtype, fill.astype(dtype))}
    grid = plain_grid(declared.grid, itemsize)
    if declared.grid.is_regular and declared.codecs == [codec]:
        return _Plain(declared=declared, node=declared, as_declared=True)
    document = {**document, "chunk_grid": grid.to_json(), "codecs": [codec]}
    node = Node(path=declared.path, document=dumps(document), attribute_types=declared.attribute_types)
    return _Plain(declared=declared, node=node.knowing(grid=grid), as_declared=False, dtype=dtype, fill=fill)


class PlainHierarchy:
    """The arrays of an archive in their plain form. Safe to use from several threads and event loops."""

    def __init__(self, keys: ManifestKeys) -> None:
        self._declared = keys
        self.resolver = keys.resolver

    @cached_property
    def _arrays(self) -> dict[str, _Plain]:
        return {path: _plain(node) for path, node in self.resolver.nodes.items() if node.is_array}

    @cached_property
    def nodes(self) -> Mapping[str, Node]:
        """Groups and arrays by path, arrays with their plain documents."""
        arrays = self._arrays
        return {path: arrays[path].node if node.is_array else node for path, node in self.resolver.nodes.items()}

    @cached_property
    def _group(self) -> zarr.Group:
        return open_group(RefindexStore(Opening(url=self.resolver.reader.url), keys=self._declared))

    def read(self, node: Node, chunk: int, part: ByteRange = WHOLE) -> bytes | None:
        """Bytes of a plain chunk, or None if nothing of what it covers exists.

        Raises
        ------
        SourceError, DecodeError, ManifestError
            If it cannot be read.
        """
        plain = self._arrays[node.path]
        if plain.as_declared:
            return self.resolver.read(plain.declared, chunk, part)
        data = self._read(plain, chunk)
        return None if data is None else data[slice(*part.within(len(data)))]

    async def read_async(self, node: Node, chunk: int, part: ByteRange = WHOLE) -> bytes | None:
        """:meth:`read` without blocking the event loop."""
        plain = self._arrays[node.path]
        if plain.as_declared:
            return await self.resolver.read_async(plain.declared, chunk, part)
        return await asyncio.to_thread(self.read, node, chunk, part)

    def size(self, node: Node, chunk: int) -> int | None:
        """Length of what :meth:`read` returns."""
        plain = self._arrays[node.path]
        if plain.as_declared:
            return self.resolver.size(plain.declared, chunk)
        if plain.dtype is None:
            data = self._read(plain, chunk)
            return None if data is None else len(data)
        if not len(self.chunks(node, [chunk])):
            return None
        return math.prod(node.grid.chunk_shape(chunk)) * plain.dtype.itemsize

    def may_decode(self, node: Node) -> bool:
        """Whether reading a part of some chunk of an array may mean decoding all of it."""
        plain = self._arrays[node.path]
        return not plain.as_declared or self.resolver.may_decode(plain.declared)

    def decodes(self, node: Node, chunk: int) -> bool:
        """Whether reading any part of a chunk means decoding all of it."""
        plain = self._arrays[node.path]
        return not plain.as_declared or self.resolver.decodes(plain.declared, chunk)

    def chunks(self, node: Node, wanted: Sequence[int] | None = None) -> IntArray:
        """Numbers of the plain chunks (of those wanted) of which something exists."""
        plain = self._arrays[node.path]
        old, new = plain.declared.grid, node.grid
        if old.counts == new.counts and old.edges == new.edges:
            return self.resolver.chunks(plain.declared, wanted)
        if wanted is not None:
            found = [n for n in wanted if len(self.resolver.chunks(plain.declared, _covered(old, new, n).tolist()))]
            return np.array(found, dtype=np.int64)
        return _covering(old, new, self.resolver.chunks(plain.declared))

    def _read(self, plain: _Plain, chunk: int) -> bytes | None:
        declared, grid = plain.declared, plain.node.grid
        origin, shape = grid.origin(chunk), grid.chunk_shape(chunk)
        inside = tuple(min(n, extent - at) for n, at, extent in zip(shape, origin, grid.shape, strict=True))
        axes = [Strided(start=at, step=1, count=n) for at, n in zip(origin, inside, strict=True)]
        places = outer(declared.grid, axes)
        if not len(self.resolver.chunks(declared, np.sort(places.chunks.reshape(-1)).tolist())):
            return None
        selection = tuple(slice(at, at + n) for at, n in zip(origin, inside, strict=True))
        if plain.dtype is None:
            return self._variable(plain, selection, inside, shape)
        values = np.empty(inside, plain.dtype)
        try:
            reading, _ = self.resolver.selections.prepare(declared, places, values, fill=plain.fill)
        except UnsupportedError:
            values[...] = self._by_zarr(declared, selection)
        else:
            reading.run()
        if inside == shape:
            return values.tobytes()
        whole = np.full(shape, plain.fill, plain.dtype)
        whole[tuple(slice(0, n) for n in inside)] = values
        return whole.tobytes()

    def _variable(
        self, plain: _Plain, selection: tuple[slice, ...], inside: tuple[int, ...], shape: tuple[int, ...]
    ) -> bytes:
        codec = _VARIABLE[plain.node.codecs[0]["name"]]()
        whole = np.full(shape, "" if isinstance(codec, VLenUTF8) else b"", dtype=object)
        whole[tuple(slice(0, n) for n in inside)] = self._by_zarr(plain.declared, selection)
        return bytes(codec.encode(whole))

    def _by_zarr(self, declared: Node, selection: tuple[slice, ...]) -> np.ndarray[Any, Any]:
        """What zarr-python reads, where the codecs are not decoded here."""
        try:
            with quiet():
                array = self._group[declared.path]
                return np.asarray(array[selection])  # type: ignore[index]
        except FileNotFoundError as error:
            # Whoever asks would take it for a chunk that does not exist.
            raise SourceError(f"/{declared.path}: {error}") from error


def _covered(old: ChunkGrid, new: ChunkGrid, chunk: int) -> IntArray:
    """Numbers of the old chunks, sorted, with elements in a new one."""
    axes = [
        Strided(start=at, step=1, count=min(n, extent - at))
        for at, n, extent in zip(new.origin(chunk), new.chunk_shape(chunk), new.shape, strict=True)
    ]
    return np.sort(outer(old, axes).chunks.reshape(-1))


def _covering(old: ChunkGrid, new: ChunkGrid, chunks: IntArray) -> IntArray:
    """Numbers of the new chunks, sorted, with elements in any of some old ones."""
    coordinates = old.coordinates(chunks)
    for axis, (start, extent) in enumerate(zip(old.starts, old.shape, strict=True)):
        step = new.edges[axis]
        if not isinstance(step, int):
            raise TypeError(f"the new grid is not regular along dimension {axis}")
        at = coordinates[:, axis]
        begin, end = (at * start, (at + 1) * start) if isinstance(start, int) else (start[at], start[at + 1])
        inside = begin < extent
        coordinates, begin, end = coordinates[inside], begin[inside], end[inside]
        first = begin // step
        count = (np.minimum(end, extent) - 1) // step - first + 1
        rows = np.repeat(np.arange(len(first)), count)
        coordinates = coordinates[rows]
        coordinates[:, axis] = first[rows] + np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
    return np.unique(new.index(coordinates))


class PlainStore(KeysStore):
    """An archive as a read-only Zarr v3 store for every client: see :mod:`refindex.serve.plain`."""

    title = "PlainStore"
    protocol = "refindex-plain"

    def _open_keys(self) -> KeySpace:
        return plain_keys(open_keys(self.archive))


def plain_keys(keys: ManifestKeys) -> HierarchyKeys:
    """The keys of an archive in its plain form."""
    return HierarchyKeys(PlainHierarchy(keys))
