"""lookup3 against Jenkins' own test vector, and the two implementations against each other."""

from __future__ import annotations

import random

import numpy as np
import pytest

from refindex.errors import FormatError
from refindex.scan.hdf5.checksum import lookup3, verify_checksums
from refindex.scan.hdf5.fields import AddressSpace

SPACE = AddressSpace(name="a.h5", file_size=10**6, base=0, offset_size=8, length_size=8)


def test_published_values():
    assert lookup3(b"") == 0xDEADBEEF
    assert lookup3(b"Four score and seven years ago") == 0x17770551


@pytest.mark.parametrize("count", [0, 1, 15, 16, 40])
@pytest.mark.parametrize("length", [*range(14), 23, 24, 25, 100])
def test_blocks_side_by_side(count, length):
    generator = random.Random(length)
    contents = [generator.randbytes(length) for _ in range(count)]
    blocks = np.array(
        [list(content + lookup3(content).to_bytes(4, "little")) for content in contents], dtype=np.uint8
    ).reshape(count, length + 4)
    addresses = np.arange(count, dtype=np.int64) * 1000
    verify_checksums(blocks, addresses, space=SPACE, what="block")
    if count and length:
        blocks[-1, 0] ^= 1
        with pytest.raises(FormatError, match=rf"a\.h5: checksum of block at address {addresses[-1]}: expected 0x"):
            verify_checksums(blocks, addresses, space=SPACE, what="block")
