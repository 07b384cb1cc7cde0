"""The public functions: each composes the layers below."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt
import xarray as xr
import zarr

from refindex import storage
from refindex.access import urls
from refindex.access.files import Stale
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Manifest, Node, ScanReport, Source
from refindex.progress import progress_bar
from refindex.scan import Progress, expand, scan_many, scan_source
from refindex.serve.keys import ManifestKeys
from refindex.serve.opening import Opening
from refindex.serve.quiet import quiet
from refindex.serve.resolver import Resolver
from refindex.serve.xarray_engine import RefindexBackendEntrypoint
from refindex.serve.zarr_store import RefindexStore
from refindex.storage.protocol import require

type Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def scan(
    sources: Sources,
    *,
    variables: Collection[str] | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    storage_options: Mapping[str, Any] | None = None,
    strict: bool = False,
    progress: bool | Callable[[Progress], None] = False,
) -> Manifest:
    """Index HDF5 / NetCDF-4 files: where every chunk lies, and how its bytes become values.

    Parameters
    ----------
    sources:
        Paths, URLs, globs or folders, one or several. One file becomes the root of the hierarchy; of several, each
        becomes a group named after it.
    variables:
        Names or paths of the arrays wanted; the coordinates of their dimensions come along. All if None.
    workers:
        Processes; 1 stays in this one. By default as many as there are cores, for more than a few files.
    executor:
        Any ``concurrent.futures`` executor to scan in instead.
    storage_options:
        Options for fsspec, for all sources.
    strict:
        Whether the first file that cannot be scanned is an error; otherwise it is named in the report.
    progress:
        True for a bar, or a function that is called after every file.

    Returns
    -------
    Manifest
        In memory; :meth:`Manifest.save` writes it. ``manifest.report`` says what is served how, what is not, and why.

    Raises
    ------
    NotFoundError
        If a source, or any file that matches it, is not there.
    FormatError, UnsupportedError, SourceError
        If the only source (with ``strict``, any) cannot be scanned, or none of several.
    """
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found = expand(several, storage_options)
    if len(found) == 1 and len(several) == 1:
        return scan_source(found[0], variables=variables, storage_options=storage_options)
    watching: AbstractContextManager[Callable[[Progress], None] | None]
    if callable(progress):
        watching = nullcontext(progress)
    else:
        watching = progress_bar(len(found)) if progress else nullcontext(None)
    with watching as report:
        return scan_many(
            found,
            variables=variables,
            workers=workers,
            executor=executor,
            storage_options=storage_options,
            strict=strict,
            progress=report,
        )


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
        self._resolver = Resolver(reader, storage_options=opening.storage_options, stale=opening.stale)
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
    def group(self) -> zarr.Group:
        """The root group, read through stock zarr-python."""
        with quiet(), zarr.config.set({"array.rectilinear_chunks": True}):
            return zarr.open_group(self.store, mode="r", zarr_format=3)

    def find(self, path: str, chunks: npt.ArrayLike | None = None) -> ChunkTable:
        """The references of an array, or of those of the given chunk numbers (sorted) that exist."""
        return self._reader.find(require(self._reader.nodes, path, urls.display(self.url)).path, chunks)

    def load(self) -> Manifest:
        """The whole manifest, all references included, in memory."""
        return storage.load(self._reader)

    def to_xarray(self, group: str = "", **options: Any) -> xr.Dataset:
        """A group as a lazy xarray dataset. Options are those of :func:`xarray.open_dataset` (``chunks={}`` for dask)."""
        return xr.open_dataset(self.store, engine=RefindexBackendEntrypoint, group=group, **options)  # type: ignore[arg-type]

    def to_datatree(self, **options: Any) -> xr.DataTree:
        """All groups as a lazy xarray tree. Options are those of :func:`xarray.open_datatree`."""
        return xr.open_datatree(self.store, engine=RefindexBackendEntrypoint, **options)  # type: ignore[arg-type]

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


def open(  # noqa: A001 -- the name in the public face, used as refindex.open
    url: str | os.PathLike[str],
    *,
    version: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    stale: Stale = "error",
) -> Archive:
    """Open an archive, or an HDF5 / NetCDF-4 file directly (it is scanned on the spot).

    Parameters
    ----------
    url:
        Path or URL of a manifest or a source file.
    version:
        Snapshot of a stored manifest; the newest if None.
    storage_options:
        Options for fsspec, for the manifest and its sources.
    stale:
        What to do when a source is not what was scanned: ``"error"``, ``"warn"`` or ``"ignore"``.

    Raises
    ------
    NotFoundError
        If there is no such file, archive or version.
    ManifestError
        If the manifest is damaged or of a newer format.
    """
    if stale not in ("error", "warn", "ignore"):
        raise ValueError(f"stale must be 'error', 'warn' or 'ignore', got {stale!r}")
    return Archive(
        Opening(
            url=urls.absolute(url).rstrip("/"),
            version=version,
            storage_options=dict(storage_options or {}),
            stale=stale,
        )
    )
