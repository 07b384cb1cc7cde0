"""``refindex append`` and ``refindex remove``: archives that grow and shrink."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from refindex import api
from refindex.cli.cluster import dask_executor
from refindex.cli.keeping import stats_json, tell_stats, write_failures
from refindex.cli.options import (
    ALLOW,
    CHECKSUM,
    DASK,
    FAILURES,
    FROM_FILE,
    ISOLATE,
    JSON,
    MEMORY_LIMIT,
    ON_DIFFERENCE,
    OVERLAP,
    PROGRESS,
    RETRIES,
    SOURCES,
    STATS,
    STORAGE_OPTIONS,
    STRICT,
    TIME_LIMIT,
    VARIABLE,
    WORKERS,
    choice,
    dump,
    isolation,
    not_both,
    parse_allow,
    parse_storage_options,
    plural,
)
from refindex.cli.scan import named_sources, tell_report
from refindex.errors import RefindexError
from refindex.growth import Growth
from refindex.join.options import OnDifference, Overlap
from refindex.model.manifest import Status
from refindex.scan import ScanStats, Spool

ARCHIVE = Annotated[str, typer.Argument(help="An archive.", metavar="ARCHIVE")]


def append(
    archive: ARCHIVE,
    sources: SOURCES = None,
    from_file: FROM_FILE = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take files that have changed since as they are now.")
    ] = False,
    concat_dim: Annotated[
        list[str] | None,
        typer.Option("--concat-dim", help="For an archive of one file: along which dimension it grows.", metavar="DIM"),
    ] = None,
    overlap: OVERLAP = None,
    on_difference: ON_DIFFERENCE = None,
    variable: VARIABLE = None,
    checksum: CHECKSUM = False,
    workers: WORKERS = None,
    dask: DASK = None,
    strict: STRICT = False,
    retries: RETRIES = 1,
    failures: FAILURES = None,
    isolate: ISOLATE = False,
    time_limit: TIME_LIMIT = None,
    memory_limit: MEMORY_LIMIT = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Scan, join and report, write nothing.")] = False,
    progress: PROGRESS = None,
    show_stats: STATS = False,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Join more files to an archive, in one commit; only files that it does not have are scanned."""
    wanted = named_sources(sources, from_file)
    not_both(workers, dask)
    isolated = isolation(isolate, time_limit, memory_limit, dask)
    spool, stats = Spool(), ScanStats()
    try:
        with dask_executor(dask) as executor:
            done = api.append(
                archive,
                wanted,
                replace=replace,
                concat_dim=concat_dim or "auto",
                overlap=choice("--overlap", overlap, Overlap),
                on_difference=choice("--on-difference", on_difference, OnDifference),
                variables=variable,
                checksum=checksum,
                workers=workers,
                executor=executor,
                storage_options=parse_storage_options(storage_options),
                strict=strict,
                progress=sys.stderr.isatty() and not json if progress is None else progress,
                resume=spool,
                retries=retries,
                isolate=isolated,
                allow=parse_allow(allow),
                stats=stats,
                dry_run=dry_run,
            )
    except KeyboardInterrupt:
        typer.echo("refindex: interrupted; nothing was written", err=True)
        raise typer.Exit(130) from None
    except RefindexError:
        write_failures(failures, spool)
        raise
    write_failures(failures, spool)
    _tell(archive, done, json=json, dry_run=dry_run, stats=stats if show_stats else None)
    if done.report.select(Status.FAILED):
        raise typer.Exit(3)


def remove(
    archive: ARCHIVE,
    sources: Annotated[list[str], typer.Argument(help="Files that it has, by path, URL or glob.", metavar="SOURCES")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be removed, write nothing.")] = False,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Take files out of a joined archive, in one commit. The files themselves are not touched."""
    done = api.remove(
        archive,
        sources,
        allow=parse_allow(allow),
        storage_options=parse_storage_options(storage_options),
        dry_run=dry_run,
    )
    _tell(archive, done, json=json, dry_run=dry_run)


def _tell(archive: str, done: Growth, *, json: bool, dry_run: bool, stats: ScanStats | None = None) -> None:
    changes = {"added": done.added, "replaced": done.replaced, "removed": done.removed, "skipped": done.skipped}
    if json:
        report = [
            {"source": e.source, "path": e.path, "status": str(e.status), "reason": e.reason} for e in done.report
        ]
        told = {"version": done.version, **{key: list(names) for key, names in changes.items()}, "report": report}
        dump(told | ({} if stats is None else {"stats": stats_json(stats)}))
        return
    parts = [f"{plural(len(names), 'file')} {what}" for what, names in changes.items() if names]
    typer.echo(", ".join(parts) or "nothing to do")
    tell_report(done.report)
    if any(names for what, names in changes.items() if what != "skipped"):
        typer.echo("nothing was written" if dry_run else f"wrote {archive} (version {done.version})")
    if stats is not None:
        tell_stats(stats)
