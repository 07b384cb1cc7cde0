"""References in files: what comes back is what was written, mapped, alone or with others."""

import pickle
import tempfile
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
        checksum=draw(st.none() | st.lists(st.integers(-1, (1 << 32) - 1), min_size=n, max_size=n)),
    )


@given(st.lists(tables(), max_size=6), st.integers(0, 6))
def test_every_table_comes_back(written: Sequence[ChunkTable], before: int) -> None:
    with closing(SpilledColumns()) as columns:
        extents = []
        for number, table in enumerate(written):
            extents.append(columns.append(table))
            if number == before:  # what is mapped while others are still to come
                early = columns.table(extents[0])
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
        assert columns.table(extent).same_references(expected)


def test_a_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(SourceError, match="nowhere.*cannot be kept here"):
        SpilledColumns()


def test_rows_that_were_never_written() -> None:
    with closing(SpilledColumns()) as columns, pytest.raises(SourceError, match="have 0 rows, not 3"):
        columns.table(Extent(first=0, count=3))
