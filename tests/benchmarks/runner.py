"""Runs tables: makes their data, measures the cases in turns in processes of their own, ends what takes too long."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.benchmarks.suite import Case, Data, Table

ROOT = Path(__file__).parents[2]

_SET_UP = 180
"""Seconds for imports, making data and the run on tiny data."""


class Failure(Exception):
    """A request that a worker could not fulfil."""


class TooSlow(Failure):
    """A request that took longer than it may; the worker is ended."""


class Process:
    """A worker process. Ended, with what it started, by its own process group and no other."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "worker.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.benchmarks.worker", repr(time.monotonic()), str(folder)],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                start_new_session=True,
            )
        self._pending = b""

    def ask(self, request: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a request and wait for its answer.

        Raises
        ------
        TooSlow
            If there is none in time.
        Failure
            If the worker ends, or answers with an error.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
        except BrokenPipeError as error:
            raise Failure("the process has ended") from error
        descriptor = self._process.stdout.fileno()
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                self.close(kill=True)
                raise TooSlow(f"over {timeout:g} s")
            received = os.read(descriptor, 1 << 16)
            if not received:
                self.close()
                raise Failure(f"the process ended with code {self._process.returncode}; its errors are below")
            self._pending += received
        line, self._pending = self._pending.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failure(answer["error"])
        return answer

    def close(self, *, kill: bool = False) -> None:
        """Let the process end; with ``kill``, or if it does not within ten seconds, end it."""
        if not kill and self._process.poll() is None:
            with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
                if self._process.stdin is not None:
                    self._process.stdin.close()
                self._process.wait(timeout=10)
        if self._process.poll() is None:
            # Not waited for yet, so the number is still that of this process and of its group.
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None


@dataclass(slots=True, kw_only=True)
class Row:
    """A case and its samples; ``problem`` says why there are none, ``failed`` whether that is an error."""

    case: Case
    samples: list[dict[str, float]] = field(default_factory=list)
    problem: str = ""
    failed: bool = False

    def least(self, name: str) -> float:
        return min(sample[name] for sample in self.samples)

    @property
    def memory(self) -> float:
        """The largest of all runs."""
        return max(sample["memory"] for sample in self.samples)


@dataclass(slots=True, kw_only=True)
class Result:
    """A table and its rows."""

    table: Table
    rows: list[Row]

    def ratio(self, row: Row) -> float | None:
        """Least wall time over the least wall time of the baseline."""
        if not (row.samples and self.rows[0].samples):
            return None
        return row.least("wall") / self.rows[0].least("wall")

    def median_ratio(self, row: Row) -> float | None:
        """Median over the rounds of the ratio to the baseline in the same round."""
        pairs = list(zip(row.samples, self.rows[0].samples, strict=False))
        return statistics.median(a["wall"] / b["wall"] for a, b in pairs) if pairs else None


class Runner:
    """Measures tables in a folder.

    Parameters
    ----------
    folder:
        Where data are made and results are written; what is there from an earlier run is used again.
    repeats:
        Rounds.
    peers:
        Whether other projects' tools are measured too, where they are installed.
    shared:
        One process for everything that need not be cold: fast, and good for no more than to see that it works.
    """

    def __init__(self, folder: Path, *, repeats: int, peers: bool, shared: bool) -> None:
        self._folder = folder
        self._repeats = repeats
        self._peers = peers
        self._expected: dict[str, dict[str, int]] = {}
        self._numbers = itertools.count()
        self._shared = shared
        self._common: Process | None = None
        self._scratch = folder / "scratch"
        self._scratch.mkdir(parents=True, exist_ok=True)

    def close(self) -> None:
        if self._common is not None:
            self._common.close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    @property
    def log(self) -> str:
        """What the workers wrote to their standard errors."""
        path = self._scratch / "worker.log"
        return path.read_text(errors="replace") if path.exists() else ""

    @contextlib.contextmanager
    def _process(self) -> Iterator[Process]:
        """A process for one thing; the common one if it may be shared."""
        if self._shared:
            if self._common is None or self._common.ended:
                self._common = Process(self._scratch)
            yield self._common
            return
        process = Process(self._scratch)
        try:
            yield process
        finally:
            process.close()

    def facts(self) -> dict[str, Any]:
        with self._process() as process:
            return process.ask({"do": "facts"}, _SET_UP)

    def _made(self, data: Data) -> tuple[str, dict[str, int]]:
        """The path of data and what is to be found in them; made if they are not there."""
        path = self._folder / data.name
        record = self._folder / f"{data.name}.json"
        if data.name not in self._expected:
            if not record.exists():
                if path.is_dir():
                    shutil.rmtree(path)
                path.unlink(missing_ok=True)
                with self._process() as process:
                    made = process.ask(
                        {"do": "make", "function": data.make, "path": str(path), "options": data.options}, _SET_UP
                    )
                record.write_text(json.dumps(made["expected"]))
            self._expected[data.name] = json.loads(record.read_text())
        return str(path), self._expected[data.name]

    def _missing(self, case: Case) -> str:
        if case.needs and not self._peers:
            return "left out"
        return "" if all(importlib.util.find_spec(name) for name in case.needs) else "not installed"

    def measure(self, table: Table) -> Result:
        """Measure the cases of a table in turns, in alternating order."""
        rows = [Row(case=case, problem=self._missing(case)) for case in table.cases]
        result = Result(table=table, rows=rows)
        try:
            data = self._made(table.data)
            warm_up = None if table.warm_up is None else self._made(table.warm_up)
        except Failure as failure:
            for row in rows:
                row.problem, row.failed = f"no data: {failure}", True
            return result
        with contextlib.ExitStack() as stack:
            loaded: dict[int, tuple[Process, int]] = {}
            # The first round in new processes does not count: it brings files into memory.
            rounds = range(-1 if table.cold and not self._shared else 0, self._repeats)
            for turn in rounds:
                for at, row in list(enumerate(rows))[:: -1 if turn % 2 else 1]:
                    if row.problem:
                        continue
                    try:
                        if table.cold:
                            with self._process() as process:
                                number = self._load(process, row.case, data, None)
                                sample = process.ask({"do": "run", "number": number}, table.timeout)
                        else:
                            if at not in loaded:
                                process = stack.enter_context(self._process())
                                loaded[at] = (process, self._load(process, row.case, data, warm_up))
                            process, number = loaded[at]
                            sample = process.ask({"do": "run", "number": number}, table.timeout)
                    except TooSlow as slow:
                        row.problem, row.failed = str(slow), not row.case.needs
                    except Failure as failure:
                        row.problem, row.failed = f"failed: {failure}", True
                    else:
                        if turn >= 0:
                            row.samples.append(sample)
        return result

    def _load(
        self,
        process: Process,
        case: Case,
        data: tuple[str, dict[str, int]],
        warm_up: tuple[str, dict[str, int]] | None,
    ) -> int:
        number = next(self._numbers)
        request = {"do": "load", "number": number, "work": case.work, "options": case.options}
        process.ask({**request, "data": data, "warm_up": warm_up}, _SET_UP)
        return number
