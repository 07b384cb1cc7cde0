"""Sharded arrays: what is served are the chunks within the shards."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from stores import compare, quietly
from zarr.codecs import BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec

import refindex
from refindex import Status
from refindex.access.files import SourcePool

ABSENT = 2**64 - 1


def write(path: Path, codec: Any, *, shape: tuple[int, ...] = (70, 50), **options: Any) -> Path:
    """A store of one array in shards of 20 x 30, of which some chunks and some shards are never written."""
    with quietly():
        array = zarr.create_array(
            path, shape=shape, chunks=(20, 30), dtype="f8", serializer=codec, compressors=None, **options
        )
        array[5:45, 7:33] = np.random.default_rng(0).random((40, 26))
    return path


def sharding(**options: Any) -> ShardingCodec:
    return ShardingCodec(chunk_shape=(10, 6), **{"codecs": [BytesCodec()]} | options)


@pytest.mark.parametrize("location", ["start", "end"])
@pytest.mark.parametrize("index", [[BytesCodec(), Crc32cCodec()], [BytesCodec()], [BytesCodec(endian="big")]], ids=len)
@pytest.mark.parametrize(
    "codecs", [[BytesCodec()], [TransposeCodec(order=(1, 0)), BytesCodec(endian="big"), ZstdCodec()]]
)
def test_inner_chunks(tmp_path: Path, location: Any, index: Any, codecs: Any) -> None:
    path = write(tmp_path / "s.zarr", sharding(index_location=location, index_codecs=index, codecs=codecs))
    report = compare(path, path)
    assert [(e.status, e.reason) for e in report] == [(Status.NATIVE, "the chunks of 6 shards")]
    manifest = refindex.scan(path)
    array = manifest.arrays["s"]
    assert array.grid.chunk_shape() == (10, 6)
    assert len(array.chunks) == 5 * 5  # rows 0-50, columns 6-36
    assert len(manifest.sources) == 6
    assert "sharding_indexed" not in array.document


@pytest.mark.parametrize("order", [(1, 0), (0, 1), (2, 0, 1), (1, 2, 0), (2, 1, 0)], ids=str)
def test_transposed_shards(tmp_path: Path, order: tuple[int, ...]) -> None:
    """Index and inner chunks are of the transposed array. (zarr-python wants lengths that divide both ways.)"""
    inner, shape = (2, 3, 4)[: len(order)], (17, 30, 13)[: len(order)]
    with quietly():
        array = zarr.create_array(
            tmp_path / "t.zarr",
            shape=shape,
            chunks=(12,) * len(order),
            dtype="i4",
            filters=[TransposeCodec(order=order)],
            serializer=ShardingCodec(chunk_shape=inner),
            compressors=None,
        )
        part = tuple(slice(2, n - 3) for n in shape)
        array[part] = np.arange(array[part].size).reshape(array[part].shape)
    compare(tmp_path / "t.zarr", tmp_path / "t.zarr")
    served = refindex.scan(tmp_path / "t.zarr").arrays["t"].grid.chunk_shape()
    assert tuple(served[axis] for axis in order) == inner


def test_nested_shards_are_cut_once(tmp_path: Path) -> None:
    inner = ShardingCodec(chunk_shape=(5, 3), codecs=[BytesCodec()])
    path = write(tmp_path / "n.zarr", sharding(codecs=[inner]))
    report = compare(path, path)
    assert [e.status for e in report] == [Status.NATIVE]
    array = refindex.scan(path).arrays["n"]
    assert array.grid.chunk_shape() == (10, 6)
    assert array.codecs[0]["name"] == "sharding_indexed"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"compressors": [GzipCodec()]}, "encoded as a whole by gzip"),
        ({"index_codecs": [BytesCodec(), Crc32cCodec(), Crc32cCodec()]}, "their index is encoded"),
    ],
    ids=["gzip", "index"],
)
def test_what_cannot_be_cut_is_served_whole(tmp_path: Path, options: Any, reason: str) -> None:
    path = tmp_path / "w.zarr"
    compressors = options.pop("compressors", None)
    with quietly():
        array = zarr.create_array(
            path, shape=(70, 50), chunks=(20, 30), dtype="f8", serializer=sharding(**options), compressors=compressors
        )
        array[5:45, 7:33] = np.random.default_rng(0).random((40, 26))
    report = compare(path, path)
    (note,) = report.select(Status.NOTE)
    assert reason in note.reason
    assert refindex.scan(path).arrays["w"].grid.chunk_shape() == (20, 30)


def test_a_point_reads_one_inner_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "p.zarr", sharding())
    reads: list[int] = []
    complete = SourcePool._complete

    def counted(self: SourcePool, source: int, offset: int, length: int, data: bytes) -> bytes:
        reads.append(length)
        return complete(self, source, offset, length, data)

    monkeypatch.setattr(SourcePool, "_complete", counted)
    with quietly(), refindex.open(path) as archive:
        expected = zarr.open_array(path, mode="r")[22, 17]
        assert archive.group["p"][22, 17] == expected
        assert reads == [10 * 6 * 8]
        assert archive.group["p"][69, 49] == 0
        assert len(reads) == 1


def shard_with(path: Path, entries: list[tuple[int, int]], *, size: int = 1000) -> None:
    """A shard of one row of chunks with this index."""
    index = b"".join(struct.pack("<2Q", *entry) for entry in entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size) + index + google_crc32c.value(index).to_bytes(4, "little"))


def two_arrays(path: Path) -> Path:
    for name in ("good", "bad"):
        (path / name).mkdir(parents=True)
        document = {
            "zarr_format": 3, "node_type": "array", "shape": [40], "data_type": "float64", "fill_value": 0.0,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [20]}},
            "chunk_key_encoding": {"name": "default"}, "attributes": {},
            "codecs": [ShardingCodec(chunk_shape=(10,)).to_dict()],
        }  # fmt: skip
        (path / name / "zarr.json").write_text(json.dumps(document, default=lambda value: value.to_dict()))
        shard_with(path / name / "c/0", [(0, 80), (ABSENT, ABSENT)])
    (path / "zarr.json").write_text('{"zarr_format":3,"node_type":"group"}')
    return path


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ([(0, 80), (80, ABSENT)], "its index has chunk 1 at 80, 18446744073709551615 bytes long"),
        ([(0, 80), (ABSENT, 80)], "its index has chunk 1 at 18446744073709551615"),
        ([(2**63, 80), (0, 80)], "its index has chunk 0 at 9223372036854775808"),
        ([(1036, 1), (0, 80)], "shard c/0 of 1036 bytes: its index has chunk 0 at 1036, 1 bytes long"),
        ([(0, 1037), (0, 80)], "its index has chunk 0 at 0, 1037 bytes long"),
    ],
    ids=str,
)
def test_an_index_that_points_outside(tmp_path: Path, entries: list[tuple[int, int]], reason: str) -> None:
    path = two_arrays(tmp_path / "x.zarr")
    shard_with(path / "bad/c/0", entries)
    manifest = refindex.scan(path)
    assert set(manifest.arrays) == {"good"}
    (problem,) = manifest.report.problems
    assert reason in problem.reason
    assert len(manifest.arrays["good"].chunks) == 1


def test_every_damaged_byte_of_an_index_is_seen(tmp_path: Path) -> None:
    path = two_arrays(tmp_path / "x.zarr")
    shard = path / "bad/c/0"
    sound = shard.read_bytes()
    for at in range(1, 37):
        damaged = bytearray(sound)
        damaged[-at] ^= 0x10
        shard.write_bytes(damaged)
        manifest = refindex.scan(path)
        assert set(manifest.arrays) == {"good"}
        assert "does not match its checksum" in manifest.report.problems[0].reason
    for size in (0, 1, 35, 36, 500, len(sound) - 1):
        shard.write_bytes(sound[:size])
        manifest = refindex.scan(path)
        assert set(manifest.arrays) == {"good"}
        reason = manifest.report.problems[0].reason
        assert ("its index alone takes 36" if size < 36 else "checksum") in reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"chunk_shape": [7]}, "does not consist of chunks of (7,)"),
        ({"chunk_shape": [10, 1]}, "2 chunk lengths for 1 dimensions"),
        ({"chunk_shape": [0]}, "chunk_shape of sharding_indexed is [0]"),
        ({"index_location": "middle"}, "index_location is 'middle'"),
        ({"index_codecs": None}, "no index_codecs"),
        ({"index_codecs": [{"name": "bytes"}]}, "the byte order of the index is None"),
        ({"codecs": [{"name": "none"}]}, "codec 'none'"),
        ({"codecs": None}, "codecs is None"),
    ],
    ids=str,
)
def test_configurations_that_contradict(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = two_arrays(tmp_path / "x.zarr")
    document = json.loads((path / "bad/zarr.json").read_text())
    document["codecs"][0]["configuration"] |= change
    (path / "bad/zarr.json").write_text(json.dumps(document))
    manifest = refindex.scan(path)
    assert set(manifest.arrays) == {"good"}
    assert reason in manifest.report.problems[0].reason
