"""zarr's own contract suite for stores, run on ours."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from scratch import ScratchKeys
from zarr.core.buffer import Buffer, cpu
from zarr.core.buffer.core import default_buffer_prototype
from zarr.testing.store import StoreTests

from refindex.serve.opening import Opening
from refindex.serve.zarr_store import RefindexStore

READ_ONLY = "refindex stores are read-only: archives change through refindex.scan, never through zarr"


class FillableStore(RefindexStore):
    """Our store over a dictionary that the suite can fill; all reading and listing is the real store's."""

    def __init__(self, archive: Opening, *, keys: Any = None, read_only: bool = True) -> None:
        super().__init__(archive, keys=keys or ScratchKeys(), read_only=read_only)

    async def set(self, key: str, value: Buffer) -> None:
        self.keys.data[key] = value.to_bytes()

    async def refuse(self, key: str, value: Buffer) -> None:
        await RefindexStore.set(self, key, value)


class TestRefindexStore(StoreTests[FillableStore, cpu.Buffer]):
    store_cls = FillableStore
    buffer_cls = cpu.Buffer

    async def set(self, store: FillableStore, key: str, value: Buffer) -> None:
        store.keys.data[key] = value.to_bytes()

    async def get(self, store: FillableStore, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(store.keys.data[key])

    @pytest.fixture
    def store_kwargs(self) -> dict[str, Any]:
        return {"archive": Opening(url="memory://contract")}

    def test_store_repr(self, store: FillableStore) -> None:
        assert str(store) == "refindex::memory://contract"
        assert repr(store) == "RefindexStore('refindex::memory://contract')"

    def test_store_supports_writes(self, store: FillableStore) -> None:
        assert not store.supports_writes
        assert not store.supports_deletes

    def test_store_supports_listing(self, store: FillableStore) -> None:
        assert store.supports_listing

    def test_store_read_only(self, store: FillableStore) -> None:
        assert store.read_only
        with pytest.raises(AttributeError):
            store.read_only = False  # type: ignore[misc]

    @pytest.mark.parametrize("read_only", [True, False])
    async def test_store_open_read_only(self, open_kwargs: dict[str, Any], read_only: bool) -> None:
        if read_only:
            await super().test_store_open_read_only(open_kwargs, read_only)
        else:
            with pytest.raises(ValueError, match="read-only"):
                await self.store_cls.open(**open_kwargs, read_only=False)

    async def test_read_only_store_raises(self, open_kwargs: dict[str, Any]) -> None:
        store = await self.store_cls.open(**open_kwargs)
        with pytest.raises(ValueError, match="read-only mode and does not support writing"):
            await store.refuse("foo", self.buffer_cls.from_bytes(b"bar"))
        with pytest.raises(ValueError, match="read-only mode and does not support writing"):
            await store.delete("foo")

    async def test_with_read_only_store(self, store: FillableStore) -> None:
        again = store.with_read_only(read_only=True)
        assert again == store
        assert again.read_only
        with pytest.raises(ValueError, match="read-only"):
            store.with_read_only(read_only=False)

    async def test_serializable_store(self, store: FillableStore) -> None:
        again = pickle.loads(pickle.dumps(store))
        assert again == store
        assert again.read_only

    @pytest.mark.skip(reason=READ_ONLY)
    async def test_set(self) -> None: ...

    @pytest.mark.skip(reason=READ_ONLY)
    async def test_set_not_open(self) -> None: ...

    @pytest.mark.skip(reason=READ_ONLY)
    async def test_set_many(self) -> None: ...

    @pytest.mark.skip(reason=READ_ONLY)
    async def test_set_if_not_exists(self) -> None: ...

    @pytest.mark.skip(reason=READ_ONLY)
    async def test_clear(self) -> None: ...


async def test_a_real_store_round_trips_through_pickle(weather: Path, tmp_path: Path) -> None:
    import refindex

    refindex.scan(weather).save(tmp_path / "a.refindex")
    for where in (tmp_path / "a.refindex", weather):
        with refindex.open(where) as archive:
            key = "t2m/c/0/0/0"
            expected = await archive.store.get(key, default_buffer_prototype())
            again = pickle.loads(pickle.dumps(archive.store))
            assert again == archive.store
            observed = await again.get(key, default_buffer_prototype())
            assert expected is not None
            assert observed is not None
            assert observed.to_bytes() == expected.to_bytes()
