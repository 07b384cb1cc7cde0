"""Tiles, stacks, merges, groups and dimensions of every kind, each value where its file has it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

import refindex
from refindex import JoinError
from tests.join.files import Var, assert_same, decoded, joined, open_manifest, series, write


def tile(folder: Path, time: int, band: int, *, steps: int = 4, dtype: str = "f4", size: int = 300) -> Path:
    """``x(time, lat, lon)`` of a band of descending latitudes, ``z(lat)`` and ``s(time, m)`` beside it."""
    random = np.random.default_rng((time, band))
    return write(
        folder / f"t{time}_b{band}.nc",
        {
            "time": Var(dims=("time",), values=np.arange(time, time + steps), attrs={"units": "days since 2000-01-01"}),
            "lat": Var(dims=("lat",), values=90.0 - 10 * band - np.arange(3)),
            "lon": Var(dims=("lon",), values=np.arange(float(size))),
            "x": Var(
                dims=("time", "lat", "lon"),
                values=random.integers(0, 99, (steps, 3, size)).astype(dtype),
                options={"chunksizes": (3, 2, 200), "zlib": True},
            ),
            "z": Var(dims=("lat",), values=np.full(3, band, "f8")),
            "s": Var(dims=("time", "m"), values=np.random.default_rng(time).random((steps, 500))),
        },
    )


def place(actual: xr.Dataset, path: Path) -> tuple[xr.Dataset, xr.Dataset]:
    """A file, and the part of a joined dataset that has its coordinates."""
    own = decoded(path)
    return actual.sel({dim: own[dim] for dim in own.dims if dim in own.coords}), own


@pytest.mark.parametrize("times", [(0, 4, 8), (0,)])
def test_descending_tiles(tmp_path: Path, times: tuple[int, ...]) -> None:
    paths = [tile(tmp_path, t, b) for t in times for b in range(3)]
    with open_manifest(refindex.scan(paths[::-1], workers=1)) as actual:
        assert actual.x.shape == (4 * len(times), 9, 300)
        assert (np.diff(actual.lat.values) < 0).all()
        for path in paths:
            assert_same(*place(actual, path), names=("x", "z", "s", "time", "lat", "lon"))


@pytest.mark.parametrize("dtype", ["f4", "i2"])
@pytest.mark.parametrize("missing", [(0, 0), (4, 1), (8, 2)])
def test_tiles_of_which_one_is_missing(tmp_path: Path, dtype: str, missing: tuple[int, int]) -> None:
    places = [(t, b) for t in (0, 4, 8) for b in range(3)]
    paths = [tile(tmp_path, *at, dtype=dtype) for at in places if at != missing]
    manifest = refindex.scan(paths, workers=1)
    assert "1 of 9 places along time x lat have no file" in str(manifest.report)
    with open_manifest(manifest) as actual:
        assert actual.x.dtype == np.float32
        for path in paths:
            part, own = place(actual, path)
            np.testing.assert_array_equal(part.x.values, own.x.values)
            assert_same(part, own, names=("z", "s", "time", "lat"))
        gap = actual.x.values[missing[0] : missing[0] + 4, missing[1] * 3 : missing[1] * 3 + 3]
        assert np.isnan(gap).all()
        assert int(np.isnan(actual.x.values).sum()) == gap.size


def test_tiles_whose_times_overlap_in_part(tmp_path: Path) -> None:
    """Taking the first file's times would lose the other tile's values there."""
    paths = [tile(tmp_path, 0, 0), tile(tmp_path, 2, 1)]
    with pytest.raises(JoinError, match="overlap in time"):
        refindex.scan(paths, workers=1)
    with pytest.raises(JoinError, match=r"/x: .*t2_b1\.nc overlaps in time with .*t0_b0\.nc, which does not have"):
        refindex.scan(paths, workers=1, overlap="first")
    everywhere = [tile(tmp_path, t, b) for t in (0, 2) for b in (0, 1)]
    with open_manifest(refindex.scan(everywhere, workers=1, overlap="first")) as actual:
        for path in everywhere[:2]:
            assert_same(*place(actual, path), names=("x", "z", "s"))
        assert_same(*(d.isel(time=slice(-2, None)) for d in place(actual, everywhere[3])), names=("x", "z", "s"))


def test_one_tile_per_latitude(tmp_path: Path) -> None:
    """Tiles of one element each: nothing in them says in which direction they go."""
    paths = [
        write(
            tmp_path / f"{lat}.nc",
            {"lat": Var(dims=("lat",), values=np.array([lat])), "x": Var(dims=("lat",), values=np.array([lat * 2]))},
        )
        for lat in (50.0, 40.0, 60.0)
    ]
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        assert actual.x.values.tolist() == [80, 100, 120]


def members(folder: Path, **attrs: Any) -> list[Path]:
    return [
        write(folder / f"run_r{n}i1_2020010{n}.nc", series(0, 4, seed=n), {"run": n * 10, **attrs}) for n in (3, 1, 2)
    ]


@pytest.mark.parametrize(
    ("stack", "values"),
    [
        ({"member": r"_r(\d+)i"}, [1, 2, 3]),
        ({"member": "@run"}, [10, 20, 30]),
        ("member", ["run_r1i1_20200101.nc", "run_r2i1_20200102.nc", "run_r3i1_20200103.nc"]),
        (r"member=_r(\d+)i", [1, 2, 3]),
        ({"day": "%Y%m%d"}, [np.datetime64(f"2020-01-0{n}", "ns") for n in (1, 2, 3)]),
    ],
    ids=str,
)
def test_stack(tmp_path: Path, stack: str | Mapping[str, str], values: list[Any]) -> None:
    paths = members(tmp_path)
    name = "day" if "day" in stack else "member"
    with open_manifest(refindex.scan(paths, workers=1, stack=stack)) as actual:
        by_name = dict(zip(actual[name].values.tolist(), range(3), strict=True))
        assert sorted(by_name) == sorted(np.array(values).tolist())
        assert actual.x.dims == (name, "time", "lat")
        for number, path in zip((3, 1, 2), paths, strict=True):
            at = by_name[np.array(values)[number - 1].item() if not isinstance(values[0], str) else values[number - 1]]
            np.testing.assert_array_equal(actual.x.values[at], decoded(path).x.values)
        assert actual.time.dims == ("time",)


def test_stack_by_a_scalar_variable(tmp_path: Path) -> None:
    paths = []
    for n in range(3):
        level = Var(values=np.float32(850 - 100 * n), attrs={"units": "hPa"})
        paths.append(write(tmp_path / f"{n}.nc", series(0, 4, seed=n) | {"level": level}))
    with open_manifest(refindex.scan(paths, workers=1, stack="level")) as actual:
        assert actual.level.attrs["units"] == "hPa"
        for path in paths:
            own = decoded(path)
            np.testing.assert_array_equal(actual.x.sel(level=own.level).values, own.x.values)


def test_stack_and_time(tmp_path: Path) -> None:
    paths = {
        (r, t): write(tmp_path / f"r{r}_{t}.nc", series(t, 5, seed=r, options={"chunksizes": (2, 3)}))
        for r in (1, 2)
        for t in (0, 5, 10)
    }
    with open_manifest(refindex.scan(list(paths.values()), workers=1, stack={"member": r"r(\d+)_"})) as actual:
        assert actual.x.shape == (2, 15, 3)
        for (r, t), path in paths.items():
            np.testing.assert_array_equal(actual.x.sel(member=r).values[t : t + 5], decoded(path).x.values)


def test_stack_without_a_value(tmp_path: Path) -> None:
    paths = members(tmp_path)
    with pytest.raises(JoinError, match=r"(?s)20200103\.nc: nothing for the new dimension.*20200101\.nc: nothing"):
        refindex.scan(paths, workers=1, stack={"member": r"nowhere(\d+)"})
    with pytest.raises(JoinError, match="nothing for the new dimension member"):
        refindex.scan(paths, workers=1, stack={"member": "@nowhere"})


def test_stack_of_equal_values(tmp_path: Path) -> None:
    with pytest.raises(JoinError, match="have the same member"):
        refindex.scan(members(tmp_path), workers=1, stack={"member": r"(run)"})


def test_stack_with_packing_and_holes(tmp_path: Path) -> None:
    """What is encoded otherwise in each file, one dimension up."""
    paths = []
    for n in range(3):
        values = np.arange(4 * 900, dtype="i2").reshape(4, 900)
        x = Var(
            dims=("time", "m"),
            values=values,
            attrs={"scale_factor": 0.1 * (n + 1)},
            options={"chunksizes": (2 + n, 500), "fill_value": n},
        )
        paths.append(write(tmp_path / f"r{n}.nc", {"time": series(0, 4)["time"], "x": x}))
    with open_manifest(refindex.scan(paths, workers=1, stack={"member": r"r(\d+)"})) as actual:
        for n, path in enumerate(paths):
            np.testing.assert_array_equal(actual.x.values[n], decoded(path).x.values)
            np.testing.assert_array_equal(actual.x.isel(member=n, time=slice(1, 3)).values, decoded(path).x.values[1:3])


def variable(folder: Path, name: str, start: int, *, length: int = 5, size: int = 400) -> Path:
    values = np.random.default_rng((start, len(name))).random((length, size))
    return write(
        folder / f"{name}_{start}.nc",
        {"time": series(start, length)["time"], name: Var(dims=("time", "m"), values=values)},
    )


def test_merge(tmp_path: Path) -> None:
    paths = [variable(tmp_path, name, start) for name in ("t2m", "pr", "u") for start in (0, 5, 10)]
    manifest = refindex.scan(paths, workers=1, merge=True)
    with open_manifest(manifest) as actual:
        for name in ("t2m", "pr", "u"):
            own = [p for p in paths if p.name.startswith(name)]
            assert_same(actual, joined(own), (name, "time"))
    with pytest.raises(JoinError, match="pass merge=True"):
        refindex.scan(paths, workers=1, join=True)


def test_merge_with_a_variable_that_ends_early(tmp_path: Path) -> None:
    paths = [variable(tmp_path, "t2m", 0), variable(tmp_path, "t2m", 5), variable(tmp_path, "pr", 0)]
    with open_manifest(refindex.scan(paths, workers=1, merge=True)) as actual:
        np.testing.assert_array_equal(actual.pr.values[:5], decoded(paths[2]).pr.values)
        assert np.isnan(actual.pr.values[5:]).all()


def test_merge_of_variables_that_differ(tmp_path: Path) -> None:
    one = write(tmp_path / "a.nc", series(0, 4))
    two = write(tmp_path / "b.nc", series(0, 4, seed=1) | {"y": Var(dims=("time",), values=np.arange(4))})
    with pytest.raises(JoinError, match=rf"/x: values differ between {one} and {two}"):
        refindex.scan([one, two], workers=1, merge=True)
    with open_manifest(refindex.scan([one, two], workers=1, merge=True, on_difference="first")) as actual:
        np.testing.assert_array_equal(actual.x.values, decoded(one).x.values)


def test_merge_of_parts_that_overlap(tmp_path: Path) -> None:
    paths = [variable(tmp_path, "t2m", 0), variable(tmp_path, "pr", 3)]
    with pytest.raises(JoinError, match="overlap in time"):
        refindex.scan(paths, workers=1, merge=True)
    with pytest.raises(JoinError, match="which does not have these values"):
        refindex.scan(paths, workers=1, merge=True, overlap="first")


def test_a_file_of_constants_beside_the_series(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.nc", series(4 * n, 4)) for n in range(3)]
    land = {
        "lat": series(0, 1)["lat"],
        "land": Var(dims=("lat", "m"), values=np.random.default_rng(0).random((3, 900))),
    }
    static = write(tmp_path / "static.nc", land)
    with open_manifest(refindex.scan([*paths, static], workers=1)) as actual:
        assert_same(actual, joined(paths, data_vars="minimal"), ("x", "time", "lat"))
        np.testing.assert_array_equal(actual.land.values, land["land"].values)


def test_groups_with_dimensions_of_their_own(tmp_path: Path) -> None:
    paths = []
    for n in range(3):
        hourly = Var(dims=("time",), values=np.arange(4.0) / 24 + n, attrs={"units": "days since 2000-01-01"})
        variables = series(2 * n, 2) | {
            "hourly/time": hourly,
            "hourly/y": Var(dims=("time", "lat"), values=np.random.default_rng(n).random((4, 3))),
            "flat/w": Var(dims=("time", "m"), values=np.random.default_rng(n).random((2, 800))),
        }
        paths.append(_write_groups(tmp_path / f"{n}.nc", variables))
    manifest = refindex.scan(paths, workers=1)
    for group, names in (("", ("x", "time")), ("hourly", ("y", "time")), ("flat", ("w",))):
        wanted = xr.concat([decoded(path, group=group or None) for path in paths], "time", data_vars="minimal")
        with open_manifest(manifest, group=group) as actual:
            assert_same(actual, wanted, names)


def _write_groups(path: Path, variables: Mapping[str, Var]) -> Path:
    with netCDF4.Dataset(path, "w") as file:
        file.createDimension("time", 2)
        file.createDimension("lat", 3)
        file.createGroup("hourly").createDimension("time", 4)
        file.createGroup("flat").createDimension("m", 800)
        for name, var in variables.items():
            made = file.createVariable(name, np.asarray(var.values).dtype, var.dims)
            made.setncatts(dict(var.attrs))
            made[...] = var.values
    return path


def test_dimensions_without_coordinates(tmp_path: Path) -> None:
    paths = [
        write(
            tmp_path / f"{n}.nc", {"x": Var(dims=("time", "m"), values=np.random.default_rng(n).random((3 + n, 500)))}
        )
        for n in range(3)
    ]
    with pytest.raises(JoinError, match="no coordinate says which comes first"):
        refindex.scan(paths, workers=1)
    for order in (paths, [paths[2], paths[0], paths[1]]):
        with open_manifest(refindex.scan(order, workers=1, concat_dim="time")) as actual:
            np.testing.assert_array_equal(actual.x.values, np.concatenate([decoded(p).x.values for p in order]))
    with pytest.raises(JoinError, match="no file has a dimension nowhere; there are"):
        refindex.scan(paths, workers=1, concat_dim="nowhere")


def test_equal_sizes_without_coordinates(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.nc", {"x": Var(dims=("time", "m"), values=np.full((3, 500), n))}) for n in range(2)]
    with pytest.raises(JoinError):
        refindex.scan(paths, workers=1)
    with open_manifest(refindex.scan(paths, workers=1, concat_dim="time")) as actual:
        np.testing.assert_array_equal(actual.x.values[:, 0], [0, 0, 0, 1, 1, 1])


def test_stations_by_name(tmp_path: Path) -> None:
    paths = []
    for n, names in enumerate((["Köln", "Bonn"], ["Aachen"], ["Zug", "Ulm"])):
        paths.append(
            write(
                tmp_path / f"{n}.nc",
                {
                    "station": Var(dims=("station",), values=np.array(names, dtype=object)),
                    "x": Var(dims=("station", "m"), values=np.random.default_rng(n).random((len(names), 400))),
                },
            )
        )
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        assert actual.station.values.tolist() == ["Köln", "Bonn", "Aachen", "Zug", "Ulm"]
        np.testing.assert_array_equal(actual.x.values, np.concatenate([decoded(p).x.values for p in paths]))
    again = write(tmp_path / "3.nc", {"station": Var(dims=("station",), values=np.array(["Ulm"], dtype=object))})
    with pytest.raises(JoinError, match=r"2\.nc and .*3\.nc overlap in station: both have 'Ulm'"):
        refindex.scan([*paths, again], workers=1, join=True)


def test_scalars_that_are_equal(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.nc", series(3 * n, 3) | {"crs": Var(values=np.int32(4326))}) for n in range(3)]
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        assert actual.crs.values == 4326
        assert actual.crs.shape == ()


@pytest.mark.parametrize("lengths", [(3, 0, 2), (0, 3), (0, 0, 4), (3, 0, 0)])
@pytest.mark.parametrize("large", [False, True])
def test_files_without_any_step(tmp_path: Path, lengths: tuple[int, ...], large: bool) -> None:
    paths = []
    for n, length in enumerate(lengths):
        variables = series(5 * n, length)
        if large:
            values = np.random.default_rng(n).random((length, 500))
            variables["w"] = Var(dims=("time", "m"), values=values, options={"chunksizes": (2, 300)})
        paths.append(write(tmp_path / f"{n}.nc", variables, unlimited=("time",)))
    with open_manifest(refindex.scan(paths, workers=1)) as actual:
        wanted = joined([p for p, n in zip(paths, lengths, strict=True) if n], data_vars="minimal")
        assert_same(actual, wanted, ("x", "time", "lat", *(["w"] if large else [])))


def test_one_file_with_a_stack(tmp_path: Path) -> None:
    path = write(tmp_path / "r7.nc", series(0, 4))
    with open_manifest(refindex.scan([path], workers=1, stack={"member": r"r(\d)"})) as actual:
        assert actual.member.values.tolist() == [7]
        np.testing.assert_array_equal(actual.x.values[0], decoded(path).x.values)
