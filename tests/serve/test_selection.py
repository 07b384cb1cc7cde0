"""Selections read by one plan: the values, in every way that chunks can be stored and selected."""

from __future__ import annotations

import itertools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from crafted import FILTERS, KINDS, Craft
from hypothesis import given, settings
from hypothesis import strategies as st

import refindex
from refindex.access.ranges import LOCAL, Merging
from refindex.serve import codec_pipeline as pipeline_module
from refindex.serve import reading as reading_module
from refindex.serve import scatter as scatter_module
from refindex.serve.codec_pipeline import RefindexCodecPipeline, open_group
from refindex.serve.opening import Opening
from refindex.serve.selection import SelectionReader
from refindex.serve.zarr_store import RefindexStore


def stock(store: RefindexStore) -> Any:
    """The array as zarr-python alone reads it, chunk by chunk."""
    with warnings.catch_warnings(), zarr.config.set({"array.rectilinear_chunks": True}):
        warnings.simplefilter("ignore")
        return zarr.open_array(store, path="a", mode="r")


@st.composite
def edges(draw: st.DrawFn, extent: int) -> Any:
    if draw(st.booleans()):
        return draw(st.integers(1, extent + 2))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, extent - 1)), max_size=4)) if extent > 1 else set())
    bounds = [0, *cuts, extent + draw(st.integers(0, 2))]
    return tuple((b - a, 1) for a, b in itertools.pairwise(bounds))


@st.composite
def basic(draw: st.DrawFn, extent: int) -> Any:
    if draw(st.integers(0, 3)) == 0:
        return draw(st.integers(-extent, extent - 1))
    start = draw(st.integers(0, extent - 1))
    return slice(start, draw(st.integers(start + 1, extent)), draw(st.integers(1, 3)))


def arrays(extent: int) -> Any:
    return st.lists(st.integers(-extent, extent - 1), min_size=1, max_size=6).map(np.array)


@st.composite
def crafted(draw: st.DrawFn) -> dict[str, Any]:
    shape = tuple(draw(st.lists(st.integers(1, 23), min_size=1, max_size=3)))
    dtype = np.dtype(draw(st.sampled_from(["<f4", ">f4", "<f8", "<i2", ">i4", "|u1", "<c8"])))
    kinds = [k for k in KINDS if dtype.kind == "f" or k not in ("packed", "narrow")]
    return {
        "shape": shape,
        "dtype": dtype,
        "edges": tuple(draw(edges(extent)) for extent in shape),
        "filters": draw(st.sampled_from(list(FILTERS))),
        "kinds": draw(st.sampled_from([["native"], *([kind] for kind in kinds), kinds, ["native", "absent"]])),
        "sources": draw(st.integers(1, 3)),
        "shuffled": draw(st.booleans()),
        "gaps": draw(st.sampled_from([(0,), (0, 3), (0, 40_000)])),
        "seed": draw(st.integers(0, 99)),
    }


def make(folder: str, how: dict[str, Any]) -> Craft:
    random = np.random.default_rng(how["seed"])
    # Odd numbers: 2 * n + 3 is what a packed chunk of whole numbers can hold.
    values = (random.integers(0, 40, size=how["shape"]) * 2 + 1).astype(how["dtype"])
    return Craft(
        Path(folder),
        values,
        how["edges"],
        filters=how["filters"],
        choose=lambda: str(random.choice(how["kinds"])),
        gap=lambda: int(random.choice(how["gaps"])),
        sources=how["sources"],
        shuffled=how["shuffled"],
        fill=7,
    )


def merge_by(patch: pytest.MonkeyPatch, gap: int, limit: int) -> None:
    """Chunks of tests are small: parts of them are read on their own only if small gaps count."""
    for where in ("local", "remote"):
        patch.setattr(SelectionReader, where, Merging(gap=gap, limit=limit))


@settings(max_examples=150)
@given(
    how=crafted(), data=st.data(), gap=st.sampled_from([0, 3, 30, LOCAL.gap]), limit=st.sampled_from([1, LOCAL.limit])
)
def test_every_selection_of_every_encoding(how: dict[str, Any], data: st.DataObject, gap: int, limit: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        merge_by(patch, gap, limit)
        if data.draw(st.booleans()):
            patch.setattr(scatter_module, "_FEW", 0)
            patch.setattr(pipeline_module, "_SOME", 0)
        made = make(folder, how)
        store = RefindexStore(Opening(manifest=made.manifest))
        array, plain = open_group(store)["a"], stock(store)
        assert type(array.async_array.codec_pipeline) is RefindexCodecPipeline
        values = made.values.astype(made.values.dtype.newbyteorder("="))
        assert np.array_equal(array[...], values)
        for _ in range(3):
            selection = tuple(data.draw(basic(extent)) for extent in values.shape)
            assert np.array_equal(array[selection], values[selection])
            assert np.array_equal(plain[selection], values[selection])
        outer = tuple(data.draw(basic(n) | arrays(n)) for n in values.shape)
        found = array.oindex[outer]
        assert np.array_equal(found, plain.oindex[outer])
        assert np.array_equal(found, _orthogonal(values, outer))
        count = data.draw(st.integers(1, 8))
        points = tuple(
            np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=count, max_size=count))) for n in values.shape
        )
        assert np.array_equal(array.vindex[points], values[points])
        mask = np.random.default_rng(how["seed"]).random(values.shape) < 0.3
        assert np.array_equal(array.vindex[mask], values[mask])
        block = tuple(data.draw(st.integers(0, n - 1)) for n in made.grid.counts)
        assert np.array_equal(array.blocks[block], plain.blocks[block])
        store.keys.resolver.close()


def _orthogonal(values: np.ndarray[Any, Any], selection: tuple[Any, ...]) -> np.ndarray[Any, Any]:
    for axis in range(values.ndim - 1, -1, -1):
        values = values[(slice(None),) * axis + (selection[axis],)]
    return values


@pytest.mark.parametrize("name", ["_TOGETHER", "_LONG", "_SMALL", "_WORTH_THREADS", "_DIRECT", "_BATCHED"])
@settings(max_examples=25)
@given(how=crafted())
def test_the_thresholds_change_no_value(name: str, how: dict[str, Any]) -> None:
    module = scatter_module if name in {"_TOGETHER", "_LONG"} else reading_module
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, 1)
        if name != "_DIRECT":
            patch.setattr(reading_module, "_SMALL", 0)
            patch.setattr(reading_module, "_WORTH_THREADS", 0)
        made = make(folder, how)
        store = RefindexStore(Opening(manifest=made.manifest))
        assert np.array_equal(open_group(store)["a"][...], made.values)
        store.keys.resolver.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("selection") / "f.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        cube = random.integers(-500, 500, size=(60, 70, 80))
        f.create_dataset("cube", data=cube.astype("f4"), chunks=(10, 30, 40), compression=1, shuffle=True)
        f.create_dataset("whole", data=cube.astype("f8"))
        f.create_dataset("sum", data=cube.astype(">i2"), chunks=(60, 7, 9), fletcher32=True)
        f.create_dataset("lzf", data=cube[:20].astype("i4"), chunks=(7, 70, 80), compression="lzf", shuffle=True)
        f.create_dataset("gappy", shape=(100, 100), dtype="i4", chunks=(9, 9), fillvalue=-3)[30:50, 40:] = 5
        f.create_dataset("bool", data=cube[0] > 0, chunks=(20, 80), compression=1)
        f.create_dataset("complex", data=cube[0] * (1 + 2j), chunks=(20, 20), compression=1)
        f.create_dataset("text", data=np.array([f"t{i}" for i in range(300)], dtype="S5"), chunks=(70,), compression=1)
        pairs = np.zeros(500, dtype=[("a", "<i4"), ("b", ">f8")])
        pairs["a"], pairs["b"] = np.arange(500), random.random(500)
        f.create_dataset("pairs", data=pairs, chunks=(120,), compression=1)
        f.create_dataset("names", data=[f"ü{i}" for i in range(50)], dtype=h5py.string_dtype(), chunks=(20,))
        f.create_dataset("scalar", data=np.float32(2.5))
        f.create_dataset("masked", shape=(40, 100), dtype="<i4", chunks=(10, 50), shuffle=True, compression=1)
        f["masked"][...] = cube[0, 0, 0] + np.arange(4000).reshape(40, 100)
        f["masked"].id.write_direct_chunk((10, 50), f["masked"][10:20, 50:].tobytes(), filter_mask=3)
    return path


@pytest.fixture(scope="module", params=["memory", "refindex", "sqlite"])
def group(request: pytest.FixtureRequest, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    where = file
    if request.param != "memory":
        where = tmp_path_factory.mktemp("archive") / f"a.{request.param}"
        refindex.scan(file).save(where)
    with refindex.open(where) as archive:
        yield open_group(archive.store)


def test_whole_arrays_equal_h5py(group: Any, file: Path) -> None:
    with h5py.File(file) as f, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, dataset in list(f.items()):  # iterating holds h5py's lock, and other threads need it
            expected, found = dataset[()], group[name][...]
            if name == "names":
                assert [v.decode() for v in expected] == list(found)
            elif name == "pairs":
                assert all(np.array_equal(expected[field], found[field]) for field in expected.dtype.names)
            else:
                assert np.array_equal(expected, found), name


@settings(max_examples=60)
@given(data=st.data())
def test_selections_equal_h5py(data: st.DataObject, group: Any, file: Path) -> None:
    name = data.draw(st.sampled_from(["cube", "whole", "sum", "lzf", "gappy", "masked", "bool", "complex", "text"]))
    with h5py.File(file) as f:
        selection = tuple(data.draw(basic(extent)) for extent in f[name].shape)
        assert np.array_equal(f[name][selection], group[name][selection])


def test_what_zarr_refuses_is_refused(group: Any) -> None:
    for selection in ((60, 0, 0), (slice(0, 5, -1), 0, 0), (0, 0, 0, 0)):
        with pytest.raises((IndexError, ValueError)):
            group["cube"][selection]
    with pytest.raises(IndexError):
        group["cube"].vindex[np.array([60]), np.array([0]), np.array([0])]


def test_references_that_were_not_asked_for_have_no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refindex.storage import MemoryReader

    made = Craft(tmp_path, np.arange(100, dtype="<i4"), (10,), choose=iter(["native", "absent"] * 5).__next__, fill=7)
    everything = made.manifest.arrays["a"].chunks
    monkeypatch.setattr(MemoryReader, "find", lambda *_, **__: everything)
    array = open_group(RefindexStore(Opening(manifest=made.manifest)))["a"]
    for selection in (slice(10, 20), slice(25, 45), slice(0, 100, 7), slice(None)):
        assert np.array_equal(array[selection], made.values[selection])


def test_missing_chunks_are_reported_to_zarr(tmp_path: Path) -> None:
    kinds = iter(["native", "absent", "native", "native"])
    made = Craft(tmp_path, np.arange(40, dtype="<i4"), (10,), filters="deflate", choose=kinds.__next__, fill=7)
    with zarr.config.set({"array.read_missing_chunks": False}):
        array = open_group(RefindexStore(Opening(manifest=made.manifest)))["a"]
        assert np.array_equal(array[3:7], made.values[3:7])  # from now on it is kept
        for selection in (slice(12, 15), slice(5, 15), slice(3, 39)):
            with pytest.raises(zarr.errors.ChunkNotFoundError, match=r"chunk 'c/1' \(grid position \(1,\)\)"):
                array[selection]
        assert np.array_equal(array[20:], made.values[20:])
