"""``refindex verify``: whether an archive is right."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from refindex import api
from refindex.access import urls
from refindex.cli.options import (
    ALLOW,
    JSON,
    PROGRESS,
    STORAGE_OPTIONS,
    VARIABLE,
    VERSION,
    dump,
    parse_allow,
    parse_storage_options,
)
from refindex.verification import Verification, VerificationInterrupted

WRONG = 4
"""Exit code where something is not right. 3 says that files could not be scanned."""


def command(
    archive: Annotated[str, typer.Argument(help="An archive, or a file.", metavar="ARCHIVE")],
    sample: Annotated[
        int, typer.Option("--sample", "-n", min=0, help="How many chunks are compared with the originals.", metavar="N")
    ] = 1000,
    every: Annotated[bool, typer.Option("--all", help="Compare every chunk.")] = False,
    variable: VARIABLE = None,
    seed: Annotated[
        int, typer.Option("--seed", help="Of the random choice of chunks; another one looks at others.")
    ] = 0,
    sources_only: Annotated[
        bool, typer.Option("--sources-only", help="Look at the manifest and at the files, compare no values.")
    ] = False,
    version: VERSION = None,
    workers: Annotated[
        int | None, typer.Option("--workers", "-j", min=1, help="Threads in which chunks are read.")
    ] = None,
    progress: PROGRESS = None,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Find out whether an archive is right: manifest, files, and values, beside what h5py, netCDF4 and zarr read.

    Exit code 0: right; 4: not right; 1: an error.
    """
    try:
        found = api.verify(
            archive,
            sample="all" if every else sample,
            variables=variable,
            seed=seed,
            sources_only=sources_only,
            version=version,
            allow=parse_allow(allow),
            storage_options=parse_storage_options(storage_options),
            progress=sys.stderr.isatty() and not json if progress is None else progress,
            workers=workers,
        )
    except VerificationInterrupted as stop:
        _tell(stop.so_far, json=json)
        typer.echo("refindex: interrupted; this is what was found until then", err=True)
        raise typer.Exit(130) from None
    _tell(found, json=json)
    if not found.ok:
        raise typer.Exit(WRONG)


def _tell(found: Verification, *, json: bool) -> None:
    if json:
        dump(found.to_json())
    else:
        typer.echo(urls.masked(str(found)))
