"""``python -m tests.benchmarks``: measure and print tables."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks import report, suite
from tests.benchmarks.runner import Runner


def _arguments() -> argparse.Namespace:
    names = list(dict.fromkeys(table.name for table in suite.tables()))
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=sys.modules[__package__].__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"what to measure, of {', '.join(names)}; default all")
    parser.add_argument("--repeats", type=int, help="rounds (default 5; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes in one process: shows only that all works")
    parser.add_argument("--no-peers", action="store_true", help="leave kerchunk and VirtualiZarr out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all samples")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the tables as a page")
    parser.add_argument("--data-dir", type=Path, metavar="FOLDER", help="make the data there, keep and reuse them")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(names))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; choose from {', '.join(names)}")
    if arguments.repeats is None:
        arguments.repeats = 1 if arguments.quick else 5
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    return arguments


def _shown(given: list[str]) -> list[str]:
    """The arguments without those that only say where files go."""
    shown, words = [], iter(given)
    for word in words:
        if word in ("--data-dir", "--json"):
            next(words, None)
        elif not word.startswith(("--data-dir=", "--json=")):
            shown.append(word)
    return shown


def main() -> int:
    arguments = _arguments()
    results = []
    with contextlib.ExitStack() as stack:
        folder = arguments.data_dir
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="refindex-bench-")))
        runner = Runner(
            folder.absolute(),
            repeats=arguments.repeats,
            peers=not arguments.no_peers,
            shared=arguments.quick,
        )
        stack.callback(runner.close)
        facts = report.machine()
        facts["versions"] |= runner.facts()
        print(report.header(facts, repeats=arguments.repeats), flush=True)
        for table in suite.tables(quick=arguments.quick):
            if arguments.names and table.name not in arguments.names:
                continue
            result = runner.measure(table)
            results.append(result)
            print(f"\n{report.table(result)}", flush=True)
        failed = [row for result in results for row in result.rows if row.failed]
        if failed:
            print(f"\n{len(failed)} measurements failed. Errors of their processes:\n{runner.log}", file=sys.stderr)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(report.as_json(facts, results), indent=1) + "\n")
        if arguments.markdown is not None:
            page = report.markdown(
                facts,
                results,
                repeats=arguments.repeats,
                command=shlex.join(["python", "-m", "tests.benchmarks", *_shown(sys.argv[1:])]),
                date=datetime.now(UTC).date().isoformat(),
                quick=arguments.quick,
            )
            arguments.markdown.write_text(page)
    return 1 if any(not row.case.needs for row in failed) else 0


if __name__ == "__main__":
    sys.exit(main())
