"""HDF5 attributes -> JSON values, with the numpy types that JSON does not keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from h5py import h5a, h5d, h5g, h5r, h5s, h5t

from refindex.errors import UnsupportedError
from refindex.model.zarr_v3 import json_value
from refindex.scan.cf import Attributes
from refindex.scan.hdf5.plain import PlainFile
from refindex.scan.hdf5.plain_attributes import NUMBERS, Messages, heap_texts, text

HIDDEN = frozenset(
    {
        b"CLASS",
        b"DIMENSION_LABELS",
        b"DIMENSION_LIST",
        b"REFERENCE_LIST",
        b"_NCProperties",
        b"_Netcdf4Coordinates",
        b"_Netcdf4Dimid",
        b"_nc3_strict",
    }
)
"""Book-keeping of HDF5 dimension scales and of netCDF-4, which netCDF hides too. ``NAME`` is hidden on scales."""


def names(obj: h5g.GroupID | h5d.DatasetID) -> list[bytes]:
    """Attribute names, sorted, as libhdf5 lists them by default."""
    found: list[bytes] = []

    def visit(name: bytes, *_: Any) -> None:
        found.append(name)

    h5a.iterate(obj, visit)
    return found


@dataclass(slots=True, kw_only=True)
class AttributesRead(Attributes):
    """Attributes, and what is equal for objects that have the same ones; None if that is not known."""

    alike: tuple[Any, ...] | None = None


def read(
    obj: h5g.GroupID | h5d.DatasetID,
    *,
    is_scale: bool = False,
    messages: Messages | None = None,
    plain: PlainFile | None = None,
) -> AttributesRead:
    """All attributes of a group or dataset that are data, not book-keeping.

    ``messages`` are what is told of them without libhdf5, and ``plain`` is the file that they refer to.
    """
    result = AttributesRead()
    if messages is None or plain is None:
        _read(obj, names(obj), result, is_scale=is_scale)
        return result
    alike: list[Any] | None = []
    for raw in sorted(messages):  # as libhdf5 lists them
        if raw in HIDDEN or (is_scale and raw == b"NAME"):
            continue
        message, known = messages[raw]
        value = heap_texts(message, plain) if known is None else known
        if value is None or not message.text:
            _read(obj, (raw,), result, is_scale=is_scale)
            alike = None
            continue
        if value.changed:
            result.notes.append(_CHANGED.format(message.text))
        elif value.dtype is not None:
            result.types[message.text] = value.dtype
        result.values[message.text] = value.copy()
        if alike is not None:
            # Of strings in a heap, the message says only where they are.
            alike.append(message.body if known is not None else (raw, str(value.value)))
    result.alike = None if alike is None else tuple(alike)
    return result


_CHANGED = "attribute {!r}: JSON has no NaN or infinity; kept as text"


def _read(obj: h5g.GroupID | h5d.DatasetID, raw_names: Iterable[bytes], result: Attributes, *, is_scale: bool) -> None:
    for raw in raw_names:
        if raw in HIDDEN or (is_scale and raw == b"NAME"):
            continue
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            result.notes.append(f"attribute {raw!r}: its name is not UTF-8; left out")
            continue
        try:
            value, dtype = read_value(h5a.open(obj, raw))
        except UnsupportedError as error:
            result.notes.append(f"attribute {name!r}: {error}; left out")
            continue
        except (OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            result.notes.append(f"attribute {name!r}: libhdf5 cannot read it ({error}); left out")
            continue
        value, changed = json_value(value)
        if changed:
            result.notes.append(_CHANGED.format(name))
        elif dtype is not None:
            result.types[name] = dtype
        result.values[name] = value


def read_value(attribute: h5a.AttrID) -> tuple[Any, str | None]:
    """One attribute as a Python value, and the numpy dtype if it is numeric.

    An array of one element becomes a scalar, as netCDF presents it.

    Raises
    ------
    UnsupportedError
        If its type has no JSON form.
    """
    datatype = attribute.get_type()
    kind = datatype.get_class()
    found = _single(attribute, datatype, kind)
    if found is not None:
        return found
    space = attribute.get_space()
    if space.get_simple_extent_type() == h5s.NULL:
        return ("" if kind == h5t.STRING else []), None
    shape: tuple[int, ...] = space.shape
    if kind == h5t.STRING:
        return _shaped(_texts(attribute, datatype, shape), shape), None
    if kind == h5t.REFERENCE:
        return _shaped(_paths(attribute, shape), shape), None
    if kind == h5t.VLEN:
        return _shaped(list(_sequences(attribute, datatype, shape)), shape), None
    dtype = datatype.dtype
    if dtype.kind not in "biufc" or dtype.itemsize > 16 or dtype.str[1:] == "f16":
        raise UnsupportedError(f"type {dtype} has no JSON form")
    if dtype.kind == "c":
        raise UnsupportedError("complex numbers have no JSON form")
    # An array datatype adds its dimensions to those of the dataspace.
    out = np.empty(shape, dtype=dtype)
    attribute.read(out)
    native = out.astype(out.dtype.newbyteorder("="))
    value = native.item() if native.size == 1 else native.tolist()
    return value, native.dtype.name


_PLAIN = tuple((kind, np.dtype(code)) for kind, code in NUMBERS)


def _single(attribute: h5a.AttrID, datatype: h5t.TypeID, kind: int) -> tuple[Any, str | None] | None:
    """One number of a plain type, or one string of fixed size: what most attributes are, read without conversion.

    None for all others. This takes a third of the time, which adds up where small files have many attributes.
    """
    size = datatype.get_size()
    try:
        if attribute.get_storage_size() != size:
            return None
    except RuntimeError:  # no bytes at all, which h5py takes for a failure
        return None
    if kind == h5t.STRING:
        if datatype.is_variable_str() or datatype.get_strpad() == h5t.STR_SPACEPAD:
            return None
        raw = np.empty((), dtype=f"S{size}")
        attribute.read(raw, mtype=datatype)
        return text(raw.item().partition(b"\0")[0]), None
    if kind in (h5t.INTEGER, h5t.FLOAT):
        for plain, dtype in _PLAIN:
            if datatype.equal(plain):
                out = np.empty((), dtype=dtype)
                attribute.read(out, mtype=plain)
                return out.item(), dtype.name
    return None


def _shaped(flat: list[Any], shape: tuple[int, ...]) -> Any:
    if len(flat) == 1:
        return flat[0]
    if len(shape) <= 1:
        return flat
    out = np.empty(len(flat), dtype=object)
    out[:] = flat
    return out.reshape(shape).tolist()


def _texts(attribute: h5a.AttrID, datatype: h5t.TypeStringID, shape: tuple[int, ...]) -> list[str]:
    if datatype.is_variable_str():
        out = np.empty(shape, dtype=object)
        memory = h5t.py_create(np.dtype(object, metadata={"vlen": bytes}))
        attribute.read(out, mtype=memory)
        return [text(v) if isinstance(v, bytes) else "" for v in out.reshape(-1)]
    size = datatype.get_size()
    fixed = np.empty(shape, dtype=f"S{size}")
    attribute.read(fixed)
    return [text(v.partition(b"\0")[0]) for v in fixed.reshape(-1).tolist()]


def _paths(attribute: h5a.AttrID, shape: tuple[int, ...]) -> list[str]:
    out = np.empty(shape, dtype=attribute.dtype)
    attribute.read(out)
    paths = []
    for reference in out.reshape(-1):
        target = h5r.get_name(reference, attribute) if reference else None
        paths.append(text(target) if target else "")
    return paths


def _sequences(attribute: h5a.AttrID, datatype: h5t.TypeVlenID, shape: tuple[int, ...]) -> Iterator[list[Any]]:
    base = datatype.get_super()
    if base.get_class() not in (h5t.INTEGER, h5t.FLOAT, h5t.ENUM):
        raise UnsupportedError("variable-length sequences of other than numbers have no JSON form")
    out = np.empty(shape, dtype=object)
    attribute.read(out, mtype=h5t.py_create(attribute.dtype))
    for sequence in out.reshape(-1):
        yield [] if sequence is None else np.asarray(sequence).tolist()
