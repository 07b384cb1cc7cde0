"""Filter pipelines of HDF5 datasets (file format specification IV.A.2.l)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable

import h5py
from h5py import h5p

from refindex.errors import FormatError, UnsupportedError
from refindex.model.encoding import Filter
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.object_header import Message, read_messages
from refindex.scan.hdf5.walk import Found

PIPELINE_MESSAGE = 0x000B

_MOST_VALUES = 256 if h5py.version.version_tuple[:2] >= (3, 16) else 16
"""Client data values that h5py has room for. Beyond, it raises AssertionError or, before 3.16, returns what happens to
lie there; nbit has a dozen for each field of a compound, scaleoffset always 20."""


def read_pipeline(
    creation: h5p.PropDCID, messages: Callable[[], Iterable[Message]] | None = None
) -> tuple[Filter, ...]:
    """The filters of a dataset with all their client data values, in the order in which they are applied on writing.

    ``messages`` reads the dataset's object header, for filters of which h5py does not give all values.

    Raises
    ------
    UnsupportedError
        If there are such filters and no object header to read.
    FormatError
        If its filter pipeline message is damaged.
    """
    filters = []
    for i in range(creation.get_nfilters()):
        try:
            number, _, values, _ = creation.get_filter(i)
        except AssertionError:
            values = None
        if values is None or len(values) > _MOST_VALUES:
            if messages is None:
                raise UnsupportedError(f"filter {i + 1} has more than the {_MOST_VALUES} values that h5py reads")
            return _from_header(messages())
        filters.append(Filter(id=number, values=tuple(int(v) for v in values)))
    return tuple(filters)


def _from_header(messages: Iterable[Message]) -> tuple[Filter, ...]:
    for message in messages:
        if message.kind == PIPELINE_MESSAGE:
            if message.shared:
                raise UnsupportedError("its filter pipeline is a shared message, which is not read here")
            try:
                return parse_pipeline(message.body)
            except (struct.error, IndexError) as error:
                raise FormatError(f"the filter pipeline message at {message.address} is damaged: {error}") from error
    raise FormatError("its object header has no filter pipeline message")


def header_messages(found: Found, index: FileIndex) -> tuple[Message, ...]:
    """The object header of a dataset, read directly.

    Raises
    ------
    UnsupportedError
        If the file's superblock cannot be read directly.
    """
    try:
        gatherer, superblock = index.direct()
    except FormatError as error:
        raise UnsupportedError(
            f"a filter has more values than h5py reads, and the file cannot be read directly: {error}"
        ) from error
    return read_messages(gatherer, superblock.space, found.address + superblock.base_address)


def parse_pipeline(body: bytes) -> tuple[Filter, ...]:
    """The filters in a filter pipeline message, version 1 or 2."""
    version, count = body[0], body[1]
    if version not in (1, 2):
        raise UnsupportedError(f"filter pipeline message version {version}; 1 and 2 are read")
    at = 8 if version == 1 else 2
    filters = []
    for _ in range(count):
        (number,) = struct.unpack_from("<H", body, at)
        at += 2
        name_length = 0
        # Version 2 leaves the length of the name out for the filters of HDF5 itself.
        if version == 1 or number >= 256:
            (name_length,) = struct.unpack_from("<H", body, at)
            at += 2
        _, value_count = struct.unpack_from("<HH", body, at)
        # In version 1 the length of the name is a multiple of 8 already.
        at += 4 + name_length
        filters.append(Filter(id=number, values=struct.unpack_from(f"<{value_count}I", body, at)))
        at += 4 * value_count
        if version == 1 and value_count % 2:
            at += 4
    return tuple(filters)


def applied(pipeline: tuple[Filter, ...], mask: int) -> tuple[Filter, ...]:
    """The filters that a chunk with this filter mask went through: a set bit means skipped."""
    return tuple(f for i, f in enumerate(pipeline) if not mask >> i & 1)
