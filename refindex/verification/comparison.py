"""Whether values are the same: NaN equals NaN, minus zero is zero, and all else is equal to the last bit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from refindex.model.zarr_v3 import loads

type Values = np.ndarray[Any, Any]


def difference(expected: Values, served: Values, base: str | None = None) -> tuple[str, str, str] | None:
    """How served values differ from those of an original: in words, expected, got; None if they do not.

    Parameters
    ----------
    expected:
        Of the original: numbers, bytes, records; objects that are text, bytes, lists or arrays.
    served:
        Of the archive, likewise.
    base:
        Type of the elements of sequences of variable length, as the archive's attribute ``vlen_base_type`` names it.
    """
    if expected.shape != served.shape:
        return "the shape of the values differs", str(expected.shape), str(served.shape)
    expected, served = _as_double(expected), _as_double(served)
    if expected.dtype.kind in "UOT" or served.dtype.kind in "UOT":
        return _objects(expected, served, base)
    if expected.dtype.names is not None:
        return _records(expected, served)
    if not alike(expected.dtype, served.dtype):
        return "the type of the values differs", str(expected.dtype), str(served.dtype)
    equal = _equal(expected, served)
    if equal.all():
        return None
    return _first(expected, served, ~equal)


def alike(one: np.dtype[Any], other: np.dtype[Any]) -> bool:
    """Whether two types are the same but for the byte order; opaque bytes are so by their size."""
    one, other = one.newbyteorder("="), other.newbyteorder("=")
    if "V" in (one.kind, other.kind) and one.names is None and other.names is None:
        return one.itemsize == other.itemsize
    if one.names is not None or other.names is not None:
        return one.names == other.names and all(_field(one, name, other) for name in one.names or ())
    if one.kind in "mM":
        return one == other or (one.kind == other.kind and np.datetime_data(one) == np.datetime_data(other))
    return one == other


def _field(one: np.dtype[Any], name: str, other: np.dtype[Any]) -> bool:
    mine, theirs = one[name], other[name]
    if mine.subdtype is not None or theirs.subdtype is not None or mine.hasobject:
        return True  # arrays and strings are fields of their own in Zarr: their values are compared
    return alike(mine, theirs)


def _as_double(values: Values) -> Values:
    """Numbers wider than double precision as doubles, which is all that Zarr has."""
    return values.astype("f8") if values.dtype.str[1:] in ("f16", "f12") else values


def _equal(one: Values, other: Values) -> np.ndarray[Any, np.dtype[np.bool_]]:
    kind = one.dtype.kind
    if kind == "V" or other.dtype.kind == "V":
        size = one.dtype.itemsize
        raw = [
            np.ascontiguousarray(v).view("u1").reshape(*v.shape, size)
            for v in (np.atleast_1d(one), np.atleast_1d(other))
        ]
        return np.asarray((raw[0] == raw[1]).all(axis=-1).reshape(one.shape))
    if kind in "mM":
        raw = [v.astype(v.dtype.newbyteorder("=")).view("i8") for v in (np.atleast_1d(one), np.atleast_1d(other))]
        return np.asarray((raw[0] == raw[1]).reshape(one.shape))
    if kind == "c":
        return np.asarray(_equal(one.real, other.real) & _equal(one.imag, other.imag))
    equal = one == other
    return np.asarray(equal | (np.isnan(one) & np.isnan(other)) if kind == "f" else equal)


def _first(expected: Values, served: Values, differ: Values) -> tuple[str, str, str]:
    where = np.argwhere(differ)
    at = tuple(where[0].tolist()) if len(where) and expected.ndim else ()
    count = int(differ.sum())
    values = "value differs" if count == 1 else "values differ"
    place = f", the first at {list(at)} of the chunk" if at else ""
    return f"{count} of {expected.size} {values}{place}", _shown(expected[at]), _shown(served[at])


def _records(expected: Values, served: Values) -> tuple[str, str, str] | None:
    names = expected.dtype.names or ()
    if served.dtype.names != names:
        return "the fields differ", ", ".join(names), ", ".join(served.dtype.names or ("none",))
    for name in names:
        want, have = np.asarray(expected[name]), np.asarray(served[name])
        if want.ndim > have.ndim:
            have = _unnested(have, want)
        found = difference(want, have)
        if found is not None:
            return f"field {name}: {found[0]}", found[1], found[2]
    return None


def _unnested(have: Values, want: Values) -> Values:
    """An array in a record, of which Zarr makes a record of its elements."""
    extra = want.shape[have.ndim :]
    element = have.dtype
    for _ in extra:
        if element.names is None:
            break
        element = element[0]
    if element.names is None and element.kind == "V":  # very many elements are bytes
        element = want.dtype.newbyteorder("<")
    count = math.prod(extra)
    if element.itemsize * count != have.dtype.itemsize:
        return have
    return np.ascontiguousarray(have).reshape(*have.shape, 1).view(element).reshape(want.shape)


def _objects(expected: Values, served: Values, base: str | None) -> tuple[str, str, str] | None:
    differ = np.zeros(expected.shape, dtype=bool)
    for at in np.ndindex(expected.shape):
        differ[at] = not _same_object(expected[at], served[at], base)
    return _first(expected, served, differ) if differ.any() else None


def _same_object(want: Any, have: Any, base: str | None) -> bool:
    if base is not None:
        return _same_sequence(want, have, base)
    if isinstance(want, np.ndarray):
        return isinstance(have, np.ndarray) and difference(want, have) is None
    if isinstance(want, list | tuple) and isinstance(have, list | tuple | np.ndarray):
        return len(want) == len(have) and all(_same_object(w, h, None) for w, h in zip(want, have, strict=True))
    mine, theirs = _bytes(want), _bytes(have)
    # A region is served as its path and the selection in it.
    return mine == theirs or theirs.startswith(mine + b" {")


def _same_sequence(want: Any, have: Any, base: str) -> bool:
    if base in ("string", "reference"):
        listed = loads(str(have), "a list") if not isinstance(have, list) else have
        return [str(v) for v in (() if want is None else want)] == listed
    kind = np.dtype([tuple(f) for f in loads(base, "fields")]) if base.startswith("[") else np.dtype(base)
    wanted = np.asarray([] if want is None else want)
    if not wanted.size:
        return not len(have)
    if len(have) != wanted.size * kind.itemsize:
        return False
    return difference(wanted.reshape(-1), np.frombuffer(have, kind)) is None


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return bytes(value).rstrip(b"\0") if isinstance(value, np.bytes_) else value
    return b"" if value is None else str(value).encode("utf-8", "surrogateescape")


def same_json(want: Any, have: Any) -> bool:
    """Whether an attribute of a document says what that of a file does; an array of one element is that element."""
    want, have = _unpacked(want), _unpacked(have)
    if isinstance(want, list) != isinstance(have, list):
        want, have = (v if isinstance(v, list) else [v] for v in (want, have))
    if isinstance(want, list):
        return len(want) == len(have) and all(same_json(w, h) for w, h in zip(want, have, strict=True))
    if isinstance(want, dict) and isinstance(have, dict):
        return want.keys() == have.keys() and all(same_json(want[name], have[name]) for name in want)
    if isinstance(want, float) and not math.isfinite(want):
        return str(have) in (
            {"NaN", "nan"} if math.isnan(want) else {"Infinity" if want > 0 else "-Infinity", str(want)}
        )
    if isinstance(want, bytes):
        return isinstance(have, str) and have in _texts(want)
    if isinstance(want, str) and isinstance(have, str):
        return want == have or have in _texts(want.encode("utf-8", "surrogateescape"))
    if isinstance(want, str) != isinstance(have, str):
        return False
    return bool(want == have)


def _texts(raw: bytes) -> Sequence[str]:
    """Characters as text: UTF-8, or Latin-1 of old files; NULs end them, or are left out."""
    found = []
    for form in (raw, raw.partition(b"\0")[0], raw.replace(b"\0", b"")):
        for encoding in ("utf-8", "latin-1"):
            try:
                found.append(form.decode(encoding))
            except UnicodeDecodeError:
                continue
            break
    return found


def _unpacked(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    elif isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, tuple):
        value = list(value)
    while isinstance(value, list) and len(value) == 1:
        value = _unpacked(value[0])
    return value


def _shown(value: Any) -> str:
    text = repr(value.item() if isinstance(value, np.generic) and value.dtype.names is None else value)
    return text if len(text) <= 120 else text[:117] + "..."
