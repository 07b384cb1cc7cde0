"""Archives as Icechunk repositories: chunks stay where they are, as virtual references in one commit."""

from __future__ import annotations

import asyncio
import itertools
import os
import tempfile
from collections.abc import Collection, Iterable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.options import options_for
from refindex.errors import ExistsError, SourceError
from refindex.interop.companion import Companion
from refindex.interop.content import Content, Document
from refindex.interop.icechunk_storage import s3_options, storage_at
from refindex.interop.optional import require
from refindex.interop.placing import Placing
from refindex.interop.prepare import Prepared, Target, prepare
from refindex.model.chunks import INLINE, ChunkTable
from refindex.model.manifest import Source
from refindex.model.zarr_v3 import dumps
from refindex.serve.zarr_store import RefindexStore

_BULK = 32
"""References to one file from which on they are given as columns."""

_SPARSE = 4
"""A box of chunks is given as columns if at least one of so many is of the file."""

_AT_ONCE = 256
_PROTOCOLS = ("file", "s3", "gs", "gcs", "http", "https")


def refuse_url(url: str) -> str | None:
    """Why Icechunk's virtual references cannot name a file; None if they can."""
    if "::" in url:
        return "a chained URL, which Icechunk cannot name"
    protocol = url.partition("://")[0]
    return None if protocol in _PROTOCOLS else f"Icechunk does not read {protocol}://"


def export_icechunk(
    store: RefindexStore,
    dest: Any,
    *,
    variables: Collection[str] | None = None,
    materialize: bool = False,
    overwrite: bool = False,
    storage_options: StorageOptions = None,
) -> str:
    """Write an archive as a new Icechunk repository, see :func:`refindex.export`; returns the snapshot's name."""
    icechunk = require("icechunk")
    content = Content.of(store, variables)
    target = Target(name="Icechunk", zarr_format=3, rectilinear=True, refuse=refuse_url)
    url = urls.absolute(dest).rstrip("/") if isinstance(dest, str | os.PathLike) else ""
    if url and urls.is_local(url):
        with Placing(url, overwrite=overwrite, pair=False) as placing:
            with closing(Companion(placing.beside)) as companion:
                prepared = list(prepare(content, target, companion, materialize=materialize))
            storage = storage_at(icechunk, f"file://{placing.main}", storage_options)
            snapshot = _write(icechunk, storage, content, prepared, placing.beside, storage_options)
            placing.publish()
        return snapshot
    storage = storage_at(icechunk, url, storage_options) if url else dest
    if icechunk.Repository.exists(storage):
        where = urls.display(url) if url else storage
        raise ExistsError(f"{where}: there is a repository already; choose another place")
    with tempfile.TemporaryDirectory(prefix="refindex-") as folder:
        made = Path(folder) / "chunks"
        with closing(Companion(made)) as companion:
            prepared = list(prepare(content, target, companion, materialize=materialize))
        return _write(icechunk, storage, content, prepared, made, storage_options)


def _containers(icechunk: Any, sources: Iterable[Source], storage_options: StorageOptions) -> list[Any]:
    """A virtual chunk container for each bucket or host, and one for all local files."""
    found: dict[str, Any] = {}
    folders: list[str] = []
    for source in sources:
        protocol, _, path = source.url.partition("://")
        if protocol == "file":
            folders.append(str(Path(path).parent))
            continue
        prefix = f"{protocol}://{path.partition('/')[0]}/"
        if prefix in found:
            continue
        if protocol == "s3":
            found[prefix] = icechunk.s3_store(**s3_options(options_for(source.url, storage_options)))
        elif protocol in ("gs", "gcs"):
            found[prefix] = icechunk.gcs_store()
        else:
            found[prefix] = icechunk.http_store()
    if folders:
        folder = os.path.commonpath(folders).rstrip("/") + "/"
        found[f"file://{_escaped(folder)}"] = icechunk.local_filesystem_store(folder)
    return [icechunk.VirtualChunkContainer(prefix, store) for prefix, store in found.items()]


def _escaped(path: str) -> str:
    """A path as Icechunk has it in URLs."""
    return path.replace("%", "%25").replace("?", "%3F").replace("#", "%23")


def location(url: str) -> str:
    """The URL of a source as Icechunk spells it."""
    protocol, mark, path = url.partition("://")
    return url if protocol in ("http", "https") else f"{protocol}{mark}{_escaped(path)}"


def _checksum(source: Source) -> datetime | str | None:
    """What tells Icechunk that a file has changed: it was modified later (in whole seconds), or its entity tag."""
    if source.mtime is not None:
        return datetime.fromtimestamp(-(-source.mtime // 1_000_000), UTC)
    return source.etag


def _write(
    icechunk: Any,
    storage: Any,
    content: Content,
    prepared: list[Prepared],
    companion: Path,
    storage_options: StorageOptions,
) -> str:
    """All of it, in one commit."""
    used = np.zeros(len(content.sources) + 1, dtype=bool)
    for array in prepared:
        used[array.table.source[array.table.source != INLINE]] = True
    sources = [content.sources[n] for n in np.flatnonzero(used[:-1]).tolist()]
    config = icechunk.RepositoryConfig.default()
    for container in _containers(icechunk, sources, storage_options):
        config.set_virtual_chunk_container(container)
    repository = icechunk.Repository.create(storage, config=config)
    session = repository.writable_session("main")
    store = session.store
    documents = {f"{path}/zarr.json".lstrip("/"): group.document for path, group in content.groups.items()}
    documents |= {f"{array.path}/zarr.json": dumps(_document(array)) for array in prepared}
    sync(_set(store, [(key, text.encode()) for key, text in documents.items()]))
    for array in prepared:
        _set_virtual(icechunk, store, array, content)
        _set_native(store, array, len(content.sources), companion)
    return str(session.commit("exported by refindex"))


def _document(array: Prepared) -> Document:
    """The document with every chunk length in a list, where some are: Icechunk reads no lone numbers among them."""
    grid = array.grid
    if grid.is_regular:
        return array.document
    edges = [
        ((edge, max(count, 1)),) if isinstance(edge, int) else edge
        for edge, count in zip(grid.edges, grid.counts, strict=True)
    ]
    shapes = [[n if count == 1 else [n, count] for n, count in runs] for runs in edges]
    listed = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": shapes}}
    return {**array.document, "chunk_grid": listed}


async def _set(store: Any, items: list[tuple[str, bytes]]) -> None:
    make = default_buffer_prototype().buffer.from_bytes
    # Groups before what is in them, which Icechunk asks for.
    for first in range(0, len(items), _AT_ONCE):
        part = items[first : first + _AT_ONCE]
        if part[0][0].endswith("zarr.json"):
            for key, data in part:
                await store.set(key, make(data))
        else:
            await asyncio.gather(*(store.set(key, make(data)) for key, data in part))


def _set_virtual(icechunk: Any, store: Any, array: Prepared, content: Content) -> None:
    """The references into files. Those of a file are given as columns over the box of chunks that they fill."""
    table, number = array.table, len(content.sources)
    order = np.argsort(table.source, kind="stable")
    source = table.source[order]
    starts = np.flatnonzero(np.concatenate(([True], source[1:] != source[:-1]))).tolist() if len(source) else []
    single: list[Any] = []
    for first, stop in itertools.pairwise([*starts, len(source)]):
        if source[first] in (INLINE, number):
            continue
        file = content.sources[int(source[first])]
        rows = order[first:stop]
        part = table.take(rows)
        coordinates = array.grid.coordinates(part.chunk)
        low = coordinates.min(axis=0) if array.grid.ndim else np.empty(0, dtype=np.int64)
        box = tuple((coordinates.max(axis=0) - low + 1).tolist()) if array.grid.ndim else ()
        volume = int(np.prod(box, dtype=object)) if box else 1
        if len(part) >= _BULK and volume <= _SPARSE * len(part):
            _refuse(
                array,
                store.set_virtual_refs_arr(
                    array.path, box, *_columns(part, coordinates - low, box, location(file.url)),
                    arr_offset=tuple(low.tolist()), checksum=_checksum(file),
                ),
            )  # fmt: skip
            continue
        etag, time = (_checksum(file), None) if isinstance(_checksum(file), str) else (None, _checksum(file))
        single += [
            icechunk.VirtualChunkSpec(index, location(file.url), offset, length, etag, time)
            for index, offset, length in zip(
                coordinates.tolist(), part.offset.tolist(), part.length.tolist(), strict=True
            )
        ]
    if single:
        _refuse(array, store.set_virtual_refs(array.path, single))


def _columns(
    part: ChunkTable, coordinates: np.ndarray[Any, np.dtype[np.int64]], box: tuple[int, ...], where: str
) -> tuple[list[str], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Locations, offsets and lengths of all chunks of a box; chunks that are not there have no location."""
    volume = int(np.prod(box, dtype=object)) if box else 1
    at = np.ravel_multi_index(tuple(coordinates.T), box) if box else np.zeros(1, dtype=np.intp)
    offset, length = np.zeros(volume, dtype=np.uint64), np.zeros(volume, dtype=np.uint64)
    offset[at], length[at] = part.offset, part.length
    locations = np.full(volume, "", dtype=object)
    locations[at] = where
    return locations.tolist(), offset, length


def _refuse(array: Prepared, failed: Any) -> None:
    if failed:
        raise SourceError(f"/{array.path}: Icechunk did not take {len(failed)} references, e.g. of chunk {failed[0]}")


def _set_native(store: Any, array: Prepared, number: int, companion: Path) -> None:
    """The chunks whose bytes are here: those of the manifest, and those that were made for Icechunk."""
    table = array.table
    rows = np.flatnonzero((table.source == INLINE) | (table.source == number))
    if not len(rows):
        return
    file = companion.open("rb") if (table.source[rows] == number).any() else None
    try:
        for first in range(0, len(rows), _AT_ONCE):
            items: list[tuple[str, bytes]] = []
            for row in rows[first : first + _AT_ONCE].tolist():
                if file is None or table.source[row] == INLINE:
                    data = table.inline_bytes(row)
                else:
                    file.seek(int(table.offset[row]))
                    data = file.read(int(table.length[row]))
                items.append((f"{array.path}/{array.grid.key(int(table.chunk[row]))}", data))
            sync(_set(store, items))
    finally:
        if file is not None:
            file.close()
