"""The Parquet storage, read by delta-rs: rows and versions are those of refindex."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds
import pytest
from deltalake import DeltaTable

import refindex
from refindex import storage
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
