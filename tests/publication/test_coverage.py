"""What the coordinates reach over: boxes, also over the antimeridian, and times of all calendars."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refindex
from refindex.publication.coverage import Coverage, coverage_of, longitudes, rfc3339
from refindex.publication.stac import geometry


@given(
    st.integers(-180, 180),
    st.integers(0, 357),
    st.sampled_from([0, 360, -360, 720]),
    st.integers(0, 100),
)
def test_a_regular_range_in_any_turn(west: int, width: int, turn: int, seed: int) -> None:
    """Whole degrees, but for a gap of a few, shuffled and wrapped: the box is where it began and ended."""
    values = np.arange(west, west + width + 1, dtype=float)
    shuffled = np.random.default_rng(seed).permutation(values)
    found = longitudes(np.where(shuffled % 2, shuffled, shuffled + turn))
    assert [
        round((value - wanted) % 360, 4) % 360 for value, wanted in zip(found, (west, west + width), strict=True)
    ] == [
        0,
        0,
    ]
    assert all(-180 <= value <= 180 for value in found)


@pytest.mark.parametrize(
    "values",
    [np.arange(0, 360, 0.25, dtype="f4"), np.arange(-180, 181, 2.5), np.linspace(0.5, 359.5, 360), [0, 120, 240]],
)
def test_all_around(values: Any) -> None:
    assert longitudes(np.asarray(values, dtype=float)) == (-180, 180)


def test_few_longitudes() -> None:
    assert longitudes(np.array([200.0])) == (-160, -160)
    assert longitudes(np.array([0.0, 180.0])) == (0, 180)
    assert longitudes(np.array([350.0, 10.0])) == (-10, 10)


def test_outlines() -> None:
    assert geometry(None) is None
    one = geometry((-10, -5, 10, 5))
    assert one == {"type": "Polygon", "coordinates": [[[-10, -5], [10, -5], [10, 5], [-10, 5], [-10, -5]]]}
    two = geometry((170, -5, -170, 5))
    assert two is not None
    assert two["type"] == "MultiPolygon"
    for (ring,) in two["coordinates"]:
        assert ring[0] == ring[-1]
        # Counterclockwise (RFC 7946, 3.1.6), by the shoelace formula.
        assert sum(x * w - y * v for (x, y), (v, w) in pairwise(ring)) > 0
    spans = [(min(x for x, _ in ring), max(x for x, _ in ring)) for (ring,) in two["coordinates"]]
    assert spans == [(170, 180), (-180, -170)]


@given(
    st.integers(-(2**33), 2**37),  # from 1697 to 6325
    st.sampled_from([1, 60, 3600, 86400]),
    st.sampled_from(["standard", "gregorian", "proleptic_gregorian"]),
)
def test_real_times(second: int, step: int, calendar: str) -> None:
    start = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    unit = {1: "seconds", 60: "minutes", 3600: "hours", 86400: "days"}[step]
    found = rfc3339(17, f"{unit} since {start:%Y-%m-%d %H:%M:%S}", calendar)
    assert found == (start + timedelta(seconds=17 * step)).strftime("%Y-%m-%dT%H:%M:%SZ")


@pytest.mark.parametrize(
    ("value", "units", "calendar", "expected"),
    [
        (0, "days since 1582-10-04", "standard", "1582-10-14T00:00:00Z"),  # Julian until then
        (1, "days since 1582-10-04", "standard", "1582-10-15T00:00:00Z"),
        (0, "days since 1900-03-01", "julian", "1900-03-14T00:00:00Z"),
        (59, "days since 2001-01-01", "360_day", "2001-02-28T00:00:00Z"),  # the 30th of February
        (59, "days since 2004-01-01", "noleap", "2004-03-01T00:00:00Z"),
        (59, "days since 2001-01-01", "all_leap", "2001-02-28T00:00:00Z"),  # the 29th
        (0.5, "days since 0001-01-01", "proleptic_gregorian", "0001-01-01T12:00:00Z"),
    ],
)
def test_calendars(value: float, units: str, calendar: str, expected: str) -> None:
    assert rfc3339(value, units, calendar) == expected


@pytest.mark.parametrize("units", ["days since 12000-01-01", "fortnights since 2000-01-01", "days since yesterday"])
def test_times_that_have_no_place(units: str) -> None:
    with pytest.raises(ValueError):
        rfc3339(0, units, "noleap")


def make(path: Path, axes: dict[str, tuple[Any, dict[str, Any]]]) -> Coverage:
    with netCDF4.Dataset(path, "w") as file:
        for name, (values, attributes) in axes.items():
            values = np.asarray(values)
            dims = [f"{name}" if n == 0 else f"{name}_{n}" for n in range(values.ndim)]
            for dim, length in zip(dims, values.shape, strict=True):
                file.createDimension(dim, length)
            fill = attributes.pop("_FillValue", None)
            variable = file.createVariable(name, values.dtype, dims, fill_value=fill)
            variable.set_auto_maskandscale(False)
            variable.setncatts(attributes)
            variable[...] = values
    with refindex.open(path) as archive:
        return coverage_of(archive)


def test_of_a_file(tmp_path: Path) -> None:
    found = make(
        tmp_path / "a.nc",
        {
            "y": (
                np.array([-9000, 0, 4500, -32767], "i2"),
                {"standard_name": "latitude", "scale_factor": 0.01, "_FillValue": -32767},
            ),
            "lon": ([170.0, 180.0, 190.0], {"units": "degrees_east"}),
            "time": ([0, 1, 31], {"units": "days since 2000-01-01"}),
            "lev": ([1000.0, 10.0], {"units": "hPa", "positive": "down"}),
            "forecast": ([0.0, 999.0], {"units": "hours since 1990-01-01", "standard_name": "forecast_reference_time"}),
            "grid_latitude": ([95.0], {"units": "degrees", "standard_name": "grid_latitude"}),
        },
    )
    assert found.bbox == (170, -90, -170, 45)
    assert (found.start, found.end) == ("2000-01-01T00:00:00Z", "2000-02-01T00:00:00Z")
    assert found.axes["lev"].extent == (10, 1000)
    assert found.axes["y"].extent == (-90, 45)
    assert set(found.axes) == {"y", "lon", "time", "lev"}
    assert found.notes == ()


def test_without_coordinates(tmp_path: Path) -> None:
    found = make(tmp_path / "a.nc", {"lat": ([1.0, 2.0], {"units": "degrees_north"}), "x": ([1.0], {"units": "m"})})
    assert (found.bbox, found.start, found.end) == (None, None, None)
    found = make(
        tmp_path / "b.nc",
        {"lat": ([1.0, 200.0], {"units": "degrees_north"}), "lon": ([1.0], {"units": "degrees_east"})},
    )
    assert found.bbox is None


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    months = make(tmp_path / "a.nc", {"time": ([0, 1], {"units": "months since 2000-01-01"})})
    assert months.start is None
    assert "months since" in months.notes[0]
    model = make(tmp_path / "b.nc", {"time": ([0, 1], {"units": "days since 2000-01-01", "calendar": "360_day"})})
    assert (model.start, model.end) == ("2000-01-01T00:00:00Z", "2000-01-02T00:00:00Z")
    assert "calendar 360_day" in model.notes[0]
    with netCDF4.Dataset(tmp_path / "c.nc", "w") as file:
        file.createDimension("r", 400)
        file.createDimension("c", 400)
        for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
            variable = file.createVariable(name, "f8", ("r", "c"))
            variable.units = units
            variable[:] = 1
    with refindex.open(tmp_path / "c.nc") as archive:
        found = coverage_of(archive)
    assert found.bbox is None
    assert found.notes == (
        "/lat lies in the sources and was not looked at",
        "/lon lies in the sources and was not looked at",
    )


def test_utc() -> None:
    assert datetime.fromisoformat(rfc3339(0, "hours since 2000-01-01 06:00:00 +06:00", "standard")) == datetime(
        2000, 1, 1, tzinfo=UTC
    )
