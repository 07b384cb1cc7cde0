"""``refindex relocate``: archives whose data has moved."""

from __future__ import annotations

from typing import Annotated

import typer

from refindex import api
from refindex.cli.append import ARCHIVE
from refindex.cli.options import JSON, STORAGE_OPTIONS, dump, parse_storage_options, plural


def command(
    archive: ARCHIVE,
    old: Annotated[str, typer.Argument(help="Where files were: a folder, or one file.", metavar="OLD")],
    new: Annotated[str, typer.Argument(help="Where they are now.", metavar="NEW")],
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Look at every file at its new place: it must have its size; its time and entity tag are recorded "
            "anew. Without that, both stay as recorded.",
        ),
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be recorded, write nothing.")] = False,
    json: JSON = False,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Tell an archive that its files have moved, in one commit; nothing is scanned again."""
    try:
        done = api.relocate(
            archive,
            old,
            new,
            storage_options=parse_storage_options(storage_options),
            dry_run=dry_run,
            check=check,
        )
    except ValueError as error:
        # Other errors of refindex may be ValueErrors, too.
        if type(error) is not ValueError:
            raise
        raise typer.BadParameter(str(error)) from error
    if json:
        dump(
            {
                "version": done.version,
                "moved": [{"old": was, "new": now} for was, now in done.moved],
                "renewed": list(done.renewed),
                "stayed": done.stayed,
            }
        )
        return
    stayed = f", {plural(done.stayed, 'file')} elsewhere" if done.stayed else ""
    typer.echo(f"{plural(len(done.moved), 'file')} moved{stayed}")
    if done.renewed:
        typer.echo(f"identity of {plural(len(done.renewed), 'file')} taken anew: same size, another time or entity tag")
    typer.echo("nothing was written" if dry_run else f"wrote {archive} (version {done.version})")
