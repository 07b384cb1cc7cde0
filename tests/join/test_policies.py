"""What differs between files, what a join makes of it, and what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
import pytest

import refindex
from refindex import JoinError, Status
from tests.join.files import Var, assert_same, decoded, joined, open_manifest, series, write


def reasons(manifest: refindex.Manifest, path: str) -> str:
    return "\n".join(f"{e.source}: {e.reason}" for e in manifest.report if e.path.strip("/") == path)


def pair(folder: Path, one: dict[str, Var], two: dict[str, Var], **attrs: Any) -> list[Path]:
    return [write(folder / "one.nc", one, attrs), write(folder / "two.nc", two, attrs)]


def refused(paths: list[Path], *messages: str, **options: Any) -> str:
    """The message of a join that fails; each of ``messages`` is in it, as is every file."""
    with pytest.raises(JoinError) as caught:
        refindex.scan(paths, workers=1, **options)
    text = str(caught.value)
    for message in (*messages, "Nothing was written"):
        assert message in text, text
    return text


def test_units(tmp_path: Path) -> None:
    one, two = series(0, 3, attrs={"units": "K"}), series(3, 3, attrs={"units": "degC"})
    text = refused(pair(tmp_path, one, two), "/x: units are 'K' in", "and 'degC' in", "convert one of the files")
    assert text.index("one.nc") < text.index("two.nc")
    refused(pair(tmp_path, one, series(3, 3)), "/x: units are 'K' in", "None in")


@pytest.mark.parametrize(("one", "two"), [("i8", "f8"), ("i8", "u8"), ("u8", "i4"), ("i8", "f4")])
def test_types_without_a_common_one(tmp_path: Path, one: str, two: str) -> None:
    paths = pair(tmp_path, series(0, 3, dtype=one), series(3, 3, dtype=two))
    text = refused(paths, f"/x: the type is {np.dtype(one)} in", f"{np.dtype(two)} in", "no type holds all values")
    assert "one.nc" in text
    assert "two.nc" in text


def test_all_barriers_of_all_files_in_one_error(tmp_path: Path) -> None:
    one = {
        **series(0, 3, dtype="i8", attrs={"units": "K"}),
        "y": Var(dims=("time",), values=np.arange(3), attrs={"units": "m"}),
    }
    two = {
        **series(3, 3, dtype="i8", attrs={"units": "C"}),
        "y": Var(dims=("time",), values=np.arange(3.0), attrs={"units": "m"}),
    }
    three = {
        **series(5, 3, dtype="i8", attrs={"units": "K"}),
        "y": Var(dims=("time", "lat"), values=np.zeros((3, 3)), attrs={"units": "m"}),
    }
    paths = [write(tmp_path / f"{name}.nc", v) for name, v in (("a", one), ("b", two), ("c", three))]
    text = refused(paths, "3 things stand in the way", "/x: units are", "/y: dimensions are", "overlap in time")
    assert not list(tmp_path.glob("*.refindex*"))
    assert all(path.name in text for path in paths)


def test_dimensions_in_another_order(tmp_path: Path) -> None:
    two = series(3, 3)
    two["x"] = Var(dims=("lat", "time"), values=np.zeros((3, 3), "f4"))
    refused(pair(tmp_path, series(0, 3), two), "/x: dimensions are (time, lat) in", "one.nc and (lat, time) in")


def test_an_array_here_and_a_group_there(tmp_path: Path) -> None:
    one = series(0, 3) | {"g": Var(dims=("time",), values=np.arange(3))}
    two = series(3, 3) | {"g/y": Var(dims=("time",), values=np.arange(3))}
    refused(pair(tmp_path, one, two), "/g is an array in", "one.nc and a group in", "two.nc")


def test_sizes_without_coordinates(tmp_path: Path) -> None:
    one = series(0, 3) | {"y": Var(dims=("n",), values=np.arange(3))}
    two = series(3, 3) | {"y": Var(dims=("n",), values=np.arange(4))}
    refused(pair(tmp_path, one, two), "dimension n has 3 elements in", "one.nc and 4 in", "--concat-dim n")


MISSING: list[tuple[str, Any, str]] = [
    ("f4", None, "f4"),
    ("f8", 7.0, "f8"),
    ("i2", None, "f4"),
    ("u1", None, "f4"),
    ("i4", None, "f8"),
    ("i2", 7, "i2"),
    ("i8", -1, "i8"),
]


@pytest.mark.parametrize(("dtype", "fill", "served"), MISSING, ids=str)
@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_variable_that_some_files_lack(
    tmp_path: Path, dtype: str, fill: Any, served: str, large: bool, which: int
) -> None:
    paths = []
    for n in range(3):
        variables = series(5 * n, 5)
        if n != which:
            values = (np.arange(5 * (3000 if large else 3)) % 100 + n).astype(dtype).reshape(5, -1)
            variables["y"] = Var(dims=("time", "m"), values=values, options={"fill_value": fill})
        paths.append(write(tmp_path / f"{n}.nc", variables))
    manifest = refindex.scan(paths, workers=1)
    assert manifest.arrays["y"].dtype == np.dtype(served)
    assert f"missing in {paths[which]}" in reasons(manifest, "y")
    with open_manifest(manifest) as actual:
        # xarray does not know the type of what is not there: every value is compared, and whether it is missing.
        for n, path in enumerate(paths):
            part = actual.y.isel(time=slice(5 * n, 5 * n + 5)).values
            if n == which:
                assert np.isnan(part.astype("f8")).all() or fill is not None
            else:
                np.testing.assert_array_equal(part, decoded(path).y.values)
        if fill is not None:
            assert np.isnan(actual.y.values[5 * which : 5 * which + 5]).all()


def test_missing_values_of_other_types_are_reported(tmp_path: Path) -> None:
    one = series(0, 3) | {
        "s": Var(dims=("time",), values=np.array(["a", "b", "ü"], dtype=object)),
        "l": Var(dims=("time",), values=np.arange(3)),
    }
    paths = pair(tmp_path, one, series(3, 3))
    manifest = refindex.scan(paths, workers=1)
    for name in ("s", "l"):
        assert f"missing in {paths[1]}: reads as fill values there" in reasons(manifest, name)
    with open_manifest(manifest) as actual:
        assert actual.s.values.tolist() == ["a", "b", "ü", "", "", ""]
        assert actual.l.values[:3].tolist() == [0, 1, 2]


def test_two_integer_types_and_a_file_without(tmp_path: Path) -> None:
    """64-bit integers are not served as double precision for want of a missing value."""
    paths = [
        write(tmp_path / f"{n}.nc", series(3 * n, 3, dtype=dtype) if dtype else {"time": series(3 * n, 3)["time"]})
        for n, dtype in enumerate(["i2", "i8", ""])
    ]
    try:
        manifest = refindex.scan(paths, workers=1)
    except JoinError as error:
        assert "int64" in str(error)  # noqa: PT017
        return
    assert manifest.arrays["x"].dtype == np.dtype("i8")


def test_attributes(tmp_path: Path) -> None:
    one = series(0, 3, attrs={"units": "K", "long_name": "one", "only_here": 1, "both": [1, 2]})
    two = series(3, 3, attrs={"units": "K", "long_name": "two", "both": [1, 2]})
    paths = [
        write(tmp_path / "one.nc", one, {"title": "t", "history": "made first"}),
        write(tmp_path / "two.nc", two, {"title": "t", "history": "made second"}),
    ]
    manifest = refindex.scan(paths, workers=1)
    assert manifest.arrays["x"].attributes == {"units": "K", "both": [1, 2]}
    assert "attributes that differ are left out: long_name, only_here" in reasons(manifest, "x")
    assert manifest.groups[""].attributes == {"title": "t"}
    assert "attributes that differ are left out: history" in reasons(manifest, "")


CONSTANT = np.arange(3.0)
LARGE = np.arange(6000.0).reshape(3, 2000)


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize("policy", ["error", "first", "stack"])
def test_constants_that_differ(tmp_path: Path, large: bool, policy: Literal["error", "first", "stack"]) -> None:
    dims, values = (("lat", "m"), LARGE) if large else (("lat",), CONSTANT)
    paths = [
        write(tmp_path / f"{name}.nc", series(4 * n, 4) | {"z": Var(dims=dims, values=values + n // 2)})
        for n, name in enumerate("abc")
    ]
    if policy == "error":
        text = refused(paths, f"/z: values differ between {paths[0]} and {paths[2]}", "on_difference='first'")
        assert "b.nc" not in text
        return
    with open_manifest(refindex.scan(paths, workers=1, on_difference=policy)) as actual:
        if policy == "first":
            np.testing.assert_array_equal(actual.z.values, values)
            return
        assert actual.z.dims == ("time", *dims)
        for n in range(3):
            for step in range(4 * n, 4 * n + 4):
                np.testing.assert_array_equal(actual.z.values[step], values + n // 2)
        np.testing.assert_array_equal(actual.z.isel(time=slice(3, 9, 5)).values, [values, values + 1])


@pytest.mark.parametrize("large", [False, True])
def test_constants_that_are_equal_however_stored(tmp_path: Path, large: bool) -> None:
    dims, values = (("lat", "m"), LARGE) if large else (("lat",), CONSTANT)
    kinds: list[dict[str, Any]] = [{}, {"zlib": True, "chunksizes": (2, 700)[: len(dims)]}, {}]
    types = ("<f8", "<f8", ">f8")
    paths = [
        write(tmp_path / f"{n}.nc", series(4 * n, 4) | {"z": Var(dims=dims, values=values.astype(t), options=options)})
        for n, (options, t) in enumerate(zip(kinds, types, strict=True))
    ]
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        np.testing.assert_array_equal(actual.z.values, values)


def test_constants_with_nan_are_equal(tmp_path: Path) -> None:
    values = np.array([np.nan, 1.0, -0.0])
    paths = pair(
        tmp_path,
        series(0, 3) | {"z": Var(dims=("lat",), values=values)},
        series(3, 3) | {"z": Var(dims=("lat",), values=np.array([np.nan, 1.0, 0.0]))},
    )
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        np.testing.assert_array_equal(actual.z.values, values)


def test_constant_strings_that_differ_by_a_zero_byte(tmp_path: Path) -> None:
    """An archive knows its constants by a checksum, which must not mistake one for another."""
    from refindex.join.values import digest

    one, two = np.array(["a\0", "b"], dtype=object), np.array(["a", "\0b"], dtype=object)
    assert digest(one) != digest(two)


def write_overlap(folder: Path) -> list[Path]:
    """Two files with five of ten steps in common, whose values differ."""
    return [write(folder / f"{name}.nc", series(5 * n, 10, seed=n)) for n, name in enumerate("ab")]


def test_overlap_names_both_files_and_the_range(tmp_path: Path) -> None:
    paths = write_overlap(tmp_path)
    refused(
        paths,
        f"{paths[0]} and {paths[1]} overlap in time: both have 5 values from 2000-01-06T00:00:00 to ",
        "2000-01-10T00:00:00",
        "overlap='first'",
    )


@pytest.mark.parametrize("overlap", ["first", "last"])
@pytest.mark.parametrize(
    "spans",
    [
        [(0, 10), (5, 10)],
        [(0, 20), (5, 5)],
        [(5, 5), (0, 20)],
        [(0, 5), (0, 5)],
        [(5, 10), (0, 10), (12, 9)],
        [(0, 5), (3, 1), (4, 7), (0, 12)],
    ],
    ids=str,
)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chunk", [4, 1, 100])
def test_overlap(
    tmp_path: Path, overlap: Literal["first", "last"], spans: list[tuple[int, int]], reverse: bool, chunk: int
) -> None:
    paths, held = [], []
    for n, (start, length) in enumerate(spans):
        random = np.random.default_rng(n)
        values = random.integers(0, 1000, (length, 300)).astype("f4")
        steps = np.arange(start, start + length, dtype="f8")
        if reverse:
            steps = steps[::-1]
        options = {"chunksizes": (min(chunk, length), 300)}
        variables = {
            "time": Var(dims=("time",), values=steps),
            "x": Var(dims=("time", "m"), values=values, options=options),
            "s": Var(dims=("time",), values=values[:, 0]),
        }
        paths.append(write(tmp_path / f"{n}.nc", variables))
        held.append(dict(zip(steps.tolist(), values, strict=True)))
    wanted: dict[float, np.ndarray[Any, Any]] = {}
    for one in held if overlap == "last" else held[::-1]:
        wanted |= one
    manifest = refindex.scan(paths, workers=1, overlap=overlap)
    order = sorted(wanted, reverse=reverse)
    with open_manifest(manifest) as actual:
        assert actual.time.values.tolist() == order
        np.testing.assert_array_equal(actual.x.values, [wanted[t] for t in order])
        np.testing.assert_array_equal(actual.s.values, [wanted[t][0] for t in order])
    assert f"the {overlap} one is taken" in reasons(manifest, "time") or spans == [(0, 5), (0, 5)]


def test_interleaved(tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        variables = series(0, 5, seed=n)
        variables["time"] = Var(dims=("time",), values=np.arange(n, 10, 2.0), attrs={"units": "days since 2000-01-01"})
        paths.append(write(tmp_path / f"{n}.nc", variables))
    text = refused(paths, "overlap in time: one goes on at 2000-01-03T00:00:00 where the other has begun")
    assert "0.nc" in text
    assert "1.nc" in text
    with open_manifest(refindex.scan(paths, workers=1, overlap="first")) as actual:
        assert_same(actual, joined(paths, data_vars="minimal"), ("x", "time", "lat"))


def test_same_coordinates(tmp_path: Path) -> None:
    paths = pair(tmp_path, series(0, 3), series(0, 3, seed=1))
    text = refused(paths, "merge=True", "--stack")
    assert "one.nc" in text
    assert "two.nc" in text


def test_duplicates_among_coordinates_out_of_order(tmp_path: Path) -> None:
    """Numbers of stations, in no order, some in two files."""
    paths = []
    for name, ids in (("one", [7, 3, 9]), ("two", [9, 1, 4])):
        station = Var(dims=("station",), values=np.array(ids))
        paths.append(
            write(
                tmp_path / f"{name}.nc", {"station": station, "x": Var(dims=("station",), values=np.array(ids) * 1.5)}
            )
        )
    text = refused(paths, "overlap in station", "9")
    assert "one.nc" in text
    assert "two.nc" in text


def test_gaps_are_noted(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.nc", series(start, 4)) for n, start in enumerate([0, 4, 30])]
    manifest = refindex.scan(paths, workers=1)
    said = f"gap in time: {paths[1]} ends at 2000-01-08T00:00:00, {paths[2]} begins at 2000-01-31T00:00:00"
    assert said in reasons(manifest, "time")
    assert str(paths[0]) not in [e.source for e in manifest.report if "gap" in e.reason]


def test_nan_in_a_coordinate(tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        variables = series(3 * n, 3)
        variables["time"] = Var(dims=("time",), values=np.array([3.0 * n, np.nan, 3.0 * n + 2]))
        paths.append(write(tmp_path / f"{n}.nc", variables))
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        wanted = np.concatenate([decoded(path).x.values for path in paths])
        np.testing.assert_array_equal(actual.x.values, wanted)


def test_a_coordinate_that_one_file_lacks(tmp_path: Path) -> None:
    two = {"x": Var(dims=("time", "lat"), values=np.zeros((4, 3), "f4"))}
    refused(pair(tmp_path, series(0, 3), two), "two.nc has a dimension", "no coordinate")


def test_a_file_that_is_no_part_of_it(tmp_path: Path) -> None:
    """With nothing in common, each file is a group of its own, and the report says so."""
    paths = [
        write(tmp_path / "a.nc", series(0, 3)),
        write(tmp_path / "b.nc", {"q": Var(dims=("n",), values=np.arange(4))}),
    ]
    manifest = refindex.scan(paths, workers=1)
    assert {"a", "b"} <= set(manifest.groups)
    assert "no variable with the same dimensions in common" in reasons(manifest, "")
    assert manifest.report.select(Status.NOTE)


def test_fixed_strings_that_some_files_lack(tmp_path: Path) -> None:
    paths = []
    for n in range(2):
        path = tmp_path / f"{n}.h5"
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(3.0) + 3 * n
            file["time"].make_scale("time")
            file.create_dataset("y", data=np.arange(3)).dims[0].attach_scale(file["time"])
            if n:
                file.create_dataset("s", data=np.array([b"ab", b"c", b""], "S3")).dims[0].attach_scale(file["time"])
        paths.append(path)
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        assert [bytes(v) for v in actual.s.values] == [b"", b"", b"", b"ab", b"c", b""]
