"""The model as Zarr v3 documents (Zarr core specification 3.0, and 3.1 for ``dimension_names``)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ujson

from refindex.errors import FormatError
from refindex.model.grid import ChunkGrid

_MOST_DEPTH = 256


def dumps(document: Any) -> str:
    """JSON text without spaces; every float survives the round trip exactly."""
    return ujson.dumps(document, ensure_ascii=False, escape_forward_slashes=False, allow_nan=False)


def loads(text: str | bytes, what: str) -> Any:
    """Parse JSON text.

    Raises
    ------
    FormatError
        Naming ``what`` if the text is not JSON.
    """
    try:
        return ujson.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"{what}: not valid JSON: {error}") from error


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The ``zarr.json`` of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def array_document(
    *,
    grid: ChunkGrid,
    data_type: Any,
    codecs: Sequence[Mapping[str, Any]],
    fill_value: Any,
    dimension_names: Sequence[str | None],
    attributes: Mapping[str, Any],
) -> dict[str, Any]:
    """The ``zarr.json`` of an array. Chunk keys are always ``default`` with ``/``."""
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(grid.shape),
        "data_type": data_type,
        "chunk_grid": grid.to_json(),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill_value,
        "codecs": [dict(codec) for codec in codecs],
        "attributes": dict(attributes),
        "dimension_names": list(dimension_names),
    }


def consolidated(document: str, members: Iterable[tuple[str, str]]) -> str:
    """A group document with the documents of its members (relative path, text) inlined.

    zarr-python's consolidated metadata for version 3: one request opens a whole hierarchy. Works on
    text so that thousands of documents are neither parsed nor written again.
    """
    body = ",".join(f"{dumps(path)}:{text}" for path, text in members)
    return (
        f'{document.rstrip()[:-1]},"consolidated_metadata":'
        f'{{"kind":"inline","must_understand":false,"metadata":{{{body}}}}}}}'
    )


def json_value(value: Any, *, depth: int = 0) -> tuple[Any, bool]:
    """A value that strict JSON can hold, and whether it had to be changed.

    JSON has no NaN and no infinities: they become the strings that Zarr v3 uses for fill values, so
    that clients in any language can read the document.

    Raises
    ------
    FormatError
        If lists and objects are nested deeper than clients, and Python, go along with.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return ("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"), True
    if isinstance(value, list | dict) and depth >= _MOST_DEPTH:
        raise FormatError(f"JSON that is nested deeper than {_MOST_DEPTH} levels")
    if isinstance(value, list):
        pairs = [json_value(v, depth=depth + 1) for v in value]
        return [v for v, _ in pairs], any(changed for _, changed in pairs)
    if isinstance(value, dict):
        named = {k: json_value(v, depth=depth + 1) for k, v in value.items()}
        return {k: v for k, (v, _) in named.items()}, any(changed for _, (_, changed) in named.items())
    return value, False
