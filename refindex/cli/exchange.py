"""``refindex export`` and ``refindex import``: archives to and from other tools."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from refindex.cli.append import ARCHIVE
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
    plural,
)

_TO = ("kerchunk", "kerchunk-parquet", "icechunk", "zarr")
_FORMATS = ("auto", "kerchunk", "icechunk", "tiff", "grib", "fits", "dmrpp", "netcdf3", "hdf")


def export(
    archive: ARCHIVE,
    dest: Annotated[str, typer.Argument(help="Where to: a path or URL.", metavar="DEST")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="kerchunk's JSON, its Parquet layout, an Icechunk repository, or a plain Zarr copy of all values.",
            metavar="kerchunk|kerchunk-parquet|icechunk|zarr",
        ),
    ] = "kerchunk",
    variable: VARIABLE = None,
    zarr_format: Annotated[
        int, typer.Option("--zarr-format", min=2, max=3, help="Version of Zarr of kerchunk's references: 2 or 3.")
    ] = 3,
    materialize: Annotated[
        bool,
        typer.Option(
            "--materialize",
            help="Decode and write what references cannot say: for kerchunk into DEST.data, for Icechunk as its own "
            "chunks.",
        ),
    ] = False,
    chunks: Annotated[
        list[str] | None,
        typer.Option(
            "--chunks",
            help="For zarr: length of chunks along a dimension (repeat for more); -1: all of it.",
            metavar="DIM=N",
        ),
    ] = None,
    shards: Annotated[
        list[str] | None,
        typer.Option("--shards", help="For zarr: length of shards along a dimension.", metavar="DIM=N"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    version: VERSION = None,
    allow: ALLOW = None,
    progress: PROGRESS = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Write an archive for tools that do not know refindex. What the output cannot say is refused, and all named."""
    from refindex import exchange

    if to not in _TO:
        raise typer.BadParameter(f"--to must be one of {', '.join(_TO)}; got {to!r}")
    try:
        exchange.export(
            archive,
            dest,
            to=to,  # type: ignore[arg-type]
            variables=variable,
            zarr_format=2 if zarr_format == 2 else 3,
            materialize=materialize,
            overwrite=overwrite,
            chunks=_lengths("--chunks", chunks),
            shards=_lengths("--shards", shards),
            version=version,
            allow=parse_allow(allow),
            storage_options=parse_storage_options(storage_options),
            progress=sys.stderr.isatty() if progress is None else progress,
        )
    except ValueError as error:
        # Other errors of refindex may be ValueErrors, too.
        if type(error) is not ValueError:
            raise
        raise typer.BadParameter(str(error)) from error
    typer.echo(f"wrote {dest}")


def _lengths(option: str, values: list[str] | None) -> dict[str, int] | None:
    """``DIM=N`` as a mapping."""
    lengths: dict[str, int] = {}
    for value in values or ():
        name, mark, length = value.rpartition("=")
        try:
            lengths[name] = int(length)
        except ValueError:
            mark = ""
        if not mark or not name:
            raise typer.BadParameter(f"{option} takes DIM=N, such as time=100; got {value!r}")
    return lengths or None


def import_(
    source: Annotated[
        str,
        typer.Argument(
            help="kerchunk's JSON or Parquet, an Icechunk repository, or a file of another format.", metavar="SOURCE"
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out", "-o", help="Where to write the archive: NAME.refindex (Parquet) or NAME.sqlite.", metavar="OUT"
        ),
    ],
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="What it is; auto finds out, but for netcdf3, hdf and remote files. Others than kerchunk and icechunk "
            "are read by VirtualiZarr's parsers: tiff takes the package virtual-tiff, grib gribberish, fits astropy.",
            metavar="|".join(_FORMATS),
        ),
    ] = "auto",
    base: Annotated[
        str | None,
        typer.Option(
            "--base", help="What references without a protocol are below, e.g. s3:// or a folder.", metavar="URL"
        ),
    ] = None,
    allow: ALLOW = None,
    absent_partitions: Annotated[
        bool,
        typer.Option(
            "--absent-partitions", help="Parquet files that are missing have no chunks, as kerchunk writes them."
        ),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Commit a new version if the archive exists.")] = False,
    json: JSON = False,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Make an archive of another tool's references, or of a file of another format, without copying values."""
    from refindex import exchange

    if format_ not in _FORMATS:
        raise typer.BadParameter(f"--format must be one of {', '.join(_FORMATS)}; got {format_!r}")
    options = parse_storage_options(storage_options)
    manifest = exchange.import_references(
        source,
        format=format_,  # type: ignore[arg-type]
        base=base,
        allow=parse_allow(allow),
        absent_partitions=absent_partitions,
        storage_options=options,
    )
    version = manifest.save(out, overwrite=overwrite, storage_options=options)
    problems = manifest.report.problems
    if json:
        dump(
            {
                "version": version,
                "arrays": len(manifest.arrays),
                "references": manifest.n_references,
                "sources": len(manifest.sources),
                "problems": [{"path": entry.path, "reason": entry.reason} for entry in problems],
            }
        )
        return
    for entry in problems:
        typer.echo(f"not served: {entry.path}: {entry.reason}", err=True)
    counted = f"{plural(len(manifest.arrays), 'array')}, {plural(manifest.n_references, 'reference')}"
    typer.echo(f"{plural(len(manifest.sources), 'source')}, {counted}")
    typer.echo(f"wrote {out} (version {version})")
