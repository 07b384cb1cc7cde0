"""Stored chunks: the filters that are undone without libhdf5, with hostile bytes, values and sizes."""

from __future__ import annotations

import bz2
import struct
import zlib
from random import Random
from typing import Any

import numcodecs
import numpy as np

from refindex.decode import filters
from refindex.decode.decoder import Decoder
from refindex.decode.pipeline import decode
from refindex.errors import UnsupportedError
from refindex.model.dtype import Leaf, StoredType, Struct, Subarray, Text, served_dtype
from refindex.model.encoding import BLOSC, BZIP2, DEFLATE, FLETCHER32, SHUFFLE, ZSTD, Encoding, Filter
from tests.fuzz.mutation import join as join_parts
from tests.fuzz.mutation import mutate_bytes, split
from tests.fuzz.target import FindingError, Target

_FILTERS = (DEFLATE, SHUFFLE, FLETCHER32, BZIP2, BLOSC, ZSTD)
_TYPES: tuple[StoredType, ...] = (
    Leaf("<i2"),
    Leaf(">f8"),
    Text(size=3, padding="spacepad"),
    Struct((("a", 0, Leaf("<i4")), ("b", 4, Leaf("<f4"))), 12),
    Subarray((3,), Leaf("<u2")),
)
_HEAD = struct.Struct("<BBBQIII")
"""Which type, which filters (digits of base 7), an unused byte; elements; three values of filters."""

_MOST = 1 << 16
"""Elements of a chunk: beyond, a chunk that is as large as it says takes longer to decode than is of use here."""

BOMB = 1 << 22
"""Bytes that a hundred bytes of a seed decode to; a chunk of it says it has fewer."""


def run(data: bytes) -> Any:
    head, chunk = split(data, 2)
    head = head.ljust(_HEAD.size, b"\0")
    kind, chosen, _, count, *values = _HEAD.unpack_from(head)
    stored = _TYPES[kind % len(_TYPES)]
    applied = []
    while chosen:
        chosen, number = divmod(chosen, 7)
        if number:
            applied.append(Filter(id=_FILTERS[number - 1], values=tuple(values)))
    trailing = stored.dims if isinstance(stored, Subarray) else ()
    encoding = Encoding(type=stored, shape=(_fewer(count), *trailing), filters=tuple(applied))
    if not filters.are_built_in(encoding.filters):
        raise UnsupportedError("for libhdf5")
    served = served_dtype(stored)
    found = decode(chunk, encoding, served)
    decoder = Decoder(encoding, served)
    out = np.empty(encoding.shape, dtype=served)
    decoder.into(chunk, out)
    several = decoder.many([chunk, chunk])
    if found.shape != encoding.shape or several.shape != (2, *encoding.shape):
        raise FindingError(f"values of shape {found.shape} of a chunk of {encoding.shape}")
    if found.tobytes() != out.tobytes() or several[1].tobytes() != found.tobytes():
        raise FindingError("three ways to decode, and not one result")
    return found


def _fewer(count: int) -> int:
    """No chunk has 2**62 elements: such numbers are passed on, to be refused."""
    return count if count < _MOST or count > 1 << 62 else count % _MOST


def run_many(data: bytes) -> Any:
    """As :func:`run`, by the other ways first, so that neither is protected by what the first one refuses."""
    head, chunk = split(data, 2)
    head = head.ljust(_HEAD.size, b"\0")
    kind, chosen, _, count, *values = _HEAD.unpack_from(head)
    stored = _TYPES[kind % 2]
    applied = tuple(
        Filter(id=_FILTERS[number - 1], values=tuple(values)) for number in (chosen % 7, chosen // 7 % 7) if number
    )
    encoding = Encoding(type=stored, shape=(_fewer(count),), filters=applied)
    if not filters.are_built_in(encoding.filters):
        raise UnsupportedError("for libhdf5")
    return Decoder(encoding, served_dtype(stored)).many([chunk, chunk, chunk])


def _seed(kind: int, chosen: tuple[int, ...], count: int, values: tuple[int, int, int], chunk: bytes) -> bytes:
    number = 0
    for one in reversed(chosen):
        number = number * 7 + 1 + _FILTERS.index(one)
    return join_parts([_HEAD.pack(kind, number, 0, count, *values), chunk])


def seeds() -> list[bytes]:
    raw = np.arange(50, dtype="<i2").tobytes()
    planes = np.frombuffer(raw, np.uint8).reshape(-1, 2).T.tobytes()
    blosc = bytes(numcodecs.Blosc(cname="lz4", shuffle=1).encode(np.arange(50, dtype="<i2")))
    zstd = bytes(numcodecs.Zstd(level=1).encode(raw))
    found = [
        _seed(0, (), 50, (0, 0, 0), raw),
        _seed(0, (DEFLATE,), 50, (6, 0, 0), zlib.compress(raw)),
        _seed(0, (SHUFFLE, DEFLATE), 50, (2, 0, 0), zlib.compress(planes)),
        _seed(0, (SHUFFLE,), 50, (2, 0, 0), planes),
        _seed(0, (FLETCHER32,), 50, (0, 0, 0), bytes(numcodecs.Fletcher32().encode(raw))),
        _seed(0, (BZIP2,), 50, (9, 0, 0), bz2.compress(raw)),
        _seed(0, (ZSTD,), 50, (3, 0, 0), zstd),
        _seed(0, (BLOSC,), 50, (2, 2, 2), blosc),
        _seed(1, (DEFLATE,), 4, (6, 0, 0), zlib.compress(bytes(32))),
        _seed(2, (DEFLATE,), 5, (6, 0, 0), zlib.compress(b"ab cd f  g\0 h  ")),
        _seed(3, (DEFLATE,), 2, (6, 0, 0), zlib.compress(bytes(24))),
        _seed(4, (DEFLATE,), 2, (6, 0, 0), zlib.compress(bytes(12))),
    ]
    for cname in ("blosclz", "zlib", "zstd"):
        packed = bytes(numcodecs.Blosc(cname=cname, shuffle=2).encode(np.arange(50, dtype="<i2")))
        found.append(_seed(0, (BLOSC,), 50, (2, 2, 2), packed))
    return found


def bombs() -> list[bytes]:
    """Chunks that hold much more than they say."""
    many = bytes(BOMB)
    return [
        _seed(0, (DEFLATE,), 50, (6, 0, 0), zlib.compress(many)),
        _seed(0, (BZIP2,), 50, (9, 0, 0), bz2.compress(many)),
        _seed(0, (BZIP2, DEFLATE), 50, (9, 0, 0), zlib.compress(bz2.compress(many))),
        _seed(0, (ZSTD,), 50, (3, 0, 0), bytes(numcodecs.Zstd(level=1).encode(many))),
        _seed(0, (BLOSC,), 50, (2, 2, 2), bytes(numcodecs.Blosc(cname="zlib").encode(many))),
    ]


def mutate(data: bytes, rng: Random) -> bytes:
    head, chunk = split(data, 2)
    if rng.random() < 0.3:
        head = mutate_bytes(head, rng, resize=0)
    if rng.random() < 0.8:
        chunk = mutate_bytes(chunk, rng, resize=0.3)
    return join_parts([head, chunk])


_MODULES = ("refindex.decode.filters", "refindex.decode.inflate", "refindex.decode.decoder", "refindex.decode.pipeline")
TARGETS = [
    Target(name="decode", run=run, seeds=seeds, mutate=mutate, modules=_MODULES),
    Target(name="decode-many", run=run_many, seeds=lambda: seeds()[:9], mutate=mutate, modules=_MODULES),
]
