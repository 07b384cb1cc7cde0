"""A zarr-python store over an archive."""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Self

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from refindex.model.manifest import Node
from refindex.serve.keys import KeySpace, ManifestKeys
from refindex.serve.opening import Opening, open_keys
from refindex.serve.resolver import WHOLE, ByteRange


class KeysStore(Store):
    """Keys of an archive as a read-only Zarr v3 store.

    Parameters
    ----------
    archive:
        How to open the archive again: what pickling carries to another process.
    keys:
        Its keys if it is open already.
    """

    title: str
    protocol: str
    """How the store's representation and its name begin."""

    supports_writes: bool = False
    supports_deletes: bool = False
    supports_listing: bool = True

    def __init__(self, archive: Opening, *, keys: KeySpace | None = None, read_only: bool = True) -> None:
        if not read_only:
            raise ValueError("a refindex store is read-only: archives change through refindex.scan")
        super().__init__(read_only=True)
        self.archive = archive
        self._keys = keys
        self._opening = threading.Lock()

    @property
    def keys(self) -> KeySpace:
        if self._keys is None:
            with self._opening:  # several threads may ask first: one of them opens it
                if self._keys is None:
                    self._keys = self._open_keys()
        return self._keys

    @abstractmethod
    def _open_keys(self) -> KeySpace: ...

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.archive, keys=self._keys, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.archive == other.archive

    def __hash__(self) -> int:
        return hash(self.archive)

    def __repr__(self) -> str:
        return f"{self.title}({str(self)!r})"

    def __str__(self) -> str:
        return f"{self.protocol}::{self.archive}"

    def __getstate__(self) -> dict[str, Any]:
        return {"archive": self.archive, "is_open": self._is_open}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._read_only = True
        self._is_open = state["is_open"]
        self.archive = state["archive"]
        self._keys = None
        self._opening = threading.Lock()

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        if not self._is_open:
            await self._open()
        data = await self.keys.read_async(key, _part(byte_range))
        return None if data is None else (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(self.keys.exists, key)

    async def getsize(self, key: str) -> int:
        size = await asyncio.to_thread(self.keys.size, key)
        if size is None:
            raise FileNotFoundError(key)
        return size

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()

    async def delete(self, key: str) -> None:
        self._check_writable()

    async def list(self) -> AsyncIterator[str]:
        for key in self.keys.keys(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        for key in self.keys.keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        for name, _ in self.keys.children(prefix.strip("/")):
            yield name


class RefindexStore(KeysStore):
    """An archive as a read-only Zarr v3 store, with chunks as it declares them."""

    title = "RefindexStore"
    protocol = "refindex"

    def _open_keys(self) -> KeySpace:
        return open_keys(self.archive)

    @property
    def nodes(self) -> Mapping[str, Node]:
        """Groups and arrays of the archive by path."""
        if not isinstance(self.keys, ManifestKeys):
            raise TypeError(f"{self} is not a store over a manifest")
        return self.keys.resolver.reader.nodes


def _part(request: ByteRequest | None) -> ByteRange:
    match request:
        case None:
            return WHOLE
        case RangeByteRequest(start, end):
            return ByteRange(start=start, stop=end)
        case OffsetByteRequest(offset):
            return ByteRange(start=offset)
        case SuffixByteRequest(suffix):
            return ByteRange(start=-suffix) if suffix else ByteRange(stop=0)
    raise ValueError(f"Unexpected byte_range, got {request!r}; expected a zarr ByteRequest or None")
