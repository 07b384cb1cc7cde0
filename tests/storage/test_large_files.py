"""Files of bounded size: a commit of many references writes several, and later commits leave full ones alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifests import assert_equal, make_manifest, read

from refindex import ChunkTable, storage
from refindex.access import urls
from refindex.model.change import Change
from refindex.storage import tables
from refindex.storage.parquet import files, merge, writer


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROW_GROUP", 100)
    for module in (files, merge):
        monkeypatch.setattr(module, "LIMIT_ROWS", 1000)


def many(first: int, count: int) -> ChunkTable:
    chunk = first + np.arange(count)
    return ChunkTable.from_columns(chunk=chunk, source=chunk % 3, offset=chunk * 7, length=chunk % 97)


def chunk_files(archive: Path) -> dict[str, tuple[int, int]]:
    """The files of references that the newest version names, as delta-rs sees them: rows and bytes."""
    actions = DeltaTable(archive).get_add_actions(flatten=True)
    rows = zip(
        actions["path"].to_pylist(), actions["num_records"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True
    )
    return {path: (count, size) for path, count, size in rows if path.startswith("kind=chunk")}


@pytest.mark.usefixtures("small_files")
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(counts=st.dictionaries(st.sampled_from("abcd"), st.integers(0, 4000), min_size=1))
def test_a_save_is_divided(counts: dict[str, int], tmp_path_factory: pytest.TempPathFactory) -> None:
    archive = tmp_path_factory.mktemp("large") / "a.refindex"
    manifest = make_manifest({path: many(5, count) for path, count in counts.items()})
    manifest.save(archive)
    assert_equal(manifest, read(archive))
    found = chunk_files(archive)
    assert sum(rows for rows, _ in found.values()) == sum(counts.values())
    assert all(rows <= 1100 for rows, _ in found.values())
    assert sum(rows < 1000 for rows, _ in found.values()) <= 1
    for path, (_, size) in found.items():
        assert (archive / path).stat().st_size == size


@pytest.mark.usefixtures("small_files")
def test_full_files_are_not_written_again(tmp_path: Path) -> None:
    archive = tmp_path / "a.refindex"
    manifest = make_manifest({"a": many(0, 2500)})
    manifest.save(archive)
    full = {path for path, (rows, _) in chunk_files(archive).items() if rows >= 1000}
    assert len(full) == 2
    expected = manifest
    for version in range(45):
        change = Change(nodes=expected.nodes, chunks={"a": many(2500 + 150 * version, 150)})
        storage.commit(urls.absolute(archive), change, base=version, operation="append", details={})
        expected = change.applied_to(expected)
        now = chunk_files(archive)
        assert full <= now.keys()
        full |= {path for path, (rows, _) in now.items() if rows >= 1000}
    assert_equal(expected, read(archive))
    assert len(full) >= 4
    assert len(now) < 4 + 25


@pytest.mark.usefixtures("small_files")
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / "a.refindex"
    written = []
    write_local = writer.log.write_local

    def full_disk(path: str, data: bytes | memoryview) -> None:
        written.append(path)
        if sum("kind=chunk" in path for path in written) == 3:
            raise OSError(28, "No space left on device")
        write_local(path, data)

    monkeypatch.setattr(writer.log, "write_local", full_disk)
    with pytest.raises(OSError, match="No space left"):
        make_manifest({"a": many(0, 5000)}).save(archive)
    assert len(written) > 3
    assert not archive.exists()
