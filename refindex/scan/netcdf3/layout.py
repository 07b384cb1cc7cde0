"""Where the values of the variables of a NetCDF classic file are.

NetCDF Users Guide, appendix B, "Computing file offsets", "Note on padding", "Note on vsize". Variables without the
record dimension come first, each in one piece. Then come the records: each holds one slice of every variable that
has the record dimension, padded to four bytes; alone, such a variable is not padded.
"""

from __future__ import annotations

from dataclasses import dataclass

from refindex.errors import FormatError
from refindex.scan.netcdf3.header import VERSIONS, Header, Variable

_MAX_NBYTES = {1: 2**31 - 4, 2: 2**32 - 4, 5: 2**63 - 4}
"""Bytes that a variable, or its part of a record, may have in each version. CDF-1 and 2 allow more to the last one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """The values of one variable: ``count`` pieces of ``nbytes`` bytes, the first at ``offset``, ``stride`` apart.

    Pieces are records; a variable without the record dimension is one piece.
    """

    variable: Variable
    shape: tuple[int, ...]
    offset: int
    nbytes: int
    stride: int
    count: int

    @property
    def is_contiguous(self) -> bool:
        """Whether the pieces lie next to each other."""
        return self.count <= 1 or self.stride == self.nbytes

    @property
    def end(self) -> int:
        """Where the last value ends (0: there is none)."""
        return self.offset + (self.count - 1) * self.stride + self.nbytes if self.count else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """All variables of a file, in its order, and the number of records."""

    records: int
    variables: tuple[Placed, ...]


def lay_out(header: Header, *, name: str, size: int) -> Layout:
    """Compute where the variables are, from their shapes and ``begin``.

    Raises
    ------
    FormatError
        If the header contradicts itself: netCDF-C refuses the same files.
    """
    nbytes = [_piece(header, variable, name) for variable in header.variables]
    recorded = [is_record(header, variable) for variable in header.variables]
    _check_sizes(header, nbytes, recorded, name)
    _check_order(header, nbytes, recorded, name)
    pieces = [n for n, record in zip(nbytes, recorded, strict=True) if record]
    stride = pieces[0] if len(pieces) == 1 else sum(_padded(n) for n in pieces)
    records = header.records
    if records is None:
        # A last record may lack its padding; one that lacks values is not complete.
        fits = [
            max(0, (size - variable.begin - n) // stride + 1)
            for variable, n, record in zip(header.variables, nbytes, recorded, strict=True)
            if record
        ]
        records = min(fits, default=0)
    placed = []
    for variable, n, record in zip(header.variables, nbytes, recorded, strict=True):
        lengths = tuple(header.dimensions[i].length for i in variable.dimensions)
        placed.append(
            Placed(
                variable=variable,
                shape=(records, *lengths[1:]) if record else lengths,
                offset=variable.begin,
                nbytes=n,
                stride=stride if record else n,
                count=records if record else 1,
            )
        )
    return Layout(records=records, variables=tuple(placed))


def is_record(header: Header, variable: Variable) -> bool:
    """Whether a variable has the record dimension. Should two have length 0, both are: so netCDF-C reads them."""
    return bool(variable.dimensions) and header.dimensions[variable.dimensions[0]].length == 0


def _what(variable: Variable) -> str:
    return f"variable {variable.name!r} (described at offset {variable.position})"


def _padded(nbytes: int) -> int:
    return nbytes + -nbytes % 4


def _piece(header: Header, variable: Variable, name: str) -> int:
    """Bytes of a variable, or of its part of one record."""
    nbytes = variable.dtype.itemsize
    for axis, index in enumerate(variable.dimensions):
        if index >= len(header.dimensions):
            raise FormatError(
                f"{name}: dimension {axis} of {_what(variable)}: expected an index below "
                f"{len(header.dimensions)}, found {index}"
            )
        length = header.dimensions[index].length
        if length == 0 and axis:
            raise FormatError(
                f"{name}: dimension {axis} of {_what(variable)}: expected a length above 0, found the "
                "record dimension, which can only be the first"
            )
        nbytes *= length or 1
        if nbytes >= 2**63:
            raise FormatError(f"{name}: {_what(variable)}: expected up to 2**63 bytes, found more")
    return nbytes


def _check_sizes(header: Header, nbytes: list[int], recorded: list[bool], name: str) -> None:
    """Only the last variable of its section may be larger than its ``vsize`` can say ("Note on vsize")."""
    limit = _MAX_NBYTES[header.version]
    for records in (False, True):
        section = [i for i, record in enumerate(recorded) if record == records]
        large = [i for i in section if nbytes[i] > limit]
        last_of_file = section[-1:] if records or not any(recorded) else []
        if header.version == 5 or large != last_of_file[: len(large)]:
            for i in large:
                raise FormatError(
                    f"{name}: {_what(header.variables[i])}: expected up to {limit} bytes, the most that "
                    f"{VERSIONS[header.version]} allows to any but the last, found {nbytes[i]}"
                )


def _check_order(header: Header, nbytes: list[int], recorded: list[bool], name: str) -> None:
    """Variables lie behind the header and in its order, fixed ones first, and do not overlap (``data``)."""
    reached, before = header.nbytes, "the header"
    for records in (False, True):
        for variable, n, record in zip(header.variables, nbytes, recorded, strict=True):
            if record != records:
                continue
            if variable.begin < reached:
                raise FormatError(
                    f"{name}: begin of {_what(variable)}: expected {reached} or more, where {before} ends, "
                    f"found {variable.begin}"
                )
            reached, before = variable.begin + _padded(n), f"variable {variable.name!r}"
