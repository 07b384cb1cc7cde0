"""Chunk tables, beside a plain dictionary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex import ChunkTable, FormatError
from refindex.model.chunks import INLINE

ROWS = st.dictionaries(
    st.integers(0, 200),
    st.tuples(st.integers(0, 3), st.integers(0, 2**40), st.integers(0, 2**31)) | st.binary(max_size=5),
    max_size=40,
)


def build(rows: dict[int, object]) -> ChunkTable:
    references = {k: v for k, v in rows.items() if isinstance(v, tuple)}
    inline = {k: v for k, v in rows.items() if isinstance(v, bytes)}
    columns = np.array(list(references.values()), dtype=np.int64).reshape(-1, 3)
    pointed = ChunkTable.from_columns(
        chunk=list(references), source=columns[:, 0], offset=columns[:, 1], length=columns[:, 2]
    )
    return ChunkTable.concatenate([pointed, ChunkTable.inline(list(inline.items()))])


def contents(table: ChunkTable) -> dict[int, object]:
    return {
        int(table.chunk[i]): table.inline_bytes(i)
        if table.source[i] == INLINE
        else (int(table.source[i]), int(table.offset[i]), int(table.length[i]))
        for i in range(len(table))
    }


@given(rows=ROWS, wanted=st.lists(st.integers(0, 220)))
def test_a_table_is_a_dictionary(rows: dict[int, object], wanted: list[int]) -> None:
    table = build(rows)
    assert contents(table) == rows
    assert list(table.chunk) == sorted(rows)
    found = table.find(wanted)
    assert [int(table.chunk[r]) if r >= 0 else None for r in found] == [w if w in rows else None for w in wanted]
    kept = sorted({w for w in wanted if w in rows})
    assert contents(table.take(table.find(kept))) == {k: rows[k] for k in kept}


@given(rows=ROWS)
def test_sources_are_renumbered(rows: dict[int, object]) -> None:
    mapped = build(rows).with_sources([7, 5, 6, 4])
    expected = {k: ((7, 5, 6, 4)[v[0]], *v[1:]) if isinstance(v, tuple) else v for k, v in rows.items()}
    assert contents(mapped) == expected


@given(rows=ROWS, other=ROWS)
def test_same_references(rows: dict[int, object], other: dict[int, object]) -> None:
    assert build(rows).same_references(build(dict(reversed(rows.items()))))
    assert build(rows).same_references(build(other)) == (rows == other)


@pytest.mark.parametrize(
    "columns",
    [
        {"chunk": [1, 1], "source": 0, "offset": [0, 0], "length": [1, 1]},
        {"chunk": [-1], "source": 0, "offset": [0], "length": [1]},
        {"chunk": [1], "source": 0, "offset": [-5], "length": [1]},
        {"chunk": [1], "source": 0, "offset": [5], "length": [-1]},
        {"chunk": [1], "source": 0, "offset": [5, 6], "length": [1]},
    ],
)
def test_impossible_tables(columns: dict[str, object]) -> None:
    with pytest.raises(FormatError, match="chunk table"):
        ChunkTable.from_columns(**columns)  # type: ignore[arg-type]
