"""References in files: what comes back is what was written, read or mapped, alone or with others."""

import pickle
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from refindex import SourceError
from refindex.access.spill import Extent, SpilledColumns
from refindex.model.chunks import INLINE, ChunkTable


@st.composite
def tables(draw: st.DrawFn, first: int = 0) -> ChunkTable:
    """Tables of references, some inline, with any numbers."""
    gaps = draw(st.lists(st.integers(1, 1 << 40), max_size=12))
    n = len(gaps)
    numbers = st.integers(0, (1 << 62))
    inline = draw(st.lists(st.one_of(st.none(), st.binary(max_size=9)), min_size=n, max_size=n))
    lengths = [draw(numbers) if data is None else len(data) for data in inline]
    ends = np.cumsum([0 if data is None else len(data) for data in inline])
    return ChunkTable.from_columns(
        chunk=first + np.cumsum(gaps) if n else [],
        source=[draw(st.integers(0, (1 << 31) - 1)) if data is None else INLINE for data in inline],
        offset=[
            draw(numbers) if data is None else int(end) - len(data) for data, end in zip(inline, ends, strict=True)
        ],
        length=lengths,
        encoding=[draw(st.integers(-1, (1 << 31) - 1)) for _ in range(n)],
        data=b"".join(data or b"" for data in inline),
    )


@given(st.lists(tables(), max_size=6), st.integers(0, 6))
def test_every_table_comes_back(written: Sequence[ChunkTable], before: int) -> None:
    with closing(SpilledColumns()) as columns:
        extents = []
        for number, table in enumerate(written):
            extents.append(columns.append(table))
            if number == before:  # what is mapped while others are still to come
                early = columns.table(extents[0])
        for extent, table in zip(extents, written, strict=True):
            assert columns.read(extent).same_references(table)
        mapped = [columns.table(extent) for extent in extents]
    # The files are closed, and gone: what was mapped stays.
    if before < len(written):
        mapped[0] = early
    for one, table in zip(mapped, written, strict=True):
        assert one.same_references(table)
        if one.pages is not None:
            one.pages.release()
        assert one.same_references(table)
        assert pickle.loads(pickle.dumps(one)).same_references(table)


@st.composite
def parts(draw: st.DrawFn) -> list[ChunkTable]:
    """Parts of one table, in the order of their chunks."""
    found: list[ChunkTable] = []
    for _ in range(draw(st.integers(1, 4))):
        last = next((int(part.chunk[-1]) + 1 for part in reversed(found) if len(part)), 0)
        found.append(draw(tables(first=last)))
    return found


@given(parts())
def test_parts_become_one_table(found: list[ChunkTable]) -> None:
    expected = ChunkTable.concatenate(found)
    with closing(SpilledColumns()) as columns:
        columns.append(found[0])  # others lie before it
        extent = columns.append_all(found)
        assert columns.read(extent).same_references(expected)
        assert columns.table(extent).same_references(expected)


def test_files_that_stay_are_added_to(tmp_path: Path) -> None:
    one = ChunkTable.inline([(0, b"one"), (5, b"five")])
    two = ChunkTable.from_columns(chunk=[1, 2], source=[3, 4], offset=[5, 6], length=[7, 8], encoding=[9, 10])
    with closing(SpilledColumns(tmp_path)) as columns:
        first = columns.append(one)
        lost = columns.append(two)
        columns.flush(durable=True)
    with closing(SpilledColumns(tmp_path)) as columns:
        assert columns.read(lost).same_references(two)
        columns.truncate(lost.first, lost.data)
        second = columns.append(two)
        assert second == lost
    with closing(SpilledColumns(tmp_path)) as columns:
        assert columns.read(first).same_references(one)
        assert columns.read(second).same_references(two)


def test_files_that_are_cut_are_not_read_beyond(tmp_path: Path) -> None:
    with closing(SpilledColumns(tmp_path)) as columns:
        extent = columns.append(ChunkTable.from_columns(chunk=range(10), source=0, offset=range(10), length=1))
    (tmp_path / "length").write_bytes(b"")
    with closing(SpilledColumns(tmp_path)) as columns:
        assert columns.rows == 0
        with pytest.raises(SourceError, match="column length is cut"):
            columns.read(extent)
        with pytest.raises(SourceError):
            columns.table(Extent(first=0, count=3))


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere.*cannot be kept here"):
        SpilledColumns(tmp_path / "nowhere")
