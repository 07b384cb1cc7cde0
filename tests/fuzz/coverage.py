"""Which lines of refindex were reached: each tells once, and costs nothing from then on (PEP 669)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import CodeType, TracebackType
from typing import Any, Self

import refindex

_HERE = str(Path(refindex.__file__).parent)


class Lines:
    """Lines reached since it was begun. Only one can be begun in a process at a time."""

    def __init__(self) -> None:
        self.reached: set[tuple[str, int]] = set()
        self._tool = sys.monitoring.COVERAGE_ID

    def __enter__(self) -> Self:
        monitoring = sys.monitoring
        monitoring.use_tool_id(self._tool, "refindex fuzzing")
        monitoring.register_callback(self._tool, monitoring.events.LINE, self._line)
        monitoring.set_events(self._tool, monitoring.events.LINE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.monitoring.set_events(self._tool, 0)
        sys.monitoring.free_tool_id(self._tool)

    def _line(self, code: CodeType, line: int) -> Any:
        if code.co_filename.startswith(_HERE):
            self.reached.add((code.co_filename, line))
        return sys.monitoring.DISABLE

    def share(self, modules: tuple[str, ...]) -> tuple[int, int]:
        """Lines of modules that were reached, and how many there are; those that importing reaches do not count."""
        every: set[tuple[str, int]] = set()
        for name in modules:
            every |= _lines(importlib.import_module(name).__file__ or "")
        return len(every & self.reached), len(every)


def _lines(path: str) -> set[tuple[str, int]]:
    """Lines within functions."""
    waiting = [compile(Path(path).read_bytes(), path, "exec")]
    found: set[tuple[str, int]] = set()
    while waiting:
        code = waiting.pop()
        waiting += [const for const in code.co_consts if isinstance(const, CodeType)]
        if code.co_flags & 0x02:  # CO_NEWLOCALS: not a module, nor a class
            found |= {(path, line) for _, _, line in code.co_lines() if line and line != code.co_firstlineno}
    return found
