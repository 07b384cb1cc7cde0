"""``refindex explain``: what a selection costs, before it is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from refindex import api
from refindex.cli.options import ALLOW, AS_OF, JSON, STORAGE_OPTIONS, VERSION, dump, parse_allow, parse_storage_options
from refindex.storage.protocol import require

if TYPE_CHECKING:  # xarray and zarr take most of a second to import
    from refindex.archive import Archive


def command(
    archive: Annotated[str, typer.Argument(help="A manifest, or an HDF5 / NetCDF file.")],
    array: Annotated[str, typer.Argument(help="Path of an array.")],
    isel: Annotated[
        list[str] | None,
        typer.Option(
            "--isel",
            help="Positions along a dimension, counted from 0: DIM=INDEX or DIM=START:STOP[:STEP] (repeat for more).",
            metavar="DIM=POSITIONS",
        ),
    ] = None,
    sel: Annotated[
        list[str] | None,
        typer.Option(
            "--sel",
            help="Coordinates along a dimension: DIM=VALUE (the nearest), or DIM=FIRST..LAST (both included).",
            metavar="DIM=VALUES",
        ),
    ] = None,
    version: VERSION = None,
    as_of: AS_OF = None,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Show what reading a selection costs: chunks, requests, bytes; beside a series at a point and a map at a time."""
    options = parse_storage_options(storage_options)
    with api.open(archive, version=version, as_of=as_of, storage_options=options, allow=parse_allow(allow)) as opened:
        node = require(opened.nodes, array, archive)
        chosen = {dim: _positions("--isel", dim, text) for dim, text in _pairs("--isel", isel)}
        labels = dict(_pairs("--sel", sel))
        if labels:
            chosen |= _by_coordinates(opened, node.path, labels)
        unknown = [dim for dim in chosen if dim not in node.dims]
        if unknown:
            raise typer.BadParameter(f"/{node.path} has no dimension {', '.join(unknown)}; it has {node.dims}")
        try:
            found = opened.explain(node.path, **chosen)
        except IndexError as error:
            raise typer.BadParameter(f"--isel: {error}") from error
    if json:
        dump(found.to_json())
    else:
        typer.echo(str(found))


def _pairs(option: str, texts: list[str] | None) -> list[tuple[str, str]]:
    """``DIM=...`` in two parts."""
    pairs = []
    for text in texts or ():
        dim, equals, value = text.partition("=")
        if not (dim and equals and value):
            raise typer.BadParameter(f"{option} takes DIM=..., got {text!r}")
        pairs.append((dim, value))
    return pairs


def _positions(option: str, dim: str, text: str) -> int | slice:
    try:
        if ":" in text:
            return slice(*(int(part) if part else None for part in text.split(":")))
        return int(text)
    except (ValueError, TypeError) as error:
        raise typer.BadParameter(
            f"{option} {dim}: INDEX or START:STOP[:STEP] in whole numbers, got {text!r}"
        ) from error


def _by_coordinates(opened: Archive, path: str, labels: dict[str, str]) -> dict[str, Any]:
    """Positions of coordinates, as xarray finds them."""
    group = path.rpartition("/")[0]
    dataset = opened.to_xarray(group)
    chosen: dict[str, Any] = {}
    for dim, text in labels.items():
        if dim not in dataset.indexes:
            raise typer.BadParameter(f"--sel {dim}: /{path} has no coordinate of that name; use --isel")
        index = dataset.indexes[dim]
        numeric = np.issubdtype(dataset[dim].dtype, np.number)
        first, dots, last = text.partition("..")
        try:
            if dots:
                ends = [float(part) if numeric and part else part or None for part in (first, last)]
                if not index.is_monotonic_increasing:
                    ends.reverse()
                chosen[dim] = index.slice_indexer(*ends)
            else:
                import xarray as xr

                one = xr.DataArray(np.arange(len(index)), {dim: dataset[dim]}, (dim,))
                method = "nearest" if numeric or dataset[dim].dtype.kind == "M" else None
                wanted = float(first) if numeric else np.datetime64(first) if dataset[dim].dtype.kind == "M" else first
                chosen[dim] = int(one.sel({dim: wanted}, method=method))
        except (KeyError, ValueError, TypeError) as error:
            raise typer.BadParameter(f"--sel {dim}: {text!r} is no coordinate of it: {error}") from error
    return chosen
