"""Deflate, which nearly all compressed chunks of legacy archives are: by ISA-L, twice as fast as zlib, or by zlib."""

from __future__ import annotations

import zlib
from collections.abc import Buffer
from typing import Any

from refindex.decode.bounded import room
from refindex.errors import DecodeError

_isal: Any
try:
    from isal import isal_zlib as _isal
except ImportError:  # there are no wheels for every machine
    _isal = None


def inflate(data: Buffer, nbytes: int) -> bytes:
    """The bytes of a zlib stream; a little more than ``nbytes`` of them where it holds more than that.

    The checksum of the stream is verified. Both libraries release the GIL while they work.

    Raises
    ------
    DecodeError
        If the stream is damaged, truncated, or much longer than ``nbytes``.
    """
    if _isal is not None:
        try:
            stream = _isal.decompressobj()
            out: bytes = stream.decompress(data, room(nbytes))
            if stream.eof:
                return out
        except (_isal.error, ValueError, OverflowError):
            pass  # zlib has the last word, and the message that people can look up
    try:
        inflating = zlib.decompressobj()
        out = inflating.decompress(data, room(nbytes))
    except (zlib.error, ValueError, OverflowError) as error:  # the last two: no chunk has so many bytes
        raise DecodeError(f"deflate: {error}") from error
    if not inflating.eof:
        raise DecodeError(f"deflate: stream is truncated, or longer than the {nbytes} bytes of the chunk")
    return out
