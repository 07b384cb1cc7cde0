"""Concurrent reads of remote ranges as few requests: what arrives on an event loop together is read together."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

import numpy as np

from refindex.access.files import SourcePool
from refindex.access.ranges import REMOTE, Merging, merge
from refindex.errors import SourceError

WINDOW = 0.001
"""Seconds for which a range waits for others, where they do not all arrive in one turn of the loop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    """A range, and who waits for it."""

    source: int
    offset: int
    length: int
    answer: asyncio.Future[bytes]


class _Turn(threading.local):
    """What has arrived on the event loop of this thread and is not asked for yet."""

    loop: asyncio.AbstractEventLoop | None = None
    waiting: tuple[_Waiting, ...] | list[_Waiting] = ()


class BatchedReads:
    """Ranges of remote sources for callers that ask for one at a time. Each is answered, or fails, on its own.

    Safe to use from several threads and event loops: each loop has batches of its own.

    Parameters
    ----------
    pool:
        The sources.
    window:
        Seconds to wait for further ranges; 0 waits for those that are asked for in the same turn of the event loop.
    merging:
        When ranges become one request.
    """

    def __init__(self, pool: SourcePool, *, window: float = 0, merging: Merging = REMOTE) -> None:
        self._pool = pool
        self._window = window
        self._merging = merging
        self._turn = _Turn()
        self._tasks: set[asyncio.Task[None]] = set()

    async def read(self, source: int, offset: int, length: int) -> bytes:
        """Bytes ``[offset, offset + length)`` of a source.

        Raises
        ------
        SourceError
            If they cannot be read, or fewer come back.
        """
        loop = asyncio.get_running_loop()
        turn = self._turn
        if turn.loop is not loop or not isinstance(turn.waiting, list):
            # A loop that was closed with ranges waiting has nobody left who waits for them.
            waiting: list[_Waiting] = []
            turn.loop, turn.waiting = loop, waiting
            if self._window:
                loop.call_later(self._window, self._ask, loop, waiting)
            else:
                loop.call_soon(self._ask, loop, waiting)
        else:
            waiting = turn.waiting
        answer: asyncio.Future[bytes] = loop.create_future()
        waiting.append(_Waiting(source=source, offset=offset, length=length, answer=answer))
        return await answer

    def _ask(self, loop: asyncio.AbstractEventLoop, waiting: list[_Waiting]) -> None:
        """Make the requests for what has arrived; those who gave up before are not asked for."""
        if self._turn.waiting is waiting:
            self._turn.waiting = ()
        some = [one for one in waiting if not one.answer.done()]
        columns = np.array([(one.source, one.offset, one.length) for one in some], dtype=np.int64).reshape(-1, 3)
        requests = merge(columns[:, 0], columns[:, 1], columns[:, 2], self._merging)
        for number in range(len(requests)):
            order = requests.order[int(requests.first[number]) : int(requests.first[number + 1])]
            members = [some[at] for at in order.tolist()]
            task = loop.create_task(
                self._answer(
                    int(requests.source[number]), int(requests.start[number]), int(requests.stop[number]), members
                )
            )
            self._tasks.add(task)  # the loop itself keeps no task alive
            task.add_done_callback(self._tasks.discard)
            for one in members:
                one.answer.add_done_callback(lambda _, task=task, members=members: _give_up(task, members))

    async def _answer(self, source: int, start: int, stop: int, members: list[_Waiting]) -> None:
        try:
            data = await self._pool.read_async(source, start, stop - start)
        except SourceError as error:
            if len(members) == 1:
                _fail(members, error)
                return
            # One of them may lie behind the end of the file, which is no failure of the others.
            await asyncio.gather(
                *(
                    self._answer(source, one.offset, one.offset + one.length, [one])
                    for one in members
                    if not one.answer.done()
                )
            )
        except asyncio.CancelledError:
            for one in members:
                one.answer.cancel()
            raise
        except Exception as error:
            _fail(members, error)
        else:
            for one in members:
                if not one.answer.done():
                    at = one.offset - start
                    one.answer.set_result(data if one.length == stop - start else data[at : at + one.length])


def _fail(members: list[_Waiting], error: Exception) -> None:
    for one in members:
        if not one.answer.done():
            one.answer.set_exception(error)


def _give_up(task: asyncio.Task[None], members: list[_Waiting]) -> None:
    """Cancel a request for which nobody waits any more."""
    if not task.done() and all(one.answer.cancelled() for one in members):
        task.cancel()
