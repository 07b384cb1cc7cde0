"""Rows of a manifest that are JSON: documents, encodings, attribute types, how files were joined."""

from __future__ import annotations

from random import Random
from typing import Any

from refindex.model.dtype import Foreign, Leaf, Struct, Subarray, Text
from refindex.model.encoding import Encoding, Filter
from refindex.model.packing import Number, Packing
from refindex.storage import tables
from tests.fuzz.mutation import join, mutate_json, mutate_parts, split, written
from tests.fuzz.target import FindingError, Target
from tests.fuzz.targets.zarr_stores import _V3, _WORDS, _seeds_3


def run(data: bytes) -> Any:
    document, encodings, types, joined = (part.decode("utf-8", "surrogateescape") for part in split(data, 4))
    node = tables.make_node("a/b", document, encodings or None, types or None, joined or None)
    if not node.is_array:
        node.attributes  # noqa: B018
        return node
    node.typed_attributes  # noqa: B018
    grid, dims = node.grid, node.dims
    if len(dims) != grid.ndim:
        raise FindingError(f"{len(dims)} names of {grid.ndim} dimensions")
    if grid.size:
        for chunk in (0, grid.size - 1):
            if grid.parse_key(grid.key(chunk)) != chunk:
                raise FindingError(f"chunk {chunk} has the key {grid.key(chunk)}, which is that of another")
        for number in range(-1, len(node.encodings)):
            node.is_native(0, number)
    for encoding in node.encodings:
        if encoding.nbytes < 0:
            raise FindingError("a chunk of less than no bytes")
        said = encoding.to_json()  # compared as text: no number is equal to NaN
        if written(Encoding.from_json(said).to_json()) != written(said):
            raise FindingError("an encoding that is not what it says")
    return node


def seeds() -> list[bytes]:
    applied = (Filter(id=2, values=(4,)), Filter(id=1, values=(6,)))
    packing = Packing(
        dtype="<f8", scale=Number("<f4", 0.5), offset=Number("<f8", 1.0), mask=(Number("<i2", -1),), integers="<u2"
    )
    every = [
        Encoding(type=Leaf("<i4"), shape=(2, 4), filters=applied),
        Encoding(type=Leaf(">i2"), shape=(2, 1), start=(1, 0), broadcast=(1,), packing=packing),
        Encoding(type=Foreign(3, "<i4"), shape=(2, 4), hdf5_type=b"\3\0abc"),
        Encoding(type=Struct((("a", 0, Leaf("<i4")), ("b", 4, Text(4, "nullterm"))), 8), shape=(2, 4)),
        Encoding(type=Subarray((3,), Leaf("<f4")), shape=(2, 4, 3)),
    ]
    encodings = written([encoding.to_json() for encoding in every])
    types = written({"a": "float32", "absent": "int16"})
    joined = written({"concat_dim": "time", "join": "exact", "files": [1, 2]})
    group = written({"zarr_format": 3, "node_type": "group", "attributes": {"a": 1}})
    native = written(_V3 | {"codecs": [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "numcodecs.shuffle", "configuration": {"elementsize": 4}},
        {"name": "numcodecs.zlib", "configuration": {"level": 6}},
    ]})  # fmt: skip
    found = [join([document, encodings, types, b""]) for document in [native, *_seeds_3()]]
    return [*found, join([group, b"", types, joined])]


_TYPES: list[Any] = [
    *_WORDS, {"foreign": 3, "dtype": "<i4"}, {"text": 4, "padding": "nullterm"}, {"dims": [2, 2**40], "base": "<f8"},
    {"fields": [["a", 0, "<i4"]], "size": 4}, {"fields": [["a", 2**40, "<i4"], ["a", 0, "|V0"]], "size": 2**50},
    {"id": 1, "name": "deflate", "values": [2**70]}, "2,2f4", "f4,f4", "S", "V0", "U", "O", "m8[s]", "float128",
]  # fmt: skip


def _json(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng, _TYPES)


TARGETS = [
    Target(
        name="node",
        run=run,
        seeds=seeds,
        mutate=lambda data, rng: mutate_parts((_json, _json, _json, _json), data, rng),
        modules=tuple(
            f"refindex.model.{name}" for name in ("encoding", "dtype", "grid", "packing", "manifest", "zarr_v3")
        ),
    )
]
