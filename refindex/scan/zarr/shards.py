"""Shards: the chunks within a chunk object (Zarr extension ``sharding_indexed`` 1.0).

A shard ends or begins with its index: offset and length of every inner chunk as uint64, in C order, both 2**64 - 1
where there is none ("Binary shard format"). Inner chunks become references of their own: the served array has the
inner chunk shape and the inner codecs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from refindex.errors import FormatError
from refindex.model.grid import ChunkGrid
from refindex.scan.zarr.plan import IntArray, Plan, extents
from refindex.scan.zarr.v3 import check_codecs, named

type Read = Callable[[IntArray, IntArray, IntArray], Sequence[bytes]]

_ABSENT = np.uint64(2**64 - 1)
_BATCH = 64 << 20
"""Bytes of shard indexes that are held at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class References:
    """Chunks of one array: number, row of the object that holds it, and where in that object it is."""

    chunk: IntArray
    row: IntArray
    offset: IntArray
    length: IntArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharding:
    """How a shard is cut. ``inner`` and ``counts`` are along the array's dimensions; ``order`` is that of a
    ``transpose`` before the sharding, which the index and the inner chunks follow."""

    inner: tuple[int, ...]
    counts: tuple[int, ...]
    order: tuple[int, ...]
    codecs: list[dict[str, Any]]
    checksum: bool
    big_endian: bool
    at_start: bool

    @property
    def n(self) -> int:
        """Chunks in a shard."""
        return math.prod(self.counts)

    @property
    def index_length(self) -> int:
        return 16 * self.n + 4 * self.checksum


def find_sharding(plan: Plan) -> Sharding | None:
    """The sharding of an array, or None if it has none that can be cut; a note then says why.

    What cannot be cut is served as whole shards, which zarr-python decodes.
    """
    codecs: list[dict[str, Any]] = plan.document["codecs"]
    names = [codec["name"] for codec in codecs]
    if "sharding_indexed" not in names:
        return None
    at = names.index("sharding_indexed")
    reason = None
    if at + 1 < len(names):
        reason = f"shards are encoded as a whole by {', '.join(names[at + 1 :])}"
    elif any(name != "transpose" for name in names[:at]) or at > 1:
        reason = f"{', '.join(names[:at])} comes before the sharding"
    elif not plan.grid.is_regular:
        reason = "shards have several shapes"
    sharding = None if reason else _parse(codecs[at].get("configuration", {}), codecs[:at], plan)
    if sharding is None:
        plan.notes.append(
            f"its chunks are whole shards, and a part of one cannot be read alone: {reason or 'their index is encoded'}"
        )
    return sharding


def _parse(configuration: dict[str, Any], before: list[dict[str, Any]], plan: Plan) -> Sharding | None:
    ndim = plan.grid.ndim
    order = tuple(before[0]["configuration"]["order"]) if before else tuple(range(ndim))
    stored = extents(configuration.get("chunk_shape"), "chunk_shape of sharding_indexed", least=1)
    if len(stored) != ndim:
        raise FormatError(f"sharding_indexed: {len(stored)} chunk lengths for {ndim} dimensions")
    # Dimension i of what is cut is dimension order[i] of the array.
    inner = [0] * ndim
    for axis, length in zip(order, stored, strict=True):
        inner[axis] = length
    shard = plan.grid.chunk_shape()
    if any(a % b for a, b in zip(shard, inner, strict=True)):
        raise FormatError(f"sharding_indexed: a shard of {shard} does not consist of chunks of {tuple(inner)}")
    location = configuration.get("index_location", "end")
    if location not in ("start", "end"):
        raise FormatError(f"sharding_indexed: index_location is {location!r}; expected 'start' or 'end'")
    given = configuration.get("index_codecs")
    if not isinstance(given, list):
        raise FormatError("sharding_indexed: there are no index_codecs")
    index = [named(codec, "index codec") for codec in given]
    if [codec["name"] for codec in index] not in (["bytes"], ["bytes", "crc32c"]):
        return None
    endian = index[0].get("configuration", {}).get("endian")
    if endian not in ("little", "big"):
        raise FormatError(f"sharding_indexed: the byte order of the index is {endian!r}")
    return Sharding(
        inner=tuple(inner),
        counts=tuple(a // b for a, b in zip(shard, inner, strict=True)),
        order=order,
        codecs=[*before, *check_codecs(configuration.get("codecs"), ndim)],
        checksum=len(index) == 2,
        big_endian=endian == "big",
        at_start=location == "start",
    )


def cut(sharding: Sharding, grid: ChunkGrid, shards: References, read: Read) -> tuple[ChunkGrid, References]:
    """The grid of inner chunks, and the references of those that there are.

    ``shards`` are the references of whole shards; ``read`` gives ranges of objects: rows, starts, lengths.

    Raises
    ------
    FormatError
        If an index is cut off, its checksum is wrong, or it points outside its shard.
    """
    inner = ChunkGrid.regular(grid.shape, sharding.inner)
    length = sharding.index_length
    short = np.flatnonzero(shards.length < length)
    if len(short):
        at = int(short[0])
        raise FormatError(
            f"shard {grid.key(int(shards.chunk[at]))} has {int(shards.length[at])} bytes; "
            f"its index alone takes {length}"
        )
    step = max(1, _BATCH // length)
    parts = []
    for first in range(0, len(shards.chunk), step):
        rows = slice(first, first + step)
        parts.append(
            _cut_batch(
                sharding,
                grid,
                inner,
                References(
                    chunk=shards.chunk[rows],
                    row=shards.row[rows],
                    offset=shards.offset[rows],
                    length=shards.length[rows],
                ),
                read,
            )
        )
    if not parts:
        return inner, shards
    return inner, References(
        chunk=np.concatenate([p.chunk for p in parts]),
        row=np.concatenate([p.row for p in parts]),
        offset=np.concatenate([p.offset for p in parts]),
        length=np.concatenate([p.length for p in parts]),
    )


def _cut_batch(sharding: Sharding, grid: ChunkGrid, inner: ChunkGrid, shards: References, read: Read) -> References:
    count, length = len(shards.chunk), sharding.index_length
    starts = np.zeros(count, dtype=np.int64) if sharding.at_start else shards.length - length
    blocks = read(shards.row, starts, np.full(count, length, dtype=np.int64))
    if sharding.checksum:
        for chunk, block in zip(shards.chunk, blocks, strict=True):
            # Codec crc32c 1.0: the checksum follows what it is of, little endian.
            if google_crc32c.value(block[:-4]) != int.from_bytes(block[-4:], "little"):
                raise FormatError(f"the index of shard {grid.key(int(chunk))} does not match its checksum")
    raw = np.frombuffer(b"".join(blocks), dtype=np.uint8).reshape(count, length)[:, : 16 * sharding.n]
    kind = ">u8" if sharding.big_endian else "<u8"
    index = np.ascontiguousarray(raw).view(kind).astype(np.uint64).reshape(count, sharding.n, 2)
    offset, nbytes = index[..., 0], index[..., 1]
    absent = (offset == _ABSENT) & (nbytes == _ABSENT)
    sizes = shards.length.astype(np.uint64)[:, np.newaxis]
    outside = ~absent & ((offset > sizes) | (nbytes > sizes - np.minimum(offset, sizes)))
    if np.any(outside):
        at, local = (int(n) for n in np.argwhere(outside)[0])
        raise FormatError(
            f"shard {grid.key(int(shards.chunk[at]))} of {int(shards.length[at])} bytes: its index has chunk "
            f"{local} at {int(offset[at, local])}, {int(nbytes[at, local])} bytes long"
        )
    shard, local = np.nonzero(~absent)
    inside, coordinates = _coordinates(sharding, grid, inner, shards.chunk[shard], local)
    shard, local = shard[inside], local[inside]
    return References(
        chunk=inner.index(coordinates[inside]),
        row=shards.row[shard],
        offset=offset[shard, local].astype(np.int64) + shards.offset[shard],
        length=nbytes[shard, local].astype(np.int64),
    )


def _coordinates(
    sharding: Sharding, grid: ChunkGrid, inner: ChunkGrid, chunk: IntArray, local: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.bool_], IntArray]:
    """Coordinates of inner chunks, and which lie in the array: shards at its edge reach beyond it."""
    counts = np.array(sharding.counts, dtype=np.int64)
    coordinates = grid.coordinates(chunk) * counts
    rest = local.astype(np.int64)
    for axis in reversed(sharding.order):  # the index is in C order of the dimensions as they are cut
        rest, along = np.divmod(rest, counts[axis])
        coordinates[:, axis] += along
    inside: npt.NDArray[np.bool_] = np.all(coordinates < np.array(inner.counts, dtype=np.int64), axis=1)
    return inside, coordinates
