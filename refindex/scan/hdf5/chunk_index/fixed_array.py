"""The fixed array: one slot for every chunk of a dataset whose maximum extent is bounded.

HDF5 File Format Specification 4.0, section VII.C (Appendix C) "The Fixed Array Index". Header
(FAHD), then a data block (FADB) that holds the elements, or, with more than ``2**page_bits`` of them, a
bitmap of the pages in use followed by the pages. The last page holds what is left.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import numpy as np

from refindex.access.gather import Block, Ranges, Walk, in_batches
from refindex.scan.hdf5.checksum import verify_checksum, verify_checksums
from refindex.scan.hdf5.chunk_index.columns import Indexed, RawColumns, concatenate
from refindex.scan.hdf5.chunk_index.elements import (
    decode_elements,
    element_size,
    expect_client,
    page_bits_set,
)
from refindex.scan.hdf5.fields import Cursor, Signed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Header:
    page_bits: int
    count: int
    block: int


def walk(target: Indexed) -> Walk[RawColumns]:
    """Rounds: header; data block or its page bitmap; pages in use."""
    header = yield from _header(target)
    if header is None:
        return concatenate([], target.rank)
    size = element_size(target)
    prefix = 6 + target.space.offset_size
    per_page = 1 << header.page_bits
    pages = -(-header.count // per_page) if header.count > per_page else 0
    bitmap = -(-pages // 8)
    total = prefix + bitmap + header.count * size + 4 * (pages + 1)
    if header.block + total > target.space.file_size:
        raise target.space.damaged(
            header.block,
            "fixed array data block",
            expected=f"{total} bytes for {header.count} elements within the file",
            found=f"a file of {target.space.file_size} bytes",
        )
    head = prefix + bitmap + 4 if pages else total
    (block,) = yield (Ranges.one(header.block, head),)
    cursor = Cursor(block.tobytes(), space=target.space, address=header.block, what="fixed array data block")
    cursor.expect(b"FADB", "signature")
    cursor.expect(0, "version")
    expect_client(cursor, target)
    cursor.expect(target.address - target.space.base, "header address", target.space.offset_size)
    if target.verify:
        verify_checksum(block.tobytes(), cursor)
    if not pages:
        elements = block[0, prefix:-4].reshape(header.count, size)
        return decode_elements(elements, np.arange(header.count), target, order=range(target.rank))
    in_use = page_bits_set(block[0, prefix : prefix + bitmap], pages)
    return (yield from _pages(target, header, in_use, start=header.block + head, pages=pages))


def _header(target: Indexed) -> Generator[Sequence[Ranges], Sequence[Block], _Header | None]:
    length = 12 + target.space.length_size + target.space.offset_size
    (block,) = yield (Ranges.one(target.address, length),)
    cursor = Cursor(block.tobytes(), space=target.space, address=target.address, what="fixed array header")
    cursor.expect(b"FAHD", "signature")
    cursor.expect(0, "version")
    expect_client(cursor, target)
    cursor.expect(element_size(target), "element size")
    page_bits = cursor.uint(1)
    if not 1 <= page_bits < 64:
        raise cursor.damaged(expected="page bits of 1 to 63", found=page_bits)
    if None in target.max_grid:
        raise cursor.damaged(expected="a bounded extent", found="an unlimited dimension")
    count = math.prod(count or 0 for count in target.max_grid)
    cursor.expect(count, "number of chunks", target.space.length_size)
    data_block = cursor.offset()
    if target.verify:
        verify_checksum(block.tobytes(), cursor)
    return None if data_block is None else _Header(page_bits=page_bits, count=count, block=data_block)


def _pages(target: Indexed, header: _Header, in_use: Signed, *, start: int, pages: int) -> Walk[RawColumns]:
    """The elements of the pages ``in_use``; ``start`` is where the first page lies."""
    size = element_size(target)
    per_page = 1 << header.page_bits
    full = in_use[in_use < pages - 1]
    groups = [Ranges(offsets=start + full * (per_page * size + 4), length=per_page * size + 4)]
    firsts = [full * per_page]
    if len(full) < len(in_use):
        first = (pages - 1) * per_page
        groups.append(Ranges.one(start + first * size + 4 * (pages - 1), (header.count - first) * size + 4))
        firsts.append(np.array([first]))
    parts = []
    for batch in in_batches(groups):
        blocks = yield batch.asked
        for ranges, (group, rows), block in zip(batch.asked, batch.pieces, blocks, strict=True):
            if target.verify:
                verify_checksums(block, ranges.offsets, space=target.space, what="fixed array page")
            slots = firsts[group][rows, None] + np.arange((ranges.length - 4) // size)
            elements = block[:, :-4].reshape(-1, size)
            parts.append(decode_elements(elements, slots.reshape(-1), target, order=range(target.rank)))
    return concatenate(parts, target.rank)
