"""How the values of one file become those of an archive: as they are, as a wider type, unpacked, or as other times.

Everything here is said by xarray's decoding and numpy's types, not by what the join does.
"""

from __future__ import annotations

import base64
import contextlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import xarray as xr

from refindex.model.dtype import fill_value_from_json
from refindex.model.manifest import Node
from refindex.verification.comparison import alike, difference
from refindex.verification.originals import Original, OriginalArray, Values

type Mode = Literal["stored", "promoted", "unpacked", "times"]
type Units = tuple[str, str]

PACKING = ("scale_factor", "add_offset", "_FillValue", "missing_value", "_Unsigned")
"""Attributes that say how stored numbers become values (CF conventions 8.1 and 2.5.1)."""

_BOUNDS = ("bounds", "climatology")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """How an original's values become those of an array.

    Parameters
    ----------
    mode:
        What is done with them.
    dtype:
        Of the array; None for values of variable length.
    attributes:
        Of the original, numbers with the types that they have there.
    units, served_units:
        Units and calendar of the original's times and of the archive's.
    base:
        Type of the elements of sequences of variable length.
    """

    mode: Mode
    dtype: np.dtype[Any] | None
    attributes: Mapping[str, Any]
    units: Units | None = None
    served_units: Units | None = None
    base: str | None = None

    def differ(self, values: Values, served: Values) -> tuple[str, str, str] | None:
        """How served values differ from what an original's become: in words, expected, got; None if they do not."""
        if self.mode == "times" and self.units is not None and self.served_units is not None:
            if values.shape != served.shape:
                return "the shape of the values differs", str(values.shape), str(served.shape)
            return difference(_moments(values, self.units), _moments(served, self.served_units))
        if self.mode == "unpacked":
            values = unpacked(values, self.attributes)
        if self.mode in ("promoted", "unpacked") and self.dtype is not None and values.dtype.kind != "O":
            with np.errstate(all="ignore"):
                wider = values.astype(self.dtype)
                back = wider.astype(values.dtype)
            if self.mode == "promoted" and difference(values, back) is not None:
                return f"the type {self.dtype} does not hold all values of the original", str(values.dtype), ""
            values = wider
        return difference(values, served, self.base)


def expected(
    node: Node, nodes: Mapping[str, Node], original: Original, array: OriginalArray, *, joined: bool
) -> Expected:
    """How the values of an original become those of an array; only where files were ``joined`` are they changed."""
    base = node.attributes.get("vlen_base_type")
    own = {name: _scalar(value) for name, value in array.attributes.items()}
    plain = Expected(
        mode="stored", dtype=node.dtype, attributes=own, base=base if node.dtype is None and base else None
    )
    if not joined or node.dtype is None or array.dtype is None:
        return plain
    units, served_units = _units_of(array, node, nodes, original)
    same_type = alike(node.dtype, array.dtype)
    if units is not None and served_units is not None and (units != served_units or not same_type):
        return Expected(mode="times", dtype=node.dtype, attributes=own, units=units, served_units=served_units)
    if array.dtype.kind in "iuf" and node.dtype.kind == "f" and units is None:
        lost = [name for name in PACKING if name in own and name not in node.attributes]
        if lost or any(encoding.packing is not None for encoding in node.encodings):
            return Expected(mode="unpacked", dtype=node.dtype, attributes=own)
    return plain if same_type else Expected(mode="promoted", dtype=node.dtype, attributes=own)


def unpacked(values: Values, attributes: Mapping[str, Any]) -> Values:
    """Stored numbers as xarray decodes them."""
    own = {name: attributes[name] for name in PACKING if name in attributes}
    variable = xr.Variable([f"d{n}" for n in range(values.ndim)], values, own)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # several missing values are welcome
        decoded = xr.conventions.decode_cf_variable("x", variable, decode_times=False, concat_characters=False)
    return np.asarray(decoded.values)


def fills(expected: Expected, node: Node, array: OriginalArray) -> list[Values]:
    """The fill values that an array may have: its original's, or, where files were joined, one that is missing."""
    if node.dtype is None or array.fill is None:
        return []
    own = np.asarray(array.fill)
    if own.dtype.kind == node.dtype.kind == "S":  # of numpy, a scalar is as long as its text
        own = own.astype(node.dtype)
    if expected.mode == "stored":
        return [own]
    missing: list[Values] = [own.astype(node.dtype)] if own.dtype.kind in "biufcS" else [own]
    if expected.mode == "unpacked":
        missing.append(unpacked(own.reshape(1), expected.attributes).astype(node.dtype).reshape(()))
    return missing


def missing_fills(node: Node) -> list[Values]:
    """Values that stand for a place that no file has."""
    found: list[Values] = []
    if node.dtype is None:
        return found
    if node.dtype.kind in "fc":
        found.append(np.asarray(np.nan, dtype=node.dtype))
    if " since " in str(node.attributes.get("units", "")):
        found.append(np.zeros((), dtype=node.dtype))
    declared = node.attributes.get("_FillValue")
    with contextlib.suppress(TypeError, ValueError, OverflowError):  # what is no number of the type stands for nothing
        if isinstance(declared, str) and node.dtype.kind == "f":
            found.append(np.frombuffer(base64.b64decode(declared), "<f8")[0].astype(node.dtype).reshape(()))
        elif declared is not None and node.dtype.kind in "iub":
            found.append(np.asarray(declared, dtype=node.dtype))
    return found


def served_fill(node: Node) -> Any:
    """The fill value that an array declares."""
    if node.dtype is None:
        return node.json["fill_value"]
    return fill_value_from_json(node.dtype, node.json["fill_value"])


def _scalar(value: Any) -> Any:
    """An attribute of one element as a scalar of its type."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _units_of(
    array: OriginalArray, node: Node, nodes: Mapping[str, Node], original: Original
) -> tuple[Units | None, Units | None]:
    """Units of an original's times and of the archive's; bounds have those of their coordinate (CF conventions 7.1)."""
    theirs: Mapping[str, Any] = {}
    ours: Mapping[str, Any] = {}
    group, _, name = node.path.rpartition("/")
    for path, other in nodes.items():
        if path.rpartition("/")[0] != group or not other.is_array:
            continue
        if any(other.attributes.get(attribute) == name for attribute in _BOUNDS):
            above = array.path.rpartition("/")[0]
            coordinate = original.array(f"{above}/{path.rpartition('/')[2]}".lstrip("/"))
            theirs, ours = {} if coordinate is None else coordinate.attributes, other.attributes
            break
    return _units(array.attributes, theirs), _units(node.attributes, ours)


def _units(own: Mapping[str, Any], coordinate: Mapping[str, Any]) -> Units | None:
    units = own.get("units", coordinate.get("units"))
    units = units.decode(errors="replace") if isinstance(units, bytes) else units
    if not isinstance(units, str) or " since " not in units:
        return None
    calendar = own.get("calendar", coordinate.get("calendar", "standard"))
    calendar = calendar.decode(errors="replace") if isinstance(calendar, bytes) else calendar
    return str(units), str(calendar).lower()


def _moments(values: Values, units: Units) -> Values:
    """Times as moments that can be compared across units and calendars: nanoseconds of 1970, or parts of a date."""
    attributes = {"units": units[0], "calendar": units[1]}
    variable = xr.Variable(["t"], np.ascontiguousarray(values).reshape(-1), attributes)
    if not values.size:
        return np.empty(values.shape, dtype=object)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dates that numpy does not have are welcome as those of cftime
        decoded = xr.conventions.decode_cf_variable("t", variable, decode_times=True).values
    out = np.empty(values.size, dtype=object)
    for at, moment in enumerate(decoded.tolist() if decoded.dtype == object else decoded):
        if isinstance(moment, np.datetime64):
            out[at] = str(moment.astype("M8[ns]"))
        else:
            out[at] = f"{moment.isoformat(timespec='microseconds')}000"
    return out.reshape(values.shape)
