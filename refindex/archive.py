"""One version of an archive, open for reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy.typing as npt
import xarray as xr
import zarr

from refindex import storage
from refindex.access import urls
from refindex.errors import NotFoundError
from refindex.model import html
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Manifest, Node, ScanReport, Source
from refindex.serve.codec_pipeline import open_group
from refindex.serve.explain import Explanation
from refindex.serve.keys import ManifestKeys
from refindex.serve.lazy import LazyArray, transform_from_json
from refindex.serve.opening import Opening, open_resolver
from refindex.serve.plain import PlainStore, plain_keys
from refindex.serve.quiet import quiet
from refindex.serve.xarray_engine import RefindexBackendEntrypoint
from refindex.serve.zarr_store import RefindexStore
from refindex.storage.protocol import require

if TYPE_CHECKING:
    from refindex.serve.http.server import Server


class Archive(AbstractContextManager["Archive"]):
    """One version of an archive, open for reading. References are read when they are needed.

    Made by :func:`refindex.open`. Safe to use from several threads; ``archive.store`` travels to other processes.
    """

    def __init__(self, opening: Opening) -> None:
        reader = opening.reader()
        # What other processes open is the very same: this version, or the references scanned here.
        manifest = reader.manifest if isinstance(reader, storage.MemoryReader) else None
        opening = replace(opening, version=reader.version if manifest is None else None, manifest=manifest)
        self._reader = reader
        self._resolver = open_resolver(opening, reader)
        self.url = opening.url
        self.store = RefindexStore(opening, keys=ManifestKeys(self._resolver))

    @property
    def version(self) -> int:
        """The snapshot that is open; it never changes."""
        return self._reader.version

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Groups and arrays by path."""
        return self._reader.nodes

    @property
    def arrays(self) -> Mapping[str, Node]:
        """Arrays by path."""
        return {path: node for path, node in self._reader.nodes.items() if node.is_array}

    @property
    def sources(self) -> Sequence[Source]:
        """The files that references point into."""
        return self._reader.sources

    @property
    def report(self) -> ScanReport:
        """The report of the scan."""
        return self._reader.report

    @cached_property
    def plain_store(self) -> PlainStore:
        """The archive for every client of Zarr v3: chunks of one size, uncompressed, in little endian."""
        return PlainStore(self.store.archive, keys=plain_keys(ManifestKeys(self._resolver)))

    @cached_property
    def group(self) -> zarr.Group:
        """The root group, as zarr-python's own; its arrays are read by one plan a selection."""
        return open_group(self.store)

    def __getitem__(self, path: str) -> LazyArray:
        """An array as a lazy one: selections compose, and read nothing until values are asked for.

        Raises
        ------
        NotFoundError
            If there is no such array.
        """
        node = require(self._reader.nodes, path, urls.display(self.url))
        if not node.is_array:
            raise NotFoundError(f"{urls.display(self.url)}: /{node.path} is a group; archive.group gives it")
        with quiet():
            array = self.group[node.path]
        return LazyArray(cast("zarr.Array[Any]", array), node)

    def explain(self, path: str, **indexers: Any) -> Explanation:
        """What reading a selection of an array costs, before it is read: chunks, requests, bytes, files.

        Beside it stand the selections that people often make: a series at a point, and a map at a time. No source is
        read. For a view, there is :meth:`LazyArray.explain`.

        Parameters
        ----------
        path:
            Of the array.
        indexers:
            Positions by dimension names, as for :meth:`LazyArray.isel`; all of it without any.

        Raises
        ------
        NotFoundError
            If there is no such array.
        KeyError
            If it has no such dimension.
        """
        return self[path].isel(**indexers).explain()

    def view(self, document: Mapping[str, Any]) -> LazyArray:
        """The lazy array that :meth:`LazyArray.to_json` made a document of.

        Raises
        ------
        NotFoundError
            If there is no such array.
        FormatError
            If the document is not of a view of it.
        """
        whole = self[str(document.get("array", ""))]
        node = self._reader.nodes[whole.path]
        return LazyArray(whole._array, node, transform_from_json(document, node))

    def find(self, path: str, chunks: npt.ArrayLike | None = None) -> ChunkTable:
        """The references of an array, or of those of the given chunk numbers (sorted) that exist."""
        return self._reader.find(require(self._reader.nodes, path, urls.display(self.url)).path, chunks)

    def load(self) -> Manifest:
        """The whole manifest, all references included, in memory.

        Raises
        ------
        NotAllowedError
            If sources are symbolic links to places that the archive may not read: what is in memory is not held to
            that any more.
        """
        allowed = self.store.archive.allowed
        if allowed is not None:
            allowed.check((source.url for source in self._reader.sources), str(self.store.archive), links=True)
        return storage.load(self._reader)

    def to_xarray(self, group: str = "", **options: Any) -> xr.Dataset:
        """A group as a lazy dataset. Options are those of :func:`xarray.open_dataset` (``chunks={}`` for dask)."""
        return xr.open_dataset(self.store, engine=RefindexBackendEntrypoint, group=group, **options)  # type: ignore[arg-type]

    def to_datatree(self, **options: Any) -> xr.DataTree:
        """All groups as a lazy xarray tree. Options are those of :func:`xarray.open_datatree`."""
        return xr.open_datatree(self.store, engine=RefindexBackendEntrypoint, **options)  # type: ignore[arg-type]

    def serve(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        view: Literal["declared", "plain"] = "declared",
        cors: Sequence[str] = (),
    ) -> Server:
        """Serve this version over HTTP, read only, from a thread of this process.

        Returns
        -------
        What serves, with its ``url``; ``stop()``, or leaving it as a context, ends it.

        Parameters
        ----------
        host, port:
            Where; by default any free port, which only this machine reaches.
        view:
            ``"declared"`` serves chunks as the archive declares them, ``"plain"`` what :attr:`plain_store` has, which
            is below ``plain/`` in any case.
        cors:
            Origins whose pages may read the archive; ``*`` for all.

        Raises
        ------
        ImportError
            Without the extra ``serve``.
        OSError
            If the address is in use.
        """
        from refindex.serve.http.server import open_server

        return open_server(self.store, host=host, port=port, view=view, cors=cors).start()

    def refresh(self) -> bool:
        """Move on to the newest version; whether there was a newer one.

        Stores, groups and datasets that were handed out before keep reading the version that they were made of.
        An archive that was opened from a source, or from memory, stays as it is.
        """
        opening = self.store.archive
        if opening.manifest is not None:
            return False
        if storage.newest_version(self.url, opening.storage_options) == self.version:
            return False
        newest = Archive(replace(opening, version=None))
        # What was handed out still reads through the old reader, which is closed when the last of it goes.
        self._reader, self._resolver, self.store = newest._reader, newest._resolver, newest.store
        self.__dict__.pop("group", None)
        self.__dict__.pop("plain_store", None)
        return True

    def close(self) -> None:
        """Close the manifest and all sources."""
        self._resolver.close()
        self._reader.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def __repr__(self) -> str:
        return (
            f"<refindex.Archive {urls.display(self.url)}: version {self.version}, {len(self.arrays)} arrays, "
            f"{len(self.sources)} sources>"
        )

    def _repr_html_(self) -> str:
        return html.hierarchy(
            "refindex.Archive",
            name=urls.display(self.url),
            facts=[f"version {self.version}"],
            nodes=self.nodes,
            sources=self.sources,
            report=self.report,
        )
