"""Manifests that are made up, for tests of storage."""

from __future__ import annotations

from pathlib import Path

from hypothesis import strategies as st

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
from refindex.model.manifest import Placement
from refindex.model.zarr_v3 import array_document, dumps, group_document


def array_node(path: str, edition: int = 0) -> Node:
    """An array of many chunks, without references; editions differ in an attribute."""
    grid = ChunkGrid.regular((1 << 30,), (1,))
    document = array_document(
        grid=grid,
        data_type="float32",
        codecs=[{"name": "bytes", "configuration": {"endian": "little"}}],
        fill_value=0.0,
        dimension_names=["x"],
        attributes={"scale_factor": 0.1, "name": path, "edition": edition},
    )
    return Node(
        path=path,
        document=dumps(document),
        encodings=(
            Encoding(type=Leaf("<f4"), shape=(1,)),
            Encoding(type=Leaf("<f4"), shape=(1,), filters=(Filter(id=1, values=(5,)),)),
        ),
        attribute_types={"scale_factor": "float32"},
    )


def make_source(number: int, base: str = "/data") -> Source:
    return Source(
        url=f"file://{base}/s{number}.nc",
        size=2**40 + number,
        mtime=1_700_000_000_123_456 + number,
        etag=None if number else '"e"',
        version=f"v{number}" if number % 2 else None,
    )


def make_manifest(
    tables: dict[str, ChunkTable],
    *,
    sources: int = 3,
    base: str = "/data",
    report: tuple[ReportEntry, ...] = (),
    placements: tuple[Placement, ...] = (),
    joined: dict[str, object] | None = None,
) -> Manifest:
    """A manifest over made-up sources: one array a table, in groups as their paths say."""
    groups = {"": Node(path="", document=dumps(group_document({"title": "ü"})), joined=joined)}
    arrays = {}
    for path, table in tables.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            groups.setdefault(folder, Node(path=folder, document=dumps(group_document({}))))
        node = array_node(path)
        arrays[path] = Array(
            path=path,
            document=node.document,
            encodings=node.encodings,
            attribute_types=node.attribute_types,
            chunks=table,
        )
    return Manifest(
        groups=groups,
        arrays=arrays,
        sources=tuple(make_source(i, base) for i in range(sources)),
        report=ScanReport(entries=report),
        placements=placements,
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
    return ChunkTable.concatenate([pointed, ChunkTable.inline(inline)])


PATHS = st.lists(st.sampled_from(["a", "b", "c", "a b", "ü", "c/0", "zarr"]), min_size=1, max_size=3).map("/".join)


ENTRIES = st.builds(
    ReportEntry,
    source=st.sampled_from(["/data/s0.nc", "/elsewhere/x.nc"]),
    path=PATHS.map("/".__add__),
    status=st.sampled_from(list(Status)),
    reason=st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"]), max_size=20),
)
PLACEMENTS = st.builds(
    Placement,
    dim=st.sampled_from(["time", "swath/time"]),
    source=st.integers(0, 2),
    start=st.integers(0, 2**40),
    length=st.integers(0, 100),
    offset=st.integers(0, 5),
)
JOINED = st.none() | st.dictionaries(st.sampled_from(["dim", "concat"]), st.integers(0, 9) | st.text("ab", max_size=3))


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    paths = draw(st.lists(PATHS, unique=True, max_size=5))
    # An array cannot be a group as well.
    leaves = [p for p in paths if not any(q != p and q.startswith(p + "/") for q in paths)]
    return make_manifest(
        {p: draw(tables()) for p in leaves},
        report=tuple(draw(st.lists(ENTRIES, max_size=4))),
        placements=tuple(draw(st.lists(PLACEMENTS, max_size=4))),
        joined=draw(JOINED),
    )


def assert_equal(one: Manifest, other: Manifest) -> None:
    assert {p: (n.document, n.encodings, dict(n.attribute_types), n.joined) for p, n in one.nodes.items()} == {
        p: (n.document, n.encodings, dict(n.attribute_types), n.joined) for p, n in other.nodes.items()
    }
    assert list(one.nodes) == list(other.nodes)
    assert one.sources == other.sources
    assert one.report.entries == other.report.entries
    assert one.placements == other.placements
    for path, array in one.arrays.items():
        assert array.chunks.same_references(other.arrays[path].chunks), path


def read(url: Path, version: int | None = None) -> Manifest:
    reader = storage.open_reader(urls.absolute(url), version=version)
    try:
        return storage.load(reader)
    finally:
        reader.close()
