"""HDF5 datatypes -> stored types (file format specification IV.A.2.d, "The Datatype Message")."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from h5py import h5t

from refindex.errors import UnsupportedError
from refindex.model.dtype import Foreign, Leaf, Padding, StoredType, Struct, Subarray, Text
from refindex.scan.hdf5.objects import is_variable

_COMPLEX_CLASS = 11
"""H5T_COMPLEX, since HDF5 2.0; older h5py has no name for it."""

_FLOATS = {
    "<f2": h5t.IEEE_F16LE,
    ">f2": h5t.IEEE_F16BE,
    "<f4": h5t.IEEE_F32LE,
    ">f4": h5t.IEEE_F32BE,
    "<f8": h5t.IEEE_F64LE,
    ">f8": h5t.IEEE_F64BE,
}
_PADDINGS: dict[int, Padding] = {
    h5t.STR_NULLTERM: "nullterm",
    h5t.STR_NULLPAD: "nullpad",
    h5t.STR_SPACEPAD: "spacepad",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What an HDF5 datatype becomes.

    Parameters
    ----------
    stored:
        The stored type; None for values of variable length and references.
    flags:
        Members of an enumeration by name, for ``flag_values`` / ``flag_meanings``.
    """

    stored: StoredType | None
    flags: dict[str, int] = field(default_factory=dict)


def read_kind(datatype: h5t.TypeID) -> Kind:
    """Translate the datatype of a dataset.

    Raises
    ------
    UnsupportedError
        Naming the type, if it is not served.
    """
    if is_variable(datatype):
        return Kind(stored=None)
    flags: dict[str, int] = {}
    if isinstance(datatype, h5t.TypeEnumID) and not _is_bool(datatype):
        for i in range(datatype.get_nmembers()):
            flags[field_name(datatype.get_member_name(i))] = int(datatype.get_member_value(i))
    return Kind(stored=stored_type(datatype), flags=flags)


def stored_type(datatype: h5t.TypeID, depth: int = 0) -> StoredType:
    """The stored type of a datatype of fixed size.

    Raises
    ------
    UnsupportedError
        Naming the type, if it is not served.
    """
    if depth > 32:
        raise UnsupportedError("datatype is nested deeper than 32 levels")
    size = datatype.get_size()
    match datatype.get_class():
        case h5t.INTEGER:
            return _integer(datatype, "i" if datatype.get_sign() == h5t.SGN_2 else "u")
        case h5t.BITFIELD:
            return _integer(datatype, "u")
        case h5t.FLOAT:
            return _float(datatype)
        case h5t.ENUM:
            if _is_bool(datatype):
                return Leaf("|b1")
            return stored_type(datatype.get_super(), depth + 1)
        case h5t.STRING:
            if datatype.is_variable_str():
                raise UnsupportedError("strings of variable length inside another type are not served yet")
            return Text(size, _PADDINGS[datatype.get_strpad()])
        case h5t.OPAQUE:
            return Leaf(_opaque(datatype, size))
        case h5t.COMPOUND:
            return _compound(datatype, size, depth)
        case h5t.ARRAY:
            return Subarray(tuple(datatype.get_array_dims()), stored_type(datatype.get_super(), depth + 1))
        case h5t.VLEN:
            raise UnsupportedError("variable-length sequences are not served yet")
        case h5t.REFERENCE:
            raise UnsupportedError("object and region references are not served yet")
        case h5t.TIME:
            raise UnsupportedError("HDF5 time types are not served yet")
        case number if number == _COMPLEX_CLASS:
            base = stored_type(datatype.get_super(), depth + 1)
            if isinstance(base, Leaf) and base.dtype[1:] in ("f4", "f8"):
                return Leaf(f"{base.dtype[0]}c{size}")
            raise UnsupportedError(f"complex numbers of {base} are not served yet")
        case number:
            raise UnsupportedError(f"HDF5 datatype class {number} is not known")


def _integer(datatype: h5t.TypeID, letter: str) -> StoredType:
    size = datatype.get_size()
    # h5py has no calls for the bits of a bitfield; the encoded message has them (IV.A.2.d, classes 0 and 4)
    # behind the two bytes that H5Tencode puts first, the class and flags, and the size.
    _, precision = struct.unpack_from("<HH", datatype.encode(), 10)
    known = size in (1, 2, 4, 8)
    order = ">" if datatype.get_order() == h5t.ORDER_BE else "<"
    if known and precision == 8 * size:
        return Leaf(f"{order if size > 1 else '|'}{letter}{size}")
    # h5py reads numbers of other precision as numpy's of the same size, where there is one. The byte order is kept:
    # libhdf5 2.0 does not extend the sign of big-endian ones, as of 31 bits in 4 bytes, that become little-endian.
    width = size if known else next((n for n in (1, 2, 4, 8) if 8 * n >= precision), None)
    if width is None:
        raise UnsupportedError(f"integers of {precision} bits are not served: numpy and Zarr v3 have none above 64")
    return Foreign(size, f"{order if width > 1 else '|'}{letter}{width}")


def _float(datatype: h5t.TypeID) -> StoredType:
    for code, predefined in _FLOATS.items():
        if datatype.equal(predefined):
            return Leaf(code)
    order = datatype.get_order()
    if order not in (h5t.ORDER_LE, h5t.ORDER_BE):
        # h5py has no dtype to compare with, and H5Tencode of a type copied and set to this order makes it big-endian.
        raise UnsupportedError("floating-point numbers in VAX byte order are not served")
    try:
        dtype = datatype.dtype
    except (ValueError, TypeError):  # h5py: "Insufficient precision in available types"
        dtype = np.dtype(np.longdouble)
    # Zarr v3 ends at double precision; whether that holds the values is found out before they are served.
    return Foreign(datatype.get_size(), f"{'>' if order == h5t.ORDER_BE else '<'}f{min(8, dtype.itemsize)}")


def _is_bool(datatype: h5t.TypeID) -> bool:
    """Whether h5py takes an enumeration for its boolean: int8 with FALSE = 0 and TRUE = 1."""
    return (
        datatype.get_nmembers() == 2
        and datatype.get_size() == 1
        and {datatype.get_member_name(i): int(datatype.get_member_value(i)) for i in range(datatype.get_nmembers())}
        == {b"FALSE": 0, b"TRUE": 1}
    )


def _opaque(datatype: h5t.TypeID, size: int) -> str:
    """Opaque bytes; h5py's tag names the numpy type that was stored so."""
    tag = datatype.get_tag()
    if tag.startswith(b"NUMPY:"):
        try:
            dtype = np.dtype(tag[len(b"NUMPY:") :].decode())
        except (TypeError, UnicodeDecodeError):
            dtype = None
        if dtype is not None and dtype.kind in "mMS" and dtype.itemsize == size:
            return str(dtype.str)
    return f"|V{size}"


def _compound(datatype: h5t.TypeID, size: int, depth: int) -> StoredType:
    fields = tuple(
        (
            field_name(datatype.get_member_name(i)),
            int(datatype.get_member_offset(i)),
            stored_type(datatype.get_member_type(i), depth + 1),
        )
        for i in range(datatype.get_nmembers())
    )
    match fields:
        case (("r", 0, Leaf(real)), ("i", middle, Leaf(imaginary))) if (
            real == imaginary and real[1:] in ("f4", "f8") and 2 * middle == size == 2 * int(real[2])
        ):
            return Leaf(f"{real[0]}c{size}")
    if not fields:
        raise UnsupportedError("a compound type without fields is not served")
    return Struct(fields, size)


def field_name(raw: bytes) -> str:
    """A name as text.

    Raises
    ------
    UnsupportedError
        If it is not UTF-8, which JSON cannot hold.
    """
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise UnsupportedError(f"the name {raw!r} is not UTF-8") from error
