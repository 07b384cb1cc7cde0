"""``refindex ls``: what is in an archive."""

from __future__ import annotations

from typing import Annotated

import typer

from refindex import api
from refindex.cli.options import ALLOW, AS_OF, JSON, STORAGE_OPTIONS, VERSION, dump, parse_allow, parse_storage_options
from refindex.model.manifest import Node
from refindex.storage.protocol import require


def command(
    archive: Annotated[str, typer.Argument(help="A manifest, or an HDF5 / NetCDF file.")],
    path: Annotated[str, typer.Argument(help="Group to list.")] = "/",
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="List all groups below, too.")] = False,
    long: Annotated[bool, typer.Option("--long", "-l", help="Show type and shape.")] = False,
    version: VERSION = None,
    as_of: AS_OF = None,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """List the groups and arrays of an archive."""
    with api.open(
        archive,
        version=version,
        as_of=as_of,
        storage_options=parse_storage_options(storage_options),
        allow=parse_allow(allow),
    ) as opened:
        top = require(opened.nodes, path, archive)
        prefix = f"{top.path}/" if top.path else ""
        listed = [
            (p.removeprefix(prefix), node)
            for p, node in sorted(opened.nodes.items())
            if p
            and (p == top.path or p.startswith(prefix))
            and (recursive or "/" not in p.removeprefix(prefix))
            and (p != top.path or node.is_array)
        ]
        if json:
            dump([_row(name, node) for name, node in listed])
            return
        for name, node in listed:
            shown = name if node.is_array else f"{name}/"
            typer.echo(f"{shown:<32} {describe(node)}".rstrip() if long else shown)


def _row(name: str, node: Node) -> dict[str, object]:
    row: dict[str, object] = {"name": name, "kind": "array" if node.is_array else "group"}
    if node.is_array:
        row |= {"data_type": node.json["data_type"], "shape": list(node.shape), "dims": list(node.dims)}
    return row


def type_name(node: Node) -> str:
    """The data type of an array in a word."""
    data_type = node.json["data_type"]
    return data_type if isinstance(data_type, str) else str(data_type["name"])


def describe(node: Node) -> str:
    """Type and shape of an array, nothing for a group."""
    if not node.is_array:
        return ""
    dims = ", ".join(f"{d}: {n}" if d else str(n) for d, n in zip(node.dims, node.shape, strict=True))
    return f"{type_name(node)} ({dims})"
