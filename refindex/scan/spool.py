"""What came of many files, kept small: in memory, in a temporary file, or in a folder from which a scan can go on."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.errors import ExistsError, FormatError, RefindexError
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.scan import journal as journals
from refindex.scan.journal import Journal
from refindex.scan.packed import (
    COLUMNS,
    Hierarchies,
    Hierarchy,
    Interner,
    Layout,
    Line,
    Packed,
    columns_of,
    derived,
    pack,
    row_size,
    unpack_report,
)
from refindex.scan.records import Records

MEMORY_ROWS = 2_000_000
"""References that are kept in memory, 64 MB; when there are more, all go to a temporary file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScannedFile:
    """A scanned file in a spool. What it has in common with others, they share.

    Parameters
    ----------
    nodes:
        Groups, then arrays, by path, without references.
    sources:
        The files that references are into, first the file itself (of a folder, the files in it).
    """

    url: str
    nodes: Mapping[str, Node]
    sources: tuple[Source, ...]
    _hierarchy: Hierarchy = field(repr=False)
    _layout: Layout = field(repr=False)
    _lines: tuple[Line, ...] = field(repr=False)
    _records: Records = field(repr=False)
    _at: int = field(repr=False)

    @property
    def arrays(self) -> list[str]:
        """Paths of the arrays."""
        return list(self._hierarchy.arrays)

    @property
    def report(self) -> ScanReport:
        """What the scan served of it, how, and what it did not."""
        return unpack_report(self.url, self._lines)

    @property
    def n_references(self) -> int:
        """Number of references of all arrays."""
        return sum(self._layout.counts)

    def count(self, path: str) -> int:
        """Number of references of an array; nothing is read for that."""
        return self._layout.counts[self._hierarchy.arrays[path]]

    def table(self, path: str, start: int = 0, stop: int | None = None) -> ChunkTable:
        """References of an array with chunk numbers from one on, up to another (None: to the end), in memory.

        Raises
        ------
        KeyError
            If there is no such array.
        SourceError
            If they cannot be read from where they are kept.
        """
        number = self._hierarchy.arrays[path]
        rows = slice(0, self._layout.counts[number])
        if not rows.stop:
            return ChunkTable.empty()
        if start or stop is not None:
            where = self._layout.columns(number, rows)["chunk"]
            chunk = np.frombuffer(self._records.read(self._at, [where])[0], dtype=COLUMNS[0][1])
            last = rows.stop if stop is None else int(np.searchsorted(chunk, stop))
            rows = slice(int(np.searchsorted(chunk, start)), last)
        columns = self._layout.columns(number, rows)
        data = self._layout.starts(number)[1], self._layout.sizes[number]
        *parts, inline = self._records.read(self._at, [*columns.values(), data])
        found: dict[str, Any] = {
            name: np.frombuffer(part, dtype=dtype)
            for part, (name, dtype) in zip(parts, columns_of(self._layout.checked), strict=True)
        }
        return ChunkTable(**found, data=inline)

    def manifest(self) -> Manifest:
        """All of it. Where the spool is not in memory, references are mapped from its file."""
        record, pages = self._records.view(self._at, self._layout.nbytes)
        tables = self._layout.tables(record, pages)
        arrays = {}
        for path, number in self._hierarchy.arrays.items():
            node = self.nodes[path]
            arrays[path] = Array(
                path=path,
                document=node.document,
                encodings=node.encodings,
                attribute_types=node.attribute_types,
                joined=node.joined,
                chunks=tables[number],
            ).knowing(**derived(node))
        return Manifest(groups=self._hierarchy.groups, arrays=arrays, sources=self.sources, report=self.report)


class Spool:
    """Takes scanned files one by one, and keeps them.

    Parameters
    ----------
    folder:
        Where they are kept so that a scan that is interrupted can go on (:meth:`resume`). None: nowhere that lasts.
    memory_rows:
        References that are kept in memory, without a folder.
    least:
        Files from which on a scan is worth a folder: one of fewer makes none.

    Raises
    ------
    ExistsError
        If the folder has what another scan has kept.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, *, memory_rows: int = MEMORY_ROWS, least: int = 0):
        self.folder = None if folder is None else Path(folder)
        self.files: dict[str, ScannedFile] = {}
        self.failures: dict[str, RefindexError] = {}
        self.rows = 0
        self._memory_rows, self._least = memory_rows, least
        self._records: Records | None = None
        self._journal: Journal | None = None
        self._asked: dict[str, Any] | None = None
        self.interner = Interner()
        self._hierarchies = Hierarchies()
        self._resuming = False
        if self.folder is not None and journals.kept(self.folder) is not None:
            raise ExistsError(f"{self.folder} has what another scan has kept; go on with it, or remove the folder")

    @classmethod
    def resume(cls, folder: str | os.PathLike[str], *, memory_rows: int = MEMORY_ROWS, least: int = 0) -> Spool:
        """A spool that goes on with what is kept in a folder; if there is nothing, it begins there."""
        spool = cls(memory_rows=memory_rows, least=least)
        spool.folder = Path(folder)
        spool._resuming = journals.kept(spool.folder) is not None
        return spool

    @property
    def is_kept(self) -> bool:
        """Whether there is a folder from which the scan can go on."""
        return self._journal is not None

    def begin(self, asked: Mapping[str, Any], sources: Sequence[str]) -> list[str]:
        """Make ready for a scan, and return which of the files must be scanned: all but those that are kept.

        Kept are files that were scanned before and are, if they are local, exactly what they were then. Those that
        failed are scanned again.

        Parameters
        ----------
        asked:
            What changes what a scan gives, as JSON.

        Raises
        ------
        FormatError
            If what is kept is of another version of refindex, or was asked for something else.
        ConflictError
            If another process has the folder.
        """
        self._begun(asked, sources)
        if self._asked != asked:
            raise FormatError(f"a spool takes the files of scans that ask for the same: {self._asked}, {asked}")
        for url in sources:
            self.failures.pop(url, None)
        return [url for url in sources if url not in self.files]

    def _begun(self, asked: Mapping[str, Any], sources: Sequence[str]) -> Records:
        if self._records is None:
            self._asked = dict(asked)
            few = bool(self._least) and len(sources) <= self._least and not self._resuming
            if self.folder is None or few:
                self._records = Records(memory=self._memory_rows * row_size(False))
            else:
                self._journal = Journal(self.folder, asked)
                self._records = self._journal.records
                for url, entry in self._journal.entries(sources, self.interner):
                    self._keep(url, entry.nodes, entry.layout, entry.sources, entry.report, self._records, entry.at)
        return self._records

    def add(self, url: str, manifest: Manifest) -> None:
        """Take a scanned file."""
        self.put(url, pack(url, manifest, self.interner))

    def put(self, url: str, packed: Packed) -> None:
        """Take a scanned file that was packed (in another process, maybe)."""
        records = self._begun({}, ())
        nodes = self.interner.nodes(packed.nodes)
        report = self.interner.value(packed.report)
        counts, sizes = self.interner.value(packed.counts), self.interner.value(packed.sizes)
        layout = self.interner.value(Layout(counts, sizes, packed.checked))
        if self._journal is None:
            at = records.append(packed.record)
        else:
            at = self._journal.add(
                url,
                Packed(
                    nodes=nodes,
                    counts=packed.counts,
                    sizes=packed.sizes,
                    record=packed.record,
                    sources=packed.sources,
                    report=report,
                    checked=packed.checked,
                ),
            )
        self._keep(url, nodes, layout, packed.sources, report, records, at)
        self.failures.pop(url, None)
        if self._journal is not None:
            self._journal.tick()

    def _keep(
        self,
        url: str,
        nodes: tuple[Node, ...],
        layout: Layout,
        sources: tuple[Source, ...],
        report: tuple[Line, ...],
        records: Records,
        at: int,
    ) -> None:
        hierarchy = self._hierarchies.of(nodes, len(layout.counts))
        self.files[url] = ScannedFile(
            url=url,
            nodes=hierarchy.nodes,
            sources=sources,
            _hierarchy=hierarchy,
            _layout=layout,
            _lines=report,
            _records=records,
            _at=at,
        )
        self.rows += sum(layout.counts)

    def fail(self, url: str, error: RefindexError) -> None:
        """Take note of a file that could not be scanned."""
        self.failures[url] = error
        if self._journal is not None:
            self._journal.fail(url, str(error))
            self._journal.tick()

    def failure(self, url: str) -> ReportEntry:
        """The entry in the report for a file that could not be scanned."""
        where = urls.display(url)
        reason = str(self.failures[url]).removeprefix(f"{where}: ")
        return ReportEntry(source=where, path="/", status=Status.FAILED, reason=reason)

    def flush(self) -> None:
        """Bring to the disk what a scan can go on with."""
        if self._journal is not None:
            self._journal.flush(durable=True)

    def close(self) -> None:
        """Write what is not written yet, and let another process have the folder. Files can still be read."""
        if self._journal is not None:
            self._journal.close()

    def remove(self) -> None:
        """Close it, and remove the folder: the scan has come to its end. Files can still be read."""
        if self.folder is not None and self._journal is not None:
            self._journal.close()
            journals.remove(self.folder)
            self._journal = None
