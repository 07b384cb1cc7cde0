"""The data layout message (0x0008): how and where the elements of a dataset are stored.

HDF5 File Format Specification 4.0, section IV.A.2.i "The Data Layout Message", versions 1 to 4, and version
5 of HDF5 2.0, which has the fields of version 4 but wider chunk sizes in the indexes.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from refindex.errors import UnsupportedError
from refindex.scan.hdf5.fields import AddressSpace, Cursor

MAX_RANK = 32
"""The largest number of dimensions of a dataspace (H5S_MAX_RANK)."""


class StorageClass(enum.Enum):
    COMPACT = 0
    CONTIGUOUS = 1
    CHUNKED = 2
    VIRTUAL = 3


class ChunkIndexType(enum.Enum):
    """Numbers are those of layout versions 4 and 5; earlier versions know only the version 1 B-tree."""

    BTREE_V1 = 0
    SINGLE = 1
    IMPLICIT = 2
    FIXED_ARRAY = 3
    EXTENSIBLE_ARRAY = 4
    BTREE_V2 = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleChunkParameters:
    """Only of a filtered single chunk: its stored bytes and its filter mask."""

    nbytes: int
    filter_mask: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedArrayParameters:
    """``page_bits``: log2 of the elements of a page; a data block with more is paged."""

    page_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensibleArrayParameters:
    max_bits: int
    index_elements: int
    min_pointers: int
    min_elements: int
    page_bits: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BTreeV2Parameters:
    node_size: int
    split_percent: int
    merge_percent: int


type IndexParameters = SingleChunkParameters | FixedArrayParameters | ExtensibleArrayParameters | BTreeV2Parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """The chunk grid's step and the index over it.

    ``dims`` are elements in each dimension of the dataset, without the trailing element size that the
    message carries; ``element_size`` is the bytes of one stored element.
    """

    dims: tuple[int, ...]
    element_size: int
    index: ChunkIndexType
    dont_filter_partial_chunks: bool
    parameters: IndexParameters | None

    @property
    def nbytes(self) -> int:
        """Bytes of one chunk before filters."""
        return math.prod(self.dims) * self.element_size


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One data layout message.

    ``address`` is the absolute file offset, the base address included, of the data (compact: inside the
    object header; contiguous), of the chunk index, or of the global heap collection (virtual). None: nothing
    is allocated, every value is the fill value, or the data is in external files.
    ``size`` is the stored bytes of compact and contiguous data; None for the others and for contiguous
    data of versions 1 and 2, which write dimensions cut to 32 bits instead (compute it from the dataspace).
    ``chunking`` is set for chunked data only. ``heap_index`` is the global heap object of a virtual layout.
    """

    version: int
    storage: StorageClass
    address: int | None
    size: int | None
    chunking: Chunking | None = None
    heap_index: int | None = None


def layout_message(body: bytes, *, space: AddressSpace, address: int) -> Layout:
    """Parse the body of a layout message that starts at the absolute ``address``.

    Raises FormatError for fields that contradict the specification, UnsupportedError for a version,
    storage class or chunk index this reader does not know.
    """
    cursor = Cursor(body, space=space, address=address, what="data layout message")
    version = cursor.uint(1)
    if version in (1, 2):
        return _version_1_2(cursor, version)
    if version in (3, 4, 5):
        storage = _storage_class(cursor)
        if storage is StorageClass.CHUNKED:
            return _version_3_chunked(cursor) if version == 3 else _version_4_chunked(cursor, version)
        return _version_3(cursor, version, storage)
    raise UnsupportedError(
        f"{space.name}: data layout message version {version} at address {address}; versions 1 to 5 are read"
    )


def _storage_class(cursor: Cursor) -> StorageClass:
    number = cursor.uint(1)
    try:
        return StorageClass(number)
    except ValueError:
        raise UnsupportedError(
            f"{cursor.space.name}: data layout class {number} at address {cursor.address}; 0 to 3 are read"
        ) from None


def _version_1_2(cursor: Cursor, version: int) -> Layout:
    rank = cursor.uint(1)
    storage = _storage_class(cursor)
    cursor.take(5)
    if storage is StorageClass.VIRTUAL:
        raise cursor.damaged(expected="layout class 0 to 2 in a message of version 1 or 2", found=storage.value)
    address = None if storage is StorageClass.COMPACT else cursor.offset()
    if storage is StorageClass.CHUNKED:
        # The specification lists the element size apart, but the dimensionality counts it, as in version 3.
        return _btree_v1(cursor, version, rank, address)
    cursor.take(4 * rank)
    if storage is StorageClass.CONTIGUOUS:
        return Layout(version=version, storage=storage, address=address, size=None)
    return _compact(cursor, version, cursor.uint(4))


def _version_3(cursor: Cursor, version: int, storage: StorageClass) -> Layout:
    if storage is StorageClass.COMPACT:
        return _compact(cursor, version, cursor.uint(2))
    address = cursor.offset()
    if storage is StorageClass.CONTIGUOUS:
        return Layout(version=version, storage=storage, address=address, size=cursor.length())
    if version == 3:
        raise cursor.damaged(expected="layout class 0 to 2 in a message of version 3", found=storage.value)
    return Layout(version=version, storage=storage, address=address, size=None, heap_index=cursor.uint(4))


def _compact(cursor: Cursor, version: int, size: int) -> Layout:
    address = cursor.address + cursor.position
    cursor.take(size)
    return Layout(version=version, storage=StorageClass.COMPACT, address=address, size=size)


def _version_3_chunked(cursor: Cursor) -> Layout:
    rank = cursor.uint(1)
    return _btree_v1(cursor, 3, rank, cursor.offset())


def _btree_v1(cursor: Cursor, version: int, rank: int, address: int | None) -> Layout:
    dims, element_size = _dims(cursor, rank, 4)
    chunking = Chunking(
        dims=dims,
        element_size=element_size,
        index=ChunkIndexType.BTREE_V1,
        dont_filter_partial_chunks=False,
        parameters=None,
    )
    return Layout(version=version, storage=StorageClass.CHUNKED, address=address, size=None, chunking=chunking)


def _dims(cursor: Cursor, rank: int, width: int) -> tuple[tuple[int, ...], int]:
    """The ``rank`` dimension fields: the chunk's, and last the element size."""
    if not 2 <= rank <= MAX_RANK + 1:
        raise cursor.damaged(expected=f"a dimensionality of 2 to {MAX_RANK + 1}", found=rank)
    *dims, element_size = (cursor.uint(width) for _ in range(rank))
    if 0 in dims or not element_size:
        raise cursor.damaged(expected="chunk dimensions and an element size above 0", found=(*dims, element_size))
    if math.prod(dims) * element_size >= 2**63:
        raise cursor.damaged(expected="a chunk below 2**63 bytes", found=(*dims, element_size))
    return tuple(dims), element_size


def _version_4_chunked(cursor: Cursor, version: int) -> Layout:
    flags = cursor.uint(1)
    if flags & ~0b11:
        raise UnsupportedError(
            f"{cursor.space.name}: flags {flags:#x} of the data layout message at address {cursor.address}; "
            "only bits 0 and 1 are known"
        )
    rank = cursor.uint(1)
    width = cursor.uint(1)
    if not 1 <= width <= 8:
        raise cursor.damaged(expected="chunk dimensions encoded in 1 to 8 bytes", found=width)
    dims, element_size = _dims(cursor, rank, width)
    number = cursor.uint(1)
    # 0 would be the version 1 B-tree, which these versions of the message cannot name.
    if not 1 <= number <= 5:
        raise UnsupportedError(
            f"{cursor.space.name}: chunk index type {number} in the data layout message at address "
            f"{cursor.address}; 1 to 5 are read"
        )
    index = ChunkIndexType(number)
    parameters = _parameters(cursor, index, filtered_single=bool(flags & 0b10))
    chunking = Chunking(
        dims=dims,
        element_size=element_size,
        index=index,
        dont_filter_partial_chunks=bool(flags & 0b01),
        parameters=parameters,
    )
    return Layout(version=version, storage=StorageClass.CHUNKED, address=cursor.offset(), size=None, chunking=chunking)


def _parameters(cursor: Cursor, index: ChunkIndexType, *, filtered_single: bool) -> IndexParameters | None:
    if index is ChunkIndexType.SINGLE:
        if not filtered_single:
            return None
        return SingleChunkParameters(nbytes=cursor.length(), filter_mask=cursor.uint(4))
    if index is ChunkIndexType.FIXED_ARRAY:
        return FixedArrayParameters(page_bits=cursor.uint(1))
    if index is ChunkIndexType.EXTENSIBLE_ARRAY:
        return ExtensibleArrayParameters(
            max_bits=cursor.uint(1),
            index_elements=cursor.uint(1),
            min_pointers=cursor.uint(1),
            min_elements=cursor.uint(1),
            page_bits=cursor.uint(1),
        )
    if index is ChunkIndexType.BTREE_V2:
        return BTreeV2Parameters(node_size=cursor.uint(4), split_percent=cursor.uint(1), merge_percent=cursor.uint(1))
    return None
