"""Archives that grow and shrink, through the public functions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

import refindex
from refindex import JoinError, NotFoundError, StaleSourceError, UnsupportedError

SUFFIXES = [".refindex", ".sqlite"]


def write(path: Path, start: float, length: int = 4, *, seed: int = 0, name: str = "x", **options: Any) -> Path:
    """``x(time, lat, m)`` in chunks, small ``s(time)``, and ``land(lat, m)``, the same in all files."""
    random = np.random.default_rng((abs(int(start)), seed))
    dtype, scale, lat = options.pop("dtype", "f4"), options.pop("scale", None), options.pop("lat", 0.0)
    attrs, land = options.pop("attrs", {}), options.pop("land", 0)
    units = options.pop("units", "days since 2000-01-01")
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts({"title": "made up", **attrs})
        for dim, size in (("time", length), ("lat", 3), ("m", 120)):
            file.createDimension(dim, size)
        time = file.createVariable("time", "f8", ("time",))
        time.units = units
        time[:] = start + np.arange(length)
        file.createVariable("lat", "f8", ("lat",))[:] = lat + np.arange(3.0)
        options = {"chunksizes": (3, 2, 100), "zlib": True} | options
        dtype = np.dtype(dtype).newbyteorder(">" if options.get("endian") == "big" else "=")
        x = file.createVariable(name, dtype, ("time", "lat", "m"), **options)
        if scale:
            x.scale_factor = scale
        x.set_auto_maskandscale(False)
        x[:] = random.integers(1, 100, (length, 3, 120))
        file.createVariable("s", "f8", ("time",))[:] = np.random.default_rng(abs(int(start))).random(length)
        file.createVariable("land", "f8", ("lat", "m"))[:] = np.arange(360.0).reshape(3, 120) + lat + land
    return path


def own(path: Path) -> xr.Dataset:
    with xr.open_dataset(path, engine="netcdf4") as opened:
        return opened.load()


def opened(archive: Path, **options: Any) -> xr.Dataset:
    with refindex.open(archive, **options) as found, found.to_xarray() as dataset:
        return dataset.load()


def check(archive: Path, paths: list[Path], *, fresh: bool = True) -> xr.Dataset:
    """Every file's values where its coordinates are; values and attributes of a scan of the same files."""
    actual = opened(archive)
    for path in paths:
        mine = own(path)
        part = actual.sel({dim: mine[dim] for dim in ("time", "lat")})
        for name in mine.variables:
            np.testing.assert_array_equal(part[name].values, mine[name].values, err_msg=f"{path.name}: {name}")
    assert actual.sizes["time"] == len({t for path in paths for t in own(path).time.values.tolist()})
    if fresh:
        anew = archive.parent / f"fresh{archive.suffix}"
        refindex.scan(paths, workers=1).save(anew, overwrite=True)
        wanted = opened(anew)
        xr.testing.assert_identical(actual, wanted)
        assert {n: v.dtype for n, v in actual.variables.items()} == {n: v.dtype for n, v in wanted.variables.items()}
    return actual


@pytest.fixture(params=SUFFIXES)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"archive{request.param}"


def series(folder: Path, starts: tuple[int, ...] = (0, 4, 12), **options: Any) -> list[Path]:
    return [write(folder / f"{start:03d}.nc", start, **options) for start in starts]


def test_append_behind_between_and_before(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    for version, start in enumerate((16, 8, -4), start=1):
        paths.append(write(tmp_path / f"{start:03d}.nc", start))
        done = refindex.append(archive, paths[-1], workers=1)
        assert (done.version, done.added, done.skipped) == (version, (str(paths[-1]),), ())
        check(archive, paths)
    for version in range(3):
        assert opened(archive, version=version).sizes["time"] == 12 + 4 * version


def test_append_several_in_one_commit(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    more = series(tmp_path, (20, -4, 8, 16))
    done = refindex.append(archive, [*more, *paths], workers=1)
    assert done.version == 1
    assert sorted(done.skipped) == sorted(map(str, paths))
    check(archive, [*paths, *more])


def test_nothing_new(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    done = refindex.append(archive, paths, workers=1)
    assert (done.version, done.added, len(done.skipped)) == (0, (), 3)
    assert len(refindex.log(archive)) == 1


def test_append_to_the_archive_of_one_file(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths[0]).save(archive)
    refindex.append(archive, paths[2], workers=1)
    refindex.append(archive, paths[1], workers=1)
    check(archive, paths)


DIFFERENT: dict[str, dict[str, Any]] = {
    "chunks": {"chunksizes": (2, 3, 50)},
    "no compression": {"zlib": False},
    "no chunks": {"contiguous": True, "chunksizes": None, "zlib": False},
    "byte order": {"endian": "big"},
    "type": {"dtype": "f8"},
    "narrower type": {"dtype": "i2"},
    "packing": {"dtype": "i2", "scale": 0.1},
    "fill": {"fill_value": 5},
    "attributes": {"attrs": {"title": "another", "more": 1}},
    "time": {"units": "days since 2000-01-01 00:00:00"},
}


@pytest.mark.parametrize("how", DIFFERENT)
def test_append_what_differs(archive: Path, tmp_path: Path, how: str) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    paths.append(write(tmp_path / "016.nc", 16, **DIFFERENT[how]))
    refindex.append(archive, paths[-1], workers=1)
    check(archive, paths, fresh=how != "time")
    paths.append(write(tmp_path / "020.nc", 20))
    refindex.append(archive, paths[-1], workers=1)
    paths.append(write(tmp_path / "008.nc", 8, **DIFFERENT[how]))
    refindex.append(archive, paths[-1], workers=1)
    check(archive, paths, fresh=how != "time")


def test_append_another_packing(archive: Path, tmp_path: Path) -> None:
    """What was served packed is served unpacked from then on, the first chunks as well."""
    paths = series(tmp_path, dtype="i2", scale=0.1)
    refindex.scan(paths, workers=1).save(archive)
    for start, scale in ((16, 0.25), (8, 0.1)):
        paths.append(write(tmp_path / f"{start:03d}.nc", start, dtype="i2", scale=scale))
        refindex.append(archive, paths[-1], workers=1)
        check(archive, paths)


def test_append_other_units_of_time(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    for n, (start, units) in enumerate([(0, "hours since 2001-01-01"), (-100, "days since 2000-01-01 06:00")]):
        paths.append(write(tmp_path / f"more{n}.nc", start, units=units))
        refindex.append(archive, paths[-1], workers=1)
        check(archive, paths, fresh=False)


def test_append_what_cannot_be_joined(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    bad = {
        "overlap": (write(tmp_path / "a.nc", 2, seed=1), "overlap in time"),
        "constant": (write(tmp_path / "b.nc", 20, land=1), "/land: values differ"),
        "rank": (write(tmp_path / "c.nc", 24, name="s2"), ""),
    }
    for path, message in list(bad.values())[:2]:
        with pytest.raises(JoinError, match=message):
            refindex.append(archive, path, workers=1)
    with pytest.raises(JoinError) as caught:
        refindex.append(archive, [bad["overlap"][0], bad["constant"][0]], workers=1)
    assert "overlap in time" in str(caught.value)
    assert [commit.version for commit in refindex.log(archive)] == [0]
    check(archive, paths)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_replace(archive: Path, tmp_path: Path, which: int) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    write(paths[which], (0, 4, 12)[which], seed=9, chunksizes=(4, 3, 120))
    with pytest.raises(StaleSourceError, match=rf"1 file is in the archive.*{paths[which].name}.*--replace"):
        refindex.append(archive, paths, workers=1)
    done = refindex.append(archive, paths, workers=1, replace=True)
    assert done.replaced == (str(paths[which]),)
    assert len(done.skipped) == 2
    check(archive, paths)


def test_replace_with_a_longer_file(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    write(paths[2], 12, 9, seed=3)
    write(paths[1], 4, 6, seed=3)
    refindex.append(archive, paths, workers=1, replace=True)
    check(archive, paths)


def test_replace_all(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    for path, start in zip(paths, (0, 4, 12), strict=True):
        write(path, start, seed=5)
    refindex.append(archive, paths, workers=1, replace=True)
    check(archive, paths)


def test_replace_the_only_file(archive: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", 0)
    refindex.scan(path).save(archive)
    write(path, 0, 6, seed=2)
    refindex.append(archive, path, workers=1, replace=True)
    check(archive, [path])


def test_replace_by_another_constant(archive: Path, tmp_path: Path) -> None:
    """The file in which a constant is stored comes with another one, and the others still have the old."""
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    write(paths[0], 0, seed=1, land=7)
    with pytest.raises(JoinError, match="/land: values differ"):
        refindex.append(archive, paths, workers=1, replace=True)


@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)])
def test_remove(archive: Path, tmp_path: Path, gone: tuple[int, ...]) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    done = refindex.remove(archive, [paths[n] for n in gone])
    assert sorted(done.removed) == [str(paths[n]) for n in gone]
    left = [path for n, path in enumerate(paths) if n not in gone]
    check(archive, left)
    refindex.append(archive, paths, workers=1)
    check(archive, paths)


def test_remove_by_glob_and_what_is_not_there(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    with pytest.raises(NotFoundError, match=r"nothing\.nc: .* has no such file"):
        refindex.remove(archive, tmp_path / "nothing.nc")
    with pytest.raises(NotFoundError, match="nothing would be left"):
        refindex.remove(archive, tmp_path / "*.nc")
    assert refindex.remove(archive, str(tmp_path / "00*.nc"), dry_run=True).version == 0
    assert len(refindex.remove(archive, str(tmp_path / "00*.nc")).removed) == 2
    check(archive, paths[2:])


def test_remove_a_file_that_is_deleted(archive: Path, tmp_path: Path) -> None:
    """What all files share is stored in the first: without it, the archive would have no ``land``."""
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    paths[1].unlink()
    refindex.remove(archive, paths[1])
    paths[0].unlink()
    with pytest.raises(UnsupportedError, match="/land is stored there for all files, and cannot be read any more"):
        refindex.remove(archive, paths[0])
    assert len(refindex.log(archive)) == 2


def tiles(folder: Path, **options: Any) -> dict[tuple[int, int], Path]:
    return {(t, b): write(folder / f"{t}_{b}.nc", t, seed=b, lat=3.0 * b, **options) for t in (0, 4, 8) for b in (0, 1)}


def test_tiles_that_come_one_by_one(archive: Path, tmp_path: Path) -> None:
    paths = list(tiles(tmp_path).values())
    refindex.scan(paths[:2], workers=1).save(archive)
    for n, path in enumerate(paths[2:], start=3):
        refindex.append(archive, path, workers=1)
        actual = check(archive, paths[:n], fresh=n % 2 == 0)
        assert int(np.isnan(actual.x.values).sum()) == (4 * 3 * 120 if n % 2 else 0)


@pytest.mark.parametrize("dtype", ["f4", "i2", "i4"])
@pytest.mark.parametrize("gone", [(0, 0), (4, 1), (8, 0)])
def test_a_tile_that_goes(archive: Path, tmp_path: Path, gone: tuple[int, int], dtype: str) -> None:
    """Its place reads as missing, never as a number that could be a value."""
    paths = tiles(tmp_path, dtype=dtype)
    refindex.scan(list(paths.values()), workers=1).save(archive)
    refindex.remove(archive, paths[gone])
    left = [path for at, path in paths.items() if at != gone]
    actual = check(archive, left, fresh=False)
    hole = actual.x.values[gone[0] : gone[0] + 4, gone[1] * 3 : gone[1] * 3 + 3]
    assert np.isnan(hole).all()
    assert int(np.isnan(actual.x.values).sum()) == hole.size
    refindex.append(archive, paths[gone], workers=1)
    check(archive, list(paths.values()), fresh=False)


def test_stacked_members_that_come_later(archive: Path, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"r{n}.nc", 0, seed=n) for n in range(4)]
    refindex.scan(paths[1:3], workers=1, stack={"member": r"r(\d)"}).save(archive)
    refindex.append(archive, paths[3], workers=1)
    refindex.append(archive, paths[0], workers=1)
    actual = opened(archive)
    assert actual.member.values.tolist() == [0, 1, 2, 3]
    for n, path in enumerate(paths):
        np.testing.assert_array_equal(actual.x.values[n], own(path).x.values)
    write(paths[1], 0, seed=9)
    refindex.append(archive, paths[1], workers=1, replace=True)
    np.testing.assert_array_equal(opened(archive).x.values[1], own(paths[1]).x.values)
    refindex.remove(archive, paths[0])
    assert opened(archive).member.values.tolist() == [1, 2, 3]


def test_stacked_archive_of_which_all_is_replaced(archive: Path, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"r{n}.nc", 0, seed=n) for n in range(2)]
    refindex.scan(paths, workers=1, stack={"member": r"r(\d)"}).save(archive)
    for n, path in enumerate(paths):
        write(path, 0, seed=n + 7)
    refindex.append(archive, paths, workers=1, replace=True)
    for n, path in enumerate(paths):
        np.testing.assert_array_equal(opened(archive).x.values[n], own(path).x.values)


def test_side_by_side(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths[:2], join=False, workers=1).save(archive)
    refindex.append(archive, paths[2], workers=1)
    for path in paths:
        with refindex.open(archive) as found, found.to_xarray(group=path.stem) as dataset:
            xr.testing.assert_equal(dataset.load(), own(path))
    write(paths[0], 0, seed=1)
    with pytest.raises(UnsupportedError, match="a group of its own"):
        refindex.append(archive, paths[0], workers=1, replace=True)
    with pytest.raises(UnsupportedError):
        refindex.remove(archive, paths[0])


def test_dimensions_without_coordinates(archive: Path, tmp_path: Path) -> None:
    paths = []
    for n in range(3):
        path = tmp_path / f"{n}.nc"
        xr.Dataset({"x": (("time", "m"), np.random.default_rng(n).random((3, 300)))}).to_netcdf(path)
        paths.append(path)
    refindex.scan(paths[:2], concat_dim="time", workers=1).save(archive)
    refindex.append(archive, paths[2], workers=1)
    np.testing.assert_array_equal(opened(archive).x.values, np.concatenate([own(p).x.values for p in paths]))
    refindex.remove(archive, paths[1])
    np.testing.assert_array_equal(opened(archive).x.values, np.concatenate([own(p).x.values for p in paths[::2]]))


def test_overlap_last_does_not_take_the_first(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    late = write(tmp_path / "late.nc", 0, seed=5)
    for options in ({}, {"overlap": "last"}, {"overlap": "last", "on_difference": "first"}):
        with pytest.raises(JoinError):
            refindex.append(archive, late, workers=1, **options)  # type: ignore[arg-type]
    longer = write(tmp_path / "longer.nc", 2, 5, seed=6)
    refindex.append(archive, longer, workers=1, overlap="last")
    actual = opened(archive)
    np.testing.assert_array_equal(actual.x.sel(time=own(longer).time).values, own(longer).x.values)
    np.testing.assert_array_equal(actual.x.values[:2], own(paths[0]).x.values[:2])


def test_variables_of_a_merged_archive_that_come_later(archive: Path, tmp_path: Path) -> None:
    first = [write(tmp_path / f"a{start}.nc", start, name="a") for start in (0, 4)]
    later = [write(tmp_path / f"b{start}.nc", start, name="b") for start in (0, 4)]
    refindex.scan(first, workers=1, merge=True).save(archive)
    refindex.append(archive, later, workers=1)
    actual = opened(archive)
    for name, paths in (("a", first), ("b", later)):
        np.testing.assert_array_equal(actual[name].values, np.concatenate([own(p)[name].values for p in paths]))


def test_a_variable_that_was_missing_is_not_filled_in(archive: Path, tmp_path: Path) -> None:
    """An archive does not tell what was missing from what is: better an error than values that are lost."""
    paths = [write(tmp_path / f"{name}{start}.nc", start, name=name) for start in (0, 4) for name in "ab"]
    refindex.scan(paths[:3], workers=1, merge=True).save(archive)
    for options in ({}, {"on_difference": "first"}):
        with pytest.raises(JoinError, match="/b: "):
            refindex.append(archive, paths[3], workers=1, **options)  # type: ignore[arg-type]


def test_restore_diff_and_vacuum(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths[:2], workers=1).save(archive)
    refindex.append(archive, paths[2], workers=1)
    assert refindex.diff(archive, 0).sources_added == (str(paths[2]),)
    assert refindex.restore(archive, 0) == 2
    check(archive, paths[:2])
    assert not refindex.diff(archive, 0, 2)
    assert [c.operation for c in refindex.log(archive)] == ["restore", "append", "write"]
    refindex.vacuum(archive, keep_versions=1)
    assert [c.version for c in refindex.log(archive)] == [2]
    check(archive, paths[:2])
    refindex.append(archive, paths[2], workers=1)
    check(archive, paths)


def test_dry_run(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths[:2], workers=1).save(archive)
    done = refindex.append(archive, paths[2], workers=1, dry_run=True)
    assert (done.version, done.added) == (0, (str(paths[2]),))
    assert len(done.report)
    check(archive, paths[:2])


def test_no_archive(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nc", 0)
    for call in (
        lambda: refindex.append(tmp_path / "no.refindex", path),
        lambda: refindex.remove(tmp_path / "no.refindex", path),
        lambda: refindex.log(tmp_path / "no.sqlite"),
        lambda: refindex.restore(tmp_path / "no.refindex", 0),
    ):
        with pytest.raises(NotFoundError):
            call()


_OPENED: list[str] | None = None


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if _OPENED is not None and event == "open":
        _OPENED.append(str(arguments[0]))


sys.addaudithook(_listen)


def files_opened(call: Callable[[], Any]) -> set[str]:
    """Names of the NetCDF files that are opened meanwhile."""
    global _OPENED
    _OPENED = []
    try:
        call()
        return {Path(name).name for name in _OPENED if name.endswith(".nc")}
    finally:
        _OPENED = None


def test_what_is_opened(archive: Path, tmp_path: Path) -> None:
    paths = series(tmp_path)
    refindex.scan(paths, workers=1).save(archive)
    assert files_opened(lambda: paths[0].open("rb").close()) == {"000.nc"}  # the hook hears
    more = write(tmp_path / "016.nc", 16)
    assert files_opened(lambda: refindex.append(archive, more, workers=1)) == {"016.nc"}
    again = write(tmp_path / "020.nc", 20)
    assert files_opened(lambda: refindex.append(archive, again, workers=1)) == {"020.nc"}

    def lazily() -> None:
        with xr.open_dataset(str(archive), engine="refindex") as dataset:
            assert dataset.sizes["time"] == 20
            assert dataset.time.values[0] == np.datetime64("2000-01-01")

    assert files_opened(lazily) == set()
