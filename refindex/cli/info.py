"""``refindex info``: an archive at a glance."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.tree import Tree

from refindex import api
from refindex.access import urls
from refindex.cli.ls import describe
from refindex.cli.options import (
    ALLOW,
    AS_OF,
    JSON,
    STORAGE_OPTIONS,
    VERSION,
    dump,
    parse_allow,
    parse_storage_options,
    plural,
)
from refindex.model.html import nbytes
from refindex.model.manifest import Node, Status

if TYPE_CHECKING:  # xarray and zarr take most of a second to import
    from refindex.archive import Archive


def command(
    archive: Annotated[str, typer.Argument(help="A manifest, or an HDF5 / NetCDF file.")],
    attributes: Annotated[bool, typer.Option("--attributes", "-a", help="Show attributes, too.")] = False,
    sources: Annotated[bool, typer.Option("--sources", "-s", help="List all sources.")] = False,
    report: Annotated[bool, typer.Option("--report", "-r", help="Show the whole report of the scan.")] = False,
    version: VERSION = None,
    as_of: AS_OF = None,
    json: JSON = False,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Show the tree of an archive: shapes, chunks, codecs, sizes, sources, what is not served."""
    with api.open(
        archive,
        version=version,
        as_of=as_of,
        storage_options=parse_storage_options(storage_options),
        allow=parse_allow(allow),
    ) as opened:
        arrays = {path: array_facts(opened, node) for path, node in opened.arrays.items()}
        if json:
            dump(_document(archive, opened, arrays))
            return
        # Rich cuts a tree at the width of the terminal, and at 80 columns in a pipe: lines here are never cut.
        console = Console(soft_wrap=True, highlight=False, width=None if sys.stdout.isatty() else 4096)
        size = sum(s.size for s in opened.sources)
        console.print(
            f"{urls.display(opened.url)}: version {opened.version}, {plural(len(arrays), 'array')}, "
            f"{plural(sum(f['references'] for f in arrays.values()), 'reference')}, "
            f"{plural(len(opened.sources), 'source')} of {nbytes(size)}",
            markup=False,
        )
        console.print(_tree(opened, arrays, attributes), markup=False, crop=False, no_wrap=True, overflow="ignore")
        shown = opened.sources if sources else opened.sources[:5]
        for source in shown:
            console.print(f"source {urls.display(source.url)} ({nbytes(source.size)})", markup=False)
        if len(shown) < len(opened.sources):
            console.print(f"... and {len(opened.sources) - len(shown)} more sources (--sources)", markup=False)
        entries = opened.report.entries if report else opened.report.select(Status.FAILED, Status.UNSERVED)
        for entry in entries:
            reason = f": {entry.reason}" if entry.reason else ""
            console.print(f"{entry.status}: {entry.source}:{entry.path}{reason}", markup=False)


def array_facts(opened: Archive, node: Node) -> dict[str, Any]:
    """What there is to know of an array: type, shape, chunks, codecs, references, sizes in bytes."""
    table = opened.find(node.path)
    itemsize = node.dtype.itemsize if node.dtype is not None else None
    grid = node.json["chunk_grid"]
    return {
        "data_type": node.json["data_type"],
        "shape": list(node.shape),
        "dims": list(node.dims),
        "chunk_grid": grid["name"],
        "chunks": grid["configuration"].get("chunk_shape", grid["configuration"].get("chunk_shapes")),
        "codecs": [codec["name"] for codec in node.codecs],
        "references": len(table),
        "of_chunks": node.grid.size,
        "stored_bytes": table.nbytes_stored,
        "bytes": None if itemsize is None else math.prod(node.shape) * itemsize,
    }


def _document(archive: str, opened: Archive, arrays: dict[str, Any]) -> dict[str, Any]:
    return {
        "archive": archive,
        "version": opened.version,
        "arrays": arrays,
        "groups": [path for path, node in opened.nodes.items() if not node.is_array],
        "sources": [
            {"url": s.url, "size": s.size, "mtime_us": s.mtime, "etag": s.etag, "version": s.version}
            for s in opened.sources
        ],
        "report": [
            {"source": e.source, "path": e.path, "status": str(e.status), "reason": e.reason} for e in opened.report
        ],
    }


def _tree(opened: Archive, arrays: dict[str, dict[str, Any]], attributes: bool) -> Tree:
    trees: dict[str, Tree] = {"": Tree("/")}
    nodes = opened.nodes
    for path in sorted(nodes, key=lambda p: p.split("/") if p else []):
        node = nodes[path]
        if path:
            folder, _, name = path.rpartition("/")
            label = f"{name}/" if not node.is_array else f"{name}  {describe(node)}  {_stored(arrays[path])}"
            trees[path] = trees[folder].add(label)
        if attributes:
            for key, value in node.attributes.items():
                trees[path].add(f"@{key} = {value!r}")
    return trees[""]


def _stored(facts: dict[str, Any]) -> str:
    codecs = " + ".join(name.removeprefix("numcodecs.") for name in facts["codecs"])
    size = nbytes(facts["stored_bytes"])
    if facts["bytes"] is not None and facts["bytes"] != facts["stored_bytes"]:
        size += f" of {nbytes(facts['bytes'])}"
    missing = "" if facts["references"] == facts["of_chunks"] else f" of {facts['of_chunks']}"
    chunks = ", ".join(_lengths(lengths) for lengths in facts["chunks"])
    return f"chunks [{chunks}] x {facts['references']}{missing}, {codecs}, {size}"


def _lengths(lengths: Any) -> str:
    """Chunk lengths along one dimension: one number, or the least and the greatest."""
    if isinstance(lengths, int):
        return str(lengths)
    each = [n if isinstance(n, int) else n[0] for n in lengths]
    return f"{min(each)}-{max(each)}" if min(each) < max(each) else str(each[0])
