"""Carrying out a plan: bounded concurrent requests, decoded in threads as they arrive, straight into the result."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any

import numpy as np

from refindex.access.files import SourcePool
from refindex.access.ranges import Requests
from refindex.errors import RefindexError, SourceError
from refindex.serve import workers
from refindex.serve.plan import Plan
from refindex.serve.scatter import Scatter

CONCURRENCY = 128
"""Requests to remote sources that are under way at the same time."""

IN_FLIGHT = 64 << 20
"""Bytes of remote sources that are asked for, or have arrived and are not decoded: what a selection takes in memory,
however large it is."""

_SMALL = 16 << 10
"""Mean decoded bytes of a chunk below which several threads would only wait for each other: for the interpreter."""

_WORTH_THREADS = 1 << 19
"""Bytes to decode below which handing them to other threads takes longer than decoding them."""

_BATCHED = 32 << 10
"""Bytes of a local request below which it is read and decoded together with others."""

_DIRECT = 8 << 10
"""Mean bytes of a range from which on it is read straight to where it goes."""


class Reading:
    """One selection that is being read.

    Parameters
    ----------
    plan:
        What to read.
    scatter:
        Where it goes.
    pool:
        The sources.
    """

    def __init__(self, plan: Plan, scatter: Scatter, pool: SourcePool) -> None:
        self._plan = plan
        self._scatter = scatter
        self._pool = pool
        self._error: BaseException | None = None
        self._stopped = threading.Event()
        self._bounds: list[tuple[int, int, int, int, int]] = []

    @property
    def is_light(self) -> bool:
        """Whether it takes little enough, and nothing that waits, to be done on an event loop."""
        plan = self._plan
        return not len(plan.remote) and plan.nbytes < 1 << 18 and plan.decoded_nbytes < 1 << 20 and plan.chunks < 512

    def stop(self) -> None:
        """Let :meth:`run` in another thread end soon."""
        self._stopped.set()

    def run(self) -> None:
        """Read and decode everything.

        Raises
        ------
        SourceError, DecodeError
            The first failure; what has not begun by then is not done.
        """
        self._scatter.absent()
        self._scatter.inline()
        if len(self._plan.remote):
            self._run_remote()
        if len(self._plan.local):
            self._run_local()

    def _threads(self, requests: int) -> int:
        """How many threads are of use."""
        plan = self._plan
        decoded = max(plan.decoded_nbytes if not plan.parts else 0, plan.nbytes)
        if decoded < _WORTH_THREADS or decoded < _SMALL * max(1, len(plan.row)):
            return 1
        return min(workers.count(), requests)

    def _run_local(self) -> None:
        requests = self._plan.local
        columns = (requests.first[:-1], requests.first[1:], requests.source, requests.start, requests.stop)
        self._bounds = list(zip(*(column.tolist() for column in columns), strict=True))
        units = _units(requests, self._plan.limit)
        numbers = itertools.count()  # next() is atomic

        def work() -> None:
            try:
                while not self._stopped.is_set() and (number := next(numbers)) < len(units):
                    begin, end = units[number]
                    if end - begin == 1:
                        self._local(requests, begin)
                    else:
                        self._batch(requests, begin, end)
            except BaseException as error:  # also what ends the process: the other threads must not go on
                self._fail(error)

        helpers = [workers.decoding().submit(work) for _ in range(self._threads(len(units)) - 1)]
        work()
        for helper in helpers:
            if not helper.cancel():  # it has not begun: all is done already
                helper.result()
        if self._error is not None:
            raise self._error
        if self._stopped.is_set():
            raise SourceError("reading was cancelled")

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        self._stopped.set()

    def _local(self, requests: Requests, number: int) -> None:
        first, last, source, start, stop = self._bounds[number]
        alone = int(requests.order[first]) if last - first == 1 else -1
        if alone >= 0:
            target = self._scatter.target(alone) if stop - start >= _DIRECT else None
            targets = None if target is None else [target]
        else:
            targets = self._targets(requests, first, last, start, stop)
        buffers = targets if targets is not None else [workers.scratch(stop - start)]
        try:
            self._pool.read_into(source, start, buffers)
        except SourceError as error:
            raise self._scatter.unread(self._plan.row[requests.order[first:last]], error) from error
        if targets is not None:
            return
        if alone >= 0:
            self._scatter.one(alone, buffers[0])
        else:
            ranges = requests.order[first:last]
            self._scatter.arrived(ranges, self._plan.offset[ranges] - start, buffers[0])

    def _batch(self, requests: Requests, begin: int, end: int) -> None:
        """Many small requests: what Python does for each takes longer than reading it."""
        some = slice(begin, end)
        starts, sizes = requests.start[some], requests.stop[some] - requests.start[some]
        try:
            data = self._pool.read_each(requests.source[some].tolist(), starts.tolist(), sizes.tolist())
        except SourceError:
            for number in range(begin, end):
                self._local(requests, number)  # finds the one that fails, and names it
            return
        ranges = requests.order[int(requests.first[begin]) : int(requests.first[end])]
        shift = np.repeat(np.cumsum(sizes) - sizes - starts, np.diff(requests.first[begin : end + 1]))
        self._scatter.arrived(ranges, self._plan.offset[ranges] + shift, memoryview(data))

    def _targets(self, requests: Requests, first: int, last: int, start: int, stop: int) -> list[memoryview] | None:
        """Memory of the result, and some to throw away between, into which a request can be read directly."""
        if stop - start < _DIRECT * (last - first) or last - first > 256:
            return None
        ranges = requests.order[first:last]
        offsets = self._plan.offset[ranges]
        gaps = offsets[1:] - (offsets + self._plan.length[ranges])[:-1]
        if bool((gaps < 0).any()):
            return None
        cuts = (np.flatnonzero(gaps) + 1).tolist()
        found: list[memoryview] = []
        for begin, end in itertools.pairwise([0, *cuts, len(ranges)]):
            if begin:
                found.append(memoryview(bytearray(int(gaps[begin - 1]))))
            region = self._scatter.region(ranges[begin:end]) if end - begin > 1 else None
            targets = [region] if region is not None else map(self._scatter.target, ranges[begin:end].tolist())
            for target in targets:
                if target is None:
                    return None
                found.append(target)
        return found

    def _run_remote(self) -> None:
        requests = self._plan.remote
        sizes = (requests.stop - requests.start).tolist()
        arrived: SimpleQueue[tuple[int, Future[Any]]] = SimpleQueue()
        pending: dict[int, Future[Any]] = {}
        decoding: set[int] = set()
        threads = self._threads(len(requests))
        waiting: Iterator[int] = iter(range(len(requests)))
        following = next(waiting, None)
        in_flight = 0
        try:
            while following is not None or pending:
                while (
                    following is not None
                    and len(pending) < CONCURRENCY
                    and (not pending or in_flight + sizes[following] <= IN_FLIGHT)
                ):
                    pending[following] = self._ask(requests, following)
                    in_flight += sizes[following]
                    pending[following].add_done_callback(_putting(arrived, following))
                    following = next(waiting, None)
                number, future = arrived.get()
                found = future.result()
                if number in decoding or threads == 1 or self._stopped.is_set():
                    if number not in decoding:
                        self._decode(requests, number, found)
                    decoding.discard(number)
                    del pending[number]
                    in_flight -= sizes[number]
                else:
                    decoding.add(number)
                    pending[number] = workers.decoding().submit(self._decode, requests, number, found)
                    del found
                    pending[number].add_done_callback(_putting(arrived, number))
                if self._stopped.is_set():
                    raise SourceError("reading was cancelled")
        finally:
            for future in pending.values():
                future.cancel()
            wait([pending[number] for number in decoding])

    def _ask(self, requests: Requests, number: int) -> Future[Any]:
        source, start = int(requests.source[number]), int(requests.start[number])
        length = int(requests.stop[number]) - start
        try:
            reader = self._pool.remote(source)
        except SourceError as error:
            raise self._named(requests, number, error) from error
        loop = reader.loop
        if loop is None:
            return workers.waiting().submit(self._read, requests, number, source, start, length)
        return asyncio.run_coroutine_threadsafe(self._fetch(reader, requests, number, source, start, length), loop)

    def _read(self, requests: Requests, number: int, source: int, start: int, length: int) -> bytes:
        try:
            return self._pool.read(source, start, length)
        except SourceError as error:
            raise self._named(requests, number, error) from error

    async def _fetch(self, reader: Any, requests: Requests, number: int, source: int, start: int, length: int) -> bytes:
        try:
            return await self._pool.fetch(reader, source, start, length)
        except SourceError as error:
            raise self._named(requests, number, error) from error

    def _named(self, requests: Requests, number: int, error: SourceError) -> RefindexError:
        ranges = requests.order[int(requests.first[number]) : int(requests.first[number + 1])]
        return self._scatter.unread(self._plan.row[ranges], error)

    def _decode(self, requests: Requests, number: int, data: bytes) -> None:
        if self._error is not None:
            return
        first, last = int(requests.first[number]), int(requests.first[number + 1])
        ranges = requests.order[first:last]
        self._scatter.arrived(ranges, self._plan.offset[ranges] - int(requests.start[number]), memoryview(data))


def _units(requests: Requests, limit: int) -> list[tuple[int, int]]:
    """Requests that are made and decoded together: first and last-plus-one of each group."""
    sizes = requests.stop - requests.start
    small = sizes < _BATCHED
    if not bool(small.any()):
        return [(number, number + 1) for number in range(len(sizes))]
    group = np.cumsum(np.where(small, sizes, 0)) // limit
    cuts = np.flatnonzero(~small[1:] | ~small[:-1] | (group[1:] != group[:-1])) + 1
    bounds = [0, *cuts.tolist(), len(sizes)]
    return list(itertools.pairwise(bounds))


def _putting(queue: SimpleQueue[tuple[int, Future[Any]]], number: int) -> Callable[[Future[Any]], None]:
    return lambda future: queue.put((number, future))
