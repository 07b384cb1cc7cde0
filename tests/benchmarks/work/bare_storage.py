"""Baselines: pyarrow and sqlite3 with nothing around them."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.benchmarks.columns import columns
from tests.benchmarks.work import Expected, Found, Measured

with contextlib.suppress(ImportError):
    # pyarrow imports pandas, where that is installed, when a value is first converted: not what is measured here.
    import pandas as pd  # noqa: F401


def write_columns(data: Path, expected: Expected) -> Measured:
    table = pa.table(columns(expected["references"]))

    def run(out: Path) -> Found:
        pq.write_table(table, out / "columns.parquet")
        return len(table), "references"

    return run


def find_parquet(data: Path, expected: Expected) -> Measured:
    (path,) = data.glob("archive.refindex/kind=chunk/part-*.parquet")

    def run(out: Path) -> Found:
        with pq.ParquetFile(path) as file:
            for number in range(file.metadata.num_row_groups):
                statistics = file.metadata.row_group(number).column(1).statistics
                if statistics.min <= expected["wanted"] <= statistics.max:
                    chunks = file.read_row_group(number, columns=["chunk", "source", "offset", "length"])
                    row = pc.index(chunks.column("chunk"), expected["wanted"]).as_py()
                    return chunks.column("offset")[row].as_py(), "offset"
        return -1, "offset"

    return run


def find_sqlite(data: Path, expected: Expected) -> Measured:
    def run(out: Path) -> Found:
        db = sqlite3.connect(data / "archive.sqlite")
        (node,) = db.execute("SELECT id FROM node WHERE path = 'v0'").fetchone()
        query = 'SELECT source, "offset", length FROM chunk WHERE node = ? AND chunk = ?'
        row = db.execute(query, (node, expected["wanted"])).fetchone()
        db.close()
        return row[1], "offset"

    return run
