"""New dimensions: one file after the other along a dimension that they do not have themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numcodecs.vlen import VLenUTF8

from refindex.access import urls
from refindex.decode.pipeline import is_built_in
from refindex.join.barriers import Findings
from refindex.join.member import Member
from refindex.join.options import value_from_name
from refindex.join.values import array_values
from refindex.model.chunks import DECLARED, ChunkTable
from refindex.model.dtype import data_type_json, fill_value_json, type_from_json
from refindex.model.encoding import Encoding, bytes_codec
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import array_document, dumps

type Value = str | int | float | datetime

REFERRING = ("coordinates", "bounds", "climatology", "grid_mapping", "formula_terms", "cell_measures")
"""Attributes that name other variables (CF conventions): those describe the data, and are not stacked themselves."""


def stack_members(members: Sequence[Member], stack: Mapping[str, str], findings: Findings) -> list[Member]:
    """Files with a new leading dimension, of one element, for each of ``stack``; archives as they are."""
    out = list(members)
    for name, pattern in stack.items():
        values: dict[int, Any] = {}
        attributes: dict[str, Any] = {}
        for number, member in enumerate(out):
            if member.is_base:
                continue
            found, found_attributes = _value(member, name, pattern)
            if found is None:
                findings.bar(f"{member.name}: nothing for the new dimension {name} found by {pattern!r}")
                continue
            values[number] = found
            attributes = attributes or found_attributes
        coordinate, extra = _coordinates(list(values.values()))
        led: dict[int, tuple[Node, Node]] = {}
        for number, value in zip(values, coordinate, strict=True):
            out[number] = _stacked(out[number], name, value, attributes | extra, led)
    return out


def _value(member: Member, name: str, pattern: str) -> tuple[Any, dict[str, Any]]:
    """A file's value along the new dimension, and attributes of it."""
    if pattern.startswith("@"):
        value = member.nodes[""].attributes.get(pattern[1:])
        return (value if isinstance(value, str | int | float) else None), {}
    if pattern:
        return value_from_name(name, pattern, urls.name(urls.absolute(member.name))), {}
    node = member.arrays.get(name)
    if node is not None and node.shape in ((), (1,)):
        value = array_values(member, name).reshape(-1)[0]
        return (value.item() if isinstance(value, np.generic) else value), node.attributes
    return urls.name(urls.absolute(member.name)), {}


def _coordinates(values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Values as numpy scalars of one type, or as text; dates become seconds, with the attributes that say so."""
    if values and all(isinstance(v, datetime) for v in values):
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        seconds = [np.int64((v - epoch).total_seconds()) for v in values]
        return seconds, {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    if values and all(isinstance(v, int) for v in values):
        return [np.int64(v) for v in values], {}
    if values and all(isinstance(v, int | float) for v in values):
        return [np.float64(v) for v in values], {}
    return [str(v) for v in values], {}


def _stacked(
    member: Member, name: str, value: Any, attributes: Mapping[str, Any], led: dict[int, tuple[Node, Node]]
) -> Member:
    """A file with a new leading dimension; ``led`` has the nodes with it by the identity of those without, which many
    files share."""
    described = _described(member)
    nodes = dict(member.nodes)
    for path, node in member.arrays.items():
        own = path.rpartition("/")[2]
        if path == name or path in described or node.dims == (own,):
            continue
        if id(node) not in led:
            led[id(node)] = node, lead(node, name)
        nodes[path] = led[id(node)][1]
    coordinate, table = _coordinate(name, value, attributes)
    nodes[name] = coordinate

    def find(path: str, start: int, stop: int | None) -> ChunkTable:
        return table.between(start, stop) if path == name else member.find(path, start, stop)

    def count(path: str) -> int:
        return len(table) if path == name else member.count(path)

    return replace(member, nodes=nodes, find=find, count=count)


def _described(member: Member) -> set[str]:
    """Paths of the variables that others refer to."""
    found: set[str] = set()
    for path, node in member.arrays.items():
        group = path.rpartition("/")[0]
        for attribute in REFERRING:
            text = node.attributes.get(attribute)
            if isinstance(text, str):
                found |= {f"{group}/{word}".lstrip("/") for word in text.replace(":", " ").split()}
    return found


def lead(node: Node, name: str, size: int = 1) -> Node:
    """An array with a new leading dimension of ``size`` elements in one chunk.

    References stay as they are: there is one chunk along it. Where ``size`` is not 1, encodings repeat their one
    element along it.
    """
    document = dict(node.json)
    grid = ChunkGrid(shape=(size, *node.shape), edges=(size, *node.grid.edges))
    document["shape"] = [size, *node.shape]
    document["chunk_grid"] = grid.to_json()
    document["dimension_names"] = [name, *node.dims]
    encodings = tuple(_led(encoding, size) for encoding in node.encodings)
    return replace(node, document=dumps(document), encodings=encodings).knowing(json=document, grid=grid)


def _led(encoding: Encoding, size: int) -> Encoding:
    # Filters that only libhdf5 undoes may depend on the rank of the chunk: it stays as it was written then.
    whole = all(is_built_in(applied) for applied in encoding.filters) and not encoding.hdf5_type
    return replace(
        encoding,
        shape=(1, *encoding.shape) if whole else encoding.shape,
        start=(0, *encoding.start) if encoding.start else (),
        broadcast=(*((0,) if size != 1 else ()), *(axis + 1 for axis in encoding.broadcast)),
    )


def _coordinate(name: str, value: Any, attributes: Mapping[str, Any]) -> tuple[Node, ChunkTable]:
    """The coordinate of a new dimension: one value, inline."""
    grid = ChunkGrid.regular((1,), (1,))
    if isinstance(value, str):
        codecs: list[dict[str, Any]] = [{"name": "vlen-utf8", "configuration": {}}]
        data_type: Any = "string"
        fill: Any = ""
        data = bytes(VLenUTF8().encode(np.array([value], dtype=object)))
    else:
        dtype = np.asarray(value).dtype.newbyteorder("<")
        codecs, data_type = [bytes_codec(dtype)], data_type_json(dtype)
        fill = fill_value_json(dtype, 0)
        data = np.asarray(value, dtype=dtype).tobytes()
    document = array_document(
        grid=grid,
        data_type=data_type,
        codecs=codecs,
        fill_value=fill,
        dimension_names=(name,),
        attributes={k: v for k, v in attributes.items() if k != "_FillValue"},
    )
    node = Node(path=name, document=dumps(document)).knowing(json=document, grid=grid)
    return node, ChunkTable.inline([(0, data)])


def repeat_member(member: Member, paths: Mapping[str, str], sizes: Mapping[str, int]) -> Member:
    """A file in which some arrays have a leading dimension along which they are repeated.

    Parameters
    ----------
    paths:
        Arrays, and the key of the dimension that each of them gets.
    sizes:
        Elements of these dimensions in the file.
    """
    nodes = dict(member.nodes)
    tables: dict[str, ChunkTable] = {}
    for path, key in paths.items():
        node = member.arrays.get(path)
        if node is None or key not in sizes or node.dtype is None:
            continue
        table = member.table(path)
        if (table.encoding == DECLARED).any() and (len(node.codecs) > 1 or node.dtype.names is not None):
            continue
        encodings = list(node.encodings)
        numbers = table.encoding.copy()
        for row in np.flatnonzero(table.encoding == DECLARED).tolist():
            encoding = Encoding(type=type_from_json(node.dtype.str), shape=node.grid.chunk_shape(int(table.chunk[row])))
            numbers[row] = encodings.index(encoding) if encoding in encodings else len(encodings)
            if encoding not in encodings:
                encodings.append(encoding)
        nodes[path] = lead(replace(node, encodings=tuple(encodings)), key.rpartition("/")[2], sizes[key])
        tables[path] = replace(table, encoding=numbers)

    def find(path: str, start: int, stop: int | None) -> ChunkTable:
        return tables[path].between(start, stop) if path in tables else member.find(path, start, stop)

    return replace(member, nodes=nodes, find=find)
