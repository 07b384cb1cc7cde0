"""A process that measures: ``python -m tests.benchmarks.worker``. JSON lines in, JSON lines out.

Time is taken after the imports, the set-up and one run on tiny data. Memory is the largest resident size of a run
above the resident size before the first one.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


def resident() -> int:
    """Bytes of this process in memory now."""
    try:
        return _status("VmRSS")
    except OSError:
        return _largest()


def forget_largest() -> None:
    """Let :func:`_largest` start again (Linux; elsewhere it stays that of the whole process)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _largest() -> int:
    """The largest resident size so far. Not ``ru_maxrss`` on Linux, which a process inherits from its parent."""
    try:
        return _status("VmHWM")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {name}")


def _give_back() -> None:
    """Collect garbage, and give free memory back, so that one run does not hide the memory of the next."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def _cpu() -> float:
    """Seconds of processor time of this process and of those that it started and that have ended."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def _nbytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


class Worker:
    """What is set up so far, by the number that the parent gave it."""

    def __init__(self, started: float, scratch: Path) -> None:
        self._started = started
        self._scratch = scratch
        self._ready: dict[int, tuple[Callable[[Path], Any], dict[str, int], int]] = {}

    def facts(self) -> dict[str, Any]:
        """Versions that only the libraries themselves know."""
        import h5py

        return {"HDF5": h5py.version.hdf5_version}

    def make(self, *, function: str, path: str, options: dict[str, Any]) -> dict[str, Any]:
        from tests.benchmarks import make

        return {"expected": getattr(make, function)(Path(path), **options)}

    def load(
        self,
        *,
        number: int,
        work: str,
        options: dict[str, Any],
        data: tuple[str, dict[str, int]],
        warm_up: tuple[str, dict[str, int]] | None,
    ) -> dict[str, Any]:
        module, name = work.split(":")
        function = getattr(importlib.import_module(f"tests.benchmarks.work.{module}"), name)
        if warm_up is not None:
            tiny, expected = warm_up
            self._run(function(Path(tiny), expected, **options), expected)
        path, expected = data
        measured = function(Path(path), expected, **options)
        if warm_up is not None:
            _give_back()
        self._ready[number] = (measured, expected, resident())
        return {}

    def run(self, *, number: int) -> dict[str, Any]:
        measured, expected, before = self._ready[number]
        sample = self._run(measured, expected)
        sample["memory"] = max(0, sample["memory"] - before)
        return sample

    def _run(self, measured: Callable[[Path], Any], expected: dict[str, int]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            out = Path(folder)
            forget_largest()
            cpu, wall = _cpu(), time.perf_counter()
            found, what = measured(out)
            wall, cpu = time.perf_counter() - wall, _cpu() - cpu
            since_start, memory = time.monotonic() - self._started, _largest()
            count = found() if callable(found) else found
            if count != expected[what]:
                raise ValueError(f"wrong result: {what} {count}, expected {expected[what]}")
            del found
            nbytes = _nbytes(out)
        _give_back()
        return {"wall": wall, "cpu": cpu, "since_start": since_start, "memory": memory, "nbytes": nbytes}


def main() -> None:
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    started = float(sys.argv[1])
    scratch = Path(tempfile.mkdtemp(dir=sys.argv[2]))
    worker = Worker(started, scratch)
    try:
        for line in sys.stdin:
            request = json.loads(line)
            try:
                answer = getattr(worker, request.pop("do"))(**request)
            except Exception as error:
                traceback.print_exc()
                text = (str(error) or repr(error)).splitlines()[0]
                answer = {"error": f"{type(error).__name__}: {text}"}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
