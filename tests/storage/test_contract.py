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
from manifests import assert_equal, make_manifest, manifests, read

import refindex
from refindex import ChunkTable, Manifest, storage
from refindex.access import urls

KINDS = ("refindex", "sqlite")


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
    from refindex.storage import tables
    from refindex.storage.parquet import log
    from refindex.storage.parquet import writer as parquet
    from refindex.storage.sqlite import writer as sqlite

    if kind == "refindex":
        return [(parquet, "encode"), (log, "write_local"), (log, "entry"), (log.os, "link")]
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
        "import manifests as t; from refindex.model.chunks import ChunkTable\n"
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


CLOSED_UNDER_QUERIES = """
import sys
import threading
import numpy as np
from refindex import RefindexError, storage

def ask(reader, failed):
    try:
        while True:
            reader.find("a", np.arange(0, 3000, 7))
    except RefindexError:
        failed.append("an error that says so")

for _ in range(40):
    reader, failed = storage.open_reader(sys.argv[1]), []
    threads = [threading.Thread(target=ask, args=(reader, failed)) for _ in range(4)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.01)
    reader.close()
    for thread in threads:
        thread.join(60)
    assert len(failed) == 4, failed
print("done")
"""


def test_closed_while_other_threads_read(tmp_path: Path) -> None:
    """Reads that a failed one has left behind may still be under way: they fail, and nothing crashes."""
    chunk = np.arange(3000)
    table = ChunkTable.from_columns(chunk=chunk, source=0, offset=chunk, length=1)
    make_manifest({"a": table}).save(tmp_path / "a.sqlite")
    command = [sys.executable, "-c", CLOSED_UNDER_QUERIES, urls.absolute(tmp_path / "a.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
