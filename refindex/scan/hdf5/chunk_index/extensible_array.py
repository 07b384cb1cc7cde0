"""The extensible array: slots for the chunks of a dataset with one unlimited dimension.

HDF5 File Format Specification 4.0, section VII.D (Appendix C) "The Extensible Array Index". Header
(EAHD), index block (EAIB) with the first elements and the addresses of the first data blocks (EADB), and
secondary blocks (EASB) with the addresses of all others. Data blocks double in number and in size by turns
("super blocks"); those above ``2**page_bits`` elements are split into pages.

Slots number the chunk grid with the unlimited dimension moved to the front, so that growing appends.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from refindex.access.gather import Block, Ranges, Walk, in_batches
from refindex.errors import UnsupportedError
from refindex.scan.hdf5.checksum import verify_checksum, verify_checksums
from refindex.scan.hdf5.chunk_index.columns import Indexed, RawColumns, concatenate
from refindex.scan.hdf5.chunk_index.elements import (
    decode_elements,
    element_size,
    expect_client,
    page_bits_set,
)
from refindex.scan.hdf5.fields import Cursor, Signed, unsigned


@dataclass(frozen=True, slots=True, kw_only=True)
class _Super:
    """One super block: ``blocks`` data blocks of ``elements`` elements; ``first``: slot of the first one."""

    first: int
    blocks: int
    elements: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Array:
    """What the header says. ``direct`` super blocks have their addresses in the index block.

    ``prefix``: bytes before the fields of a secondary or data block.
    """

    index_elements: int
    supers: tuple[_Super, ...]
    direct: int
    page_bits: int
    prefix: int
    index_block: int

    def pages(self, number: int) -> int:
        """Pages of a data block of that super block, 0 if it has none."""
        pages = self.supers[number].elements >> self.page_bits
        return pages if pages > 1 else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _DataBlocks:
    """Data blocks of one super block: absolute addresses and slots of their first elements.

    ``pages``: for paged ones the initialised pages as (row in the columns above, page) pairs.
    """

    number: int
    addresses: Signed
    slots: Signed
    pages: tuple[Signed, Signed] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """Ranges of one kind: data blocks (with a prefix), pages (without), or prefixes only (no slots)."""

    ranges: Ranges
    prefix: int
    slots: Signed | None


def walk(target: Indexed) -> Walk[RawColumns]:
    """Rounds: header; index block; secondary blocks; data blocks and pages, in batches."""
    unlimited = [dim for dim, count in enumerate(target.max_grid) if count is None]
    if len(unlimited) != 1:
        raise target.space.damaged(
            target.address,
            "extensible array",
            expected="a dataset with one unlimited dimension",
            found=f"{len(unlimited)} of {target.rank}",
        )
    order = unlimited + [dim for dim in range(target.rank) if dim not in unlimited]
    needed = target.grid[order[0]] * math.prod(target.max_grid[dim] or 1 for dim in order[1:])
    array = yield from _header(target)
    if array is None:
        return concatenate([], target.rank)
    elements, blocks, secondary = yield from _index_block(target, array)
    parts = [decode_elements(elements, np.arange(len(elements)), target, order=order)]
    blocks += yield from _secondary_blocks(target, array, secondary, needed)
    # Blocks wholly beyond the current extent are not read.
    blocks = [_within(block, needed) for block in blocks]
    yield from _data_blocks(target, array, blocks, order, parts)
    return concatenate(parts, target.rank)


def _header(target: Indexed) -> Generator[Sequence[Ranges], Sequence[Block], _Array | None]:
    space = target.space
    (block,) = yield (Ranges.one(target.address, 16 + 6 * space.length_size + space.offset_size),)
    cursor = Cursor(block.tobytes(), space=space, address=target.address, what="extensible array header")
    cursor.expect(b"EAHD", "signature")
    cursor.expect(0, "version")
    expect_client(cursor, target)
    cursor.expect(element_size(target), "element size")
    max_bits, index_elements, min_elements, min_pointers, page_bits = cursor.take(5)
    cursor.take(6 * space.length_size)  # statistics
    index_block = cursor.offset()
    if target.verify:
        verify_checksum(block.tobytes(), cursor)
    for field, value in (("data block elements", min_elements), ("data block pointers", min_pointers)):
        if value.bit_count() != 1:
            raise cursor.damaged(expected=f"a minimum of {field} that is a power of 2", found=value)
    if not page_bits:
        raise cursor.damaged(expected="page bits above 0", found=page_bits)
    if max_bits > 56:
        raise UnsupportedError(
            f"{space.name}: extensible array at address {target.address} for 2**{max_bits} chunks; up to 2**56 are read"
        )
    supers: list[_Super] = []
    first = index_elements
    for number in range(max(0, 1 + max_bits - (min_elements.bit_length() - 1))):
        blocks, elements = 1 << number // 2, min_elements << (number + 1) // 2
        supers.append(_Super(first=first, blocks=blocks, elements=elements))
        first += blocks * elements
    if index_block is None:
        return None
    return _Array(
        index_elements=index_elements,
        supers=tuple(supers),
        direct=min(len(supers), 2 * (min_pointers.bit_length() - 1)),
        page_bits=page_bits,
        # Signature, version, client ID, header address, and the block's own place in the array.
        prefix=6 + space.offset_size + (max_bits + 7) // 8,
        index_block=index_block,
    )


def _index_block(
    target: Indexed, array: _Array
) -> Generator[Sequence[Ranges], Sequence[Block], tuple[Block, list[_DataBlocks], list[int | None]]]:
    """The first elements, the data blocks addressed here, and the addresses of the secondary blocks."""
    space = target.space
    prefix, size, width = 6 + space.offset_size, element_size(target), space.offset_size
    pointers = sum(sup.blocks for sup in array.supers[: array.direct]) + len(array.supers) - array.direct
    (block,) = yield (Ranges.one(array.index_block, prefix + array.index_elements * size + pointers * width + 4),)
    cursor = Cursor(block.tobytes(), space=space, address=array.index_block, what="extensible array index block")
    _expect_prefix(cursor, target, b"EAIB")
    if target.verify:
        verify_checksum(block.tobytes(), cursor)
    stop = prefix + array.index_elements * size
    elements = block[0, prefix:stop].reshape(array.index_elements, size)
    direct: list[_DataBlocks] = []
    for number in range(array.direct):
        if array.pages(number):
            raise cursor.damaged(expected="no pages in the first data blocks", found=f"page bits {array.page_bits}")
        start, stop = stop, stop + array.supers[number].blocks * width
        direct.append(_addressed(block[0, start:stop], number, target, array))
    cursor.take(stop - cursor.position)
    return elements, direct, [cursor.offset() for _ in array.supers[array.direct :]]


def _expect_prefix(cursor: Cursor, target: Indexed, signature: bytes) -> None:
    cursor.expect(signature, "signature")
    cursor.expect(0, "version")
    expect_client(cursor, target)
    cursor.expect(target.address - target.space.base, "header address", target.space.offset_size)


def _addressed(pointers: Block, number: int, target: Indexed, array: _Array) -> _DataBlocks:
    """The allocated ones of a super block's data blocks."""
    addresses = unsigned(pointers.reshape(-1, target.space.offset_size), 0, target.space.offset_size)
    present = np.flatnonzero(addresses != target.space.undefined)
    sup = array.supers[number]
    return _DataBlocks(
        number=number,
        addresses=target.space.absolute_column(addresses[present], "extensible array data block"),
        slots=sup.first + present * sup.elements,
    )


def _secondary_blocks(
    target: Indexed, array: _Array, addresses: Sequence[int | None], needed: int
) -> Generator[Sequence[Ranges], Sequence[Block], list[_DataBlocks]]:
    asked, numbers = [], []
    prefix = array.prefix
    for number, address in enumerate(addresses, start=array.direct):
        sup = array.supers[number]
        if address is not None and sup.first < needed:
            bitmap = sup.blocks * -(-array.pages(number) // 8)
            asked.append(Ranges.one(address, prefix + bitmap + sup.blocks * target.space.offset_size + 4))
            numbers.append(number)
    found: list[_DataBlocks] = []
    if not asked:
        return found
    for ranges, number, block in zip(asked, numbers, (yield asked), strict=True):
        cursor = Cursor(
            block.tobytes(),
            space=target.space,
            address=int(ranges.offsets[0]),
            what="extensible array secondary block",
        )
        _expect_prefix(cursor, target, b"EASB")
        if target.verify:
            verify_checksum(block.tobytes(), cursor)
        sup, pages = array.supers[number], array.pages(number)
        bitmap = sup.blocks * -(-pages // 8)
        blocks = _addressed(block[0, prefix + bitmap : -4], number, target, array)
        if pages:
            # The bits of all data blocks follow each other without a gap, though the field has whole bytes
            # for each of them.
            in_use = page_bits_set(block[0, prefix : prefix + bitmap], sup.blocks * pages)
            slots = sup.first + in_use // pages * sup.elements
            owned = np.isin(slots, blocks.slots)
            owner = np.searchsorted(blocks.slots, slots)
            blocks = replace(blocks, pages=(owner[owned], in_use[owned] % pages))
        found.append(blocks)
    return found


def _within(blocks: _DataBlocks, needed: int) -> _DataBlocks:
    # Slots ascend, so that the rows the pages name keep their numbers.
    count, pages = int(np.searchsorted(blocks.slots, min(needed, 2**62))), blocks.pages
    if pages is not None:
        pages = pages[0][pages[0] < count], pages[1][pages[0] < count]
    return replace(blocks, addresses=blocks.addresses[:count], slots=blocks.slots[:count], pages=pages)


def _data_blocks(
    target: Indexed,
    array: _Array,
    blocks: Sequence[_DataBlocks],
    order: Sequence[int],
    parts: list[RawColumns],
) -> Walk[None]:
    """Read data blocks and pages and append their rows."""
    size = element_size(target)
    groups = [group for data in blocks for group in _groups(target, array, data, size)]
    for batch in in_batches([group.ranges for group in groups]):
        for asked, (number, rows), block in zip(batch.asked, batch.pieces, (yield batch.asked), strict=True):
            group = groups[number]
            if group.prefix:
                _check_blocks(block, asked.offsets, target)
            if target.verify:
                verify_checksums(block, asked.offsets, space=target.space, what="extensible array data block")
            if group.slots is not None:
                elements = block[:, group.prefix : -4].reshape(-1, size)
                slots = group.slots[rows, None] + np.arange((asked.length - 4 - group.prefix) // size)
                parts.append(decode_elements(elements, slots.reshape(-1), target, order=order))


def _groups(target: Indexed, array: _Array, data: _DataBlocks, size: int) -> Iterator[_Group]:
    prefix = array.prefix
    if data.pages is None:
        length = prefix + array.supers[data.number].elements * size + 4
        yield _Group(ranges=Ranges(offsets=data.addresses, length=length), prefix=prefix, slots=data.slots)
        return
    yield _Group(ranges=Ranges(offsets=data.addresses, length=prefix + 4), prefix=prefix, slots=None)
    row, page = data.pages
    per_page = 1 << array.page_bits
    offsets = data.addresses[row] + prefix + 4 + page * (per_page * size + 4)
    yield _Group(
        ranges=Ranges(offsets=offsets, length=per_page * size + 4),
        prefix=0,
        slots=data.slots[row] + page * per_page,
    )


def _check_blocks(block: Block, addresses: Signed, target: Indexed) -> None:
    width = target.space.offset_size
    prefix = b"EADB" + bytes((0, target.filtered)) + (target.address - target.space.base).to_bytes(width, "little")
    wrong = (block[:, : len(prefix)] != np.frombuffer(prefix, dtype=np.uint8)).any(axis=1)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise target.space.damaged(
            int(addresses[first]),
            "extensible array data block",
            expected=f"signature, version, client ID and header address {prefix!r}",
            found=repr(block[first, : len(prefix)].tobytes()),
        )
