"""One target in a process of its own: a parser that kills the process leaves the input behind."""

from __future__ import annotations

import argparse
import json
import mmap
from pathlib import Path

from tests.fuzz import structured
from tests.fuzz.target import LONGEST
from tests.fuzz.targets import ALL

ROOM = 8 + 8 + 2 * LONGEST + 1024
"""Bytes of the file that has the number of the input that is being run, its length, and its bytes."""


def corpus_of(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*"))] if folder.is_dir() else []


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("state", type=Path)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--executions", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    state: Path = arguments.state
    corpus = state / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    with (state / "running").open("w+b") as file:
        file.truncate(ROOM)
        with mmap.mmap(file.fileno(), ROOM) as view:

            def note(number: int, data: bytes) -> None:
                view[:16] = number.to_bytes(8, "little") + len(data).to_bytes(8, "little")
                view[16 : 16 + len(data)] = data[: ROOM - 16]

            def kept(data: bytes) -> None:
                (corpus / structured.Finding(signature="", text="", data=data).name).write_bytes(data)

            result = structured.fuzz(
                ALL[arguments.target],
                seconds=arguments.seconds,
                executions=arguments.executions,
                seed=arguments.seed,
                corpus=corpus_of(corpus),
                note=note,
                kept=kept,
            )
    found = {
        "executions": result.executions,
        "seconds": result.seconds,
        "accepted": result.accepted,
        "slowest": result.slowest,
        "lines": result.lines,
        "repeated": result.repeated,
        "findings": [
            {"signature": finding.signature, "text": finding.text, "data": finding.data.hex()}
            for finding in result.findings
        ],
    }
    (state / "result.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
