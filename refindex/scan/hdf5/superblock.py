"""The superblock: where an HDF5 file starts, and how wide its addresses are.

HDF5 File Format Specification 4.0, section II.A "Disk Format: Level 0A - Format Signature and
Superblock", versions 0 to 3, and II.C "Superblock Extension".
"""

from __future__ import annotations

from dataclasses import dataclass

from refindex.access.gather import Gatherer, Ranges, Walk, drive
from refindex.errors import FormatError, UnsupportedError
from refindex.scan.hdf5.checksum import verify_checksum
from refindex.scan.hdf5.fields import FIELD_SIZES, AddressSpace, Cursor
from refindex.scan.hdf5.object_header import header_walk

SIGNATURE = b"\x89HDF\r\n\x1a\n"

# Version 1 with 8-byte fields is the longest superblock: 28 fixed bytes, 4 addresses, 40 of root entry.
_LONGEST = 100
_DEFAULT_K = 32
_BTREE_K_MESSAGE = 0x0013
_DRIVER_MESSAGE = 0x0014


@dataclass(frozen=True, slots=True, kw_only=True)
class Superblock:
    """What the readers of all other structures need to know about a file.

    ``indexed_storage_k`` is half the number of children of a version 1 B-tree node over chunks.
    ``end_of_file`` is the absolute end that the file was given when it was last flushed, and
    ``root_address`` the absolute address of the root group's object header.
    """

    version: int
    space: AddressSpace
    indexed_storage_k: int
    consistency_flags: int
    end_of_file: int
    root_address: int | None

    @property
    def base_address(self) -> int:
        """Size of the user block; add it to the addresses that libhdf5 reports for object headers."""
        return self.space.base

    @property
    def size_of_offsets(self) -> int:
        return self.space.offset_size

    @property
    def size_of_lengths(self) -> int:
        return self.space.length_size

    @property
    def open_for_writing(self) -> bool:
        """A writer has the file open, or did not close it. Only version 3 records this."""
        return self.version >= 3 and bool(self.consistency_flags & 0b101)


def read_superblock(
    gatherer: Gatherer, *, verify: bool = False, left_open: bool = False, joined: bool = False
) -> Superblock:
    """Find and read the superblock of a file.

    Raises FormatError if there is none, if it is damaged or the file is truncated, UnsupportedError for
    a file split over several (family and multi drivers) or marked as open for writing: its metadata may
    be half written; with ``left_open`` that is read all the same, with ``joined`` a file whose ``gatherer`` puts
    its members together. ``verify`` also checks checksums.
    """
    superblock = drive(_walk(gatherer.name, gatherer.size, verify=verify, joined=joined), gatherer)
    if superblock.open_for_writing and not left_open:
        raise UnsupportedError(
            f"{gatherer.name}: the superblock marks the file as open for writing (consistency flags "
            f"{superblock.consistency_flags:#x}); close the writer, or run h5clear -s if it crashed"
        )
    return superblock


def _walk(name: str, size: int, *, verify: bool, joined: bool) -> Walk[Superblock]:
    start = 0
    while start + len(SIGNATURE) < size:
        (block,) = yield (Ranges.one(start, min(_LONGEST, size - start)),)
        data = block.tobytes()
        if data.startswith(SIGNATURE):
            return (yield from _superblock(data, start, name, size, verify=verify, joined=joined))
        start = max(512, start * 2)
    raise FormatError(
        f"{name}: no HDF5 signature {SIGNATURE!r} at offset 0, 512, 1024 and so on, doubling, in {size} bytes"
    )


def _superblock(data: bytes, start: int, name: str, size: int, *, verify: bool, joined: bool) -> Walk[Superblock]:
    space = AddressSpace(name=name, file_size=size, base=0, offset_size=8, length_size=8)
    cursor = Cursor(data, space=space, address=start, what="superblock")
    cursor.expect(SIGNATURE, "signature")
    version = cursor.uint(1)
    if version > 3:
        raise UnsupportedError(f"{name}: superblock version {version} at address {start}; versions 0 to 3 are read")
    if version < 2:
        return _old(cursor, version, joined=joined)
    offset_size, length_size = _field_sizes(cursor)
    flags = cursor.uint(1)
    space, moved = _space(cursor, offset_size, length_size)
    extension = cursor.offset()
    end = _end_of_file(cursor, moved)
    root = cursor.offset()
    if verify:
        verify_checksum(data[: cursor.position + 4], cursor)
    k = _DEFAULT_K
    if extension is not None:
        messages = yield from header_walk(space, extension, verify=verify)
        for message in messages:
            if message.kind == _DRIVER_MESSAGE and not joined:
                raise _split_file(cursor)
            if message.kind == _BTREE_K_MESSAGE:
                # Section IV.A.2.t "B-tree 'K' Values Message".
                body = Cursor(message.body, space=space, address=message.address, what="B-tree 'K' values message")
                body.expect(0, "version")
                k = body.uint(2)
    return _finish(cursor, version=version, k=k, flags=flags, end=end, root=root)


def _old(cursor: Cursor, version: int, *, joined: bool) -> Superblock:
    """Versions 0 and 1, which differ only in the field for K of indexed storage."""
    cursor.take(4)  # versions of free space, root group entry and shared messages; reserved
    offset_size, length_size = _field_sizes(cursor)
    cursor.take(5)  # reserved, and the two K of group B-trees
    flags = cursor.uint(4)
    k = _DEFAULT_K
    if version == 1:
        k = cursor.uint(2)
        cursor.take(2)
    space, moved = _space(cursor, offset_size, length_size)
    cursor.take(offset_size)  # free space information, never used
    end = _end_of_file(cursor, moved)
    if cursor.uint(offset_size) != space.undefined and not joined:
        raise _split_file(cursor)
    # Link name offset of the root group's symbol table entry. The specification calls it a "size of offsets"
    # field; libhdf5 writes a length, as it is one into a heap.
    cursor.take(length_size)
    root = cursor.offset()
    return _finish(cursor, version=version, k=k, flags=flags, end=end, root=root)


def _field_sizes(cursor: Cursor) -> tuple[int, int]:
    sizes = cursor.uint(1), cursor.uint(1)
    for size in sizes:
        if size in (16, 32):
            raise UnsupportedError(f"{cursor.space.name}: addresses or lengths of {size} bytes; 2, 4 and 8 are read")
        if size not in FIELD_SIZES:
            raise cursor.damaged(expected="a size of offsets and of lengths of 2, 4 or 8", found=size)
    return sizes


def _space(cursor: Cursor, offset_size: int, length_size: int) -> tuple[AddressSpace, int]:
    """Read the base address, and switch the cursor to it and to the file's own field sizes.

    Where the signature is found counts, not what is written: a user block may have been put in front or
    cut off since. The second value is by how many bytes the superblock has moved.
    """
    written = cursor.uint(offset_size)
    cursor.space = AddressSpace(
        name=cursor.space.name,
        file_size=cursor.space.file_size,
        base=cursor.address,
        offset_size=offset_size,
        length_size=length_size,
    )
    return cursor.space, cursor.address - written


def _end_of_file(cursor: Cursor, moved: int) -> int:
    """The end-of-file address. Unlike all others libhdf5 writes it with the base address included."""
    return cursor.uint(cursor.space.offset_size) + moved


def _split_file(cursor: Cursor) -> UnsupportedError:
    return UnsupportedError(
        f"{cursor.space.name}: driver information in the superblock: the file is one of several (family "
        "or multi driver); join them with h5repart first"
    )


def _finish(cursor: Cursor, *, version: int, k: int, flags: int, end: int, root: int | None) -> Superblock:
    # Checked last: of a file split over several, none is as long as the end-of-file address says.
    if end > cursor.space.file_size:
        raise cursor.damaged(
            expected=f"a file of at least {end} bytes (truncated file)",
            found=f"{cursor.space.file_size} bytes",
        )
    if k == 0:
        raise cursor.damaged(expected="an indexed storage K above 0", found=k)
    return Superblock(
        version=version,
        space=cursor.space,
        indexed_storage_k=k,
        consistency_flags=flags,
        end_of_file=end,
        root_address=root,
    )
