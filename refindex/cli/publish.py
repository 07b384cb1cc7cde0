"""``refindex publish``: a compact copy of an archive for others."""

from __future__ import annotations

import dataclasses
import re
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from refindex import api
from refindex.cli import configuration
from refindex.cli.append import ARCHIVE
from refindex.cli.options import (
    ALLOW,
    JSON,
    PROGRESS,
    STORAGE_OPTIONS,
    VERSION,
    dump,
    parse_allow,
    parse_storage_options,
    plural,
)

if TYPE_CHECKING:
    from refindex.publication import Published

_PLACE = re.compile(r"=(?=[/~]|\.{1,2}/|[a-zA-Z][\w+.-]*(?:::|://))")
"""An equals sign behind which a path or a URL begins."""


def command(
    archive: ARCHIVE,
    dest: Annotated[
        str, typer.Argument(help="Where to: NAME.refindex (Parquet) or NAME.sqlite, a path or URL.", metavar="DEST")
    ],
    sources: Annotated[
        list[str] | None,
        typer.Option(
            "--sources",
            help="Where files are public: those at or below OLD are recorded at or below NEW (repeat for more).",
            metavar="OLD=NEW",
            show_default=False,
        ),
    ] = None,
    version: VERSION = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Publish a new version if an archive is there.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check/--no-check",
            help="Look at every source at its public place: it must be there, have its size, and be read by ranges.",
        ),
    ] = True,
    allow_local: Annotated[
        bool, typer.Option("--allow-local", help="Sources may be files of this machine that others cannot read.")
    ] = False,
    summary: Annotated[bool, typer.Option("--summary/--no-summary", help="Write a page that tells of it.")] = True,
    stac: Annotated[bool, typer.Option("--stac/--no-stac", help="Write a STAC item.")] = True,
    title: Annotated[str | None, typer.Option("--title", help="For these; the attribute by default.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="For these; the attribute by default.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Tell what would be written and which sources cannot be read, write nothing."),
    ] = False,
    progress: PROGRESS = None,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
    dest_options: Annotated[
        list[str] | None,
        typer.Option(
            "--dest-options",
            help="Options for what is written, in place of --storage-options.",
            metavar="[PREFIX=]JSON",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Write a compact copy of one version for others, with a page and a STAC item that tell of it."""
    done = api.publish(
        archive,
        dest,
        sources=_moves(sources or []),
        version=version,
        overwrite=overwrite,
        check=check,
        summary=summary,
        stac=stac,
        title=title,
        license=license_,
        allow_local=allow_local,
        allow=parse_allow(allow),
        storage_options=parse_storage_options(storage_options),
        dest_options=configuration.storage_options(dest_options) if dest_options else None,
        dry_run=dry_run,
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    if json:
        dump({key: value for key, value in dataclasses.asdict(done).items() if dry_run or key != "problems"})
    else:
        _tell(done, dest)
    if done.problems:
        raise typer.Exit(1)


def _tell(done: Published, dest: str) -> None:
    elsewhere = done.sources - done.relative
    places = [f"{done.relative} relative to {dest}"] if done.relative else []
    places += [f"{elsewhere} elsewhere"] if elsewhere else []
    typer.echo(
        f"{plural(done.arrays, 'array')}, {plural(done.references, 'reference')}, {plural(done.sources, 'source')}"
        + (f": {', '.join(places)}" if places else "")
    )
    if done.renewed:
        typer.echo(f"identity of {plural(len(done.renewed), 'file')} taken anew: same size, another time or entity tag")
    if done.local:
        typer.echo(
            f"warning: {plural(len(done.local), 'source')} of this machine that others cannot read, such as "
            f"{done.local[0]}",
            err=True,
        )
    if done.problems:
        typer.echo(f"{plural(len(done.problems), 'source')} cannot be read at the public place:", err=True)
        for problem in done.problems:
            typer.echo(f"  {problem}", err=True)
    if done.version is None:
        typer.echo("nothing was written; would write " + ", ".join([done.url, *done.files]))
        return
    typer.echo(f"wrote {dest} (version {done.version})")
    for file in done.files:
        typer.echo(f"wrote {file}")


def _moves(values: list[str]) -> Mapping[Any, Any]:
    """``OLD=NEW`` as a mapping; there may be other equals signs in both."""
    found: dict[str, str] = {}
    for value in values:
        signs = [match.start() for match in _PLACE.finditer(value)]
        if not signs and value.count("=") == 1:
            signs = [value.index("=")]
        if len(signs) != 1 or not value[: signs[0]] or not value[signs[0] + 1 :]:
            raise typer.BadParameter(
                f"--sources takes OLD=NEW, such as /data=https://data.example.org/era5; got {value!r}"
                + (", which can be split at several places: write NEW, and nothing else, as an absolute path or URL")
                * (len(signs) > 1)
            )
        found[value[: signs[0]]] = value[signs[0] + 1 :]
    return found
