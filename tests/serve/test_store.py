"""The store over real manifests, beside zarr's MemoryStore holding the same keys."""

from __future__ import annotations

from collections.abc import Iterator

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.core.buffer.core import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

import refindex

PROTOTYPE = default_buffer_prototype()


async def _collect(source):
    return [item async for item in source]


@pytest.fixture(scope="module", params=["refindex", "sqlite", "memory"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[refindex.Archive]:
    folder = tmp_path_factory.mktemp("store")
    source = folder / "c.h5"
    with h5py.File(source, "w") as file:
        # Names that look like chunk keys, chunks that are missing, and a chunk that must be adapted.
        group = file.create_group("c")
        data = group.create_dataset("c", (40, 30), "i4", chunks=(8, 8), compression="gzip", shuffle=True)
        data[:20] = np.arange(600).reshape(20, 30)
        file.create_dataset("c/10", data=np.arange(2000.0), chunks=(700,))
        masked = file.create_dataset("masked", (2000,), "i2", chunks=(1000,), compression="gzip")
        masked[:1000] = np.arange(1000)
        masked.id.write_direct_chunk((1000,), np.arange(1000, dtype="i2").tobytes(), filter_mask=1)
        file["scalar"] = np.arange(300, dtype="f4").reshape(3, 100)
        file["text"] = "ä"
    if request.param == "memory":
        opened = refindex.open(source)
    else:
        refindex.scan(source).save(folder / f"a.{request.param}")
        opened = refindex.open(folder / f"a.{request.param}")
    with opened:
        yield opened


@pytest.fixture(scope="module")
def memory(archive: refindex.Archive) -> MemoryStore:
    """The same keys and values in zarr's own store."""
    store = MemoryStore()

    async def copy() -> None:
        async for key in archive.store.list():
            value = await archive.store.get(key, PROTOTYPE)
            assert value is not None
            await store.set(key, value)

    sync(copy())
    return store


def test_keys_are_those_of_the_chunks_that_exist(archive: refindex.Archive, memory: MemoryStore) -> None:
    keys = sorted(sync(_collect(archive.store.list())))
    assert len(keys) == len(set(keys))
    assert [k for k in keys if k.startswith("c/c/c/")] == sorted(f"c/c/c/{i}/{j}" for i in range(3) for j in range(4))
    assert {"zarr.json", "c/zarr.json", "c/c/zarr.json", "c/10/c/2", "text/c", "masked/c/1"} <= set(keys)


@pytest.mark.parametrize(
    "prefix",
    ["", "c", "c/", "c/c", "c/c/", "c/c/c", "c/c/c/1", "c/c/c/1/", "c/1", "c/10/c/", "masked", "x", "zarr.json"],
)
def test_listing_equals_memory_store(archive: refindex.Archive, memory: MemoryStore, prefix: str) -> None:
    assert sorted(sync(_collect(archive.store.list_prefix(prefix)))) == sorted(
        sync(_collect(memory.list_prefix(prefix)))
    )
    if not prefix.endswith("zarr.json"):
        assert sorted(sync(_collect(archive.store.list_dir(prefix)))) == sorted(
            set(sync(_collect(memory.list_dir(prefix))))
        )


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_values_and_ranges_equal_memory_store(
    data: st.DataObject, archive: refindex.Archive, memory: MemoryStore
) -> None:
    keys = sorted(sync(_collect(memory.list())))
    key = data.draw(
        st.sampled_from([*keys, "c/c/c/4/0", "c/c/c/0/4", "c/c/c/00/0", "c/c/c/0", "nothing", "c/c/zarr", ""])
    )
    numbers = st.integers(0, 5000)
    part = data.draw(
        st.none()
        | st.tuples(numbers, numbers).map(lambda t: RangeByteRequest(min(t), max(t) + 1))
        | numbers.map(OffsetByteRequest)
        | numbers.map(lambda n: SuffixByteRequest(n + 1))
    )
    ours = sync(archive.store.get(key, PROTOTYPE, part))
    theirs = sync(memory.get(key, PROTOTYPE, part))
    assert (None if ours is None else ours.to_bytes()) == (None if theirs is None else theirs.to_bytes())
    assert sync(archive.store.exists(key)) == sync(memory.exists(key))
    if theirs is not None:
        assert sync(archive.store.getsize(key)) == sync(memory.getsize(key))


def test_consolidated_metadata_of_every_group(archive: refindex.Archive) -> None:
    for path in ("", "c"):
        group = zarr.open_group(archive.store, path=path, mode="r", zarr_format=3)
        consolidated = group.metadata.consolidated_metadata
        assert consolidated is not None
        plain = zarr.open_group(archive.store, path=path, mode="r", zarr_format=3, use_consolidated=False)
        assert dict(group.members(max_depth=None)).keys() == dict(plain.members(max_depth=None)).keys()
        for name, array in plain.arrays():
            assert group[name].metadata.to_dict() == array.metadata.to_dict()


def test_opening_takes_one_get(archive: refindex.Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    get = type(archive.store).get

    async def counting(self, key, *args, **kwargs):
        asked.append(key)
        return await get(self, key, *args, **kwargs)

    monkeypatch.setattr(type(archive.store), "get", counting)
    zarr.open_group(archive.store, mode="r", zarr_format=3)
    assert asked == ["zarr.json"]


def test_absent_chunks_read_no_source(archive: refindex.Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    from refindex.access.files import SourcePool

    def no_read(*_: object) -> bytes:
        raise AssertionError("a source was read")

    monkeypatch.setattr(SourcePool, "read", no_read)
    monkeypatch.setattr(SourcePool, "read_async", no_read)
    assert np.all(archive.group["c/c"][24:, :] == 0)


def test_whole_tree_is_usable_from_several_threads(archive: refindex.Archive) -> None:
    from concurrent.futures import ThreadPoolExecutor

    array = archive.group["c/c"]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: array[:20], range(32)))
    assert all(np.array_equal(r, np.arange(600).reshape(20, 30)) for r in results)
