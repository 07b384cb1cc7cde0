"""The bytes of the smallest HDF5 file in which one filtered chunk lies, or one datatype.

libhdf5 undoes a chunk's filters when it reads the chunk from a file. Making that file *through* libhdf5 would run
the set-up of every filter, which computes the client data values anew from the dataset's type and shape, and needs
a filter that can encode, too. In a file written by hand the values are those that were stored.

A filter is called with its client data values and with bytes, never with the dataset (``H5Z_func_t``). So the
dataset here is a plain row of bytes, whatever the chunk's own type, shape and fill value: what a filter needs of
them is among its values already.

A file is made for each chunk, so the oldest structures are taken where there is a choice: superblock version 0
and object headers of version 1 have no checksum to compute. References are to the HDF5 File Format
Specification 4.0.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from refindex.errors import UnsupportedError
from refindex.model.encoding import Filter

NAME = b"d"
"""The name of the only object."""

_MOST_BYTES = 2**32 - 1
"""Before HDF5 2.0 (layout message version 5) no chunk is larger."""

_UNDEFINED = b"\xff" * 8


def chunk_image(data: bytes, filters: Sequence[Filter], nbytes: int) -> bytes:
    """A file whose dataset ``d`` is ``nbytes`` bytes in one chunk, stored through ``filters`` as ``data``.

    Raises
    ------
    UnsupportedError
        If there are more values or bytes than the format has room for.
    """
    if nbytes > _MOST_BYTES or len(data) > _MOST_BYTES:
        raise UnsupportedError(f"a filtered chunk of {max(nbytes, len(data))} bytes is too large for libhdf5 here")
    # IV.A.2.b, version 2: one dimension, simple.
    space = _message(0x0001, struct.pack("<BBBBQ", 2, 1, 0, 1, nbytes))
    before = space + _BYTES + _message(0x000B, _pipeline(filters))
    # The layout message is as long whatever address it gives, and is followed by the chunk.
    start = _OBJECT_AT + len(_header(5, before + _layout(nbytes, len(data), 0)))
    header = _header(5, before + _layout(nbytes, len(data), start))
    return _superblock(start + len(data)) + _ROOT + header + data


def type_image(encoded: bytes) -> bytes:
    """A file whose only object ``d`` is a committed datatype.

    ``encoded`` is what H5Tencode makes: the number of the datatype message (3), the version of the
    encoding (0), and the body of the message (IV.A.2.d). H5Tdecode reads it as well, but before HDF5 2.0 it
    is not told where the bytes end; a message of an object header has a size.

    Raises
    ------
    UnsupportedError
        If it does not begin like that, or is longer than a message can be.
    """
    if not encoded.startswith(b"\x03\x00"):
        raise UnsupportedError(f"an encoded datatype begins with bytes 3 and 0, found {encoded[:2]!r}")
    header = _header(1, _message(0x0003, encoded[2:]))
    return _superblock(_OBJECT_AT + len(header)) + _ROOT + header


def _superblock(end: int) -> bytes:
    """II.A, version 0, with the root group's symbol table entry (III.C) that caches nothing."""
    # Versions of its parts, size of offsets and of lengths, K of leaf and internal nodes, consistency flags.
    fixed = struct.pack("<8BHHI", 0, 0, 0, 0, 0, 8, 8, 0, 4, 16, 0)
    addresses = struct.pack("<Q", 0) + _UNDEFINED + struct.pack("<Q", end) + _UNDEFINED
    return b"\x89HDF\r\n\x1a\n" + fixed + addresses + struct.pack("<QQII16x", 0, _ROOT_AT, 0, 0)


def _header(count: int, messages: bytes) -> bytes:
    """IV.A.1.a, version 1: the number of messages, a reference count of 1, the size of all messages."""
    return struct.pack("<BxHII4x", 1, count, 1, len(messages)) + messages


def _message(kind: int, body: bytes) -> bytes:
    """A message of a version 1 header: padded to a multiple of 8 bytes, flags 0."""
    padded = len(body) + -len(body) % 8
    if padded > 0xFFFF:
        raise UnsupportedError(f"{len(body)} bytes do not fit into an object header message of at most 65528")
    return struct.pack("<HHB3x", kind, padded, 0) + body.ljust(padded, b"\0")


def _layout(nbytes: int, stored: int, address: int) -> bytes:
    """IV.A.2.i, version 4, class 2 (chunked): a single chunk (index type 1), filtered (flags 2), no filter skipped.

    Every libhdf5 that h5py is built with (1.10 or later) reads version 4. Version 3 would go back to 1.8 and needs
    a B-tree of version 1 beside the chunk: a node of 3 kB to make, and for libhdf5 to search.
    """
    # Dimensions are those of the chunk and, last, the size of an element; libhdf5 2.0 wants them in the fewest bytes.
    width = max(1, (nbytes.bit_length() + 7) // 8)
    dimensions = nbytes.to_bytes(width, "little") + (1).to_bytes(width, "little")
    chunk = struct.pack("<BBBBB", 4, 2, 2, 2, width) + dimensions + struct.pack("<BQIQ", 1, stored, 0, address)
    return _message(0x0008, chunk)


def _pipeline(filters: Sequence[Filter]) -> bytes:
    """IV.A.2.l, version 2. No filter is optional: one that libhdf5 lacks is an error, and is not skipped."""
    try:
        parts = [struct.pack("<BB", 2, len(filters))]
        for applied in filters:
            # The length of the (empty) name is left out for the filters of HDF5 itself, below 256.
            name = b"" if applied.id < 256 else b"\0\0"
            values = struct.pack(f"<{len(applied.values)}I", *applied.values)
            parts.append(struct.pack("<H", applied.id) + name + struct.pack("<HH", 0, len(applied.values)) + values)
    except struct.error as error:
        raise UnsupportedError(f"the filters {filters!r} do not fit into a filter pipeline message: {error}") from error
    return b"".join(parts)


_ROOT_AT = 96
"""The size of the superblock."""


def _root(target: int) -> bytes:
    # IV.A.2.c, version 0: no creation order, nothing in dense storage. It makes the group one of the new style.
    info = _message(0x0002, struct.pack("<BB", 0, 0) + 2 * _UNDEFINED)
    # IV.A.2.g, version 1: a hard link, its name's length in 1 byte, no optional fields.
    link = _message(0x0006, struct.pack("<BBB", 1, 0, len(NAME)) + NAME + struct.pack("<Q", target))
    return _header(2, info + link)


_OBJECT_AT = _ROOT_AT + len(_root(0))
_ROOT = _root(_OBJECT_AT)

_BYTES = (
    # IV.A.2.d, version 1, class 0: an unsigned integer of 8 bits in 1 byte.
    _message(0x0003, struct.pack("<B3sIHH", 0x10, b"\0\0\0", 1, 0, 8))
    # IV.A.2.f, version 3: allocated incrementally (3), written if set (2 << 2), undefined (1 << 4).
    + _message(0x0005, struct.pack("<BB", 3, 3 | 2 << 2 | 1 << 4))
)
"""The element type and the fill value of the row of bytes."""
