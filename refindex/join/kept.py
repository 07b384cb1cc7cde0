"""Where the references of a join are kept until it is done: in memory while they are few, then in files."""

from __future__ import annotations

from collections.abc import Iterable

from refindex.access.spill import Extent, SpilledColumns
from refindex.model.chunks import ChunkTable

ROWS = 1 << 22
"""References that stay in memory: 128 MB."""


class Kept:
    """The references of the arrays of a join.

    Parameters
    ----------
    rows:
        How many stay in memory; ``ROWS`` if None.
    """

    def __init__(self, rows: int | None = None) -> None:
        self._left = ROWS if rows is None else rows
        self._spilled: SpilledColumns | None = None

    def add(self, tables: Iterable[ChunkTable], expected: int) -> ChunkTable | Extent:
        """Keep the references of one array, which come in the order of their chunk numbers.

        Parameters
        ----------
        expected:
            How many they are, about.
        """
        if expected <= self._left:
            table = ChunkTable.concatenate(list(tables))
            self._left -= len(table)
            return table
        self._spilled = self._spilled or SpilledColumns()
        return self._spilled.append_all(tables)

    def table(self, kept: ChunkTable | Extent) -> ChunkTable:
        """References that are kept. All of them have to be there when the first are asked for."""
        if isinstance(kept, ChunkTable):
            return kept
        return ChunkTable.empty() if self._spilled is None else self._spilled.table(kept)

    def close(self) -> None:
        """Close the files; tables that were asked for stay."""
        if self._spilled is not None:
            self._spilled.close()
