"""Zarr stores: documents of both versions, consolidated metadata, shards, zip files."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from random import Random
from typing import Any

import google_crc32c
import numpy as np

from refindex.model.manifest import Source
from refindex.scan.zarr.listing import IntArray, Listing, Rows
from refindex.scan.zarr.scanner import _scan, scan_zip
from tests.fuzz.mutation import join, mutate_bytes, mutate_json, mutate_parts, split, written
from tests.fuzz.target import FindingError, Target
from tests.fuzz.targets.scratch import folder

_MODULES = tuple(
    f"refindex.scan.zarr.{name}"
    for name in ("v2", "v2_types", "v2_codecs", "v3", "plan", "hierarchy", "scanner", "shards", "table")
)


class _Objects:
    """A store in memory; each object is a source of its own."""

    whole: Source | None = None
    url = "file:///store"

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects
        self.listing = Listing.of(list(objects), [len(data) for data in objects.values()], [0] * len(objects))

    def offsets(self, rows: IntArray) -> IntArray:
        return np.zeros(len(rows), dtype=np.int64)

    def sources(self, rows: IntArray) -> list[Source]:
        return [Source(url=f"{self.url}/{row}", size=int(self.listing.size[row])) for row in rows]

    def read(self, rows: Rows, starts: Rows, lengths: Rows) -> list[bytes]:
        found = []
        for row, start, length in zip(rows, starts, lengths, strict=True):
            data = self._objects[self.listing.names[row]]
            if start < 0 or length < 0 or start + length > len(data):
                raise FindingError(f"asks for {length} bytes at {start} of an object of {len(data)}")
            found.append(data[start : start + length])
        return found


def _looked_at(objects: dict[str, bytes]) -> Any:
    store = _Objects(objects)
    manifest = _scan(store, None)
    for path, array in manifest.arrays.items():
        table = array.chunks
        for source, offset, length in zip(
            table.source.tolist(), table.offset.tolist(), table.length.tolist(), strict=True
        ):
            if source >= 0 and offset + length > manifest.sources[source].size:
                raise FindingError(f"/{path} refers behind the end of an object")
    if not manifest.arrays:
        manifest.report.problems  # noqa: B018
    return manifest


_CHUNKS_3 = {f"a/c/{i}/{j}": bytes(32) for i in range(2) for j in range(2)}
_CHUNKS_2 = {f"a/{i}.{j}": bytes(32) for i in range(2) for j in range(2)}
_ROOT_3 = written({"zarr_format": 3, "node_type": "group"})


def run_3(data: bytes) -> Any:
    return _looked_at({"zarr.json": _ROOT_3, "a/zarr.json": data, **_CHUNKS_3})


def run_2(data: bytes) -> Any:
    array, attributes = split(data, 2)
    return _looked_at({".zgroup": b'{"zarr_format":2}', "a/.zarray": array, "a/.zattrs": attributes, **_CHUNKS_2})


def run_consolidated(data: bytes) -> Any:
    return _looked_at({"zarr.json" if data[:1] == b"3" else ".zmetadata": data[1:], **_CHUNKS_3, **_CHUNKS_2})


def run_shards(data: bytes) -> Any:
    document, *shards = split(data, 3)
    return _looked_at({"zarr.json": _ROOT_3, "s/zarr.json": document, "s/c/0": shards[0], "s/c/1": shards[1]})


def run_zip(data: bytes) -> Any:
    path = folder("zarr") / "s.zip"
    path.write_bytes(data)
    return scan_zip(Source(url=f"file://{path}", size=len(data), mtime=0))


_V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [4, 6], "data_type": "int32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 4]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {"a": 1.5, "b": [1, "x"]},
    "dimension_names": ["x", None],
}  # fmt: skip
_V2: dict[str, Any] = {
    "zarr_format": 2, "shape": [4, 6], "chunks": [2, 4], "dtype": "<i4", "fill_value": 7, "compressor": None,
    "filters": None, "order": "C",
}  # fmt: skip
_STRUCT = {"name": "struct", "configuration": {"fields": [
    {"name": "a", "data_type": "int32"},
    {"name": "b", "data_type": {"name": "null_terminated_bytes", "configuration": {"length_bytes": 4}}},
]}}  # fmt: skip
_RUNS = {"name": "rectilinear", "configuration": {"kind": "inline", "chunk_shapes": [[[1, 2], 2], 4]}}


def _seeds_3() -> list[bytes]:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    changes: list[dict[str, Any]] = [
        {},
        {
            "data_type": "float64",
            "fill_value": "NaN",
            "codecs": [little, {"name": "gzip", "configuration": {"level": 5}}],
        },
        {"data_type": "complex64", "fill_value": [0.0, "Infinity"], "attributes": {"_FillValue": "AAAAAAAA+H8="}},
        {"data_type": _STRUCT, "fill_value": "AAAAAAAAAAA="},
        {"chunk_grid": _RUNS, "chunk_key_encoding": "v2"},
        {"codecs": [{"name": "transpose", "configuration": {"order": [1, 0]}}, little, {"name": "crc32c"}]},
        {"data_type": {"name": "numpy.datetime64", "configuration": {"unit": "ns", "scale_factor": 1}}},
        {
            "data_type": "string",
            "fill_value": "",
            "codecs": [{"name": "vlen-utf8"}, {"name": "zstd", "configuration": {"level": 1, "checksum": False}}],
        },
        {"data_type": "r16", "fill_value": [0, 0], "codecs": [{"name": "bytes"}]},
    ]
    return [written(_V3 | change) for change in changes]


def _seeds_2() -> list[bytes]:
    blosc = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}
    names = {"_ARRAY_DIMENSIONS": ["x", "y"], "_FillValue": 3, "units": "K"}
    changes: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, names),
        ({"dtype": "|S4", "fill_value": "", "compressor": blosc}, {}),
        ({"dtype": [["a", "<i4"], ["b", "<f4", [2]]], "fill_value": None}, {}),
        ({"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "fill_value": ""}, {}),
        ({"dtype": "<f8", "filters": [{"id": "delta", "dtype": "<f8"}], "order": "F", "fill_value": "NaN"}, names),
        (
            {
                "dtype": "<f4",
                "filters": [{"id": "fixedscaleoffset", "dtype": "<f4", "astype": "<i2", "scale": 10, "offset": 0}],
            },
            {},
        ),
        (
            {
                "dtype": "<M8[ns]",
                "fill_value": "NaT",
                "dimension_separator": ".",
                "compressor": {"id": "zlib", "level": 1},
            },
            {},
        ),
        (
            {
                "dtype": "|b1",
                "filters": [{"id": "packbits"}],
                "fill_value": False,
                "_NCZARR_ARRAY": {"dimrefs": ["/x", "/y"]},
            },
            {},
        ),
        ({"dtype": "<U4", "fill_value": "abc"}, {}),
    ]
    return [join([written(_V2 | change), written(attributes)]) for change, attributes in changes]


def _seeds_consolidated() -> list[bytes]:
    inline = {
        "kind": "inline",
        "must_understand": False,
        "metadata": {"a": _V3, "g": {"zarr_format": 3, "node_type": "group"}, "g/b": _V3},
    }
    root_3 = {"zarr_format": 3, "node_type": "group", "attributes": {"t": 1}, "consolidated_metadata": inline}
    documents = {
        ".zgroup": {"zarr_format": 2},
        ".zattrs": {"t": 1},
        "a/.zarray": _V2,
        "a/.zattrs": {},
        "g/.zgroup": {"zarr_format": 2},
    }
    return [b"3" + written(root_3), b"2" + written({"zarr_consolidated_format": 1, "metadata": documents})]


def _shard(inner: Sequence[bytes | None], *, checksum: bool = True, start: bool = False) -> bytes:
    at, index, body = (16 * len(inner) + 4 * checksum) if start else 0, b"", b""
    for chunk in inner:
        index += (
            struct.pack("<QQ", 2**64 - 1, 2**64 - 1)
            if chunk is None
            else struct.pack("<QQ", at + len(body), len(chunk))
        )
        body += chunk or b""
    index += google_crc32c.value(index).to_bytes(4, "little") if checksum else b""
    return index + body if start else body + index


def _sharding(*, checksum: bool = True, start: bool = False) -> bytes:
    little = {"name": "bytes", "configuration": {"endian": "little"}}
    configuration = {
        "chunk_shape": [2], "codecs": [little], "index_codecs": [little, *([{"name": "crc32c"}] if checksum else [])],
        "index_location": "start" if start else "end",
    }  # fmt: skip
    return written(_V3 | {
        "shape": [15], "dimension_names": ["x"],
        "codecs": [{"name": "sharding_indexed", "configuration": configuration}],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [8]}},
    })  # fmt: skip


def _seeds_shards() -> list[bytes]:
    inner = [bytes(8), None, bytes(8), bytes(5)]
    return [
        join([_sharding(checksum=checksum, start=start), *[_shard(inner, checksum=checksum, start=start)] * 2])
        for checksum in (True, False)
        for start in (True, False)
    ]


def _mutate_shard(data: bytes, rng: Random) -> bytes:
    """Change a shard, and mostly repair the checksum of its index, which is at the end or behind four entries."""
    changed = bytearray(mutate_bytes(data, rng, resize=0.1))
    if len(changed) >= 68 and rng.random() < 0.8:
        for start in (0, len(changed) - 68):
            if google_crc32c.value(bytes(data[start : start + 64])) == int.from_bytes(
                data[start + 64 : start + 68], "little"
            ):
                changed[start + 64 : start + 68] = google_crc32c.value(bytes(changed[start : start + 64])).to_bytes(
                    4, "little"
                )
    return bytes(changed)


def _zipped(compression: int, objects: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as file:
        for name, data in objects.items():
            file.writestr(zipfile.ZipInfo(name), data, compression)
    return made.getvalue()


def _seeds_zip() -> list[bytes]:
    objects = {
        "zarr.json": _ROOT_3,
        "a/zarr.json": written(_V3 | {"attributes": {}}),
        "a/c/0/0": bytes(32),
        "a/c/1/0": bytes(32),
    }
    return [_zipped(zipfile.ZIP_STORED, objects), _zipped(zipfile.ZIP_DEFLATED, objects)]


_WORDS: list[Any] = [
    "<f4", ">i2", "|O", "<U4", "|S3", "<M8[ns]", "|V4", "float32", "string", "zstd", "default", "v2", "regular",
    "rectilinear", "<i2,<f4", "f8", "O8", "(2,3)<f4", "<M8[0s]", "<U99999999999", "|V99999999999", "r8", "r99999999999",
    {"name": "bytes"}, {"name": "gzip"}, {"name": "transpose", "configuration": {"order": [0, 1]}}, {"id": "zlib"},
    {"id": "astype", "encode_dtype": "<f8", "decode_dtype": "<f4"}, {"id": "packbits"}, {"id": "vlen-utf8"},
    {"id": "quantize", "digits": 3, "dtype": "<f8"}, {"id": "crc32c"}, {"must_understand": False}, [[3, 2], 4],
    {"name": "fixed_length_utf32", "configuration": {"length_bytes": 8}}, {"id": "shuffle", "elementsize": 4},
    {"name": "numpy.timedelta64", "configuration": {"unit": "generic", "scale_factor": 0}},
    [["x", "<f4"], ["x", "<f4"]],
    {"name": "raw_bytes", "configuration": {"length_bytes": 2**40}}, "Infinity", "-Infinity", "NaT", "AAAA", "base64",
]  # fmt: skip


def _json(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng, _WORDS)


TARGETS = [
    Target(name="zarr-v3", run=run_3, seeds=_seeds_3, mutate=_json, modules=_MODULES),
    Target(
        name="zarr-v2",
        run=run_2,
        seeds=_seeds_2,
        mutate=lambda data, rng: mutate_parts((_json, _json), data, rng),
        modules=_MODULES,
    ),
    Target(
        name="zarr-consolidated",
        run=run_consolidated,
        seeds=_seeds_consolidated,
        mutate=lambda data, rng: data[:1] + _json(data[1:], rng),
        modules=_MODULES,
    ),
    Target(
        name="zarr-shards",
        run=run_shards,
        seeds=_seeds_shards,
        mutate=lambda data, rng: mutate_parts((_json, _mutate_shard, _mutate_shard), data, rng),
        modules=_MODULES,
    ),
    Target(name="zarr-zip", run=run_zip, seeds=_seeds_zip, mutate=mutate_bytes, modules=("refindex.scan.zarr.zipped",)),
]
