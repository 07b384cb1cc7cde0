"""What remote scans are made of: parts of files in memory, several ranges in one answer, walks side by side."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex.access.gather import LocalGatherer, Ranges, Walk, drive_together
from refindex.access.multipart import MultipartError, parse_multipart
from refindex.access.segments import Segments
from refindex.access.transport import RemoteStats
from refindex.errors import FormatError

SIZE = 60
DATA = bytes(range(SIZE))

spans = st.lists(
    st.tuples(st.integers(0, SIZE), st.integers(0, 15)).map(lambda s: (s[0], min(SIZE, s[0] + s[1]))), max_size=8
)


@given(added=spans, wanted=spans)
def test_segments_are_what_was_added(added: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> None:
    held, there = Segments(), set[int]()
    for start, stop in added:
        held.add(start, DATA[start:stop])
        there |= set(range(start, stop))
    assert held.nbytes == len(there)
    missing = held.missing(wanted)
    asked = {at for start, stop in wanted for at in range(start, stop)}
    assert {at for start, stop in missing for at in range(start, stop)} == asked - there
    assert all(a[1] < b[0] for a, b in itertools.pairwise(missing))
    for start, stop in wanted:
        if set(range(start, stop)) <= there:
            assert held.read(start, stop) == DATA[start:stop]
        else:
            with pytest.raises(LookupError):
                held.read(start, stop)


@given(added=spans, most=st.integers(0, SIZE))
def test_shrinking_keeps_the_beginning(added: list[tuple[int, int]], most: int) -> None:
    held = Segments()
    held.add(0, DATA[:5])
    for start, stop in added:
        held.add(start, DATA[start:stop])
    held.shrink(most)
    assert held.nbytes <= max(most, 20)
    assert held.read(0, 5) == DATA[:5]
    for start, stop in added:
        for begin, end in held.missing([(start, stop)]):
            held.add(begin, DATA[begin:end])
        assert held.read(start, stop) == DATA[start:stop]


def body(*parts: tuple[int, bytes], boundary: bytes = b"B", size: object = SIZE, before: bytes = b"") -> bytes:
    made = before
    for start, data in parts:
        header = f"Content-Type: x\r\nContent-Range: bytes {start}-{start + len(data) - 1}/{size}".encode()
        made += b"\r\n--" + boundary + b"\r\n" + header + b"\r\n\r\n" + data
    return made + b"\r\n--" + boundary + b"--\r\n"


def test_several_ranges_in_one_answer() -> None:
    # Data may look like a boundary, and a preamble is allowed (RFC 2046, 5.1.1).
    odd = b"\r\n--B\r\nContent-Range: bytes 0-0/1\r\n\r\nx\r\n--B--"
    found = parse_multipart(body((7, DATA[7:9]), (20, odd), before=b"hello"), 'multipart/byteranges; boundary="B"')
    assert [(piece.start, piece.data, piece.size) for piece in found] == [(7, DATA[7:9], SIZE), (20, odd, SIZE)]
    (piece,) = parse_multipart(body((0, b"x"), size="*"), "multipart/byteranges; charset=x; boundary=B")
    assert piece.size is None


@pytest.mark.parametrize("more", [-1, 1])
def test_ranges_of_another_length_than_they_say(more: int) -> None:
    sound = body((7, DATA[7:30]), (31, DATA[31:40]))
    for last in (b"-29/", b"-39/"):
        wrong = sound.replace(last, b"-%d/" % (int(last[1:3]) + more))
        with pytest.raises(MultipartError):
            parse_multipart(wrong, "multipart/byteranges; boundary=B")


@given(st.data())
def test_any_answer_is_ranges_or_refused(data: st.DataObject) -> None:
    sound = body((7, DATA[7:30]), (31, DATA[31:40]))
    at = data.draw(st.integers(0, len(sound)))
    cut = data.draw(st.integers(0, 9))
    damaged = sound[:at] + data.draw(st.binary(max_size=9)) + sound[at + cut :]
    try:
        found = parse_multipart(damaged, "multipart/byteranges; boundary=B")
    except MultipartError:
        return
    assert found
    assert all(len(piece.data) > 0 for piece in found)


@pytest.mark.parametrize("kind", ["multipart/byteranges", "multipart/byteranges; boundary=", "x; boundary=C"])
def test_answers_without_their_boundary(kind: str) -> None:
    with pytest.raises(MultipartError):
        parse_multipart(body((7, DATA[7:30])), kind)


def test_walks_side_by_side() -> None:
    asked: list[int] = []

    class Counting(LocalGatherer):
        def gather(self, asked_now, /):
            asked.append(len(asked_now))
            return super().gather(asked_now)

    ended: list[str] = []

    def walk(name: str, *offsets: int, length: int = 4) -> Walk[None]:
        try:
            for offset in offsets:
                blocks = yield (Ranges.one(offset, length), Ranges.one(0, 1))
                assert blocks[0].tobytes() == DATA[offset : offset + length]
                assert len(blocks) == 2
            ended.append(name)
        finally:
            ended.append(f"-{name}")

    def damaged() -> Walk[None]:
        yield (Ranges.one(0, 1),)
        raise FormatError("damaged")

    gatherer = Counting(DATA, name="x")
    drive_together(
        [walk("a", 1, 2, 3), walk("outside", 1, SIZE), damaged(), walk("b", 5), walk("long", 0, length=50)],
        gatherer,
        most=40,
    )
    assert asked == [7, 2, 2]
    assert [name for name in ended if not name.startswith("-")] == ["b", "a"]
    assert {name for name in ended if name.startswith("-")} == {"-a", "-b", "-outside", "-long"}
    asked.clear()
    drive_together([], gatherer, most=40)
    assert asked == []


def test_stats_travel() -> None:
    stats = RemoteStats()
    stats.add(requests=2, nbytes=10, retries=1, files=1)
    there = pickle.loads(pickle.dumps(stats))
    assert there == stats
    there.merge(stats)
    assert (there.requests, there.nbytes, there.retries, there.files) == (4, 20, 2, 2)
    assert np.isclose(stats.nbytes, 10)
