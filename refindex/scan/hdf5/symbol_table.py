"""Whether a group's links can be listed by libhdf5 without a crash, found out without libhdf5.

HDF5 File Format Specification 4.0, sections III.A.1 "Version 1 B-trees" (node type 0), III.B "Group Symbol Table
Nodes", III.C "Symbol Table Entry", III.D "Local Heaps", IV.A.2.g "The Link Message" and IV.A.2.r "The Symbol Table
Message". libhdf5 trusts much of what it reads there: 2.0.0 crashes when two local heaps share one data segment, and
does not end when a heap's list of free blocks runs in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from refindex.access.gather import Block, Gatherer, RangeGatherer, Ranges, Round, Walk, drive, in_batches
from refindex.errors import FormatError
from refindex.scan.hdf5.fields import Cursor, Signed, Unsigned, unsigned
from refindex.scan.hdf5.object_header import Message, header_walk

if TYPE_CHECKING:
    from refindex.scan.hdf5.plain import PlainFile
    from refindex.scan.hdf5.superblock import Superblock

LINK_MESSAGE = 0x0006
SYMBOL_TABLE_MESSAGE = 0x0011
_BTREE_K_MESSAGE = 0x0013
_LOOKED_AT = (LINK_MESSAGE, SYMBOL_TABLE_MESSAGE)

_DEFAULT_LEAF_K = 4
_DEFAULT_INTERNAL_K = 16
_END_OF_FREE_LIST = 1
_SOFT_LINK = 2
"""Cache type of a symbol table entry whose scratch-pad holds the heap offset of the link's value."""

_PAGE = 1 << 16
_MOST_PAGES = 256


class _Pages:
    """A remote file read in pages that are kept: the parts of old groups are small, and lie near each other."""

    __slots__ = ("_inner", "_pages")

    def __init__(self, inner: Gatherer) -> None:
        self._inner = inner
        self._pages: dict[int, bytes] = {}

    @property
    def name(self) -> str:
        return self._inner.name

    @property
    def size(self) -> int:
        return self._inner.size

    def gather(self, asked: Round, /) -> Sequence[Block]:
        wanted = {page for ranges in asked for page in self._touched(ranges)}
        if len(wanted) > _MOST_PAGES or not self._inside(asked):
            return self._inner.gather(asked)
        missing = sorted(wanted - self._pages.keys())
        if len(self._pages) + len(missing) > _MOST_PAGES:
            self._pages.clear()
            missing = sorted(wanted)
        if missing:
            pages = [Ranges.one(page * _PAGE, min(_PAGE, self.size - page * _PAGE)) for page in missing]
            blocks = self._inner.gather(pages)
            self._pages |= {page: block.tobytes() for page, block in zip(missing, blocks, strict=True)}
        return [
            np.frombuffer(
                bytearray().join(self._bytes(offset, ranges.length) for offset in ranges.offsets.tolist()),
                dtype=np.uint8,
            ).reshape(len(ranges.offsets), ranges.length)
            for ranges in asked
        ]

    def _inside(self, asked: Round) -> bool:
        """Other ranges are left to the gatherer to refuse."""
        return all(
            0 < ranges.length <= self.size - int(ranges.offsets.max(initial=0))
            and int(ranges.offsets.min(initial=0)) >= 0
            for ranges in asked
        )

    def _touched(self, ranges: Ranges) -> set[int]:
        """The pages of some ranges; more than are kept if they are long."""
        first, last = ranges.offsets // _PAGE, (ranges.offsets + (ranges.length - 1)) // _PAGE
        if not 0 < ranges.length <= _PAGE * _MOST_PAGES:
            return set(range(_MOST_PAGES + 1))
        steps = -(-ranges.length // _PAGE) + 1
        return {page for step in range(steps) for page in np.minimum(first + step, last).tolist()}

    def _bytes(self, offset: int, length: int) -> bytes:
        page, start = divmod(offset, _PAGE)
        found = self._pages[page][start : start + length]
        while len(found) < length:
            page += 1
            found += self._pages[page][: length - len(found)]
        return found


class GroupChecks:
    """The groups of one file that were checked; a group is checked once, however many paths lead to it."""

    __slots__ = ("_gatherer", "_group_k", "_plain", "_results", "_segments", "_space", "_superblock")

    def __init__(self, gatherer: Gatherer, superblock: Superblock, *, plain: PlainFile | None = None) -> None:
        self._plain = plain
        self._gatherer = _Pages(gatherer) if isinstance(gatherer, RangeGatherer) else gatherer
        self._superblock = superblock
        self._space = superblock.space
        self._group_k: tuple[int, int] | None = None
        self._results: dict[int, FormatError | None] = {}
        self._segments: dict[int, int] = {}
        """Heaps by the addresses of their data segments."""

    def check(self, address: int) -> None:
        """Check what libhdf5 reads to list the group whose object header is at ``address``, without the user block.

        Raises
        ------
        FormatError
            If it is damaged.
        UnsupportedError
            If it cannot be read here.
        """
        if address not in self._results and self._keeps_links_apart(address):
            self._results[address] = None
        if address not in self._results:
            try:
                drive(self._walk(address + self._space.base), self._gatherer)
                self._results[address] = None
            except FormatError as error:
                self._results[address] = error
        damage = self._results[address]
        if damage is not None:
            raise damage

    def _keeps_links_apart(self, address: int) -> bool:
        """Whether a group is plainly one without any message that is looked at here: most have a fractal heap."""
        messages = None if self._plain is None else self._plain.messages(address)
        return messages is not None and all(kind not in _LOOKED_AT for kind, _, _ in messages)

    def _walk(self, header: int) -> Walk[None]:
        messages = yield from header_walk(self._space, header, verify=False)
        for message in messages:
            if message.shared:
                continue
            if message.kind == LINK_MESSAGE:
                self._check_link(message)
            elif message.kind == SYMBOL_TABLE_MESSAGE:
                yield from self._check_symbol_table(message)

    def _check_link(self, message: Message) -> None:
        """All fields of a link message lie within its body. Unknown versions are left to libhdf5."""
        cursor = Cursor(message.body, space=self._space, address=message.address, what="link message")
        if cursor.uint(1) != 1:
            return
        flags = cursor.uint(1)
        kind = cursor.uint(1) if flags & 0x08 else 0
        cursor.take((8 if flags & 0x04 else 0) + (1 if flags & 0x10 else 0))
        cursor.take(cursor.uint(1 << (flags & 0x03)))
        cursor.take(cursor.uint(2) if kind else self._space.offset_size)

    def _check_symbol_table(self, message: Message) -> Walk[None]:
        cursor = Cursor(message.body, space=self._space, address=message.address, what="symbol table message")
        root, heap = cursor.offset(), cursor.offset()
        if root is None or heap is None:
            raise cursor.damaged(expected="the addresses of a B-tree and of a local heap", found="an undefined one")
        if self._group_k is None:
            self._group_k = yield from self._read_group_k()
        end = yield from self._check_heap(heap)
        for names in (yield from self._names(root)):
            if len(names) and int(names.max()) >= end:
                raise self._space.damaged(
                    heap,
                    "local heap",
                    expected=f"names that start and end in its first {end} bytes",
                    found=f"one at {int(names.max())}",
                )

    def _read_group_k(self) -> Walk[tuple[int, int]]:
        """K of symbol table nodes and of group B-trees: in the superblock (II.A), since version 2 in its extension."""
        space = self._space
        (block,) = yield (Ranges.one(space.base, 20 + 2 * space.offset_size),)
        data = block.tobytes()
        k = _DEFAULT_LEAF_K, _DEFAULT_INTERNAL_K
        if self._superblock.version < 2:
            k = int.from_bytes(data[16:18], "little"), int.from_bytes(data[18:20], "little")
        else:
            cursor = Cursor(data[12:], space=space, address=space.base + 12, what="superblock")
            cursor.take(space.offset_size)
            extension = cursor.offset()
            messages = () if extension is None else (yield from header_walk(space, extension, verify=False))
            for message in messages:
                if message.kind == _BTREE_K_MESSAGE and not message.shared:
                    body = Cursor(message.body, space=space, address=message.address, what="B-tree 'K' values message")
                    body.take(3)
                    internal, leaf = body.uint(2), body.uint(2)
                    k = leaf, internal
        if 0 in k:
            raise space.damaged(space.base, "superblock", expected="group K values above 0", found=k)
        return k

    def _check_heap(self, address: int) -> Walk[int]:
        """Names may start at any offset below the result: a NUL ends each of them within the data segment."""
        space, width = self._space, self._space.length_size
        (block,) = yield (Ranges.one(address, 8 + 2 * width + space.offset_size),)
        cursor = Cursor(block.tobytes(), space=space, address=address, what="local heap")
        cursor.expect(b"HEAP", "signature")
        cursor.expect(0, "version")
        cursor.take(3)
        size, free = cursor.length(), cursor.length()
        if not size:
            return 0
        start = cursor.offset()
        if start is None or size > space.file_size - start:
            raise cursor.damaged(expected="a data segment in the file", found=f"{size} bytes at {start}")
        other = self._segments.setdefault(start, address)
        if other != address:
            raise cursor.damaged(expected="a data segment of its own", found=f"the one of the heap at {other}")
        (block,) = yield (Ranges.one(start, size),)
        data = block.tobytes()
        left = size // (2 * width)
        while free != _END_OF_FREE_LIST:
            if not left or not free <= size - 2 * width:
                expected = f"a list of free blocks within {size} bytes that comes to an end"
                raise cursor.damaged(expected=expected, found=f"the offset {free}" if left else "a circle")
            left -= 1
            following = int.from_bytes(data[free : free + width], "little")
            length = int.from_bytes(data[free + width : free + 2 * width], "little")
            if length > size - free:
                raise cursor.damaged(
                    expected=f"a free block within {size} bytes", found=f"one of {length} bytes at offset {free}"
                )
            free = following
        return data.rfind(b"\0") + 1

    def _names(self, root: int) -> Walk[list[Unsigned]]:
        """Heap offsets of all names that the B-tree and its symbol table nodes hold; one round a level."""
        space, pair = self._space, self._space.length_size + self._space.offset_size
        leaf_k, internal_k = self._group_k or (_DEFAULT_LEAF_K, _DEFAULT_INTERNAL_K)
        start = 8 + 2 * space.offset_size
        size = start + 2 * internal_k * pair + space.length_size
        nodes = np.array([root], dtype=np.int64)
        names: list[Unsigned] = []
        # The root says how deep the tree is; each level below must be one less, so there can be no cycle.
        level = -1
        while len(nodes):
            children: list[Unsigned] = []
            for batch in in_batches((Ranges(offsets=nodes, length=size),)):
                (block,) = yield batch.asked
                level = int(block[0, 5]) if level < 0 else level
                used = self._used(block, batch.asked[0].offsets, b"TREE" + bytes((0, level)), 2 * internal_k)
                entries = _used_records(block, used, start, pair, 2 * internal_k)
                names.append(unsigned(entries, 0, space.length_size))
                children.append(unsigned(entries, space.length_size, space.offset_size))
                names.append(_last_keys(block, used, start, pair, space.length_size))
            nodes = self._children(np.concatenate(children), root, level)
            if not level:
                break
            level -= 1
        record = pair + 24
        for batch in in_batches((Ranges(offsets=nodes, length=8 + 2 * leaf_k * record),)):
            (block,) = yield batch.asked
            used = self._used(block, batch.asked[0].offsets, b"SNOD\x01", 2 * leaf_k)
            entries = _used_records(block, used, 8, record, 2 * leaf_k)
            names.append(unsigned(entries, 0, space.length_size))
            soft = entries[unsigned(entries, pair, 4) == _SOFT_LINK]
            names.append(unsigned(soft, pair + 8, 4))
        return names

    def _used(self, block: Block, offsets: Signed, head: bytes, most: int) -> Unsigned:
        """The numbers of entries in use of nodes that all must begin with ``head``."""
        wrong = (block[:, : len(head)] != np.frombuffer(head, dtype=np.uint8)).any(axis=1)
        used = unsigned(block, 6, 2)
        wrong |= used > most
        if wrong.any():
            first = int(np.argmax(wrong))
            raise self._space.damaged(
                int(offsets[first]),
                "node of a group",
                expected=f"{head!r} and at most {most} entries",
                found=f"{block[first, : len(head)].tobytes()!r} and {int(used[first])}",
            )
        return used

    def _children(self, addresses: Unsigned, root: int, level: int) -> Signed:
        nodes = self._space.absolute_column(addresses, f"child of a group's B-tree node of level {level}")
        if len(np.unique(nodes)) < len(nodes):
            raise self._space.damaged(
                root, f"B-tree of a group, level {level}", expected="every child to have one parent", found="more"
            )
        return nodes


def _used_records(block: Block, used: Unsigned, start: int, record: int, most: int) -> Block:
    """The records in use of all nodes, shape (n, bytes of a record)."""
    if len(block) == 1:
        return block[0, start : start + int(used[0]) * record].reshape(-1, record)
    records = block[:, start : start + most * record].reshape(len(block), most, record).view(f"V{record}")[..., 0]
    return records[np.arange(most) < used[:, None]].view(np.uint8).reshape(-1, record)


def _last_keys(block: Block, used: Unsigned, start: int, pair: int, width: int) -> Unsigned:
    """The keys behind the last children of nodes that have any."""
    rows = np.flatnonzero(used)
    first = start + used[rows].astype(np.int64) * pair
    return unsigned(block[rows[:, None], first[:, None] + np.arange(width)], 0, width)
