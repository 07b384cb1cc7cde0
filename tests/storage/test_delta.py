"""The Parquet storage, read by delta-rs: rows and versions are those of refindex."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable
from manifests import make_manifest
from test_versions import append

import refindex
from refindex import ChunkTable, storage
from refindex.access import urls
from refindex.storage import tables


@pytest.fixture(scope="module")
def archive(weather: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("delta") / "a.refindex"
    refindex.scan(weather, variables=["t2m"]).save(out)
    refindex.scan(weather).save(out, overwrite=True)
    return out


def rows(table: DeltaTable, kind: str) -> list[dict[str, object]]:
    names = tables.SCHEMAS[kind].names
    return table.to_pyarrow_dataset().to_table(columns=names, filter=ds.field("kind") == kind).to_pylist()


@pytest.mark.parametrize("version", [0, 1])
def test_delta_rs_reads_the_same_relations(archive: Path, version: int) -> None:
    table = DeltaTable(archive, version=version)
    assert table.version() == version
    reader = storage.open_reader(urls.absolute(archive), version=version)
    manifest = storage.load(reader)
    assert {r["path"]: r["document"] for r in rows(table, "node")} == {p: n.document for p, n in manifest.nodes.items()}
    assert [(r["source"], r["size"]) for r in rows(table, "source")] == [
        (i, s.size) for i, s in enumerate(manifest.sources)
    ]
    mtime = rows(table, "source")[0]["mtime"]
    assert round(mtime.timestamp() * 1e6) == manifest.sources[0].mtime
    ours = {
        (path, int(c)): (int(o), int(n)) if s >= 0 else (None, int(n))
        for path, array in manifest.arrays.items()
        for c, s, o, n in zip(
            array.chunks.chunk, array.chunks.source, array.chunks.offset, array.chunks.length, strict=True
        )
    }
    assert {(r["path"], r["chunk"]): (r["offset"], r["length"]) for r in rows(table, "chunk")} == ours
    assert len(rows(table, "report")) == len(manifest.report)
    reader.close()


def test_history_and_schema(archive: Path) -> None:
    table = DeltaTable(archive)
    assert [entry["operation"] for entry in table.history()] == ["write", "write"]
    assert table.metadata().partition_columns == ["kind"]
    assert table.metadata().configuration["refindex.format"] == "1"
    assert {f.name for f in table.schema().fields} == {"kind"} | {n for s in tables.SCHEMAS.values() for n in s.names}
    # node, source, report, and chunks twice: inline ones are apart.
    assert len(table.file_uris()) == 5


def test_names_that_need_quoting(tmp_path: Path, weather: Path) -> None:
    out = tmp_path / "a bü.refindex"
    refindex.scan(weather).save(out)
    assert DeltaTable(out).version() == 0
    with refindex.open(out) as opened:
        assert opened.group["rain"].shape == (6, 10, 20)


def chunk_rows(url: str, version: int) -> dict[tuple[str, int], tuple[int | None, int]]:
    """References as refindex reads them."""
    reader = storage.open_reader(url, version=version)
    manifest = storage.load(reader)
    reader.close()
    return {
        (path, c): (o if s >= 0 else None, n)
        for path, array in manifest.arrays.items()
        for c, s, o, n in zip(
            *(getattr(array.chunks, name).tolist() for name in ("chunk", "source", "offset", "length")), strict=True
        )
    }


@pytest.fixture(scope="module")
def long_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive with appends, merges, checkpoints, and expired versions."""
    out = tmp_path_factory.mktemp("long") / "a.refindex"
    make_manifest({"b": ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[1])}, sources=1).save(out)
    for _ in range(27):
        append(urls.absolute(out))
    storage.restore(urls.absolute(out), 5)
    append(urls.absolute(out))
    storage.vacuum(urls.absolute(out), keep_versions=27, grace=storage.GRACE * 0)
    return out


def test_delta_rs_reads_a_long_log(long_log: Path) -> None:
    url = urls.absolute(long_log)
    names = sorted(p.name for p in (long_log / "_delta_log").iterdir())
    assert [int(n[:20]) for n in names if n.endswith(".checkpoint.parquet")] == [3, 10, 20]
    assert [int(n[:20]) for n in names if n.endswith(".json")] == list(range(3, 30))
    assert DeltaTable(long_log).version() == 29
    for version in (3, 4, 9, 10, 11, 25, 28, 29):
        table = DeltaTable(long_log, version=version)
        assert table.version() == version
        found = {(r["path"], r["chunk"]): (r["offset"], r["length"]) for r in rows(table, "chunk")}
        assert found == chunk_rows(url, version)
        assert len(rows(table, "source")) == (6 if version == 28 else 7 if version == 29 else version + 1)
    # Merged: without that, more than a hundred.
    assert len(DeltaTable(long_log, version=27).file_uris()) < 40


def test_statistics_of_the_log_are_those_of_the_rows(long_log: Path) -> None:
    """delta-rs skips files by them: whatever is asked for, it is found."""
    table = DeltaTable(long_log, version=27)
    names = ["path", "chunk", "offset"]
    for path in ("a", "b", "time"):
        for chunk in (0, 1, 13, 27):
            wanted = table.to_pyarrow_table(
                columns=names, filters=[("kind", "=", "chunk"), ("path", "=", path), ("chunk", "=", chunk)]
            )
            expected = {k: v for k, v in chunk_rows(urls.absolute(long_log), 27).items() if k == (path, chunk)}
            assert {(r["path"], r["chunk"]): r["offset"] for r in wanted.to_pylist()} == {
                k: o for k, (o, _) in expected.items()
            }
    for kind, column, value in (
        ("node", "path", "time"),
        ("source", "source", 5),
        ("source", "size", 2**40 + 5),
        ("chunk", "offset", 50),
    ):
        found = table.to_pyarrow_table(columns=["kind", column], filters=[("kind", "=", kind), (column, "=", value)])
        assert found.to_pylist() == [{"kind": kind, column: value}]


def test_polars_reads_it(long_log: Path) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed")
    frame = polars.scan_delta(str(long_log), version=20).filter(polars.col("kind") == "chunk").collect()
    found = {(r["path"], r["chunk"]): (r["offset"], r["length"]) for r in frame.to_dicts()}
    assert found == chunk_rows(urls.absolute(long_log), 20)


def test_duckdb_reads_its_files(long_log: Path) -> None:
    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    files = DeltaTable(long_log, version=20).file_uris()
    with duckdb.connect() as db:
        found = db.execute(
            'SELECT path, chunk, "offset", length FROM read_parquet($1, union_by_name=true, hive_partitioning=true) '
            "WHERE kind = 'chunk'",
            [files],
        ).fetchall()
    assert {(p, c): (o, n) for p, c, o, n in found} == chunk_rows(urls.absolute(long_log), 20)
