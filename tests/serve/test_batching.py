"""Gets that arrive together are read together, and each is answered, fails or is given up on its own."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crafted import Craft
from hypothesis import given
from hypothesis import strategies as st

import refindex
from refindex.access.ranges import Merging
from refindex.serve.batching import BatchedReads
from refindex.serve.opening import Opening
from refindex.serve.zarr_store import RefindexStore

SIZE = 2000
DATA = [np.random.default_rng(n).integers(0, 256, SIZE).astype("u1").tobytes() for n in range(3)]
NEAR = Merging(gap=10, limit=500)


class Pool:
    """Sources in memory that take a while."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.cancelled = 0

    async def read_async(self, source: int, offset: int, length: int) -> bytes:
        self.asked.append((source, offset, length))
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if source >= len(DATA):
            raise RuntimeError(f"no source {source}")
        if offset + length > SIZE:
            raise refindex.SourceError(f"expected {length} bytes at {offset}")
        return DATA[source][offset : offset + length]


def reads(pool: Pool, **options: Any) -> BatchedReads:
    return BatchedReads(pool, merging=NEAR, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("window", [0, 0.001])
async def test_neighbours_are_one_request(window: float) -> None:
    pool = Pool()
    batched = reads(pool, window=window)
    wanted = [(0, at, 20) for at in range(100, 300, 25)] + [(1, 0, 50), (1, 1900, 100), (0, 110, 5)]
    found = await asyncio.gather(*(batched.read(*one) for one in wanted))
    assert found == [DATA[source][offset : offset + length] for source, offset, length in wanted]
    assert sorted(pool.asked) == [(0, 100, 195), (1, 0, 50), (1, 1900, 100)]
    assert not batched._tasks
    await batched.read(0, 100, 20)
    assert pool.asked[-1] == (0, 100, 20)


async def test_those_that_arrive_within_the_window_are_read_together() -> None:
    pool = Pool()
    batched = reads(pool, window=0.05)
    first = asyncio.create_task(batched.read(0, 0, 20))
    await asyncio.sleep(0.001)
    assert await batched.read(0, 20, 20) == DATA[0][20:40]
    assert await first == DATA[0][:20]
    assert pool.asked == [(0, 0, 40)]


@given(
    wanted=st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, SIZE + 10), st.integers(0, 700)), min_size=1, max_size=30
    ),
    given_up=st.sets(st.integers(0, 29)),
)
def test_each_on_its_own(wanted: list[tuple[int, int, int]], given_up: set[int]) -> None:
    async def run() -> None:
        pool = Pool()
        batched = reads(pool)
        tasks = [asyncio.create_task(batched.read(*one)) for one in wanted]
        await asyncio.sleep(0.005)
        for number in given_up:
            if number < len(tasks):
                tasks[number].cancel()
        found = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        for number, ((source, offset, length), answer) in enumerate(zip(wanted, found, strict=True)):
            if number in given_up:
                assert isinstance(answer, asyncio.CancelledError)
            elif source >= len(DATA):
                assert isinstance(answer, RuntimeError)
            elif offset + length > SIZE:
                assert isinstance(answer, refindex.SourceError)
                assert str(answer) == f"expected {length} bytes at {offset}"
            else:
                assert answer == DATA[source][offset : offset + length]
        await asyncio.sleep(0)
        assert not batched._tasks

    asyncio.run(run())


async def test_one_behind_the_end_is_no_failure_of_its_neighbours() -> None:
    pool = Pool()
    batched = reads(pool)
    wanted = [(0, 1900, 50), (0, 1950, 100), (0, 1940, 30)]
    found = await asyncio.gather(*(batched.read(*one) for one in wanted), return_exceptions=True)
    assert pool.asked == [(0, 1900, 150), *wanted[::2], wanted[1]]
    assert found[0] == DATA[0][1900:1950]
    assert str(found[1]) == "expected 100 bytes at 1950"
    assert found[2] == DATA[0][1940:1970]


async def test_what_nobody_waits_for_is_not_read() -> None:
    pool = Pool()
    batched = reads(pool)
    before = asyncio.create_task(batched.read(0, 0, 10))
    before.cancel()
    during = [asyncio.create_task(batched.read(0, at, 10)) for at in (100, 110)]
    await asyncio.sleep(0.002)
    assert pool.asked == [(0, 100, 20)]
    during[0].cancel()
    await asyncio.sleep(0.001)
    assert pool.cancelled == 0
    during[1].cancel()
    await asyncio.gather(before, *during, return_exceptions=True)
    await asyncio.sleep(0)
    assert (pool.cancelled, len(batched._tasks)) == (1, 0)


def test_several_event_loops() -> None:
    batched = reads(Pool())

    async def run() -> bool:
        found = await asyncio.gather(*(batched.read(0, at, 20) for at in range(0, 1000, 20)))
        return b"".join(found) == DATA[0][:1000]

    async def leave() -> None:
        asyncio.get_running_loop().call_soon(asyncio.create_task, batched.read(0, 0, 5))
        await asyncio.sleep(0)

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(lambda _: asyncio.run(run()), range(20)))
    asyncio.run(leave())  # a loop that ends before it has asked
    assert asyncio.run(run())


async def test_local_sources_are_read_as_before(tmp_path: Path) -> None:
    made = Craft(tmp_path, np.arange(100, dtype="<i4"), (10,))
    store = RefindexStore(Opening(manifest=made.manifest))
    found = await asyncio.gather(*(store.get(f"a/c/{n}") for n in range(10)))
    assert b"".join(part.to_bytes() for part in found if part is not None) == made.values.tobytes()
    resolver = store.keys.resolver
    assert resolver._batched is None
    assert resolver.pool.requests == 10
