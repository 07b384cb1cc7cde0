"""The public functions: each composes the layers below.

xarray and zarr take most of a second to import. Scanning does without them (worker processes, the command line), so
what serves archives is imported when the first one is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from refindex.access import urls
from refindex.access.files import Stale
from refindex.model.manifest import Manifest, set_writer
from refindex.scan import Progress, expand, scan_many, scan_source

if TYPE_CHECKING:
    from refindex.archive import Archive

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
    """Index HDF5 / NetCDF files: where every chunk lies, and how its bytes become values.

    Parameters
    ----------
    sources:
        Paths, URLs, globs or folders, one or several. One file becomes the root of the hierarchy; of several, each
        becomes a group named after it.
    variables:
        Names or paths of the arrays wanted; the coordinates of their dimensions come along. All if None.
    workers:
        Processes; 1 stays in this one. By default as many as there are cores, once the files that were scanned so far
        show that it pays.
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
    elif progress:
        from refindex.progress import progress_bar

        watching = progress_bar(len(found))
    else:
        watching = nullcontext(None)
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


def open(  # noqa: A001 -- the name in the public face, used as refindex.open
    url: str | os.PathLike[str],
    *,
    version: int | None = None,
    storage_options: Mapping[str, Any] | None = None,
    stale: Stale = "error",
) -> Archive:
    """Open an archive, or an HDF5 / NetCDF file directly (it is scanned on the spot).

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
    from refindex.archive import Archive
    from refindex.serve.opening import Opening

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


def _save(
    manifest: Manifest, url: str, *, overwrite: bool = False, storage_options: Mapping[str, Any] | None = None
) -> int:
    from refindex import storage

    return storage.save(manifest, url, overwrite=overwrite, storage_options=storage_options)


set_writer(_save)
