"""``python -m tests.benchmarks.large``: how join, save and open grow with the number of references.

Sources are made up: each has ten variables of 10,000 chunks and a time coordinate, and none is ever opened. Every size
is measured in processes of its own: one that takes what came of the scans, joins and saves, and one that opens the
archive and looks up one reference.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SIZES = (1, 10, 100)
VARIABLES = 10
STEPS, ROWS, COLUMNS = 100, 10, 10
"""Chunks of a variable of one source along time, y and x."""

LIMIT_MB = 2000
"""Memory of join and save that the project allows itself."""

OPEN_SECONDS, OPEN_MB = 1.0, 300
"""Time and memory of opening and one look-up that it allows itself."""

_PATIENCE = 1800
"""Seconds after which a process is ended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What one size took: seconds, and MB (10**6 bytes) of memory and on disk."""

    references: int
    sources: int
    collect_s: float
    join_s: float
    save_s: float
    save_mb: float
    disk_mb: float
    open_s: float
    open_mb: float


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _manifests(count: int) -> Iterator[tuple[str, Any]]:
    """Manifests as scans of ``count`` files give them."""
    import numpy as np

    from refindex import Array, ChunkGrid, ChunkTable, Encoding, Manifest, Node, Source
    from refindex.model.dtype import Leaf
    from refindex.model.encoding import native_codecs
    from refindex.model.zarr_v3 import array_document, dumps, group_document

    def node(path: str, shape: tuple[int, ...], chunks: tuple[int, ...], dims: tuple[str, ...], dtype: str) -> Node:
        encoding = Encoding(type=Leaf(dtype), shape=chunks)
        codecs = native_codecs(encoding, np.dtype(dtype))
        document = array_document(
            grid=ChunkGrid.regular(shape, chunks),
            data_type={"<f4": "float32", "<f8": "float64"}[dtype],
            codecs=codecs or [],
            fill_value=0.0,
            dimension_names=dims,
            attributes={"units": "days since 2000-01-01"} if path == "time" else {},
        )
        return Node(path=path, document=dumps(document), encodings=(encoding,))

    time_node = node("time", (STEPS,), (STEPS,), ("time",), "<f8")
    nodes = [
        node(f"v{n}", (STEPS, 20 * ROWS, 20 * COLUMNS), (1, 20, 20), ("time", "y", "x"), "<f4")
        for n in range(VARIABLES)
    ]
    groups = {"": Node(path="", document=dumps(group_document({})))}
    chunk = np.arange(STEPS * ROWS * COLUMNS)
    for number in range(count):
        times = (number * STEPS + np.arange(STEPS)).astype("<f8").tobytes()
        tables = {"time": (time_node, ChunkTable.inline([(0, times)]))}
        # Compressed chunks, as a writer lays them out that goes through the variables step by step.
        length = np.random.default_rng(number).integers(700, 1500, (len(chunk), VARIABLES))
        offset = 8192 + np.cumsum(length).reshape(length.shape) - length
        for n, one in enumerate(nodes):
            tables[one.path] = (
                one,
                ChunkTable.from_columns(chunk=chunk, source=0, offset=offset[:, n], length=length[:, n], encoding=0),
            )
        url = f"file:///archive/{number:06}.nc"
        yield (
            url,
            Manifest(
                groups=groups,
                arrays={
                    path: Array(path=path, document=one.document, encodings=one.encodings, chunks=table)
                    for path, (one, table) in tables.items()
                },
                sources=(Source(url=url, size=8192 + int(length.sum()), mtime=number),),
            ),
        )


def _save(archive: Path, sources: int) -> dict[str, float]:
    """Take the manifests of scanned files, join them, save."""
    from refindex.join import JoinOptions, Member, join
    from refindex.scan.spool import Spool

    clock = time.perf_counter
    spool = Spool()
    made = 0.0
    start = clock()
    before = clock()
    for url, manifest in _manifests(sources):
        made += clock() - before  # a scan would have made it
        spool.add(url, manifest)
        before = clock()
    collected = clock()
    members = [Member.of_scanned(file, url) for url, file in spool.files.items()]
    manifest = join(members, JoinOptions()).to_manifest()
    joined = clock()
    manifest.save(archive)
    saved = clock()
    disk = sum(path.stat().st_size for path in archive.rglob("*") if path.is_file()) if archive.is_dir() else 0
    return {
        "references": manifest.n_references,
        "collect_s": collected - start - made,
        "join_s": joined - collected,
        "save_s": saved - joined,
        "save_mb": _peak_mb(),
        "disk_mb": (disk or archive.stat().st_size) / 1e6,
    }


def _open(archive: Path, sources: int) -> dict[str, float]:
    """Open an archive, and look up one reference in the middle."""
    import refindex

    start = time.perf_counter()
    with refindex.open(archive) as opened:
        wanted = sources * STEPS * ROWS * COLUMNS // 2
        table = opened.find(f"v{VARIABLES // 2}", [wanted])
        if table.chunk.tolist() != [wanted]:
            raise RuntimeError(f"looked for chunk {wanted}, found {table.chunk.tolist()}")
    return {"open_s": time.perf_counter() - start, "open_mb": _peak_mb()}


def _measured(what: str, archive: Path, sources: int) -> dict[str, float]:
    """The result of a function of this module, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.large", "--run", what, os.fspath(archive), str(sources)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=_PATIENCE)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure(millions: float, folder: Path, suffix: str = ".refindex") -> Row:
    """Measure one size."""
    sources = max(1, round(millions * 1e6 / (VARIABLES * STEPS * ROWS * COLUMNS)))
    archive = folder / f"large{suffix}"
    found = _measured("save", archive, sources) | _measured("open", archive, sources)
    return Row(sources=sources, **found)  # type: ignore[arg-type]


def table(rows: list[Row]) -> str:
    """The figures as a table in Markdown."""
    lines = [
        "| references | sources | keep s | join s | save s | us each | MB, save | MB on disk | open s | MB, open |",
        "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        each = (row.collect_s + row.join_s + row.save_s) / row.references * 1e6
        lines.append(
            f"| {row.references:,} | {row.sources:,} | {row.collect_s:.2f} | {row.join_s:.2f} | {row.save_s:.2f} "
            f"| {each:.2f} | {row.save_mb:.0f} | {row.disk_mb:.1f} | {row.open_s:.3f} | {row.open_mb:.0f} |"
        )
    largest = rows[-1]
    verdicts = [
        f"join + save of {largest.references:,} references within {LIMIT_MB} MB: "
        + ("met" if largest.save_mb <= LIMIT_MB else "MISSED"),
        f"open and one look-up within {OPEN_SECONDS:g} s and {OPEN_MB} MB: "
        + ("met" if largest.open_s <= OPEN_SECONDS and largest.open_mb <= OPEN_MB else "MISSED"),
    ]
    return "\n".join([*lines, "", *(f"- {verdict}" for verdict in verdicts)])


def page(rows: list[Row], command: str) -> str:
    """The figures as a page of the documentation."""
    date = datetime.now(UTC).date().isoformat()
    return (
        f"# Many references\n\nWritten by `{command}` on {date}, on a machine with {os.cpu_count()} cores.\n\n"
        f"Sources are made up, with {VARIABLES} variables of {STEPS * ROWS * COLUMNS:,} chunks each. *Keep* is what it "
        "takes to put aside what came of the scans, file by file; *MB* is the most memory that the process had, mapped "
        "files and the interpreter with its libraries included. Opening is measured in another process, "
        f"imports of xarray and zarr included, with a look-up of one reference.\n\n{table(rows)}\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.large", description=__doc__)
    parser.add_argument("--millions", type=float, nargs="+", default=SIZES, metavar="N", help="references, in millions")
    parser.add_argument("--sqlite", action="store_true", help="save as SQLite")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write a page")
    parser.add_argument("--run", nargs=3, metavar=("WHAT", "ARCHIVE", "SOURCES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        what, archive, sources = arguments.run
        print(json.dumps({"save": _save, "open": _open}[what](Path(archive), int(sources))))
        return 0
    rows = []
    for millions in arguments.millions:
        with tempfile.TemporaryDirectory(prefix="refindex-large-") as folder:
            rows.append(measure(millions, Path(folder), ".sqlite" if arguments.sqlite else ".refindex"))
        print(table(rows[-1:]), flush=True)
    print(f"\n{table(rows)}")
    if arguments.markdown is not None:
        command = shlex.join(["python", "-m", "tests.benchmarks.large", *sys.argv[1:]])
        arguments.markdown.write_text(page(rows, command))
    return 0


if __name__ == "__main__":
    sys.exit(main())
