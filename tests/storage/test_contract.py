"""One suite for both storages: what is saved is what is read, versions, and nothing half-written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refindex
from refindex import (
    Array,
    ChunkGrid,
    ChunkTable,
    Encoding,
    Filter,
    Manifest,
    Node,
    ReportEntry,
    ScanReport,
    Source,
    Status,
    storage,
)
from refindex.access import urls
from refindex.model.dtype import Leaf
from refindex.model.zarr_v3 import array_document, dumps, group_document
from refindex.storage.parquet import concatenate

KINDS = ("refindex", "sqlite")


def make_manifest(
    tables: dict[str, ChunkTable], *, sources: int = 3, base: str = "/data", report: tuple[ReportEntry, ...] = ()
) -> Manifest:
    """A manifest over made-up sources: one array a table, in groups as their paths say."""
    groups = {"": Node(path="", document=dumps(group_document({"title": "ü"})))}
    arrays = {}
    for path, table in tables.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            groups.setdefault(folder, Node(path=folder, document=dumps(group_document({}))))
        grid = ChunkGrid.regular((1 << 30,), (1,))
        document = array_document(
            grid=grid,
            data_type="float32",
            codecs=[{"name": "bytes", "configuration": {"endian": "little"}}],
            fill_value=0.0,
            dimension_names=["x"],
            attributes={"scale_factor": 0.1, "name": path},
        )
        arrays[path] = Array(
            path=path,
            document=dumps(document),
            encodings=(
                Encoding(type=Leaf("<f4"), shape=(1,)),
                Encoding(type=Leaf("<f4"), shape=(1,), filters=(Filter(id=1, values=(5,)),)),
            ),
            attribute_types={"scale_factor": "float32"},
            chunks=table,
        )
    return Manifest(
        groups=groups,
        arrays=arrays,
        sources=tuple(
            Source(
                url=f"file://{base}/s{i}.nc", size=2**40 + i, mtime=1_700_000_000_123_456 + i, etag=None if i else '"e"'
            )
            for i in range(sources)
        ),
        report=ScanReport(entries=report),
    )


@st.composite
def tables(draw: st.DrawFn) -> ChunkTable:
    numbers = draw(st.lists(st.integers(0, 2**30 - 1), unique=True, max_size=30))
    split = draw(st.integers(0, len(numbers)))
    inline = [(n, draw(st.binary(max_size=8))) for n in numbers[:split]]
    rest = numbers[split:]
    pointed = ChunkTable.from_columns(
        chunk=rest,
        source=[draw(st.integers(0, 2)) for _ in rest],
        offset=[draw(st.integers(0, 2**62)) for _ in rest],
        length=[draw(st.integers(0, 2**40)) for _ in rest],
        encoding=[draw(st.integers(-1, 1)) for _ in rest],
    )
    return concatenate([pointed, ChunkTable.inline(inline)])


PATHS = st.lists(st.sampled_from(["a", "b", "c", "a b", "ü", "c/0", "zarr"]), min_size=1, max_size=3).map("/".join)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    paths = draw(st.lists(PATHS, unique=True, max_size=5))
    # An array cannot be a group as well.
    leaves = [p for p in paths if not any(q != p and q.startswith(p + "/") for q in paths)]
    entry = st.builds(
        ReportEntry,
        source=st.sampled_from(["/data/s0.nc", "/elsewhere/x.nc"]),
        path=PATHS.map("/".__add__),
        status=st.sampled_from(list(Status)),
        reason=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
    )
    return make_manifest({p: draw(tables()) for p in leaves}, report=tuple(draw(st.lists(entry, max_size=4))))


def assert_equal(one: Manifest, other: Manifest) -> None:
    assert {p: (n.document, n.encodings, dict(n.attribute_types)) for p, n in one.nodes.items()} == {
        p: (n.document, n.encodings, dict(n.attribute_types)) for p, n in other.nodes.items()
    }
    assert list(one.nodes) == list(other.nodes)
    assert one.sources == other.sources
    assert one.report.entries == other.report.entries
    for path, array in one.arrays.items():
        assert array.chunks.same_references(other.arrays[path].chunks), path


def read(url: Path, version: int | None = None) -> Manifest:
    reader = storage.open_reader(urls.absolute(url), version=version)
    try:
        return storage.load(reader)
    finally:
        reader.close()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(manifest=manifests(), later=manifests(), data=st.data())
def test_what_is_saved_is_read(
    kind: str, manifest: Manifest, later: Manifest, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("m") / f"a.{kind}"
    assert manifest.save(out) == 0
    assert_equal(manifest, read(out))
    reader = storage.open_reader(urls.absolute(out))
    for path, array in manifest.arrays.items():
        near = st.sampled_from(array.chunks.chunk.tolist()) if len(array.chunks) else st.nothing()
        wanted = sorted(data.draw(st.lists(st.integers(0, 2**30 - 1) | near, unique=True, max_size=10)))
        rows = array.chunks.find(wanted)
        assert reader.find(path, wanted).same_references(array.chunks.take(rows[rows >= 0]))
    # A second version does not disturb a reader of the first.
    assert later.save(out, overwrite=True) == 1
    assert reader.version == 0
    assert_equal(manifest, storage.load(reader))
    reader.close()
    assert_equal(later, read(out))
    assert_equal(manifest, read(out, version=0))


@pytest.mark.parametrize("kind", KINDS)
def test_tables_larger_than_a_row_group(kind: str, tmp_path: Path) -> None:
    n = 200_000
    chunk = np.arange(n) * 3
    big = ChunkTable.from_columns(chunk=chunk, source=chunk % 3, offset=chunk * 100, length=chunk % 97)
    manifest = make_manifest({"a/big": big, "a/small": big.take(slice(5, 9)), "z": big.take(slice(0, 70_000))})
    manifest.save(tmp_path / f"a.{kind}")
    assert_equal(manifest, read(tmp_path / f"a.{kind}"))
    reader = storage.open_reader(urls.absolute(tmp_path / f"a.{kind}"))
    for wanted in ([0], [3 * (n - 1)], [1], list(range(0, 3 * n, 3001)), [3 * 65_535, 3 * 65_536]):
        rows = big.find(wanted)
        assert reader.find("a/big", wanted).same_references(big.take(rows[rows >= 0]))
    assert len(reader.find("a/nothing")) == 0
    reader.close()


@pytest.mark.parametrize("kind", KINDS)
def test_large_inline_values(kind: str, tmp_path: Path) -> None:
    values = [(i, bytes([i]) * (9 << 20)) for i in range(9)]
    manifest = make_manifest({"a": ChunkTable.inline(values)})
    manifest.save(tmp_path / f"a.{kind}")
    assert_equal(manifest, read(tmp_path / f"a.{kind}"))


@pytest.mark.parametrize("kind", KINDS)
def test_urls_are_relative_below_the_folder_of_the_archive(kind: str, tmp_path: Path) -> None:
    table = ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[4])
    manifest = make_manifest({"a": table}, base=str(tmp_path / "here/data"))
    (tmp_path / "here").mkdir()
    manifest.save(tmp_path / f"here/a.{kind}")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = read(tmp_path / f"there/a.{kind}")
    assert [s.url for s in moved.sources] == [f"file://{tmp_path}/there/data/s{i}.nc" for i in range(3)]
    manifest.save(tmp_path / f"there/data/b.{kind}")
    assert read(tmp_path / f"there/data/b.{kind}").sources == manifest.sources


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_overwritten_unasked(kind: str, tmp_path: Path) -> None:
    out = tmp_path / f"a.{kind}"
    manifest = make_manifest({"a": ChunkTable.empty()})
    manifest.save(out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    with pytest.raises(refindex.ExistsError, match="overwrite=True"):
        make_manifest({}).save(out)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
    with pytest.raises(refindex.NotFoundError, match="no version 7"):
        storage.open_reader(urls.absolute(out), version=7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_archive_is_never_replaced(kind: str, overwrite: bool, tmp_path: Path) -> None:
    out = tmp_path / f"a.{kind}"
    if kind == "refindex":
        out.mkdir()
        (out / "thesis.txt").write_text("years of work")
    else:
        out.write_text("years of work")
    with pytest.raises((refindex.ExistsError, refindex.ManifestError)):
        make_manifest({}).save(out, overwrite=overwrite)
    assert (out / "thesis.txt" if out.is_dir() else out).read_text() == "years of work"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_save_leaves_what_was_there(
    kind: str, first: bool, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped at each thing that it does in turn: nothing new is there, what was there is unchanged."""
    out = tmp_path / f"a.{kind}"
    old = make_manifest({"old": ChunkTable.inline([(1, b"one")])})
    new = make_manifest({"new": ChunkTable.inline([(2, b"two")])})
    if not first:
        old.save(out)
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    points = _interruption_points(kind, new, tmp_path / "count", monkeypatch)
    assert points >= 3
    for point in range(points):
        with monkeypatch.context() as patch:
            _interrupt(kind, patch, at=point, error=error)
            with pytest.raises((KeyboardInterrupt, OSError, refindex.RefindexError)):
                new.save(out, overwrite=not first)
        assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "count" not in str(p)} == before, (
            point
        )
        if not first:
            assert_equal(old, read(out))
    new.save(out, overwrite=not first)
    assert_equal(new, read(out))


def _hooks(kind: str) -> list[tuple[object, str]]:
    import sqlite3

    from refindex.storage import delta_log, parquet, sqlite, tables

    del sqlite3
    if kind == "refindex":
        return [(parquet, "_encode"), (parquet, "_sync"), (delta_log, "commit_lines"), (delta_log.os, "link")]
    return [(sqlite, "_chunk_rows"), (tables, "encodings_text"), (sqlite.urls, "relative"), (sqlite.os, "link")]


def _interrupt(kind: str, patch: pytest.MonkeyPatch, *, at: int, error: object, seen: list[str] | None = None) -> None:
    count = [0]
    for owner, name in _hooks(kind):
        real: Callable[..., object] = getattr(owner, name)

        def hooked(*args: object, real: Callable[..., object] = real, name: str = name, **kwargs: object) -> object:
            count[0] += 1
            if seen is not None:
                seen.append(name)
            if count[0] == at + 1:
                raise error  # type: ignore[misc]
            return real(*args, **kwargs)

        patch.setattr(owner, name, hooked)


def _interruption_points(kind: str, manifest: Manifest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    seen: list[str] = []
    folder.mkdir()
    with monkeypatch.context() as patch:
        _interrupt(kind, patch, at=-1, error=None, seen=seen)
        manifest.save(folder / f"b.{kind}")
    # Linking happens only for a new file.
    return len([name for name in seen if name != "link"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_save_leaves_no_archive_and_can_be_repeated(kind: str, tmp_path: Path) -> None:
    """kill -9 just before the commit."""
    out = tmp_path / f"a.{kind}"
    code = (
        "import os, sys; sys.path[:0] = [%r, %r]\n"
        "import test_contract as t; from refindex.model.chunks import ChunkTable\n"
        "os.link = lambda *a, **k: os.kill(os.getpid(), 9)\n"
        "t.make_manifest({'a': ChunkTable.inline([(1, b'x')])}).save(%r)"
    ) % (str(Path(__file__).parent), str(Path(__file__).parents[1]), str(out))
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == -9
    assert not storage.is_archive(urls.absolute(out)) or kind == "refindex"
    with pytest.raises(refindex.NotFoundError):
        storage.open_reader(urls.absolute(out))
    manifest = make_manifest({"a": ChunkTable.inline([(1, b"x")])})
    manifest.save(out)
    assert_equal(manifest, read(out))


@pytest.mark.parametrize("kind", KINDS)
def test_a_read_only_folder(kind: str, tmp_path: Path, weather: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(refindex.SourceError, match="permission"):
        make_manifest({}).save(tmp_path / f"a.{kind}")
