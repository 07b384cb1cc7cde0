"""Copies of a whole version, row group by row group: how its references are read in order, and how they are written."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa

from refindex.access.files import StorageOptions
from refindex.access.options import filesystem
from refindex.errors import FormatError
from refindex.storage import tables
from refindex.storage.parquet import merge, writer
from refindex.storage.parquet.files import OpenFile
from refindex.storage.parquet.reader import ParquetReader
from refindex.storage.protocol import Copied, damaged

type _Key = tuple[str, float]


def batches(reader: ParquetReader, *, inline: bool) -> Iterator[pa.Table]:
    """The references in inline files, or those in all others, as row groups sorted by (path, chunk).

    A row group of each file that reaches over the same references is in memory, and no more.
    """
    with ExitStack() as stack:
        spans = []
        for file in reader.files("chunk"):
            if file.inline == inline and file.rows:
                opened = stack.enter_context(reader.open_file(file))
                spans.append((*_span(opened), opened))
        spans.sort(key=lambda span: span[:2])
        for members in _overlapping(spans):
            streams = [opened.read_groups() for opened in members]
            yield from merge.merged(streams) if len(streams) > 1 else tables.row_groups(streams[0])


def _span(opened: OpenFile) -> tuple[_Key, _Key]:
    """The least and greatest (path, chunk) that a file may hold, by the statistics of its row groups."""
    first, last = opened.groups[0], opened.groups[-1]
    if None in (first.first_path, last.last_path):
        raise opened.damaged("a row group of references has no statistics")
    # The chunk numbers are those of all paths in a row group.
    start = first.first_chunk if first.first_path == first.last_path else None
    stop = last.last_chunk if last.first_path == last.last_path else None
    return (first.first_path or "", start or 0), (last.last_path or "", np.inf if stop is None else stop)


def _overlapping(spans: Sequence[tuple[_Key, _Key, OpenFile]]) -> Iterator[list[OpenFile]]:
    """Files, sorted by where they begin, in groups of those that have to be merged."""
    members: list[OpenFile] = []
    stop: _Key = ("", -1)
    for first, last, opened in spans:
        if members and first > stop:
            yield members
            members = []
        members.append(opened)
        stop = max(stop, last)
    if members:
        yield members


def write(
    url: str,
    content: Copied,
    *,
    base: int | None,
    operation: str,
    details: Callable[[], Mapping[str, Any]],
    storage_options: StorageOptions,
) -> int:
    """Commit a whole version on top of ``base``, with a checkpoint; returns its number."""
    fs, root = filesystem(url, storage_options)
    with writer.Draft(fs, root, url, writer.previous(fs, root, url, base)) as draft:
        draft.files = {}
        draft.write("node", [tables.node_table(content.nodes.values())])
        draft.write("source", [tables.source_table(content.sources, draft.base)])
        draft.write("placement", [tables.placement_table(content.placements)])
        draft.write("report", [tables.report_table(content.report, draft.base)])
        for inline in (False, True):
            draft.write("chunk", checked(content.chunks(inline)), inline=inline)
        return draft.commit(operation, details(), checkpointed=True)


def checked(stream: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Row groups as they are, if their rows are sound and in order, and no chunk is there twice.

    Raises
    ------
    ManifestError
        If not: the archive that is copied is damaged.
    """
    before = ("", -1)
    for table in stream:
        try:
            arrays = tables.by_path(table)
            paths = list(arrays)
            first, last = (paths[0], int(arrays[paths[0]].chunk[0])), (paths[-1], int(arrays[paths[-1]].chunk[-1]))
            if first <= before or any(one >= other for one, other in itertools.pairwise(paths)):
                raise FormatError("they are not in order, or there twice")
        except FormatError as error:
            raise damaged(error) from error
        before = last
        yield table
