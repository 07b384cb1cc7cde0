"""What of space and time the coordinates of an archive reach over."""

from __future__ import annotations

import calendar as calendars
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import cftime
import numpy as np
import numpy.typing as npt

from refindex.archive import Archive
from refindex.model.manifest import Node

type Values = npt.NDArray[np.float64]

_LATITUDES = ("degrees_north", "degree_north", "degree_n", "degrees_n")
_LONGITUDES = ("degrees_east", "degree_east", "degree_e", "degrees_e")
_VERTICAL = ("height", "altitude", "depth", "air_pressure", "atmosphere_", "ocean_", "model_level", "geopotential")
_PRESSURE = ("pa", "hpa", "bar", "mbar", "millibar", "decibar", "dbar")
_REAL = ("standard", "gregorian", "proleptic_gregorian", "julian")
"""Calendars whose dates are moments, whatever they are called; the others are of made-up years."""

_MOST = 1 << 24
"""Values of a coordinate that are looked at."""

_ROUND = 1.5
"""The largest gap between longitudes, in usual ones, up to which they go all around."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A coordinate that says where values lie.

    Parameters
    ----------
    path:
        Of its array.
    kind:
        ``x``, ``y``, ``z`` or ``t``.
    units:
        As its attributes have them.
    values:
        All of them but the missing ones, as numbers of the units.
    calendar:
        Of times.
    """

    path: str
    kind: str
    units: str
    values: Values = field(repr=False)
    calendar: str = ""
    positive: str = ""

    @property
    def extent(self) -> tuple[float, float]:
        """Least and greatest value."""
        return float(self.values.min()), float(self.values.max())


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """What the coordinates reach over, from centre to centre of cells.

    Parameters
    ----------
    axes:
        By path.
    bbox:
        West, south, east and north in degrees, longitudes from -180 to 180; west is greater than east where it goes
        over the antimeridian. None without latitudes and longitudes.
    start, end:
        First and last time as RFC 3339 has them; None without times.
    notes:
        What a reader should know of it.
    """

    axes: Mapping[str, Axis]
    bbox: tuple[float, float, float, float] | None = None
    start: str | None = None
    end: str | None = None
    notes: tuple[str, ...] = ()


def kind_of(node: Node) -> str | None:
    """Which axis an array is a coordinate of (CF conventions, chapter 4): ``x``, ``y``, ``z``, ``t``, or None."""
    attributes = {k: v.strip() for k, v in node.attributes.items() if isinstance(v, str)}
    name, units = attributes.get("standard_name", ""), attributes.get("units", "")
    own = node.path.rpartition("/")[2] in node.dims
    if " since " in units:
        return "t" if name in ("time", "") and (own or name == "time" or attributes.get("axis") == "T") else None
    if name == "latitude" or (not name and units.lower() in _LATITUDES and (own or len(node.shape) < 3)):
        return "y"
    if name == "longitude" or (not name and units.lower() in _LONGITUDES and (own or len(node.shape) < 3)):
        return "x"
    vertical = name.startswith(_VERTICAL) or attributes.get("axis") == "Z" or "positive" in attributes
    return "z" if own and (vertical or units.lower() in _PRESSURE) else None


def coverage_of(archive: Archive) -> Coverage:
    """What the coordinates of an archive reach over, as far as their values are in it: no source is read."""
    axes: dict[str, Axis] = {}
    notes: list[str] = []
    for path, node in archive.arrays.items():
        kind = kind_of(node)
        if kind is None or node.dtype is None or node.dtype.kind not in "iuf":
            continue
        if node.grid.size > _MOST or int(np.prod(node.shape)) > _MOST or not archive.find(path).is_inline:
            notes.append(f"/{path} lies in the sources and was not looked at")
            continue
        values = _values(archive, path)
        if values.size:
            attributes = node.attributes
            axes[path] = Axis(
                path=path,
                kind=kind,
                units=str(attributes.get("units", "")),
                values=values,
                calendar=str(attributes.get("calendar", "standard")).lower() if kind == "t" else "",
                positive=str(attributes.get("positive", "")),
            )
    start, end, said = _times([axis for axis in axes.values() if axis.kind == "t"])
    return Coverage(axes=axes, bbox=_box(axes.values()), start=start, end=end, notes=(*notes, *said))


def _values(archive: Archive, path: str) -> Values:
    """The values of a coordinate, unpacked, without missing ones."""
    group, _, name = path.rpartition("/")
    others = [p.rpartition("/")[2] for p in archive.arrays if p.rpartition("/")[0] == group and p != path]
    dataset = archive.to_xarray(group, decode_times=False, decode_timedelta=False, drop_variables=others)
    values = np.asarray(dataset[name].values, dtype=np.float64).reshape(-1)
    found: Values = values[np.isfinite(values)]
    return found


def _box(axes: Iterable[Axis]) -> tuple[float, float, float, float] | None:
    axes = list(axes)
    lat = [axis.values for axis in axes if axis.kind == "y"]
    lon = [axis.values for axis in axes if axis.kind == "x"]
    if not lat or not lon:
        return None
    south, north = float(min(v.min() for v in lat)), float(max(v.max() for v in lat))
    if south < -90.01 or north > 90.01:  # not degrees, whatever the attributes say
        return None
    west, east = longitudes(np.concatenate(lon))
    return west, max(south, -90.0), east, min(north, 90.0)


def longitudes(values: Values) -> tuple[float, float]:
    """West and east of longitudes in any turn (-180 to 180, 0 to 360): the widest gap is what they do not reach.

    Returns
    -------
    Both from -180 to 180. All of it if they go around; west is greater than east over the antimeridian.
    """
    around = np.unique(np.round(np.mod(values, 360.0), 6) % 360.0)
    gaps = np.diff(around, append=around[0] + 360.0)
    widest = len(gaps) - 1 - int(np.argmax(gaps[::-1]))
    if len(around) > 2 and gaps[widest] <= _ROUND * float(np.median(gaps)):
        return -180.0, 180.0
    west, east = float(around[(widest + 1) % len(around)]), float(around[widest])
    west, east = (value - 360.0 if value > 180.0 else value for value in (west, east))
    # 180 is both ends of the map.
    if west == 180.0 and east < west:
        west = -180.0
    return west, east


def _times(axes: Iterable[Axis]) -> tuple[str | None, str | None, list[str]]:
    moments: list[str] = []
    notes: list[str] = []
    for axis in axes:
        try:
            both = [rfc3339(value, axis.units, axis.calendar) for value in axis.extent]
        except (ValueError, TypeError, OverflowError) as error:
            notes.append(f"the times of /{axis.path} ({axis.units}, calendar {axis.calendar}) are left out: {error}")
            continue
        moments += both
        if axis.calendar not in _REAL:
            notes.append(
                f"the times of /{axis.path} are of the calendar {axis.calendar}: dates are written as that calendar "
                "has them, and days that no real month has as the last of their month"
            )
    return min(moments, default=None), max(moments, default=None), notes


def rfc3339(value: float, units: str, calendar: str) -> str:
    """A time as RFC 3339 has it, to the second; of a calendar that is not real, the date of the same name.

    Raises
    ------
    ValueError
        If the units cannot be read, or the year is not from 1 to 9999.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of calendars that begin at no year 0
        moment = cftime.num2date(value, units, calendar=calendar)
        if calendar in _REAL and calendar != "proleptic_gregorian":
            # The same moment in the calendar that RFC 3339 is in: dates before October 1582 are others there.
            number = cftime.date2num(moment, "microseconds since 1970-01-01", calendar=moment.calendar)
            epoch = cftime.datetime(1970, 1, 1, calendar=moment.calendar).toordinal()
            real = cftime.datetime(1970, 1, 1, calendar="proleptic_gregorian").toordinal()
            shift = (epoch - real) * 86_400_000_000
            moment = cftime.num2date(
                int(number) + shift, "microseconds since 1970-01-01", calendar="proleptic_gregorian"
            )
    if not 1 <= moment.year <= 9999:
        raise ValueError(f"the year {moment.year} has no place in RFC 3339")
    day = min(moment.day, calendars.monthrange(moment.year, moment.month)[1])
    seconds = f"{moment.hour:02d}:{moment.minute:02d}:{moment.second:02d}"
    return f"{moment.year:04d}-{moment.month:02d}-{day:02d}T{seconds}Z"


def text_of(value: Any) -> str:
    """A number for people: as few digits as tell it from its neighbours in single precision."""
    return f"{float(value):.7g}"
