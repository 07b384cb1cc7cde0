"""zarr-python's codec pipeline for the arrays of an archive: one plan a selection instead of one ``get`` a chunk.

The only module that knows zarr-python's private parts. Arrays of a group that :func:`open_group` opens are read by it;
arrays that are opened otherwise are read through :meth:`RefindexStore.get`, as right and slower.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zarr
from zarr.abc.codec import GetResult
from zarr.abc.store import ByteGetter
from zarr.core.array import AsyncArray
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.group import AsyncGroup
from zarr.core.indexing import SelectorTuple
from zarr.registry import register_pipeline
from zarr.storage import StorePath

from refindex.errors import DecodeError, RefindexError, SourceError, UnsupportedError
from refindex.model.manifest import Node
from refindex.serve.keys import ManifestKeys
from refindex.serve.places import Places, layout_of
from refindex.serve.plan import IntArray
from refindex.serve.quiet import quiet, rectilinear
from refindex.serve.selection import SelectionReader
from refindex.serve.zarr_store import RefindexStore

type Item = tuple[ByteGetter, ArraySpec, SelectorTuple, SelectorTuple, bool]

_PRESENT: GetResult = {"status": "present"}
_MISSING: GetResult = {"status": "missing"}


class RefindexCodecPipeline(BatchedCodecPipeline):
    """Reads all chunks of a selection by one plan; whatever is not of a refindex archive as zarr-python itself does."""

    async def read(
        self,
        batch_info: Iterable[Item],
        out: NDBuffer,
        drop_axes: tuple[int, ...] = (),
    ) -> tuple[GetResult, ...]:
        batch = batch_info if isinstance(batch_info, list) else list(batch_info)
        found = _target(batch, out)
        if found is None:
            return await super().read(batch, out, drop_axes)
        reader, node, target = found
        inside: list[Any] = [item[2] for item in batch]
        outside: list[Any] = [item[3] for item in batch]
        partial = ~np.fromiter((item[4] for item in batch), dtype=bool, count=len(batch))
        # Whole chunks are handled together without being looked at one by one.
        layout = layout_of(inside, outside) if len(batch) > _SOME and not drop_axes and partial.all() else None
        places = Places(chunks=_numbers(batch, node), inside=inside, outside=outside, partial=partial, layout=layout)
        fill = batch[0][1].fill_value
        try:
            if len(batch) <= _FEW and not reader.reader.url:
                reading, absent = reader.prepare(node, places, target, fill=fill, drop_axes=drop_axes)
            else:
                reading, absent = await asyncio.to_thread(
                    reader.prepare, node, places, target, fill=fill, drop_axes=drop_axes
                )
        except UnsupportedError:
            with _explained(node):
                return await super().read(batch, out, drop_axes)
        try:
            if reading.is_light:
                reading.run()
            else:
                await asyncio.to_thread(reading.run)
        except FileNotFoundError as error:
            # zarr-python takes it for a chunk that does not exist.
            raise SourceError(f"/{node.path}: {error}") from error
        finally:
            reading.stop()
        results = [_PRESENT] * len(batch)
        for position in absent.tolist():
            results[position] = _MISSING
        return tuple(results)


register_pipeline(RefindexCodecPipeline)

_SOME = 8
"""Chunks from which on it is worth while to see how they lie to each other."""

_FEW = 64
"""Chunks that are looked up in a manifest in memory without leaving the event loop."""

_KEYS: tuple[dict[str, Any], ...] = (
    {"name": "default"},
    {"name": "default", "configuration": {}},
    {"name": "default", "configuration": {"separator": "/"}},
)


_MOST_NESTED = 5_000_000
"""Groups above groups and arrays, counted for each, up to which consolidated metadata is read."""


class _AsyncGroup(AsyncGroup):
    """A group whose arrays, and those of the groups below it, are read by plans."""

    def _getitem_consolidated(self, store_path: StorePath, key: str, prefix: str) -> AsyncArray[Any] | AsyncGroup:
        return _adopt(super()._getitem_consolidated(store_path, key, prefix))

    async def getitem(self, key: str) -> AsyncArray[Any] | AsyncGroup:
        return _adopt(await super().getitem(key))


def _adopt(node: AsyncArray[Any] | AsyncGroup) -> AsyncArray[Any] | AsyncGroup:
    """The same node, read by plans. zarr-python's configuration, which is that of all threads, is left alone."""
    if isinstance(node, AsyncGroup):
        return node if isinstance(node, _AsyncGroup) else _AsyncGroup(node.metadata, node.store_path)
    if type(node.codec_pipeline) is BatchedCodecPipeline:
        stock = node.codec_pipeline
        pipeline = RefindexCodecPipeline(
            array_array_codecs=stock.array_array_codecs,
            array_bytes_codec=stock.array_bytes_codec,
            bytes_bytes_codecs=stock.bytes_bytes_codecs,
            batch_size=stock.batch_size,
        )
        object.__setattr__(node, "codec_pipeline", pipeline)
    return node


def open_group(store: RefindexStore, path: str = "") -> zarr.Group:
    """A group of an archive as zarr-python's own, all of whose arrays are read by plans.

    The arrays keep that when they are pickled. Those that are opened otherwise are read chunk by chunk through
    :meth:`RefindexStore.get`, with the same result.
    """
    # zarr-python takes minutes for the consolidated metadata of groups that are nested by the thousands.
    keys = store.keys
    nodes = keys.resolver.reader.nodes if isinstance(keys, ManifestKeys) else ()
    consolidated = None if sum(node.count("/") for node in nodes) < _MOST_NESTED else False
    with quiet(), rectilinear():
        group = zarr.open_group(store, path=path, mode="r", zarr_format=3, use_consolidated=consolidated)
    return zarr.Group(_AsyncGroup(group.metadata, group.store_path))


def _target(batch: list[Item], out: NDBuffer) -> tuple[SelectionReader, Node, np.ndarray[Any, Any]] | None:
    """The reader, the array, and the memory of the result, if the batch is one for a plan."""
    if not batch:
        return None
    first, spec = batch[0][0], batch[0][1]
    if not isinstance(first, StorePath) or not isinstance(first.store, RefindexStore):
        return None
    keys = first.store.keys
    if not isinstance(keys, ManifestKeys):
        return None
    # The key of a chunk is the path of its array, "c", and its coordinates.
    path = "/".join(first.path.split("/")[: -len(spec.shape) - 1])
    node = keys.resolver.reader.nodes.get(path)
    target = out.as_ndarray_like()
    if node is None or not node.is_array or node.dtype is None or not isinstance(target, np.ndarray):
        return None
    if len(node.shape) != len(spec.shape) or node.json.get("chunk_key_encoding") not in _KEYS:
        return None
    if target.dtype.newbyteorder("=") != node.dtype.newbyteorder("=") or target.dtype.hasobject:
        return None
    return keys.resolver.selections, node, target


@contextlib.contextmanager
def _explained(node: Node) -> Iterator[None]:
    """Errors of codecs that only zarr-python has, and of what a reader of them calls a panic, as errors of refindex."""
    try:
        yield
    except (RefindexError, OSError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError):
        raise
    except BaseException as error:
        names = ", ".join(codec["name"] for codec in node.json["codecs"])
        raise DecodeError(
            f"/{node.path}: a chunk cannot be decoded by zarr-python and its codecs ({names}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _numbers(batch: list[Item], node: Node) -> IntArray:
    """Chunk numbers of the keys ``PATH/c/0/1``, all parsed at once."""
    count, ndim = len(batch), len(node.shape)
    if ndim == 0:
        return np.zeros(count, dtype=np.int64)
    skip = len(node.path) + 3 if node.path else 2
    text = "/".join([item[0].path[skip:] for item in batch])  # type: ignore[attr-defined]
    return node.grid.index(np.fromstring(text, dtype=np.int64, sep="/").reshape(count, ndim))
