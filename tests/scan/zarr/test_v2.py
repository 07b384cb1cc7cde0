"""Zarr v2 stores as zarr-python writes them, beside what it reads from them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import compare, quietly, same_values
from zarr.dtype import VariableLengthBytes

import refindex
from refindex import Status
from refindex.scan.zarr.folder import LocalFolder

TYPES: list[Any] = [
    *("?", "i1", "u1", "<i2", ">i2", "<u8", ">f4", "<f2", ">f8", "<c8", ">c16", "S5", "<U3", ">U3", "V6"),
    *("<M8[ns]", ">M8[10s]", "<m8[s]"),
    [("a", "<i4"), ("b", "<f8")],
    [("a", ">i4"), ("b", ">f8"), ("c", "S3")],
    [("a", "<i4"), ("u", "<U2"), ("n", [("x", "<f4")])],
]
COMPRESSORS: list[dict[str, Any]] = [
    *({"id": name} for name in ("zlib", "gzip", "bz2", "lzma", "lz4", "zstd")),
    *(
        {"id": "blosc", "cname": cname, "clevel": 4, "shuffle": shuffle, "blocksize": 0}
        for cname in ("lz4", "lz4hc", "blosclz", "zlib", "zstd")
        for shuffle in (-1, 0, 1, 2)
    ),
]
FILTERS: list[list[dict[str, Any]]] = [
    [{"id": "shuffle", "elementsize": 4}],
    [{"id": "delta", "dtype": "own"}],
    [{"id": "delta", "dtype": "own", "astype": ">i2"}],
    [{"id": "fixedscaleoffset", "scale": 10, "offset": 1, "dtype": "own", "astype": ">i2"}],
    [{"id": "fixedscaleoffset", "scale": 10, "offset": 1, "dtype": "own"}],
    [{"id": "quantize", "digits": 2, "dtype": "own"}],
    [{"id": "bitround", "keepbits": 4}],
    [{"id": "astype", "encode_dtype": ">i8", "decode_dtype": "own"}],
    *([{"id": name}] for name in ("crc32", "crc32c", "adler32", "fletcher32", "jenkins_lookup3")),
    [{"id": "crc32c", "location": "start"}],
    [{"id": "packbits"}],
    [{"id": "delta", "dtype": "own"}, {"id": "shuffle", "elementsize": 4}, {"id": "crc32c"}],
    [
        {"id": "fixedscaleoffset", "scale": 10, "offset": 1, "dtype": "own", "astype": ">i2"},
        {"id": "delta", "dtype": ">i2"},
    ],
]


def write(path: Path, values: np.ndarray[Any, Any], **options: Any) -> Path:
    """A store of one array, of which the last rows are never written."""
    filters, compressor = options.pop("filters", None), options.pop("compressor", None)
    with quietly():
        array = zarr.create_array(
            path,
            shape=(values.shape[0] + 3, *values.shape[1:]),
            dtype=values.dtype,
            zarr_format=2,
            filters=[numcodecs.get_codec(dict(f)) for f in filters] if filters else None,
            compressors=numcodecs.get_codec(dict(compressor)) if compressor else None,
            **options,
        )
        array[: values.shape[0]] = values
    return path


def random_values(dtype: Any, shape: tuple[int, ...] = (4, 5)) -> np.ndarray[Any, Any]:
    kind = np.dtype(dtype)
    if "U" in str(kind):
        values = np.zeros(shape, kind)
        if kind.kind == "U":
            values[...] = "äb"
        return values
    raw = np.random.default_rng(0).integers(0, 100, (*shape[:-1], shape[-1] * kind.itemsize), dtype="u1")
    return (raw % 2 if kind.kind == "b" else raw).view(kind).reshape(shape)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_types(tmp_path: Path, dtype: Any, order: str) -> None:
    for fill in (None, "own"):
        values = random_values(dtype)
        value = None if fill is None else values[0, 0]
        path = write(tmp_path / f"{fill}.zarr", values, chunks=(3, 2), order=order, fill_value=value)
        compare(path, path)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    "compressor", COMPRESSORS, ids=lambda c: f"{c['id']}{c.get('cname', '')}{c.get('shuffle', '')}"
)
def test_compressors(tmp_path: Path, compressor: dict[str, Any], order: str) -> None:
    path = write(
        tmp_path / "a.zarr",
        np.arange(2000, dtype="<i4").reshape(40, 50),
        chunks=(30, 20),
        order=order,
        compressor=compressor,
        fill_value=7,
    )
    report = compare(path, path)
    assert [e.status for e in report] == [Status.NATIVE]


def takes(dtype: str, filters: list[dict[str, Any]]) -> bool:
    """Whether numcodecs has the filters for a type: packbits for booleans, rounding for little-endian floats."""
    names = {f["id"] for f in filters}
    if "bitround" in names and dtype == ">f4":
        return False
    return ("packbits" in names) == (dtype == "|b1") and not (names & {"quantize", "bitround"} and "f" not in dtype)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize(
    ("filters", "dtype"),
    [(f, dtype) for f in FILTERS for dtype in ("<f4", ">f4", "<f8", "<i4", ">i4", "|b1") if takes(dtype, f)],
    ids=lambda value: value if isinstance(value, str) else "-".join(f["id"] for f in value),
)
def test_filters(tmp_path: Path, filters: list[dict[str, Any]], dtype: str, order: str) -> None:
    own = [{k: dtype if v == "own" else v for k, v in f.items()} for f in filters]
    values = np.arange(20).reshape(4, 5)
    for compressor in (None, {"id": "zlib"}):
        path = write(
            tmp_path / f"{compressor is None}.zarr",
            (values % 7 > 3 if dtype == "|b1" else values).astype(dtype),
            chunks=(3, 2),
            order=order,
            filters=own,
            compressor=compressor,
            fill_value=0,
        )
        compare(path, path)


@pytest.mark.parametrize("order", ["C", "F"])
def test_variable_length(tmp_path: Path, order: str) -> None:
    with quietly():
        group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=2)
        for name, dtype, fill, value in (
            ("text", str, "none", "ä" * 3),
            ("bytes", VariableLengthBytes(), b"x", b"\xff\0"),
        ):
            array = group.create_array(name, shape=(5, 4), chunks=(2, 3), dtype=dtype, order=order, fill_value=fill)
            array[:3] = np.array([[value * i for i in range(4)]] * 3, dtype=object)
    compare(tmp_path / "s.zarr", tmp_path / "s.zarr")


@pytest.mark.parametrize(
    ("dtype", "fill", "expected"),
    [
        ("<f4", "NaN", np.float32("nan")),
        ("<f8", "-Infinity", -np.inf),
        ("<f8", 0, 0.0),
        ("<c8", ["NaN", 1.0], np.complex64(complex(float("nan"), 1))),
        ("|S3", "YWI=", b"ab"),
        ("|S3", "", b""),
        ("|S3", 0, b""),
        ("<U3", "ä", "ä"),
        ("<U3", 0, ""),
        ("<M8[s]", 5, np.datetime64(5, "s")),
        ("<u8", 2**64 - 1, 2**64 - 1),
        ("<i4", 3.0, 3),
        ("|b1", 1, True),
        ("|O", 0, "0"),
        ("|O", None, ""),
        ("|O", "x", "x"),
        ([["a", "<i4"], ["b", "<f4", [2]]], None, None),
    ],
    ids=str,
)
def test_fill_values(tmp_path: Path, dtype: Any, fill: Any, expected: Any) -> None:
    document = {
        "zarr_format": 2, "shape": [3], "chunks": [2], "dtype": dtype, "compressor": None, "fill_value": fill,
        "order": "C", "filters": [{"id": "vlen-utf8"}] if dtype == "|O" else None,
    }  # fmt: skip
    (tmp_path / ".zarray").write_text(json.dumps(document))
    with quietly(), refindex.open(tmp_path) as archive:
        (array,) = (archive.group[path] for path in archive.arrays)
        if expected is not None:
            assert same_values(np.full(3, expected, dtype=array.dtype), array[...]) == ""
        else:
            assert array[...].tolist() == [(0, (0.0, 0.0))] * 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"filters": [{"id": "pickle"}], "dtype": "|O"}, "objects encoded by 'pickle'"),
        ({"filters": None, "dtype": "|O"}, "without a filter that encodes"),
        ({"filters": [{"id": "mine"}]}, "codec 'mine'"),
        ({"compressor": {"id": "categorize"}}, "codec 'categorize'"),
        ({"filters": [{"id": "zlib"}, {"id": "delta", "dtype": "<i4"}]}, "'delta' after one that works on bytes"),
        ({"filters": [{"id": "delta", "dtype": "<i8"}]}, "'delta' of int64 on values of int32"),
        ({"dtype": "<f16"}, "no Zarr v3 data type for float128"),
        ({"dtype": "|S0", "fill_value": ""}, "no Zarr v3 data type"),
        ({"dtype": [["a", "<i4"], ["b", ">i4"]], "fill_value": None}, "fields of both byte orders"),
        ({"dtype": "|S2000000000", "fill_value": ""}, "elements of 2000000000 bytes"),
        ({"dtype": "what"}, "damaged: dtype 'what'"),
        ({"fill_value": "x"}, "damaged: fill_value 'x'"),
        ({"fill_value": 2**40}, "damaged: fill_value"),
        ({"chunks": [0]}, "damaged: chunk grid"),
        ({"chunks": [1, 2]}, "damaged: 2 chunk lengths for 1 dimensions"),
        ({"shape": [1] * 99, "chunks": [1] * 99}, "99 dimensions"),
        ({"shape": [2**62] * 2, "chunks": [1] * 2}, "more than an int64"),
        ({"order": "K"}, "damaged: order is 'K'"),
        ({"zarr_format": 3}, "zarr_format 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_reported(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    document = {
        "zarr_format": 2, "shape": [3], "chunks": [2], "dtype": "<i4", "compressor": None, "fill_value": 0,
        "order": "C", "filters": None,
    }  # fmt: skip
    for name, changes in (("good", {}), ("bad", change)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".zarray").write_text(json.dumps(document | changes))
    (tmp_path / ".zgroup").write_text('{"zarr_format":2}')
    manifest = refindex.scan(tmp_path)
    assert set(manifest.arrays) == {"good"}
    (problem,) = manifest.report.problems
    assert problem.path == "/bad"
    assert reason in problem.reason


def test_hierarchy_and_attributes(tmp_path: Path) -> None:
    path = tmp_path / "h.zarr"
    with quietly():
        root = zarr.open_group(path, mode="w", zarr_format=2, attributes={"title": "größer", "list": [1, {"a": None}]})
        deep = root.create_group("a").create_group("b")
        deep.attrs["depth"] = 2
        array = deep.create_array(
            "x",
            shape=(),
            dtype="f4",
            fill_value=None,
            attributes={"_FillValue": -1.5, "_ARRAY_DIMENSIONS": [], "nan": float("nan")},
        )
        array[...] = 3
        root.create_array("none", shape=(0, 3), dtype="i4", chunks=(1, 3), attributes={"_ARRAY_DIMENSIONS": ["t", "x"]})
        root.create_array(
            "odd",
            shape=(3,),
            dtype="i4",
            fill_value=None,
            attributes={"_ARRAY_DIMENSIONS": ["t", "x"], "_FillValue": 0.5},
        )
    report = compare(path, path)
    manifest = refindex.scan(path)
    assert manifest.groups[""].attributes == {"title": "größer", "list": [1, {"a": None}]}
    assert manifest.groups["a/b"].attributes == {"depth": 2}
    assert manifest.arrays["a/b/x"].attributes == {"_FillValue": "AAAAAAAA+L8=", "nan": "NaN"}
    assert manifest.arrays["none"].dims == ("t", "x")
    assert manifest.arrays["odd"].dims == (None,)
    assert manifest.arrays["odd"].attributes == {}
    notes = {(e.path, e.reason.split(";")[0]) for e in report.select(Status.NOTE)}
    assert ("/a/b/x", "attribute 'nan': JSON has no NaN or infinity") in notes
    assert any(path == "/odd" and "not 1 names" in reason for path, reason in notes)
    assert any(path == "/odd" and "_FillValue 0.5" in reason for path, reason in notes)


def test_consolidated_metadata_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.zarr"
    with quietly():
        root = zarr.open_group(path, mode="w", zarr_format=2)
        for i in range(5):
            root.create_array(f"a{i}", shape=(300,), dtype="f8", attributes={"n": i})[...] = i
        zarr.consolidate_metadata(path, zarr_format=2)
    compare(path, path)
    reads: list[str] = []
    read = LocalFolder.read
    monkeypatch.setattr(
        LocalFolder,
        "read",
        lambda self, rows, *a: reads.extend(self.listing.names[r] for r in rows) or read(self, rows, *a),
    )
    expected = refindex.scan(path)
    assert [name for name in reads if name.rpartition("/")[2].startswith(".z")] == [".zmetadata"]
    # Damaged, it is not used; older than an array, it does not hide it.
    consolidated = (path / ".zmetadata").read_bytes()
    (path / ".zmetadata").write_bytes(consolidated[:-20])
    manifest = refindex.scan(path)
    assert {p: n.document for p, n in manifest.nodes.items()} == {p: n.document for p, n in expected.nodes.items()}
    assert any("damaged" in e.reason for e in manifest.report)
    (path / ".zmetadata").write_bytes(consolidated)
    with quietly():
        zarr.open_group(path, zarr_format=2, use_consolidated=False).create_array("late", shape=(3,), dtype="i4")
    manifest = refindex.scan(path)
    assert "late" in manifest.arrays
    assert any("1 nodes are not in its consolidated metadata, e.g. late/.zarray" in e.reason for e in manifest.report)


def test_nczarr_dimensions(tmp_path: Path) -> None:
    document = {
        "zarr_format": 2, "shape": [3], "chunks": [2], "dtype": "<i4", "compressor": None, "fill_value": None,
        "order": "C", "filters": None, "_NCZARR_ARRAY": {"dimrefs": ["/g/lat"], "storage": "chunked"},
    }  # fmt: skip
    (tmp_path / "v").mkdir()
    (tmp_path / ".zgroup").write_text('{"zarr_format":2}')
    (tmp_path / "v/.zarray").write_text(json.dumps(document))
    (tmp_path / "v/.zattrs").write_text(
        '{"_NCZARR_ATTR":{"types":{}},"_nczarr_attr":{"types":{}},"_NCZARR_ARRAY":1,"u":2}'
    )
    node = refindex.scan(tmp_path).arrays["v"]
    assert node.dims == ("lat",)
    assert node.attributes == {"u": 2}


def test_what_is_no_chunk_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "k.zarr", np.arange(2000, dtype="<i4"), chunks=(100,), fill_value=-1)
    with quietly():
        expected = zarr.open_array(path, mode="r")[...]
    wrong = ["21", "00", "+1", "-1", "1.0", "c/0", "٣", "1e0", "0x1", "9" * 30, "20 ", "notes.txt", "sub/0"]
    (path / "c").mkdir()
    (path / "sub").mkdir()
    for name in wrong:
        (path / name).write_bytes(b"x" * 400)
    manifest = refindex.scan(path)
    assert len(manifest.arrays["k"].chunks) == 20
    (note,) = manifest.report.select(Status.NOTE)
    assert f"{len(wrong)} files in its folder are no chunks" in note.reason
    with quietly(), refindex.open(path) as archive:
        assert np.array_equal(archive.group["k"][...], expected)


@st.composite
def specifications(draw: st.DrawFn) -> dict[str, Any]:
    shape = draw(st.lists(st.integers(0, 9), max_size=3))
    return {
        "shape": tuple(shape),
        "chunks": tuple(draw(st.integers(1, 5)) for _ in shape),
        "dtype": draw(st.sampled_from(TYPES)),
        "order": draw(st.sampled_from("CF")),
        "compressor": draw(st.sampled_from([None, *COMPRESSORS])),
        "separator": draw(st.sampled_from("./")),
        "seed": draw(st.integers(0, 99)),
    }


@settings(max_examples=120)
@given(specifications())
def test_random_arrays(spec: dict[str, Any]) -> None:
    rng = np.random.default_rng(spec["seed"])
    shape = spec["shape"]
    with tempfile.TemporaryDirectory() as folder, quietly():
        array = zarr.create_array(
            f"{folder}/r.zarr",
            shape=shape,
            chunks=spec["chunks"],
            dtype=np.dtype(spec["dtype"]),
            zarr_format=2,
            order=spec["order"],
            compressors=numcodecs.get_codec(dict(spec["compressor"])) if spec["compressor"] else None,
            chunk_key_encoding={"name": "v2", "separator": spec["separator"]},
        )
        if 0 not in shape:
            part = tuple(slice(0, int(rng.integers(1, n + 1))) for n in shape)
            array[part] = random_values(spec["dtype"], (*array[part].shape, 1))[..., 0]
        compare(f"{folder}/r.zarr", f"{folder}/r.zarr")
