"""Files of HDF5's family driver: one file, cut into members of equal size with numbered names.

H5Pset_fapl_family: the name is a printf pattern of the number, the address space is the members' one after the other.
An address is in member ``address // size``; format specification II.B, "Driver Information", has the size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from refindex.access import urls
from refindex.access.files import open_reader, reading
from refindex.access.gather import Gatherer, RangeGatherer
from refindex.decode.pipeline import decode, encode, fit
from refindex.errors import FormatError, SourceError, UnsupportedError
from refindex.model.chunks import DECLARED, INLINE, ChunkTable
from refindex.model.dtype import fill_value_from_json
from refindex.model.manifest import Array, Source
from refindex.scan.hdf5.superblock import read_superblock

SEAM_NBYTES = 16 << 20
"""Chunks that lie in two members are kept in the manifest up to this many bytes an array."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The members in order, each of ``member_size`` bytes but the last."""

    members: tuple[Source, ...]
    member_size: int

    @property
    def size(self) -> int:
        return self.member_size * (len(self.members) - 1) + self.members[-1].size

    def gatherer(self) -> Gatherer:
        """What reads the chunk tables of the whole."""

        def read_ranges(offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
            return [self.read(offset, length) for offset, length in zip(offsets, lengths, strict=True)]

        return RangeGatherer(read_ranges, name=urls.display(self.members[0].url), size=self.size)

    def read(self, offset: int, length: int) -> bytes:
        """A range of the whole."""
        parts = []
        while length:
            number, start = divmod(offset, self.member_size)
            if number >= len(self.members):
                raise FormatError(f"data at byte {offset} of a family of {self.size} bytes")
            count = min(length, self.member_size - start)
            url = self.members[number].url
            with reading(url, f"reading {count} bytes at {start}", referenced=True):
                parts.append(open_reader(url).read(start, count))
            if len(parts[-1]) != count:
                raise SourceError(f"{urls.display(url)}: expected {count} bytes at {start}, got {len(parts[-1])}")
            offset, length = offset + count, length - count
        return b"".join(parts)


def pattern_of(path: Path) -> str | None:
    """The printf pattern of which a file is number 0, with members that follow it; None if there is none."""
    for digits in reversed(list(re.finditer(r"\d+", path.name))):
        if int(digits[0]):
            continue
        width = len(digits[0])
        number = "%d" if width == 1 else f"%0{width}d"
        before, after = (path.name[: digits.start()], path.name[digits.end() :])
        if (path.parent / (before + number % 1 + after)).is_file():
            folder = str(path.parent).replace("%", "%%")
            return f"{folder}/{before.replace('%', '%%')}{number}{after.replace('%', '%%')}"
    return None


def read_family(pattern: str) -> Family:
    """The members of the family with a pattern.

    Raises
    ------
    FormatError
        If sizes or contents say that the files are not members of one.
    """
    members: list[Source] = []
    while Path(pattern % len(members)).is_file():
        url = urls.absolute(pattern % len(members))
        with reading(url, "looking at it"):
            members.append(open_reader(url).identity())
    family = Family(members=tuple(members), member_size=members[0].size)
    # Old families do not say that they are one. What follows a truncated file of its own must not be taken for it.
    end = read_superblock(family.gatherer(), joined=True).end_of_file
    alike = all(member.size == family.member_size for member in members[:-1])
    if not alike or members[-1].size > family.member_size or family.size != end:
        raise FormatError(
            f"the family of files {pattern} has {len(members)} members of {[m.size for m in members[:8]]} bytes; "
            f"expected equal sizes, the last one excepted, and {end} in all"
        )
    for member in members[1:]:
        if family.member_size >= 8 and open_reader(member.url).read(0, 8) == b"\x89HDF\r\n\x1a\n":
            raise FormatError(f"{urls.display(member.url)} is an HDF5 file of its own, not a member of {pattern}")
    return family


def into_members(array: Array, family: Family, numbers: list[int]) -> Array:
    """An array whose references into the whole (source 0) are references into the members.

    Raises
    ------
    UnsupportedError
        If too much of it lies in two members.
    """
    table = array.chunks
    whole = table.source == 0
    member, start = np.divmod(table.offset, family.member_size)
    inside = start + table.length <= family.member_size
    if np.any(whole & (member >= len(family.members))):
        raise FormatError("data lies behind the last member of the family")
    seams = np.flatnonzero(whole & ~inside)
    if int(table.length[seams].sum()) > SEAM_NBYTES:
        raise UnsupportedError(
            f"{int(table.length[seams].sum())} bytes of it are in chunks that lie in two members of a family of files: "
            "join them with h5repart -family_to_sec2"
        )
    source = np.where(whole, np.array(numbers)[np.where(whole, member, 0)], table.source)
    offset = np.where(whole, start, table.offset)
    length, encoding, data = table.length.copy(), table.encoding.copy(), bytearray(table.data)
    for row in seams.tolist():
        stored = family.read(int(table.offset[row]), int(table.length[row]))
        chunk = _declared(array, int(table.chunk[row]), int(table.encoding[row]), stored)
        source[row], offset[row], length[row], encoding[row] = INLINE, len(data), len(chunk), DECLARED
        data += chunk
    return array.moved(
        array.path,
        chunks=ChunkTable.from_columns(
            chunk=table.chunk, source=source, offset=offset, length=length, encoding=encoding, data=bytes(data)
        ),
    )


def _declared(array: Array, chunk: int, encoding: int, stored: bytes) -> bytes:
    """The bytes of a chunk as its array declares them."""
    if array.is_native(chunk, encoding):
        return stored
    if array.dtype is None:
        raise FormatError("an array of variable-length values has a reference into a file")
    fill = fill_value_from_json(array.dtype, array.json["fill_value"])
    values = decode(stored, array.encodings[encoding], array.dtype)
    return encode(fit(values, array.grid.chunk_shape(chunk), fill), array.codecs)
