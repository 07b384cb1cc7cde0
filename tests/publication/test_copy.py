"""Copies of a version from any storage to any other: the same relations, one version, in bounded memory."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import apsw
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from altered import altering
from hypothesis import given, settings
from manifests import array_node, assert_equal, make_manifest, make_source, manifests, read

import refindex
from refindex import ChunkTable, Manifest, storage
from refindex.access import urls
from refindex.model.change import Change
from refindex.storage import parquet, tables
from refindex.storage.parquet import merge
from refindex.storage.sqlite import database

KINDS = ("refindex", "sqlite")
PAIRS = list(itertools.product(("memory", *KINDS), KINDS))


def copy(source: Path | Manifest, out: Path, **options: object) -> int:
    if isinstance(source, Manifest):
        reader: storage.ManifestReader = storage.MemoryReader(source)
    else:
        reader = storage.open_reader(urls.absolute(source))
    with closing(reader):
        return storage.copy(reader, str(out), operation="publish", details={"why": "test"}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "to"), PAIRS)
@settings(max_examples=25)
@given(manifest=manifests(), later=manifests())
def test_a_copy_says_the_same(
    kind: str, to: str, manifest: Manifest, later: Manifest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("copy")
    source: Path | Manifest = later
    if kind != "memory":
        source = folder / f"a.{kind}"
        manifest.save(source)
        later.save(source, overwrite=True)
    out = folder / f"b.{to}"
    assert copy(source, out) == 0
    assert_equal(later, read(out))
    for file in out.glob("kind=chunk/*.parquet"):
        # Arrays that are inline as a whole have files of their own.
        held = set(pq.ParquetFile(file).read(columns=["path"]).column("path").to_pylist())
        inline = {path for path, array in later.arrays.items() if array.chunks.is_inline}
        assert held <= inline if file.name.startswith("inline-") else not held & inline
    (only,) = storage.history(str(out))
    assert only.operation == "publish"
    assert only.details == {
        "arrays": len(later.arrays),
        "references": later.n_references,
        "sources": len(later.sources),
        "why": "test",
    }
    # It can be changed like any other.
    manifest.save(out, overwrite=True)
    assert_equal(manifest, read(out))
    assert_equal(later, read(out, 0))


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("kind", KINDS)
def test_appends_in_any_order_become_sorted(
    kind: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that reach over each other, and some that do not, of several arrays; the oracle is a dict."""
    monkeypatch.setattr(merge, "FILES", 1000)
    rng = np.random.default_rng(0)
    names = ["a", "b/x", "b/y", "z"]
    expected: dict[str, dict[int, tuple[int, ...]]] = {name: {} for name in names}
    out = tmp_path / f"a.{kind}"
    make_manifest({name: ChunkTable.empty() for name in names}).save(out)
    for step in range(12):
        chunks = {}
        for name in names:
            low, high = (step * 50, step * 50 + 50) if name == "z" else (0, 2000)
            fresh = [int(c) for c in rng.choice(np.arange(low, high), 20, replace=False)]
            fresh = [c for c in fresh if c not in expected[name]]
            rows = {c: (int(rng.integers(3)), int(rng.integers(1 << 40)), int(rng.integers(1, 99)), 0) for c in fresh}
            expected[name] |= rows
            columns = list(zip(*rows.values(), strict=True))
            chunks[name] = ChunkTable.from_columns(
                chunk=list(rows), source=columns[0], offset=columns[1], length=columns[2], encoding=0
            )
        with closing(storage.open_reader(urls.absolute(out))) as reader:
            change = Change(nodes=reader.nodes, chunks=chunks)
            storage.commit(str(out), change, base=reader.version, operation="append", details={})
    copied = tmp_path / f"b.{to}"
    copy(out, copied)
    found = read(copied)
    for name in names:
        table = found.arrays[name].chunks
        assert table.chunk.tolist() == sorted(expected[name])
        rows = zip(table.source, table.offset, table.length, table.encoding, strict=True)
        assert [tuple(map(int, row)) for row in rows] == [expected[name][c] for c in sorted(expected[name])]
    if to == "refindex":
        # All of it is in one file of references, sorted, with a checkpoint from the start.
        assert len(list(copied.glob("kind=chunk/*.parquet"))) == 1
        assert (copied / "_delta_log" / f"{0:020d}.checkpoint.parquet").exists()


@pytest.mark.parametrize(("kind", "to"), PAIRS)
def test_more_than_one_row_group(kind: str, to: str, tmp_path: Path) -> None:
    n = 150_000
    chunk = np.arange(n) * 3
    big = ChunkTable.from_columns(chunk=chunk, source=chunk % 3, offset=chunk * 100, length=chunk % 97, encoding=-1)
    inline = ChunkTable.inline([(i, bytes([i]) * (9 << 20)) for i in range(5)])
    manifest = make_manifest({"a/big": big, "a/small": big.take(slice(5, 9)), "time": inline, "z": big})
    source: Path | Manifest = manifest
    if kind != "memory":
        source = tmp_path / f"a.{kind}"
        manifest.save(source)
    seen: list[tuple[int, int]] = []
    copy(source, tmp_path / f"b.{to}", progress=lambda done, total: seen.append((done, total)))
    assert_equal(manifest, read(tmp_path / f"b.{to}"))
    assert seen == sorted(seen)
    assert seen[-1] == (manifest.n_references, manifest.n_references)
    assert len(seen) > 5


@pytest.mark.parametrize("to", KINDS)
def test_a_copy_over_another_goes_on_with_its_versions(to: str, tmp_path: Path) -> None:
    one = make_manifest({"a": ChunkTable.inline([(0, b"1")])})
    two = make_manifest({"b": ChunkTable.inline([(1, b"22")])})
    out = tmp_path / f"a.{to}"
    copy(one, out)
    reader = storage.open_reader(urls.absolute(out))
    first = storage.history(str(out))[0]
    with pytest.raises(refindex.ExistsError, match="overwrite"):
        copy(two, out)
    assert copy(two, out, overwrite=True) == 1
    newest = storage.history(str(out))[0]
    assert (newest.version, newest.operation) == (1, "publish")
    assert newest.timestamp > first.timestamp
    assert_equal(two, read(out))
    # Who has the old one open keeps reading it.
    assert_equal(one, storage.load(reader))
    reader.close()
    if to == "sqlite":
        with pytest.raises(refindex.NotFoundError, match="older ones expired"):
            read(out, 0)
    else:
        assert_equal(one, read(out, 0))
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name]


def test_sqlite_has_no_rows_of_old_versions(tmp_path: Path) -> None:
    out = tmp_path / "a.sqlite"
    for edition in range(4):
        table = ChunkTable.from_columns(chunk=range(5000), source=0, offset=np.arange(5000) + edition, length=1)
        make_manifest({"a": table}).save(out, overwrite=edition > 0)
    copy(out, tmp_path / "b.sqlite")
    with altering(tmp_path / "b.sqlite") as db:
        assert db.execute("SELECT count(*), max(added), count(removed) FROM chunk").fetchone() == (5000, 0, 0)
        assert db.execute("PRAGMA freelist_count").fetchone() == (0,)
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert (tmp_path / "b.sqlite").stat().st_size < out.stat().st_size / 2


def test_a_writer_that_waits_while_its_file_is_replaced_is_refused(tmp_path: Path) -> None:
    """What it would write would be lost, and its journal would be taken for that of the new file."""
    out = tmp_path / "a.sqlite"
    copy(make_manifest({"a": ChunkTable.empty()}), out)
    waiting = database.connect(out, urls.absolute(out), write=True)
    waiting.execute("SELECT * FROM version").fetchall()
    copy(make_manifest({"b": ChunkTable.empty()}), out, overwrite=True)
    with pytest.raises(apsw.ReadOnlyError, match="readonly"):
        waiting.execute("BEGIN IMMEDIATE; DELETE FROM version; COMMIT").fetchall()
    waiting.close()
    assert list(read(out).arrays) == ["b"]


def test_a_commit_meanwhile_is_a_conflict(tmp_path: Path) -> None:
    one = make_manifest({"a": ChunkTable.inline([(0, b"1")])})
    for kind in KINDS:
        out = tmp_path / f"a.{kind}"
        one.save(out)

        def commit(*_: int, out: Path = out) -> None:
            one.save(out, overwrite=True)

        with pytest.raises(refindex.ConflictError):
            copy(one, out, overwrite=True, progress=commit)
        assert [c.operation for c in storage.history(str(out))] == ["write", "write"]
        assert not list(tmp_path.glob(".*"))


DAMAGE: dict[str, Callable[[apsw.Connection], object]] = {
    "there is no source": lambda db: db.execute("UPDATE chunk SET source = NULL WHERE chunk = 5"),
    "another length": lambda db: db.execute("UPDATE chunk SET length = 7 WHERE data IS NOT NULL"),
    "a negative offset": lambda db: db.execute('UPDATE chunk SET "offset" = -1 WHERE chunk = 5'),
}


@pytest.mark.parametrize("to", KINDS)
@pytest.mark.parametrize("what", DAMAGE)
def test_a_damaged_archive_is_not_copied(what: str, to: str, tmp_path: Path) -> None:
    table = ChunkTable.from_columns(chunk=range(10), source=0, offset=range(10), length=10)
    make_manifest({"a": table, "t": ChunkTable.inline([(0, b"x")])}).save(tmp_path / "a.sqlite")
    with altering(tmp_path / "a.sqlite") as db:
        DAMAGE[what](db)
    with pytest.raises(refindex.ManifestError, match="damaged"):
        copy(tmp_path / "a.sqlite", tmp_path / f"b.{to}")
    assert [p.name for p in tmp_path.iterdir()] == ["a.sqlite"]


@pytest.mark.parametrize("to", KINDS)
def test_the_same_reference_twice_is_noticed(to: str, tmp_path: Path) -> None:
    """Two files of the archive with one chunk, as no writer makes them."""
    table = ChunkTable.from_columns(chunk=range(10), source=0, offset=range(10), length=10)
    out = tmp_path / "a.refindex"
    make_manifest({"a": table}).save(out)
    nodes = {"": make_manifest({}).nodes[""], "a": array_node("a")}
    change = Change(nodes=nodes, sources=(make_source(9),), chunks={"a": table.take(slice(3, 5))})
    storage.commit(str(out), change, base=0, operation="append", details={})
    with pytest.raises(refindex.ManifestError, match="damaged"):
        copy(out, tmp_path / f"b.{to}")
    assert not (tmp_path / f"b.{to}").exists()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", [5, 6]), ("a", [3, 4])),
        (("a", [5, 6]), ("a", [6, 7])),
        (("b", [1]), ("a", [2])),
        (("ü", [1]), ("u", [1])),
    ],
)
def test_row_groups_that_are_not_in_order(one: tuple[str, list[int]], other: tuple[str, list[int]]) -> None:
    """Those of one file, which nothing sorts."""
    parts = [
        tables.chunk_table(path, ChunkTable.from_columns(chunk=chunk, source=0, offset=chunk, length=1))
        for path, chunk in (one, other)
    ]
    with pytest.raises(refindex.ManifestError, match="not in order, or there twice"):
        list(parquet.copy.checked(parts))
    if one[0] != other[0]:
        assert len(list(parquet.copy.checked(parts[::-1]))) == 2
        with pytest.raises(refindex.ManifestError, match="not in order, or there twice"):
            list(parquet.copy.checked([pa.concat_tables(parts)]))


MAKE = """
import sys
import numpy as np
from manifests import make_manifest
from refindex import ChunkTable
chunk = np.arange(int(sys.argv[1]), dtype=np.int64)
make_manifest({"a": ChunkTable.from_columns(chunk=chunk, source=0, offset=chunk * 100, length=100)}).save(sys.argv[2])
"""

PEAK = """
import resource, sys
from refindex import storage
from refindex.storage.parquet import files
files.LIMIT_ROWS = 500_000  # what is written is in memory a file at a time
reader = storage.open_reader("file://" + sys.argv[1])
storage.copy(reader, sys.argv[2], operation="publish", details={})
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def run(code: str, *words: object) -> bytes:
    # By itself: what this process has in memory counts as a child's peak, too.
    command = [sys.executable, "-c", code, *map(str, words)]
    paths = {"PYTHONPATH": str(Path(make_manifest.__code__.co_filename).parent)}
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ | paths, timeout=200).stdout


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("kind", "to", "millions"), [("refindex", "refindex", 11), ("refindex", "sqlite", 2), ("sqlite", "refindex", 2)]
)
def test_memory_does_not_grow_with_the_references(kind: str, to: str, millions: int, tmp_path: Path) -> None:
    peaks = []
    for n in (500_000, millions * 1_000_000):
        source = tmp_path / f"{n}.{kind}"
        run(MAKE, n, source)
        peaks.append(int(run(PEAK, source, tmp_path / f"{n}-copy.{to}")) / 1024)
    # Columns of 11 million references are 350 MB, 2 million as tuples are more.
    assert peaks[1] - peaks[0] < 60, peaks
