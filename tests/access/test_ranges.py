"""Which requests are made for many ranges: every range in one of them, none larger or further apart than allowed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from refindex.access.ranges import Merging, merge

RANGES = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300), st.integers(0, 40)), max_size=25)


@given(ranges=RANGES, gap=st.integers(0, 20), limit=st.integers(1, 120), shift=st.sampled_from([0, 2**62]))
def test_every_range_is_in_one_request(ranges: list[tuple[int, int, int]], gap: int, limit: int, shift: int) -> None:
    source, offset, length = np.array(ranges, dtype=np.int64).reshape(-1, 3).T
    offset = offset + shift
    requests = merge(source, offset, length, Merging(gap=gap, limit=limit))
    assert sorted(requests.order.tolist()) == list(range(len(ranges)))
    assert requests.first[0] == 0
    assert requests.first[-1] == len(ranges)
    assert requests.nbytes == sum((requests.stop - requests.start).tolist())
    for number in range(len(requests)):
        inside = requests.order[requests.first[number] : requests.first[number + 1]]
        assert len(inside)
        assert set(source[inside].tolist()) == {requests.source[number]}
        start, stop = int(requests.start[number]), int(requests.stop[number])
        assert start == offset[inside].min()
        assert stop == (offset + length)[inside].max()
        assert stop - start <= limit or stop - start == length[inside].max() or _overlap(offset[inside], length[inside])
        reach = np.maximum.accumulate((offset + length)[inside])
        assert bool((offset[inside][1:] - reach[:-1] <= gap).all())


def _overlap(offset: np.ndarray, length: np.ndarray) -> bool:
    """Ranges that lie in each other cannot be cut apart."""
    return bool((offset[1:] < np.maximum.accumulate(offset + length)[:-1]).any())


@given(count=st.integers(1, 400), gap=st.integers(0, 5))
def test_neighbours_are_read_together(count: int, gap: int) -> None:
    offset = np.arange(count, dtype=np.int64) * (10 + gap)
    same, length = np.zeros(count, dtype=np.int64), np.full(count, 10, dtype=np.int64)
    assert len(merge(same, offset, length, Merging(gap=gap, limit=1 << 30))) == 1
    assert len(merge(same, offset, length, Merging(gap=gap, limit=10))) == count
    if gap:
        assert len(merge(same, offset, length, Merging(gap=gap - 1, limit=1 << 30))) == count
    # As many in each as the limit has room for.
    requests = merge(same, offset, length, Merging(gap=gap, limit=3 * (10 + gap)))
    assert len(requests) == -(-count // 3)
