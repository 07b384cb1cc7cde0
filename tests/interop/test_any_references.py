"""Whatever is given as references: a manifest, or an error of refindex's own."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import refindex
from refindex.errors import RefindexError

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(["/dev/null", "base64:AAAA", "{{u}}", "{{u(x=1)}}", "{% for i in u %}"]),
    st.sampled_from(["<f4", "zlib", "C", "|O", "int8"]),
)
VALUES = st.recursive(
    LEAVES, lambda v: st.one_of(st.lists(v, max_size=3), st.dictionaries(st.text(max_size=3), v, max_size=3))
)
ZARRAY: dict[str, Any] = {
    "zarr_format": 2, "shape": [2], "chunks": [1], "dtype": "<i4", "compressor": None, "fill_value": 0, "order": "C",
    "filters": None,
}  # fmt: skip
V3: dict[str, Any] = {
    "zarr_format": 3, "node_type": "array", "shape": [2], "data_type": "int8", "fill_value": 0, "attributes": {},
    "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [1]}},
    "chunk_key_encoding": {"name": "default"}, "codecs": [{"name": "bytes"}],
}  # fmt: skip
KEYS = st.sampled_from(
    [
        *(".zgroup", ".zattrs", ".zmetadata", "zarr.json", "b", ""),
        *("a/.zarray", "a/.zattrs", "a/zarr.json", "a/0", "a/1", "a/c/0"),
    ]
)


@st.composite
def spoiled(draw: st.DrawFn) -> dict[str, Any]:
    """References, some of whose members are something else."""
    array, v3 = dict(ZARRAY), json.loads(json.dumps(V3))
    for document in (array, v3):
        for _ in range(draw(st.integers(0, 2))):
            document[draw(st.sampled_from(sorted(document)))] = draw(VALUES)
    refs: dict[str, Any] = {"a/.zarray": array, "a/0": ["/dev/null", 0, 0]}
    if draw(st.booleans()):
        refs = {"a/zarr.json": v3, "a/c/0": "x"}
    for _ in range(draw(st.integers(0, 2))):
        refs[draw(KEYS)] = draw(VALUES)
    if draw(st.booleans()):
        return refs
    document = {"version": 1, "refs": refs, "templates": {"u": "/dev/null"}}
    for _ in range(draw(st.integers(0, 2))):
        document[draw(st.sampled_from(["version", "refs", "templates", "gen"]))] = draw(VALUES)
    if draw(st.booleans()):
        rule = {"key": "a/{{i}}", "url": "{{u}}", "dimensions": {"i": {"stop": 2}}}
        rule[draw(st.sampled_from(["key", "url", "dimensions", "offset"]))] = draw(VALUES)
        document["gen"] = [rule]
    return document


@given(spoiled())
@settings(max_examples=300)
@example({"a/.zarray": "[" * 10000, "a/0": ""})
@example({"a/.zarray": {**ZARRAY, "shape": [2**62], "chunks": [1]}, "a/0": "abcd"})
@example({"version": 1, "refs": {}, "templates": {"u": "{{u}}"}, "gen": []})
def test_json(document: dict[str, Any]) -> None:
    with contextlib.suppress(RefindexError):
        refindex.from_kerchunk(document)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lazy")
    (folder / "a").mkdir()
    return folder


@given(st.data())
@settings(max_examples=200)
def test_parquet(folder: Path, data: st.DataObject) -> None:
    """Columns of other types and lengths, bytes that are none, and metadata of all kinds."""
    lazy: dict[str, Any] = {"metadata": {"a/.zarray": dict(ZARRAY)}, "record_size": 2}
    if data.draw(st.booleans()):
        lazy[data.draw(st.sampled_from(["metadata", "record_size", "x"]))] = data.draw(VALUES)
    (folder / ".zmetadata").write_text(json.dumps(lazy))
    columns: dict[str, Any] = {
        "path": pa.array(["/dev/null", None]),
        "offset": pa.array([0, 0]),
        "size": pa.array([0, 0]),
        "raw": pa.array([None, b"abcd"]),
    }
    odd = st.one_of(
        st.lists(st.integers(-9, 9), min_size=2, max_size=2),
        st.lists(st.text(max_size=4), min_size=2, max_size=2),
        st.lists(st.binary(max_size=9), min_size=2, max_size=2),
        st.lists(st.floats(), min_size=2, max_size=2),
        st.lists(st.lists(st.integers(0, 3)), min_size=2, max_size=2),
    )
    for name in data.draw(st.sets(st.sampled_from(["path", "offset", "size", "raw", "more"]), max_size=2)):
        columns[name] = pa.array(data.draw(odd))
    buffer = io.BytesIO()
    pq.write_table(pa.table(columns), buffer)
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "a" / "refs.0.parq").write_bytes(bytes(content))
    with contextlib.suppress(RefindexError):
        refindex.from_kerchunk(folder)
