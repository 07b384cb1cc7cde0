"""Versions of both storages against a model of plain dicts: changes, manifests, restores, vacuums, old versions."""

from __future__ import annotations

import copy
import shutil
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from manifests import ENTRIES, JOINED, PLACEMENTS, array_node, make_manifest, make_source, manifests

import refindex
from refindex import ChunkTable, Manifest, Node, storage
from refindex.access import urls
from refindex.model.change import Change
from refindex.model.zarr_v3 import dumps, group_document
from refindex.storage.parquet import checkpoint, merge

BACKENDS = ("refindex", "sqlite", "memory")
NOTHING = timedelta(0)

type Row = tuple[int, int, int, int, bytes]


@dataclass
class State:
    """What a version holds: references as ``{path: {chunk: (source, offset, length, encoding, inline bytes)}}``."""

    nodes: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    sources: list[Any] = field(default_factory=list)
    placements: list[Any] = field(default_factory=list)
    report: list[Any] = field(default_factory=list)
    chunks: dict[str, dict[int, Row]] = field(default_factory=dict)


def rows(table: ChunkTable) -> dict[int, Row]:
    columns = (table.chunk, table.source, table.offset, table.length, table.encoding)
    return {
        c: (s, o if s >= 0 else 0, n, e, b"" if s >= 0 else table.data[o : o + n])
        for c, s, o, n, e in zip(*(column.tolist() for column in columns), strict=True)
    }


def fields(node: Node) -> tuple[Any, ...]:
    return node.document, node.encodings, dict(node.attribute_types), node.joined


def state_of(manifest: Manifest) -> State:
    return State(
        nodes={path: fields(node) for path, node in manifest.nodes.items()},
        sources=list(manifest.sources),
        placements=list(manifest.placements),
        report=list(manifest.report),
        chunks={path: rows(array.chunks) for path, array in manifest.arrays.items()},
    )


def read_state(url: str, version: int | None = None, **options: Any) -> State:
    reader = storage.open_reader(url, version=version, **options)
    try:
        return state_of(storage.load(reader))
    finally:
        reader.close()


def assert_same(found: State, expected: State) -> None:
    assert found == expected
    assert list(found.nodes) == list(expected.nodes)


class Machine(RuleBasedStateMachine):
    """One archive; ``versions`` is what each version that has not expired must hold."""

    backend = "refindex"

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="versions-"))
        name = uuid.uuid4().hex
        self.url = {
            "refindex": urls.absolute(self.folder / "a.refindex"),
            "sqlite": urls.absolute(self.folder / "a.sqlite"),
            "memory": f"memory://{name}/a.refindex",
        }[self.backend]
        self.versions: dict[int, State] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)
        if self.backend == "memory":
            fs = fsspec.filesystem("memory")
            fs.rm(self.url.removeprefix("memory:/").rpartition("/")[0], recursive=True)

    @property
    def newest(self) -> int:
        return max(self.versions)

    def commit(self, content: Manifest | Change, state: State, operation: str) -> None:
        base = self.newest
        details = {"n": base, "text": '"crc32":"00000000" ü'}
        version = storage.commit(self.url, content, base=base, operation=operation, details=details)
        assert version == base + 1
        self.versions[version] = state
        commit = storage.history(self.url)[0]
        assert (commit.version, commit.operation, commit.details) == (version, operation, details)

    @initialize(manifest=manifests())
    def create(self, manifest: Manifest) -> None:
        with pytest.raises(refindex.NotFoundError):
            storage.commit(self.url, manifest, base=0, operation="write", details={})
        assert storage.commit(self.url, manifest, base=None, operation="write", details={}) == 0
        self.versions[0] = state_of(manifest)

    @rule(manifest=manifests())
    def replace(self, manifest: Manifest) -> None:
        self.commit(manifest, state_of(manifest), "replace")

    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        change, state = draw_change(data, self.versions[self.newest])
        self.commit(change, state, "append")

    @rule(data=st.data(), n=st.integers(2, 6))
    def changes(self, data: st.DataObject, n: int) -> None:
        for _ in range(n):
            self.change(data)

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        new = storage.restore(self.url, version)
        assert new == self.newest + 1
        self.versions[new] = self.versions[version]
        assert storage.history(self.url)[0].details == {"version": version}

    @rule(keep=st.none() | st.integers(1, 8))
    def vacuum(self, keep: int | None) -> None:
        planned = storage.vacuum(self.url, keep_versions=keep, dry_run=True, grace=NOTHING)
        self.check()
        removed = storage.vacuum(self.url, keep_versions=keep, grace=NOTHING)
        assert {r.name for r in planned} == {r.name for r in removed}
        if keep is not None:
            self.versions = {v: s for v, s in self.versions.items() if v > self.newest - keep}
        assert storage.vacuum(self.url, keep_versions=keep, grace=NOTHING) == []
        for version in self.versions:
            assert_same(read_state(self.url, version), self.versions[version])
        self.check_expired()

    def check_expired(self) -> None:
        oldest = min(self.versions)
        for version in {0, oldest - 1} & set(range(oldest)):
            with pytest.raises(refindex.NotFoundError, match=f"versions are {oldest} to {self.newest}: older ones"):
                storage.open_reader(self.url, version=version)

    @rule(manifest=manifests(), data=st.data())
    def a_stale_base(self, manifest: Manifest, data: st.DataObject) -> None:
        if self.newest == 0:
            return
        change, _ = draw_change(data, self.versions[self.newest])
        base = data.draw(st.integers(0, self.newest - 1) | st.integers(self.newest + 1, self.newest + 3))
        for content in (manifest, change):
            with pytest.raises(refindex.ConflictError):
                storage.commit(self.url, content, base=base, operation="append", details={})
        with pytest.raises(refindex.ExistsError):
            storage.commit(self.url, manifest, base=None, operation="write", details={})

    @rule(data=st.data())
    def look(self, data: st.DataObject) -> None:
        version = data.draw(st.sampled_from(sorted(self.versions)))
        expected = self.versions[version]
        reader = storage.open_reader(self.url, version=version)
        for path in expected.chunks:
            near = st.sampled_from([0, *expected.chunks[path]])
            start = data.draw(near)
            assert rows(reader.find(path, start=start)) == {
                c: row for c, row in expected.chunks[path].items() if c >= start
            }
            wanted = sorted(data.draw(st.sets(near | st.integers(0, 2**30 - 1), max_size=5)))
            assert rows(reader.find(path, wanted)) == {
                c: row for c, row in expected.chunks[path].items() if c in wanted
            }
        reader.close()

    @rule()
    def check(self) -> None:
        assert storage.newest_version(self.url) == self.newest
        assert_same(read_state(self.url), self.versions[self.newest])
        commits = storage.history(self.url)
        assert [commit.version for commit in commits] == sorted(self.versions, reverse=True)
        times = [commit.timestamp for commit in commits]
        assert times == sorted(set(times), reverse=True)
        for commit in commits:
            moment = datetime.fromtimestamp(commit.timestamp / 1000, UTC)
            reader = storage.open_reader(self.url, as_of=moment)
            assert reader.version == commit.version
            reader.close()


def draw_change(data: st.DataObject, before: State) -> tuple[Change, State]:
    """A change of a version, and what must be there after it."""
    draw = data.draw
    after = copy.deepcopy(before)
    array_paths = list(before.chunks)
    dropped: dict[str, int] = {}
    chunks: dict[str, ChunkTable] = {}
    nodes = {path: make_node(path, values) for path, values in before.nodes.items()}
    for path in draw(st.lists(st.sampled_from(array_paths), unique=True, max_size=1)) if array_paths else ():
        del nodes[path], after.chunks[path]
    for path in draw(st.lists(st.sampled_from(["new/x", "y", "new/a"]), unique=True, max_size=2)):
        if path not in before.nodes:  # one that goes cannot come back in the same change
            if path.startswith("new/"):
                nodes.setdefault("new", Node(path="new", document=dumps(group_document({}))))
            nodes[path] = array_node(path)
            after.chunks[path] = {}
    for path in after.chunks:
        if draw(st.booleans()):
            nodes[path] = array_node(path, edition=draw(st.integers(0, 3)))
        kept = after.chunks[path]
        if path in before.chunks and draw(st.booleans()):
            dropped[path] = draw(st.sampled_from([0, *kept]))
            after.chunks[path] = kept = {c: row for c, row in kept.items() if c < dropped[path]}
        table = draw(appended(max(kept, default=-1) + 1, len(before.sources)))
        if len(table):
            chunks[path] = table
            kept |= rows(table)
    nodes[""] = make_node("", (nodes[""].document, (), {}, draw(JOINED)))
    sources = tuple(make_source(len(before.sources) + i) for i in range(draw(st.integers(0, 2))))
    after.sources += sources
    placements = tuple(draw(st.lists(PLACEMENTS, max_size=3)))
    replace = draw(st.booleans())
    after.placements = [*([] if replace else before.placements), *placements]
    report = tuple(draw(st.lists(ENTRIES, max_size=3)))
    after.report += report
    ordered = sorted(nodes.values(), key=lambda node: node.is_array)
    after.nodes = {node.path: fields(node) for node in ordered}
    change = Change(
        nodes=nodes,
        sources=sources,
        dropped=dropped,
        chunks=chunks,
        placements=placements,
        replace_placements=replace,
        report=report,
    )
    return change, after


def make_node(path: str, values: tuple[Any, ...]) -> Node:
    document, encodings, types, joined = values
    return Node(path=path, document=document, encodings=encodings, attribute_types=types, joined=joined)


@st.composite
def appended(draw: st.DrawFn, first: int, sources: int) -> ChunkTable:
    """A few references behind those that there are: into sources, inline, or both."""
    numbers = draw(st.lists(st.integers(first, first + 20), unique=True, max_size=4 * (first < 2**29)).map(sorted))
    split = draw(st.sampled_from([0, len(numbers), len(numbers) // 2])) if sources else len(numbers)
    inline = ChunkTable.inline([(n, draw(st.binary(max_size=4))) for n in numbers[:split]])
    rest = numbers[split:]
    pointed = ChunkTable.from_columns(
        chunk=rest,
        source=[draw(st.integers(0, sources - 1)) for _ in rest],
        offset=[draw(st.integers(0, 2**40)) for _ in rest],
        length=[draw(st.integers(0, 100)) for _ in rest],
        encoding=[draw(st.integers(-1, 1)) for _ in rest],
    )
    return ChunkTable.concatenate([inline, pointed])


@pytest.mark.parametrize("backend", BACKENDS)
def test_versions(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that there are merges and checkpoints after a few commits.
    monkeypatch.setattr(merge, "FILES", 3)
    monkeypatch.setattr(checkpoint, "EVERY", 3)
    machine = type("ThisMachine", (Machine,), {"backend": backend})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=12,
            stateful_step_count=10,
            phases=(Phase.explicit, Phase.reuse, Phase.generate),  # shrinking takes minutes here
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )


def append(url: str, *, name: str = "t", inline: bool = True, paths: tuple[str, ...] = ("a",)) -> int:
    """Append one chunk to arrays (with a coordinate whose one inline chunk is written again) until it succeeds."""
    while True:
        reader = storage.open_reader(url)
        try:
            count = len(reader.sources)
            table = ChunkTable.from_columns(chunk=[count], source=count, offset=[count * 10], length=[10])
            chunks = dict.fromkeys(paths, table)
            dropped = {}
            if inline:
                chunks["time"] = ChunkTable.inline([(0, b"x" * (count + 1))])
                dropped["time"] = 0
            nodes = dict(reader.nodes)
            for path in chunks:
                nodes[path] = array_node(path, edition=count + 1)
            change = Change(
                nodes=nodes,
                sources=(make_source(count),),
                chunks=chunks,
                dropped=dropped,
            )
            details = {"name": f"{name}"}
            return storage.commit(url, change, base=reader.version, operation="append", details=details)
        except refindex.ConflictError:
            time.sleep(0.001)
        finally:
            reader.close()


@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_an_append_writes_what_is_new(kind: str, tmp_path: Path) -> None:
    """A row appended to many costs little; so does one a thousand times, in files as in bytes."""
    n = 200_000
    big = ChunkTable.from_columns(chunk=range(n), source=0, offset=range(0, 10 * n, 10), length=10)
    out = tmp_path / f"a.{kind}"
    make_manifest({"b": big, "time": ChunkTable.inline([(0, b"x")])}, sources=1).save(out)
    url = urls.absolute(out)

    def size() -> int:
        return sum(p.stat().st_size for p in tmp_path.rglob("*") if p.is_file())

    before = size()
    for _ in range(30):
        append(url)
    assert size() - before < 40 * 30_000
    if kind == "refindex":
        reader = storage.open_reader(url)
        assert len(reader._snapshot.files) < 5 + 4 * 10  # type: ignore[attr-defined]
        reader.close()
    found = read_state(url)
    assert found.chunks["b"] == rows(big)
    assert found.chunks["a"] == {i: (i, i * 10, 10, 0, b"") for i in range(1, 31)}
    assert found.chunks["time"] == {0: (-1, 0, 31, -1, b"x" * 31)}


@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_a_moment_before_the_first_version(kind: str, tmp_path: Path) -> None:
    url = urls.absolute(tmp_path / f"a.{kind}")
    make_manifest({}).save(tmp_path / f"a.{kind}")
    first = datetime.fromtimestamp(storage.history(url)[0].timestamp / 1000, UTC)
    with pytest.raises(refindex.NotFoundError, match=first.isoformat(timespec="milliseconds").replace("+", r"\+")):
        storage.open_reader(url, as_of=first - timedelta(seconds=1))
    local = (first + timedelta(seconds=1)).astimezone().replace(tzinfo=None)
    storage.open_reader(url, as_of=local).close()


@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_vacuum_by_age_and_limits_that_make_no_sense(kind: str, tmp_path: Path) -> None:
    url = urls.absolute(tmp_path / f"a.{kind}")
    for _ in range(3):
        make_manifest({}).save(tmp_path / f"a.{kind}", overwrite=True)
    assert storage.vacuum(url, older_than=timedelta(hours=1)) == []
    assert len(storage.history(url)) == 3
    storage.vacuum(url, older_than=timedelta(0), keep_versions=2)
    assert [c.version for c in storage.history(url)] == [2, 1]
    time.sleep(0.002)
    storage.vacuum(url, older_than=timedelta(0))
    assert [c.version for c in storage.history(url)] == [2]
    for wrong in ({"keep_versions": 0}, {"older_than": timedelta(-1)}):
        with pytest.raises(ValueError, match="must"):
            storage.vacuum(url, **wrong)
    with pytest.raises(ValueError, match="not both"):
        storage.open_reader(url, version=2, as_of=datetime.now(UTC))


@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_a_reader_of_a_version_that_expires(kind: str, tmp_path: Path) -> None:
    """It raises, and never takes what is gone for what never was."""
    out = tmp_path / f"a.{kind}"
    url = urls.absolute(out)
    make_manifest({"a": ChunkTable.inline([(0, b"old")])}).save(out)
    reader = storage.open_reader(url)
    assert len(reader.nodes) == 2
    make_manifest({"a": ChunkTable.inline([(1, b"new")])}).save(out, overwrite=True)
    storage.vacuum(url, keep_versions=1)
    with pytest.raises(refindex.ManifestError, match="vacuum"):
        reader.find("a")
    reader.close()


def test_young_strays_stay(tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    make_manifest({}).save(out)
    stray = out / "kind=chunk" / "part-00000-x.zstd.parquet"
    stray.parent.mkdir()
    stray.write_bytes(b"x" * 7)
    (out / "thesis.txt").write_text("years of work")
    assert storage.vacuum(urls.absolute(out)) == []
    found = storage.vacuum(urls.absolute(out), grace=NOTHING)
    assert [(r.name, r.nbytes) for r in found] == [("kind=chunk/part-00000-x.zstd.parquet", 7)]
    assert (out / "thesis.txt").exists()
