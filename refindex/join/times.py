"""Times that files count from different moments, or in different units, on one reference.

What is exact stays exact: times become whole numbers of the coarsest unit that holds all of them.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import cftime
import numpy as np

from refindex.errors import UnsupportedError

_UNITS = {
    "days": ("days", "day", "d"),
    "hours": ("hours", "hour", "hrs", "hr", "h"),
    "minutes": ("minutes", "minute", "mins", "min"),
    "seconds": ("seconds", "second", "secs", "sec", "s"),
    "milliseconds": ("milliseconds", "millisecond", "msecs", "msec", "millis", "ms"),
    "microseconds": ("microseconds", "microsecond", "microsecs", "microsec"),
    "nanoseconds": ("nanoseconds", "nanosecond"),
}
_NAMES = {name: unit for unit, names in _UNITS.items() for name in names}
_NANOSECONDS = {
    "days": 86_400_000_000_000,
    "hours": 3_600_000_000_000,
    "minutes": 60_000_000_000,
    "seconds": 1_000_000_000,
    "milliseconds": 1_000_000,
    "microseconds": 1_000,
    "nanoseconds": 1,
}
_STANDARD = ("standard", "gregorian", "proleptic_gregorian")
_REFORM = "1582-10-15"
_SHORT_ZONE = re.compile(r"(:[\d.]+\s*[+-])(\d(?::\d\d)?)$")
"""A time zone as ``-6:00``, as in CF conventions 4.4; cftime takes no notice of one whose hour has one digit."""


@dataclass(frozen=True, slots=True)
class TimeUnits:
    """``units`` and ``calendar`` of a variable (CF conventions 4.4)."""

    units: str
    calendar: str

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> TimeUnits | None:
        """Those of attributes, or None if the values are not times since a moment."""
        units = attributes.get("units")
        if not isinstance(units, str) or " since " not in units:
            return None
        calendar = attributes.get("calendar", "standard")
        return cls(units, str(calendar).lower())

    @property
    def unit(self) -> str:
        """Name of the unit in the plural.

        Raises
        ------
        UnsupportedError
            If it has no fixed length (months, years) or is not known.
        """
        name = self.units.split(" since ")[0].strip().lower()
        if name not in _NAMES:
            raise UnsupportedError(f"time unit {name!r} has no fixed length that refindex knows")
        return _NAMES[name]

    @property
    def reference(self) -> str:
        """The moment that times are counted from, as it is written."""
        return self.units.split(" since ", 1)[1].strip()

    def same_calendar(self, other: TimeUnits) -> bool:
        """Whether dates of both are comparable: the same calendar, or two that agree since 1582."""
        if self.calendar == other.calendar:
            return True
        return self.calendar in _STANDARD and other.calendar in _STANDARD


@dataclass(frozen=True, kw_only=True)
class CommonTimes:
    """Times of several variables on one reference.

    Parameters
    ----------
    target:
        Units and calendar of the result.
    dtype:
        Of the result.
    values:
        One array for each of those given.
    """

    target: TimeUnits
    dtype: np.dtype[Any]
    values: list[np.ndarray[Any, Any]]


def unify(kinds: Sequence[TimeUnits], values: Sequence[np.ndarray[Any, Any]]) -> CommonTimes:
    """Times on the reference of the first, in its unit and type if they are whole numbers of it.

    Raises
    ------
    UnsupportedError
        If a unit has no fixed length, calendars differ, values are missing, or no 64-bit integer holds them.
    """
    first = kinds[0]
    for kind in kinds:
        if not first.same_calendar(kind):
            raise UnsupportedError(f"calendars {first.calendar!r} and {kind.calendar!r} have different dates")
    if len({kind.calendar for kind in kinds}) > 1:
        _check_after_reform(kinds, values)
    shifts = {kind: _shift(kind, first) for kind in dict.fromkeys(kinds)}
    counts = [_nanoseconds(kind, raw, shifts[kind]) for kind, raw in zip(kinds, values, strict=True)]
    unit = _coarsest(first.unit, counts)
    step = _NANOSECONDS[unit]
    whole = [_divide(count, step) for count in counts]
    dtype = np.dtype(values[0].dtype).newbyteorder("=")
    target = first
    if unit != first.unit or not _holds(dtype, whole):
        dtype = np.dtype(np.int64)
        target = TimeUnits(f"{unit} since {first.reference}", first.calendar)
        if not _holds(dtype, whole):
            raise UnsupportedError(f"times in {unit} since {first.reference} do not fit into 64 bits")
    return CommonTimes(target=target, dtype=dtype, values=[w.astype(dtype) for w in whole])


def _check_after_reform(kinds: Sequence[TimeUnits], values: Sequence[np.ndarray[Any, Any]]) -> None:
    """Before October 1582 the standard calendar is the Julian one, and the same numbers are other days."""
    for kind, raw in zip(kinds, values, strict=True):
        reform = cftime.datetime(1582, 10, 15, calendar=kind.calendar)
        start = _moment(kind)
        limit = _count(reform - start) / _NANOSECONDS[kind.unit]
        if start < reform or (raw.size and float(np.min(raw)) < limit):
            raise UnsupportedError(
                f"calendars {kinds[0].calendar!r} and {kind.calendar!r} differ before {_REFORM}, which "
                f"{kind.units!r} reaches"
            )


def _shift(kind: TimeUnits, first: TimeUnits) -> int:
    """Nanoseconds from the first reference to another."""
    try:
        start, origin = _moment(kind), _moment(first)
        if kind.calendar != first.calendar:
            parts = (start.year, start.month, start.day, start.hour, start.minute, start.second, start.microsecond)
            start = cftime.datetime(*parts, calendar=first.calendar)
        return _count(start - origin)
    except (ValueError, TypeError, OverflowError) as error:
        raise UnsupportedError(f"cannot read time units {kind.units!r} ({kind.calendar}): {error}") from error


def _moment(kind: TimeUnits) -> cftime.datetime:
    """The moment that times are counted from."""
    reference = kind.reference
    if kind.calendar in _STANDARD:
        reference = _SHORT_ZONE.sub(r"\g<1>0\2", reference)
    # Not every unit that xarray reads is known to cftime: it does not have nanoseconds.
    return cftime.num2date(0, f"days since {reference}", calendar=kind.calendar)


def _count(apart: timedelta) -> int:
    """Nanoseconds of a difference."""
    return ((apart.days * 86_400 + apart.seconds) * 1_000_000 + apart.microseconds) * 1_000


def _nanoseconds(kind: TimeUnits, raw: np.ndarray[Any, Any], shift: int) -> list[Any] | np.ndarray[Any, Any]:
    """Nanoseconds since the first reference, exactly: int64 where they fit, else Python integers as objects."""
    values = raw.astype(raw.dtype.newbyteorder("="))
    if values.dtype.kind == "f":
        if not np.all(np.isfinite(values)):
            raise UnsupportedError("times are missing (NaN), and cannot be counted from another moment")
        if np.all(values == np.round(values)) and (not values.size or float(np.max(np.abs(values))) < 2**53):
            values = values.astype(np.int64)
        else:
            return _fractional(kind, values, shift)
    if values.dtype.kind not in "iu":
        raise UnsupportedError(f"times of type {values.dtype} cannot be counted from another moment")
    step = _NANOSECONDS[kind.unit]
    most = int(np.max(np.abs(values.astype(object)))) if values.size else 0
    if most * step + abs(shift) < 2**62:
        return values.astype(np.int64) * step + shift
    return values.astype(object) * step + shift


def _fractional(kind: TimeUnits, values: np.ndarray[Any, Any], shift: int) -> np.ndarray[Any, Any]:
    """Fractions of a unit as xarray rounds them, so that the dates are those that each file has by itself."""
    from xarray.coding.times import decode_cf_datetime  # imported where it is needed: it takes a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dates that numpy does not have are welcome as those of cftime
        decoded = decode_cf_datetime(values, f"{kind.unit} since {kind.reference}", kind.calendar)
    origin = _moment(kind)
    if decoded.dtype.kind == "M":
        since_1970 = decoded.astype("M8[ns]").astype(np.int64).astype(object)
        return since_1970 + (_count(cftime.datetime(1970, 1, 1, calendar=kind.calendar) - origin) + shift)
    exact = [_count(moment - origin) + shift for moment in decoded.reshape(-1)]
    return np.array(exact, dtype=object).reshape(values.shape)


def _coarsest(preferred: str, counts: Sequence[Any]) -> str:
    """The unit itself if all times are whole numbers of it, else the coarsest finer one."""
    units = list(_NANOSECONDS)
    for unit in units[units.index(preferred) :]:
        if all(not np.any(np.asarray(count) % _NANOSECONDS[unit]) for count in counts):
            return unit
    return "nanoseconds"


def _divide(count: Any, step: int) -> np.ndarray[Any, Any]:
    array = np.asarray(count)
    whole: np.ndarray[Any, Any] = array // step
    return whole


def _holds(dtype: np.dtype[Any], whole: Sequence[np.ndarray[Any, Any]]) -> bool:
    """Whether a type holds whole numbers exactly."""
    most = max((int(np.max(w)) for w in whole if w.size), default=0)
    least = min((int(np.min(w)) for w in whole if w.size), default=0)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return int(limits.min) <= least and most <= int(limits.max)
    if dtype.kind == "f":
        return bool(max(most, -least) <= 2 ** (np.finfo(dtype).nmant + 1))
    return False


def time_label(attributes: Mapping[str, Any]) -> Callable[[Any], str]:
    """How a coordinate is shown in messages: as a date, if its attributes say that it is one."""
    kind = TimeUnits.of(dict(attributes))

    def label(value: Any) -> str:
        if kind is not None:
            with contextlib.suppress(ValueError, TypeError, OverflowError):
                return str(cftime.num2date(value, kind.units, calendar=kind.calendar).isoformat())
        return str(value)

    return label
