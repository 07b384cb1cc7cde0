"""Icechunk repositories -> manifests: virtual chunks, chunks in Icechunk's own files, and chunks inline."""

from __future__ import annotations

import os
from typing import Any
from urllib.parse import unquote

import numpy as np
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.remembered import remembered
from refindex.access.trust import Allow, Allowed
from refindex.errors import FormatError, NotFoundError, SourceError, UnsupportedError
from refindex.interop.assemble import Rows, Urls, assemble
from refindex.interop.icechunk_storage import storage_at
from refindex.interop.optional import require
from refindex.model.chunks import INLINE
from refindex.model.manifest import Manifest
from refindex.model.zarr_v3 import loads
from refindex.scan.zarr.plan import Plan

_NATIVE, _VIRTUAL, _INLINE = 1, 2, 3
"""Values of ``icechunk.ChunkType``."""

_PLAIN = ("http://", "https://")


def from_icechunk(
    source: Any,
    *,
    branch: str = "main",
    snapshot: str | None = None,
    allow: Allow = None,
    storage_options: StorageOptions = None,
) -> Manifest:
    """Take over one snapshot of an Icechunk repository. The files are looked at, and no array is read.

    Parameters
    ----------
    source:
        Path or ``s3://`` URL of a repository; or an open ``icechunk.Repository``, of which chunks in Icechunk's own
        files cannot be referred to.
    branch, snapshot:
        The tip of a branch, or the snapshot of this name.
    allow:
        Folders and files, by path or URL, that references may name besides what lies below the folder that holds the
        repository; ``"*"`` for everything. Those of an open ``icechunk.Repository`` may name anything.
    storage_options:
        Options for fsspec, for the repository and for the files that it refers to.

    Raises
    ------
    NotFoundError
        If there is no such repository, branch or snapshot.
    FormatError, UnsupportedError
        If references reach beyond their files, or may not be taken over.
    NotAllowedError
        If they name files that they may not.
    SourceError
        If it, or a file that it refers to, cannot be read.
    """
    icechunk = require("icechunk")
    url = urls.absolute(source).rstrip("/") if isinstance(source, str | os.PathLike) else ""
    where = urls.display(url) if url else str(source)
    if url and urls.is_local(url) and not urls.local_path(url).is_dir():
        raise NotFoundError(f"{where}: no such folder")
    try:
        repository = icechunk.Repository.open(storage_at(icechunk, url, storage_options)) if url else source
        session = (
            repository.readonly_session(snapshot_id=snapshot)
            if snapshot is not None
            else repository.readonly_session(branch)
        )
        documents = sync(_documents(session.store))
    except (icechunk.IcechunkError, ValueError) as error:
        if isinstance(error, UnsupportedError):
            raise
        raise NotFoundError(f"{where}: no such Icechunk repository, branch or snapshot: {error}") from error
    found = Urls()

    def rows_of(path: str, plan: Plan) -> Rows:
        try:
            return sync(_rows(session.store, path, plan, found, where))
        except icechunk.IcechunkError as error:
            raise SourceError(f"{where}: /{path}: its references cannot be read: {error}") from error

    def resolve(name: str) -> str:
        if "://" not in name:  # the name of a chunk file
            if not url:
                raise UnsupportedError(
                    f"{where}: it has chunks in files of its own; give its path or URL instead of an open repository"
                )
            return f"{url}/chunks/{name}"
        return name if name.startswith(_PLAIN) else urls.absolute(unquote(name))

    return assemble(
        where,
        documents,
        rows_of,
        found,
        resolve=resolve,
        allowed=Allowed.of(allow).beside(url).adding(remembered(url)) if url else None,
        storage_options=storage_options,
    )


async def _documents(store: Any) -> dict[str, bytes]:
    """The ``zarr.json`` of every node by key, without listing chunks."""
    documents: dict[str, bytes] = {}
    folders = [""]
    while folders:
        folder = folders.pop()
        key = f"{folder}/zarr.json".lstrip("/")
        buffer = await store.get(key, default_buffer_prototype())
        if buffer is None:
            continue
        documents[key] = buffer.to_bytes()
        document = loads(documents[key], key)
        if not isinstance(document, dict) or document.get("node_type") != "group":
            continue
        names = [name.strip("/") async for name in store.list_dir(folder)]
        folders += [f"{folder}/{name}".lstrip("/") for name in names if name != "zarr.json"]
    return documents


async def _rows(store: Any, path: str, plan: Plan, found: Urls, where: str) -> Rows:
    """The references of an array, as Icechunk gives them: batches of columns."""
    parts: list[list[np.ndarray[Any, np.dtype[np.int64]]]] = []
    data: list[bytes] = []
    at = 0
    async for coordinates, kinds, paths, offsets, lengths, inlined in store.array_chunk_iterator(f"/{path}"):
        coordinates = coordinates.astype(np.int64).reshape(len(kinds), plan.grid.ndim)  # noqa: PLW2901
        if np.any(coordinates >= np.array(plan.grid.counts, dtype=np.int64)):
            raise FormatError(f"{where}: /{path} has chunks outside its {plan.grid.counts} grid")
        if np.any((kinds < _NATIVE) | (kinds > _INLINE)):
            raise UnsupportedError(f"{where}: /{path} has chunks of a kind that is not known: {np.unique(kinds)}")
        inline = np.flatnonzero(kinds == _INLINE)
        number = found.number
        url = np.array([INLINE if not name else number(name) for name in paths], dtype=np.int64)
        offset, length = offsets.astype(np.int64), lengths.astype(np.int64)
        for row in inline.tolist():
            text = inlined[row]
            url[row], offset[row], length[row] = INLINE, at, len(text)
            data.append(text)
            at += len(text)
        if np.any((url == INLINE) & (kinds != _INLINE)):
            raise FormatError(f"{where}: /{path} has references without a file")
        parts.append([plan.grid.index(coordinates) if len(kinds) else np.empty(0, np.int64), url, offset, length])
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] or [np.empty(0, dtype=np.int64)] * 4
    return Rows(chunk=columns[0], url=columns[1], offset=columns[2], length=columns[3], data=b"".join(data))
