"""The engine of our own: structured mutation, led by the lines that are reached."""

from __future__ import annotations

import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

from tests.fuzz.coverage import Lines
from tests.fuzz.target import SECONDS, SPARE, FindingError, Target, execute

_KEPT = 4096
"""Inputs that reached something new, at most."""

_SHRINK = 3.0
"""Seconds for making a failing input smaller."""


class TooSlowError(FindingError):
    """One execution took longer than it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A failing input, and how it fails."""

    signature: str
    text: str
    data: bytes

    @property
    def name(self) -> str:
        return blake2b(self.data, digest_size=6).hexdigest()


@dataclass(slots=True, kw_only=True)
class Result:
    """What fuzzing a target came to."""

    executions: int = 0
    seconds: float = 0.0
    accepted: int = 0
    slowest: float = 0.0
    lines: tuple[int, int] = (0, 0)
    findings: list[Finding] = field(default_factory=list)
    repeated: int = 0


class Clock:
    """Stops an execution that takes more than its processor time, without a system call for each."""

    def __init__(self) -> None:
        self.executions = 0
        self._seen = (-1, 0)

    def _tick(self, number: int, frame: FrameType | None) -> None:
        count = self._seen[1] + 1 if self._seen[0] == self.executions else 0
        self._seen = self.executions, count
        if count * SECONDS / 2 >= SECONDS:
            self._seen = self.executions, 0
            raise TooSlowError(f"one execution took more than {SECONDS} s of processor time")

    @contextmanager
    def running(self) -> Iterator[None]:
        before = signal.signal(signal.SIGPROF, self._tick)
        signal.setitimer(signal.ITIMER_PROF, SECONDS / 2, SECONDS / 2)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.signal(signal.SIGPROF, before)


@contextmanager
def little_memory(spare: int = SPARE) -> Iterator[None]:
    """Let the process have so much more address space than it has now."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    size = int(statm.read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def signature(error: BaseException) -> str:
    """What findings are told apart by: the kind of the error, and the innermost line of refindex."""
    where = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if "refindex/" in frame.filename and "/tests/" not in frame.filename:
            where = f"{frame.filename.rpartition('refindex/')[2]}:{frame.name}"
    text = str(error).split(":")[0][:60] if isinstance(error, FindingError) else ""
    return f"{type(error).__name__} {where} {text}".strip()


def fuzz(
    target: Target,
    *,
    seconds: float = 60.0,
    executions: int | None = None,
    seed: int = 0,
    corpus: list[bytes] | None = None,
    note: Callable[[int, bytes], None] | None = None,
    kept: Callable[[bytes], None] | None = None,
) -> Result:
    """Run a target on mutations until time or executions are over.

    Parameters
    ----------
    corpus:
        Inputs to begin with, besides the seeds.
    note:
        Is told the number and the bytes of each input before it is run.
    kept:
        Is told the inputs that reached something new.
    """
    rng, result, clock = Random(seed), Result(), Clock()
    inputs = [*target.seeds(), *(corpus or [])]
    first = len(inputs)
    known: dict[str, Finding] = {}
    started = time.monotonic()
    with Lines() as lines, clock.running(), little_memory():
        while executions is None or result.executions < executions:
            number = result.executions
            if number % 64 == 0 and time.monotonic() - started > seconds:
                break
            if number < first:
                data = inputs[number]
            else:
                # Half of the time one of those that reached something lately.
                at = rng.random() * len(inputs) if rng.random() < 0.5 else len(inputs) - 1 - rng.expovariate(0.1)
                data = target.mutate(inputs[max(0, int(at))], rng)
            clock.executions = result.executions = number + 1
            if note is not None:
                note(number, data)
            before, begun = len(lines.reached), time.perf_counter()
            try:
                result.accepted += execute(target, data)
            except Exception as error:
                name = signature(error)
                if name in known:
                    result.repeated += 1
                else:
                    known[name] = Finding(signature=name, text="".join(traceback.format_exception(error)), data=data)
            result.slowest = max(result.slowest, time.perf_counter() - begun)
            if len(lines.reached) > before and number >= first and len(inputs) < _KEPT:
                inputs.append(data)
                if kept is not None:
                    kept(data)
        result.seconds = time.monotonic() - started
        result.findings = [shrink(target, finding, clock) for finding in known.values()]
    result.lines = lines.share(target.modules)
    return result


def shrink(target: Target, finding: Finding, clock: Clock) -> Finding:
    """A smaller input that fails alike: parts of it left out, bytes made zero."""
    data, end = finding.data, time.monotonic() + _SHRINK

    def fails(candidate: bytes) -> bool:
        clock.executions += 1
        try:
            execute(target, candidate)
        except Exception as error:
            return signature(error) == finding.signature
        return False

    length = max(1, len(data) // 2)
    while length and time.monotonic() < end:
        before, at = data, 0
        while at < len(data) and time.monotonic() < end:
            for candidate in (data[:at] + data[at + length :], data[:at] + bytes(length) + data[at + length :]):
                if candidate != data and len(candidate) <= len(data) and fails(candidate):
                    data = candidate
                    break
            at += length
        if length > 1 or data == before:
            length //= 2
    return Finding(signature=finding.signature, text=finding.text, data=data)


def replay(target: Target, data: bytes) -> Any:
    """Run one input within the bounds; what is a finding is raised."""
    clock = Clock()
    with clock.running(), little_memory():
        return execute(target, data)
