"""The header of a NetCDF classic file: dimensions, attributes, variables.

Sources: "The NetCDF Classic Format Specification" (NetCDF Users Guide, appendix B: the grammar, "Notes on sizes and
offsets", "Computing file offsets") for CDF-1 and CDF-2, and PnetCDF's "CDF-5 file format specification". Cited below by
the names of the grammar's productions. All numbers are big-endian; names, lists of values and the header's other parts
are padded to four bytes. What the padding holds is not looked at: libraries differ in it, and none of them minds.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.errors import FormatError, SourceError, UnsupportedError

type Read = Callable[[int, int], bytes]
"""``read(offset, length)``: bytes of the file."""

VERSIONS = {1: "CDF-1", 2: "CDF-2", 5: "CDF-5"}

TYPES = {
    code: np.dtype(name)
    for code, name in enumerate(("i1", "S1", ">i2", ">i4", ">f4", ">f8", "u1", ">u2", ">u4", ">i8", ">u8"), start=1)
}
"""``nc_type``. Those above 6 are CDF-5's, but libraries write and read them in CDF-1 and CDF-2 as well."""

_DIMENSION, _VARIABLE, _ATTRIBUTE = 10, 11, 12
_KINDS = {_DIMENSION: "dimensions", _VARIABLE: "variables", _ATTRIBUTE: "attributes"}

_FIRST_READ = 1 << 16
_MAX_HEADER = 1 << 28
"""A header beyond this many bytes is refused: the data of a damaged file, taken for one, is as long as the file."""

_MAX_NAMED = 1 << 20
"""Dimensions, variables and attributes that a header may have in all. 12 bytes in a file are hundreds in memory."""

_MAX_DIMS = 1024
"""Dimensions of a variable, as netCDF-C limits them (``NC_MAX_VAR_DIMS``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dimension:
    """A dimension; ``length`` 0 makes it the record dimension."""

    name: str
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribute:
    """An attribute: its values as they are in the file, without padding."""

    name: str
    dtype: np.dtype[Any]
    values: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable. ``dimensions`` are indices, ``begin`` is the offset of its first value, or of its first record.

    ``position`` is where in the header it is described.
    The header's ``vsize`` is left out: it is redundant, and wrong for variables beyond 4 GiB ("Note on vsize").
    """

    name: str
    dimensions: tuple[int, ...]
    attributes: tuple[Attribute, ...]
    dtype: np.dtype[Any]
    begin: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """All that a header says. ``records`` is None where it leaves their number to the size of the file (``STREAMING``).

    ``nbytes`` is the length of the header; ``head`` are the first bytes of the file, as many as were read; ``notes``
    say what was odd.
    """

    version: int
    records: int | None
    dimensions: tuple[Dimension, ...]
    attributes: tuple[Attribute, ...]
    variables: tuple[Variable, ...]
    nbytes: int
    head: bytes
    notes: tuple[str, ...] = ()


def read_header(read: Read, *, name: str, size: int) -> Header:
    """Read the header of a file of ``size`` bytes.

    Raises
    ------
    FormatError
        If the bytes are not the header of a NetCDF classic file, or the file ends before it does.
    UnsupportedError
        If it is larger than any that is written on purpose.
    SourceError
        If fewer bytes come back than were asked for.
    """
    return _Parser(read, name, size).header()


class _Parser:
    """Goes through the grammar from front to back; asks for more of the file when what it has is used up."""

    def __init__(self, read: Read, name: str, size: int) -> None:
        self._read, self._name, self._size = read, name, size
        self._buffer = b""
        self._position = 0
        self._named = 0
        self._notes: list[str] = []
        self._word = struct.Struct(">I")
        self._begin = struct.Struct(">I")

    def header(self) -> Header:
        magic = self._take(4, "magic number")
        version = magic[3]
        if magic[:3] != b"CDF" or version not in VERSIONS:
            raise FormatError(f"{self._name}: magic number at offset 0: expected b'CDF' and 1, 2 or 5, found {magic!r}")
        # NON_NEG is INT64 in CDF-5; OFFSET is INT in CDF-1 only.
        self._word = struct.Struct(">Q" if version == 5 else ">I")
        self._begin = struct.Struct(">I" if version == 1 else ">Q")
        records = self._number(self._word, "numrecs")
        streaming = records == 256**self._word.size - 1
        dimensions = tuple(self._dimension() for _ in range(self._list(_DIMENSION)))
        attributes = self._attributes()
        variables = tuple(self._variable() for _ in range(self._list(_VARIABLE)))
        return Header(
            version=version,
            records=None if streaming else records,
            dimensions=dimensions,
            attributes=attributes,
            variables=variables,
            nbytes=self._position,
            head=self._buffer,
            notes=tuple(self._notes),
        )

    def _reserve(self, count: int, what: str) -> int:
        """Make sure that ``count`` more bytes are in the buffer; their position in it."""
        start = self._position
        stop = start + count
        if stop > len(self._buffer):
            if stop > self._size:
                raise FormatError(
                    f"{self._name}: {what} at offset {start}: expected {count} bytes, found {self._size - start}: "
                    "the file ends within its header"
                )
            if stop > _MAX_HEADER:
                raise UnsupportedError(
                    f"{self._name}: {what} at offset {start}: expected a header of up to {_MAX_HEADER} bytes, found "
                    f"one of {stop} or more: damaged, or larger than any that is served"
                )
            have = len(self._buffer)
            more = min(self._size, max(stop, 4 * have, _FIRST_READ)) - have
            data = self._read(have, more)
            if len(data) != more:
                raise SourceError(
                    f"{self._name}: expected {more} bytes at offset {have}, found {len(data)}: the file has become "
                    "shorter; scan it when it is complete"
                )
            self._buffer += data
        self._position = stop
        return start

    def _take(self, count: int, what: str) -> bytes:
        start = self._reserve(count, what)
        return self._buffer[start : start + count]

    def _number(self, form: struct.Struct, what: str) -> int:
        start = self._reserve(form.size, what)
        value: int = form.unpack_from(self._buffer, start)[0]
        return value

    def _length(self, unit: int, what: str) -> int:
        """A ``nelems``, of things of ``unit`` bytes or more, which the rest of the file must have room for."""
        count = self._number(self._word, what)
        rest = self._size - self._position
        if count > rest // unit:
            raise FormatError(
                f"{self._name}: {what} at offset {self._position - self._word.size}: expected at most {rest // unit} "
                f"(the rest of the file), found {count}"
            )
        return count

    def _list(self, tag: int) -> int:
        """The head of a ``dim_list``, ``att_list`` or ``var_list``: how many things it has."""
        start, word = self._position, self._word.size
        found = self._number(struct.Struct(">I"), f"tag of the {_KINDS[tag]}")
        least = {_DIMENSION: 2 * word, _ATTRIBUTE: 2 * word + 4, _VARIABLE: 4 * word + 8 + self._begin.size}[tag]
        count = self._length(least, f"number of {_KINDS[tag]}")
        # ABSENT is two zeros; that an empty list may have any tag is how netCDF-C reads it.
        if count and found != tag:
            raise FormatError(
                f"{self._name}: tag of the {_KINDS[tag]} at offset {start}: expected {tag}, found {found}"
            )
        self._named += count
        if self._named > _MAX_NAMED:
            raise UnsupportedError(
                f"{self._name}: number of {_KINDS[tag]} at offset {start + 4}: expected up to {_MAX_NAMED} dimensions, "
                f"variables and attributes in all, found {self._named}: damaged, or more than is served"
            )
        return count

    def _padded(self, count: int, what: str) -> bytes:
        start = self._reserve(count + -count % 4, what)
        return self._buffer[start : start + count]

    def _string(self, what: str) -> str:
        """A ``name``. UTF-8 says the specification; libraries end it at the first NUL."""
        start = self._position
        raw = self._padded(self._length(1, f"length of {what}"), what).partition(b"\0")[0]
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._notes.append(f"{what} {raw!r} at offset {start} is not UTF-8: read as Latin-1")
            return raw.decode("latin-1")

    def _dimension(self) -> Dimension:
        name = self._string("the name of a dimension")
        start = self._position
        length = self._number(self._word, f"length of dimension {name!r}")
        if length >= 2**63:
            raise FormatError(
                f"{self._name}: length of dimension {name!r} at offset {start}: expected below 2**63, found {length}"
            )
        return Dimension(name=name, length=length)

    def _type(self, what: str) -> np.dtype[Any]:
        start = self._position
        code = self._number(struct.Struct(">I"), f"type of {what}")
        if code not in TYPES:
            raise FormatError(f"{self._name}: type of {what} at offset {start}: expected 1 to 11, found {code}")
        return TYPES[code]

    def _attributes(self) -> tuple[Attribute, ...]:
        return tuple(self._attribute() for _ in range(self._list(_ATTRIBUTE)))

    def _attribute(self) -> Attribute:
        name = self._string("the name of an attribute")
        what = f"attribute {name!r}"
        dtype = self._type(what)
        count = self._length(dtype.itemsize, f"length of {what}")
        return Attribute(name=name, dtype=dtype, values=self._padded(count * dtype.itemsize, what))

    def _variable(self) -> Variable:
        position = self._position
        name = self._string("the name of a variable")
        what = f"variable {name!r}"
        start = self._position
        ndim = self._length(self._word.size, f"number of dimensions of {what}")
        if ndim > _MAX_DIMS:
            raise UnsupportedError(
                f"{self._name}: number of dimensions of {what} at offset {start}: expected up to {_MAX_DIMS}, "
                f"found {ndim}"
            )
        raw = self._take(ndim * self._word.size, f"dimensions of {what}")
        dimensions = struct.unpack(f">{ndim}{self._word.format[-1]}", raw)
        attributes = self._attributes()
        dtype = self._type(what)
        self._number(self._word, f"vsize of {what}")
        start = self._position
        begin = self._number(self._begin, f"begin of {what}")
        if begin >= 256**self._begin.size // 2:  # OFFSET is signed and not negative
            raise FormatError(
                f"{self._name}: begin of {what} at offset {start}: expected below {256**self._begin.size // 2}, "
                f"found {begin}"
            )
        return Variable(
            name=name, dimensions=dimensions, attributes=attributes, dtype=dtype, begin=begin, position=position
        )
