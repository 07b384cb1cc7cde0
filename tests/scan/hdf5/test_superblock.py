"""Superblocks of all versions, as libhdf5 writes them and damaged."""

from __future__ import annotations

import random
import shutil

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refindex.errors import FormatError, UnsupportedError
from refindex.scan.hdf5.superblock import SIGNATURE, read_superblock

SMALL = {"shape": (4,), "chunks": (2,)}


@pytest.mark.parametrize("user_block", [0, 512, 1024, 4096])
@pytest.mark.parametrize(
    "case",
    [(0, "earliest", None), (1, "earliest", 7), (2, "v108", None), (2, "v108", 7), (3, "latest", None)],
)
def test_versions(case, user_block, write, gather):
    version, libver, istore_k = case
    written = write(**SMALL, libver=libver, istore_k=istore_k, user_block=user_block, sizes=(4, 8))
    superblock = read_superblock(gather(written.data, "a.h5"), verify=True)
    assert superblock.version == version
    assert superblock.base_address == user_block
    assert (superblock.size_of_offsets, superblock.size_of_lengths) == (4, 8)
    assert superblock.indexed_storage_k == (istore_k or 32)
    assert superblock.end_of_file == len(written.data)
    assert superblock.consistency_flags == 0
    assert not superblock.open_for_writing
    root = written.data[superblock.root_address :]
    assert root[:5] == b"OHDR\x02" if version >= 2 else root[:2] == b"\x01\x00"


def test_the_signature_counts_not_the_written_base_address(write, gather):
    """A user block put in front of a file, or cut off, moves everything; libhdf5 copes with it too."""
    for libver in ("earliest", "latest"):
        plain, moved = write(**SMALL, libver=libver), write(**SMALL, libver=libver, user_block=512)
        for data, base in ((bytes(2048) + plain.data, 2048), (moved.data[512:], 0)):
            superblock = read_superblock(gather(data, "a.h5"))
            assert superblock.base_address == base
            assert superblock.end_of_file == len(data)
            assert superblock.root_address == read_superblock(gather(plain.data, "a.h5")).root_address + base


@pytest.mark.parametrize("data", [b"", b"\x89HDF", b"CDF\x01" * 200, bytes(5000), SIGNATURE[:-1] * 100])
def test_no_signature(data, gather):
    with pytest.raises(FormatError, match=r"a\.h5: no HDF5 signature .* doubling, in \d+ bytes"):
        read_superblock(gather(data, "a.h5"))


def test_a_signature_at_another_place_does_not_count(write, gather):
    for before in (513, 1536):
        with pytest.raises(FormatError, match="no HDF5 signature"):
            read_superblock(gather(bytes(before) + write(**SMALL).data, "a.h5"))


def test_truncated_file(write, gather):
    for libver in ("earliest", "latest"):
        data = write(**SMALL, libver=libver).data
        with pytest.raises(FormatError, match=rf"at least {len(data)} bytes \(truncated file\)"):
            read_superblock(gather(data[:-1], "a.h5"))
        for size in (8, 9, 20, 40):
            with pytest.raises(FormatError):
                read_superblock(gather(data[:size], "a.h5"))


def test_unknown_versions_and_sizes(write, gather):
    data = bytearray(write(**SMALL).data)
    for place, value, error, message in (
        (8, 4, UnsupportedError, "superblock version 4"),
        (9, 16, UnsupportedError, "of 16 bytes"),
        (9, 3, FormatError, "expected a size of offsets and of lengths of 2, 4 or 8, found 3"),
        (10, 0, FormatError, "found 0"),
    ):
        damaged = bytearray(data)
        damaged[place] = value
        with pytest.raises(error, match=message):
            read_superblock(gather(bytes(damaged), "a.h5"))


def test_checksum(write, gather):
    for libver in ("v108", "latest"):
        data = bytearray(write(**SMALL, libver=libver).data)
        data[44] ^= 1
        assert read_superblock(gather(bytes(data), "a.h5")).version >= 2
        with pytest.raises(FormatError, match="checksum of superblock at address 0"):
            read_superblock(gather(bytes(data), "a.h5"), verify=True)


def test_a_file_being_written_is_refused(gather, tmp_path):
    path, copy = tmp_path / "a.h5", tmp_path / "copy.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file["d"] = np.arange(9)
        file.flush()
        shutil.copy(path, copy)
    assert read_superblock(gather(path.read_bytes(), "a.h5")).version == 3
    with pytest.raises(UnsupportedError, match="open for writing"):
        read_superblock(gather(copy.read_bytes(), "a.h5"))


@pytest.mark.parametrize("libver", ["earliest", "v108"])
def test_one_file_of_a_family_is_refused(libver, gather, tmp_path):
    with h5py.File(tmp_path / "a%d.h5", "w", driver="family", memb_size=65536, libver=(libver, "v108")) as file:
        file["d"] = np.arange(90000)
    with pytest.raises(UnsupportedError, match="family"):
        read_superblock(gather((tmp_path / "a0.h5").read_bytes(), "a0.h5"))


@pytest.mark.parametrize("libver", ["earliest", "v108", "latest"])
@given(places=st.lists(st.tuples(st.integers(0, 120), st.integers(0, 255)), min_size=1, max_size=5))
def test_any_bytes(libver, places, write, gather):
    data = bytearray(write(**SMALL, libver=libver, istore_k=4).data)
    for place, value in places:
        data[place] = value
    for verify in (False, True):
        try:
            read_superblock(gather(bytes(data), "a.h5"), verify=verify)
        except (FormatError, UnsupportedError) as error:
            message = str(error)
        else:
            message = "a.h5"
        assert "a.h5" in message


def test_random_bytes_behind_a_signature(gather):
    generator = random.Random(1)
    for version in range(5):
        for _ in range(200):
            data = SIGNATURE + bytes((version, 8, 8)) + generator.randbytes(generator.randrange(200))
            try:
                read_superblock(gather(data, "a.h5"))
            except (FormatError, UnsupportedError) as error:
                message = str(error)
            else:
                message = "a.h5"
            assert "a.h5" in message
