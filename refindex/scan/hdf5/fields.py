"""The integer fields HDF5 metadata is made of: little-endian, of widths the superblock chooses.

HDF5 File Format Specification 4.0, section I (Introduction) and II.A (Superblock): addresses are
"size of offsets" bytes wide and relative to the base address; all bits set is the undefined address.
Scalars are read by a :class:`Cursor`, columns of many records by :func:`unsigned`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refindex.access.gather import Block
from refindex.errors import FormatError

type Unsigned = npt.NDArray[np.uint64]
type Signed = npt.NDArray[np.int64]

FIELD_SIZES = (2, 4, 8)
"""Widths of addresses and lengths that are read. The specification also allows 16 and 32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressSpace:
    """How one file writes addresses and lengths, and which of them can be true.

    ``base`` is the size of the user block: every address on disk is relative to it.
    """

    name: str
    file_size: int
    base: int
    offset_size: int
    length_size: int

    @property
    def undefined(self) -> int:
        return (1 << (8 * self.offset_size)) - 1

    def damaged(self, address: int, what: str, *, expected: object, found: object) -> FormatError:
        """The error for a structure at absolute ``address`` that is not what it should be."""
        return FormatError(f"{self.name}: {what} at address {address}: expected {expected}, found {found}")

    def absolute(self, address: int, what: str) -> int | None:
        """The absolute file offset of an on-disk address, None if it is undefined."""
        if address == self.undefined:
            return None
        if address + self.base >= self.file_size:
            raise self.damaged(
                address + self.base,
                what,
                expected=f"an address in the file of {self.file_size} bytes",
                found=address,
            )
        return address + self.base

    def absolute_column(self, addresses: Unsigned, what: str) -> Signed:
        """As :meth:`absolute` for a column without undefined addresses."""
        if len(addresses):
            # Compared before the base is added, so that nothing can wrap around.
            highest = int(addresses.max())
            if highest + self.base >= self.file_size:
                raise self.damaged(
                    highest + self.base,
                    what,
                    expected=f"an address in the file of {self.file_size} bytes",
                    found=highest,
                )
        return addresses.astype(np.int64) + self.base


class Cursor:
    """Reads scalar fields one after the other from the bytes of one structure.

    ``address`` is the absolute file offset of the first byte. A field beyond the end raises
    FormatError, so parsers need no length checks of their own.
    """

    __slots__ = ("_data", "address", "position", "space", "what")

    def __init__(self, data: bytes, *, space: AddressSpace, address: int, what: str) -> None:
        self._data = data
        self.space = space
        self.address = address
        self.what = what
        self.position = 0

    @property
    def remaining(self) -> int:
        return len(self._data) - self.position

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes."""
        if size > self.remaining:
            raise self.damaged(expected=f"{size} more bytes", found=self.remaining)
        start = self.position
        self.position += size
        return self._data[start : self.position]

    def uint(self, width: int) -> int:
        """The next unsigned integer of ``width`` bytes."""
        return int.from_bytes(self.take(width), "little")

    def length(self) -> int:
        """The next field of "size of lengths" bytes."""
        return self.uint(self.space.length_size)

    def offset(self) -> int | None:
        """The next address as an absolute file offset, None if it is undefined."""
        return self.space.absolute(self.uint(self.space.offset_size), f"address in {self.what}")

    def expect(self, expected: bytes | int, field: str, width: int = 1) -> None:
        """Check a signature (bytes) or a fixed number of ``width`` bytes."""
        found: bytes | int
        found = self.take(len(expected)) if isinstance(expected, bytes) else self.uint(width)
        if found != expected:
            raise self.damaged(expected=f"{field} {expected!r}", found=repr(found))

    def damaged(self, *, expected: object, found: object) -> FormatError:
        return self.space.damaged(
            self.address + self.position,
            f"{self.what} starting at {self.address}, field",
            expected=expected,
            found=found,
        )


def unsigned(block: Block, start: int, width: int) -> Unsigned:
    """The ``width``-byte integers at ``start`` along the last axis of ``block``, as uint64.

    A block of shape (..., m) gives an array of shape (...). ``start + width`` must not exceed m.
    """
    field = block[..., start : start + width]
    if width in (1, 2, 4, 8):
        return field.view(f"<u{width}")[..., 0].astype(np.uint64)
    wide = np.zeros((*block.shape[:-1], 8), dtype=np.uint8)
    wide[..., :width] = field
    return wide.view("<u8")[..., 0].astype(np.uint64, copy=False)
