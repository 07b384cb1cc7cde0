"""The public functions: each composes the layers below.

xarray and zarr take most of a second to import. Scanning does without them (worker processes, the command line), so
what serves archives is imported when the first one is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from refindex.access import urls
from refindex.access.files import Stale
from refindex.join import JoinOptions, Member, alike
from refindex.join import join as join_members
from refindex.join.options import OnDifference, Overlap
from refindex.model.manifest import Manifest, ReportEntry, ScanReport, Status, set_writer
from refindex.scan import Progress, Scanned, expand, scan_many, scan_source

if TYPE_CHECKING:
    from refindex.archive import Archive

type Sources = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


def scan(
    sources: Sources,
    *,
    join: bool | Literal["auto"] = "auto",
    concat_dim: str | Iterable[str] = "auto",
    stack: str | Iterable[str] | Mapping[str, str] | None = None,
    merge: bool = False,
    overlap: Overlap = "error",
    on_difference: OnDifference = "error",
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
        Paths, URLs, globs or folders, one or several. One file becomes the root of the hierarchy; several are joined
        into one.
    join:
        Whether to join several files; False: each becomes a group named after it. ``"auto"`` joins files that look like
        parts of one archive: that have a variable with the same dimensions in common.
    concat_dim:
        Dimensions along which files are concatenated; ``"auto"``: those whose coordinates differ. Files lie in the
        order of their coordinates; without coordinates, in the order in which they are given.
    stack:
        New dimensions, one file after the other: a name, or a mapping of names to where a file's value comes from (a
        regular expression with one group or a date pattern for its name, ``@`` and a global attribute; empty: a scalar
        variable of that name, else the file's name).
    merge:
        Whether files with the same coordinates may hold different variables.
    overlap:
        Where files have coordinates in common: ``"error"``, or take the ``"first"`` or ``"last"`` file.
    on_difference:
        Where a variable without the joined dimension differs: ``"error"``, take the ``"first"`` file's, or ``"stack"``
        all along the joined dimension.
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
    JoinError
        If several files cannot be joined; the message lists all that stands in the way.
    FormatError, UnsupportedError, SourceError
        If the only source (with ``strict``, any) cannot be scanned, or none of several.
    """
    options = JoinOptions.of(
        concat_dim=concat_dim, stack=stack, merge=merge, overlap=overlap, on_difference=on_difference
    )
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found = expand(several, storage_options)
    if len(found) == 1 and len(several) == 1 and not options.stack:
        return scan_source(found[0], variables=variables, storage_options=storage_options)
    scanned = _scan_each(found, variables, workers, executor, storage_options, strict=strict, progress=progress)
    return _together(scanned, join, options)


def _together(scanned: Scanned, how: bool | Literal["auto"], options: JoinOptions) -> Manifest:
    """Scanned files as one manifest: joined, or side by side."""
    manifests = list(scanned.manifests.values())
    asked = how is True or bool(options.concat_dim or options.stack or options.merge)
    if how is False or (not asked and not alike(manifests)):
        united = scanned.side_by_side()
        if how is False:
            return united
        note = ReportEntry(
            source=urls.display(next(iter(scanned.manifests))),
            path="/",
            status=Status.NOTE,
            reason="the files have no variable with the same dimensions in common: each is a group of its own",
        )
        return replace(united, report=ScanReport(entries=(*united.report, note)))
    if len(manifests) == 1 and not options.stack:
        only = manifests[0]
        return replace(only, report=ScanReport(entries=(*only.report, *scanned.failures)))
    members = [Member.of_file(manifest, urls.display(url)) for url, manifest in scanned.manifests.items()]
    joined = join_members(members, options).to_manifest()
    return replace(joined, report=ScanReport(entries=(*joined.report, *scanned.failures)))


def _scan_each(
    found: list[str],
    variables: Collection[str] | None,
    workers: int | None,
    executor: Executor | None,
    storage_options: Mapping[str, Any] | None,
    *,
    strict: bool,
    progress: bool | Callable[[Progress], None],
) -> Scanned:
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
