"""Write the table of the gauntlet from its cases: ``python docs/generate_gauntlet.py``.

A test asserts that the page in the repository is what this makes, and other tests that every case is right.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import refindex
from refindex import Status

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "reference" / "gauntlet.md"
HEAD = """\
<!-- Made by docs/generate_gauntlet.py from tests/gauntlet: edit the cases, not this page. -->

# The gauntlet

Each row is a small HDF5 file that the tests write, with one feature or one pairing of features. Every dataset of every
file is read whole, in parts and through xarray, by stock zarr-python from refindex's store, and compared with h5py bit
for bit. All {count} are right.

*native*: the stored bytes pass through as they are. *adapted*: chunks are decoded by refindex, because no Zarr codec
chain reads them as they are stored. *inlined*: the values are in the manifest. *unserved* rows are links that lead
nowhere new.

"""


def generate() -> str:
    """The page as Markdown."""
    sys.path.insert(0, str(ROOT / "tests" / "gauntlet"))
    from cases import cases

    found = cases()
    lines = [HEAD.format(count=len(found))]
    kind = ""
    for name, write in found.items():
        head, _, feature = name.partition(": ")
        if head != kind:
            kind = head
            lines += ["", f"## {kind.capitalize()}", "", "| feature | served | why |", "|---|---|---|"]
        statuses, reasons = _outcome(write)
        lines.append(f"| {feature} | {statuses} | {reasons} |")
    return "\n".join(lines).rstrip() + "\n"


def _outcome(write: object) -> tuple[str, str]:
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write(Path(folder) / "case.h5")  # type: ignore[operator]
        report = refindex.scan(Path(folder) / "case.h5").report
    told = [e for e in report if e.status not in (Status.DIMENSION, Status.NOTE)]
    statuses = ", ".join(dict.fromkeys(str(e.status) for e in told))
    reasons = "; ".join(dict.fromkeys(e.reason.replace("|", "\\|") for e in told if e.reason))
    return statuses, reasons.replace(folder, "...")


def main() -> None:
    os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
    PAGE.write_text(generate(), encoding="utf-8")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
