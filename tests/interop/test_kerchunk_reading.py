"""kerchunk's references in all their spellings; whatever is not understood is an error, and never fill values."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

import refindex
from refindex import FormatError, Manifest, NotAllowedError, Status, UnsupportedError
from refindex.exchange import _opened

VALUES = np.arange(24, dtype="<i4")
ZARRAY = {
    "zarr_format": 2, "shape": [24], "chunks": [8], "dtype": "<i4", "compressor": None, "filters": None, "order": "C",
    "fill_value": -1,
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of which bytes 16 to 112 are the values."""
    path = tmp_path / "data.bin"
    path.write_bytes(b"x" * 16 + VALUES.tobytes() + b"y" * 8)
    return path


def described(**chunks: Any) -> dict[str, Any]:
    return {
        ".zgroup": '{"zarr_format":2}',
        "a/.zarray": json.dumps(ZARRAY),
        "a/.zattrs": {"_ARRAY_DIMENSIONS": ["x"]},
        **{f"a/{key[1:]}": value for key, value in chunks.items()},
    }


def values(manifest: Manifest, path: str = "a") -> np.ndarray:
    with _opened(manifest, None, None) as archive:
        return archive.group[path][...]


def test_version_0(file: Path) -> None:
    refs = described(
        c0=[str(file), 16, 32], c1=[f"file://{file}", 48, 32], c2="base64:" + base64.b64encode(VALUES[16:]).decode()
    )
    got = refindex.from_kerchunk(refs)
    assert values(got).tolist() == VALUES.tolist()
    assert got.sources[0].size == file.stat().st_size
    assert got.sources[0].mtime == file.stat().st_mtime_ns // 1000
    assert len(got.sources) == 1, "one file, spelled in two ways"
    assert got.arrays["a"].chunks.source.tolist() == [0, 0, -1]


def test_text_is_bytes() -> None:
    text = {**ZARRAY, "dtype": "|S4", "shape": [2], "chunks": [1], "fill_value": None}
    refs = {"a/.zarray": json.dumps(text), "a/0": "abcd", "a/1": "ü12"}
    assert values(refindex.from_kerchunk(refs)).tolist() == [b"abcd", "ü12".encode()]


def test_whole_files(tmp_path: Path) -> None:
    for n in range(3):
        (tmp_path / f"{n}.bin").write_bytes(VALUES[8 * n : 8 * n + 8].tobytes())
    refs = described(**{f"c{n}": [str(tmp_path / f"{n}.bin")] for n in (0, 2)})
    got = refindex.from_kerchunk({"version": 1, "refs": refs})
    assert got.arrays["a"].chunks.length.tolist() == [32, 32]
    assert values(got).tolist() == [*range(8), *[-1] * 8, *range(16, 24)]


def test_templates_and_rules(file: Path) -> None:
    pytest.importorskip("jinja2")
    document = {
        "version": 1,
        "templates": {"u": str(file.parent), "f": "{{stem}}.bin"},
        "gen": [
            {
                "key": "a/{{i}}",
                "url": "{{u}}/{{f(stem='data')}}",
                "offset": "{{16 + i * 32}}",
                "length": "32",
                "dimensions": {"i": {"stop": 2}},
            }
        ],
        "refs": described(c2=["{{ u }}/data.bin", 80, 32]),
    }
    assert values(refindex.from_kerchunk(document)).tolist() == VALUES.tolist()
    # fsspec's own reading of the same.
    fs = fsspec.filesystem("reference", fo=document, simple_templates=False, remote_protocol="file")
    assert b"".join(fs.cat_file(f"a/{n}") for n in range(3)) == VALUES.tobytes()


def test_plain_templates_need_no_jinja(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    rule = {"key": "a/{{i}}", "url": "{{u}}", "offset": "{{i}}6", "length": "32", "dimensions": {"i": [1]}}
    refs = {"version": 1, "templates": {"u": str(file)}, "gen": [rule], "refs": described(c0=["{{u}}", 16, 32])}
    got = refindex.from_kerchunk(refs).arrays["a"].chunks
    assert got.chunk.tolist() == [0, 1]
    assert got.offset.tolist() == [16, 16]
    rule["offset"] = "{{i * 2}}"
    with pytest.raises(UnsupportedError, match="needs jinja2"):
        refindex.from_kerchunk(refs)


def test_version_3_and_shards(tmp_path: Path) -> None:
    import zarr

    group = zarr.open_group(tmp_path / "s.zarr", mode="w", zarr_format=3)
    group.create_array("a", shape=(24,), chunks=(4,), shards=(12,), dtype="i4")[:] = VALUES
    refs = {
        path.relative_to(tmp_path / "s.zarr").as_posix(): path.read_text() if path.suffix == ".json" else [str(path)]
        for path in (tmp_path / "s.zarr").rglob("*")
        if path.is_file()
    }
    got = refindex.from_kerchunk(refs)
    assert got.n_references == 6, "the chunks in the shards"
    assert values(got).tolist() == VALUES.tolist()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"b/0": ["F", 0, 4]}, "keys are neither documents nor chunks .*'b/0'"),
    ({"a/3": ["F", 0, 32]}, "keys are neither documents nor chunks .*'a/3'"),
    ({"a/01": ["F", 0, 32]}, "'a/01'"),
    ({"a/0.0": ["F", 0, 32]}, "'a/0.0'"),
    ({"readme": "text"}, "'readme'"),
    ({"a/0": ["F", 100, 32]}, "reach beyond their files, e.g. chunk 0: bytes 100 to 132 of .*data.bin, which has 120"),
    ({"a/0": ["F", -4, 32]}, "a reference is"),
    ({"a/0": ["F", 0, -1]}, "a reference is"),
    ({"a/0": ["F", 0]}, r"expected \[url\] or \[url, offset, length\]"),
    ({"a/0": ["F", "0", 32]}, "offset and length of a reference are"),
    ({"a/0": ["F", 0.5, 32]}, "offset and length of a reference are"),
    ({"a/0": ["F", 2**70, 32]}, "offset and length of a reference are"),
    ({"a/0": [None, 0, 32]}, "a reference is"),
    ({"a/0": ["data.bin", 0, 32]}, "no protocol; say with base="),
    ({"a/0": "base64:?"}, "is not base64"),
    ({"a/0": 5}, "expected text or a JSON object"),
]


@pytest.mark.parametrize(("keys", "message"), WRONG, ids=[m for _, m in WRONG])
def test_errors_by_name(keys: dict[str, Any], message: str, file: Path) -> None:
    named = {k: [str(file) if v[0] == "F" else v[0], *v[1:]] if isinstance(v, list) else v for k, v in keys.items()}
    with pytest.raises(FormatError, match=message):
        refindex.from_kerchunk({**described(), **named})


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"version": 2, "refs": {}}, "version 2"),
        ({"version": 1, "refs": {}, "extra": 1}, "'extra'"),
        ({"version": 1, "refs": []}, "refs"),
        ({"version": 1, "refs": {}, "gen": [{"key": "a", "url": "b", "offset": "1", "dimensions": {}}]}, "or none"),
        ({"version": 1, "refs": {}, "gen": [{"key": "a", "url": "b", "by": "1", "dimensions": {}}]}, "'by'"),
        ({"version": 1, "refs": {}, "gen": [{"key": "a", "url": "b", "dimensions": {"i": {"stop": 2}}}]}, "twice"),
        ({"version": 1, "refs": {}, "templates": {"u": 1}}, "template 'u'"),
        ({"version": 1, "refs": {}}, "no Zarr groups or arrays"),
    ],
)  # fmt: skip
def test_wrong_documents(document: dict[str, Any], message: str) -> None:
    with pytest.raises(FormatError, match=message):
        refindex.from_kerchunk(document)


def test_a_rule_that_makes_what_is_there(file: Path) -> None:
    rule = {"key": "a/{{i}}", "url": "{{u}}", "dimensions": {"i": [0]}}
    refs = {"version": 1, "templates": {"u": str(file)}, "gen": [rule], "refs": described(c0=[str(file), 16, 32])}
    with pytest.raises(FormatError, match="'a/0' is there twice, generated and otherwise"):
        refindex.from_kerchunk(refs)


def test_codecs_that_no_filter_says(file: Path) -> None:
    """A chain without an encoding of its own is passed through as it is declared."""
    refs = described(c0=[str(file), 16, 32])
    refs["a/.zarray"] = json.dumps({**ZARRAY, "filters": [{"id": "shuffle", "elementsize": 1}]})
    got = refindex.from_kerchunk(refs)
    assert got.arrays["a"].encodings == ()
    assert values(got).tolist() == [*range(8), *[-1] * 16]


def test_rules_are_bounded() -> None:
    gen = [{"key": "a/{{i}}", "url": "b", "dimensions": {"i": {"stop": 10**12}}}]
    with pytest.raises(UnsupportedError, match="stands for 1000000000000 references"):
        refindex.from_kerchunk({"version": 1, "refs": {}, "gen": gen})


def test_missing_files_are_named(file: Path) -> None:
    refs = described(c0=[f"{file}.gone", 16, 32], c1=[str(file), 16, 32], c2=[f"{file}.off", 16, 32])
    with pytest.raises(refindex.NotFoundError, match="(?s)2 of the 3 files.*gone.*off"):
        refindex.from_kerchunk(refs)


def test_arrays_that_cannot_be_served_are_reported(file: Path) -> None:
    odd = {**ZARRAY, "compressor": {"id": "imagecodecs_jpeg"}}
    refs = {**described(c0=[str(file), 16, 32]), "b/.zarray": json.dumps(odd), "b/0": [str(file), 0, 4]}
    got = refindex.from_kerchunk(refs)
    assert list(got.arrays) == ["a"]
    (problem,) = got.report.problems
    assert problem.path == "/b"
    assert "imagecodecs_jpeg" in problem.reason
    assert got.report.counts[Status.NATIVE] == 1


def test_base(file: Path) -> None:
    refs = described(c0=["data.bin", 16, 32])
    got = refindex.from_kerchunk(refs, base=file.parent)
    assert got.sources[0].url == f"file://{file}"


@pytest.fixture
def remote() -> Any:
    fs = fsspec.filesystem("memory")
    yield fs
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]


@pytest.mark.parametrize("name", ["refs.json", "refs.parq"])
def test_remote_references_to_local_files(
    name: str, file: Path, remote: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes from elsewhere names files of this machine only where that was allowed."""
    ours = refindex.from_kerchunk(described(c0=[str(file), 16, 32]))
    to = "kerchunk" if name.endswith("json") else "kerchunk-parquet"
    refindex.export(ours, f"memory://refs/{name}", to=to, zarr_format=2)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "of another user"))
    with pytest.raises(NotAllowedError, match=r"refers to a file .*data\.bin.*allow="):
        refindex.from_kerchunk(f"memory://refs/{name}")
    with pytest.raises(NotAllowedError):
        refindex.from_kerchunk(f"memory://refs/{name}", allow=[tmp_path / "dat"])
    got = refindex.from_kerchunk(f"memory://refs/{name}", allow=[tmp_path])
    assert values(got).tolist()[:8] == list(range(8))


class TestParquet:
    @pytest.fixture
    def export(self, tmp_path: Path, file: Path) -> Path:
        ours = refindex.from_kerchunk(
            described(c0=[str(file), 16, 32], c2="base64:" + base64.b64encode(b"z" * 32).decode())
        )
        refindex.export(ours, tmp_path / "out.parq", to="kerchunk-parquet", zarr_format=2)
        return tmp_path / "out.parq"

    def test_reads(self, export: Path) -> None:
        got = refindex.import_references(export).arrays["a"].chunks
        assert got.chunk.tolist() == [0, 2]
        assert got.source.tolist() == [0, -1]

    def test_a_missing_partition_is_an_error(self, export: Path) -> None:
        (export / "a" / "refs.0.parq").unlink()
        with pytest.raises(FormatError, match=r"refs\.0\.parq: no such file\. Its chunks may be lost"):
            refindex.import_references(export)
        assert len(refindex.import_references(export, absent_partitions=True).arrays["a"].chunks) == 0

    @pytest.mark.parametrize("keep", [0, 10, 200, -1])
    def test_a_truncated_partition_is_an_error(self, export: Path, keep: int) -> None:
        partition = export / "a" / "refs.0.parq"
        partition.write_bytes(partition.read_bytes()[:keep])
        with pytest.raises(FormatError, match="not a sound Parquet file"):
            refindex.import_references(export)

    def test_damage_is_noticed(self, export: Path) -> None:
        """Every flipped byte of the pages: checksums say so, which other readers may look at, too."""
        partition = export / "a" / "refs.0.parq"
        whole = partition.read_bytes()
        footer = int.from_bytes(whole[-8:-4], "little") + 8
        found = 0
        for at in range(4, len(whole) - footer):
            partition.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
            try:
                got = refindex.import_references(export).arrays["a"].chunks
            except refindex.RefindexError:
                found += 1
            else:
                assert (got.chunk.tolist(), got.source.tolist()) == ([0, 2], [0, -1])
                assert (int(got.offset[0]), int(got.length[0])) == (16, 32)
                assert got.inline_bytes(1) == b"z" * 32
        assert found > (len(whole) - footer) / 2

    def test_fewer_rows_are_an_error(self, export: Path) -> None:
        import pyarrow.parquet as pq

        partition = export / "a" / "refs.0.parq"
        pq.write_table(pq.read_table(partition, partitioning=None).slice(0, 2), partition)
        with pytest.raises(FormatError, match="it has 2 rows"):
            refindex.import_references(export)

    def test_rows_outside_the_grid_are_an_error(self, export: Path) -> None:
        metadata = json.loads((export / ".zmetadata").read_text())
        metadata["metadata"]["a/.zarray"]["shape"] = [16]
        (export / ".zmetadata").write_text(json.dumps(metadata))
        with pytest.raises(FormatError, match="outside the array's grid"):
            refindex.import_references(export)

    @pytest.mark.parametrize("spoil", ["record_size", "extra", "stray"])
    def test_metadata_is_understood(self, export: Path, spoil: str) -> None:
        metadata = json.loads((export / ".zmetadata").read_text())
        if spoil == "record_size":
            del metadata["record_size"]
        elif spoil == "extra":
            metadata["extra"] = 1
        else:
            metadata["metadata"]["a/other"] = {}
        (export / ".zmetadata").write_text(json.dumps(metadata))
        with pytest.raises(FormatError, match=spoil if spoil != "stray" else "a/other"):
            refindex.import_references(export)

    def test_several_partitions(self, tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("refindex.interop.kerchunk_writing.RECORDS", 2)
        ours = refindex.from_kerchunk(described(**{f"c{n}": [str(file), 16 + 32 * n, 32] for n in range(3)}))
        refindex.export(ours, tmp_path / "two", to="kerchunk-parquet", zarr_format=2)
        assert sorted(p.name for p in (tmp_path / "two" / "a").iterdir()) == ["refs.0.parq", "refs.1.parq"]
        assert values(refindex.import_references(tmp_path / "two")).tolist() == VALUES.tolist()
        shutil.rmtree(tmp_path / "two" / "a")
        with pytest.raises(FormatError, match=r"refs\.[01]\.parq: no such file"):
            refindex.import_references(tmp_path / "two")
