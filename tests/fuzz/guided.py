"""Coverage-guided fuzzing by atheris (libFuzzer), with the same mutations beside libFuzzer's own."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.target import LONGEST, Target

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a run of libFuzzer said."""

    executions: int
    seconds: float
    edges: int
    features: int
    failure: bytes | None = None
    signature: str = ""
    text: str = ""


def available() -> bool:
    """Whether atheris is installed."""
    return importlib.util.find_spec("atheris") is not None


def run(target: Target, state: Path, *, seconds: float, executions: int | None) -> Found:
    """Run a target until time or executions are over, or it fails."""
    corpus, failures = state / "guided", state / "failures"
    for folder in (corpus, failures):
        folder.mkdir(parents=True, exist_ok=True)
    for path in failures.iterdir():
        path.unlink()
    with tempfile.TemporaryDirectory() as seeds:
        for count, data in enumerate(target.seeds()):
            (Path(seeds) / str(count)).write_bytes(data)
        command = [
            sys.executable,
            "-m",
            "tests.fuzz.guided_child",
            target.name,
            ",".join(target.modules),
            str(corpus),
            seeds,
        ]
        command += [
            f"-max_total_time={max(1, int(seconds))}",
            "-timeout=10",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
        ]
        command += [f"-max_len={LONGEST}", f"-artifact_prefix={failures}{os.sep}"]
        if executions is not None:
            command.append(f"-runs={executions}")
        started = time.monotonic()
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            timeout=seconds * 3 + 300,
            check=False,
        )
    text = done.stderr.decode("utf-8", "replace") + done.stdout.decode("utf-8", "replace")
    (state / "guided.log").write_text(text[-1_000_000:], encoding="utf-8")
    failed = sorted(failures.iterdir())
    error = re.findall(r"^(\w*(?:Error|Exception|Interrupt)\b.*)$", text, re.MULTILINE)
    return Found(
        executions=_last(text, r"stat::number_of_executed_units:\s*(\d+)") or _last(text, r"^#(\d+)\t"),
        seconds=time.monotonic() - started,
        edges=_last(text, r"\bcov: (\d+)"),
        features=_last(text, r"\bft: (\d+)"),
        failure=failed[0].read_bytes() if failed else None,
        signature=error[0][:120] if error else "libFuzzer stopped",
        text=_traceback(text),
    )


def _traceback(text: str) -> str:
    """What a person wants to see of it."""
    at = text.find("=== Uncaught Python exception")
    return text[at : at + 4000] if at >= 0 else text[-1500:]


def _last(text: str, pattern: str) -> int:
    found = re.findall(pattern, text, re.MULTILINE)
    return int(found[-1]) if found else 0
