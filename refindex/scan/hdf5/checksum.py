"""The checksum at the end of most metadata structures: Bob Jenkins' lookup3, with initial value 0.

HDF5 File Format Specification 4.0, section I: "checksum" fields hold the lookup3 hash of all bytes of the
structure before them. The hash is Jenkins' public ``hashlittle()``; the steps here follow his
description (burtleburtle.net/bob/hash/doobs.html, lookup3).

Checking costs several times the decoding, so it is an option everywhere. Nodes of one level are hashed
side by side, word by word; a few large blocks are hashed one by one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from refindex.access.gather import Block
from refindex.errors import FormatError
from refindex.scan.hdf5.fields import AddressSpace, Cursor, Signed

_MASK = 0xFFFFFFFF
_START = 0xDEADBEEF
_SIDE_BY_SIDE = 16
"""From this many equally long blocks on, hashing them in parallel with numpy is faster."""

type _Words = npt.NDArray[np.uint32]


def verify_checksum(structure: bytes, cursor: Cursor) -> None:
    """Check a structure whose last 4 bytes are its checksum; ``cursor`` says where it is."""
    if len(structure) < 4:
        raise cursor.damaged(expected="a checksum", found=f"{len(structure)} bytes")
    expected, found = lookup3(structure[:-4]), int.from_bytes(structure[-4:], "little")
    if expected != found:
        raise cursor.space.damaged(
            cursor.address, f"checksum of {cursor.what}", expected=f"{expected:#010x}", found=f"{found:#010x}"
        )


def verify_checksums(blocks: Block, addresses: Signed, *, space: AddressSpace, what: str) -> None:
    """Check blocks of shape (n, length) at ``addresses``, each ending with its checksum."""
    if not len(blocks):
        return
    found = np.ascontiguousarray(blocks[:, -4:]).view("<u4")[:, 0]
    if len(blocks) < _SIDE_BY_SIDE:
        hashes = [lookup3(block[:-4].tobytes()) for block in blocks]
        expected = np.array(hashes, dtype=np.uint32)
    else:
        expected = _lookup3_columns(blocks[:, :-4])
    wrong = np.flatnonzero(found != expected)
    if len(wrong):
        first = int(wrong[0])
        raise _mismatch(space, int(addresses[first]), what, int(expected[first]), int(found[first]))


def _mismatch(space: AddressSpace, address: int, what: str, expected: int, found: int) -> FormatError:
    return space.damaged(address, f"checksum of {what}", expected=f"{expected:#010x}", found=f"{found:#010x}")


def lookup3(data: bytes) -> int:
    """The 32-bit lookup3 hash of ``data``."""
    a = b = c = (_START + len(data)) & _MASK
    if not data:
        return c
    # The tail of 1 to 12 bytes is padded with zeros, which add nothing.
    tail = (len(data) - 1) // 12 * 12
    words = np.frombuffer(data[:tail], dtype="<u4").tolist()
    for i in range(0, len(words), 3):
        a = (a + words[i]) & _MASK
        b = (b + words[i + 1]) & _MASK
        c = (c + words[i + 2]) & _MASK
        for shifts in ((4, 6, 8), (16, 19, 4)):
            a = ((a - c) & _MASK) ^ _rotate(c, shifts[0])
            c = (c + b) & _MASK
            b = ((b - a) & _MASK) ^ _rotate(a, shifts[1])
            a = (a + c) & _MASK
            c = ((c - b) & _MASK) ^ _rotate(b, shifts[2])
            b = (b + a) & _MASK
    last = data[tail:].ljust(12, b"\0")
    a = (a + int.from_bytes(last[:4], "little")) & _MASK
    b = (b + int.from_bytes(last[4:8], "little")) & _MASK
    c = (c + int.from_bytes(last[8:], "little")) & _MASK
    c = ((c ^ b) - _rotate(b, 14)) & _MASK
    a = ((a ^ c) - _rotate(c, 11)) & _MASK
    b = ((b ^ a) - _rotate(a, 25)) & _MASK
    c = ((c ^ b) - _rotate(b, 16)) & _MASK
    a = ((a ^ c) - _rotate(c, 4)) & _MASK
    b = ((b ^ a) - _rotate(a, 14)) & _MASK
    return ((c ^ b) - _rotate(b, 24)) & _MASK


def _rotate(word: int, by: int) -> int:
    return ((word << by) | (word >> (32 - by))) & _MASK


def _lookup3_columns(blocks: Block) -> _Words:
    """:func:`lookup3` of every row; the words of all rows advance together. uint32 arrays wrap silently."""
    rows, length = blocks.shape
    a = np.full(rows, (_START + length) & _MASK, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    if not length:
        return c
    padded = np.zeros((rows, (length + 11) // 12 * 12), dtype=np.uint8)
    padded[:, :length] = blocks
    words = np.ascontiguousarray(padded.view("<u4").T)
    for i in range(0, len(words) - 3, 3):
        a += words[i]
        b += words[i + 1]
        c += words[i + 2]
        for shifts in ((4, 6, 8), (16, 19, 4)):
            a -= c
            a ^= _rotate_column(c, shifts[0])
            c += b
            b -= a
            b ^= _rotate_column(a, shifts[1])
            a += c
            c -= b
            c ^= _rotate_column(b, shifts[2])
            b += a
    a += words[-3]
    b += words[-2]
    c += words[-1]
    c = (c ^ b) - _rotate_column(b, 14)
    a = (a ^ c) - _rotate_column(c, 11)
    b = (b ^ a) - _rotate_column(a, 25)
    c = (c ^ b) - _rotate_column(b, 16)
    a = (a ^ c) - _rotate_column(c, 4)
    b = (b ^ a) - _rotate_column(a, 14)
    return (c ^ b) - _rotate_column(b, 24)


def _rotate_column(words: _Words, by: int) -> _Words:
    return (words << np.uint32(by)) | (words >> np.uint32(32 - by))
