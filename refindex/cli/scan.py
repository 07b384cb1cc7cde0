"""``refindex scan``: index files into a manifest."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from refindex import api, storage
from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.cli.cluster import dask_executor
from refindex.cli.keeping import spool_of, stats_json, tell_kept, tell_stats, write_failures
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
from refindex.errors import ExistsError, RefindexError
from refindex.join import JoinOptions
from refindex.join.options import OnDifference, Overlap
from refindex.model.manifest import Manifest, ScanReport, Status
from refindex.scan import ScanStats, Spool
from refindex.storage import parquet


def command(
    sources: SOURCES = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", help="Manifest to write: NAME.refindex (Parquet) or NAME.sqlite.", metavar="OUT"),
    ] = None,
    from_file: FROM_FILE = None,
    join: Annotated[
        bool | None,
        typer.Option(
            "--join/--no-join",
            help="Join several files into one hierarchy, or keep each as a group; by default files that look alike "
            "are joined.",
            show_default=False,
        ),
    ] = None,
    concat_dim: Annotated[
        list[str] | None,
        typer.Option(
            "--concat-dim",
            help="Concatenate along this dimension (repeat for more); by default along those whose coordinates differ.",
            metavar="DIM",
        ),
    ] = None,
    stack: Annotated[
        list[str] | None,
        typer.Option(
            "--stack",
            help="Stack files along a new dimension. Its values: NAME=REGEX or NAME=%Y%m%d looks into file names, "
            "NAME=@ATTRIBUTE takes a global attribute, NAME alone a scalar variable of that name or the file's name.",
            metavar="NAME[=FROM]",
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Files with the same coordinates may hold different variables.")
    ] = False,
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
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with what an interrupted scan into OUT has kept, in the folder OUT.scan."),
    ] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start anew, and drop what an interrupted scan into OUT has kept.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Give an archive that exists a new version.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Scan and report, write nothing.")] = False,
    progress: PROGRESS = None,
    show_stats: STATS = False,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Index HDF5 / NetCDF files into a manifest; several are joined into one."""
    wanted = named_sources(sources, from_file)
    if out is None and not dry_run:
        raise typer.BadParameter("say where to write the manifest with --out, or pass --dry-run")
    if resume and fresh:
        raise typer.BadParameter("give --resume or --fresh, not both")
    not_both(workers, dask)
    isolated = isolation(isolate, time_limit, memory_limit, dask)
    options = parse_storage_options(storage_options)
    try:
        JoinOptions.of(stack=stack)
    except ValueError as error:
        raise typer.BadParameter(f"--stack: {error}") from error
    if out is not None and not dry_run:
        _check_output(out, overwrite, options)
    version = None
    stats = ScanStats()
    spool = Spool() if out is None or (dry_run and not resume) else spool_of(out, resume=resume, fresh=fresh)
    try:
        with dask_executor(dask) as executor:
            manifest = api.scan(
                wanted,
                join="auto" if join is None else join,
                concat_dim=concat_dim or "auto",
                stack=stack,
                merge=merge,
                overlap=choice("--overlap", overlap, Overlap) or "error",
                on_difference=choice("--on-difference", on_difference, OnDifference) or "error",
                variables=variable,
                checksum=checksum,
                workers=workers,
                executor=executor,
                storage_options=options,
                strict=strict,
                progress=sys.stderr.isatty() and not json if progress is None else progress,
                resume=spool,
                retries=retries,
                isolate=isolated,
                allow=parse_allow(allow),
                stats=stats,
            )
        if out is not None and not dry_run:
            version = manifest.save(out, overwrite=overwrite, storage_options=options)
            spool.remove()
    except KeyboardInterrupt:
        nothing = "" if tell_kept(spool) else "; nothing was written"
        typer.echo(f"refindex: interrupted{nothing}", err=True)
        raise typer.Exit(130) from None
    except RefindexError:
        write_failures(failures, spool)
        tell_kept(spool)
        raise
    write_failures(failures, spool)
    if json:
        dump(_summary(manifest, out, version) | ({"stats": stats_json(stats)} if show_stats else {}))
    else:
        _tell(manifest, out, version, variable)
        if show_stats:
            tell_stats(stats)
    if manifest.report.select(Status.FAILED):
        raise typer.Exit(3)


def named_sources(sources: list[str] | None, from_file: str | None) -> list[str]:
    """The sources on the command line and those in a list."""
    wanted = [*(sources or ()), *(_lines(from_file) if from_file else ())]
    if not wanted:
        raise typer.BadParameter("name at least one source, or --from-file")
    return wanted


def _lines(name: str) -> list[str]:
    if name == "-":
        text = sys.stdin.read()
    else:
        with reading(urls.absolute(name), "reading the list of sources"):
            text = Path(name).read_text(encoding="utf-8")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _check_output(out: str, overwrite: bool, options: StorageOptions) -> None:
    """Refuse before the work what would be refused after it."""
    url = urls.absolute(out).rstrip("/")
    if storage.is_archive(url, options):
        if not overwrite:
            raise ExistsError(f"{out} exists; pass --overwrite for a new version, or choose another name")
    elif urls.is_local(url) and urls.local_path(url).exists() and not parquet.is_leftover(url):
        raise ExistsError(f"{out} exists and is not a refindex archive; choose another name")


def _summary(manifest: Manifest, out: str | None, version: int | None) -> dict[str, object]:
    return {
        "out": out,
        "version": version,
        "arrays": len(manifest.arrays),
        "groups": len(manifest.groups),
        "references": manifest.n_references,
        "sources": [urls.display(s.url) for s in manifest.sources],
        "counts": {str(k): v for k, v in sorted(manifest.report.counts.items())},
        "report": [
            {"source": e.source, "path": e.path, "status": str(e.status), "reason": e.reason} for e in manifest.report
        ],
    }


def _has(manifest: Manifest, name: str) -> bool:
    wanted = name.strip("/")
    return any(path == wanted or path.endswith(f"/{wanted}") for path in manifest.arrays)


def tell_report(report: ScanReport) -> None:
    """What a reader of a scan should know: problems on standard error, decisions on standard output."""
    for entry in report.select(Status.FAILED, Status.UNSERVED, Status.ADAPTED, Status.NOTE):
        where = entry.source if entry.path == "/" else f"{entry.source}:{entry.path}"
        typer.echo(
            urls.masked(f"  {entry.status}: {where}: {entry.reason}"),
            err=entry.status in (Status.FAILED, Status.UNSERVED),
        )


def _tell(manifest: Manifest, out: str | None, version: int | None, variables: list[str] | None) -> None:
    counts = ", ".join(f"{n} {status}" for status, n in sorted(manifest.report.counts.items()))
    typer.echo(
        f"{plural(len(manifest.sources), 'source')}, {plural(len(manifest.arrays), 'array')}, "
        f"{plural(manifest.n_references, 'reference')} ({counts or 'nothing'})"
    )
    missing = [name for name in variables or () if not _has(manifest, name)]
    if missing:
        typer.echo(f"  no source has a variable named {', '.join(missing)}", err=True)
    tell_report(manifest.report)
    if version is not None:
        typer.echo(f"wrote {out} (version {version})")
