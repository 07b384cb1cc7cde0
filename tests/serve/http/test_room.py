"""The room for answers: whoever comes first is first, nobody takes too much, and all is given back."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from asking import ask  # noqa: F401 -- which skips where there is no server
from hypothesis import given
from hypothesis import strategies as st

from refindex.serve.http.gate import BusyError, Room

BUDGET = 100


@given(
    plans=st.lists(
        st.tuples(st.integers(0, 130), st.integers(0, 4), st.none() | st.integers(0, 6)), min_size=1, max_size=12
    )
)
def test_room(plans: list[tuple[int, int, int | None]]) -> None:
    """Requests take room, hold it for some turns of the loop, and some are cancelled at any moment."""

    async def run() -> None:
        room, order, held = Room(BUDGET, 30), [], []

        async def request(number: int, nbytes: int, turns: int) -> None:
            await room.take(nbytes)
            held.append(nbytes)
            order.append(number)
            try:
                assert sum(held) <= BUDGET or len([n for n in held if n]) == 1
                for _ in range(turns):
                    await asyncio.sleep(0)
            finally:
                held.remove(nbytes)
                room.give(nbytes)

        tasks = [asyncio.create_task(request(n, nbytes, turns)) for n, (nbytes, turns, _) in enumerate(plans)]
        for moment in range(7):
            for task, (_, _, cancelled) in zip(tasks, plans, strict=True):
                if cancelled == moment:
                    task.cancel()
            await asyncio.sleep(0)
        async with asyncio.timeout(10):
            results: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results)
        assert room.held == 0
        assert not room._waiting
        assert order == sorted(order)

    asyncio.run(run())


async def test_no_room() -> None:
    room = Room(BUDGET, 0.05)
    await room.take(90)
    with pytest.raises(BusyError, match="20 bytes"):
        await room.take(20)
    await room.take(10)
    room.give(90)
    await room.take(90)
    assert room.held == BUDGET
