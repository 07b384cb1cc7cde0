"""Joined archives equal, element for element, what xarray makes of their files one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import refindex
from tests.join.archives import Part, assert_same, expected, open_manifest, write_archive

pytestmark = pytest.mark.filterwarnings("ignore:variable .* has multiple fill values")


@st.composite
def archives(draw: st.DrawFn) -> list[Part]:
    """Archives whose files differ in everything that files may differ in and still be joined."""
    packed = draw(st.sampled_from(["plain", "packed", "masked"]))
    dtypes = {"plain": ["f4", "f8", "i2", "u1", "i4"], "packed": ["i2", "i4", "u1"], "masked": ["i2", "f4", "f8"]}
    parts = []
    start = 0
    for _ in range(draw(st.integers(2, 4))):
        length = draw(st.integers(1, 7))
        chunks = st.tuples(st.integers(1, 8), st.integers(1, 5), st.sampled_from([9, 35, 40, 70]))
        parts.append(
            Part(
                start=start,
                length=length,
                dtype=draw(st.sampled_from(dtypes[packed])),
                endian=draw(st.sampled_from(["little", "big"])),
                chunks=draw(st.none() | chunks),
                zlib=draw(st.booleans()),
                shuffle=draw(st.booleans()),
                fletcher32=draw(st.booleans()),
                scale=draw(st.sampled_from([0.5, 0.01, 1e-3])) if packed == "packed" else None,
                offset=draw(st.sampled_from([None, 273.15, -1.0])) if packed == "packed" else None,
                packing_dtype=draw(st.sampled_from(["f4", "f8"])),
                fill=draw(st.sampled_from([None, 0, 7, 99])) if packed != "plain" else None,
                units=draw(
                    st.sampled_from(["hours since 2000-01-01", "days since 1999-12-31", "minutes since 1970-01-01"])
                ),
                time_dtype=draw(st.sampled_from(["f8", "f8", "i8"])),
                holes=draw(st.booleans()) and packed == "plain",
            )
        )
        start += length + draw(st.sampled_from([0, 0, 3]))
    return [
        part if part.units[:4] != "days" or part.time_dtype == "f8" else Part(**{**_fields(part), "time_dtype": "f8"})
        for part in parts
    ]


def _fields(part: Part) -> dict[str, object]:
    return {name: getattr(part, name) for name in Part.__dataclass_fields__}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=archives(), seed=st.integers(0, 3))
def test_any_archive(tmp_path_factory: pytest.TempPathFactory, parts: list[Part], seed: int) -> None:
    folder = tmp_path_factory.mktemp("archive")
    paths = write_archive(folder, parts, seed)
    manifest = refindex.scan(paths[::-1], workers=1)
    with open_manifest(manifest) as actual:
        assert_same(actual, expected(paths))
        window = actual.x.isel(time=slice(1, None, 2), lat=slice(2, 4))
        np.testing.assert_array_equal(window.values, expected(paths).x.isel(time=slice(1, None, 2), lat=slice(2, 4)))
