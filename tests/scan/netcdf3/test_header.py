"""The header's reader: what it understands, what it refuses, and that nothing else ever comes out of it."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path
from time import perf_counter

import pytest
from classic import FORMATS, TYPES, Classic, Var, damaged, example, opened

from refindex.errors import FormatError, SourceError, UnsupportedError
from refindex.scan.netcdf3.header import Header, read_header
from refindex.scan.netcdf3.layout import lay_out


def parse(data: bytes, *, size: int | None = None) -> Header:
    return read_header(lambda offset, length: data[offset : offset + length], name="a.nc", size=size or len(data))


@pytest.mark.parametrize("version", FORMATS)
def test_all_parts(version: int) -> None:
    made = example(version)
    header = parse(made.header())
    assert header.version == version
    assert header.records == 2
    assert header.nbytes == len(made.header())
    assert [(d.name, d.length) for d in header.dimensions] == [("time", 0), ("xyz", 3)]
    assert [(a.name, a.dtype.str, a.values) for a in header.attributes] == [
        ("title", "|S1", b"hello"),
        ("empty", ">i4", b""),
    ]
    assert [(v.name, v.dimensions, v.dtype.str, v.begin) for v in header.variables] == [
        ("pos", (1,), ">f4", 1000),
        ("t", (0, 1), ">i2", 1012),
        ("u", (0,), "|i1", 1020),
    ]
    assert [a.name for a in header.variables[0].attributes] == ["units", "range", "flags"]
    assert made.header()[header.variables[1].position :].startswith(made.name("t"))


@pytest.mark.parametrize("version", FORMATS)
def test_types(version: int) -> None:
    kinds = TYPES[version]
    made = Classic(version=version, variables=[Var(name=k, dims=[], type=k, begin=0) for k in kinds])
    assert [v.dtype.newbyteorder("=").str[1:] for v in parse(made.header()).variables] == list(kinds)


def test_every_prefix_is_refused() -> None:
    for version in FORMATS:
        whole = example(version).header()
        for length in range(len(whole)):
            with pytest.raises(FormatError, match=r"^a\.nc: .* at offset \d+: expected .*found"):
                parse(whole[:length])
        parse(whole)


def test_headers_longer_than_the_first_read() -> None:
    made = Classic(
        dims=[(f"dimension_{i}", i + 1) for i in range(3000)],
        attributes=[("history", "S1", b"x" * 300_000)],
        variables=[Var(name=f"variable_{i}", dims=[i, 0], type="f8", begin=0) for i in range(3000)],
    )
    data = made.header() + bytes(1000)
    reads: list[tuple[int, int]] = []

    def read(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return data[offset : offset + length]

    header = read_header(read, name="a.nc", size=len(data))
    assert [v.name for v in header.variables] == [f"variable_{i}" for i in range(3000)]
    assert header.nbytes == len(made.header())
    # Windows that grow, each byte asked for once.
    assert len(reads) <= 4
    assert [offset for offset, _ in reads] == [0, *(offset + length for offset, length in reads[:-1])]


def test_names() -> None:
    made = Classic(dims=[("größe_日本", 2), (b"gr\xf6\xdfe", 3), (b"cut\0here", 4), ("", 5)])
    header = parse(made.header())
    assert [d.name for d in header.dimensions] == ["größe_日本", "größe", "cut", ""]
    assert header.notes == (r"the name of a dimension b'gr\xf6\xdfe' at offset 40 is not UTF-8: read as Latin-1",)


REFUSED = {
    "magic": (b"CDF\x03" + bytes(28), FormatError, "magic number at offset 0"),
    "tag": (b"CDF\1" + struct.pack(">3I", 0, 12, 1) + bytes(40), FormatError, "tag of the dimensions at offset 8"),
    "count": (b"CDF\1" + struct.pack(">3I", 0, 10, 2**31) + bytes(40), FormatError, "expected at most 5 .*2147483648"),
    "name": (b"CDF\1" + struct.pack(">4I", 0, 10, 1, 2**32 - 1) + bytes(9), FormatError, "the name of a dimension"),
    "type": (Classic(attributes=[("a", 12, b"")]).header(), FormatError, "expected 1 to 11, found 12"),
    "zero": (Classic(attributes=[("a", 0, b"")]).header(), FormatError, "expected 1 to 11, found 0"),
    "values": (
        Classic(attributes=[("a", "f8", bytes(8))]).header()[:-20] + b"\x7f" + bytes(19),
        FormatError,
        "length of attribute 'a'",
    ),
    "length": (Classic(version=5, dims=[("x", 2**63)]).header(), FormatError, r"expected below 2\*\*63"),
    "begin": (
        Classic(variables=[Var(name="v", dims=[], type="i4", begin=2**31)]).header(),
        FormatError,
        "begin of variable 'v' at offset",
    ),
    "rank": (
        Classic(dims=[("x", 1)], variables=[Var(name="v", dims=[0] * 1025, type="i1", begin=9000)]).header(),
        UnsupportedError,
        "expected up to 1024, found 1025",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str) -> None:
    data, error, match = REFUSED[case]
    with pytest.raises(error, match=match) as caught:
        parse(data)
    assert str(caught.value).startswith("a.nc: ")
    assert "found" in str(caught.value)


def test_absurd_sizes_cost_nothing() -> None:
    """Counts that a large (sparse) file has room for, but that nobody writes on purpose."""
    tracemalloc.start()
    try:
        for tag, at in ((10, 8), (12, 16), (11, 24)):
            head = bytearray(64)
            head[:4] = b"CDF\1"
            struct.pack_into(">2I", head, at, tag, 2**30)
            with pytest.raises(UnsupportedError, match="expected up to 1048576"):
                read_header(lambda o, n, h=bytes(head): h[o : o + n].ljust(n, b"\0"), name="a.nc", size=2**45)
        long = b"CDF\1" + struct.pack(">4I", 0, 10, 1, 2**31)
        with pytest.raises(UnsupportedError, match="expected a header of up to"):
            read_header(lambda o, n: long[o : o + n].ljust(n, b"\0"), name="a.nc", size=2**45)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_file_that_becomes_shorter() -> None:
    with pytest.raises(SourceError, match="expected 65536 bytes at offset 0, found 120: the file has become shorter"):
        parse(Classic(dims=[("x" * 80, 1)]).header(), size=10**6)


@pytest.mark.parametrize("version", FORMATS)
def test_damage_gives_a_header_or_an_error(version: int) -> None:
    """Parse, or the errors that say what is wrong, and never another; in bounded time and memory."""
    whole = example(version).header() + bytes(3000)
    outcomes: dict[str, int] = {}
    tracemalloc.start()
    slowest = 0.0
    try:
        for seed in range(4000):
            data = damaged(whole, seed)
            start = perf_counter()
            try:
                lay_out(parse(data), name="a.nc", size=len(data))
                outcome = "parsed"
            except (FormatError, UnsupportedError) as error:
                outcome = type(error).__name__
            slowest = max(slowest, perf_counter() - start)
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    assert slowest < 1
    assert outcomes["parsed"] > 100
    assert outcomes["FormatError"] > 100


def test_the_helper_writes_what_netcdf_c_reads(tmp_path: Path) -> None:
    for version in FORMATS:
        path = example(version).write(tmp_path / "e.nc", (1000, bytes(100)))
        with opened(path) as file:
            assert file.data_model == FORMATS[version]
            assert file["t"].shape == (2, 3)
