"""Zarr v3 stores as zarr-python writes them, beside what it reads from them."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import compare, quietly
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, TransposeCodec, ZstdCodec
from zarr.codecs import numcodecs as extra
from zarr.dtype import VariableLengthBytes

import refindex
from refindex import Status
from refindex.access.files import SourcePool

TYPES: list[Any] = [
    *("bool", "i1", "u2", "i4", "i8", "f2", "f4", "f8", "c8", "c16", "S5", "<U3", "V6", "<M8[ns]", "<m8[s]"),
    [("a", "<i4"), ("b", "<f8"), ("n", [("x", "<f4")])],
]
COMPRESSORS: list[Any] = [
    GzipCodec(), ZstdCodec(), ZstdCodec(checksum=True), BloscCodec(), Crc32cCodec(), extra.Zlib(), extra.BZ2(),
    extra.LZMA(), extra.LZ4(), extra.Fletcher32(), extra.Adler32(), extra.CRC32(),
]  # fmt: skip
KEYS: list[dict[str, Any]] = [{"name": n, "separator": s} for n in ("default", "v2") for s in "./"]


def values_of(dtype: Any, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    kind = np.dtype(dtype)
    if kind.kind == "U":
        return np.full(shape, "äb", kind)
    raw = np.random.default_rng(0).integers(0, 100, (*shape, kind.itemsize), dtype="u1")
    return (raw % 2 if kind.kind == "b" else raw).view(kind)[..., 0]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("keys", KEYS, ids=lambda keys: f"{keys['name']}{keys['separator']}")
def test_types_and_keys(tmp_path: Path, dtype: Any, keys: dict[str, Any]) -> None:
    path = tmp_path / "a.zarr"
    with quietly():
        for name, shape in (("two", (7, 5)), ("none", ()), ("zero", (0, 4))):
            group = zarr.open_group(path, mode="a")
            array = group.create_array(
                name, shape=shape, chunks=(3, 2)[: len(shape)], dtype=np.dtype(dtype), chunk_key_encoding=keys
            )
            if shape:
                array[:4] = values_of(dtype, array[:4].shape)
            else:
                array[...] = values_of(dtype, ())
    report = compare(path, path)
    assert not report.problems


@pytest.mark.parametrize("compressor", COMPRESSORS, ids=lambda c: type(c).__name__)
def test_codecs(tmp_path: Path, compressor: Any) -> None:
    path = tmp_path / "a.zarr"
    with quietly():
        array = zarr.create_array(
            path,
            shape=(40, 50, 3),
            chunks=(30, 20, 2),
            dtype="f8",
            filters=[TransposeCodec(order=(2, 0, 1))],
            compressors=[compressor],
            fill_value=np.nan,
            dimension_names=["x", None, "z"],
            attributes={"_FillValue": "AAAAAAAA+H8=", "u": [1, {"v": None}], "größe": 1},
        )
        array[:35] = np.random.default_rng(0).random((35, 50, 3))
    report = compare(path, path)
    assert [e.status for e in report] == [Status.NATIVE]
    manifest = refindex.scan(path)
    stored, served = json.loads((path / "zarr.json").read_text()), json.loads(manifest.arrays["a"].document)
    assert served["codecs"] == stored["codecs"]
    assert served["attributes"] == stored["attributes"]


def test_variable_length(tmp_path: Path) -> None:
    with quietly():
        group = zarr.open_group(tmp_path / "s.zarr", mode="w")
        for name, dtype, value in (("text", str, "ä"), ("bytes", VariableLengthBytes(), b"\xff\0")):
            array = group.create_array(name, shape=(5, 4), chunks=(2, 3), dtype=dtype)
            array[:3] = np.array([[value * i for i in range(4)]] * 3, dtype=object)
    compare(tmp_path / "s.zarr", tmp_path / "s.zarr")


def test_rectilinear_chunks(tmp_path: Path) -> None:
    with quietly():
        array = zarr.create_array(tmp_path / "r.zarr", shape=(60, 7), chunks=[[10, 20, 30], [4, 3]], dtype="i4")
        array[...] = np.arange(420).reshape(60, 7)
    compare(tmp_path / "r.zarr", tmp_path / "r.zarr")


@pytest.mark.parametrize("consolidated", [True, False])
def test_hierarchies(tmp_path: Path, consolidated: bool) -> None:
    path = tmp_path / "h.zarr"
    with quietly():
        root = zarr.open_group(path, mode="w", attributes={"title": "t"})
        deep = root.create_group("a", attributes={"n": 1}).create_group("b")
        deep.create_array("x", shape=(5,), dtype="i4")[...] = 3
        root.create_array("y", shape=(5,), dtype="i4")
        if consolidated:
            zarr.consolidate_metadata(path)
    compare(path, path)
    manifest = refindex.scan(path)
    assert manifest.groups[""].attributes == {"title": "t"}
    assert manifest.groups["a"].attributes == {"n": 1}
    assert "consolidated_metadata" not in manifest.groups[""].json
    # A group, and an array, of a store are stores.
    compare(path / "a", path / "a")
    compare(path / "a/b/x", path / "a/b/x")
    assert list(refindex.scan(path / "a/b/x").arrays) == ["x"]


def test_variables_bring_their_coordinates(tmp_path: Path) -> None:
    with quietly():
        root = zarr.open_group(tmp_path / "v.zarr", mode="w")
        group = root.create_group("g")
        for where, name, dims in ((root, "x", "x"), (root, "z", "z"), (group, "t", "t"), (group, "v", "tx")):
            where.create_array(name, shape=(3,) * len(dims), dtype="i4", dimension_names=list(dims))
    assert set(refindex.scan(tmp_path / "v.zarr", variables=["v"]).arrays) == {"g/v", "g/t", "x"}
    assert set(refindex.scan(tmp_path / "v.zarr", variables=["/z"]).nodes) == {"", "z"}


def test_coordinates_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.zarr"
    with quietly():
        root = zarr.open_group(path, mode="w")
        for name, size in (("t", 3000), ("v", 3000), ("small", 10)):
            chunks = (min(size, 1000),)
            root.create_array(name, shape=(size,), chunks=chunks, dtype="f8", compressors=None, dimension_names=["t"])
            root[name][...] = np.arange(size) + 1.5
    manifest = refindex.scan(path)
    status = {e.path: e.status for e in manifest.report}
    assert status == {"/t": Status.INLINED, "/small": Status.INLINED, "/v": Status.NATIVE}
    assert len(manifest.sources) == 3

    manifest.save(tmp_path / "m.refindex")

    def no_read(*_: object) -> bytes:
        raise AssertionError("a source was read")

    monkeypatch.setattr(SourcePool, "reader", no_read)
    with quietly(), refindex.open(tmp_path / "m.refindex") as archive:
        assert np.array_equal(archive.group["t"][...], np.arange(3000) + 1.5)
        with pytest.raises(AssertionError, match="a source was read"):
            archive.group["v"][...]


def test_a_chunk_that_was_written_anew_is_stale(tmp_path: Path) -> None:
    path = tmp_path / "c.zarr"
    with quietly():
        array = zarr.create_array(path, shape=(3000,), chunks=(1000,), dtype="f8", compressors=None)
        array[...] = 1
        refindex.scan(path).save(tmp_path / "m.sqlite")
        array[:1000] = 2
        with refindex.open(tmp_path / "m.sqlite") as archive:
            assert archive.group["c"][1000] == 1
            with pytest.raises(refindex.StaleSourceError, match=r"c\.zarr/c/0 has changed"):
                archive.group["c"][0]
        (path / "c/1").unlink()
        with (
            refindex.open(tmp_path / "m.sqlite") as archive,
            pytest.raises(refindex.SourceError, match=r"c\.zarr/c/1: no such file"),
        ):
            archive.group["c"][1000]


BASE: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [4], "data_type": "int32",
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2]}},
    "chunk_key_encoding": {"name": "default"}, "fill_value": 0,
    "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}], "attributes": {},
}  # fmt: skip
LITTLE = BASE["codecs"][0]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"storage_transformers": [{"name": "x"}]}, "storage transformers"),
        ({"new": {"name": "x"}}, "'new', which must be understood"),
        ({"new": 1}, "'new', which must be understood"),
        ({"codecs": [LITTLE, {"name": "weird"}]}, "codec 'weird'"),
        ({"codecs": [{"name": "zstd"}, LITTLE]}, "codec 'zstd' cannot be where it is"),
        ({"codecs": [LITTLE, LITTLE]}, "codec 'bytes' cannot be where it is"),
        ({"codecs": [{"name": "bytes"}]}, "byte order"),
        ({"codecs": []}, "damaged: codecs is []"),
        ({"codecs": [{"name": "transpose", "configuration": {"order": [1]}}, LITTLE]}, "'transpose': order is [1]"),
        ({"codecs": [7]}, "damaged: codec is 7"),
        ({"data_type": "bfloat16"}, "data type 'bfloat16'"),
        ({"data_type": 3}, "damaged: data_type is 3"),
        ({"fill_value": None}, "fill_value is null"),
        ({"fill_value": 1.5}, "fill_value 1.5"),
        ({"fill_value": 2**31}, "fill value 2147483648"),
        ({"chunk_grid": {"name": "hexagons"}}, "chunk grid 'hexagons'"),
        ({"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2.0]}}}, "chunk_shape is [2.0]"),
        (
            {
                "shape": [2**40],
                "chunk_grid": {
                    "name": "rectilinear",
                    "configuration": {"kind": "inline", "chunk_shapes": [[[1, 2**40]]]},
                },
            },
            "rectilinear chunk grid with",
        ),
        ({"chunk_key_encoding": {"name": "hash"}}, "chunk key encoding 'hash'"),
        ({"chunk_key_encoding": {"name": "v2", "configuration": {"separator": "-"}}}, "separator '-'"),
        ({"dimension_names": ["x", "y"]}, "dimension_names"),
        ({"attributes": []}, "attributes is []"),
        ({"attributes": {"a": "\ud800"}}, "cannot be written"),
        ({"shape": [-1]}, "shape is [-1]"),
        ({"shape": [True]}, "shape is [True]"),
        ({"node_type": "plant"}, "node_type 'plant'"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_reported(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    for name, changes in (("good", {}), ("bad", change)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "zarr.json").write_text(json.dumps(BASE | changes))
    (tmp_path / "zarr.json").write_text('{"zarr_format":3,"node_type":"group"}')
    with quietly(), refindex.open(tmp_path) as archive:
        assert set(archive.arrays) == {"good"}
        (problem,) = archive.report.problems
        assert problem.path == "/bad"
        assert reason in problem.reason
        assert archive.group["good"][...].tolist() == [0] * 4  # one that is not served does not hide the others


def test_what_may_be_ignored_is(tmp_path: Path) -> None:
    extra_member = {"must_understand": False, "x": 1}
    document = BASE | {"x": extra_member, "chunk_key_encoding": "default", "codecs": [LITTLE, "crc32c"]}
    (tmp_path / "zarr.json").write_text(json.dumps(document))
    with quietly(), refindex.open(tmp_path) as archive:
        (array,) = (archive.group[p] for p in archive.arrays)
        assert array[...].tolist() == [0] * 4


def test_damaged_documents(tmp_path: Path) -> None:
    path = tmp_path / "d.zarr"
    with quietly():
        root = zarr.open_group(path, mode="w")
        for name in ("a", "b", "g/x"):
            root.create_array(name, shape=(500,), dtype="f8", compressors=None)[...] = 1
    (path / "a/zarr.json").write_bytes(b'{"zarr_format":3,')
    (path / "b/zarr.json").unlink()
    (path / "g/zarr.json").write_bytes(b"\xff")
    (path / "g/x/y").mkdir()
    shutil.copy(path / "g/x/zarr.json", path / "g/x/y/zarr.json")
    manifest = refindex.scan(path)
    assert set(manifest.arrays) == {"g/x"}
    problems = {e.path: e.reason for e in manifest.report.problems}
    assert set(problems) == {"/a", "/g", "/g/x/y"}
    assert "lies within /g/x, which is an array" in problems["/g/x/y"]
    notes = [e.reason for e in manifest.report.select(Status.NOTE) if e.path == "/"]
    assert notes == ["2 files belong to no array and are ignored, e.g. 'a/c/0'"]
    (path / "zarr.json").write_text('{"zarr_format":3,"node_type":"group","link":{}}')
    with pytest.raises(refindex.UnsupportedError, match="'link'"):
        refindex.scan(tmp_path / "d.zarr/zarr.json".replace("/zarr.json", "")) if not shutil.rmtree(
            path / "g"
        ) else None


@st.composite
def specifications(draw: st.DrawFn) -> dict[str, Any]:
    ndim = draw(st.integers(0, 3))
    inner = tuple(draw(st.integers(1, 3)) for _ in range(ndim))
    transposed = st.permutations(range(ndim)).map(lambda order: [TransposeCodec(order=tuple(order))])
    return {
        "shape": tuple(draw(st.integers(0, 12)) for _ in range(ndim)),
        "chunks": inner,
        "shards": draw(st.one_of(st.none(), st.tuples(*(st.integers(1, 3).map(lambda k, n=n: k * n) for n in inner)))),
        "dtype": draw(st.sampled_from(TYPES)),
        "filters": draw(st.one_of(st.just([]), transposed)) if ndim else [],
        "compressors": draw(st.lists(st.sampled_from(COMPRESSORS), max_size=2)),
        "keys": draw(st.sampled_from(KEYS)),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=200)
@given(specifications())
def test_random_arrays(spec: dict[str, Any]) -> None:
    rng = np.random.default_rng(spec["seed"])
    shape = spec["shape"]
    with tempfile.TemporaryDirectory() as folder, quietly():
        array = zarr.create_array(
            f"{folder}/r.zarr",
            shape=shape,
            chunks=spec["chunks"],
            shards=spec["shards"] if shape else None,
            dtype=np.dtype(spec["dtype"]),
            filters=spec["filters"],
            compressors=spec["compressors"],
            chunk_key_encoding=spec["keys"],
        )
        if 0 not in shape:
            start = tuple(int(rng.integers(0, n)) for n in shape)
            part = tuple(slice(a, int(rng.integers(a + 1, n + 1))) for a, n in zip(start, shape, strict=True))
            array[part] = values_of(spec["dtype"], array[part].shape)
        report = compare(f"{folder}/r.zarr", f"{folder}/r.zarr")
        assert not report.problems
        assert not report.select(Status.NOTE)
