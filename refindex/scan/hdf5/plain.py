"""Object headers of a file whose bytes are at hand, split into their messages: what is plain is told from them.

HDF5 File Format Specification 4.0, sections IV.A.1 "Data Object Headers", IV.A.2.b "The Dataspace Message", IV.A.2.i
"The Data Layout Message" and III.E "Global Heap". A question to libhdf5 makes objects that take longer than the answer:
a dataset is asked dozens of them. It is opened all the same, so that libhdf5 has verified the checksums and decoded
every message before anything here looks at it. Whatever is not of the plainest form is None here, and libhdf5 is asked.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from refindex.scan.hdf5.superblock import Superblock

DATASPACE, DATATYPE, OLD_FILL, FILL, EXTERNAL, LAYOUT = 0x01, 0x03, 0x04, 0x05, 0x07, 0x08
PIPELINE, ATTRIBUTE, CONTINUATION, ATTRIBUTE_INFO = 0x0B, 0x0C, 0x10, 0x15

_PROPERTIES = (DATATYPE, OLD_FILL, FILL, PIPELINE)
_ONCE = frozenset({*_PROPERTIES, DATASPACE, LAYOUT, EXTERNAL, ATTRIBUTE_INFO})
_SHARED = 0b10
_UNDEFINED = b"\xff" * 8

_FIRST_READ = 1024
_MOST_BLOCKS = 64
_SMALLEST_HEAP = 4096
_MOST_MESSAGES = 4096
_VERSION_1 = struct.Struct("<HHB")
_VERSION_2 = struct.Struct("<BHB")
_HEAP_OBJECT = struct.Struct("<HHIQ")

type IntArray = npt.NDArray[np.int64]
type Key = tuple[bytes | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """A simple or scalar dataspace: lengths, and how far each can grow (as h5py says it, see ``H5S_UNLIMITED``)."""

    shape: tuple[int, ...]
    maxima: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """Columns of a few chunks: places in the chunk grid, offsets in the file, stored lengths, filter masks."""

    scaled: IntArray
    offset: IntArray
    length: IntArray
    mask: IntArray


@dataclass(slots=True, kw_only=True)
class Header:
    """The messages of one object.

    Attributes
    ----------
    bodies:
        By type number, of the messages that an object has once.
    attributes:
        The bodies of all attribute messages; None if some are shared, or kept outside the header.
    key:
        What tells how a dataset was created, but for its shape and where its data lies: with the same key, libhdf5
        says the same of type, fill value, filters and chunk shape. None where that is not all there is to say.
    extent:
        The dataspace; None if there is none, or it has no elements and no shape, or there is no key.
    """

    bodies: dict[int, bytes] = field(default_factory=dict)
    attributes: list[bytes] | None = None
    key: Key | None = None
    extent: Extent | None = None


class PlainFile:
    """A file whose bytes are mapped or in memory. Addresses are those of the file: there is no user block."""

    __slots__ = ("_data", "_heaps", "_size")

    def __init__(self, data: bytes | mmap.mmap, end: int) -> None:
        self._data = data
        self._size = min(len(data), end)  # libhdf5 refuses what lies behind the end that the superblock names
        self._heaps: dict[int, dict[int, bytes] | None] = {}

    @classmethod
    def of(cls, data: bytes | mmap.mmap, superblock: Superblock) -> PlainFile | None:
        """The file, if its addresses are of the usual width and from its beginning."""
        space = superblock.space
        usual = (space.base, space.offset_size, space.length_size) == (0, 8, 8)
        return cls(data, superblock.end_of_file) if usual else None

    def messages(self, address: int) -> list[tuple[int, int, bytes]] | None:
        """Type number, flags and body of every message of the object header at an address, in file order."""
        data = self._data
        head = data[address : address + _FIRST_READ]
        if head[:5] == b"OHDR\x02":
            flags = head[5] if len(head) > 5 else 0
            start = 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
            width = 1 << (flags & 0x03)
            size = int.from_bytes(head[start : start + width], "little")
            start += width
            prefix, fields, version_2 = 6 if flags & 0x04 else 4, _VERSION_2, True
        elif head[:1] == b"\x01" and len(head) >= 16:
            size, start, prefix, fields, version_2 = int.from_bytes(head[8:12], "little"), 16, 8, _VERSION_1, False
        else:
            return None
        stop = start + size
        block = head[start:stop] if stop <= len(head) else data[address + start : address + stop]
        if len(block) != size:
            return None
        found: list[tuple[int, int, bytes]] = []
        blocks, number = [(address, block)], 0
        seen = {address}
        while number < len(blocks):
            block = blocks[number][1]
            number += 1
            at, last = 0, len(block) - prefix
            while at <= last:
                kind, size, flags = fields.unpack_from(block, at)
                at += prefix
                body = block[at : at + size]
                at += size
                if len(body) != size or len(found) > _MOST_MESSAGES:
                    return None
                if kind == CONTINUATION:
                    more = self._continuation(body, seen, version_2=version_2)
                    if more is None:
                        return None
                    blocks.append(more)
                else:
                    found.append((kind, flags, body))
        return found

    def _continuation(self, body: bytes, seen: set[int], *, version_2: bool) -> tuple[int, bytes] | None:
        if len(body) < 16 or len(seen) > _MOST_BLOCKS:
            return None
        address, length = int.from_bytes(body[:8], "little"), int.from_bytes(body[8:16], "little")
        if address in seen or address + length > self._size:
            return None
        seen.add(address)
        if not version_2:
            return address, self._data[address : address + length]
        if length < 8 or self._data[address : address + 4] != b"OCHK":
            return None
        return address, self._data[address + 4 : address + length - 4]

    def header(self, address: int) -> Header | None:
        """The object header at an address."""
        messages = self.messages(address)
        if messages is None:
            return None
        bodies: dict[int, bytes] = {}
        attributes: list[bytes] = []
        inside, alone = True, True
        for kind, flags, body in messages:
            if kind == ATTRIBUTE:
                inside = inside and not flags & _SHARED
                attributes.append(body)
            elif kind in _ONCE:
                if kind in bodies:
                    return None
                alone = alone and not flags & _SHARED
                bodies[kind] = body
        if ATTRIBUTE_INFO in bodies:
            inside = inside and _is_compact(bodies[ATTRIBUTE_INFO])
        result = Header(bodies=bodies, attributes=attributes if inside else None)
        if alone and EXTERNAL not in bodies and DATASPACE in bodies and LAYOUT in bodies and DATATYPE in bodies:
            layout = _layout_key(bodies[LAYOUT])
            if layout is not None:
                result.key = (*(bodies.get(kind) for kind in _PROPERTIES), layout)
                # libhdf5 makes that of a virtual dataset from its sources.
                result.extent = read_extent(bodies[DATASPACE])
        return result

    def leaf(self, layout: bytes, rank: int, most: int) -> Leaf | None:
        """The chunks in a version 1 B-tree of one node with at most ``most`` entries (sections III.A.1, IV.A.2.i)."""
        if layout[:2] != b"\x03\x02" or layout[2] != rank + 1 or len(layout) < 15 + 4 * rank:
            return None
        steps = np.frombuffer(layout, "<u4", rank + 1, 11)
        address = int.from_bytes(layout[3:11], "little")
        head = self._data[address : address + 24]
        if not steps.all() or len(head) != 24 or head[:6] != b"TREE\x01\0":
            return None
        used = int.from_bytes(head[6:8], "little")
        # A key of one word for the size and the filter mask, and one for each dimension; then the child, then a key.
        words = rank + 3
        node = self._data[address + 24 : address + 24 + 8 * (used * words + words - 1)]
        if used > most or address + 24 + 8 * (most * words + words - 1) > self._size:
            return None
        fields = np.frombuffer(node + _UNDEFINED, dtype="<i8").reshape(used + 1, words)
        elements = fields[:, 1:-1]
        scaled = elements // steps
        rows = fields[:used]
        # The last key only ends the node; of a chunk's, the last field is an offset inside the element.
        if (scaled * steps != elements).any() or rows[:, -2].any():
            return None
        if elements.min() < 0 or rows[:, -1].min(initial=0) < 0:
            return None
        return Leaf(
            scaled=scaled[:used, :-1],
            offset=rows[:, -1].copy(),
            length=rows[:, 0] & 0xFFFFFFFF,
            mask=rows[:, 0] >> 32 & 0xFFFFFFFF,
        )

    def heap_object(self, address: int, number: int) -> bytes | None:
        """An object of the global heap collection at an address."""
        if address not in self._heaps:
            self._heaps[address] = self._heap(address)
        heap = self._heaps[address]
        return None if heap is None else heap.get(number)

    def _heap(self, address: int) -> dict[int, bytes] | None:
        head = self._data[address : address + 16]
        if len(head) != 16 or head[:8] != b"GCOL\x01\0\0\0":
            return None
        size = int.from_bytes(head[8:], "little")
        if address + size > self._size or size < _SMALLEST_HEAP or size % 8:
            return None
        heap = self._data[address : address + size]
        objects: dict[int, bytes] = {}
        at = 16
        while at + 16 <= size:
            number, _, _, length = _HEAP_OBJECT.unpack_from(heap, at)
            if number == 0:  # free space, with its own size
                if at + length != size:
                    return None
                break
            at += 16
            if length > size - at or number in objects:
                return None
            objects[number] = heap[at : at + length]
            at += (length + 7) // 8 * 8
        return objects


def _is_compact(body: bytes) -> bool:
    """Whether an attribute info message (section IV.A.2.v) says that no attributes are kept outside the header."""
    if len(body) < 2 or body[0] != 0:
        return False
    at = 4 if body[1] & 0x01 else 2
    return body[at : at + 8] == _UNDEFINED


def _layout_key(body: bytes) -> bytes | None:
    """A data layout message without the address, and for contiguous and compact data without the size and the data."""
    if len(body) < 3 or body[0] not in (3, 4):
        return None
    if body[1] in (0, 1):
        return body[:2]
    if body[1] != 2:
        return None
    if body[0] == 3:
        return body[:3] + body[11:]
    # A filtered single chunk (flag 1) has its size and mask among the parameters.
    return None if body[2] & 0b10 else body[:-8]


def read_extent(body: bytes) -> Extent | None:
    """The lengths in a dataspace message of version 1 or 2."""
    if len(body) < 4 or body[1] > 32 or body[2] & ~0b01:
        return None
    rank, growing = body[1], body[2]
    if body[0] == 1:
        start = 8
    elif body[0] == 2 and body[3] == (1 if rank else 0):
        start = 4
    else:
        return None
    count = 2 * rank if growing else rank
    # Version 1 headers pad messages to 8 bytes.
    if not start + 8 * count <= len(body) < start + 8 * count + 8:
        return None
    lengths: tuple[int, ...] = struct.unpack_from(f"<{count}Q", body, start)
    shape = lengths[:rank]
    maxima = lengths[rank:] if growing else shape
    if any(n >= 1 << 62 for n in shape):
        return None
    return Extent(shape=shape, maxima=maxima)
