"""Times that files count from different moments are the moments that xarray decodes in each file by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import refindex
from refindex.errors import UnsupportedError
from refindex.join.times import TimeUnits, unify
from tests.join.files import Var, decoded, open_manifest, series, write

# What xarray says of calendars that numpy does not have, of the files themselves.
pytestmark = pytest.mark.filterwarnings("ignore:Unable to decode time axis", "ignore:.*standard/Gregorian calendar")


def check(paths: list[Path], *names: str) -> refindex.Manifest:
    manifest = refindex.scan(paths[::-1], workers=1)
    each = [decoded(path) for path in paths]
    with open_manifest(manifest) as actual:
        actual.load()
        for name in names or ("time",):
            wanted = np.concatenate([np.atleast_1d(one[name].values) for one in each])
            assert actual[name].dtype == wanted.dtype, name
            np.testing.assert_array_equal(actual[name].values, wanted, err_msg=name)
    return manifest


def file(path: Path, times: Any, units: str, calendar: str | None = None, **more: Var) -> Path:
    attrs = {"units": units} | ({"calendar": calendar} if calendar else {})
    return write(path, {"time": Var(dims=("time",), values=np.asarray(times), attrs=attrs), **more})


@pytest.mark.parametrize("calendar", ["standard", "proleptic_gregorian", "noleap", "360_day", "all_leap", "julian"])
@pytest.mark.parametrize("dtype", ["f8", "i4", "i8", "f4"])
def test_references_that_move(tmp_path: Path, calendar: str, dtype: str) -> None:
    """Every file counts from its own start."""
    paths = [
        file(tmp_path / f"{year}.nc", np.arange(24, dtype=dtype), f"days since {year}-03-01", calendar)
        for year in (1999, 2000, 2001, 2004)
    ]
    manifest = check(paths)
    assert manifest.arrays["time"].attributes["calendar"] == calendar
    assert manifest.arrays["time"].dtype == np.dtype(dtype)


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_units_that_differ(tmp_path: Path, calendar: str) -> None:
    units = ["days", "hours", "minutes", "seconds"]
    paths = [
        file(tmp_path / f"{n}.nc", np.arange(5) * 60, f"{unit} since {2020 - 3 * n}-01-01", calendar)
        for n, unit in enumerate(units)
    ][::-1]
    check(paths)


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
@pytest.mark.parametrize("dtype", ["f8", "f4"])
@pytest.mark.parametrize("step", [0.5, 0.1, 1 / 3, 1 / 86400])
def test_fractions(tmp_path: Path, calendar: str, dtype: str, step: float) -> None:
    paths = [
        file(tmp_path / f"{n}.nc", (np.arange(7) * step).astype(dtype), f"days since {2001 + n}-01-01", calendar)
        for n in range(3)
    ]
    check(paths)


@pytest.mark.parametrize("calendar", [None, "standard", "gregorian", "proleptic_gregorian"])
def test_fractions_since_the_year_one(tmp_path: Path, calendar: str | None) -> None:
    one = file(tmp_path / "a.nc", np.array([0.1, 0.2]), "days since 1990-01-01", calendar)
    two = file(tmp_path / "b.nc", np.array([730000.25, 730000.75]), "days since 0001-01-01", calendar)
    check([one, two])


def test_milliseconds_and_nanoseconds(tmp_path: Path) -> None:
    one = file(tmp_path / "a.nc", np.arange(3) * 100, "milliseconds since 2000-01-01")
    two = file(tmp_path / "b.nc", np.arange(3) + 10**15, "microseconds since 2000-01-01")
    check([one, two])


@pytest.mark.parametrize("zone", ["+02:00", "-5:30", "Z", "UTC"])
def test_time_zones(tmp_path: Path, zone: str) -> None:
    one = file(tmp_path / "a.nc", np.arange(3), f"hours since 2000-01-01 00:00:00 {zone}")
    two = file(tmp_path / "b.nc", np.arange(3), "hours since 2000-01-02 00:00:00")
    check([one, two])


def test_spelling_of_units(tmp_path: Path) -> None:
    one = file(tmp_path / "a.nc", np.arange(3), "day since 2000-01-01")
    two = file(tmp_path / "b.nc", np.arange(3), "Days since 2000-01-10 00:00:00")
    three = file(tmp_path / "c.nc", np.arange(3), "hours since 2000-02-10T06:00:00")
    check([one, two, three])


def test_gregorian_is_standard(tmp_path: Path) -> None:
    one = file(tmp_path / "a.nc", np.arange(3), "days since 2000-01-01", "gregorian")
    two = file(tmp_path / "b.nc", np.arange(3), "days since 2000-02-01", "proleptic_gregorian")
    three = file(tmp_path / "c.nc", np.arange(3), "days since 2000-03-01")
    check([one, two, three])


@pytest.mark.parametrize("calendars", [("noleap", "standard"), ("360_day", "noleap"), (None, "julian")])
def test_calendars_with_different_dates(tmp_path: Path, calendars: tuple[str | None, str]) -> None:
    for n, calendar in enumerate(calendars):
        file(tmp_path / f"{n}.nc", np.arange(3), f"days since 200{n}-01-01", calendar)
    with pytest.raises(refindex.JoinError, match=r"(?s)0\.nc.*1\.nc.*calendars"):
        refindex.scan([tmp_path / "0.nc", tmp_path / "1.nc"], workers=1)


def test_standard_and_proleptic_before_the_reform(tmp_path: Path) -> None:
    one = file(tmp_path / "0.nc", np.arange(3), "days since 1500-01-01", "standard")
    two = file(tmp_path / "1.nc", np.arange(3), "days since 2000-01-01", "proleptic_gregorian")
    with pytest.raises(refindex.JoinError, match="differ before 1582-10-15"):
        refindex.scan([one, two], workers=1)


def test_months_have_no_fixed_length(tmp_path: Path) -> None:
    one = file(tmp_path / "0.nc", np.arange(3), "months since 2000-01-01")
    two = file(tmp_path / "1.nc", np.arange(3), "months since 2001-01-01")
    with pytest.raises(refindex.JoinError, match="'months' has no fixed length"):
        refindex.scan([one, two], workers=1)


def bounded(
    path: Path, number: int, units: str, bounds: dict[str, Any], dtype: str = "f8", calendar: str = "standard"
) -> Path:
    variables = series(0, 3, units=units)
    variables["time"].attrs.update(bounds="time_bnds", calendar=calendar)  # type: ignore[attr-defined]
    values = np.arange(6).reshape(3, 2) / 2 + 24 * number + (0.1 if dtype != "i4" else 0)
    variables["time_bnds"] = Var(dims=("time", "nv"), values=values.astype(dtype), attrs=bounds)
    return write(path, variables)


@pytest.mark.parametrize("calendar", ["standard", "noleap", "360_day"])
def test_bounds_without_units(tmp_path: Path, calendar: str) -> None:
    paths = [bounded(tmp_path / f"{n}.nc", n, f"days since 200{n}-01-01", {}, calendar=calendar) for n in range(3)]
    check(paths, "time", "time_bnds")


def test_bounds_with_units_of_their_own(tmp_path: Path) -> None:
    paths = [
        bounded(tmp_path / f"{n}.nc", n, f"days since 200{n}-01-01", {"units": "hours since 1990-01-01"})
        for n in range(3)
    ]
    check(paths, "time", "time_bnds")


def test_bounds_whose_units_alone_differ(tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        variables = series(10 * n, 3)
        variables["time"].attrs.update(bounds="time_bnds")  # type: ignore[attr-defined]
        variables["time_bnds"] = Var(
            dims=("time", "nv"), values=np.arange(6.0).reshape(3, 2), attrs={"units": f"hours since 199{n}-01-01"}
        )
        paths.append(write(tmp_path / f"{n}.nc", variables))
    check(paths, "time", "time_bnds")


def test_bounds_whose_types_alone_differ(tmp_path: Path) -> None:
    paths = []
    for n, dtype in enumerate(("f4", "f8")):
        variables = series(10 * n, 3)
        variables["time"].attrs.update(bounds="time_bnds")  # type: ignore[attr-defined]
        values = (np.arange(6.0).reshape(3, 2) + 0.1).astype(dtype)
        variables["time_bnds"] = Var(dims=("time", "nv"), values=values, attrs={"units": "days since 2000-01-01"})
        paths.append(write(tmp_path / f"{n}.nc", variables))
    check(paths, "time", "time_bnds")


@pytest.mark.parametrize("same_units", [True, False])
@pytest.mark.parametrize("dtypes", [("i4", "i4"), ("i4", "i8"), ("f8", "f8"), ("f4", "f8")])
def test_times_that_are_missing(tmp_path: Path, same_units: bool, dtypes: tuple[str, str]) -> None:
    """A missing time stays missing, or the files are not joined."""
    paths = []
    for n, dtype in enumerate(dtypes):
        variables = series(10 * n, 3)
        fill = -999 if dtype[0] == "i" else np.nan
        variables["when"] = Var(
            dims=("time",),
            values=np.array([1, fill, 3], dtype),
            attrs={"units": f"days since {2000 + n * (not same_units)}-01-01"},
            options={"fill_value": fill},
        )
        paths.append(write(tmp_path / f"{n}.nc", variables))
    try:
        manifest = refindex.scan(paths, workers=1)
    except refindex.JoinError as error:
        assert "/when" in str(error)  # noqa: PT017
        assert not same_units or dtypes[0] != dtypes[1]
        return
    with open_manifest(manifest) as actual:
        wanted = np.concatenate([decoded(path).when.values for path in paths])
        np.testing.assert_array_equal(actual.when.values, wanted)


def test_some_have_no_units_of_time(tmp_path: Path) -> None:
    one = file(tmp_path / "0.nc", np.arange(3), "days since 2000-01-01")
    two = file(tmp_path / "1.nc", np.arange(3) + 5, "days")
    for paths in ([one, two], [two, one]):
        with pytest.raises(refindex.JoinError, match=r"1\.nc"):
            refindex.scan(paths, workers=1)


def test_scaled_times_are_not_counted_anew(tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        attrs = {"units": f"days since 200{n}-01-01", "scale_factor": 0.5}
        paths.append(write(tmp_path / f"{n}.nc", {"time": Var(dims=("time",), values=np.arange(3), attrs=attrs)}))
    with pytest.raises(refindex.JoinError, match="packed times"):
        refindex.scan(paths, workers=1)


def test_a_time_of_every_file_without_the_dimension(tmp_path: Path) -> None:
    """A scalar time in each file's own units, that is the same moment."""
    paths = []
    for n in range(2):
        variables = series(10 * n, 3)
        variables["start"] = Var(values=np.int32(31 * n), attrs={"units": f"days since 2000-0{2 - n}-01"})
        paths.append(write(tmp_path / f"{n}.nc", variables))
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        assert actual.start.values == decoded(paths[0]).start.values == decoded(paths[1]).start.values


@settings(max_examples=80)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["days", "hours", "minutes", "seconds"]),
            st.integers(1600, 2400),
            st.integers(1, 12),
            st.lists(st.integers(-(10**5), 10**5), min_size=1, max_size=4),
        ),
        min_size=2,
        max_size=4,
    ),
    st.sampled_from(["standard", "noleap", "360_day", "julian", "all_leap"]),
)
def test_whole_numbers_are_exact(files: list[tuple[str, int, int, list[int]]], calendar: str) -> None:
    import cftime

    kinds = [TimeUnits(f"{unit} since {year:04d}-{month:02d}-01", calendar) for unit, year, month, _ in files]
    values = [np.array(numbers, dtype="i8") for *_, numbers in files]
    times = unify(kinds, values)
    for kind, own, made in zip(kinds, values, times.values, strict=True):
        one = cftime.num2date(own, kind.units, calendar)
        two = cftime.num2date(made, times.target.units, calendar)
        assert list(one) == list(two)


def test_numbers_beyond_64_bits() -> None:
    kinds = [TimeUnits("days since 2000-01-01", "standard"), TimeUnits("nanoseconds since 2000-01-01", "standard")]
    with pytest.raises(UnsupportedError, match="64 bits"):
        unify(kinds, [np.array([10**9]), np.array([1])])
