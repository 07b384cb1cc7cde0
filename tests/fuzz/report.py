"""Tables: of one run on the screen, of all runs as a page."""

from __future__ import annotations

from pathlib import Path

from tests.fuzz.runner import Outcome, Totals

_HEAD = """# Fuzzing

Whatever the bytes: every parser gives a model or a `RefindexError`, within {seconds:g} s of processor time and
{spare} MiB of memory for an input of up to {longest} KiB. Two engines look for what does not:

- structured mutation, which knows the formats: it changes fields, repairs the checksums behind them so that the code
  that lies behind is reached, and goes on from inputs that reach new lines;
- [atheris](https://pypi.org/project/atheris/) (libFuzzer), led by the edges that an input reaches, with the same
  mutations beside its own. Where it cannot be installed, the first engine runs alone.

Inputs are made from sound ones that the targets write themselves.

What is not looked for here:

- crashes of libhdf5, which no target calls. What calls it: scanning HDF5 (opening a file, its groups, types, and small
  chunk tables), and decoding filters that no Python library has (szip, nbit, scaleoffset, lzf, lz4, bitshuffle, zfp and
  others) and numbers that numpy lacks;
- Parquet manifests whose *log* is hostile, too: it vouches for the footers of the data files, and pyarrow ends the
  process over some footers that contradict themselves. Footers that are damaged do not get so far.

```sh
make fuzz SECONDS=60      # each target for a minute
python -m tests.fuzz hdf5-btree-v1 netcdf3 --executions 1000000 --engine structured
```

Prints executions, coverage and failures. A failing input is made smaller and kept in `tests/fuzz/corpus/`; all of them
are run again by `make test`. What was run is summed up in `.fuzz/totals.json`; a finding begins the sum of its target
anew.

Executions of each target since its last finding; this page is written by
`python -m tests.fuzz --executions 0 --markdown docs/fuzzing.md`:

| target | executions | structured | a second | lines reached | atheris | a second | edges | slowest ms* | last run |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---|
"""

_FOOT = """
\\* The slowest execution by the clock on the wall, of a machine that has other work, too.
"""


def head() -> str:
    return f"{'target':24} {'executions':>12} {'a second':>9} {'failures':>8}  coverage"


def line(outcome: Outcome) -> str:
    executions, seconds = sum(outcome.executions.values()), sum(outcome.seconds.values())
    coverage = "; ".join(f"{engine}: {text}" for engine, text in outcome.coverage.items())
    rate = executions / max(seconds, 1e-9)
    shown = f"{outcome.target:24} {executions:12,} {rate:9,.0f} {len(outcome.failures):8}  {coverage}"
    return "\n".join([shown, *(f"    {signature}: {path}" for signature, path in outcome.failures)])


def write(path: Path, totals: Totals) -> None:
    """The page of all runs."""
    from tests.fuzz.target import LONGEST, SECONDS, SPARE
    from tests.fuzz.targets import ALL

    found = totals.found
    rows = [_row(name, found.get(name, {})) for name in ALL]
    text = _HEAD.format(seconds=SECONDS, spare=SPARE >> 20, longest=LONGEST >> 10)
    path.write_text(text + "\n".join(rows) + "\n" + _FOOT, encoding="utf-8")


def _row(name: str, found: dict[str, object]) -> str:
    def count(key: str) -> float:
        return float(str(found.get(key, 0)))

    def rate(engine: str) -> str:
        return f"{count(engine) / count(f'{engine} seconds'):,.0f}" if count(f"{engine} seconds") else ""

    ours, theirs = int(count("structured")), int(count("atheris"))
    lines = str(found.get("structured coverage", "")).removesuffix(" lines")
    edges = str(found.get("atheris coverage", "")).partition(" ")[0]
    cells = [name, f"{ours + theirs:,}", f"{ours:,}", rate("structured"), lines, f"{theirs:,}", rate("atheris"), edges]
    return "| " + " | ".join([*cells, f"{1000 * count('slowest'):.0f}", str(found.get("date", ""))]) + " |"
