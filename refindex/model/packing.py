"""CF packing: how stored numbers become the values that they stand for.

Where the files of one archive are packed differently, no single ``scale_factor`` is right for all of them: each
file's packing is part of the encoding of its chunks, and the array is served unpacked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.errors import FormatError

PACKING_ATTRIBUTES = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
"""Attributes that say how stored numbers become values (CF conventions 8.1 and 2.5.1, and the NetCDF users guide)."""

PACKED_ATTRIBUTES = ("valid_min", "valid_max", "valid_range")
"""Attributes whose values are packed as the data are (CF conventions 2.5.1)."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number of an attribute with the type that it has in its file, on which the arithmetic depends."""

    dtype: str
    value: int | float

    @classmethod
    def of(cls, value: Any) -> Number:
        """From a numpy or Python scalar, or an array of one element."""
        element = np.asarray(value).reshape(-1)[0]
        return cls(element.dtype.newbyteorder("=").str, element.item())

    def scalar(self) -> Any:
        """As a numpy scalar."""
        return np.dtype(self.dtype).type(self.value)

    def to_json(self) -> list[Any]:
        return [self.dtype, self.value]

    @classmethod
    def from_json(cls, value: Any) -> Number:
        dtype = np.dtype(str(value[0]))
        if dtype.kind not in "iufb" or not isinstance(value[1], int | float):
            raise FormatError(f"packing: not a number: {value!r}")
        if dtype.kind in "iu" and (not isinstance(value[1], int) or not _fits(value[1], dtype)):
            raise FormatError(f"packing: {value[1]!r} is not one of {dtype}")
        return cls(dtype.str, value[1])


def _fits(number: int, dtype: np.dtype[Any]) -> bool:
    limits = np.iinfo(dtype)
    return int(limits.min) <= number <= int(limits.max)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """The packing of one file's variable, with xarray's arithmetic, so that the values are equal to the last bit.

    Parameters
    ----------
    dtype:
        Floating-point type in which the values are computed.
    scale, offset:
        ``scale_factor`` and ``add_offset``.
    mask:
        Stored numbers that stand for missing values (``_FillValue``, ``missing_value``); they become NaN.
    integers:
        Integer type as which the stored numbers are to be taken (``_Unsigned``).
    """

    dtype: str
    scale: Number | None = None
    offset: Number | None = None
    mask: tuple[Number, ...] = ()
    integers: str | None = None

    def unpack(self, values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The values that stored numbers stand for, as ``dtype``."""
        if self.integers is not None:
            values = values.astype(self.integers)
        out = np.array(values, dtype=self.dtype)
        if self.mask:
            missing = np.zeros(out.shape, dtype=bool)
            for number in self.mask:
                missing |= out == number.scalar()
            out[missing] = np.nan
        if self.scale is not None:
            out *= self.scale.scalar()
        if self.offset is not None:
            out += self.offset.scalar()
        return out

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {"dtype": self.dtype}
        if self.scale is not None:
            document["scale"] = self.scale.to_json()
        if self.offset is not None:
            document["offset"] = self.offset.to_json()
        if self.mask:
            document["mask"] = [number.to_json() for number in self.mask]
        if self.integers is not None:
            document["integers"] = self.integers
        return document

    @classmethod
    def from_json(cls, document: Any) -> Packing:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        FormatError
            If the JSON is not a packing.
        """
        try:
            dtype = np.dtype(str(document["dtype"]))
            integers = document.get("integers")
            if dtype.kind not in "fiu" or (integers is not None and np.dtype(integers).kind not in "iu"):
                raise FormatError(f"packing: {document!r} is not of numbers")
            return cls(
                dtype=dtype.str,
                scale=Number.from_json(document["scale"]) if "scale" in document else None,
                offset=Number.from_json(document["offset"]) if "offset" in document else None,
                mask=tuple(Number.from_json(number) for number in document.get("mask", ())),
                integers=None if integers is None else np.dtype(integers).str,
            )
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, OverflowError, SyntaxError, AttributeError) as error:
            raise FormatError(f"packing: cannot read {document!r}: {error}") from error


def packing_of(attributes: Mapping[str, Any], dtype: np.dtype[Any]) -> Packing | None:
    """The packing that attributes say, as xarray decodes it; None for values that are not packed numbers.

    Parameters
    ----------
    attributes:
        With the numpy types that they have in the file; ``_FillValue`` of the array's type.
    dtype:
        Of the stored numbers.
    """
    if dtype.kind not in "iuf":
        return None
    scale, offset = (_scalar(attributes.get(name)) for name in ("scale_factor", "add_offset"))
    integers = _integers(attributes.get("_Unsigned"), dtype)
    taken = np.dtype(integers) if integers else dtype
    mask, declared = _mask(attributes, dtype, taken)
    unsigned = taken != dtype and dtype.kind == "i"
    has_fill = bool(mask) and not isinstance(attributes.get("_FillValue"), str | None)
    packed = scale is not None or offset is not None
    if packed and (mask or not declared):
        computed = _float_for(taken, scale, offset)
    elif mask:
        computed = taken if taken.kind == "f" else np.dtype("f4" if taken.itemsize <= 2 else "f8")
    else:
        computed = taken
    return Packing(
        dtype=computed.newbyteorder("=").str,
        scale=None if scale is None else Number.of(scale),
        offset=None if offset is None else Number.of(offset),
        mask=tuple(_as_xarray_compares(mask, computed) if unsigned and has_fill else mask),
        integers=integers,
    )


def _as_xarray_compares(mask: list[Number], computed: np.dtype[Any]) -> list[Number]:
    """Missing values of signed numbers that are taken as unsigned ones, as xarray compares them.

    ``_FillValue``, the last, is a Python number there: it becomes of the type in which the values are computed. All
    others keep their own.
    """
    *others, fill = mask
    if any(other.value == fill.value for other in others):
        return mask
    return [*others, Number.of(np.asarray(fill.value).astype(computed)[()])]


def _scalar(value: Any) -> Any:
    """An attribute as xarray takes it: an array of one number loses its type."""
    if value is None or isinstance(value, str):
        return None
    array = np.asarray(value)
    return np.asarray(array.item())[()] if array.ndim and array.size == 1 else array[()] if not array.ndim else None


def _integers(unsigned: Any, dtype: np.dtype[Any]) -> str | None:
    """The integer type that ``_Unsigned`` asks for."""
    if dtype.kind == "i" and unsigned == "true":
        return f"<u{dtype.itemsize}" if dtype.itemsize > 1 else "|u1"
    if dtype.kind == "u" and unsigned == "false":
        return f"<i{dtype.itemsize}" if dtype.itemsize > 1 else "|i1"
    return None


def _mask(attributes: Mapping[str, Any], dtype: np.dtype[Any], taken: np.dtype[Any]) -> tuple[list[Number], bool]:
    """Numbers that stand for missing values, and whether an attribute says anything of them."""
    found: dict[tuple[str, Any], Number] = {}
    declared = False
    for name in ("missing_value", "_FillValue"):
        value = attributes.get(name)
        if value is None or isinstance(value, str):
            continue
        numbers = [number for number in np.ravel(np.asarray(value)) if not np.isnan(number)]
        if not numbers and dtype.kind in "iu":
            continue
        declared = True
        for number in numbers:
            if name == "_FillValue" and taken != dtype:
                number = np.asarray(number).astype(dtype.newbyteorder("=")).view(taken)[()]  # noqa: PLW2901
            found.setdefault((str(number.dtype), number.item()), Number.of(number))
    return list(found.values()), declared


def _float_for(dtype: np.dtype[Any], scale: Any, offset: Any) -> np.dtype[Any]:
    """The type in which xarray unpacks (``_choose_float_dtype`` of its CF coders)."""
    kinds = [np.asarray(number).dtype.newbyteorder("=") for number in (scale, offset) if number is not None]
    if len(kinds) == 2 and kinds[0] == kinds[1] and kinds[0] in (np.dtype("f4"), np.dtype("f8")):
        return np.dtype("f8") if dtype.itemsize == 4 and dtype.kind in "iu" else kinds[0]
    return np.dtype("f8") if offset is not None else kinds[0]
