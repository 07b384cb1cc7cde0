"""The plain view: every array as uncompressed little-endian chunks of one size."""

from __future__ import annotations

import asyncio
import itertools
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_store_contract
import zarr
from crafted import KINDS, Craft
from hypothesis import given, settings
from hypothesis import strategies as st
from numcodecs.vlen import VLenUTF8
from oracle import compare_file
from scratch import ScratchKeys
from zarr.core.buffer import Buffer, default_buffer_prototype

import refindex
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import EMPTY_ROOT, Array, Manifest
from refindex.model.zarr_v3 import array_document, dumps
from refindex.serve.keys import ManifestKeys
from refindex.serve.opening import Opening
from refindex.serve.plain import PlainStore, plain_grid, plain_keys
from refindex.serve.resolver import Resolver
from refindex.storage import MemoryReader

sys.path.insert(0, str(Path(__file__).parents[1] / "gauntlet"))
from cases import cases

CASES = cases()
NO_PLAIN_FORM = ("vlen-utf8", "vlen-bytes")


@pytest.mark.parametrize("name", [name for name in CASES if "dangling" not in name and "cycle" not in name])
def test_the_gauntlet_equals_h5py(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    CASES[name](tmp_path / "case.h5")
    verdict = compare_file(str(tmp_path / "case.h5"), store_of=lambda archive: archive.plain_store)
    assert not verdict.wrong
    with refindex.open(tmp_path / "case.h5") as archive:
        for path in archive.arrays:
            document = json.loads(archive.plain_store.keys.read(f"{path}/zarr.json") or b"")
            (codec,) = document["codecs"]
            assert document["chunk_grid"]["name"] == "regular"
            assert codec["name"] in ("bytes", *NO_PLAIN_FORM)
            assert codec.get("configuration", {}).get("endian", "little") == "little"
            check_size(archive.plain_store, path, document)


def check_size(store: PlainStore, path: str, document: dict[str, Any]) -> None:
    """The first chunk has the bytes of its elements, and ``size`` says so."""
    shape = document["chunk_grid"]["configuration"]["chunk_shape"]
    key = "/".join((path, "c", *("0" for _ in shape))).strip("/")
    data = store.keys.read(key)
    assert store.keys.size(key) == (None if data is None else len(data))
    assert store.keys.exists(key) is (data is not None)


@settings(max_examples=60)
@given(data=st.data())
def test_unequal_chunks_become_equal_ones(data: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    ndim = data.draw(st.integers(1, 3))
    runs = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 3)), min_size=1, max_size=3).map(tuple)
    edges = tuple(data.draw(st.one_of(st.integers(1, 6), runs)) for _ in range(ndim))
    shape = tuple(
        data.draw(st.integers(1, 9)) if isinstance(edge, int) else sum(n * count for n, count in edge) for edge in edges
    )
    dtype = np.dtype(data.draw(st.sampled_from(["<i4", ">f8", ">i2"])))
    values = (np.arange(np.prod(shape)).reshape(shape) * 2 + 3).astype(dtype)
    kinds = [kind for kind in KINDS if kind != "packed" or dtype.kind == "f"]
    made = Craft(
        tmp_path_factory.mktemp("craft"),
        values,
        edges,
        filters=data.draw(st.sampled_from(["none", "shuffle+deflate"])),
        choose=lambda: data.draw(st.sampled_from(kinds)),
        fill=5,
    )
    least = data.draw(st.sampled_from([1, 40, 1 << 20]))
    with pytest.MonkeyPatch.context() as patch:
        # Small limits, so that small arrays meet them.
        patch.setattr("refindex.serve.plain._LEAST", least)
        patch.setattr("refindex.serve.plain._MOST", max(least, 100))
        keys = plain_keys(ManifestKeys(Resolver(MemoryReader(made.manifest))))
        array: Any = zarr.open_array(PlainStore(Opening(manifest=made.manifest), keys=keys), path="a", mode="r")
        assert np.array_equal(array[...], made.values)
        assert array.dtype == dtype.newbyteorder("<")
        # What is listed is what there is, and what is not there is all fill value.
        listed = set(keys.keys("a/c"))
        counts = [range(-(-extent // n)) for extent, n in zip(shape, array.chunks, strict=True)]
        for place in itertools.product(*counts):
            key = "/".join(("a/c", *map(str, place)))
            found = keys.read(key)
            assert (key in listed) is (found is not None) is keys.exists(key)
            assert keys.size(key) == (None if found is None else len(found))
            if found is None:
                box = tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, array.chunks, strict=True))
                assert (made.values[box] == 5).all()


def test_sizes_of_unequal_chunks() -> None:
    """A year in months becomes chunks of a month; small ones are taken together, large ones divided."""
    months = ((31, 1), (28, 1), (31, 1), (30, 1), (31, 1), (30, 1), (31, 2), (30, 1), (31, 1), (30, 1), (31, 1))
    grid = ChunkGrid(shape=(365, 180, 360), edges=(months, 180, 360))
    assert plain_grid(grid, 4).edges == (31, 180, 360)
    assert plain_grid(ChunkGrid(shape=(365,), edges=(months,)), 8).edges == (365,)
    large = plain_grid(ChunkGrid(shape=(365, 1800, 3600), edges=(months, 1800, 3600)), 4)
    assert large.edges == (1, 1800, 3600)
    regular = ChunkGrid.regular((10, 10), (3, 10))
    assert plain_grid(regular, 8) is regular


def test_strings_in_unequal_chunks(tmp_path: Path) -> None:
    """Strings of any length keep their codec; their chunks become equal all the same."""
    expected = [f"Ort {i} ü" * (i % 3) for i in range(9)]
    codec, blocks = VLenUTF8(), []
    for begin, end in ((0, 3), (3, 5), (5, 9)):
        blocks.append(bytes(codec.encode(np.array(expected[begin:end], dtype=object))))
    grid = ChunkGrid(shape=(9,), edges=(((3, 1), (2, 1), (4, 1)),))
    document = array_document(
        grid=grid,
        data_type="string",
        codecs=[{"name": "vlen-utf8", "configuration": {}}],
        fill_value="",
        dimension_names=["station"],
        attributes={},
    )
    lengths = np.array([len(block) for block in blocks])
    table = ChunkTable.from_columns(
        chunk=np.arange(3),
        source=np.full(3, INLINE),
        offset=np.cumsum(lengths) - lengths,
        length=lengths,
        encoding=np.full(3, DECLARED),
        data=b"".join(blocks),
    )
    array = Array(path="name", document=dumps(document), chunks=table)
    Manifest(groups={"": EMPTY_ROOT}, arrays={"name": array}).save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex") as archive:
        served: Any = zarr.open_array(archive.plain_store, path="name", mode="r")
        assert served.chunks == (9,)
        assert served[...].tolist() == expected
        size = archive.plain_store.keys.size("name/c/0")
        assert size == len(archive.plain_store.keys.read("name/c/0") or b"")


def test_a_source_that_is_gone_is_no_absent_chunk(weather: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weather.nc"
    copy.write_bytes(weather.read_bytes())
    refindex.scan(copy).save(tmp_path / "a.refindex")
    copy.unlink()
    with refindex.open(tmp_path / "a.refindex") as archive, pytest.raises(refindex.SourceError, match="no such file"):
        archive.plain_store.keys.read("t2m/c/0/0/0")


def test_it_travels(weather: Path, tmp_path: Path) -> None:
    refindex.scan(weather).save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex") as archive:
        again = pickle.loads(pickle.dumps(archive.plain_store))
        assert again == archive.plain_store
        assert again != archive.store
        one, other = (
            asyncio.run(store.get("t2m/c/0/0/0", default_buffer_prototype())) for store in (again, archive.plain_store)
        )
        assert one.to_bytes() == other.to_bytes()


class FillablePlainStore(PlainStore):
    """The store over a dictionary that the suite can fill."""

    def __init__(self, archive: Opening, *, keys: Any = None, read_only: bool = True) -> None:
        super().__init__(archive, keys=keys or ScratchKeys(), read_only=read_only)

    async def set(self, key: str, value: Buffer) -> None:
        self.keys.data[key] = value.to_bytes()  # type: ignore[attr-defined]

    async def refuse(self, key: str, value: Buffer) -> None:
        await PlainStore.set(self, key, value)


class TestPlainStore(test_store_contract.TestRefindexStore):
    store_cls = FillablePlainStore

    def test_store_repr(self, store: Any) -> None:
        assert str(store) == "refindex-plain::memory://contract"
        assert repr(store) == "PlainStore('refindex-plain::memory://contract')"
