"""Compressors whose streams say themselves how large they become: what a chunk has no room for is not made.

A few hundred bytes of bzip2 or Zstandard hold gigabytes, and c-blosc reads as far behind a buffer as its header says.
"""

from __future__ import annotations

import bz2
from collections.abc import Buffer

import numcodecs

from refindex.errors import DecodeError

_ZSTD_MAGIC = 0xFD2FB528
_MOST_RATIO = 1 << 17
"""What a byte becomes at most: a block of Zstandard becomes so much (RFC 8878, section 3.1.1.2.4), and takes more than
that one. What else Blosc has in it compresses less."""

_ZSTD_HEADER, _BLOSC_HEADER = 18, 16
"""Bytes of a header, at most."""


def room(nbytes: int) -> int:
    """Bytes that a chunk of ``nbytes`` may have between two filters: compressors make some chunks a little longer."""
    return nbytes + (nbytes >> 4) + 1024


def bunzip(data: Buffer, nbytes: int) -> bytes:
    """The bytes of bzip2 streams, one after the other.

    Raises
    ------
    DecodeError
        If they are damaged, truncated, or hold more than there is :func:`room` for.
    """
    most, parts, rest = room(nbytes), [], bytes(data)
    while rest:
        stream = bz2.BZ2Decompressor()
        try:
            parts.append(stream.decompress(rest, most))
        except (OSError, ValueError) as error:
            raise DecodeError(f"bzip2: {error}") from error
        if not stream.eof:
            raise DecodeError(f"bzip2: stream is truncated, or longer than the {nbytes} bytes of the chunk")
        most, rest = most - len(parts[-1]), stream.unused_data
    return b"".join(parts)


def unzstd(data: Buffer, nbytes: int) -> bytes:
    """The bytes of a Zstandard frame.

    Raises
    ------
    DecodeError
        If it is damaged, truncated, or holds more than there is :func:`room` for.
    """
    size = _zstd_size(bytes(memoryview(data)[:_ZSTD_HEADER]))
    most = room(nbytes)
    if size is not None and (size > most or size > memoryview(data).nbytes * _MOST_RATIO):
        raise DecodeError(
            f"zstd: a frame of {memoryview(data).nbytes} bytes claims {size}, for a chunk that has {nbytes}"
        )
    try:
        if size is not None:
            return bytes(numcodecs.Zstd().decode(data))
        import pyarrow as pa

        # The frame does not say its size: it is read until there is no more room.
        with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
            found = bytes(stream.read(most))
            if stream.read(1):
                raise DecodeError(f"zstd: the frame holds more than the {nbytes} bytes of the chunk")
            return found
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, DecodeError):
            raise
        raise DecodeError(f"zstd: {error}") from error


def _zstd_size(header: bytes) -> int | None:
    """The size in the header of a frame (RFC 8878, section 3.1.1.1), None if it is not there."""
    if len(header) < 5 or int.from_bytes(header[:4], "little") != _ZSTD_MAGIC:
        raise DecodeError("zstd: no frame of Zstandard")
    descriptor = header[4]
    single = bool(descriptor & 0x20)
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    field = header[start : start + width]
    if len(field) < width:
        raise DecodeError("zstd: the header of the frame is truncated")
    return int.from_bytes(field, "little") + (256 if width == 2 else 0) if width else None


def unblosc(data: Buffer, nbytes: int) -> bytes:
    """The bytes of a Blosc buffer (Blosc header format, version 2: sizes at bytes 4 and 12).

    Raises
    ------
    DecodeError
        If it is damaged, truncated, or holds more than there is :func:`room` for.
    """
    stored = memoryview(data)
    size, length = (int.from_bytes(stored[at : at + 4], "little") for at in (4, 12))
    if stored.nbytes < _BLOSC_HEADER or length > stored.nbytes:
        raise DecodeError(f"blosc: the buffer says that it has {length} bytes, found {stored.nbytes}: it is truncated")
    if size > room(nbytes) or size > length * _MOST_RATIO:
        raise DecodeError(f"blosc: a buffer of {length} bytes claims {size}, for a chunk that has {nbytes}")
    try:
        return bytes(numcodecs.Blosc().decode(data))
    except (RuntimeError, ValueError) as error:
        raise DecodeError(f"blosc: {error}") from error
