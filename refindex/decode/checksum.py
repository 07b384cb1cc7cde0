"""Checksums of stored chunks: CRC-32C (Castagnoli, RFC 3720, appendix B.4)."""

from __future__ import annotations

from collections.abc import Buffer

import google_crc32c

from refindex.errors import DecodeError


def checksum(data: Buffer, before: int = 0) -> int:
    """The CRC-32C of bytes, or of some that follow others, whose checksum is given."""
    return int(google_crc32c.extend(before, data if isinstance(data, bytes) else bytes(data)))


def check(data: Buffer, expected: int) -> None:
    """Compare bytes with the checksum that was taken of them; a negative one is none.

    Raises
    ------
    DecodeError
        If they differ.
    """
    if expected >= 0 and (found := checksum(data)) != expected:
        raise DecodeError(f"the checksum (CRC-32C) is {found:08x}, and was {expected:08x} when it was scanned")
