"""``python -m tests.fuzz``: fuzz, and print a table."""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import guided, report
from tests.fuzz.runner import ROOT, Outcome, Totals, run_guided, run_structured
from tests.fuzz.targets import ALL


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=sys.modules[__package__].__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(ALL)}; default all")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target, both engines together (60)")
    parser.add_argument(
        "--executions", type=int, help="for each target and engine; no limit of time unless one is given"
    )
    parser.add_argument("--engine", choices=("both", "structured", "atheris"), default="both")
    parser.add_argument("--jobs", type=int, default=1, help="targets at the same time (1)")
    parser.add_argument("--seed", type=int, default=None, help="of the mutations; by default another one in each run")
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".fuzz", metavar="FOLDER", help="what runs remember (.fuzz)"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the sums of all runs as a page")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.targets) - set(ALL))
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; choose from {', '.join(ALL)}")
    if arguments.executions is not None and "--seconds" not in " ".join(sys.argv):
        arguments.seconds = 86_400.0
    return arguments


def main() -> int:
    arguments = _arguments()
    with_atheris = arguments.engine != "structured" and guided.available()
    if arguments.engine != "structured" and not with_atheris:
        print("atheris is not installed: structured mutation alone, led by the lines that are reached", flush=True)
        if arguments.engine == "atheris":
            return 2
    totals = Totals(arguments.state / "totals.json")
    if arguments.executions == 0 and arguments.markdown is not None:
        report.write(arguments.markdown, totals)
        return 0
    share = 0.5 if with_atheris and arguments.engine == "both" else 1.0

    def one(name: str) -> Outcome:
        target, outcome, state = ALL[name], Outcome(target=name), arguments.state / name
        state.mkdir(parents=True, exist_ok=True)
        if arguments.engine != "atheris":
            seed = arguments.seed if arguments.seed is not None else totals.next_seed(name)
            run_structured(
                target, outcome, state, seconds=arguments.seconds * share, executions=arguments.executions, seed=seed
            )
        if with_atheris:
            run_guided(target, outcome, state, seconds=arguments.seconds * share, executions=arguments.executions)
        totals.add(outcome)
        print(report.line(outcome), flush=True)
        return outcome

    print(report.head(), flush=True)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        outcomes = list(pool.map(one, arguments.targets or list(ALL)))
    for outcome in outcomes:
        for (signature, path), text in zip(outcome.failures, outcome.notes, strict=False):
            print(f"\n{outcome.target}: {signature}\n  {path}\n{text[-3000:]}")
    if arguments.markdown is not None:
        report.write(arguments.markdown, totals)
    failed = sum(len(outcome.failures) for outcome in outcomes)
    print(
        f"\n{len(outcomes)} targets, {sum(sum(o.executions.values()) for o in outcomes)} executions, {failed} failures"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
