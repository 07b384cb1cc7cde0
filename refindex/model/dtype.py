"""Element types: as they lie in a source, and as Zarr v3 serves them.

A *stored type* describes the bytes of one element in a source (byte order, string padding, gaps and
order of compound fields). The *served type* is the closest Zarr v3 data type. Where both have the
same bytes, chunks pass through untouched; otherwise :func:`to_served` converts.
"""

from __future__ import annotations

import base64
import math
import struct
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from refindex.errors import FormatError, UnsupportedError

type Padding = Literal["nullpad", "nullterm", "spacepad"]
type StoredType = Leaf | Foreign | Text | Struct | Subarray


@dataclass(frozen=True, slots=True)
class Leaf:
    """A number, boolean, date or opaque value: a numpy dtype with its byte order, as ``"<f4"``."""

    dtype: str


@dataclass(frozen=True, slots=True)
class Foreign:
    """A number in ``size`` bytes that only libhdf5 reads; served as numpy ``dtype``."""

    size: int
    dtype: str


@dataclass(frozen=True, slots=True)
class Text:
    """A string of ``size`` bytes and its padding (HDF5 file format specification, IV.A.2.d, class 3)."""

    size: int
    padding: Padding


@dataclass(frozen=True, slots=True)
class Struct:
    """A compound of ``(name, byte offset, type)`` fields in ``size`` bytes."""

    fields: tuple[tuple[str, int, StoredType], ...]
    size: int


@dataclass(frozen=True, slots=True)
class Subarray:
    """An array of fixed shape as one element; served as trailing dimensions."""

    dims: tuple[int, ...]
    base: StoredType


def type_to_json(stored: StoredType) -> Any:
    """A stored type as JSON: a numpy dtype string, or an object for text, compound and array types."""
    match stored:
        case Leaf():
            return stored.dtype
        case Foreign():
            return {"foreign": stored.size, "dtype": stored.dtype}
        case Text():
            return {"text": stored.size, "padding": stored.padding}
        case Struct():
            fields = [[name, offset, type_to_json(t)] for name, offset, t in stored.fields]
            return {"fields": fields, "size": stored.size}
        case Subarray():
            return {"dims": list(stored.dims), "base": type_to_json(stored.base)}


def type_from_json(value: Any, *, depth: int = 0) -> StoredType:
    """Inverse of :func:`type_to_json`.

    Raises
    ------
    FormatError
        If the JSON is not a stored type.
    """
    try:
        if depth > 32:
            raise FormatError("stored type: nested deeper than 32 levels")
        if isinstance(value, str):
            if np.dtype(value).hasobject:
                raise FormatError(f"stored type: {value!r} is not a type of fixed size")
            return Leaf(value)
        if "foreign" in value:
            dtype = np.dtype(str(value["dtype"]))
            if dtype.kind not in "iuf" or dtype.itemsize not in (1, 2, 4, 8) or int(value["foreign"]) < 1:
                raise FormatError(f"stored type: a foreign number cannot become {value!r}")
            return Foreign(int(value["foreign"]), str(value["dtype"]))
        if "text" in value:
            if value["padding"] not in ("nullpad", "nullterm", "spacepad"):
                raise FormatError(f"stored type: unknown string padding {value['padding']!r}")
            return Text(int(value["text"]), value["padding"])
        if "fields" in value:
            fields = tuple((str(n), int(o), type_from_json(t, depth=depth + 1)) for n, o, t in value["fields"])
            return Struct(fields, int(value["size"]))
        return Subarray(tuple(int(n) for n in value["dims"]), type_from_json(value["base"], depth=depth + 1))
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError, SyntaxError) as error:
        raise FormatError(f"stored type: cannot read {value!r}: {error}") from error


def numpy_dtype(stored: StoredType) -> np.dtype[Any]:
    """The numpy dtype over the stored bytes, byte order and gaps included."""
    match stored:
        case Leaf():
            return np.dtype(stored.dtype)
        case Foreign():
            return np.dtype(f"V{stored.size}")
        case Text():
            return np.dtype(f"S{stored.size}")
        case Struct():
            return np.dtype(
                {
                    "names": [name for name, _, _ in stored.fields],
                    "offsets": [offset for _, offset, _ in stored.fields],
                    "formats": [numpy_dtype(t) for _, _, t in stored.fields],
                    "itemsize": stored.size,
                }
            )
        case Subarray():
            return np.dtype((numpy_dtype(stored.base), stored.dims))


def served_dtype(stored: StoredType) -> np.dtype[Any]:
    """The numpy dtype that Zarr v3 serves for a stored type, in the byte order of the source.

    Compounds are packed and of one byte order (little endian unless all fields are big endian). A
    subarray at the top gives its base: the caller appends its ``dims`` to the array's shape.

    Arrays inside compounds are compounds of their elements.
    """
    match stored:
        case Leaf() | Foreign():
            return np.dtype(stored.dtype)
        case Text():
            return np.dtype(f"S{stored.size}")
        case Subarray():
            return served_dtype(stored.base)
        case Struct():
            order: Literal["<", ">"] = ">" if _byte_orders(stored) == {">"} else "<"
            return np.dtype([(name, _field_dtype(t).newbyteorder(order)) for name, _, t in stored.fields])


MOST_FIELDS = 1024
"""Elements of an array inside a compound that are served as fields each; larger ones are served as raw bytes."""


def _field_dtype(stored: StoredType) -> np.dtype[Any]:
    """The type of a compound's field. Zarr has no arrays in compounds: an array is a compound of its elements,
    named ``0``, ``1``, ..., which has the same bytes."""
    if not isinstance(stored, Subarray):
        return served_dtype(stored)
    dtype = _field_dtype(stored.base)
    if math.prod(stored.dims) > MOST_FIELDS:
        return np.dtype(f"V{dtype.itemsize * math.prod(stored.dims)}")
    for extent in reversed(stored.dims):
        dtype = np.dtype([(str(i), dtype) for i in range(extent)])
    return dtype


def _byte_orders(stored: StoredType) -> set[str]:
    match stored:
        case Leaf() | Foreign():
            order = np.dtype(stored.dtype).str[0]
            return set() if order == "|" else {order}
        case Struct():
            return set().union(*(_byte_orders(t) for _, _, t in stored.fields))
        case Subarray():
            return _byte_orders(stored.base)
        case Text():
            return set()


def needs_text_clean(stored: StoredType) -> bool:
    """Whether strings must be rewritten to read as the HDF5 library returns them.

    The library cuts null-terminated strings at the first NUL (what follows is garbage) and drops
    the trailing blanks of space-padded ones; numpy only drops trailing NULs. A null-terminated
    string of one byte is netCDF's ``char`` and has nothing to cut.
    """
    match stored:
        case Text():
            return stored.padding == "spacepad" or (stored.padding == "nullterm" and stored.size > 1)
        case Struct():
            return any(needs_text_clean(t) for _, _, t in stored.fields)
        case Subarray():
            return needs_text_clean(stored.base)
        case Leaf() | Foreign():
            return False


def is_foreign(stored: StoredType) -> bool:
    """Whether a type is, or has in it, a number that only libhdf5 reads."""
    match stored:
        case Foreign():
            return True
        case Struct():
            return any(is_foreign(t) for _, _, t in stored.fields)
        case Subarray():
            return is_foreign(stored.base)
        case _:
            return False


def readable(stored: StoredType) -> StoredType:
    """The type of the elements once libhdf5 has converted the foreign numbers in them; its compounds are packed."""
    match stored:
        case Foreign():
            return Leaf(stored.dtype)
        case Subarray():
            return Subarray(stored.dims, readable(stored.base))
        case Struct() if is_foreign(stored):
            fields: list[tuple[str, int, StoredType]] = []
            at = 0
            for name, _, field in stored.fields:
                fields.append((name, at, readable(field)))
                at += numpy_dtype(fields[-1][2]).itemsize
            return Struct(tuple(fields), at)
        case _:
            return stored


def same_bytes(stored: StoredType, served: np.dtype[Any]) -> bool:
    """Whether stored elements are, byte for byte, elements of the served dtype."""
    flat = stored
    while isinstance(flat, Subarray):
        flat = flat.base
    return not is_foreign(flat) and numpy_dtype(flat) == served and not needs_text_clean(flat)


def to_served(values: np.ndarray[Any, Any], stored: StoredType, served: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Convert values of ``numpy_dtype(stored)`` to ``served``, without loss.

    A top-level array type has already become trailing dimensions of ``values``.

    Raises
    ------
    FormatError
        For what libhdf5 must convert first, to the type that :func:`readable` gives.
    """
    while isinstance(stored, Subarray):
        stored = stored.base
    if isinstance(stored, Foreign):
        raise FormatError(f"a number in {stored.size} bytes that only libhdf5 reads cannot become {served} here")
    if isinstance(stored, Struct):
        if served.names is None:
            raise FormatError(f"stored compound cannot become {served}")
        out = np.zeros(values.shape, served)
        for (name, _, field), target in zip(stored.fields, served.names, strict=True):
            out[target] = _field_values(values[name], field, served[target], values.shape)
        return out
    if isinstance(stored, Text) and needs_text_clean(stored):
        values = _clean_text(values, stored)
    if values.dtype == served:
        return values
    if served.kind == "V" and served.names is None:
        return np.ascontiguousarray(values).view(served)
    return values.astype(served, casting="equiv" if values.dtype.kind not in "SU" else "same_kind")


def _field_values(
    values: np.ndarray[Any, Any], stored: StoredType, served: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """One field of a compound as served; an array's elements lie one after the other in its compound."""
    if not isinstance(stored, Subarray):
        return to_served(values, stored, served)
    depth, base = len(stored.dims), stored.base
    while isinstance(base, Subarray):
        depth, base = depth + len(base.dims), base.base
    if served.names is None:  # many elements, served as raw bytes
        element = served_dtype(base).newbyteorder("<")
    else:
        element = served
        for _ in range(depth):
            element = element[0]
    flat = np.ascontiguousarray(to_served(values, base, element))
    return flat.reshape(*shape, -1).view(served).reshape(shape)


def _clean_text(values: np.ndarray[Any, Any], stored: Text) -> np.ndarray[Any, Any]:
    if stored.padding == "spacepad":
        # What the library strips is blanks only; numpy has dropped NULs that follow them by itself.
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, stored.size)
        keep = np.logical_or.accumulate((raw != ord(" "))[..., ::-1], axis=-1)[..., ::-1]
    else:
        raw = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, stored.size)
        keep = ~np.logical_or.accumulate(raw == 0, axis=-1)
    return np.where(keep, raw, 0).astype(np.uint8).view(f"S{stored.size}").reshape(values.shape)


_NAMES = {
    "b1": "bool",
    **{f"{k}{n}": f"{name}{n * 8}" for k, name in (("i", "int"), ("u", "uint")) for n in (1, 2, 4, 8)},
    **{f"f{n}": f"float{n * 8}" for n in (2, 4, 8)},
    **{f"c{n}": f"complex{n * 8}" for n in (8, 16)},
}
_DTYPES = {name: code for code, name in _NAMES.items()}


def data_type_json(dtype: np.dtype[Any]) -> Any:
    """The ``data_type`` member of a Zarr v3 array document.

    Raises
    ------
    UnsupportedError
        If Zarr v3 has no data type for it.
    """
    name = _NAMES.get(dtype.str[1:])
    if name is not None:
        return name
    if dtype.names is not None:
        fields = [{"name": n, "data_type": data_type_json(dtype[n])} for n in dtype.names]
        return {"name": "struct", "configuration": {"fields": fields}}
    if dtype.kind == "S" and dtype.itemsize:
        return {"name": "null_terminated_bytes", "configuration": {"length_bytes": dtype.itemsize}}
    if dtype.kind == "V" and dtype.subdtype is None and dtype.itemsize:
        return {"name": "raw_bytes", "configuration": {"length_bytes": dtype.itemsize}}
    if dtype.kind in "mM":
        unit, step = np.datetime_data(dtype)
        kind = "numpy.datetime64" if dtype.kind == "M" else "numpy.timedelta64"
        return {"name": kind, "configuration": {"unit": unit, "scale_factor": step}}
    raise UnsupportedError(f"no Zarr v3 data type for {dtype}")


def dtype_from_json(data_type: Any, endian: str | None) -> np.dtype[Any] | None:
    """The numpy dtype of decoded chunk bytes, or None for types of variable length.

    ``endian`` is that of the ``bytes`` codec: ``"little"``, ``"big"`` or None.
    """
    order: Literal["<", ">"] = ">" if endian == "big" else "<"
    try:
        if isinstance(data_type, str):
            code = _DTYPES.get(data_type)
            return None if code is None else np.dtype(code).newbyteorder(order)
        name, configuration = data_type["name"], data_type.get("configuration", {})
        if name == "struct":
            fields = [(f["name"], dtype_from_json(f["data_type"], endian)) for f in configuration["fields"]]
            return np.dtype(fields)
        if name == "null_terminated_bytes":
            return np.dtype(f"S{int(configuration['length_bytes'])}")
        if name == "raw_bytes":
            return np.dtype(f"V{int(configuration['length_bytes'])}")
        if name in ("numpy.datetime64", "numpy.timedelta64"):
            code = "M8" if name == "numpy.datetime64" else "m8"
            return np.dtype(f"{order}{code}[{int(configuration['scale_factor'])}{configuration['unit']}]")
    except (KeyError, TypeError, ValueError, OverflowError, SyntaxError, AttributeError) as error:
        raise FormatError(f"array document: cannot read data type {data_type!r}: {error}") from error
    return None


def fill_value_json(dtype: np.dtype[Any], value: Any) -> Any:
    """The ``fill_value`` member of a Zarr v3 array document for one element of ``dtype``."""
    element = np.asarray(value, dtype=dtype).reshape(())
    match dtype.kind:
        case "b":
            return bool(element)
        case "i" | "u":
            return int(element)
        case "f":
            return _float_json(element)
        case "c":
            return [_float_json(element.real), _float_json(element.imag)]
        case "m" | "M":
            return int(element.astype(dtype.newbyteorder("=")).view(np.int64))
        case "S":
            return base64.b64encode(bytes(element.item())).decode()
        case "V" if dtype.names is not None:
            return {name: fill_value_json(dtype[name], element[name]) for name in dtype.names}
        case _:
            return base64.b64encode(element.tobytes()).decode()


def _float_json(element: np.ndarray[Any, Any]) -> float | str:
    number = float(element)
    if math.isfinite(number):
        return number
    if math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    # Zarr v3: "NaN" is the one NaN with only the leading fraction bit set; others are spelled in hex.
    size = element.dtype.itemsize
    bits = int.from_bytes(element.astype(element.dtype.newbyteorder(">")).tobytes(), "big")
    default = {2: 0x7E00, 4: 0x7FC00000, 8: 0x7FF8000000000000}[size]
    return "NaN" if bits == default else f"0x{bits:0{size * 2}x}"


def xarray_fill_value(dtype: np.dtype[Any], value: Any) -> Any:
    """``_FillValue`` as xarray expects it among the attributes of a Zarr v3 array.

    Integers and booleans are plain; floats are base64 of a little-endian double, complex numbers of two
    (xarray's ``FillValueCoder``). None for types for which xarray takes no ``_FillValue``.
    """
    element = np.asarray(value).reshape(-1)[0]
    match dtype.kind:
        case "b":
            return bool(element)
        case "i" | "u":
            return int(element)
        case "f":
            return base64.b64encode(struct.pack("<d", float(element))).decode()
        case "c":
            return [base64.b64encode(struct.pack("<d", float(part))).decode() for part in (element.real, element.imag)]
        case _:
            return None


def fill_value_from_json(dtype: np.dtype[Any], value: Any) -> np.ndarray[Any, Any]:
    """Inverse of :func:`fill_value_json`: a zero-dimensional array.

    Raises
    ------
    FormatError
        If the JSON is not a fill value of the type.
    """
    try:
        if dtype.names is not None:
            if isinstance(value, str):
                return np.frombuffer(base64.b64decode(value), dtype=dtype, count=1).reshape(())
            out = np.zeros((), dtype=dtype)
            for name in dtype.names:
                out[name] = fill_value_from_json(dtype[name], value[name])
            return out
        match dtype.kind:
            case "f":
                return _float_from_json(dtype, value)
            case "c":
                part = np.dtype(f"{dtype.str[0]}f{dtype.itemsize // 2}")
                parts = [_float_from_json(part, v) for v in value]
                return np.array(parts, dtype=part).view(dtype).reshape(())
            case "S":
                return np.array(base64.b64decode(value), dtype=dtype)
            case "V":
                return np.frombuffer(base64.b64decode(value), dtype=dtype, count=1).reshape(())
            case "m" | "M":
                return np.array(int(value), dtype=np.int64).view(dtype.newbyteorder("=")).astype(dtype)
            case _:
                return np.array(value, dtype=dtype)
    except (TypeError, ValueError, KeyError, IndexError, OverflowError) as error:
        raise FormatError(f"fill value {value!r} is not one of {dtype}: {error}") from error


def _float_from_json(dtype: np.dtype[Any], value: Any) -> np.ndarray[Any, Any]:
    if isinstance(value, str) and value.startswith("0x"):
        bits = int(value, 16).to_bytes(dtype.itemsize, "big")
        return np.frombuffer(bits, dtype=dtype.newbyteorder(">")).astype(dtype).reshape(())
    return np.array(float(value), dtype=dtype)
