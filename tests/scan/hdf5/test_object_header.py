"""Object headers, and the data layout message of every version and storage class."""

from __future__ import annotations

import dataclasses

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex.access.gather import LocalGatherer, Ranges
from refindex.errors import FormatError, UnsupportedError
from refindex.scan.hdf5.fields import AddressSpace
from refindex.scan.hdf5.layout_message import (
    BTreeV2Parameters,
    ChunkIndexType,
    Chunking,
    ExtensibleArrayParameters,
    FixedArrayParameters,
    Layout,
    SingleChunkParameters,
    StorageClass,
    layout_message,
)
from refindex.scan.hdf5.object_header import LAYOUT_MESSAGE, read_layout, read_messages
from refindex.scan.hdf5.superblock import read_superblock

SPACE = AddressSpace(name="a.h5", file_size=10_000, base=512, offset_size=8, length_size=8)
UNDEFINED = b"\xff" * 8


def u(value, width):
    return value.to_bytes(width, "little")


@pytest.fixture
def make(gather, tmp_path):
    """``make(fill, libver)``: what libhdf5 wrote, as (gatherer, superblock, {name: absolute address})."""

    def run(fill, *, libver="latest", **options):
        path = tmp_path / "a.h5"
        with h5py.File(path, "w", libver=libver, **options) as file:
            fill(file)
            base = file.userblock_size
            found = {}
            file.visititems(lambda name, item: found.update({name: h5py.h5o.get_info(item.id).addr + base}))
        gatherer = gather(path.read_bytes(), "a.h5")
        return gatherer, read_superblock(gatherer, verify=True), found

    return run


def many_attributes(file):
    """A header whose continuation blocks cannot grow in place, so that there are several, chained.

    Not more than 8 attributes: newer formats would move them out of the header.
    """
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((3,))
    if file.libver[0] != "earliest":
        plist.set_attr_phase_change(12, 3)
    space = h5py.h5s.create_simple((9,))
    h5py.h5d.create(file.id, b"d", h5py.h5t.STD_I64LE, space, plist)
    for number in range(4):
        for name in "ab":
            file["d"].attrs[f"{name}{number}"] = np.arange(50)
        file.create_dataset(f"other{number}", data=np.arange(50))


@pytest.mark.parametrize("options", [{}, {"userblock_size": 1024}, {"track_order": True}])
@pytest.mark.parametrize("libver", ["earliest", "v108", "v110", "latest"])
def test_continuation_blocks(libver, options, make):
    gatherer, superblock, found = make(many_attributes, libver=libver, **options)
    messages = read_messages(gatherer, superblock.space, found["d"], verify=True)
    kinds = [message.kind for message in messages]
    assert {1, 3, LAYOUT_MESSAGE} <= set(kinds)
    assert kinds.count(0x000C) == 8
    assert kinds.count(0x0010) >= 2
    for message in messages:
        (body,) = gatherer.gather([Ranges.one(message.address, len(message.body))])
        assert body.tobytes() == message.body
    layout = read_layout(gatherer, superblock, found["d"], verify=True)
    assert layout.storage is StorageClass.CHUNKED
    assert layout.chunking.dims == (3,)
    assert layout.chunking.element_size == 8
    assert layout.chunking.nbytes == 24


@pytest.mark.parametrize("track_times", [False, True])
def test_header_with_times_and_creation_order(track_times, make):
    def fill(file):
        file.create_dataset("d", data=np.arange(9), track_times=track_times, track_order=True)
        for number in range(6):
            file["d"].attrs[f"a{number}"] = number

    gatherer, superblock, found = make(fill)
    assert read_layout(gatherer, superblock, found["d"], verify=True).size == 72


@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
def test_storage_classes(libver, make):
    values = np.arange(9, dtype="<i4")

    def fill(file):
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((9,))
        h5py.Dataset(h5py.h5d.create(file.id, b"compact", h5py.h5t.STD_I32LE, space, plist))[...] = values
        file["contiguous"] = values
        file.create_dataset("empty", shape=(9,), dtype="i4")
        file.create_dataset("chunked", shape=(9,), dtype="i4", chunks=(2,))

    gatherer, superblock, found = make(fill, libver=libver, userblock_size=512)
    layouts = {name: read_layout(gatherer, superblock, address) for name, address in found.items()}
    for name in ("compact", "contiguous"):
        layout = layouts[name]
        assert layout.storage is StorageClass[name.upper()]
        (data,) = gatherer.gather([Ranges.one(layout.address, layout.size)])
        assert data.tobytes() == values.tobytes()
        assert layout.chunking is None
    assert layouts["empty"].address is None
    assert layouts["empty"].storage is StorageClass.CONTIGUOUS
    assert layouts["chunked"].address is None
    assert layouts["chunked"].chunking.dims == (2,)


def test_virtual_layout(make):
    def fill(file):
        layout = h5py.VirtualLayout(shape=(4, 9), dtype="i4")
        layout[0] = h5py.VirtualSource("other.h5", "x", shape=(9,))
        file.create_virtual_dataset("d", layout)

    gatherer, superblock, found = make(fill)
    layout = read_layout(gatherer, superblock, found["d"])
    assert layout.storage is StorageClass.VIRTUAL
    assert layout.heap_index == 1
    (heap,) = gatherer.gather([Ranges.one(layout.address, 4)])
    assert heap.tobytes() == b"GCOL"


def test_a_group_has_no_layout(make):
    gatherer, superblock, found = make(lambda file: file.create_group("g"))
    with pytest.raises(FormatError, match=rf"address {found['g']}: expected a data layout message"):
        read_layout(gatherer, superblock, found["g"])


@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_wrong_addresses(libver, make):
    gatherer, superblock, found = make(lambda file: file.create_dataset("d", data=1), libver=libver)
    for address in (-1, found["d"] + 1, gatherer.size - 1, gatherer.size, gatherer.size + 1, 2**63, 2**70):
        with pytest.raises(FormatError, match=r"a\.h5"):
            read_layout(gatherer, superblock, address)


def test_a_continuation_that_points_back(make):
    gatherer, superblock, found = make(many_attributes, libver="earliest")
    messages = read_messages(gatherer, superblock.space, found["d"])
    first = next(message for message in messages if message.kind == 0x0010)
    (whole,) = gatherer.gather([Ranges.one(0, gatherer.size)])
    data = bytearray(whole.tobytes())
    block = int.from_bytes(first.body[:8], "little")
    # The block's first message becomes a continuation to the block itself.
    data[block : block + 24] = u(0x0010, 2) + u(16, 2) + bytes(4) + first.body[:16]
    with pytest.raises(FormatError, match="a block not yet read"):
        read_messages(LocalGatherer(data, name="a.h5"), superblock.space, found["d"])


def v1_header(*messages):
    body = b"".join(u(kind, 2) + u(len(data), 2) + u(flags, 1) + bytes(3) + data for kind, flags, data in messages)
    return b"\x01\0" + u(len(messages) & 0xFFFF, 2) + u(1, 4) + u(len(body), 4) + bytes(4) + body


def test_a_shared_layout_message(write, gather):
    superblock = read_superblock(gather(write(shape=(4,), chunks=(2,)).data, "a.h5"))
    data = v1_header((LAYOUT_MESSAGE, 2, bytes(24)))
    with pytest.raises(UnsupportedError, match="shared message"):
        read_layout(gather(data, "a.h5"), dataclasses.replace(superblock, space=space_of(data)), 0)


def space_of(data):
    return dataclasses.replace(SPACE, file_size=len(data), base=0)


def test_a_header_of_nothing_but_messages(gather):
    data = v1_header(*[(0, 0, b"")] * (2**18 + 1))
    with pytest.raises(FormatError, match="at most 262144 messages"):
        read_messages(gather(data, "a.h5"), space_of(data), 0)


@given(data=st.binary(max_size=200), version=st.sampled_from([1, 2]))
def test_any_header(data, version, gather):
    data = (b"\x01\0" if version == 1 else b"OHDR\x02") + data
    try:
        messages = read_messages(gather(data, "a.h5"), space_of(data), 0)
    except (FormatError, UnsupportedError) as error:
        assert "a.h5" in str(error)  # noqa: PT017
    else:
        assert sum(len(message.body) for message in messages) <= len(data)


# The layout message, from bytes

PREFIX_4 = u(4, 1) + u(2, 1)


def chunked_4(*, version=4, flags=0, dims=(10, 300, 8), width=2, index, parameters=b""):
    return b"".join(
        [
            u(version, 1) + u(2, 1) + u(flags, 1) + u(len(dims), 1) + u(width, 1),
            *(u(dim, width) for dim in dims),
            u(index.value, 1) + parameters + u(88, 8),
        ]
    )


def chunking(index, parameters=None, *, raw_edges=False):
    return Chunking(
        dims=(10, 300),
        element_size=8,
        index=index,
        dont_filter_partial_chunks=raw_edges,
        parameters=parameters,
    )


def chunked(version, value):
    return Layout(version=version, storage=StorageClass.CHUNKED, address=600, size=None, chunking=value)


V1 = ChunkIndexType.BTREE_V1
DIMS_32 = u(10, 4) + u(300, 4) + u(8, 4)
MESSAGES = {
    "1 compact": (
        b"\x01\x02\x00" + bytes(5) + u(3, 4) + u(4, 4) + u(5, 4) + b"abcde",
        Layout(version=1, storage=StorageClass.COMPACT, address=1020, size=5),
    ),
    "2 contiguous": (
        b"\x02\x02\x01" + bytes(5) + u(88, 8) + u(3, 4) + u(4, 4),
        Layout(version=2, storage=StorageClass.CONTIGUOUS, address=600, size=None),
    ),
    "1 chunked": (b"\x01\x03\x02" + bytes(5) + u(88, 8) + DIMS_32, chunked(1, chunking(V1))),
    "3 compact": (
        b"\x03\x00" + u(3, 2) + b"abc",
        Layout(version=3, storage=StorageClass.COMPACT, address=1004, size=3),
    ),
    "3 contiguous": (
        b"\x03\x01" + UNDEFINED + u(77, 8),
        Layout(version=3, storage=StorageClass.CONTIGUOUS, address=None, size=77),
    ),
    "3 chunked": (b"\x03\x02\x03" + u(88, 8) + DIMS_32, chunked(3, chunking(V1))),
    "4 virtual": (
        b"\x04\x03" + u(88, 8) + u(7, 4),
        Layout(version=4, storage=StorageClass.VIRTUAL, address=600, size=None, heap_index=7),
    ),
    "4 single": (chunked_4(index=ChunkIndexType.SINGLE), chunked(4, chunking(ChunkIndexType.SINGLE))),
    "5 single filtered": (
        chunked_4(version=5, flags=2, index=ChunkIndexType.SINGLE, parameters=u(99, 8) + u(3, 4)),
        chunked(5, chunking(ChunkIndexType.SINGLE, SingleChunkParameters(nbytes=99, filter_mask=3))),
    ),
    "4 implicit": (
        chunked_4(index=ChunkIndexType.IMPLICIT, flags=1, width=8),
        chunked(4, chunking(ChunkIndexType.IMPLICIT, raw_edges=True)),
    ),
    "4 fixed": (
        chunked_4(index=ChunkIndexType.FIXED_ARRAY, parameters=b"\x0a", width=3),
        chunked(4, chunking(ChunkIndexType.FIXED_ARRAY, FixedArrayParameters(page_bits=10))),
    ),
    "4 extensible": (
        chunked_4(index=ChunkIndexType.EXTENSIBLE_ARRAY, parameters=bytes((32, 4, 5, 16, 10))),
        chunked(
            4,
            chunking(
                ChunkIndexType.EXTENSIBLE_ARRAY,
                ExtensibleArrayParameters(max_bits=32, index_elements=4, min_pointers=5, min_elements=16, page_bits=10),
            ),
        ),
    ),
    "4 v2": (
        chunked_4(index=ChunkIndexType.BTREE_V2, parameters=u(2048, 4) + b"\x64\x28"),
        chunked(
            4,
            chunking(
                ChunkIndexType.BTREE_V2,
                BTreeV2Parameters(node_size=2048, split_percent=100, merge_percent=40),
            ),
        ),
    ),
}


@pytest.mark.parametrize(("body", "expected"), MESSAGES.values(), ids=MESSAGES)
def test_layout_message(body, expected):
    assert layout_message(body, space=SPACE, address=1000) == expected
    # Bodies are padded in version 1 headers.
    assert layout_message(body + bytes(7), space=SPACE, address=1000) == expected
    for size in range(len(body)):
        with pytest.raises(FormatError, match=r"a\.h5: data layout message starting at 1000"):
            layout_message(body[:size], space=SPACE, address=1000)


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (b"\x00\x01", UnsupportedError, "version 0"),
        (b"\x06\x01", UnsupportedError, "version 6"),
        (b"\x03\x04", UnsupportedError, "class 4"),
        (b"\x03\x03" + bytes(12), FormatError, "class 0 to 2"),
        (b"\x02\x01\x03" + bytes(20), FormatError, "class 0 to 2"),
        (b"\x03\x02\x01" + bytes(30), FormatError, "dimensionality of 2 to 33, found 1"),
        (b"\x03\x02\x22" + bytes(300), FormatError, "found 34"),
        (b"\x03\x02\x02" + u(1, 8) + u(0, 4) + u(8, 4), FormatError, "above 0"),
        (b"\x03\x02\x02" + u(1, 8) + u(4, 4) + u(0, 4), FormatError, "above 0"),
        (b"\x03\x01" + u(10_000 - 512, 8) + u(1, 8), FormatError, "an address in the file of 10000 bytes"),
        (b"\x03\x01" + u(2**64 - 2, 8) + u(1, 8), FormatError, "an address in the file"),
        (chunked_4(flags=4, index=ChunkIndexType.SINGLE), UnsupportedError, "flags 0x4"),
        (chunked_4(index=V1), UnsupportedError, "index type 0"),
        (
            chunked_4(width=8, dims=(2**40, 2**40, 8), index=ChunkIndexType.IMPLICIT),
            FormatError,
            r"below 2\*\*63",
        ),
        (PREFIX_4 + b"\x00\x02\x00" + bytes(30), FormatError, "1 to 8 bytes, found 0"),
        (PREFIX_4 + b"\x00\x02\x09" + bytes(30), FormatError, "found 9"),
    ],
)
def test_layout_message_refused(body, error, message):
    with pytest.raises(error, match=message) as raised:
        layout_message(body, space=SPACE, address=1000)
    assert "a.h5" in str(raised.value)


@given(body=st.binary(max_size=80), version=st.integers(1, 5), storage=st.integers(0, 3))
def test_any_layout_message(body, version, storage):
    for start in (bytes((version, storage)), bytes((version, 3, storage))):
        try:
            layout_message(start + body, space=SPACE, address=1000)
        except (FormatError, UnsupportedError) as error:
            assert "a.h5" in str(error)  # noqa: PT017
