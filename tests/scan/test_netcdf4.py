"""NetCDF-4 files whose variables end before an unlimited dimension does, beside netCDF itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import oracle
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refindex
from refindex import Status
from refindex.scan.hdf5 import dimensions

type Writer = Callable[[netCDF4.Dataset], None]


def write(path: Path, *steps: Writer) -> Path:
    """A file written in several sittings."""
    for number, step in enumerate(steps):
        with netCDF4.Dataset(path, "a" if number else "w") as data:
            step(data)
    return path


def variables(group: netCDF4.Group) -> Iterator[netCDF4.Variable]:
    yield from group.variables.values()
    for below in group.groups.values():
        yield from variables(below)


def groups(group: netCDF4.Group) -> Iterator[str]:
    yield group.path.strip("/")
    for below in group.groups.values():
        yield from groups(below)


def check(path: Path, *, raw_only: tuple[str, ...] = ()) -> None:
    """Everything is what netCDF shows: raw values, dimensions, and xarray's dataset of every group.

    Left out of xarray's are ``raw_only``: text with a fill value, which xarray decodes from netCDF otherwise than
    from Zarr, whatever its length.
    """
    with netCDF4.Dataset(path) as data, refindex.open(path) as archive:
        for variable in variables(data):
            variable.set_auto_maskandscale(False)
            variable.set_auto_chartostring(False)
            where = f"{variable.group().path}/{variable.name}".strip("/")
            served = zarr.open_array(archive.store, path=where, mode="r")
            expected = variable[...]
            assert served.shape == variable.shape, where
            assert served.metadata.dimension_names == variable.dimensions, where
            assert oracle.same(np.asarray(expected), served[...]) == "", where
        names = list(groups(data))
    for name in names:
        # A time that is the fill value is none that xarray could decode.
        for masked in (True, False):
            options = {"group": name or None, "mask_and_scale": masked, "decode_times": False}
            with xr.open_dataset(path, engine="refindex", drop_variables=raw_only, **options) as opened:
                for variable in opened.variables.values():  # refindex adds them for enumerations
                    for added in ("flag_values", "flag_meanings"):
                        variable.attrs.pop(added, None)
                expected = oracle.netcdf4(path, drop_variables=raw_only, **options)
                xr.testing.assert_identical(opened.load(), expected)
    assert oracle.compare_file(str(path)).wrong == []


def notes(path: Path, **options: Any) -> dict[str, str]:
    return {e.path: e.reason for e in refindex.scan(path, **options).report.select(Status.NOTE)}


def clock(data: netCDF4.Dataset, chunk: int = 4) -> netCDF4.Variable:
    data.createDimension("time", None)
    data.createDimension("x", 30)
    return data.createVariable("time", "f8", ("time",), chunksizes=(chunk,))


@pytest.mark.parametrize("compression", [None, "zlib", "zstd"])
@pytest.mark.parametrize("chunk", [1, 3, 5, 8])
def test_data_shorter_than_coordinate(tmp_path: Path, compression: str | None, chunk: int) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:5] = np.arange(5)
        options = {"compression": compression, "chunksizes": (chunk, 20)}
        data.createVariable("large", "f4", ("time", "x"), **options)[:5] = np.arange(150).reshape(5, 30)
        data.createVariable("small", "i2", ("time",), compression=compression, chunksizes=(chunk,))[:5] = np.arange(5)

    def second(data: netCDF4.Dataset) -> None:
        data["time"][5:11] = np.arange(5, 11)

    def third(data: netCDF4.Dataset) -> None:
        data["large"][5:7, :25] = -1

    path = write(tmp_path / "a.nc", first, second, third)
    with h5py.File(path) as file:
        assert (file["large"].shape, file["small"].shape) == ((7, 30), (5,))
    check(path)
    said = notes(path)
    assert said["/large"] == "extended along dimension 'time' from 7 to 11 with the fill value, as netCDF shows it"
    assert "from 5 to 11" in said["/small"]


def test_large_data_is_referenced_not_copied(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:700] = np.arange(700)
        data.createVariable("large", "f8", ("time", "x"), chunksizes=(100, 30))[:450] = 1.5
        data.createVariable("empty", "f8", ("time", "x"), chunksizes=(100, 30))

    path = write(tmp_path / "a.nc", first)
    check(path)
    manifest = refindex.scan(path)
    assert len(manifest.arrays["large"].chunks) == 5
    assert len(manifest.arrays["empty"].chunks) == 0
    assert manifest.arrays["empty"].grid.shape == (700, 30)


def test_coordinate_shorter_than_data(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:3] = np.arange(3)
        data.createVariable("t", "f8", ("time", "x"), chunksizes=(4, 30))[:9] = 2

    path = write(tmp_path / "a.nc", first)
    with h5py.File(path, "r+") as file:
        file["time"].resize((3,))  # netCDF-C lengthens the coordinate when it closes the file; others do not
    check(path)
    assert "from 3 to 9" in notes(path)["/time"]
    # What is not selected counts all the same.
    assert refindex.scan(path, variables=["time"]).arrays["time"].grid.shape == (9,)


def test_selection_counts_all_variables(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:8] = np.arange(8)
        data.createVariable("t", "f8", ("time", "x"))[:5] = 2

    path = write(tmp_path / "a.nc", first)
    manifest = refindex.scan(path, variables=["t"])
    assert manifest.arrays["t"].grid.shape == (8, 30)


def test_several_unlimited_dimensions_and_no_variable_of_the_dimension(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        for name in ("time", "member", "unused"):
            data.createDimension(name, None)
        for number, (n, m) in enumerate([(5, 3), (2, 7), (4, 4)]):
            made = data.createVariable(f"v{number}", "i4", ("time", "member"), chunksizes=(3, 2), zlib=number == 1)
            made[:n, :m] = np.arange(n * m).reshape(n, m)
        data.createVariable("never", "i4", ("member", "time", "unused"))
        data.createVariable("twice", "u1", ("time", "time"), chunksizes=(3, 3))[:2, :3] = 1

    def second(data: netCDF4.Dataset) -> None:
        data["v2"][8, 0] = 1

    path = write(tmp_path / "a.nc", first, second)
    shapes = {"v0": (9, 7), "v1": (9, 7), "v2": (9, 7), "twice": (9, 9), "never": (7, 9, 0)}
    with netCDF4.Dataset(path) as data, refindex.open(path) as archive:
        for name, shape in shapes.items():
            variable = data[name]
            variable.set_auto_mask(False)
            served = zarr.open_array(archive.store, path=name, mode="r")
            assert served.shape == variable.shape == shape
            assert served.metadata.dimension_names[0] == variable.dimensions[0]
            # netCDF-C 4.10 misplaces values where an axis other than the first is short; a row at a time it is right.
            expected = np.array([variable[row] for row in np.ndindex(shape[:-1])]).reshape(shape)
            assert np.array_equal(served[...], expected), name
    with xr.open_dataset(path, engine="refindex") as opened:
        assert dict(opened[["v0", "v1", "v2", "never"]].sizes) == {"time": 9, "member": 7, "unused": 0}
    assert oracle.compare_file(str(path)).wrong == []


def test_unlimited_dimension_without_a_variable(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        data.createDimension("time", None)
        data.createVariable("a", "f4", ("time",))[:6] = 1
        data.createVariable("b", "f4", ("time",), chunksizes=(4,))[:2] = 2

    path = write(tmp_path / "a.nc", first)
    check(path)
    with h5py.File(path, "r+") as file:
        file["time"].resize((40,))  # netCDF asks the variables, not this
    check(path)


def test_groups_share_the_dimension_of_their_parent(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:4] = np.arange(4)
        one = data.createGroup("one")
        one.createVariable("t", "f4", ("time", "x"), chunksizes=(3, 30), zlib=True)[:2] = 1
        two = one.createGroup("two")
        two.createVariable("t", "f4", ("time", "x"), chunksizes=(3, 30))[:10] = 1

    def second(data: netCDF4.Dataset) -> None:
        own = data.createGroup("own")
        own.createDimension("time", None)
        own.createVariable("a", "i4", ("time",))[:5] = 1
        own.createVariable("b", "i4", ("time",))[:2] = 1

    path = write(tmp_path / "a.nc", first)
    with h5py.File(path, "r+") as file:
        file["time"].resize((4,))
    check(path)
    with xr.open_datatree(path, engine="netcdf4") as expected, xr.open_datatree(path, engine="refindex") as opened:
        xr.testing.assert_identical(opened.load(), expected.load())
    check(write(path, first, second))  # a dimension of the same name in a group: no tree for xarray


def test_kinds_of_values(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:9] = np.arange(9)
        data.createDimension("nchar", 4)
        packed = data.createVariable("packed", "i2", ("time", "x"), fill_value=-999, zlib=True, chunksizes=(4, 30))
        packed.scale_factor, packed.add_offset = 0.5, 10.0
        packed[:5] = np.linspace(0, 50, 150).reshape(5, 30)
        data.createVariable("big", ">f8", ("time", "x"), endian="big", chunksizes=(4, 30))[:5] = 1
        kind = data.createEnumType("u1", "cloud_t", {"clear": 0, "cumulus": 1, "missing": 255})
        cloud = data.createVariable("cloud", kind, ("time",), fill_value=255, chunksizes=(4,))
        cloud[:3] = [0, 1, 0]
        data.createVariable("cloud2", kind, ("time",), fill_value=1)
        text = data.createVariable("text", str, ("time",))
        text[:2] = np.array(["a", "üb"], dtype=object)
        named = data.createVariable("named", str, ("time", "nchar"), fill_value="n/a")
        named[:2] = np.array([["a", "b", "c", "d"]] * 2, dtype=object)
        letters = data.createVariable("letters", "S1", ("time", "nchar"), chunksizes=(4, 4))
        letters[:5] = np.array([list("abcd")] * 5, dtype="S1")

    check(write(tmp_path / "a.nc", first), raw_only=("named",))


def test_user_defined_types(tmp_path: Path) -> None:
    """Compounds and sequences, which xarray's netcdf4 engine does not all read."""
    pair = np.dtype([("x", "<f4"), ("n", "<i4")])

    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:200] = np.arange(200)
        kind = data.createCompoundType(pair, "pair")
        data.createVariable("pairs", kind, ("time",), chunksizes=(4,))[:3] = np.ones(3, dtype=pair)
        ragged = data.createVariable("ragged", data.createVLType("i4", "ragged_t"), ("time",))
        ragged[0] = np.arange(3, dtype="i4")

    path = write(tmp_path / "a.nc", first)
    with netCDF4.Dataset(path) as data, refindex.open(path) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("pairs", "ragged"):
            served = zarr.open_array(archive.store, path=name, mode="r")[...]
            data[name].set_auto_mask(False)
            expected = data[name][...]
            assert len(served) == len(expected) == 200
            if name == "pairs":
                assert served.tobytes() == expected.tobytes()
            else:
                assert [bytes(v) for v in served] == [v.tobytes() for v in expected]


def test_no_fill_mode_ends_where_hdf5_does(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:9] = np.arange(9)
        data.createVariable("filled", "f4", ("time", "x"), chunksizes=(4, 30))[:5] = 1
        data.createVariable("bare", "f4", ("time", "x"), chunksizes=(4, 30), fill_value=False)[:5] = 1

    path = write(tmp_path / "a.nc", first)
    with xr.open_dataset(path, engine="refindex") as opened:
        assert opened["filled"].shape == (9, 30)
        assert opened["bare"].dims == ("time_5", "x")
        assert np.array_equal(opened["bare"].values, np.ones((5, 30), "f4"))
        xr.testing.assert_identical(
            opened.drop_vars("bare").load(), oracle.netcdf4(path, drop_variables=["bare"]).drop_encoding()
        )
    reasons = [e.reason for e in refindex.scan(path).report.select(Status.NOTE) if e.path == "/bare"]
    assert any("written without fill values" in reason for reason in reasons)
    assert any("'time_5'" in reason for reason in reasons)
    assert oracle.compare_file(str(path)).wrong == []


def test_no_fill_coordinate_does_not_take_the_name_of_its_dimension(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        data.createDimension("time", None)
        data.createVariable("time", "f8", ("time",), fill_value=False)[:5] = np.arange(5)
        data.createVariable("a", "f4", ("time",), chunksizes=(4,))[:9] = 1
        data.createVariable("b", "f4", ("time",), chunksizes=(4,))[:7] = 1

    path = write(tmp_path / "a.nc", first)
    with h5py.File(path, "r+") as file:
        file["time"].resize((5,))
    with xr.open_dataset(path, engine="refindex", decode_times=False) as opened:
        assert dict(opened.sizes) == {"time": 9, "time_5": 5}
        assert opened["a"].dims == opened["b"].dims == ("time",)
        assert opened["time"].dims == ("time_5",)
        assert np.array_equal(opened["time"].values, np.arange(5))


def test_lossy_filter_ends_where_hdf5_does(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:9] = np.arange(9)

    path = write(tmp_path / "a.nc", first)
    with h5py.File(path, "r+") as file:
        options = {"maxshape": (None, 300), "chunks": (4, 300), "fillvalue": -9.0}
        for name, more in (("lossy", {"scaleoffset": 1}), ("lossless", {"compression": "lzf"})):
            made = file.create_dataset(name, data=np.ones((5, 300), "f4"), **options, **more)
            made.dims[0].attach_scale(file["time"])
    arrays = refindex.scan(path).arrays
    assert arrays["lossless"].grid.shape == (9, 300)
    assert arrays["lossy"].grid.shape == (5, 300)
    assert "filters" in notes(path)["/lossy"]
    assert oracle.compare_file(str(path)).wrong == []


def test_a_dataset_that_was_cut(tmp_path: Path) -> None:
    """libhdf5 puts the fill value where values were, in the chunks that stay."""

    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:9] = np.arange(9)
        for name, zlib in (("a", False), ("b", True)):
            made = data.createVariable(name, "f8", ("time", "x"), chunksizes=(4, 30), zlib=zlib)
            made[:9] = np.arange(270).reshape(9, 30)

    path = write(tmp_path / "a.nc", first)
    with h5py.File(path, "r+") as file:
        file["a"].resize((6, 30))
        file["b"].resize((6, 30))
    assert len(refindex.scan(path).arrays["a"].chunks) == 2
    check(path)


def test_strings_beyond_a_limit_end_where_hdf5_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:20] = np.arange(20)
        data.createVariable("text", str, ("time",))[:2] = np.array(["a", "b"], dtype=object)

    path = write(tmp_path / "a.nc", first)
    check(path)
    monkeypatch.setattr(dimensions, "ADDED_OBJECTS", 17)
    with xr.open_dataset(path, engine="refindex") as opened:
        assert opened["text"].values.tolist() == ["a", "b"]


def test_zero_length(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)
        data.createVariable("t", "f4", ("time", "x"))
        data.createDimension("other", None)
        data.createVariable("s", str, ("time", "other"))
        data.createVariable("u", "i4", ("other",))[:3] = 1

    path = write(tmp_path / "a.nc", first)
    check(path)
    check(write(path, first, lambda data: data["t"].__setitem__(2, 1.0)))


def test_a_second_name_of_a_variable(tmp_path: Path) -> None:
    def first(data: netCDF4.Dataset) -> None:
        clock(data)[:8] = np.arange(8)
        data.createVariable("t", "f4", ("time", "x"), chunksizes=(3, 30))[:4] = 1
        data.createGroup("g")

    path = write(tmp_path / "a.nc", first)
    with h5py.File(path, "r+") as file:
        file["g/same"] = file["t"]
    arrays = refindex.scan(path).arrays
    assert arrays["t"].grid == arrays["g/same"].grid
    assert arrays["t"].grid.shape == (8, 30)


def test_plain_hdf5_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("time", data=np.arange(9.0), maxshape=(None,), fillvalue=-1)
        file["time"].make_scale("time")
        made = file.create_dataset("t", data=np.ones((5, 4)), maxshape=(None, 4), chunks=(3, 4), fillvalue=-1)
        made.dims[0].attach_scale(file["time"])
    with refindex.open(path) as archive:
        assert zarr.open_array(archive.store, path="t", mode="r").shape == (5, 4)
        assert zarr.open_array(archive.store, path="time", mode="r").shape == (9,)
    assert len(oracle.compare_file(str(path)).right) == 2


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_lengths(tmp_path: Path, data: st.DataObject) -> None:
    lengths = st.integers(0, 40)
    plan = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["i1", "u2", "i4", "i8", "f4", "f8", "S1"]),
                st.lists(lengths, min_size=1, max_size=3),  # how far it is written, in each sitting
                st.integers(1, 16),
                st.sampled_from([{}, {"zlib": True, "shuffle": True}, {"fletcher32": True}, {"compression": "zstd"}]),
                st.sampled_from([1, 30]),
                st.sampled_from([None, 5]),
            ),
            min_size=1,
            max_size=4,
        )
    )
    coordinate = data.draw(st.none() | lengths)

    def sitting(number: int) -> Writer:
        def step(file: netCDF4.Dataset) -> None:
            if not number:
                file.createDimension("time", None)
                file.createDimension("x", 30)
                if coordinate is not None:
                    file.createVariable("time", "f8", ("time",))[:coordinate] = np.arange(coordinate)
            for at, (dtype, until, chunk, options, width, fill) in enumerate(plan):
                name = f"v{at}"
                if not number:
                    dims = ("time", "x") if width > 1 else ("time",)
                    value = None if fill is None else b"f" if dtype == "S1" else fill
                    sizes = (chunk, 30)[: len(dims)]
                    file.createVariable(name, dtype, dims, fill_value=value, chunksizes=sizes, **options)
                variable = file[name]
                have = h5_length.get(name, 0)
                if number < len(until) and until[number] > have:
                    shape = (until[number] - have, 30)[: variable.ndim]
                    values = np.arange(np.prod(shape)).reshape(shape) % 100
                    variable[have : until[number]] = values.astype("u1").view("S1") if dtype == "S1" else values
                    h5_length[name] = until[number]

        return step

    h5_length: dict[str, int] = {}
    path = write(tmp_path / "h.nc", *(sitting(number) for number in range(3)))
    if coordinate is not None:
        with h5py.File(path, "r+") as file:
            file["time"].resize((coordinate,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check(path, raw_only=tuple(f"v{n}" for n, v in enumerate(plan) if (v[0], v[-1]) == ("S1", 5)))
