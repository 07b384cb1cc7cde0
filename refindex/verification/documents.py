"""Whether a document is one of Zarr v3 (core specification 3.0, "Metadata"), and fits its row of the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from refindex.errors import FormatError
from refindex.model.dtype import fill_value_from_json
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import loads

_GROUP = {"zarr_format", "node_type", "attributes"}
_REQUIRED = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")


def document_problems(node: Node) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a node's document: what, what was expected, what is there."""
    try:
        document = loads(node.document, "the document")
    except FormatError as error:
        yield str(error), "", ""
        return
    if not isinstance(document, dict):
        yield "the document", "a JSON object", _short(document)
        return
    if document.get("zarr_format") != 3:
        yield "zarr_format", "3", _short(document.get("zarr_format"))
    if not isinstance(document.get("attributes", {}), dict):
        yield "attributes", "a JSON object", _short(document["attributes"])
    match document.get("node_type"):
        case "group":
            if node.encodings:
                yield "a group has encodings", "none", str(len(node.encodings))
        case "array":
            yield from _array_problems(node, document)
        case other:
            yield "node_type", "'array' or 'group'", _short(other)


def _array_problems(node: Node, document: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    missing = [name for name in _REQUIRED if name not in document]
    if missing:
        yield "the document lacks members", ", ".join(_REQUIRED), f"none called {', '.join(missing)}"
        return
    shape, names, codecs = document["shape"], document.get("dimension_names"), document["codecs"]
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        yield "shape", "a list of integers of 0 or more", _short(shape)
        return
    if names is not None and (
        not isinstance(names, list) or len(names) != len(shape) or not all(isinstance(n, str | None) for n in names)
    ):
        yield "dimension_names", f"{len(shape)} names", _short(names)
    if not isinstance(codecs, list) or not codecs or not all(isinstance(c, dict) and "name" in c for c in codecs):
        yield "codecs", "a list of objects with a name", _short(codecs)
        return
    key = document["chunk_key_encoding"]
    if not isinstance(key, dict) or key.get("name") != "default":
        yield "chunk_key_encoding", "'default'", _short(key)
    try:
        grid = ChunkGrid.from_json(tuple(shape), document["chunk_grid"])
    except FormatError as error:
        yield str(error), "", ""
        return
    try:
        dtype = node.dtype
        if dtype is not None:
            fill_value_from_json(dtype, document["fill_value"])
    except FormatError as error:
        yield str(error), "", ""
    for number, encoding in enumerate(node.encodings):
        rank = max(len(encoding.shape), len(encoding.start))
        if rank > grid.ndim:
            yield f"encoding {number} has a chunk of {encoding.shape}", f"at most {grid.ndim} dimensions", str(rank)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
