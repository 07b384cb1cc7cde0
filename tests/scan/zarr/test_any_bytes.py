"""Whatever the documents say: a manifest that zarr-python opens, or an error of ours."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import quietly
from zarr.codecs import ShardingCodec

import refindex

V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [4, 6], "data_type": "int32", "fill_value": 0,
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [2, 4]}},
    "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
    "codecs": [
        {"name": "transpose", "configuration": {"order": [1, 0]}},
        json.loads(json.dumps(ShardingCodec(chunk_shape=(2, 1)).to_dict(), default=lambda v: v.to_dict())),
    ],
    "attributes": {"a": 1.5}, "dimension_names": ["x", "y"], "storage_transformers": [],
}  # fmt: skip
V2: dict[str, Any] = {
    "zarr_format": 2, "shape": [4, 6], "chunks": [2, 4], "dtype": [["a", "<i4"], ["b", "<f4", [2]]], "fill_value": None,
    "compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}, "order": "F",
    "filters": [{"id": "delta", "dtype": "<i4", "astype": "<i2"}], "dimension_separator": ".",
}  # fmt: skip
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=4), st.builds(list),
    st.builds(dict),
    st.sampled_from(["<f4", ">i2", "|O", "<U4", "|S3", "<M8[ns]", "|V4", "float32", "string", "zstd", "default"]),
    st.lists(st.integers(-1, 5), max_size=3), st.builds(lambda: [[["x"] * 9] * 9]),
    st.fixed_dictionaries({"name": st.sampled_from(["bytes", "struct", "gzip", "v2", "rectilinear", "crc32c"])}),
    st.fixed_dictionaries({"id": st.sampled_from(["zlib", "astype", "packbits", "vlen-utf8", "zfpy", "blosc"])}),
)  # fmt: skip

DEEP = b'{"zarr_format":3,"node_type":"group","attributes":' + b'{"a":' * 900 + b"1" + b"}" * 901


@st.composite
def changed(draw: st.DrawFn, document: dict[str, Any]) -> Any:
    """A document with values replaced, anywhere in it, by others."""
    result: Any = copy.deepcopy(document)
    for _ in range(draw(st.integers(1, 3))):
        at = result
        while True:
            keys = list(at) if isinstance(at, dict) else list(range(len(at)))
            if not keys:
                break
            key = draw(st.sampled_from(keys))
            if isinstance(at[key], dict | list) and draw(st.booleans()):
                at = at[key]
                continue
            if draw(st.integers(0, 4)) == 0 and isinstance(at, dict):
                del at[key]
            else:
                at[key] = draw(ODD)
            break
    return result


def scan(files: dict[str, bytes], *, opens: bool = True) -> None:
    with tempfile.TemporaryDirectory() as folder, quietly():
        for name, data in files.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        try:
            manifest = refindex.scan(folder)
        except refindex.RefindexError:
            return
        if opens and manifest.arrays:
            manifest.save(f"{folder}/m.sqlite")
            with refindex.open(f"{folder}/m.sqlite") as archive:
                for path in archive.arrays:
                    assert isinstance(archive.group[path], zarr.Array)


CHUNKS = {"a/c/0/0": bytes(99), "a/0.0": b"", "a/c/1/1": bytes(36), "a/notes": b"x"}


@settings(max_examples=300)
@given(changed(V3))
def test_version_3(document: Any) -> None:
    # A codec's own configuration is zarr-python's to check; what opens is looked at for the rest.
    codecs = document.get("codecs")
    opens = isinstance(codecs, list) and all(codec in V3["codecs"] for codec in codecs)
    scan(
        {"zarr.json": b'{"zarr_format":3,"node_type":"group"}', "a/zarr.json": json.dumps(document).encode(), **CHUNKS},
        opens=opens,
    )


@settings(max_examples=300)
@given(changed(V2), st.dictionaries(st.sampled_from(["_FillValue", "_ARRAY_DIMENSIONS", "missing_value", "x"]), ODD))
def test_version_2(document: Any, attributes: Any) -> None:
    scan(
        {
            ".zgroup": b'{"zarr_format":2}',
            "a/.zarray": json.dumps(document).encode(),
            "a/.zattrs": json.dumps(attributes).encode(),
            **CHUNKS,
        }
    )


def consolidated_2(value: Any) -> bytes:
    documents = {"../x/.zarray": V2, "a/.zarray": V2 | {"dtype": value}, "b/.zarray": value}
    return json.dumps({"zarr_consolidated_format": 1, "metadata": documents}).encode()


def consolidated_3(value: Any) -> bytes:
    inline = {"kind": "inline", "metadata": {"..": V3, "a": value, "b//c": V3, "d": V3}}
    root = {"zarr_format": 3, "node_type": "group", "attributes": value, "consolidated_metadata": inline}
    return json.dumps(root).encode()


@settings(max_examples=100)
@given(
    st.sampled_from(["zarr.json", ".zmetadata", "a/.zarray", "a/zarr.json", "a/.zattrs", ".zgroup"]),
    st.one_of(
        st.binary(max_size=20),
        ODD.map(lambda value: json.dumps(value).encode()),
        st.sampled_from([b"[" * 900 + b"]" * 900, DEEP]),
        ODD.map(consolidated_2),
        ODD.map(consolidated_3),
        ODD.map(lambda v: json.dumps({"zarr_format": 3, "node_type": "group", "consolidated_metadata": v}).encode()),
    ),
)
def test_any_document(name: str, data: bytes) -> None:
    scan({".zgroup": b"{}", "a/.zarray": json.dumps(V2 | {"filters": None}).encode(), **CHUNKS, name: data})
