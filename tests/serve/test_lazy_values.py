"""Lazy arrays of chunks that are stored in every way: numpy's values, by the requests that were predicted."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from crafted import Craft
from hypothesis import given, settings
from hypothesis import strategies as st
from test_lazy import apply, steps
from test_selection import crafted, make, merge_by

import refindex
from refindex.access.files import SourcePool
from refindex.access.ranges import LOCAL
from refindex.serve import direct as direct_module
from refindex.serve import reading as reading_module
from refindex.serve import scatter as scatter_module
from refindex.serve.codec_pipeline import RefindexCodecPipeline, open_group
from refindex.serve.lazy import LazyArray
from refindex.serve.opening import Opening
from refindex.serve.selection import SelectionReader
from refindex.serve.zarr_store import RefindexStore

SMALL = {
    "usual": {},
    "direct": {(direct_module, "_DIRECT"): 1, (reading_module, "_DIRECT"): 1},
    "batched": {(reading_module, "_BATCHED"): 0, (scatter_module, "_TOGETHER"): 100},
    "together": {(scatter_module, "_FEW"): 0},
    "together, batched": {(scatter_module, "_FEW"): 0, (reading_module, "_BATCHED"): 0},
    "divided": {(direct_module, "_MOST"): 16, (direct_module, "_MOST_RUNS"): 2, (scatter_module, "_LONG"): 8},
}


def select(view: LazyArray, kind: str, selection: Any) -> LazyArray:
    return {"basic": view, "outer": view.oindex, "points": view.vindex}[kind][selection]


def opened(store: RefindexStore) -> tuple[LazyArray, SelectionReader]:
    view = LazyArray(open_group(store)["a"], store.nodes["a"])
    return view, store.keys.resolver.selections


@settings(max_examples=150)
@given(
    how=crafted(),
    data=st.data(),
    gap=st.sampled_from([0, 3, 30, LOCAL.gap]),
    limit=st.sampled_from([1, 50, LOCAL.limit]),
    thresholds=st.sampled_from(list(SMALL)),
)
def test_views_of_every_encoding(
    how: dict[str, Any], data: st.DataObject, gap: int, limit: int, thresholds: str
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        merge_by(patch, gap, limit)
        for (module, name), value in SMALL[thresholds].items():
            patch.setattr(module, name, value)
        patch.setattr(RefindexCodecPipeline, "read", None)  # zarr-python has no part in it
        made = make(folder, how)
        store = RefindexStore(Opening(manifest=made.manifest))
        whole, reader = opened(store)
        values = made.values.astype(made.values.dtype.newbyteorder("="))
        for _ in range(4):
            view, expected = whole, values
            for _ in range(data.draw(st.integers(1, 2))):
                kind, selection = data.draw(steps(expected.shape))
                view, expected = select(view, kind, selection), np.asarray(apply(expected, kind, selection))
            before = reader.pool.requests, reader.pool.nbytes
            explanation = view.explain()
            cost = explanation.cost
            assert (reader.pool.requests, reader.pool.nbytes) == before
            found = view.compute()
            assert (found.shape, found.dtype) == (expected.shape, view.dtype)
            np.testing.assert_array_equal(found, expected)
            assert found.flags.writeable
            counted = reader.pool.requests - before[0], reader.pool.nbytes - before[1]
            assert counted == (cost.requests, cost.nbytes_read)
            assert (cost.shape, cost.nbytes_wanted) == (expected.shape, expected.nbytes)
            assert len(explanation.others) == (2 if values.ndim > 1 else 0)
            reader.cache.clear()
        store.keys.resolver.close()


@st.composite
def long_axes(draw: st.DrawFn, shape: tuple[int, ...]) -> tuple[Any, ...]:
    """Along each dimension many elements, in any order: enough to be handled many at a time."""
    random = np.random.default_rng(draw(st.integers(0, 99)))
    kinds = draw(st.tuples(*(st.sampled_from(["some", "any", "all", "step", "back", "one"]) for _ in shape)))
    axes: list[Any] = []
    for kind, n in zip(kinds, shape, strict=True):
        match kind:
            case "some":
                axes.append(np.flatnonzero(random.random(n) < 0.6) if n > 1 else np.array([0]))
            case "any":
                axes.append(random.integers(0, n, size=n))
            case "step":
                axes.append(slice(None, None, 2))
            case "back":
                axes.append(slice(None, None, -1))
            case "one":
                axes.append(slice(int(random.integers(n)), None, n))
            case _:
                axes.append(slice(None))
    return tuple(axes)


@pytest.mark.parametrize("kind", ["native", "swapped", "larger", "mixed"])
@settings(max_examples=60)
@given(
    data=st.data(),
    shape=st.sampled_from([(40,), (12, 9), (5, 6, 7), (30, 4, 3)]),
    edge=st.integers(1, 4),
    filters=st.sampled_from(["none", "none", "shuffle+deflate"]),
    gap=st.sampled_from([0, 4, 9]),
    thresholds=st.sampled_from(list(SMALL)),
)
def test_many_chunks_at_a_time(
    kind: str, data: st.DataObject, shape: tuple[int, ...], edge: int, filters: str, gap: int, thresholds: str
) -> None:
    kinds = ["native", "absent", "swapped", "inline", "other filters"] if kind == "mixed" else [kind]
    random = np.random.default_rng(0)
    expected = random.integers(0, 1000, size=shape).astype("<f4")
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        merge_by(patch, gap, data.draw(st.sampled_from([1, LOCAL.limit])))
        for (module, name), value in SMALL[thresholds].items():
            patch.setattr(module, name, value)
        made = Craft(
            Path(folder),
            expected,
            tuple(min(n, edge * (axis + 1)) for axis, n in enumerate(shape)),
            filters=filters,
            choose=lambda: str(random.choice(kinds)),
            gap=lambda: int(random.choice([0, 0, 20])),
            sources=data.draw(st.integers(1, 2)),
            fill=7,
        )
        view, reader = opened(RefindexStore(Opening(manifest=made.manifest)))
        selection = data.draw(long_axes(shape))
        selected = view.oindex[selection]
        cost = selected.explain().cost
        np.testing.assert_array_equal(selected.compute(), apply(expected, "outer", selection))
        assert (reader.pool.requests, reader.pool.nbytes) == (cost.requests, cost.nbytes_read)
        reader.pool.close()


def test_runs_that_are_near_each_other_are_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge_by(monkeypatch, 30, LOCAL.limit)
    made = Craft(tmp_path, np.arange(4000, dtype="<i4").reshape(20, 10, 20), (20, 10, 20))
    view, reader = opened(RefindexStore(Opening(manifest=made.manifest)))
    # The last row of one plane and the first of the next are neighbours; rows of a plane are far apart.
    selected = view[2:6, ::9]
    cost = selected.explain().cost
    assert np.array_equal(selected.compute(), made.values[2:6, ::9])
    assert (reader.pool.requests, reader.pool.nbytes) == (cost.requests, cost.nbytes_read) == (5, 8 * 80)


def test_neighbours_in_the_array_that_are_none_in_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Craft(tmp_path, np.arange(60, dtype="<i4").reshape(20, 3), (1, 3), filters="deflate")
    view, _ = opened(RefindexStore(Opening(manifest=made.manifest)))
    for order in ([0, 2, 1, 3, 4, 5, 6], [1, 0, 3, 2, 5, 4, 7, 6], list(range(19, -1, -1))):
        assert np.array_equal(view.oindex[order].compute(), made.values[order])


@pytest.mark.parametrize("selection", [slice(2, 4), slice(2, 3), slice(None), (slice(2, 4), slice(4, None))])
@pytest.mark.parametrize("edges", [(2, 4), (1, 4), (2, 8), (12, 1)])
def test_neighbours_that_are_not_one_piece_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: Any, edges: tuple[int, int]
) -> None:
    for name in ("_DIRECT", "_BATCHED"):
        monkeypatch.setattr(reading_module, name, 0)
    made = Craft(tmp_path, np.arange(96, dtype="<i4").reshape(12, 8), edges)
    view, _ = opened(RefindexStore(Opening(manifest=made.manifest)))
    assert np.array_equal(view[selection].compute(), made.values[selection])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_views_with_other_orders_of_dimensions(archive: refindex.Archive, order: tuple[int, ...]) -> None:
    view = archive["deflated"][3:9, ::-2, 5:]
    document = view.to_json()
    transform = document["transform"]
    shape = [view.shape[axis] for axis in order]
    outputs = [{**output, "input_dimension": order.index(n)} for n, output in enumerate(transform["output"])]
    turned = {
        "input_rank": 3,
        "input_inclusive_min": [0, 0, 0],
        "input_exclusive_max": shape,
        "output": outputs,
    }
    found = archive.view({**document, "transform": turned})
    assert np.array_equal(found.compute(), view.compute().transpose(order))
    assert found.compute().flags.c_contiguous


@settings(max_examples=40)
@given(how=crafted(), data=st.data())
def test_what_is_kept_is_the_same(how: dict[str, Any], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = make(folder, how)
        store = RefindexStore(Opening(manifest=made.manifest))
        whole, reader = opened(store)
        for _ in range(5):
            kind, selection = data.draw(steps(made.values.shape))
            expected = np.asarray(apply(made.values, kind, selection))
            np.testing.assert_array_equal(select(whole, kind, selection).compute(), expected)
        assert reader.cache.nbytes <= reader.cache.budget
        store.keys.resolver.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lazy-values") / "f.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        cube = random.integers(-500, 500, size=(60, 70, 80))
        f.create_dataset("contiguous", data=cube.astype("f8"))
        f.create_dataset("deflated", data=cube.astype("f4"), chunks=(1, 35, 40), compression=1, shuffle=True)
        f.create_dataset("chunked", data=cube.astype(">i2"), chunks=(7, 70, 80))
        f.create_dataset("lzf", data=cube[:20].astype("i4"), chunks=(7, 70, 80), compression="lzf")
        f.create_dataset("gappy", shape=(100, 100), dtype="i4", chunks=(9, 9), fillvalue=-3)[30:50, 40:] = 5
        f.create_dataset("bool", data=cube[0] > 0, chunks=(20, 80), compression=1)
        f.create_dataset("complex", data=cube[0] * (1 + 2j), chunks=(20, 20))
        f.create_dataset("text", data=np.array([f"t{i}" for i in range(300)], dtype="S5"), chunks=(70,))
        pairs = np.zeros(500, dtype=[("a", "<i4"), ("b", ">f8")])
        pairs["a"], pairs["b"] = np.arange(500), random.random(500)
        f.create_dataset("pairs", data=pairs, chunks=(120,), compression=1)
        f.create_dataset("names", data=[f"ü{i}" for i in range(50)], dtype=h5py.string_dtype(), chunks=(20,))
        f.create_dataset("scalar", data=np.float32(2.5))
        f.create_dataset("nothing", shape=(0, 5), dtype="f4", maxshape=(None, 5))
    return path


NAMES = ["contiguous", "deflated", "chunked", "lzf", "gappy", "bool", "complex", "text", "pairs", "names", "scalar"]


@pytest.fixture(scope="module", params=["memory", "refindex"])
def archive(request: pytest.FixtureRequest, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    where = file
    if request.param != "memory":
        where = tmp_path_factory.mktemp("archive") / "a.refindex"
        refindex.scan(file).save(where)
    with refindex.open(where) as found:
        yield found


@settings(max_examples=100)
@given(data=st.data())
def test_views_of_every_type(archive: refindex.Archive, file: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(NAMES))
    with h5py.File(file) as f:
        values = np.asarray(f[name].asstr()[()] if name == "names" else f[name][()])
    kind, selection = data.draw(steps(values.shape))
    found, expected = select(archive[name], kind, selection).compute(), np.asarray(apply(values, kind, selection))
    assert found.shape == expected.shape
    if values.dtype.names:
        assert all(np.array_equal(found[field], expected[field]) for field in values.dtype.names)
    else:
        assert found.tolist() == expected.tolist()


def test_views_travel(archive: refindex.Archive, file: Path) -> None:
    for name in ("contiguous", "deflated"):
        view = archive[name][3:30:2, ::-1].oindex[:, [5, 1], 7]
        with h5py.File(file) as f:
            expected = f[name][3:30:2][:, ::-1][:, [5, 1], 7]
        for sent in (pickle.dumps(view), (view.compute(), pickle.dumps(view))[1]):
            assert np.array_equal(pickle.loads(sent).compute(), expected)


def test_without_elements(archive: refindex.Archive) -> None:
    assert archive["nothing"].compute().shape == (0, 5)
    assert archive["nothing"][:, 2].explain().cost.requests == 0
    assert archive["contiguous"][5:5, ::-1].compute().shape == (0, 70, 80)
    assert archive["contiguous"].oindex[[], :, 3].compute().shape == (0, 70)


def test_what_is_not_planned_has_no_cost(archive: refindex.Archive) -> None:
    with pytest.raises(refindex.UnsupportedError, match="/names: zarr-python reads it chunk by chunk"):
        archive["names"].explain()


def test_an_explanation(archive: refindex.Archive) -> None:
    explanation = archive["contiguous"][3:5, 7].explain("two rows")
    assert (explanation.cost.label, explanation.cost.requests, explanation.cost.sources) == ("two rows", 2, 1)
    assert explanation.cost.nbytes_read == explanation.cost.nbytes_wanted == 2 * 80 * 8
    series, one_map = explanation.others
    assert (series.requests, series.nbytes_read) == (60, 60 * 8)
    assert (one_map.requests, one_map.nbytes_read) == (1, 70 * 80 * 8)
    assert "series along" in str(explanation)
    assert str(60 * 8) in explanation._repr_html_()


def test_missing_chunks_are_reported_where_zarr_would(tmp_path: Path) -> None:
    made = Craft(tmp_path, np.arange(40, dtype="<i4"), (10,), choose=iter(["native", "absent"] * 2).__next__, fill=7)
    with zarr.config.set({"array.read_missing_chunks": False}):
        view, _ = opened(RefindexStore(Opening(manifest=made.manifest)))
        assert view[3:7].compute().tolist() == [3, 4, 5, 6]
        with pytest.raises(zarr.errors.ChunkNotFoundError):
            view[3:17].compute()


@pytest.mark.parametrize("selection", [(3, 4), (slice(None), 4), (slice(None, None, 30),), ()])
def test_a_truncated_source(tmp_path: Path, selection: Any) -> None:
    values = np.arange(90_000, dtype="<f8").reshape(300, 300)
    made = Craft(tmp_path, values, (300, 300))
    source = tmp_path / "source-0.bin"
    store = RefindexStore(Opening(manifest=made.manifest, stale="ignore"))
    view, _ = opened(store)
    assert np.array_equal(view[selection], values[selection])
    source.write_bytes(source.read_bytes()[:1000])
    with pytest.raises(refindex.SourceError, match=rf"{source}: expected \d+ bytes at \d+, got \d+.*\(for /a/c/0/0\)"):
        view[selection].compute()
    with pytest.raises(refindex.SourceError, match=rf"{source}: expected \d+ bytes.*\(for elements of /a\)"):
        view.vindex[[0, 299], [0, 299]].compute()
    assert np.array_equal(view[0, :9], values[0, :9])


def test_a_point_takes_one_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The path around the plan is taken, and looks the chunk up once."""
    made = Craft(tmp_path, np.arange(90_000, dtype="<f8").reshape(300, 300), (300, 300))
    view, reader = opened(RefindexStore(Opening(manifest=made.manifest)))
    view[0, 0].compute()
    for owner, name in ((SelectionReader, "prepare"), (type(reader.reader), "find"), (SourcePool, "read_into")):
        monkeypatch.setattr(owner, name, None)
    before = reader.pool.nbytes
    assert view[7, 8].compute() == made.values[7, 8]
    assert reader.pool.nbytes - before == 8
    assert np.array_equal(view[::100, 8].compute(), made.values[::100, 8])
