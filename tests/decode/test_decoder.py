"""Decoding many chunks at once, into their place, and one by one gives the same; ISA-L and zlib do, too."""

from __future__ import annotations

import random
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex import DecodeError, Encoding, Filter
from refindex.decode import inflate as module
from refindex.decode.decoder import Decoder, declared
from refindex.decode.inflate import inflate
from refindex.decode.pipeline import decode
from refindex.model.dtype import Leaf


@pytest.fixture(params=["isal", "zlib"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "zlib":
        monkeypatch.setattr(module, "_isal", None)
    else:
        pytest.importorskip("isal")
    return str(request.param)


@pytest.mark.parametrize("level", [0, 1, 6, 9])
@pytest.mark.parametrize("size", [0, 1, 1000, 100_000])
def test_inflate(library: str, level: int, size: int) -> None:
    data = random.Random(0).randbytes(size // 2) + b"ab" * (size - size // 2)
    stream = zlib.compress(data, level)
    assert inflate(stream, len(data)) == data
    assert inflate(memoryview(stream), len(data)) == data
    assert inflate(bytearray(stream), len(data)) == data
    for window in (9, 15):
        packed = zlib.compressobj(level or 1, wbits=window)
        assert inflate(packed.compress(data) + packed.flush(), len(data)) == data


def test_what_does_not_inflate(library: str) -> None:
    data = bytes(range(256)) * 20
    stream = zlib.compress(data)
    cases = {
        b"": "truncated",
        stream[:-1]: "truncated",
        stream[: len(stream) // 2]: "truncated",
        stream[:-4] + b"\0\0\0\0": "check",
        b"\x1f\x8b" + stream[2:]: "header",
        zlib.compress(data * 100): "longer than the 5120 bytes",
    }
    for damaged, why in cases.items():
        with pytest.raises(DecodeError, match=f"deflate: .*{why}"):
            inflate(damaged, len(data))


@given(data=st.data())
def test_many_into_and_values_are_the_same(data: st.DataObject) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["<f4", ">f4", "<f8", "<i2", "|u1", "<c16", "|S3"])))
    served = dtype.newbyteorder(data.draw(st.sampled_from("<>"))) if dtype.kind != "S" else dtype
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    size = data.draw(st.sampled_from([dtype.itemsize, 1, 3]))
    filters = data.draw(st.sampled_from([(), (1,), (2,), (2, 1), (1, 2)]))
    encoding = Encoding(
        type=Leaf(dtype.str),
        shape=shape,
        filters=tuple(Filter(id=n, values=(size if n == 2 else 1,)) for n in filters),
    )
    seed = np.random.default_rng(data.draw(st.integers(0, 9)))
    values = [seed.integers(0, 90, size=shape).astype("i2").astype(dtype) for _ in range(3)]
    stored = [_encode(v.tobytes(), filters, size) for v in values]
    decoder = Decoder(encoding, served)
    many = decoder.many(stored)
    for chunk, found, expected in zip(stored, many, values, strict=True):
        assert np.array_equal(found, expected)
        assert np.array_equal(decoder.values(chunk), expected)
        assert np.array_equal(decode(chunk, encoding, served), expected)
        around = np.zeros([n + 2 for n in shape], dtype=served)
        inner = around[tuple(slice(1, -1) for _ in shape)]
        decoder.into(chunk, inner)
        assert np.array_equal(inner, expected)
        inner[...] = np.zeros((), dtype=served)
        assert not around.any() or around.dtype.kind == "S"
    with pytest.raises(DecodeError):
        decoder.many([stored[0], stored[1][:-1]] if filters != () else [stored[0] + b"x", stored[1][:-1]])


def _encode(data: bytes, filters: tuple[int, ...], size: int) -> bytes:
    for number in filters:
        if number == 1:
            data = zlib.compress(data, 1)
        else:
            whole = len(data) // size * size
            data = np.frombuffer(data[:whole], "u1").reshape(-1, size).T.tobytes() + data[whole:]
    return data


def test_declared_chains() -> None:
    served = np.dtype("<f4")
    first: dict[str, Any] = {"name": "bytes", "configuration": {"endian": "little"}}
    shuffle = {"name": "numcodecs.shuffle", "configuration": {"elementsize": 4}}
    found = declared([first, shuffle, {"name": "numcodecs.zlib", "configuration": {"level": 5}}], (2, 3), served)
    assert found is not None
    assert found.filters == (Filter(id=2, values=(4,)), Filter(id=1))
    assert (found.shape, found.type) == ((2, 3), Leaf("<f4"))
    for chain in ([], [{"name": "transpose"}, first], [first, {"name": "gzip"}], [{"name": "vlen-utf8"}]):
        assert declared(chain, (2, 3), served) is None
    assert declared([first], (2,), np.dtype([("a", "<i4")])) is None
