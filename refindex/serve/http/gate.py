"""What stands between requests and an archive: bounded reading, bounded memory, each chunk decoded once.

All of it belongs to one event loop.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import numpy as np

from refindex.serve.cache import ChunkCache
from refindex.serve.keys import HierarchyKeys
from refindex.serve.resolver import WHOLE, ByteRange

type Data = bytes | memoryview


class BusyError(Exception):
    """The answers that are being sent leave no room for another one, for too long."""


class Room:
    """Bytes of answers that are read and not yet sent.

    Parameters
    ----------
    nbytes:
        How many there may be. An answer that is larger has to be the only one.
    patience:
        Seconds to wait for room.
    """

    def __init__(self, nbytes: int, patience: float) -> None:
        self._nbytes = nbytes
        self._patience = patience
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.held = 0

    def _fits(self, nbytes: int) -> bool:
        return not self.held or self.held + nbytes <= self._nbytes

    async def take(self, nbytes: int) -> None:
        """Wait for room, in the order of the requests.

        Raises
        ------
        BusyError
            If there is none in time.
        """
        if not self._waiting and self._fits(nbytes):
            self.held += nbytes
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((nbytes, turn))
        try:
            async with asyncio.timeout(self._patience):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():  # it came, and was given up at the same moment
                self.give(nbytes)
            else:
                self._waiting = deque(waiting for waiting in self._waiting if waiting[1] is not turn)
                self._admit()
            if isinstance(error, TimeoutError):
                raise BusyError(f"no room for {nbytes} bytes in {self._patience:g} s: too many slow clients") from error
            raise

    def give(self, nbytes: int) -> None:
        """Give room back."""
        self.held -= nbytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][1].done() or self._fits(self._waiting[0][0])):
            nbytes, turn = self._waiting.popleft()
            if not turn.done():
                self.held += nbytes
                turn.set_result(None)


class Gate:
    """Reads keys for requests.

    A request that reads has one of a few slots until there is room for its answer: what it takes in memory is
    ``concurrency`` chunks with their stored bytes, the cache, and the room.

    Parameters
    ----------
    concurrency:
        Requests that read at the same time.
    cache_nbytes:
        Bytes of decoded chunks that are kept.
    room_nbytes, patience:
        Of the answers' :class:`Room`.
    """

    def __init__(self, *, concurrency: int, cache_nbytes: int, room_nbytes: int, patience: float) -> None:
        self._slots = asyncio.Semaphore(concurrency)
        self._cache = ChunkCache(cache_nbytes)
        self._decoding: dict[tuple[int, str], asyncio.Task[Data | None]] = {}
        self.room = Room(room_nbytes, patience)

    async def read(self, keys: HierarchyKeys, key: str, part: ByteRange = WHOLE) -> Data | None:
        """The bytes of a key, or of a part of it; None if there is positively no such key.

        As many bytes of :attr:`room` are taken, which whoever calls gives back.

        Raises
        ------
        BusyError
            If there is no room.
        """
        async with self._begun(lambda: self._read(keys, key, part)) as data:
            if data is not None:
                await self.room.take(len(data))
            return data

    @asynccontextmanager
    async def _begun[T](self, work: Callable[[], Coroutine[Any, Any, T]]) -> AsyncIterator[T]:
        """The result of some work, with one of the slots.

        Work that has begun is done, whether or not somebody still waits for it: threads cannot be stopped, and would
        otherwise be more than there are slots.
        """
        await self._slots.acquire()
        working = asyncio.create_task(work())
        try:
            yield await asyncio.shield(working)
        finally:
            if working.done():
                self._slots.release()
            else:
                working.add_done_callback(self._release)

    def _release(self, working: asyncio.Task[Any]) -> None:
        self._slots.release()
        if not working.cancelled():
            working.exception()  # nobody waits for it

    async def _read(self, keys: HierarchyKeys, key: str, part: ByteRange) -> Data | None:
        kept = self._kept(keys, key)
        if kept is None and not await self._decodes(keys, key):
            return await keys.read_async(key, part)
        data = kept if kept is not None else await self._decoded(keys, key)
        return None if data is None else data[slice(*part.within(len(data)))]

    async def size(self, keys: HierarchyKeys, key: str) -> int | None:
        """How many bytes a key has; None if there is positively no such key."""
        kept = self._kept(keys, key)
        if kept is not None:
            return len(kept)
        async with self._begun(lambda: self._size(keys, key)) as size:
            return size

    async def _size(self, keys: HierarchyKeys, key: str) -> int | None:
        found = keys.locate(key)
        if found is not None and len(found[0].codecs) > 1 and await self._decodes(keys, key):
            # Its size is known when it is encoded again, and it is likely to be asked for next.
            data = await self._decoded(keys, key)
            return None if data is None else len(data)
        return await asyncio.to_thread(keys.size, key)

    def _kept(self, keys: HierarchyKeys, key: str) -> Data | None:
        values = self._cache.get((id(keys), key))
        return None if values is None else values.data

    async def _decodes(self, keys: HierarchyKeys, key: str) -> bool:
        found = keys.locate(key)
        if found is None or not keys.hierarchy.may_decode(found[0]):
            return False
        return await asyncio.to_thread(keys.hierarchy.decodes, *found)

    async def _decoded(self, keys: HierarchyKeys, key: str) -> Data | None:
        """A whole chunk, decoded once for all who ask for it at the same time."""
        decoding = self._decoding.get((id(keys), key))
        if decoding is None:
            decoding = asyncio.create_task(self._decode(keys, key))
            self._decoding[id(keys), key] = decoding
            decoding.add_done_callback(lambda _: self._decoding.pop((id(keys), key), None))
        return await asyncio.shield(decoding)

    async def _decode(self, keys: HierarchyKeys, key: str) -> Data | None:
        data = await keys.read_async(key)
        if data is not None:
            self._cache.put((id(keys), key), np.frombuffer(data, dtype=np.uint8))
        return data
