"""What is fuzzed: a function of bytes, and how its inputs are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from refindex.errors import RefindexError

type Mutate = Callable[[bytes, Random], bytes]

SPARE = 512 << 20
"""Bytes of address space that one execution may take: the inputs are at most :data:`LONGEST` bytes."""

LONGEST = 1 << 16
"""Bytes of the longest input."""

SECONDS = 2.0
"""Processor time that one execution may take."""


class FindingError(AssertionError):
    """A parser did what it must not do, but raised nothing that says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One parser.

    Attributes
    ----------
    run:
        Parses some bytes; raises RefindexError where they are not what they should be. Anything else that it raises is
        a finding.
    seeds:
        Sound inputs, made anew: no file of anybody is kept.
    mutate:
        Another input from a sound (or not so sound) one.
    modules:
        Whose lines are counted as coverage.
    """

    name: str
    run: Callable[[bytes], Any]
    seeds: Callable[[], list[bytes]]
    mutate: Mutate
    modules: tuple[str, ...]


def execute(target: Target, data: bytes) -> bool:
    """Whether a model came out.

    Raises
    ------
    BaseException
        What is a finding.
    """
    try:
        target.run(data)
    except RefindexError as error:
        check_refusal(error)
        return False
    return True


def check_refusal(error: BaseException | None) -> None:
    """Running out of memory is a finding, by whatever error it is told."""
    while error is not None:
        if isinstance(error, MemoryError):
            raise FindingError("an error is told that came of a lack of memory") from error
        error = error.__cause__
