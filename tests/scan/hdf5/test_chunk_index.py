"""Chunk tables read from the index on disk, against what the chunks themselves say.

The oracle is the payload, not ``chunk_iter``: libhdf5 2.0.0 iterates wrongly over extensible arrays whose
unlimited dimension is not the first.
"""

from __future__ import annotations

import math
import random
import time
from itertools import product

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from refindex.access.gather import RangeGatherer, Ranges, drive
from refindex.errors import FormatError, SourceError, UnsupportedError
from refindex.scan.hdf5.chunk_index import ALL_FILTERS_MASKED, read_chunks
from refindex.scan.hdf5.layout_message import ChunkIndexType
from refindex.scan.hdf5.object_header import read_layout
from refindex.scan.hdf5.superblock import read_superblock

GZIP = ("shuffle", "deflate")
ALL = ("shuffle", "deflate", "fletcher32")


def some(grid, step):
    """Every ``step``-th chunk of a grid: a sparse allocation."""
    return list(product(*map(range, grid)))[::step]


CASES = {
    "v1": ("BTREE_V1", {"shape": (40, 33), "chunks": (3, 4), "libver": "earliest"}),
    "v1 filters": ("BTREE_V1", {"shape": (40, 33), "chunks": (3, 4), "libver": "earliest", "filters": ALL}),
    "v1 in a v2 header": ("BTREE_V1", {"shape": (40, 33), "chunks": (3, 4), "libver": "v108"}),
    "v1 user block": (
        "BTREE_V1",
        {"shape": (9, 33), "chunks": (3, 4), "libver": "earliest", "user_block": 1024},
    ),
    "v1 4-byte addresses": (
        "BTREE_V1",
        {"shape": (40, 33), "chunks": (3, 4), "libver": "earliest", "sizes": (4, 4)},
    ),
    "v1 2-byte addresses": (
        "BTREE_V1",
        {"shape": (12,), "chunks": (3,), "libver": "earliest", "sizes": (2, 2)},
    ),
    "v1 deep": ("BTREE_V1", {"shape": (300, 2), "chunks": (1, 1), "libver": "earliest", "istore_k": 2}),
    "v1 K in the extension": ("BTREE_V1", {"shape": (100,), "chunks": (1,), "libver": "v108", "istore_k": 3}),
    "v1 two levels": ("BTREE_V1", {"shape": (70, 71), "chunks": (1, 1), "libver": "earliest"}),
    "v1 sparse": (
        "BTREE_V1",
        {"shape": (40, 40), "chunks": (2, 2), "libver": "earliest", "chunks_written": some((20, 20), 7)},
    ),
    "v1 resizable": (
        "BTREE_V1",
        {"shape": (9, 9), "max_shape": (None, None), "chunks": (2, 4), "libver": "earliest"},
    ),
    "single": ("SINGLE", {"shape": (5, 6), "chunks": (5, 6)}),
    "single filters": ("SINGLE", {"shape": (5, 6), "chunks": (5, 6), "filters": ALL, "user_block": 512}),
    "single 1.10": ("SINGLE", {"shape": (5, 6), "chunks": (5, 6), "filters": GZIP, "libver": "v110"}),
    "single mask": ("SINGLE", {"shape": (5,), "chunks": (5,), "filters": GZIP, "masks": {(0,): 2}}),
    "implicit": ("IMPLICIT", {"shape": (10, 9, 4), "chunks": (2, 4, 3), "early": True}),
    "implicit below maximum": (
        "IMPLICIT",
        {"shape": (10, 9), "max_shape": (14, 21), "chunks": (2, 4), "early": True, "user_block": 512},
    ),
    "implicit unwritten": (
        "IMPLICIT",
        {"shape": (10, 9), "chunks": (2, 4), "early": True, "chunks_written": [(1, 2)]},
    ),
    "fixed": ("FIXED_ARRAY", {"shape": (40, 33), "chunks": (3, 4)}),
    "fixed filters": (
        "FIXED_ARRAY",
        {"shape": (40, 33), "chunks": (3, 4), "filters": ALL, "user_block": 512},
    ),
    "fixed filters 1.10": (
        "FIXED_ARRAY",
        {"shape": (40, 33), "chunks": (3, 4), "filters": GZIP, "libver": "v110"},
    ),
    "fixed below maximum": (
        "FIXED_ARRAY",
        {"shape": (9, 9), "max_shape": (14, 21), "chunks": (2, 4), "filters": GZIP},
    ),
    "fixed shrunk": (
        "FIXED_ARRAY",
        {
            "shape": (14, 21),
            "max_shape": (14, 30),
            "chunks": (2, 4),
            "resized": (7, 9),
            "chunks_written": some((7, 6), 1),
        },
    ),
    "fixed paged": ("FIXED_ARRAY", {"shape": (50, 50), "chunks": (1, 1)}),
    "fixed paged full last page": ("FIXED_ARRAY", {"shape": (2048,), "chunks": (1,)}),
    "fixed paged sparse": (
        "FIXED_ARRAY",
        {
            "shape": (9000,),
            "chunks": (1,),
            "filters": GZIP,
            "chunks_written": [(1,), (1023,), (5000,), (8999,)],
        },
    ),
    "fixed 4-byte": ("FIXED_ARRAY", {"shape": (40, 33), "chunks": (3, 4), "filters": GZIP, "sizes": (4, 4)}),
    "fixed masks": (
        "FIXED_ARRAY",
        {"shape": (6, 6), "chunks": (2, 2), "filters": GZIP, "masks": {(0, 1): 1, (1, 1): 2, (2, 2): 3}},
    ),
    "fixed raw edges": (
        "FIXED_ARRAY",
        {"shape": (7, 9), "chunks": (2, 4), "filters": GZIP, "raw_edges": True},
    ),
    "extensible": ("EXTENSIBLE_ARRAY", {"shape": (40, 33), "max_shape": (None, 33), "chunks": (3, 4)}),
    "extensible filters": (
        "EXTENSIBLE_ARRAY",
        {"shape": (40, 33), "max_shape": (None, 40), "chunks": (3, 4), "filters": ALL, "user_block": 512},
    ),
    "extensible second": ("EXTENSIBLE_ARRAY", {"shape": (13, 90), "max_shape": (14, None), "chunks": (2, 3)}),
    "extensible middle": (
        "EXTENSIBLE_ARRAY",
        {
            "shape": (5, 12, 7),
            "max_shape": (8, None, 9),
            "chunks": (2, 2, 3),
            "filters": GZIP,
            "libver": "v110",
        },
    ),
    "extensible secondary blocks": (
        "EXTENSIBLE_ARRAY",
        {"shape": (3000,), "max_shape": (None,), "chunks": (1,)},
    ),
    "extensible pages": (
        "EXTENSIBLE_ARRAY",
        {
            "shape": (700_000,),
            "max_shape": (None,),
            "chunks": (1,),
            "filters": GZIP,
            "chunks_written": [(0,), (3,), (4,), (70_000,), (140_000,), (144_321,), (300_000,), (699_999,)],
        },
    ),
    "extensible pages in 1.10": (
        "EXTENSIBLE_ARRAY",
        {
            "shape": (3, 300_000),
            "max_shape": (5, None),
            "chunks": (1, 1),
            "libver": "v110",
            "chunks_written": [(0, 0), (2, 1), (1, 40_000), (2, 99_999), (0, 299_999)],
        },
    ),
    "extensible masks": (
        "EXTENSIBLE_ARRAY",
        {
            "shape": (30,),
            "max_shape": (None,),
            "chunks": (2,),
            "filters": GZIP,
            "masks": {(0,): 2, (5,): 1, (14,): 3},
        },
    ),
    "extensible raw edges": (
        "EXTENSIBLE_ARRAY",
        {"shape": (7, 9), "max_shape": (None, 9), "chunks": (2, 4), "filters": GZIP, "raw_edges": True},
    ),
    "extensible shrunk": (
        "EXTENSIBLE_ARRAY",
        {
            "shape": (90, 9),
            "max_shape": (None, 9),
            "chunks": (2, 4),
            "resized": (31, 5),
            "chunks_written": some((45, 3), 1),
        },
    ),
    "extensible grown": (
        "EXTENSIBLE_ARRAY",
        {
            "shape": (9, 9),
            "max_shape": (9, None),
            "chunks": (2, 4),
            "resized": (9, 900),
            "chunks_written": some((5, 3), 1),
        },
    ),
    "extensible 4-byte": (
        "EXTENSIBLE_ARRAY",
        {"shape": (300,), "max_shape": (None,), "chunks": (2,), "filters": GZIP, "sizes": (4, 4)},
    ),
    "v2": ("BTREE_V2", {"shape": (40, 33), "max_shape": (None, None), "chunks": (3, 4)}),
    "v2 filters": (
        "BTREE_V2",
        {"shape": (40, 33), "max_shape": (None, None), "chunks": (3, 4), "filters": ALL, "user_block": 512},
    ),
    "v2 filters 1.10": (
        "BTREE_V2",
        {"shape": (40, 33), "max_shape": (None, None), "chunks": (3, 4), "filters": GZIP, "libver": "v110"},
    ),
    "v2 deep": ("BTREE_V2", {"shape": (90, 91), "max_shape": (None, None), "chunks": (1, 1)}),
    "v2 4-byte": (
        "BTREE_V2",
        {"shape": (40, 33), "max_shape": (None, None), "chunks": (3, 4), "filters": GZIP, "sizes": (4, 4)},
    ),
    "v2 sparse, one bounded": (
        "BTREE_V2",
        {
            "shape": (10, 20, 30),
            "max_shape": (None, 40, None),
            "chunks": (1, 2, 3),
            "filters": GZIP,
            "chunks_written": some((10, 10, 10), 13),
        },
    ),
    "v2 shrunk": (
        "BTREE_V2",
        {
            "shape": (40, 40),
            "max_shape": (None, None),
            "chunks": (2, 2),
            "resized": (31, 5),
            "chunks_written": some((20, 20), 1),
        },
    ),
    "v2 masks": (
        "BTREE_V2",
        {
            "shape": (6, 6),
            "max_shape": (None, None),
            "chunks": (2, 2),
            "filters": GZIP,
            "masks": {(0, 1): 1, (2, 2): 3},
        },
    ),
    "v2 raw edges": (
        "BTREE_V2",
        {"shape": (7, 9), "max_shape": (None, None), "chunks": (2, 4), "filters": GZIP, "raw_edges": True},
    ),
}


@pytest.mark.parametrize(("index", "options"), CASES.values(), ids=CASES)
def test_every_row_leads_to_its_chunk(index, options, write, gather, read):
    written = write(**options)
    gatherer = gather(written.data, written.name)
    layout = read_layout(gatherer, read_superblock(gatherer), written.address)
    assert layout.chunking.index is ChunkIndexType[index]
    columns = read(written)
    assert written.stored(columns) == written.labels()
    assert len(columns) == len(written.labels())
    for column, dtype in zip(
        (columns.scaled, columns.offset, columns.length, columns.filter_mask),
        ("i8", "i8", "i8", "u4"),
        strict=True,
    ):
        assert column.dtype == np.dtype(dtype)
        assert column.flags.c_contiguous
    rows = [tuple(row) for row in columns.scaled.tolist()]
    assert rows == sorted(rows)
    for scaled, mask in zip(rows, columns.filter_mask.tolist(), strict=True):
        if not options.get("raw_edges"):
            assert mask == options.get("masks", {}).get(scaled, 0)


@pytest.mark.parametrize("case", ["fixed raw edges", "extensible raw edges", "v2 raw edges"])
def test_unfiltered_edge_chunks_have_all_filters_masked(case, write, read):
    columns = read(write(**CASES[case][1]))
    edge = (columns.scaled == (3, 2)).any(axis=1)
    assert edge.any()
    assert not edge.all()
    assert (columns.filter_mask == np.where(edge, ALL_FILTERS_MASKED, 0)).all()
    assert (columns.length[edge] == 64).all()


@pytest.mark.parametrize("case", ["v1 filters", "single filters", "fixed paged", "extensible filters", "v2 deep"])
def test_agrees_with_chunk_iter_where_that_is_right(case, write, read, tmp_path):
    written = write(**CASES[case][1])
    path = tmp_path / "copy.h5"
    path.write_bytes(written.data)
    expected = []
    with h5py.File(path) as file:
        file["d"].id.chunk_iter(expected.append)
    columns = read(written)
    base = written.spec.user_block if h5py.version.hdf5_version_tuple < (2, 0, 0) else 0
    assert sorted((*info.chunk_offset, info.byte_offset + base, info.size) for info in expected) == [
        (*(np.array(scaled) * written.spec.chunks).tolist(), offset, length)
        for scaled, offset, length in zip(
            columns.scaled.tolist(), columns.offset.tolist(), columns.length.tolist(), strict=True
        )
    ]


@pytest.mark.parametrize("max_shape", [(20,), (None,), (None, None)])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_nothing_stored(max_shape, libver, write, read):
    shape = (20,) * len(max_shape)
    columns = read(write(shape=shape, chunks=(3,) * len(shape), max_shape=max_shape, libver=libver, chunks_written=[]))
    assert len(columns) == 0
    assert columns.scaled.shape == (0, len(shape))


def test_an_extent_of_zero(write, read):
    columns = read(write(shape=(0, 4), max_shape=(None, 4), chunks=(2, 2), chunks_written=[]))
    assert columns.scaled.shape == (0, 2)


@st.composite
def datasets(draw):
    rank = draw(st.integers(1, 3))
    shape = tuple(draw(st.integers(1, 9)) for _ in range(rank))
    maxima = tuple(draw(st.sampled_from([size, size + 5, None])) for size in shape)
    early = draw(st.booleans())
    filters = draw(st.sampled_from([(), ("shuffle",), ("deflate",), GZIP, ALL]))
    spec = {
        "shape": shape,
        "max_shape": maxima,
        "chunks": tuple(
            draw(st.integers(1, size if bound is None else min(bound, size + 2)))
            for size, bound in zip(shape, maxima, strict=True)
        ),
        "libver": draw(st.sampled_from(["earliest", "v108", "v110", "latest"])),
        "filters": filters,
        "user_block": draw(st.sampled_from([0, 512])),
        "early": early,
        "raw_edges": draw(st.booleans()),
        "sizes": draw(st.sampled_from([(8, 8), (4, 4), (8, 4), (4, 8)])),
    }
    if spec["libver"] in ("earliest", "v108"):
        # The flag is only in layout versions from 4 on.
        spec["raw_edges"] = False
    every = list(product(*(range(-(-size // step)) for size, step in zip(shape, spec["chunks"], strict=True))))
    if draw(st.booleans()):
        spec["chunks_written"] = draw(st.lists(st.sampled_from(every), unique=True, max_size=40))
    return spec


@settings(deadline=None, max_examples=150)
@given(spec=datasets())
def test_any_dataset(spec, write, read):
    written = write(**spec)
    columns = read(written)
    assert written.stored(columns) == written.labels()
    assert len(columns) == len(written.labels())


# Damage


SMALL = {
    "v1": {"shape": (20, 9), "chunks": (2, 2), "libver": "earliest", "istore_k": 2, "filters": GZIP},
    "v1 extension": {"shape": (20, 9), "chunks": (2, 2), "libver": "v108", "istore_k": 2},
    "single": {"shape": (9,), "chunks": (9,), "filters": GZIP, "user_block": 512},
    "implicit": {"shape": (9, 9), "max_shape": (12, 9), "chunks": (2, 2), "early": True},
    "fixed": {"shape": (9, 9), "max_shape": (12, 9), "chunks": (2, 2), "filters": GZIP},
    "fixed paged": {"shape": (3000,), "chunks": (1,), "chunks_written": [(5,), (2999,)]},
    "extensible": {"shape": (9, 99), "max_shape": (12, None), "chunks": (2, 2), "filters": GZIP},
    "extensible paged": {
        "shape": (200_000,),
        "max_shape": (None,),
        "chunks": (1,),
        "chunks_written": [(5,), (150_000,), (199_999,)],
    },
    "v2": {"shape": (50, 60), "max_shape": (None, None), "chunks": (2, 2), "filters": GZIP, "sizes": (4, 4)},
}


@pytest.fixture(scope="module")
def small(write):
    return {name: write(**options) for name, options in SMALL.items()}


def survives(read, written, data):
    """Read damaged bytes: a result or one of two errors that name the file, in bounded time."""
    started = time.perf_counter()
    try:
        columns = read(written, verify=False, data=bytes(data))
    except (FormatError, UnsupportedError) as error:
        message = str(error)
    else:
        message = written.name
        assert (columns.offset >= 0).all()
        assert (columns.length >= 0).all()
        assert (columns.offset + columns.length <= len(data)).all()
        assert (columns.scaled >= 0).all()
        assert (columns.scaled < written.spec.grid).all()
    assert written.name in message
    assert time.perf_counter() - started < 5


def metadata(written, read):
    """Positions of the bytes outside of chunks, where damage is interesting."""
    inside = np.zeros(len(written.data), dtype=bool)
    columns = read(written)
    for offset, length in zip(columns.offset.tolist(), columns.length.tolist(), strict=True):
        inside[offset : offset + length] = True
    return np.flatnonzero(~inside).tolist()


@pytest.mark.parametrize("case", SMALL)
def test_bits_flipped_anywhere_in_the_metadata(case, small, read):
    written = small[case]
    places = metadata(written, read)
    generator = random.Random(case)
    for place in generator.sample(places, min(len(places), 400)):
        data = bytearray(written.data)
        data[place] ^= 1 << generator.randrange(8)
        survives(read, written, data)
        data[place] = generator.choice([0, 1, 0x7F, 0x80, 0xFF])
        survives(read, written, data)


@pytest.mark.parametrize("case", SMALL)
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_several_fields_overwritten(case, small, read, data):
    written = small[case]
    damaged = bytearray(written.data)
    fields = st.sampled_from([b"\0", b"\xff", b"\0" * 8, b"\xff" * 8, b"\x01", b"\xfe" + b"\xff" * 7, b"\x40" * 4])
    places = st.integers(0, min(len(damaged), 4096) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, fields), min_size=1, max_size=6)):
        damaged[place : place + len(value)] = value[: len(damaged) - place]
    survives(read, written, damaged)


@pytest.mark.parametrize("case", SMALL)
def test_truncated_anywhere(case, small, read, gather):
    written = small[case]
    whole = read_superblock(gather(written.data, written.name))
    spec = written.spec
    for size in random.Random(case).sample(range(len(written.data)), 60):
        survives(read, written, written.data[:size])
        # The same behind an intact superblock, which would have refused a truncated file.
        gatherer = gather(written.data[:size], written.name)
        try:
            columns = read_chunks(
                gatherer,
                whole,
                read_layout(gatherer, whole, written.address),
                shape=spec.shape,
                max_shape=spec.max_shape or spec.shape,
                filtered=bool(spec.filters),
            )
        except FormatError:
            continue
        # Only what lies in the file still may be listed: the index knows the file was longer.
        assert (columns.offset + columns.length <= len(written.data)).all()


@pytest.mark.parametrize("case", ["single", "fixed", "fixed paged", "extensible", "extensible paged", "v2"])
def test_checksums_are_verified_on_request(case, small, read):
    written = small[case]
    signatures = [b"OHDR", b"FAHD", b"FADB", b"EAHD", b"EAIB", b"EADB", b"EASB", b"BTHD", b"BTIN", b"BTLF"]
    checked = 0
    for signature in signatures:
        # The root group's object header comes first and is not read.
        place = written.data.rfind(signature) if signature == b"OHDR" else written.data.find(signature)
        if place < 0:
            continue
        end = checksum_at(written.data, place)
        data = bytearray(written.data)
        data[end] ^= 1
        assert len(read(written, verify=False, data=bytes(data))) == len(read(written))
        with pytest.raises(FormatError, match=r"checksum of .* at address"):
            read(written, verify=True, data=bytes(data))
        checked += 1
    assert checked >= (1 if case == "single" else 3)


def checksum_at(data, place):
    """The first byte after ``place`` where the lookup3 hash of the bytes before it is stored."""
    from refindex.scan.hdf5.checksum import lookup3

    for end in range(place + 8, min(place + 40_000, len(data) - 3)):
        if lookup3(data[place:end]) == int.from_bytes(data[end : end + 4], "little"):
            return end
    raise AssertionError("no checksum")


def test_a_wrong_signature_is_named_with_its_address(small, read):
    for case, signature in (("v1", b"TREE"), ("fixed", b"FADB"), ("extensible", b"EADB"), ("v2", b"BTLF")):
        written = small[case]
        # Group nodes of the oldest format are TREE as well; the last one in the file belongs to the chunks.
        place = written.data.rfind(signature)
        data = written.data[:place] + b"XXXX" + written.data[place + 4 :]
        with pytest.raises(FormatError, match=rf"{written.name}: .* {place}.*expected .*found .*XXXX"):
            read(written, verify=False, data=data)


def test_a_tree_that_contains_itself(small, read, gather):
    written = small["v1"]
    gatherer = gather(written.data, written.name)
    root = read_layout(gatherer, read_superblock(gatherer), written.address).address
    key = 8 + 8 * 3
    data = bytearray(written.data)
    data[root + 24 + key : root + 32 + key] = root.to_bytes(8, "little")
    with pytest.raises(FormatError, match="level"):
        read(written, data=bytes(data))
    # The same child twice.
    data[root + 24 + key : root + 32 + key] = data[root + 32 + 2 * key : root + 40 + 2 * key]
    with pytest.raises(FormatError, match="one parent"):
        read(written, data=bytes(data))


def test_a_tree_without_end(small, read, gather):
    """A root whose only child is itself."""
    written = small["v1"]
    gatherer = gather(written.data, written.name)
    root = read_layout(gatherer, read_superblock(gatherer), written.address).address
    data = bytearray(written.data)
    data[root + 6 : root + 8] = b"\1\0"
    data[root + 56 : root + 64] = root.to_bytes(8, "little")
    with pytest.raises(FormatError, match=rf"node at address {root}: expected signature, node type and level"):
        read(written, data=bytes(data))


def v1_leaf(write, **options):
    """A file whose tree is one leaf, and the leaf's address."""
    written = write(shape=(20,), chunks=(2,), libver="earliest", **options)
    return written, written.data.rindex(b"TREE")


def test_a_node_with_too_many_entries(write, read):
    written, leaf = v1_leaf(write)
    data = bytearray(written.data)
    data[leaf + 6 : leaf + 8] = b"\x41\0"
    with pytest.raises(FormatError, match=rf"address {leaf}: expected at most 64 entries, found 65"):
        read(written, data=bytes(data))


@pytest.mark.parametrize(("field", "found"), [(8, r"\(3, 0\)"), (16, r"\(2, 3\)")])
def test_a_key_between_chunks(field, found, write, read):
    written, leaf = v1_leaf(write)
    second = leaf + 24 + 32
    data = bytearray(written.data)
    data[second + field] = 3
    with pytest.raises(FormatError, match=f"multiples of .* found {found}"):
        read(written, data=bytes(data))


def test_a_stored_size_without_filters(write, read):
    written, leaf = v1_leaf(write)
    data = bytearray(written.data)
    data[leaf + 24] = 15
    with pytest.raises(FormatError, match="expected 16 stored bytes without filters, found 15"):
        read(written, data=bytes(data))


def test_undefined_addresses_are_no_chunks(write, read):
    written, leaf = v1_leaf(write)
    tree = write(shape=(20, 20), max_shape=(None, None), chunks=(2, 2))
    for file, place in ((written, leaf + 24 + 32 + 24), (tree, tree.data.index(b"BTLF") + 6)):
        data = bytearray(file.data)
        data[place : place + 8] = b"\xff" * 8
        assert len(read(file, verify=False, data=bytes(data))) == len(file.labels()) - 1


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({"shape": (50, 40), "max_shape": (60, 50), "chunks": (1, 1), "filters": GZIP}, (31, 17)),
        ({"shape": (50, 40), "max_shape": (60, None), "chunks": (1, 1)}, (31, 17)),
        ({"shape": (900, 4), "max_shape": (None, 5), "chunks": (1, 1), "filters": GZIP}, (17, 3)),
        ({"shape": (3, 99_000), "max_shape": (3, None), "chunks": (1, 1), "libver": "v110"}, (2, 90_000)),
    ],
)
def test_slots_beyond_the_extent_are_dropped(options, shape, write, gather):
    """libhdf5 clears them when a dataset shrinks, so the extent is made smaller behind its back."""
    if math.prod(options["shape"]) > 10_000:
        options = options | {"chunks_written": [(0, 0), (1, 5), (2, 6), (1, 89_999), (1, 90_000), (2, 98_999)]}
    written = write(**options)
    gatherer = gather(written.data, written.name)
    superblock = read_superblock(gatherer)
    columns = read_chunks(
        gatherer,
        superblock,
        read_layout(gatherer, superblock, written.address),
        shape=shape,
        max_shape=options["max_shape"],
        filtered="filters" in options,
    )
    inside = {
        scaled: label
        for scaled, label in written.labels().items()
        if all(at < size for at, size in zip(scaled, shape, strict=True))
    }
    assert 0 < len(inside) < len(written.labels())
    assert written.stored(columns) == inside


def header_field(data, signature, start, width, value):
    place = data.index(signature) + start
    return data[:place] + value.to_bytes(width, "little") + data[place + width :]


def test_fields_of_a_version_2_tree(write, read):
    written = write(shape=(40, 40), max_shape=(None, None), chunks=(2, 2))
    for start, width, value, message in (
        (16 + 8 + 2, 8, 401, "expected 401 records, found 400"),
        (12, 2, 60000, "depth 60000"),
        (6, 4, 12, "12 bytes, depth"),
        (16 + 8, 2, 2000, "at most 61 records, found 2000"),
        (10, 2, 25, "record size 24, found 25"),
    ):
        data = header_field(written.data, b"BTHD", start, width, value)
        with pytest.raises(FormatError, match=message):
            read(written, verify=False, data=data)
    # The first two children of the root become the same leaf.
    root = written.data.index(b"BTIN")
    used = int.from_bytes(written.data[written.data.index(b"BTHD") + 24 :][:2], "little")
    pointers = root + 6 + used * 24
    data = bytearray(written.data)
    data[pointers : pointers + 9] = data[pointers + 9 : pointers + 18]
    with pytest.raises(FormatError, match="one parent"):
        read(written, verify=False, data=bytes(data))


def test_a_fixed_array_larger_than_the_file(small, gather):
    written = small["fixed"]
    gatherer = gather(header_field(written.data, b"FAHD", 8, 8, 2**62), written.name)
    superblock = read_superblock(gatherer)
    layout = read_layout(gatherer, superblock, written.address)
    with pytest.raises(FormatError, match="elements within the file"):
        read_chunks(gatherer, superblock, layout, shape=(9, 9), max_shape=(2**32, 2**32), filtered=True)


def test_a_chunk_listed_twice(write, read):
    written = write(shape=(50, 60), max_shape=(None, None), chunks=(25, 30))
    place = written.data.index(b"BTLF") + 6
    data = bytearray(written.data)
    data[place : place + 24] = data[place + 24 : place + 48]
    with pytest.raises(FormatError, match=r"each chunk once, found \[0, 1\] twice"):
        read(written, verify=False, data=bytes(data))


def test_a_chunk_outside_the_grid(write, read):
    written = write(shape=(50, 60), max_shape=(None, None), chunks=(25, 30))
    place = written.data.index(b"BTLF") + 6 + 8
    data = bytearray(written.data)
    data[place : place + 8] = (2**64 - 1).to_bytes(8, "little")
    with pytest.raises(FormatError, match=r"coordinates in the grid \(2, 2\)"):
        read(written, verify=False, data=bytes(data))


def test_a_chunk_outside_the_file(write, read):
    written = write(shape=(50, 60), max_shape=(None, None), chunks=(25, 30))
    place = written.data.index(b"BTLF") + 6
    for address in (len(written.data) - 5, len(written.data) + 5, 2**64 - 2):
        data = bytearray(written.data)
        data[place : place + 8] = address.to_bytes(8, "little")
        with pytest.raises(FormatError, match=f"{len(written.data)} bytes"):
            read(written, verify=False, data=bytes(data))


def test_an_implicit_index_needs_the_file_to_hold_it(small, read, gather):
    written = small["implicit"]
    gatherer = gather(written.data, written.name)
    superblock = read_superblock(gatherer)
    layout = read_layout(gatherer, superblock, written.address)
    with pytest.raises(FormatError, match="chunks of 32 bytes within the file"):
        read_chunks(
            gatherer,
            superblock,
            layout,
            shape=(2**40, 2**40),
            max_shape=(2**40, 2**40),
            filtered=False,
        )


def test_arguments_that_contradict_the_layout(small, gather):
    written = small["fixed"]
    gatherer = gather(written.data, written.name)
    superblock = read_superblock(gatherer)
    layout = read_layout(gatherer, superblock, written.address)
    right = {"shape": (9, 9), "max_shape": (12, 9), "filtered": True, "chunk_nbytes": 32}
    assert len(read_chunks(gatherer, superblock, layout, **right)) == 25
    for wrong, message in (
        ({"shape": (9,)}, "as many dimensions"),
        ({"max_shape": (8, 9)}, "exceeds the maximum shape"),
        ({"max_shape": (14, 9)}, "number of chunks"),
        ({"max_shape": (None, 9)}, "unlimited"),
        ({"max_shape": (2**64 - 1, 9)}, "unlimited"),
        ({"filtered": False}, "client ID"),
        ({"chunk_nbytes": 31}, "chunks of 31 bytes expected"),
    ):
        with pytest.raises(FormatError, match=message):
            read_chunks(gatherer, superblock, layout, **(right | wrong))
    with pytest.raises(UnsupportedError, match=r"2\*\*63"):
        read_chunks(gatherer, superblock, layout, **(right | {"shape": (2**63, 9), "max_shape": (None, 9)}))


def test_contiguous_data_has_no_chunks(gather, tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["d"] = np.arange(9)
        address = h5py.h5o.get_info(file["d"].id).addr
    gatherer = gather((tmp_path / "a.h5").read_bytes(), "a.h5")
    superblock = read_superblock(gatherer)
    layout = read_layout(gatherer, superblock, address)
    with pytest.raises(FormatError, match="chunked dataset, found contiguous"):
        read_chunks(gatherer, superblock, layout, shape=(9,), max_shape=(9,), filtered=False)


# The protocol


def test_ranges_are_checked_before_memory_is_taken(gather):
    gatherer = gather(bytes(100), "a.h5")

    def walk(*groups):
        return (yield groups)

    for offset, length in ((90, 11), (-1, 4), (101, 0), (2**70, 1), (0, 2**70)):
        with pytest.raises(FormatError, match=r"a\.h5"):
            drive(walk(Ranges.one(offset, length)), gatherer)
    with pytest.raises(FormatError, match="more than 4 times"):
        drive(walk(Ranges(offsets=np.zeros(2**20, dtype=np.int64), length=100)), gatherer)


@given(
    groups=st.lists(st.tuples(st.integers(0, 50), st.lists(st.integers(0, 950), max_size=9)), max_size=4),
    gap=st.integers(0, 60),
    limit=st.integers(1, 300),
)
def test_gathered_bytes(groups, gap, limit, gather):
    data = random.Random(0).randbytes(1000)
    asked = [Ranges(offsets=np.array(offsets, dtype=np.int64), length=length) for length, offsets in groups]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("refindex.access.gather.COALESCE_GAP", gap)
        patch.setattr("refindex.access.gather.COALESCE_LIMIT", limit)
        blocks = gather(data, "a.h5").gather(asked)
    assert len(blocks) == len(groups)
    for block, (length, offsets) in zip(blocks, groups, strict=True):
        assert block.shape == (len(offsets), length)
        assert block.flags.c_contiguous
        assert [row.tobytes() for row in block] == [data[at : at + length] for at in offsets]


@pytest.mark.parametrize("answer", [[], [b"abc"], [b"abcde"], [b"abcd", b""]])
def test_a_short_answer_is_an_error(answer):
    gatherer = RangeGatherer(lambda offsets, lengths: answer, name="a.h5", size=100)
    with pytest.raises(SourceError, match=r"a\.h5: asked for 1 ranges of 4 bytes, got .* offset 7"):
        gatherer.gather([Ranges.one(7, 4)])


def test_a_large_level_is_read_in_batches(write, read, monkeypatch):
    written = write(**CASES["v2 deep"][1])
    expected = read(written)
    monkeypatch.setattr("refindex.access.gather.BATCH_BYTES", 5000)
    for case in ("v2 deep", "v1 two levels", "fixed paged", "extensible secondary blocks"):
        written = write(**CASES[case][1])
        assert written.stored(read(written)) == written.labels()
    assert len(expected) == math.prod((90, 91))
