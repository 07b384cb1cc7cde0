"""Object headers: the list of messages that describes one group or dataset.

HDF5 File Format Specification 4.0, section IV.A.1 "Disk Format: Level 2A - Data Object Headers", versions 1
and 2, with continuation blocks (section IV.A.2.q "The Object Header Continuation Message").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from refindex.access.gather import Gatherer, Ranges, Walk, drive
from refindex.errors import UnsupportedError
from refindex.scan.hdf5.checksum import verify_checksum
from refindex.scan.hdf5.fields import AddressSpace, Cursor
from refindex.scan.hdf5.layout_message import Layout, layout_message

if TYPE_CHECKING:
    # The superblock's extension is an object header, so that module imports this one.
    from refindex.scan.hdf5.superblock import Superblock

LAYOUT_MESSAGE = 0x0008
CONTINUATION_MESSAGE = 0x0010

_V1_PREFIX = 16
_MOST_MESSAGES = 2**18
"""Far more than any real header has (version 1 counts them in 16 bits); a file of nothing else ends here."""

_FIRST_READ = 512
"""Read ahead of the header's size being known: most headers fit, which saves a round trip."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One header message: its type number, its flags, its body and the body's absolute address.

    The body of a ``shared`` message is only a pointer to the real one (section IV.A.2 "Shared Message").
    """

    kind: int
    flags: int
    body: bytes
    address: int

    @property
    def shared(self) -> bool:
        return bool(self.flags & 0b10)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """What the messages of one header look like. ``order``: a creation order field precedes the body."""

    version: int
    order: bool = False


def read_messages(
    gatherer: Gatherer, space: AddressSpace, header_address: int, *, verify: bool = False
) -> tuple[Message, ...]:
    """All messages of the object header at the absolute address ``header_address``, in file order.

    Raises FormatError for a damaged header, UnsupportedError for an unknown version.
    """
    return drive(header_walk(space, header_address, verify=verify), gatherer)


def read_layout(gatherer: Gatherer, superblock: Superblock, header_address: int, *, verify: bool = False) -> Layout:
    """The data layout of the dataset whose object header is at ``header_address``.

    The address is absolute: add ``superblock.base_address`` to what libhdf5's object info says.
    Raises FormatError if the header is damaged or has no layout message (it is not a dataset).
    """
    return drive(layout_walk(superblock, header_address, verify=verify), gatherer)


def layout_walk(superblock: Superblock, header_address: int, *, verify: bool = False) -> Walk[Layout]:
    """The walk behind :func:`read_layout`."""
    space = superblock.space
    for message in (yield from header_walk(space, header_address, verify=verify)):
        if message.kind == LAYOUT_MESSAGE:
            if message.shared:
                raise UnsupportedError(
                    f"{space.name}: the data layout message at address {message.address} is a shared message"
                )
            return layout_message(message.body, space=space, address=message.address)
    raise space.damaged(
        header_address,
        "object header",
        expected="a data layout message (a dataset)",
        found="none of that type",
    )


def header_walk(space: AddressSpace, address: int, *, verify: bool) -> Walk[tuple[Message, ...]]:
    """The walk behind :func:`read_messages`: a round for the header, one for each depth of continuations."""
    (head,) = yield (Ranges.one(address, max(0, min(_FIRST_READ, space.file_size - address))),)
    data = head.tobytes()
    cursor = Cursor(data, space=space, address=address, what="object header")
    version_2 = data.startswith(b"OHDR")
    layout, size = _version_2_prefix(cursor) if version_2 else _version_1_prefix(cursor)
    start = cursor.position
    total = start + size + (4 if version_2 else 0)
    if total > len(data):
        (whole,) = yield (Ranges.one(address, total),)
        data = whole.tobytes()
    if verify and version_2:
        verify_checksum(data[:total], cursor)
    messages: list[Message] = []
    pending = [Cursor(data[start : start + size], space=space, address=address + start, what="object header")]
    seen = {address}
    while pending:
        every = (message for block in pending for message in _messages(block, layout))
        found = list(islice(every, _MOST_MESSAGES + 1))
        messages += found
        if len(messages) > _MOST_MESSAGES:
            raise space.damaged(address, "object header", expected=f"at most {_MOST_MESSAGES} messages", found="more")
        more = [_continuation(message, space, seen) for message in found if message.kind == CONTINUATION_MESSAGE]
        if not more:
            break
        blocks = yield tuple(more)
        pending = [
            _continuation_block(block.tobytes(), int(ranges.offsets[0]), space, layout, verify=verify)
            for ranges, block in zip(more, blocks, strict=True)
        ]
    return tuple(messages)


def _version_1_prefix(cursor: Cursor) -> tuple[_Format, int]:
    """Section IV.A.1.a. The 12 bytes of the prefix are padded so that messages start at a multiple of 8."""
    cursor.expect(1, "signature b'OHDR' or version")
    cursor.take(7)  # reserved, number of messages, reference count
    size = cursor.uint(4)
    cursor.take(_V1_PREFIX - cursor.position)
    return _Format(version=1), size


def _version_2_prefix(cursor: Cursor) -> tuple[_Format, int]:
    """Section IV.A.1.b. Times and attribute limits are there only if the flags say so."""
    cursor.expect(b"OHDR", "signature")
    cursor.expect(2, "version")
    flags = cursor.uint(1)
    cursor.take((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
    return _Format(version=2, order=bool(flags & 0x04)), cursor.uint(1 << (flags & 0x03))


def _messages(block: Cursor, layout: _Format) -> Iterator[Message]:
    """The messages of one block. What is left at its end, too short for a message, is a gap."""
    prefix = 8 if layout.version == 1 else 6 if layout.order else 4
    while block.remaining >= prefix:
        kind = block.uint(2 if layout.version == 1 else 1)
        size, flags = block.uint(2), block.uint(1)
        block.take(prefix - (5 if layout.version == 1 else 4))
        address = block.address + block.position
        yield Message(kind=kind, flags=flags, body=block.take(size), address=address)


def _continuation(message: Message, space: AddressSpace, seen: set[int]) -> Ranges:
    cursor = Cursor(message.body, space=space, address=message.address, what="continuation message")
    address, length = cursor.offset(), cursor.length()
    if address is None or address in seen:
        raise cursor.damaged(expected="the address of a block not yet read", found=address)
    seen.add(address)
    return Ranges.one(address, length)


def _continuation_block(data: bytes, address: int, space: AddressSpace, layout: _Format, *, verify: bool) -> Cursor:
    """The messages of a continuation block; in version 2 a signature and a checksum enclose them."""
    cursor = Cursor(data, space=space, address=address, what="object header continuation")
    if layout.version == 1:
        return cursor
    cursor.expect(b"OCHK", "signature")
    if verify:
        verify_checksum(data, cursor)
    cursor.take(0 if cursor.remaining >= 4 else 4)
    return Cursor(data[4:-4], space=space, address=address + 4, what="object header continuation")
