"""What the archives of this field differ in, case by case: joined, and equal to what xarray and h5py read."""

from __future__ import annotations

import calendar
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

import refindex
from refindex import Status
from tests.join.archives import Part, expected, write_archive
from tests.join.files import Var, assert_same, decoded, joined, open_manifest, series, write

pytestmark = pytest.mark.filterwarnings("ignore:variable .* has multiple fill values")


def raw(paths: Sequence[Path], name: str) -> np.ndarray[Any, Any]:
    """Stored numbers as h5py reads them, one file after the other."""
    parts = []
    for path in paths:
        with h5py.File(path) as file:
            parts.append(file[name][...])
    return np.concatenate(parts)


def check(paths: list[Path], *names: str, same_stored: bool = True, **options: Any) -> refindex.Manifest:
    """A joined manifest, saved and opened again, through zarr and xarray."""
    manifest = refindex.scan(paths[::-1], workers=1, **options)
    out = paths[0].parent / "archive.refindex"
    manifest.save(out)
    wanted = expected(paths)
    with refindex.open(out) as archive:
        with archive.to_xarray() as actual:
            assert_same(actual, wanted, names or ("x", "time", "lat", "lon"))
        if same_stored:
            served = archive.group["x"]
            assert isinstance(served.dtype, np.dtype)
            np.testing.assert_array_equal(served[...], raw(paths, "x"))
            assert served.dtype.newbyteorder("=") == raw(paths, "x").dtype.newbyteorder("=")
    return manifest


def days_of(year: int) -> int:
    return 366 if calendar.isleap(year) else 365


def test_months_each_in_one_chunk(tmp_path: Path) -> None:
    lengths = [calendar.monthrange(year, month)[1] for year in (2019, 2020, 2021) for month in range(1, 13)]
    starts = np.cumsum([0, *lengths[:-1]]).tolist()
    parts = [Part(start=s, length=n, chunks=(n, 5, 70)) for s, n in zip(starts, lengths, strict=True)]
    manifest = check(write_archive(tmp_path, parts))
    array = manifest.arrays["x"]
    assert array.json["chunk_grid"]["name"] == "rectilinear"
    assert len(array.chunks) == 36
    assert array.json["chunk_grid"]["configuration"]["chunk_shapes"][0][:3] == [31, 28, 31]
    assert (
        sum(
            n if isinstance(n, int) else n[0] * n[1]
            for n in array.json["chunk_grid"]["configuration"]["chunk_shapes"][0]
        )
        == 1096
    )
    # All chunks are as long as their places: stock zarr-python decodes them.
    assert {e.status for e in manifest.report if e.path == "x"} == {Status.NATIVE}


def test_years_with_a_leap_year(tmp_path: Path) -> None:
    years = (2018, 2019, 2020, 2021)
    starts = np.cumsum([0, *(days_of(y) for y in years[:-1])]).tolist()
    parts = [Part(start=s, length=days_of(y), chunks=(61, 2, 70)) for s, y in zip(starts, years, strict=True)]
    manifest = check(write_archive(tmp_path, parts))
    assert manifest.arrays["x"].shape == (sum(map(days_of, years)), 5, 70)
    # 365 = 5 * 61 + 60: the sixth chunk is stored whole, and cropped; the last of all overhangs as it is stored.
    assert manifest.arrays["x"].grid.edges[0] == ((61, 5), (60, 1), (61, 5), (60, 1), (61, 12))


def test_equal_files_stay_regular(tmp_path: Path) -> None:
    manifest = check(write_archive(tmp_path, [Part(start=6 * n, length=6, chunks=(3, 5, 70)) for n in range(4)]))
    assert manifest.arrays["x"].json["chunk_grid"] == {
        "name": "regular",
        "configuration": {"chunk_shape": [3, 5, 70]},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"zlib": False, "shuffle": False},
        {"fletcher32": True},
        {"endian": "big"},
        {"chunks": (3, 2, 70)},
        {"chunks": (7, 5, 33)},
        {"chunks": None},
        {"chunks": (1, 5, 70), "endian": "big", "zlib": False},
    ],
    ids=str,
)
def test_storage_that_changes_half_way(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = [Part(start=7 * n, length=7) for n in range(2)]
    second = [Part(start=14 + 7 * n, length=7, **changes) for n in range(2)]
    check(write_archive(tmp_path, [*first, *second]))


@pytest.mark.parametrize(
    ("one", "two", "served"),
    [("i2", "f4", "f4"), ("f4", "f8", "f8"), ("u1", "i2", "i2"), ("i4", "f4", "f8"), ("i4", "i8", "i8")],
)
def test_types_that_have_a_common_one(tmp_path: Path, one: str, two: str, served: str) -> None:
    paths = write_archive(tmp_path, [Part(start=0, length=5, dtype=one), Part(start=5, length=4, dtype=two)])
    manifest = check(paths)
    assert manifest.arrays["x"].dtype == np.dtype(served)
    reason = next(e.reason for e in manifest.report if e.path == "x")
    assert f"served as {np.dtype(served).name}" in reason


@pytest.mark.parametrize("dtype", ["i2", "u1", "i4"])
@pytest.mark.parametrize("kind", ["f4", "f8"])
def test_packing_of_every_file_its_own(tmp_path: Path, dtype: str, kind: str) -> None:
    parts = [
        Part(start=5 * n, length=5, dtype=dtype, scale=s, offset=o, packing_dtype=kind, fill=f)
        for n, (s, o, f) in enumerate([(0.01, 273.15, 7), (0.02, -10.0, 7), (1e-3, 0.0, 99), (0.5, 1.0, None)])
    ]
    manifest = check(write_archive(tmp_path, parts), same_stored=False)
    assert not {"scale_factor", "add_offset", "_FillValue"} & set(manifest.arrays["x"].attributes)


def test_equal_packing_stays_packed(tmp_path: Path) -> None:
    parts = [Part(start=5 * n, length=5, dtype="i2", scale=0.01, offset=273.15, fill=7) for n in range(3)]
    manifest = check(write_archive(tmp_path, parts))
    assert manifest.arrays["x"].dtype == np.dtype("i2")


@pytest.mark.parametrize(
    ("dtype", "attributes"),
    [
        ("i2", [{"_FillValue": 5}, {"_FillValue": 9}, {}]),
        ("i2", [{"missing_value": np.int16(5)}, {"missing_value": np.int16(9)}, {"_FillValue": 3}]),
        ("f4", [{"_FillValue": 5.0}, {"missing_value": np.float32(9)}, {}]),
        ("f8", [{"_FillValue": 1e20}, {"_FillValue": np.nan}]),
        ("i1", [{"_Unsigned": "true", "_FillValue": -3}, {"_Unsigned": "true", "_FillValue": -1}]),
        ("i1", [{"_Unsigned": "true", "scale_factor": np.float32(0.5)}, {"scale_factor": np.float32(0.25)}]),
        ("i2", [{"scale_factor": np.float32(0.1)}, {"scale_factor": np.float64(0.1)}]),
        ("i2", [{"scale_factor": np.int32(2)}, {"scale_factor": np.float32(2)}]),
        ("i2", [{"add_offset": np.float32(0.1)}, {}]),
        ("u2", [{"missing_value": np.array([3, 5], "u2")}, {"missing_value": np.uint16(3)}]),
    ],
    ids=str,
)
def test_missing_values_of_every_file_its_own(tmp_path: Path, dtype: str, attributes: list[dict[str, Any]]) -> None:
    paths = []
    for number, own in enumerate(attributes):
        own = dict(own)
        fill = own.pop("_FillValue", None)
        values = np.tile(np.arange(-20, 20), 50).astype(dtype).reshape(10, 200)
        variables = {
            "time": Var(dims=("time",), values=np.arange(10.0) + 10 * number),
            "x": Var(
                dims=("time", "lat"), values=values, attrs=own, options={"fill_value": fill, "chunksizes": (3, 150)}
            ),
        }
        paths.append(write(tmp_path / f"{number}.nc", variables))
    wanted = joined(paths)
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        assert_same(actual, wanted, ("x", "time"))


def test_scan_equals_open_mfdataset(tmp_path: Path) -> None:
    paths = write_archive(tmp_path, [Part(start=5 * n, length=5) for n in range(3)])
    manifest = refindex.scan(tmp_path / "*.nc", workers=1)
    with (
        xr.open_mfdataset(
            sorted(map(str, paths)),
            engine="netcdf4",
            data_vars="minimal",
            compat="no_conflicts",
            join="outer",
            combine="by_coords",
            combine_attrs="drop_conflicts",
            coords="minimal",
        ) as opened,
        open_manifest(manifest) as actual,
    ):
        xr.testing.assert_identical(actual.load().drop_encoding(), opened.load().drop_encoding())


def test_files_in_any_order(tmp_path: Path) -> None:
    paths = write_archive(tmp_path, [Part(start=5 * n, length=5) for n in range(6)])
    shuffled = [paths[n] for n in np.random.default_rng(0).permutation(len(paths))]
    one, two = refindex.scan(paths, workers=1), refindex.scan(shuffled, workers=1)
    with open_manifest(one) as first, open_manifest(two) as second:
        assert_same(first, second)
        assert_same(first, expected(paths))


def test_a_failing_file_among_good_ones(tmp_path: Path) -> None:
    paths = write_archive(tmp_path, [Part(start=5 * n, length=5) for n in range(3)])
    paths[1].write_bytes(paths[1].read_bytes()[:700])
    (tmp_path / "note.nc").write_text("no data")
    manifest = refindex.scan([*paths, tmp_path / "note.nc"], workers=1)
    assert sorted(Path(e.source).name for e in manifest.report.select(Status.FAILED)) == ["00005.nc", "note.nc"]
    with open_manifest(manifest) as actual:
        assert_same(actual, expected([paths[0], paths[2]]))
    with pytest.raises(refindex.RefindexError):
        refindex.scan(paths, workers=1, strict=True)


def test_every_hole_reads_as_that_file_says(tmp_path: Path) -> None:
    """Chunks that were never written, with another fill value in every file."""
    paths = []
    for number, fill in enumerate([1.5, np.nan, -7.0, 0.0]):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(6.0) + 6 * number
            file["time"].make_scale("time")
            x = file.create_dataset("x", (6, 8, 300), "f4", chunks=(2, 4, 300), fillvalue=fill, compression="gzip")
            x[number % 3 * 2] = number + 1
            x.dims[0].attach_scale(file["time"])
        paths.append(path)
    wanted = raw(paths, "x")
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        np.testing.assert_array_equal(actual.x.values, wanted)
        np.testing.assert_array_equal(actual.x[3:17:2, 1::3, 5].values, wanted[3:17:2, 1::3, 5])


def test_nothing_written_at_all(tmp_path: Path) -> None:
    paths = []
    for number, fill in enumerate([3, 4]):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(2.0) + 2 * number
            file["time"].make_scale("time")
            file.create_dataset("x", (2, 5000), "i2", chunks=(1, 500), fillvalue=fill).dims[0].attach_scale(
                file["time"]
            )
        paths.append(path)
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        np.testing.assert_array_equal(actual.x.values, raw(paths, "x"))


def test_series_that_are_inline_chunked_and_contiguous(tmp_path: Path) -> None:
    """Values in the manifest, in chunks, in one piece, and compact in the object header, of one variable."""
    paths = []
    layouts: list[dict[str, Any]] = [
        {},
        {"chunks": (4, 100)},
        {"chunks": (5, 100), "compression": "lzf"},
        {"compact": 1},
    ]
    for number, layout in enumerate(layouts):
        path = tmp_path / f"{number}.h5"
        values = np.arange(500, dtype="i2" if number % 2 else "i4").reshape(5, 100) + 500 * number
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(5.0) + 5 * number
            file["time"].make_scale("time")
            if "compact" in layout:
                properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
                properties.set_layout(h5py.h5d.COMPACT)
                space = h5py.h5s.create_simple(values.shape)
                h5py.h5d.create(file.id, b"x", h5py.h5t.py_create(values.dtype), space, properties)
                file["x"][...] = values
            else:
                file.create_dataset("x", data=values, **layout)
            file["x"].dims[0].attach_scale(file["time"])
        paths.append(path)
    for order in (paths, paths[1:], paths[::-1], [paths[0], paths[2]]):
        with open_manifest(refindex.scan(order, workers=1)) as actual:
            wanted = raw(sorted(order), "x")
            assert actual.x.dtype == wanted.dtype
            np.testing.assert_array_equal(actual.x.values, wanted)


@pytest.mark.parametrize("make", ["szip", "lzf", "scaleoffset", "mask", "nbit"])
def test_filters_of_every_file_its_own(tmp_path: Path, make: str) -> None:
    paths = []
    for number in range(3):
        path = tmp_path / f"{number}.h5"
        values = (np.arange(4 * 600) % 97 + number).astype("i4").reshape(4, 600)
        options: dict[str, Any] = {"chunks": (3, 250)}
        if number and make == "szip":
            if not h5py.h5z.filter_avail(h5py.h5z.FILTER_SZIP):
                pytest.skip("this libhdf5 has no szip")
            options |= {"compression": "szip"}
        elif number and make == "lzf":
            options |= {"compression": "lzf", "shuffle": number == 2}
        elif number and make == "scaleoffset":
            options |= {"scaleoffset": 8}
        elif make == "mask":
            options |= {"compression": "gzip", "shuffle": True}
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(4.0) + 4 * number
            file["time"].make_scale("time")
            x = file.create_dataset("x", data=values, **options)
            x.dims[0].attach_scale(file["time"])
            if make == "mask" and number:
                chunk = np.ascontiguousarray(values[:3, :250])
                x.id.write_direct_chunk((0, 0), chunk.tobytes(), filter_mask=0b11)
        paths.append(path)
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        np.testing.assert_array_equal(actual.x.values, raw(paths, "x"))


def test_strings_of_different_widths(tmp_path: Path) -> None:
    paths = []
    for number, width in enumerate((4, 8, 4)):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(300.0) + 300 * number
            file["time"].make_scale("time")
            values = np.array([f"{n % 7 * 10 ** (width - 1)}"[:width] for n in range(300)], dtype=f"S{width}")
            file.create_dataset("x", data=values, chunks=(70,), compression="gzip").dims[0].attach_scale(file["time"])
        paths.append(path)
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        wanted = raw(paths, "x")
        assert wanted.dtype == np.dtype("S8")
        np.testing.assert_array_equal(np.asarray(actual.x.values).astype("S8"), wanted)


@pytest.mark.parametrize("same", [True, False])
def test_compound_types(tmp_path: Path, same: bool) -> None:
    paths = []
    for number in range(2):
        path = tmp_path / f"{number}.h5"
        kind = np.dtype([("a", "i4"), ("b", "f8" if same or number == 0 else "f4")])
        values = np.zeros(300, dtype=kind)
        values["a"] = np.arange(300) + number
        values["b"] = 0.5
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(300.0) + 300 * number
            file["time"].make_scale("time")
            file.create_dataset("x", data=values, chunks=(70,)).dims[0].attach_scale(file["time"])
        paths.append(path)
    if not same:
        with pytest.raises(refindex.JoinError, match=r"/x: the type is .* in .*0\.h5 and .* in .*1\.h5"):
            refindex.scan(paths, workers=1)
        return
    refindex.scan(paths, workers=1).save(tmp_path / "archive.refindex")
    with refindex.open(tmp_path / "archive.refindex") as archive:
        served = np.asarray(archive.group["x"][...])
    for field in ("a", "b"):
        np.testing.assert_array_equal(served[field], raw(paths, "x")[field])


def test_strings_of_variable_length(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        variables = series(4 * number, 4)
        variables["name"] = Var(dims=("time",), values=np.array([f"ü{number}", "", "x" * number, "z"], dtype=object))
        paths.append(write(tmp_path / f"{number}.nc", variables))
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        wanted = joined(paths, data_vars="minimal", coords="minimal", compat="override")
        assert actual["name"].values.tolist() == wanted["name"].values.tolist()


def test_bytes_of_variable_length_that_some_files_lack(tmp_path: Path) -> None:
    paths = []
    for number in range(2):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(3.0) + 3 * number
            file["time"].make_scale("time")
            file.create_dataset("y", data=np.arange(3)).dims[0].attach_scale(file["time"])
            if number:
                kind = h5py.vlen_dtype(np.dtype("u1"))
                x = file.create_dataset("x", (3,), kind)
                x[0], x[2] = np.array([1, 2], "u1"), np.array([3], "u1")
                x.dims[0].attach_scale(file["time"])
        paths.append(path)
    manifest = refindex.scan(paths, workers=1)
    with open_manifest(manifest) as actual:
        assert [bytes(v) for v in actual.x.values] == [b"", b"", b"", b"\1\2", b"", b"\3"]


def test_virtual_datasets(tmp_path: Path) -> None:
    paths = []
    for number in range(3):
        with h5py.File(tmp_path / f"part{number}.h5", "w") as file:
            file.create_dataset("d", data=np.arange(1000.0).reshape(5, 200) + 1000 * number, chunks=(2, 200))
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w") as file:
            file["time"] = np.arange(5.0) + 5 * number
            file["time"].make_scale("time")
            layout = h5py.VirtualLayout((5, 200), "f8")
            layout[...] = h5py.VirtualSource(f"part{number}.h5", "d", (5, 200))
            file.create_virtual_dataset("x", layout, fillvalue=-1)
            file["x"].dims[0].attach_scale(file["time"])
        paths.append(path)
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        np.testing.assert_array_equal(actual.x.values, raw(paths, "x"))


def test_values_of_a_joined_file_that_changed_are_an_error(tmp_path: Path) -> None:
    paths = write_archive(tmp_path, [Part(start=5 * n, length=5) for n in range(2)])
    manifest = refindex.scan(paths, workers=1)
    write_archive(tmp_path, [Part(start=5, length=4)], seed=3)
    with open_manifest(manifest) as actual:
        with pytest.raises(refindex.StaleSourceError):
            actual.x[5:].load()
        np.testing.assert_array_equal(actual.x[:5].values, decoded(paths[0]).x.values)
