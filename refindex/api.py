"""The public functions: each composes the layers below.

xarray and zarr take most of a second to import. Scanning does without them (worker processes, the command line), so
what serves archives is imported when the first one is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Executor
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace as with_changes
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

from refindex import growth, relocation, storage
from refindex.access import urls
from refindex.access.files import Stale
from refindex.access.remembered import remember, remembered
from refindex.access.transport import RemoteStats
from refindex.access.trust import Allow, Allowed
from refindex.difference import Difference, compare
from refindex.growth import Growth, How
from refindex.join import JoinOptions, Member, alike
from refindex.join import join as join_members
from refindex.join.options import OnDifference, Overlap
from refindex.model.change import Commit
from refindex.model.manifest import Manifest, ReportEntry, ScanReport, Status, set_writer
from refindex.relocation import Relocation
from refindex.scan import Isolation, Job, Progress, Scanned, Spool, expand, named, scan_alone, scan_many
from refindex.storage import Removed
from refindex.verification import Stage, Verification

if TYPE_CHECKING:
    from refindex.archive import Archive
    from refindex.optimization import Optimized, Rewriting
    from refindex.publication import Published

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
    checksum: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    storage_options: Mapping[str, Any] | None = None,
    strict: bool = False,
    progress: bool | Callable[[Progress], None] = False,
    resume: str | os.PathLike[str] | Spool | None = None,
    retries: int = 1,
    isolate: bool | Isolation = False,
    allow: Allow = None,
    stats: RemoteStats | None = None,
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
    checksum:
        Whether to read all that is referred to, and keep a checksum (CRC-32C) of each chunk: reading a chunk that has
        changed since then is an error, and every read of a part of a chunk takes all of it.
    workers:
        Processes; 1 stays in this one. By default as many as there are cores, once the files that were scanned so far
        show that it pays.
    executor:
        Any ``concurrent.futures`` executor to scan in instead.
    storage_options:
        Options for fsspec: for all sources, or by URL prefix (``{"s3://bucket/": {"anon": True}}``), see
        :mod:`refindex.access.options`.
    strict:
        Whether the first file that cannot be scanned is an error; otherwise it is named in the report.
    progress:
        True for a bar, or a function that is called after every file.
    resume:
        A folder in which what comes of each of several files is kept: a scan that was interrupted goes on there when it
        is called again. Local files that have changed meanwhile are scanned again. It stays until it is removed.
    retries:
        How often files are tried again, when all others are done, that failed for what may pass: a server that does not
        answer, a worker that died.
    isolate:
        For files of unknown origin: whether each is scanned in a child process, so that one that crashes the HDF5
        library, does not come to an end or takes all memory costs itself alone. An :class:`Isolation` says after how
        many seconds, and with how many bytes. Not together with ``executor``.
    allow:
        Folders and files, by path or URL, that the sources may refer to besides what lies in and below their own
        folders; ``"*"`` for everything. Links, external data and sources of virtual datasets that lead elsewhere are
        not followed, and the report says so.
    stats:
        What the scan costs is added to it.

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
        If the only source (with ``strict``, any) cannot be scanned, or none of several. FormatError also if ``resume``
        has what another version of refindex kept, or a scan of other variables.
    ConflictError
        If another process is scanning into the folder ``resume``.
    """
    options = JoinOptions.of(
        concat_dim=concat_dim, stack=stack, merge=merge, overlap=overlap, on_difference=on_difference
    )
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found = expand(several, storage_options)
    allowed = named(several, Allowed.of(allow))
    isolation = _isolation(isolate, executor)
    alone = len(found) == 1 and len(several) == 1 and not options.stack
    if alone and isolation is None:
        job = Job(variables=variables, storage_options=storage_options, checksum=checksum, allowed=allowed)
        return scan_alone(found[0], job, stats)
    scanned = _scan_each(
        found,
        variables,
        workers,
        executor,
        storage_options,
        checksum=checksum,
        strict=strict,
        progress=progress,
        resume=resume,
        retries=retries,
        isolation=isolation,
        allowed=allowed,
        stats=stats,
    )
    if alone:
        return scanned.files[found[0]].manifest()
    return _together(scanned, join, options, storage_options)


def _isolation(isolate: bool | Isolation, executor: Executor | None) -> Isolation | None:
    if not isolate:
        return None
    if executor is not None:
        raise ValueError("give executor or isolate, not both: files are isolated in child processes of this one")
    return Isolation() if isolate is True else isolate


def _together(
    scanned: Scanned,
    how: bool | Literal["auto"],
    options: JoinOptions,
    storage_options: Mapping[str, Any] | None,
) -> Manifest:
    """Scanned files as one manifest: joined, or side by side."""
    asked = how is True or bool(options.concat_dim or options.stack or options.merge)
    if how is False or (not asked and not alike([file.nodes for file in scanned.files.values()])):
        united = scanned.side_by_side()
        if how is False:
            return united
        note = ReportEntry(
            source=urls.display(next(iter(scanned.files))),
            path="/",
            status=Status.NOTE,
            reason="the files have no variable with the same dimensions in common: each is a group of its own",
        )
        return with_changes(united, report=ScanReport(entries=(*united.report, note)))
    if len(scanned.files) == 1 and not options.stack:
        only = next(iter(scanned.files.values())).manifest()
        return with_changes(only, report=ScanReport(entries=(*only.report, *scanned.failures)))
    members = [Member.of_scanned(file, urls.display(url), storage_options) for url, file in scanned.files.items()]
    joined = join_members(members, options).to_manifest()
    return with_changes(joined, report=ScanReport(entries=(*joined.report, *scanned.failures)))


def _scan_each(
    found: list[str],
    variables: Collection[str] | None,
    workers: int | None,
    executor: Executor | None,
    storage_options: Mapping[str, Any] | None,
    *,
    checksum: bool,
    strict: bool,
    progress: bool | Callable[[Progress], None],
    resume: str | os.PathLike[str] | Spool | None,
    retries: int,
    isolation: Isolation | None,
    allowed: Allowed,
    stats: RemoteStats | None,
) -> Scanned:
    watching: AbstractContextManager[Callable[[Progress], None] | None]
    if callable(progress):
        watching = nullcontext(progress)
    elif progress:
        from refindex.progress import progress_bar

        watching = progress_bar(len(found))
    else:
        watching = nullcontext(None)
    # A spool of the caller stays open: what failed is in it, too.
    spool = resume if isinstance(resume, Spool) else Spool() if resume is None else Spool.resume(resume)
    with watching as report, nullcontext() if spool is resume else closing(spool):
        return scan_many(
            found,
            variables=variables,
            checksum=checksum,
            workers=workers,
            executor=executor,
            storage_options=storage_options,
            strict=strict,
            progress=report,
            stats=stats,
            spool=spool,
            retries=retries,
            isolation=isolation,
            allowed=allowed,
        )


def append(
    archive: str | os.PathLike[str],
    sources: Sources,
    *,
    replace: bool = False,
    concat_dim: str | Iterable[str] = "auto",
    overlap: Overlap | None = None,
    on_difference: OnDifference | None = None,
    variables: Collection[str] | None = None,
    checksum: bool = False,
    workers: int | None = None,
    executor: Executor | None = None,
    storage_options: Mapping[str, Any] | None = None,
    strict: bool = False,
    progress: bool | Callable[[Progress], None] = False,
    resume: str | os.PathLike[str] | Spool | None = None,
    retries: int = 1,
    isolate: bool | Isolation = False,
    allow: Allow = None,
    stats: RemoteStats | None = None,
    dry_run: bool = False,
) -> Growth:
    """Join more files to an archive, as it was joined before, in one commit.

    Only files that the archive does not have are scanned. They are put where their coordinates say, between others if
    need be. Along the leading dimension, an append costs in proportion to what is new.

    Parameters
    ----------
    archive:
        Path or URL of an archive.
    sources:
        Paths, URLs, globs or folders. Files that the archive has, and that have not changed, are skipped.
    replace:
        Whether files that have changed since they were scanned take the place of what they were.
    concat_dim:
        For an archive of one file: along which dimensions it grows; ``"auto"``: those whose coordinates differ. An
        archive of more is joined as it was.
    overlap, on_difference:
        As for :func:`scan`; by default as when the archive was made.
    variables, checksum, workers, executor, storage_options, strict, progress, resume, retries, isolate, stats:
        As for :func:`scan`.
    allow:
        As for :func:`scan`, and for the files that the archive has, as for :func:`open`.
    dry_run:
        Whether to scan, join and report, and write nothing.

    Raises
    ------
    NotFoundError
        If there is no archive, or no such file.
    StaleSourceError
        If the archive has a file in another state, and ``replace`` is not set.
    JoinError
        If the files cannot be joined to it; the message lists all that stands in the way. Nothing is written.
    ConflictError
        If other writers commit all the time, for minutes.
    """
    url = urls.absolute(archive).rstrip("/")
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    found = expand(several, storage_options)
    allowed = named(several, Allowed.of(allow))
    # What is joined to an archive is put where the coordinates in its files say: they are read.
    own = allowed.beside(url).adding(remembered(url))
    with closing(storage.open_reader(url, storage_options=storage_options)) as reader:
        version = reader.version
        own.check((source.url for source in reader.sources), urls.display(url), links=True)
        files = growth.sort_files(found, reader.sources, storage_options)
    if not replace:
        growth.refuse_changed(files.changed)
    todo = [*files.new, *files.changed]
    if not todo:
        return Growth(version=version, skipped=tuple(urls.display(name) for name in files.same))
    scanned = _scan_each(
        todo,
        variables,
        workers,
        executor,
        storage_options,
        checksum=checksum,
        strict=strict,
        progress=progress,
        resume=resume,
        retries=retries,
        isolation=_isolation(isolate, executor),
        allowed=allowed,
        stats=stats,
    )
    if not dry_run:
        # Before it is committed: other writers, who are to join theirs to it, open what is then the newest version.
        remember(url, (source.url for file in scanned.files.values() for source in file.sources))
    return growth.append(
        url,
        scanned,
        replaced=[name for name in files.changed if name in scanned.files],
        skipped=files.same,
        how=How(
            overlap=overlap,
            on_difference=on_difference,
            concat_dim=JoinOptions.of(concat_dim=concat_dim).concat_dim,
        ),
        storage_options=storage_options,
        dry_run=dry_run,
        allowed=own,
    )


def remove(
    archive: str | os.PathLike[str],
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    *,
    allow: Allow = None,
    storage_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
) -> Growth:
    """Take files out of a joined archive, in one commit.

    Parameters
    ----------
    archive:
        Path or URL of an archive.
    sources:
        Paths, URLs or globs of files that it has; they need not exist any more.
    allow:
        As for :func:`open`.
    dry_run:
        Whether to tell what would be removed, and write nothing.

    Raises
    ------
    NotFoundError
        If the archive has no such file, or none would be left.
    UnsupportedError
        If it is not joined, or merged of files with different variables.
    """
    several = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    url = urls.absolute(archive).rstrip("/")
    return growth.remove(
        url,
        [os.fspath(source) for source in several],
        storage_options=storage_options,
        dry_run=dry_run,
        allowed=Allowed.of(allow).beside(url).adding(remembered(url)),
    )


def relocate(
    archive: str | os.PathLike[str],
    old: str | os.PathLike[str],
    new: str | os.PathLike[str],
    *,
    storage_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    check: bool = True,
) -> Relocation:
    """Tell an archive that files have moved, in one commit. References stay as they are, and no file is scanned.

    Parameters
    ----------
    archive:
        Path or URL of an archive.
    old, new:
        Where files were and where they are now: folders, or single files, by path or URL. All sources at or below
        ``old`` are recorded at, or below, ``new``.
    storage_options:
        Options for fsspec, for the archive and the new places.
    dry_run:
        Whether to look at the files and tell what would be recorded, and write nothing.
    check:
        Whether to look at each file at its new place. It must have the size that was recorded; its time and entity tag
        are recorded anew, since copies have others. If False, nothing is looked at, and what identifies each file
        stays as it was recorded: a file with another time or entity tag raises ``StaleSourceError`` when it is read.

    Raises
    ------
    NotFoundError
        If there is no archive, or no source of it is at ``old``; if files are not at their new places.
    StaleSourceError
        If files at the new places have other sizes.
    SourceError
        If files there cannot be looked at, or several of this; all of them are named. Nothing is written.
    ExistsError
        If two sources would get the same URL.
    ValueError
        If ``old`` and ``new`` are the same.
    ConflictError
        If other writers commit all the time, for minutes.
    """
    url = urls.absolute(archive).rstrip("/")
    done = relocation.relocate(url, old, new, check=check, storage_options=storage_options, dry_run=dry_run)
    if not dry_run:
        remember(url, (urls.absolute(now) for _, now in done.moved))
    return done


def optimize(
    archive: str | os.PathLike[str],
    variables: str | Collection[str],
    *,
    chunks: Mapping[str, int] | Literal["time-series", "map"],
    shards: Mapping[str, int] | Literal["auto"] | None = "auto",
    codec: str = "blosc-zstd:3",
    to: str | os.PathLike[str] | None = None,
    resume: bool = True,
    memory: int = 512 << 20,
    workers: int | None = None,
    allow: Allow = None,
    storage_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    progress: bool | Callable[[Rewriting], None] = False,
) -> Optimized:
    """Rewrite variables that are read often in other chunks, as Zarr v3 shards beside the archive, in one commit.

    The values are those that the archive serves, bit for bit; dimensions, attributes and fill value stay, and so do the
    files that they come from. Chunks that do not exist are not made. What is written is an archive of the old values:
    that an original changes later is not noticed any more when the variable is read.

    Parameters
    ----------
    archive:
        Path or URL of an archive that is stored.
    variables:
        Names or paths of arrays.
    chunks:
        Lengths by names of dimensions, -1 for all of it; along others, chunks stay as long as they are.
        ``"time-series"``, ``"map"``: chunks of about 1 MiB of values that are good for that.
    shards:
        Lengths of the files' parts of the array, as whole chunks; ``"auto"``: about 64 MiB of values. None: a file a
        chunk.
    codec:
        ``zstd:LEVEL``, ``blosc-zstd:LEVEL`` (``lz4``, ``lz4hc``, ``zlib``, ``blosclz``), or ``none``.
    to:
        Path or URL of the folder in which each variable gets a folder of its own; ``ARCHIVE.data`` if None.
    resume:
        Whether shards that an interrupted call with the same options wrote of the same references are taken. They are
        known by the name of the folder.
    memory:
        Bytes that are held at a time, about. At least three chunks must fit.
    workers:
        Threads that compress; by default as many as there are cores, up to 8.
    allow:
        As for :func:`open`.
    storage_options:
        Options for fsspec, for the archive, its sources, and ``to``.
    dry_run:
        Whether to tell what would be written, and how often each stored value would be decoded, and write nothing.
    progress:
        True for a bar, or a function that is called after every block.

    Raises
    ------
    NotFoundError
        If there is no archive, or no such array.
    ValueError
        If lengths do not fit the array, or memory; if there is no such codec.
    UnsupportedError
        If values are of variable length; if nothing can be committed to the archive (over HTTP, remote SQLite).
    StaleSourceError
        If a source is not what was scanned.
    SourceError
        If sources cannot be read, or shards not be written. Finished shards stay for the next call.
    ConflictError
        If another writer has changed a variable meanwhile, or another process writes the same. In all cases, nothing is
        committed.
    """
    from refindex import optimization

    with optimization.watching(progress) as report:
        return optimization.optimize(
            urls.absolute(archive).rstrip("/"),
            optimization.Wish(
                variables=(variables,) if isinstance(variables, str) else tuple(variables),
                chunks=chunks,
                shards=shards,
                codec=codec,
                to=None if to is None else os.fspath(to),
                resume=resume,
                memory=memory,
                workers=workers,
                dry_run=dry_run,
                storage_options=storage_options,
                allow=Allowed.of(allow),
            ),
            report,
        )


def publish(
    archive: Archive | Manifest | str | os.PathLike[str],
    dest: str | os.PathLike[str],
    *,
    sources: Mapping[str | os.PathLike[str], str | os.PathLike[str]] | None = None,
    version: int | None = None,
    overwrite: bool = False,
    check: bool = True,
    summary: bool = True,
    stac: bool = True,
    title: str | None = None,
    license: str | None = None,  # noqa: A002 -- the plain name of it
    allow_local: bool = False,
    allow: Allow = None,
    storage_options: Mapping[str, Any] | None = None,
    dest_options: Mapping[str, Any] | None = None,
    dry_run: bool = False,
    progress: bool | Callable[[str, int, int], None] = False,
) -> Published:
    """Write a compact copy of one version of an archive for others, with a page and a STAC item that tell of it.

    References are copied in bounded memory, whatever their number, between Parquet and SQLite, too. Sources below the
    folder that holds the copy are recorded relative to it.

    Parameters
    ----------
    archive:
        An open archive, a manifest, or the path or URL of an archive or a source.
    dest:
        Path or URL of the copy: SQLite if it ends in ``.sqlite`` (``.sqlite3``, ``.db``), else Parquet.
    sources:
        Where files are public: of each prefix (a folder or a file, by path or URL) another. The longest one counts.
    version:
        Snapshot of an archive that is given by its path; the newest if None.
    overwrite:
        Whether an archive at ``dest`` gets a new version (Parquet: the old ones stay until a vacuum), or is replaced as
        a whole (SQLite).
    check:
        Whether to look at each source at its public place: it must be there, have the size that was recorded, and be
        read by ranges. What identifies those that are elsewhere than they were scanned is recorded as it is there.
    summary, stac:
        Whether to write the page (``index.html`` in a folder of Parquet files, else ``NAME.html``) and the STAC item
        (``stac.json``, else ``NAME.stac.json``).
    title, license:
        For these; by default the attributes of the root group.
    allow_local:
        Whether sources may be files of this machine that others cannot read.
    allow:
        As for :func:`open`, for an archive that is given by its path.
    storage_options:
        Options for fsspec, for the archive and its sources.
    dest_options:
        Options for what is written, and sources beside it; ``storage_options`` if None.
    dry_run:
        Whether to look at everything, tell what would be written and which sources cannot be read, and write nothing.
    progress:
        True for a bar, or a function that is called with ``"looking"`` or ``"writing"``, how many sources or references
        are done, and how many there are.

    Raises
    ------
    ExistsError
        If something is at ``dest`` and ``overwrite`` is not set, or a page or item that was not written here; if two
        sources would get the same URL.
    NotFoundError
        If there is no such archive, or no source of it below a prefix; if sources are not at their public places.
    StaleSourceError
        If sources there are not those that were scanned.
    SourceError
        If others cannot read sources, or several of this, all of them named; if ``dest`` cannot be written.
    ManifestError
        If the archive is damaged.
    ConflictError
        If another writer commits to ``dest`` meanwhile. In all cases, what is at ``dest`` stays as it is.
    """
    from refindex import publication
    from refindex.archive import Archive
    from refindex.serve.opening import Opening

    options = dict(storage_options or {})
    if isinstance(archive, Archive):
        opening = archive.store.archive
    elif isinstance(archive, Manifest):
        opening = Opening(manifest=archive, storage_options=options)
    else:
        opening = Opening(url=urls.absolute(archive).rstrip("/"), version=version, storage_options=options, allow=allow)
    with publication.watching(progress) as watch:
        return publication.publish(
            opening,
            publication.Wish(
                dest=urls.absolute(dest).rstrip("/"),
                sources=sources or {},
                overwrite=overwrite,
                check=check,
                summary=summary,
                stac=stac,
                title=title,
                license=license,
                allow_local=allow_local,
                dest_options=opening.storage_options if dest_options is None else dest_options,
                dry_run=dry_run,
                watch=watch,
            ),
        )


def log(archive: str | os.PathLike[str], *, storage_options: Mapping[str, Any] | None = None) -> list[Commit]:
    """The versions of an archive that can be opened, the newest first.

    Raises
    ------
    NotFoundError
        If there is no archive.
    ManifestError
        If its log is damaged.
    """
    return storage.history(urls.absolute(archive).rstrip("/"), storage_options)


def diff(
    archive: str | os.PathLike[str],
    old: int,
    new: int | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Difference:
    """What differs between two versions of an archive: files, groups, arrays, references.

    Parameters
    ----------
    old, new:
        Versions; ``new`` is the newest if None.

    Raises
    ------
    NotFoundError
        If there is no archive, or not these versions of it.
    ManifestError
        If either is damaged.
    """
    url = urls.absolute(archive).rstrip("/")
    with (
        closing(storage.open_reader(url, version=old, storage_options=storage_options)) as before,
        closing(storage.open_reader(url, version=new, storage_options=storage_options)) as after,
    ):
        return compare(before, after)


def verify(
    archive: str | os.PathLike[str],
    *,
    sample: int | Literal["all"] = 1000,
    variables: Collection[str] | None = None,
    seed: int = 0,
    sources_only: bool = False,
    version: int | None = None,
    allow: Allow = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool | Callable[[Stage], None] = False,
    workers: int | None = None,
) -> Verification:
    """Find out whether an archive is right: its manifest, its files, and the values that it serves.

    The manifest is read whole, some references at a time. Every file is looked at: is it there, and what was scanned?
    Chunks are read as the archive serves them, and compared with what h5py, netCDF4 or zarr reads in the original; so
    are types, shapes, dimensions, fill values and attributes. Nothing is written.

    Parameters
    ----------
    archive:
        Path or URL of an archive, or of a file, which is scanned on the spot.
    sample:
        How many chunks are compared, spread over arrays, encodings and files; ``"all"``: every one. 0: none, nor what
        is said of arrays.
    variables:
        Names or paths of the arrays that are compared; all if None. The manifest and the files are looked at in any
        case.
    seed:
        Of the random choice of chunks: another one looks at others.
    sources_only:
        Whether to look at the manifest and the files only.
    version:
        Snapshot; the newest if None.
    allow, storage_options:
        As for :func:`open`.
    progress:
        True for a bar, or a function that is called with a :class:`~refindex.verification.result.Stage`.
    workers:
        Threads in which chunks are read; by default as many as there are cores, up to 8.

    Returns
    -------
    Verification
        Problems, each with its place, and what was looked at. Its ``ok`` says whether there are none.

    Raises
    ------
    NotFoundError
        If there is no archive, no such version, or no such array.
    ManifestError
        If it cannot be opened at all. What is wrong with an archive that can is a problem, and raises nothing.
    NotAllowedError
        If it refers to files that it may not read.
    VerificationInterrupted
        A ``KeyboardInterrupt`` with what was found so far.
    """
    from refindex.verification.run import verify as run

    return run(
        urls.absolute(archive).rstrip("/"),
        sample=sample,
        variables=variables,
        seed=seed,
        sources_only=sources_only,
        version=version,
        allow=Allowed.of(allow),
        storage_options=storage_options,
        progress=progress,
        workers=workers,
    )


def restore(archive: str | os.PathLike[str], version: int, *, storage_options: Mapping[str, Any] | None = None) -> int:
    """Make an old version the newest again, as a new version; returns its number.

    Raises
    ------
    NotFoundError
        If there is no archive, or not this version of it.
    ConflictError
        If another writer commits meanwhile.
    """
    return storage.restore(urls.absolute(archive).rstrip("/"), version, storage_options=storage_options)


def vacuum(
    archive: str | os.PathLike[str],
    *,
    keep_versions: int | None = None,
    older_than: timedelta | None = None,
    dry_run: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Removed]:
    """Remove what no version needs: old versions, and files of writers that were stopped half-way.

    Parameters
    ----------
    keep_versions:
        Versions beyond so many of the newest expire.
    older_than:
        Versions that were committed longer ago expire. With neither, none does. The newest always stays.
    dry_run:
        Whether to tell what would be removed, and remove nothing.

    Returns
    -------
    list of Removed
        What was removed, and its bytes.

    Raises
    ------
    NotFoundError
        If there is no archive.
    """
    return storage.vacuum(
        urls.absolute(archive).rstrip("/"),
        keep_versions=keep_versions,
        older_than=older_than,
        dry_run=dry_run,
        storage_options=storage_options,
    )


def open(  # noqa: A001 -- the name in the public face, used as refindex.open
    url: str | os.PathLike[str],
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    storage_options: Mapping[str, Any] | None = None,
    stale: Stale = "error",
    allow: Allow = None,
) -> Archive:
    """Open an archive, or an HDF5 / NetCDF file directly (it is scanned on the spot).

    Parameters
    ----------
    url:
        Path or URL of a manifest or a source file.
    version:
        Snapshot of a stored manifest; the newest if None.
    as_of:
        A time instead: the newest snapshot that is not younger. A time without a zone is local time.
    storage_options:
        Options for fsspec, for the manifest and its sources: for all, or by URL prefix.
    stale:
        What to do when a source is not what was scanned: ``"error"``, ``"warn"`` or ``"ignore"``.
    allow:
        Folders and files, by path or URL, that the archive may read besides what lies below the folder that holds it;
        ``"*"`` for everything. What you have scanned, appended or imported into it yourself, on this machine, is
        remembered. Of a file that is scanned on the spot: what it may refer to, as for :func:`scan`.

    Raises
    ------
    NotFoundError
        If there is no such file, archive or version.
    NotAllowedError
        If the archive refers to files that it may not read; the message says what allows them.
    ManifestError
        If the manifest is damaged or of a newer format.
    """
    from refindex.archive import Archive
    from refindex.serve.opening import Opening

    if version is not None and as_of is not None:
        raise ValueError("give version or as_of, not both")
    if as_of is not None:
        with closing(
            storage.open_reader(urls.absolute(url).rstrip("/"), as_of=as_of, storage_options=storage_options)
        ) as reader:
            version = reader.version
    if stale not in ("error", "warn", "ignore"):
        raise ValueError(f"stale must be 'error', 'warn' or 'ignore', got {stale!r}")
    return Archive(
        Opening(
            url=urls.absolute(url).rstrip("/"),
            version=version,
            storage_options=dict(storage_options or {}),
            stale=stale,
            allow=allow,
        )
    )


def _save(
    manifest: Manifest, url: str, *, overwrite: bool = False, storage_options: Mapping[str, Any] | None = None
) -> int:
    version = storage.save(manifest, url, overwrite=overwrite, storage_options=storage_options)
    # Whoever has a manifest in memory has named its files, or allowed them when it was opened.
    place = urls.absolute(url).rstrip("/")
    remember(place, (source.url for source in manifest.sources), new=not version)
    return version


set_writer(_save)
