"""``refindex optimize``: variables rewritten in the chunks that readers want."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.filesize import decimal

from refindex import api
from refindex.cli.append import ARCHIVE
from refindex.cli.options import (
    ALLOW,
    JSON,
    PROGRESS,
    STORAGE_OPTIONS,
    dump,
    parse_allow,
    parse_storage_options,
    plural,
)

_FOR = ("time-series", "map")


def command(
    archive: ARCHIVE,
    variable: Annotated[
        list[str], typer.Option("--variable", "-v", help="An array, by name or path (repeat for more).")
    ],
    chunks: Annotated[
        list[str] | None,
        typer.Option(
            "--chunks",
            help="Length of chunks along dimensions, as time=365,lat=18; -1: all of it. Others stay as they are.",
            metavar="DIM=N,...",
        ),
    ] = None,
    for_: Annotated[
        str | None,
        typer.Option("--for", help="Choose chunks of about 1 MiB for this instead.", metavar="time-series|map"),
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option(
            "--shards",
            help="Length of the files' parts of the array, in whole chunks; about 64 MiB by default; none: a file a "
            "chunk.",
            metavar="DIM=N,...",
        ),
    ] = None,
    codec: Annotated[
        str,
        typer.Option("--codec", help="zstd:LEVEL, blosc-zstd:LEVEL (lz4, lz4hc, zlib, blosclz) or none."),
    ] = "blosc-zstd:3",
    to: Annotated[
        str | None, typer.Option("--to", help="Folder for the shards; by default ARCHIVE.data.", metavar="FOLDER")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--no-resume", help="Go on behind the shards of a call that was interrupted.")
    ] = True,
    memory: Annotated[int, typer.Option("--memory", min=1, help="MiB that are held at a time, about.")] = 512,
    workers: Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Threads that compress.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be written, write nothing.")] = False,
    progress: PROGRESS = None,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Rewrite variables that are read often as Zarr v3 shards beside the archive, in one commit; the files stay."""
    if (chunks is None) == (for_ is None):
        raise typer.BadParameter("give --chunks or --for")
    if for_ is not None and for_ not in _FOR:
        raise typer.BadParameter(f"--for must be one of {', '.join(_FOR)}; got {for_!r}")
    options = parse_storage_options(storage_options)
    wanted: Any = for_ or _lengths("--chunks", chunks or [])
    cut: Any = "auto" if not shards else None if shards == ["none"] else _lengths("--shards", shards)
    try:
        done = api.optimize(
            archive,
            variable,
            chunks=wanted,
            shards=cut,
            codec=codec,
            to=to,
            resume=resume,
            memory=memory << 20,
            workers=workers,
            allow=parse_allow(allow),
            storage_options=options,
            dry_run=dry_run,
            progress=sys.stderr.isatty() and not json if progress is None else progress,
        )
    except KeyboardInterrupt:
        said = "finished shards stay, and the same command goes on behind them" if resume else "finished shards stay"
        typer.echo(f"refindex: interrupted; nothing was committed; {said}", err=True)
        raise typer.Exit(130) from None
    except ValueError as error:
        # Other errors of refindex may be ValueErrors, too.
        if type(error) is not ValueError:
            raise
        raise typer.BadParameter(str(error)) from error
    if json:
        dump({"version": done.version, "arrays": [asdict(a) for a in done.arrays], "skipped": list(done.skipped)})
        return
    for path in done.skipped:
        typer.echo(f"{path}: stored so already")
    for array in done.arrays:
        shape = " x ".join(map(str, array.chunks))
        if dry_run:
            typer.echo(
                f"{array.path}: {decimal(array.nbytes)} in chunks of {shape}, at most {plural(array.files, 'shard')}; "
                f"values are decoded {array.reads:.1f} times"
            )
            continue
        kept = f" ({array.kept} there already)" if array.kept else ""
        typer.echo(
            f"{array.path}: {decimal(array.nbytes)} in chunks of {shape}, {plural(array.files, 'shard')}{kept}, "
            f"{decimal(array.nbytes_stored)} in {array.folder}"
        )
    if done.arrays:
        typer.echo("nothing was written" if dry_run else f"wrote {archive} (version {done.version})")


def _lengths(option: str, values: list[str]) -> dict[str, int]:
    """``DIM=N,DIM=N`` as a mapping."""
    lengths: dict[str, int] = {}
    for value in (part.strip() for text in values for part in text.split(",")):
        name, mark, length = value.rpartition("=")
        try:
            lengths[name] = int(length)
        except ValueError:
            mark = ""
        if not mark or not name:
            raise typer.BadParameter(f"{option} takes DIM=N,..., such as time=365,lat=18; got {value!r}")
    return lengths
