"""Results as text and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from tests.benchmarks.runner import Result, Row

_PACKAGES = (
    "refindex",
    "h5py",
    "netCDF4",
    "numpy",
    "pyarrow",
    "zarr",
    "fsspec",
    "xarray",
    "kerchunk",
    "virtualizarr",
    "icechunk",
)


def machine() -> dict[str, Any]:
    """Cores, Python and versions of the packages that are compared."""
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def header(facts: Mapping[str, Any], *, repeats: int) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    return (
        f"{facts['cores']} cores, load {facts['load']}, {facts['system']}, Python {facts['python']}\n{versions}\n"
        f"{repeats} rounds, cases in turns. Ratio: least wall time over that of the first row; median: of the ratios\n"
        "within each round. CPU includes processes that were started. Memory: the most above that before the run."
    )


def table(result: Result) -> str:
    """One table; every case has a row, whatever became of it."""
    columns = _columns(result)
    lines = [columns, *(_cells(result, row, columns) for row in result.rows)]
    widths = [max(len(line[i]) for line in lines if len(line) > 2) for i in range(len(columns))]
    widths[0] = max(len(line[0]) for line in lines)
    out = [f"{result.table.name}: {result.table.title}"]
    for line in lines:
        out.append("  " + "  ".join(_aligned(i, cell, widths) for i, cell in enumerate(line)).rstrip())
    return "\n".join(out)


def _columns(result: Result) -> list[str]:
    columns = ["", "ratio", "median", "wall s", "CPU s", "MB"]
    if result.table.per:
        columns.append(result.table.per)
    if any(sample.get("nbytes") for row in result.rows for sample in row.samples):
        columns.append("MB written")
    if result.table.cold:
        columns.append("s from start")
    return [*columns, "required"]


def _aligned(i: int, cell: str, widths: list[int]) -> str:
    return cell.ljust(widths[i]) if i in (0, len(widths) - 1) else cell.rjust(widths[i])


def _cells(result: Result, row: Row, columns: Iterable[str]) -> list[str]:
    if row.problem or not row.samples:
        return [row.case.label, (row.problem or "not measured")[:100]]
    wall = row.least("wall")
    scale = 1e3 if result.table.per.startswith("ms") else 1e6
    values = {
        "": row.case.label,
        "ratio": _number(result.ratio(row)),
        "median": _number(result.median_ratio(row)),
        "wall s": f"{wall:.4f}",
        "CPU s": f"{row.least('cpu'):.4f}",
        "MB": f"{row.memory / 1e6:.1f}",
        "MB written": f"{row.least('nbytes') / 1e6:.2f}" if row.least("nbytes") else "",
        "s from start": f"{row.least('since_start'):.2f}",
        "required": ", ".join(_required(result, row)),
    }
    if result.table.per:
        values[result.table.per] = f"{wall / result.table.units * scale:.2f}"
    return [values[column] for column in columns]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _required(result: Result, row: Row) -> list[str]:
    """The requirements of a case and whether it meets them."""
    if not row.samples:
        return []
    found = []
    ratio = result.ratio(row)
    if row.case.at_most is not None and ratio is not None:
        found.append(f"ratio <= {row.case.at_most:g}: {'met' if ratio <= row.case.at_most else 'MISSED'}")
    if row.case.at_most_mb is not None:
        met = row.memory <= row.case.at_most_mb * 1e6
        found.append(f"MB <= {row.case.at_most_mb:g}: {'met' if met else 'MISSED'}")
    return found


def markdown(
    facts: Mapping[str, Any], results: Sequence[Result], *, repeats: int, command: str, date: str, quick: bool
) -> str:
    """A page of all tables of one run."""
    versions = ", ".join(f"{name} {number}" for name, number in facts["versions"].items())
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{command}` on {date}: every figure is of that one run.",
        "",
        f"- Machine: {facts['cores']} cores, load {facts['load']} when it began, {facts['system']}, "
        f"Python {facts['python']}.",
        f"- Versions: {versions}.",
        f"- Rounds: {repeats}; the cases of a table take turns.",
        "- Ratio: least wall time over that of the first row, so that less is faster; median: of the ratios within "
        "each round. CPU includes processes that were started. MB: the most memory above that before the run.",
        "- Required: what the project asks of itself, and whether this run met it.",
        "",
        "Absolute times of a shared machine mean little; ratios within a table are what to look at.",
    ]
    if quick:
        lines += [
            "",
            "!!! warning",
            "    A run with `--quick`: sizes are tiny, and the figures show only that all works.",
        ]
    missed = [
        (result, row) for result in results for row in result.rows if any("MISSED" in r for r in _required(result, row))
    ]
    met = sum(
        all("MISSED" not in r for r in found)
        for result in results
        for row in result.rows
        if (found := _required(result, row))
    )
    lines += ["", f"Requirements: {met} rows meet theirs, {len(missed)} do not" + (":" if missed else "."), ""]
    lines += [
        f"- {result.table.name}, {result.table.title}: {row.case.label}: {', '.join(_required(result, row))}"
        for result, row in missed
    ]
    for result in results:
        columns = _columns(result)
        lines += ["", f"## {result.table.name}: {result.table.title}", ""]
        lines += ["| " + " | ".join(columns) + " |", "|" + "|".join(["---"] + ["---:"] * (len(columns) - 1)) + "|"]
        for row in result.rows:
            cells = _cells(result, row, columns)
            lines.append("| " + " | ".join([*cells, *[""] * (len(columns) - len(cells))]) + " |")
    how = [
        "",
        "## How to run them",
        "",
        "`make bench` prints the tables; `python -m tests.benchmarks --markdown docs/benchmarks.md` also writes this",
        "page. `python -m tests.benchmarks --help` lists the options; names of tables measure only those.",
    ]
    return "\n".join([*lines, *how]).replace("\n\n\n", "\n\n") + "\n"


def as_json(facts: Mapping[str, Any], results: Iterable[Result]) -> dict[str, Any]:
    """Everything, all samples included."""
    return {
        "machine": dict(facts),
        "tables": [
            {
                "name": result.table.name,
                "title": result.table.title,
                "rows": [
                    {
                        "case": row.case.label,
                        "problem": row.problem,
                        "failed": row.failed,
                        "peer": bool(row.case.needs),
                        "ratio": result.ratio(row),
                        "median_ratio": result.median_ratio(row),
                        "required": _required(result, row) if row.samples else [],
                        "samples": row.samples,
                    }
                    for row in result.rows
                ],
            }
            for result in results
        ],
    }
