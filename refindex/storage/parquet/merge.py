"""Fewer files: which of them a commit puts together, and how, without a whole one in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from refindex.storage import tables
from refindex.storage.parquet.files import LIMIT_ROWS, OpenFile

FILES = 10
"""So many files of a tier become one. A tier is a power of ten of rows."""

_LAST = np.iinfo(np.int64).max


def plan(rows: Sequence[int]) -> list[list[int]]:
    """Which parts (of so many rows) become one, as lists of their indices.

    Merging can fill the next tier: then that is merged too, at once, so that no row is written twice.
    """
    groups = [([index], count) for index, count in enumerate(rows)]
    while True:
        tiers: dict[int, list[int]] = {}
        for at, (_, count) in enumerate(groups):
            if count < LIMIT_ROWS:
                tiers.setdefault(len(str(max(count, 1))), []).append(at)
        full = next((members for members in tiers.values() if len(members) >= FILES), None)
        if full is None:
            return [indices for indices, _ in groups if len(indices) > 1]
        merged = (sorted(i for at in full for i in groups[at][0]), sum(groups[at][1] for at in full))
        groups = [group for at, group in enumerate(groups) if at not in set(full)] + [merged]


def merged(inputs: Iterable[Iterator[pa.Table]]) -> Iterator[pa.Table]:
    """Tables of references, each stream sorted by (path, chunk), as one stream of row groups that is sorted.

    Of every stream one table is in memory. Up to the least of their last rows, all rows are there: those are sorted
    and passed on.
    """
    streams = [(head, rest) for rest in inputs if (head := _next(rest)) is not None]

    def parts() -> Iterator[pa.Table]:
        nonlocal streams
        while streams:
            path, chunk = min(_last_key(head) for head, _ in streams)
            ready: list[pa.Table] = []
            left: list[tuple[pa.Table, Iterator[pa.Table]]] = []
            for head, rest in streams:
                count = _count(head, path, chunk)
                if count:
                    ready.append(head.slice(0, count))
                following = head.slice(count) if count < len(head) else _next(rest)
                if following is not None:
                    left.append((following, rest))
            streams = left
            table = pa.concat_tables(ready)
            if len(ready) > 1:
                table = table.sort_by([("path", "ascending"), ("chunk", "ascending")])
            yield from tables.slices(table)

    return tables.row_groups(parts())


def _next(stream: Iterator[pa.Table]) -> pa.Table | None:
    return next((table for table in stream if len(table)), None)


def _last_key(table: pa.Table) -> tuple[str, int]:
    row = table.select(["path", "chunk"]).slice(len(table) - 1).to_pylist()[0]
    return row["path"], row["chunk"]


def _count(table: pa.Table, path: str, chunk: int) -> int:
    """Number of rows, at the start of a sorted table, up to a path and chunk."""
    paths = table.column("path")
    up_to = pc.and_(pc.equal(paths, path), pc.less_equal(table.column("chunk"), chunk))
    return int(pc.sum(pc.or_(pc.less(paths, path), up_to)).as_py() or 0)


def kept(file: OpenFile, dropped: Mapping[str, int]) -> Iterator[pa.Table] | None:
    """The row groups of a file without the chunks that are dropped, None if it has none of those.

    Parameters
    ----------
    dropped:
        By path, the chunk number from which on rows go.
    """
    touched = {
        group.number: concerned
        for group in file.groups
        if (concerned := {path: first for path, first in dropped.items() if group.may_hold(path, first, _LAST)})
    }
    if not any(_goes(file.read_group(number), concerned).any() for number, concerned in touched.items()):
        return None

    def groups() -> Iterator[pa.Table]:
        for group in file.groups:
            table = file.read_group(group.number)
            if group.number in touched:
                table = table.filter(pa.array(~_goes(table, touched[group.number])))
            if len(table):
                yield table

    return tables.row_groups(groups())


def _goes(table: pa.Table, dropped: Mapping[str, int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Which rows are dropped."""
    index = pc.index_in(table.column("path"), value_set=pa.array(list(dropped), pa.string()))
    found = index.fill_null(-1).to_numpy()
    first = np.array([*dropped.values(), _LAST])[found]  # -1: not named
    goes: np.ndarray[tuple[int], np.dtype[np.bool_]] = (found >= 0) & (table.column("chunk").to_numpy() >= first)
    return goes
