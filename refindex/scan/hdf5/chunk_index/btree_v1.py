"""The version 1 B-tree over chunks: the index of every file written with default settings.

HDF5 File Format Specification 4.0, section III.A.1 "Disk Format: Level 1A1 - Version 1 B-trees", node type
1. A key holds the stored bytes, the filter mask and the element offset of the chunk that the child after it
points at (in leaves, level 0) or that is first below it.
"""

from __future__ import annotations

import numpy as np

from refindex.access.gather import Block, Ranges, Walk, in_batches
from refindex.scan.hdf5.chunk_index.columns import Indexed, RawColumns, concatenate
from refindex.scan.hdf5.fields import Signed, Unsigned, unsigned

_RAW_DATA = 1


def walk(target: Indexed) -> Walk[RawColumns]:
    """One round a level; leaves in batches, so that their keys are never all in memory."""
    space = target.space
    header = 8 + 2 * space.offset_size
    key = 8 + 8 * (target.rank + 1)
    fan_out = 2 * target.indexed_storage_k
    size = header + fan_out * (key + space.offset_size) + key
    nodes = np.array([target.address], dtype=np.int64)
    # The root says how deep the tree is; each level below must be one less, so there can be no cycle.
    level = -1
    while True:
        children: list[Unsigned] = []
        chunks: list[RawColumns] = []
        for batch in in_batches((Ranges(offsets=nodes, length=size),)):
            (block,) = yield batch.asked
            level = int(block[0, 5]) if level < 0 else level
            entries = _entries(block, batch.asked[0].offsets, target, level)
            if level:
                children.append(unsigned(entries, key, space.offset_size))
            else:
                chunks.append(_chunks(entries, target))
        if not level:
            return concatenate(chunks, target.rank)
        nodes = _children(np.concatenate(children), target, level)
        if not len(nodes):
            return concatenate([], target.rank)
        level -= 1


def _entries(block: Block, offsets: Signed, target: Indexed, level: int) -> Block:
    """The used (key, child) pairs of all nodes, shape (n, bytes of a pair)."""
    space = target.space
    header = np.frombuffer(b"TREE" + bytes((_RAW_DATA, level)), dtype=np.uint8)
    wrong = np.flatnonzero((block[:, :6] != header).any(axis=1))
    if len(wrong):
        first = int(wrong[0])
        raise space.damaged(
            int(offsets[first]),
            "version 1 B-tree node",
            expected=f"signature, node type and level {header.tobytes()!r}",
            found=repr(block[first, :6].tobytes()),
        )
    used = unsigned(block, 6, 2)
    fan_out = 2 * target.indexed_storage_k
    too_many = np.flatnonzero(used > fan_out)
    if len(too_many):
        first = int(too_many[0])
        raise space.damaged(
            int(offsets[first]),
            "version 1 B-tree node",
            expected=f"at most {fan_out} entries",
            found=int(used[first]),
        )
    start = 8 + 2 * space.offset_size
    pair = 16 + 8 * target.rank + space.offset_size
    pairs = block[:, start : start + fan_out * pair].reshape(len(block), fan_out, pair).view(f"V{pair}")[..., 0]
    return pairs[np.arange(fan_out) < used[:, None]].view(np.uint8).reshape(-1, pair)


def _children(addresses: Unsigned, target: Indexed, level: int) -> Signed:
    nodes = target.space.absolute_column(addresses, f"child of a version 1 B-tree node of level {level}")
    if len(np.unique(nodes)) < len(nodes):
        raise target.space.damaged(
            target.address,
            f"version 1 B-tree, level {level}",
            expected="every child to have one parent",
            found="a child with several",
        )
    return nodes


def _chunks(entries: Block, target: Indexed) -> RawColumns:
    """The chunks of leaf entries. Offsets are in elements, with a last one inside the element, always 0."""
    space = target.space
    key = 16 + 8 * target.rank
    address = unsigned(entries, key, space.offset_size)
    stored = address != space.undefined
    if not stored.all():
        entries, address = entries[stored], address[stored]
    elements = entries[:, 8:key].view("<u8")
    scaled = np.empty((len(entries), target.rank), dtype=np.uint64)
    wrong = elements[:, -1] != 0
    for dim, size in enumerate(target.chunking.dims):
        # One dimension at a time: dividing by a scalar is several times faster.
        scaled[:, dim] = elements[:, dim] // np.uint64(size)
        wrong |= scaled[:, dim] * np.uint64(size) != elements[:, dim]
    if wrong.any():
        first = int(np.argmax(wrong))
        raise space.damaged(
            int(address[first]) + space.base,
            "version 1 B-tree key of the chunk",
            expected=f"an offset at multiples of {target.chunking.dims} and 0",
            found=tuple(elements[first].tolist()),
        )
    return RawColumns(
        scaled=scaled, address=address, length=unsigned(entries, 0, 4), filter_mask=unsigned(entries, 4, 4)
    )
