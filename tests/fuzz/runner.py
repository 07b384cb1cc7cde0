"""Targets in processes, by both engines, and what is remembered of them from run to run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from tests.fuzz import guided
from tests.fuzz.target import Target
from tests.fuzz.worker import ROOM

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
"""Inputs that failed once, by target; kept for good."""

STUCK = 90.0
"""Seconds without another execution, after which a process is ended."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What one target came to: executions and seconds by engine, coverage as each tells it, and failing inputs."""

    target: str
    executions: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    coverage: dict[str, str] = field(default_factory=dict)
    slowest: float = 0.0
    failures: list[tuple[str, Path]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def run_structured(
    target: Target, outcome: Outcome, state: Path, *, seconds: float, executions: int | None, seed: int
) -> None:
    """Our own engine; a process that dies is followed by another."""
    end = time.monotonic() + seconds
    done = 0
    for attempt in range(8):
        left = end - time.monotonic()
        if (attempt and left <= 1) or (executions is not None and done >= executions):
            break
        result = state / "result.json"
        result.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.fuzz.worker", target.name, str(state), f"--seconds={max(left, 0.1)}"]
        command += [f"--seed={seed + attempt * 1000}"]
        if executions is not None:
            command.append(f"--executions={executions - done}")
        started = time.monotonic()
        status = _watched(command, state)
        if result.exists():
            found = json.loads(result.read_bytes())
            done += found["executions"]
            outcome.slowest = max(outcome.slowest, found["slowest"])
            outcome.coverage["structured"] = "{}/{} lines".format(*found["lines"])
            for finding in found["findings"]:
                _keep(outcome, finding["signature"], finding["text"], bytes.fromhex(finding["data"]))
            break
        number, data = _running(state)
        done += number
        if data is None:
            outcome.notes.append(f"the process ended before the first input: status {status}")
            outcome.failures.append((f"status {status}", state))
            break
        why = "no end" if status is None else f"killed by {signal.Signals(-status).name}" if status < 0 else "ended"
        _keep(outcome, why, f"{why} after {time.monotonic() - started:.0f} s", data)
    outcome.executions["structured"] = done
    outcome.seconds["structured"] = time.monotonic() - (end - seconds)


def _watched(command: list[str], state: Path) -> int | None:
    """Run a process to its end; None if it had to be ended because it did not go on."""
    with (state / "log").open("wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process:
        last, moved = -1, time.monotonic()
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)
            number, _ = _running(state)
            if number != last:
                last, moved = number, time.monotonic()
            if time.monotonic() - moved > STUCK:
                process.kill()
                process.wait()
                return None
        return process.returncode


def _running(state: Path) -> tuple[int, bytes | None]:
    """The number and the bytes of the input that a process is at."""
    path = state / "running"
    if not path.exists() or path.stat().st_size != ROOM:
        return 0, None
    data = path.read_bytes()
    number, length = (int.from_bytes(data[at : at + 8], "little") for at in (0, 8))
    return number, data[16 : 16 + length]


def run_guided(target: Target, outcome: Outcome, state: Path, *, seconds: float, executions: int | None) -> None:
    """atheris, which ends at the first failure."""
    found = guided.run(target, state, seconds=seconds, executions=executions)
    outcome.executions["atheris"] = found.executions
    outcome.seconds["atheris"] = found.seconds
    outcome.coverage["atheris"] = f"{found.edges} edges, {found.features} features"
    if found.failure is not None:
        _keep(outcome, found.signature, found.text, found.failure)


def _keep(outcome: Outcome, signature: str, text: str, data: bytes) -> None:
    folder = CORPUS / outcome.target
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{blake2b(data, digest_size=6).hexdigest()}.bin"
    path.write_bytes(data)
    outcome.failures.append((signature, path))
    outcome.notes.append(text)


# What is remembered


class Totals:
    """Executions of each target since its last finding, in a file that several runs may share."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()

    @property
    def found(self) -> dict[str, dict[str, object]]:
        """What the file says, by target."""
        found: dict[str, dict[str, object]] = json.loads(self.path.read_bytes()) if self.path.exists() else {}
        return found

    @contextlib.contextmanager
    def _row(self, target: str) -> Iterator[dict[str, object]]:
        """What is said of one target, to be changed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, self.path.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = self.found
            yield found.setdefault(target, {})
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
            temporary.replace(self.path)

    def next_seed(self, target: str) -> int:
        """Another seed each time."""
        with self._row(target) as row:
            seed = int(str(row.get("seed", 0))) + 1
            row["seed"] = seed
        return seed

    def add(self, outcome: Outcome) -> None:
        with self._row(outcome.target) as row:
            if outcome.failures:
                seed = row.get("seed", 0)
                row.clear()
                row["seed"] = seed
                return
            for engine, count in outcome.executions.items():
                row[engine] = int(str(row.get(engine, 0))) + count
                row[f"{engine} seconds"] = float(str(row.get(f"{engine} seconds", 0.0))) + outcome.seconds[engine]
            row |= {f"{engine} coverage": text for engine, text in outcome.coverage.items()}
            row["slowest"] = max(float(str(row.get("slowest", 0.0))), outcome.slowest)
            row["date"] = datetime.now(UTC).date().isoformat()
