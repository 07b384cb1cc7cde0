"""The version 2 B-tree over chunks: the index when more than one dimension is unlimited.

HDF5 File Format Specification 4.0, section III.A.2 "Disk Format: Level 1A2 - Version 2 B-trees", and
section VII.E (Appendix C), record types 10 (chunks without filters) and 11 (with).

Internal nodes hold records too. Their child pointers follow the records *in use*, and the widths of the
counts in a pointer come from how many records a node of the level below, and its whole subtree, can hold.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from refindex.access.gather import Block, Ranges, Walk, in_batches, records_at
from refindex.scan.hdf5.checksum import verify_checksum, verify_checksums
from refindex.scan.hdf5.chunk_index.columns import Indexed, RawColumns, concatenate
from refindex.scan.hdf5.fields import Cursor, Signed, Unsigned, unsigned

_OVERHEAD = 10
"""Signature, version, type and checksum of a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """Nodes of one height above the leaves. ``total_width`` is 0 where children are leaves."""

    max_records: int
    count_width: int
    total_width: int
    pointer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tree:
    node_size: int
    record: int
    kind: int
    levels: tuple[_Level, ...]
    root: int
    root_records: int
    total: int


def walk(target: Indexed) -> Walk[RawColumns]:
    """A round for the header, then one a level, in batches."""
    tree = yield from _header(target)
    if tree is None:
        return concatenate([], target.rank)
    nodes = np.array([tree.root], dtype=np.int64)
    counts = np.array([tree.root_records], dtype=np.uint64)
    parts: list[RawColumns] = []
    for height in range(len(tree.levels) - 1, -1, -1):
        children: list[Unsigned] = []
        child_counts: list[Unsigned] = []
        for batch in in_batches((Ranges(offsets=nodes, length=tree.node_size),)):
            (block,) = yield batch.asked
            rows = batch.pieces[0][1]
            _check_nodes(block, nodes[rows], counts[rows], target, tree=tree, height=height)
            parts.append(_records(block, counts[rows], tree, target))
            if height:
                pointers = _pointers(block, counts[rows], tree, height)
                children.append(unsigned(pointers, 0, target.space.offset_size))
                child_counts.append(unsigned(pointers, target.space.offset_size, tree.levels[height].count_width))
        if height:
            counts = np.concatenate(child_counts)
            nodes = _children(np.concatenate(children), target, height)
    columns = concatenate(parts, target.rank)
    if len(columns.address) != tree.total:
        raise target.space.damaged(
            target.address, "version 2 B-tree", expected=f"{tree.total} records", found=len(columns.address)
        )
    return _stored(columns, target)


def _header(target: Indexed) -> Generator[Sequence[Ranges], Sequence[Block], _Tree | None]:
    space = target.space
    (block,) = yield (Ranges.one(target.address, 22 + space.offset_size + space.length_size),)
    cursor = Cursor(block.tobytes(), space=space, address=target.address, what="version 2 B-tree header")
    cursor.expect(b"BTHD", "signature")
    cursor.expect(0, "version")
    kind = 11 if target.filtered else 10
    cursor.expect(kind, "record type (11: filtered chunks)")
    node_size = cursor.uint(4)
    record = space.offset_size + (target.size_width + 4 if target.filtered else 0) + 8 * target.rank
    cursor.expect(record, "record size", 2)
    depth = cursor.uint(2)
    cursor.take(2)  # split and merge percent
    root, root_records, total = cursor.offset(), cursor.uint(2), cursor.length()
    if target.verify:
        verify_checksum(block.tobytes(), cursor)
    if root is None:
        return None
    return _Tree(
        node_size=node_size,
        record=record,
        kind=kind,
        levels=_levels(cursor, node_size, record, depth),
        root=root,
        root_records=root_records,
        total=total,
    )


def _levels(cursor: Cursor, node_size: int, record: int, depth: int) -> tuple[_Level, ...]:
    """What nodes of each height can hold, from the leaves up."""
    leaf = (node_size - _OVERHEAD) // record
    # Counts are written in as many bytes as the largest one needs; one leaf's for all levels.
    count_width = max(1, -(-leaf.bit_length() // 8))
    levels = [_Level(max_records=leaf, count_width=count_width, total_width=0, pointer=0)]
    below, total_width = leaf, 0
    for _ in range(depth):
        pointer = cursor.space.offset_size + count_width + total_width
        fits = (node_size - _OVERHEAD - pointer) // (record + pointer)
        levels.append(_Level(max_records=fits, count_width=count_width, total_width=total_width, pointer=pointer))
        below = (fits + 1) * below + fits
        total_width = -(-below.bit_length() // 8)
        # The depth comes from the file: it ends here once no 64-bit count of records is left to justify it.
        if fits < 1 or below >= 2**64:
            break
    if leaf < 1 or len(levels) <= depth:
        raise cursor.damaged(
            expected="a node size and a depth that a tree can have", found=f"{node_size} bytes, depth {depth}"
        )
    return tuple(levels)


def _check_nodes(block: Block, nodes: Signed, counts: Unsigned, target: Indexed, *, tree: _Tree, height: int) -> None:
    signature = (b"BTIN" if height else b"BTLF") + bytes((0, tree.kind))
    wrong = (block[:, :6] != np.frombuffer(signature, dtype=np.uint8)).any(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise target.space.damaged(
            int(nodes[first]),
            "version 2 B-tree node",
            expected=f"signature, version and record type {signature!r}",
            found=repr(block[first, :6].tobytes()),
        )
    limit = tree.levels[height].max_records
    if int(counts.max()) > limit:
        first = int(np.argmax(counts))
        raise target.space.damaged(
            int(nodes[first]),
            "version 2 B-tree node",
            expected=f"at most {limit} records",
            found=int(counts[first]),
        )
    if target.verify:
        # The checksum follows what is in use, so nodes with equally many records are checked together.
        for count in np.unique(counts).tolist():
            used = 6 + count * tree.record + (count + 1) * tree.levels[height].pointer * bool(height)
            same = counts == count
            verify_checksums(block[same, : used + 4], nodes[same], space=target.space, what="version 2 B-tree node")


def _records(block: Block, counts: Unsigned, tree: _Tree, target: Indexed) -> RawColumns:
    most = int(counts.max())
    slots = block[:, 6 : 6 + most * tree.record].reshape(len(block), most, tree.record)
    used = np.arange(most, dtype=np.uint64) < counts[:, None]
    records = slots.view(f"V{tree.record}")[..., 0][used].view(np.uint8).reshape(-1, tree.record)
    start = target.space.offset_size
    length = mask = None
    if target.filtered:
        length = unsigned(records, start, target.size_width)
        mask = unsigned(records, start + target.size_width, 4)
    scaled = np.ascontiguousarray(records[:, tree.record - 8 * target.rank :]).view("<u8")
    return RawColumns(
        scaled=scaled.astype(np.uint64, copy=False),
        address=unsigned(records, 0, start),
        length=length,
        filter_mask=mask,
    )


def _pointers(block: Block, counts: Unsigned, tree: _Tree, height: int) -> Block:
    """The child pointers of all nodes, one more than there are records in each."""
    pointer = tree.levels[height].pointer
    used = counts.astype(np.int64)
    starts = np.arange(len(block)) * tree.node_size + 6 + used * tree.record
    number = np.arange(int(used.max()) + 1)
    offsets = (starts[:, None] + number * pointer)[number <= used[:, None]]
    return records_at(np.ascontiguousarray(block).reshape(-1), offsets, pointer)


def _children(addresses: Unsigned, target: Indexed, height: int) -> Signed:
    nodes = target.space.absolute_column(addresses, f"child of a version 2 B-tree node of height {height}")
    if len(np.unique(nodes)) < len(nodes):
        raise target.space.damaged(
            target.address,
            f"version 2 B-tree, height {height}",
            expected="every child to have one parent",
            found="a child with several",
        )
    return nodes


def _stored(columns: RawColumns, target: Indexed) -> RawColumns:
    stored = columns.address != target.space.undefined
    if stored.all():
        return columns
    return RawColumns(
        scaled=columns.scaled[stored],
        address=columns.address[stored],
        length=None if columns.length is None else columns.length[stored],
        filter_mask=None if columns.filter_mask is None else columns.filter_mask[stored],
    )
