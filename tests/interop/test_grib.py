"""GRIB through gribberish: values at their places as ecCodes has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import refindex
from refindex.exchange import _opened

pytest.importorskip("virtualizarr")
pytest.importorskip("obstore")


def message(sample: str = "regular_ll_sfc_grib2", **keys: Any) -> bytes:
    """A message of 8 x 12 points, made by ecCodes."""
    eccodes = pytest.importorskip("eccodes")
    pytest.importorskip("gribberish")
    handle = eccodes.codes_grib_new_from_samples(sample)
    try:
        south, west = keys.get("jScansPositively", 0), keys.get("iScansNegatively", 0)
        latitudes, longitudes = [40.0, 26.0], [10.0, 32.0]
        first, last = latitudes[::-1] if south else latitudes, longitudes[::-1] if west else longitudes
        place = {
            "Ni": 12, "Nj": 8, "iDirectionIncrementInDegrees": 2.0, "jDirectionIncrementInDegrees": 2.0,
            "latitudeOfFirstGridPointInDegrees": first[0], "latitudeOfLastGridPointInDegrees": first[1],
            "longitudeOfFirstGridPointInDegrees": last[0], "longitudeOfLastGridPointInDegrees": last[1],
        }  # fmt: skip
        missing, packing = keys.pop("missing", False), keys.pop("packing", "grid_simple")
        for name, value in {**place, "bitsPerValue": 16, **keys}.items():
            eccodes.codes_set(handle, name, value)
        values = np.random.default_rng(len(str(keys))).normal(280, 10, 96)
        if missing:
            eccodes.codes_set(handle, "bitmapPresent", 1)
            eccodes.codes_set(handle, "missingValue", 9999.0)
            values[5:20] = 9999.0
        eccodes.codes_set_values(handle, values)
        if packing != "grid_simple":
            eccodes.codes_set(handle, "packingType", packing)
        return bytes(eccodes.codes_get_message(handle))
    finally:
        eccodes.codes_release(handle)


def points_of(data: bytes) -> dict[tuple[float, float], float]:
    """Values by latitude and longitude, as ecCodes has them."""
    import eccodes

    handle = eccodes.codes_new_from_message(data)
    try:
        eccodes.codes_set(handle, "missingValue", 1e20)
        found = eccodes.codes_grib_get_data(handle)
    finally:
        eccodes.codes_release(handle)
    return {(round(p.lat, 4), round(p.lon % 360, 4)): np.nan if p.value == 1e20 else p.value for p in found}


def same_points(values: Any, latitude: Any, longitude: Any, data: bytes) -> None:
    if latitude.ndim == 1:
        latitude, longitude = np.meshgrid(latitude, longitude, indexing="ij")
    expected = points_of(data)
    keys = [(round(a, 4), round(b % 360, 4)) for a, b in zip(latitude.ravel(), longitude.ravel(), strict=True)]
    assert set(keys) == set(expected)
    np.testing.assert_allclose(values.ravel(), [expected[key] for key in keys], rtol=1e-13)


PACKINGS = ["grid_simple", "grid_complex", "grid_complex_spatial_differencing", "grid_ccsds", "grid_jpeg"]


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("packing", PACKINGS)
def test_grib(packing: str, missing: bool, served: Any, tmp_path: Path) -> None:
    data = message(packing=packing, missing=missing)
    (tmp_path / "a.grib2").write_bytes(data)
    group = served(tmp_path / "a.grib2", "auto").group["sfc/instant"]
    assert np.isnan(group["tmp"][...]).sum() == (15 if missing else 0)
    same_points(group["tmp"][0], group["latitude"][...], group["longitude"][...], data)


@pytest.mark.parametrize("south", [0, 1])
@pytest.mark.parametrize("west", [0, 1])
@pytest.mark.parametrize("columns", [0, 1])
def test_grib_order_of_points(south: int, west: int, columns: int, served: Any, tmp_path: Path) -> None:
    """Wherever a grid begins; columns first is left out, as gribberish takes them for rows."""
    data = message(jScansPositively=south, iScansNegatively=west, jPointsAreConsecutive=columns)
    (tmp_path / "a.grib2").write_bytes(data + message(stepRange=6) if columns else data)
    archive = served(tmp_path / "a.grib2", "grib")
    group = archive.group["sfc/instant"]
    if columns:
        (problem,) = archive.report.problems
        assert problem.reason.startswith("1 of 2 messages, at byte 0: GRIB points")
        assert group["tmp"].shape == (1, 8, 12)
        data = message(stepRange=6)
    same_points(group["tmp"][0], group["latitude"][...], group["longitude"][...], data)


def test_grib_grids(served: Any, tmp_path: Path) -> None:
    """Several editions and projections, of ecCodes' own samples."""
    eccodes, _ = pytest.importorskip("eccodes"), pytest.importorskip("gribberish")
    for sample in ("GRIB1", "GRIB2", "regular_ll_sfc_grib1", "polar_stereographic_sfc_grib2"):
        handle = eccodes.codes_grib_new_from_samples(sample)
        data = bytes(eccodes.codes_get_message(handle))
        eccodes.codes_release(handle)
        (tmp_path / sample).write_bytes(data)
        archive = served(tmp_path / sample, "grib")
        (path,) = [p for p in archive.arrays if archive.group[p].ndim > 2]
        place = archive.group[path.rpartition("/")[0]]
        same_points(archive.group[path][0], place["latitude"][...], place["longitude"][...], data)


def test_grib_levels_and_times(served: Any, tmp_path: Path) -> None:
    made = {
        (level, step): message("regular_ll_pl_grib2", shortName="t", level=level, step=step)
        for level in (1000, 500, 850)
        for step in (6, 0)
    }
    (tmp_path / "a.grib2").write_bytes(b"junk".join(made.values()))
    group = served(tmp_path / "a.grib2", "grib").group["isobar/instant"]
    levels, times = (group["isobar"][...] / 100).tolist(), group["time"][...]
    assert (levels, np.diff(times).tolist()) == ([500, 850, 1000], [21600])
    for n, step in enumerate((0, 6)):
        for m, level in enumerate(levels):
            values, place = group["tmp"][n, m], (group["latitude"][...], group["longitude"][...])
            same_points(values, *place, made[int(level), step])


def test_grib_that_is_left_out(tmp_path: Path) -> None:
    """Fields that would be taken for others, grids that end the process; and each is told."""
    eccodes, _ = pytest.importorskip("eccodes"), pytest.importorskip("gribberish")

    def sample(name: str) -> bytes:
        handle = eccodes.codes_grib_new_from_samples(name)
        data = bytes(eccodes.codes_get_message(handle))
        eccodes.codes_release(handle)
        return data

    def sections(data: bytes) -> list[bytes]:
        at, found = 16, []
        while at < len(data) - 4:
            length = int.from_bytes(data[at : at + 4])
            found.append(data[at : at + length])
            at += length
        return found

    wind = message(shortName="10u")
    body = b"".join([*sections(wind), *(part for part in sections(message(shortName="10v")) if part[4] >= 4)])
    two = wind[:8] + (len(body) + 20).to_bytes(8) + body + b"7777"
    others = {
        "GRIB of 2 fields": two,
        "GRIB with rows of unequal length": sample("reduced_ll_sfc_grib2"),
        "GRIB grid template 50": sample("sh_sfc_grib2"),
        "gribberish does not know them": sample("rotated_ll_sfc_grib2"),
    }
    good = message()
    (tmp_path / "a.grib2").write_bytes(b"".join(others.values()) + good)
    manifest = refindex.import_references(tmp_path / "a.grib2")
    reasons = [entry.reason.partition(": ")[2] for entry in manifest.report.problems]
    assert len(reasons) == len(others)
    for reason in others:
        assert sum(found.startswith(reason) for found in reasons) == 1, reason
    with _opened(manifest, None, None, None) as archive:
        assert sorted(archive.group.group_keys()) == ["sfc"]
        group = archive.group["sfc/instant"]
        same_points(group["tmp"][0], group["latitude"][...], group["longitude"][...], good)
    for reason, data in {"none of its messages": two, "no GRIB message": b"GRIB", "does not end": good[:-9]}.items():
        (tmp_path / "b.grib2").write_bytes(data)
        with pytest.raises(refindex.RefindexError, match=reason):
            refindex.import_references(tmp_path / "b.grib2", format="grib")


def test_a_codec_that_fails(served: Any, tmp_path: Path) -> None:
    """gribberish finds messages that it does not decode: an error of refindex, and no values."""
    (tmp_path / "a.grib2").write_bytes(message(packing="grid_ieee"))
    archive = served(tmp_path / "a.grib2", "grib")
    with pytest.raises(refindex.DecodeError, match="/sfc/instant/tmp: a chunk cannot be decoded .*gribberish"):
        archive.group["sfc/instant/tmp"][...]
