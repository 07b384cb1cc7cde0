"""Data types and fill values of Zarr v2 (storage specification 2, "Data type encoding", "Fill value encoding")."""

from __future__ import annotations

import base64
import binascii
from typing import Any, Literal

import numpy as np

from refindex.errors import FormatError, UnsupportedError
from refindex.model import dtype as model
from refindex.scan.zarr.plan import shortened

type Strings = Literal["string", "variable_length_bytes"]

_MAX_FIELDS = 4096
_MAX_DEPTH = 16
_MAX_ITEMSIZE = 1 << 24


def numpy_dtype(value: Any) -> np.dtype[Any] | None:
    """The numpy dtype of a ``dtype`` member, byte order included; None for objects.

    Raises
    ------
    FormatError
        If numpy does not know it.
    UnsupportedError
        If its fields are of different byte orders: the ``bytes`` codec has one for all.
    """
    if value == "|O":
        return None
    dtype = _dtype(value, 0)
    if dtype.hasobject:
        raise UnsupportedError(f"objects within {shortened(value)}")
    if dtype.itemsize > _MAX_ITEMSIZE:
        raise UnsupportedError(f"elements of {dtype.itemsize} bytes")
    orders = _orders(dtype)
    if len(orders) > 1:
        raise UnsupportedError(f"fields of both byte orders in {shortened(value)}")
    return dtype


def _dtype(value: Any, depth: int) -> np.dtype[Any]:
    """``"<f4"``, or a list of fields ``[name, type]``, ``[name, type, shape]``.

    Zarr v3 has no arrays in compounds: an array is a compound of its elements, which has the same bytes.
    """
    if depth > _MAX_DEPTH:
        raise UnsupportedError(f"compounds nested deeper than {_MAX_DEPTH}")
    try:
        if isinstance(value, str):
            return np.dtype(value)
        if not isinstance(value, list) or not 0 < len(value) <= _MAX_FIELDS:
            raise FormatError(f"dtype is {shortened(value)}; expected a type or a list of fields")
        fields = []
        for field in value:
            if not isinstance(field, list) or len(field) not in (2, 3) or not field[0] or not isinstance(field[0], str):
                raise FormatError(f"dtype has the field {shortened(field)}; expected [name, type(, shape)]")
            base = _dtype(field[1], depth + 1)
            fields.append((field[0], _elements(base, field[2]) if len(field) == 3 else base))
        return np.dtype(fields)
    except (TypeError, ValueError, SyntaxError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"dtype {shortened(value)}: {error}") from error


def _elements(base: np.dtype[Any], dims: Any) -> np.dtype[Any]:
    dims = [dims] if type(dims) is int else dims
    if not isinstance(dims, list) or not all(type(n) is int and n > 0 for n in dims):
        raise FormatError(f"dtype has a field of shape {shortened(dims)}")
    total = 1
    for extent in dims:
        total *= extent
        if total > model.MOST_FIELDS:
            raise UnsupportedError(f"a field of shape {shortened(dims)}")
    for extent in reversed(dims):
        base = np.dtype([(str(i), base) for i in range(extent)])
    return base


def _orders(dtype: np.dtype[Any]) -> set[str]:
    if dtype.names is not None:
        return set().union(*(_orders(dtype[name]) for name in dtype.names))
    return {dtype.str[0]} - {"|"}


def data_type(dtype: np.dtype[Any]) -> Any:
    """The ``data_type`` member of Zarr v3.

    Raises
    ------
    UnsupportedError
        If zarr-python has none for it.
    """
    if dtype.kind == "U" and dtype.itemsize:
        return {"name": "fixed_length_utf32", "configuration": {"length_bytes": dtype.itemsize}}
    if dtype.names is not None:
        fields = [{"name": name, "data_type": data_type(dtype[name])} for name in dtype.names]
        return {"name": "struct", "configuration": {"fields": fields}}
    return model.data_type_json(dtype)


def strings_dtype(kind: Strings | None) -> Strings:
    """The ``data_type`` member of values of variable length."""
    return kind or "string"


def fill_value(dtype: np.dtype[Any], value: Any) -> Any:
    """The ``fill_value`` member of Zarr v3.

    null, which leaves the value open, becomes what zarr-python reads then: zero, not-a-time for times.

    Raises
    ------
    FormatError
        If it is not a value of the type.
    """
    try:
        return _json(dtype, element(dtype, value))
    except (TypeError, ValueError, OverflowError, IndexError, binascii.Error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"fill_value {shortened(value)} is not one of {dtype}: {error}") from error


def element(dtype: np.dtype[Any], value: Any) -> np.ndarray[Any, Any]:
    """The element, zero-dimensional, that a ``fill_value`` member means."""
    out = np.zeros((), dtype=dtype)
    if value is None:
        if dtype.kind in "mM":
            out[()] = np.array("NaT", dtype=dtype)
        return out
    match dtype.kind:
        case "U":
            out[()] = "" if value == 0 else value
            if not isinstance(value, str) and value != 0:
                raise TypeError("expected text")
        case "S" | "V":
            # Some writers put 0 for no bytes.
            raw = b"" if type(value) is int and value == 0 else base64.b64decode(value, validate=True)
            if len(raw) > dtype.itemsize or (dtype.kind == "V" and raw and len(raw) != dtype.itemsize):
                raise ValueError(f"it has {len(raw)} bytes")
            return np.frombuffer(raw.ljust(dtype.itemsize, b"\0"), dtype=dtype).reshape(())
        case "c":
            parts = value if isinstance(value, list) else [value, 0.0]
            if len(parts) != 2:
                raise ValueError("expected two numbers")
            part = np.dtype(f"{dtype.str[0]}f{dtype.itemsize // 2}")
            return np.array([_float(p) for p in parts]).astype(part).view(dtype).reshape(())
        case "f":
            with np.errstate(all="ignore"):
                out[()] = _float(value)
        case "m" | "M":
            if value != "NaT" and type(value) is not int:
                raise TypeError("expected an integer")
            number = np.iinfo(np.int64).min if value == "NaT" else value
            return np.array(number, dtype=np.int64).view(dtype.newbyteorder("=")).astype(dtype)
        case "b":
            if value not in (0, 1):
                raise ValueError("expected true or false")
            out[()] = bool(value)
        case _:
            number = int(value)
            if number != (float(value) if isinstance(value, str) else value):
                raise ValueError("expected an integer")
            return np.array(number, dtype=dtype)
    return out


def _float(value: Any) -> float:
    if not isinstance(value, int | float | str) or (isinstance(value, str) and value.startswith("0x")):
        raise TypeError("expected a number")
    return float(value)


def _json(dtype: np.dtype[Any], value: np.ndarray[Any, Any]) -> Any:
    if dtype.kind == "U":
        return str(value)
    if dtype.names is not None:
        return {name: _json(dtype[name], np.asarray(value[name])) for name in dtype.names}
    return model.fill_value_json(dtype, value)


def object_fill_value(kind: Strings | None, value: Any) -> str:
    """The fill value of values of variable length: text, or base64 of bytes. Some writers put 0 for none, which
    zarr-python reads as the text "0"."""
    if value is None or (kind == "variable_length_bytes" and value == 0):
        return ""
    if kind == "string" and isinstance(value, bool | int | float):
        return str(value)
    if not isinstance(value, str):
        raise FormatError(f"fill_value {shortened(value)}; expected text")
    if kind == "variable_length_bytes":
        try:
            base64.b64decode(value, validate=True)
        except ValueError as error:
            raise FormatError(f"fill_value {shortened(value)} is not base64: {error}") from error
    return value
