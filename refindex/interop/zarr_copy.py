"""Archives as plain Zarr v3: values are read as refindex reads them, and written by zarr-python."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem, options_for
from refindex.errors import ExistsError
from refindex.interop.content import Content, Document, block_shape, blocks, element_size
from refindex.interop.placing import Placing
from refindex.interop.prepare import plain_codecs, remade_document
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import consolidated, dumps
from refindex.serve.codec_pipeline import open_group
from refindex.serve.quiet import quiet
from refindex.serve.zarr_store import RefindexStore

type Lengths = Mapping[str, int] | None
"""Chunk lengths by the names of dimensions; -1: all of it."""

BLOCK_NBYTES = 128 << 20
"""Values that are held at a time; at least one chunk (or shard) as it is written."""


def export_zarr(
    store: RefindexStore,
    dest: str,
    *,
    variables: Collection[str] | None = None,
    chunks: Lengths = None,
    shards: Lengths = None,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
    storage_options: StorageOptions = None,
) -> None:
    """Copy an archive's values into a new Zarr v3 store, see :func:`refindex.export`."""
    content = Content.of(store, variables)
    _check_names(content, chunks, shards)
    documents = {path: document_of(node, chunks, shards) for path, node in content.arrays.items()}
    url = urls.absolute(dest).rstrip("/")
    if urls.is_local(url):
        with Placing(url, overwrite=overwrite, pair=False) as placing:
            placing.main.mkdir()
            _copy(content, documents, LocalStore(placing.main), progress)
            placing.publish()
        return
    with reading(url, "looking whether it is there"):
        fs, path = filesystem(url, storage_options)
        there = bool(fs.exists(path))
    if there and not overwrite:
        raise ExistsError(f"{urls.display(url)} exists; give overwrite=True (--overwrite) to replace it")
    with reading(url, "writing it"):
        if there:
            fs.rm(path, recursive=True)
        try:
            with _remote_store(url, storage_options) as target:
                _copy(content, documents, target, progress)
        except BaseException:
            with contextlib.suppress(Exception):
                fs.rm(path, recursive=True)
            raise


@contextlib.contextmanager
def _remote_store(url: str, storage_options: StorageOptions) -> Iterator[Store]:
    """A store on a filesystem of its own, whose connections are closed behind it."""
    # zarr-python runs it on its own event loop; an instance that others share must not be closed.
    options = {**options_for(url, storage_options), "skip_instance_cache": True}
    store = FsspecStore.from_url(url, storage_options=options)
    try:
        yield store
    finally:
        sync(_close(store.fs))


async def _close(fs: Any) -> None:
    for name in ("_s3", "_session"):  # what s3fs and fsspec's HTTP filesystem hold
        client = getattr(fs, name, None)
        if client is not None:
            closing = client.close()
            if inspect.isawaitable(closing):
                await closing


def _check_names(content: Content, chunks: Lengths, shards: Lengths) -> None:
    dims = {name for node in content.arrays.values() for name in node.dims if name}
    for what, lengths in (("chunks", chunks), ("shards", shards)):
        unknown = sorted(set(lengths or ()) - dims)
        if unknown:
            raise ValueError(f"{what}: no dimension {', '.join(unknown)}; there are {', '.join(sorted(dims))}")
        wrong = [name for name, length in (lengths or {}).items() if length == 0 or length < -1]
        if wrong:
            raise ValueError(
                f"{what}: lengths must be 1 or more, or -1 for all; got {wrong[0]}={(lengths or {})[wrong[0]]}"
            )


def document_of(node: Node, chunks: Lengths, shards: Lengths) -> Document:
    """The document of the copy of an array.

    Raises
    ------
    ValueError
        If a shard does not consist of whole chunks.
    """
    document = remade_document(node)
    own = ChunkGrid.from_json(node.shape, document["chunk_grid"]).chunk_shape()
    inner = _lengths(node, own, chunks)
    document["chunk_grid"] = ChunkGrid.regular(node.shape, inner).to_json()
    document["chunk_key_encoding"] = {"name": "default", "configuration": {"separator": "/"}}
    if not shards or not any(name in shards for name in node.dims if name):
        return document
    outer = _lengths(node, inner, shards)
    # A shard that reaches the end of the array is made of whole chunks, too.
    outer = tuple(-(-n // c) * c if n >= extent else n for n, c, extent in zip(outer, inner, node.shape, strict=True))
    if any(n % c for n, c in zip(outer, inner, strict=True)):
        raise ValueError(f"/{node.path}: shards of {outer} do not consist of whole chunks of {inner}")
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(inner),
            "codecs": plain_codecs(node),
            "index_codecs": index,
            "index_location": "end",
        },
    }
    return {**document, "chunk_grid": ChunkGrid.regular(node.shape, outer).to_json(), "codecs": [sharding]}


def _lengths(node: Node, own: tuple[int, ...], wanted: Lengths) -> tuple[int, ...]:
    lengths = []
    for name, extent, length in zip(node.dims, node.shape, own, strict=True):
        asked = (wanted or {}).get(name or "", length)
        lengths.append(max(extent, 1) if asked == -1 else asked)
    return tuple(lengths)


def _copy(
    content: Content, documents: dict[str, Document], target: Store, progress: Callable[[int, int], None] | None
) -> None:
    """Arrays, groups, and the root last: without it, what is there is no store."""

    def put(path: str, text: str) -> None:
        buffer = default_buffer_prototype().buffer.from_bytes(text.encode())
        sync(target.set(f"{path}/zarr.json".lstrip("/"), buffer))

    with quiet():
        group = open_group(content.store)
        total = sum(_nbytes(node) for node in content.arrays.values())
        done = 0
        for path, node in content.arrays.items():
            put(path, dumps(documents[path]))
            values: Any = group[path]
            copy = zarr.open_array(target, path=path, mode="r+")
            step = tuple(documents[path]["chunk_grid"]["configuration"]["chunk_shape"])
            for where in blocks(node.shape, block_shape(node.shape, step, BLOCK_NBYTES // element_size(node))):
                part = values[where if where else ...]
                copy[where if where else ...] = part
                done += getattr(part, "nbytes", 0)
                if progress is not None:
                    progress(min(done, total), total)
    for path, member in content.groups.items():
        if path:
            put(path, member.document)
    texts = {p: g.document for p, g in content.groups.items() if p} | {p: dumps(d) for p, d in documents.items()}
    put("", consolidated(content.groups[""].document, texts.items()))


def _nbytes(node: Node) -> int:
    size = 1
    for extent in node.shape:
        size *= extent
    return size * element_size(node)
