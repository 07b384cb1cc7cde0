"""Packing is xarray's arithmetic, bit for bit; promotion loses no value."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from refindex.errors import FormatError
from refindex.model.packing import Number, Packing, packing_of
from refindex.model.promotion import common_type, widens

INTEGERS = ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8")
FLOATS = ("f4", "f8")
type Values = np.ndarray[Any, Any]


def numbers(dtype: str) -> st.SearchStrategy[Any]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return st.floats(width=kind.itemsize * 8, allow_nan=False, allow_infinity=False).map(kind.type)
    limits = np.iinfo(kind)
    few = st.sampled_from([0, 1, 7, 99, int(limits.max), int(limits.min)])
    return (few | st.integers(int(limits.min), int(limits.max))).map(kind.type)


@st.composite
def packed(draw: st.DrawFn) -> tuple[Values, dict[str, Any]]:
    """Stored values, and attributes of any type, as files have them."""
    dtype = draw(st.sampled_from(INTEGERS + FLOATS))
    values = np.array(draw(st.lists(numbers(dtype), min_size=0, max_size=6)), dtype=dtype)
    attributes: dict[str, Any] = {}
    for name in ("scale_factor", "add_offset"):
        if draw(st.booleans()):
            kind = np.dtype(draw(st.sampled_from(["f4", "f8", "f4", "f8", "i2", "i4"])))
            number = kind.type(
                draw(st.sampled_from([1, 2, 0.01, 0.1, 273.15, -5, 1e-3] if kind.kind == "f" else [1, 2, 10]))
            )
            attributes[name] = number
    if draw(st.booleans()):
        fill = draw(st.sampled_from(list(values)) if len(values) and draw(st.booleans()) else numbers(dtype))
        attributes["_FillValue"] = np.dtype(dtype).type(np.nan if dtype in FLOATS and draw(st.booleans()) else fill)
    if draw(st.booleans()):
        own = draw(st.sampled_from([dtype, "f4", "f8", "i2", "i4"]))
        missing = np.array(draw(st.lists(numbers(own), min_size=1, max_size=2)), dtype=own)
        attributes["missing_value"] = missing if len(missing) > 1 else missing[0]
    if np.dtype(dtype).kind in "iu" and draw(st.integers(0, 2)) == 0:
        attributes["_Unsigned"] = draw(st.sampled_from(["true", "false"]))
    elif draw(st.booleans()):
        # Not with _Unsigned: xarray then swaps the bytes of the fill value of big-endian data.
        values = values.astype(values.dtype.newbyteorder(">"))
    return values, attributes


def as_xarray_has_it(values: Values, attributes: dict[str, Any]) -> Values:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        dataset = xr.Dataset({"x": xr.Variable(("n",), values, dict(attributes))})
        return np.asarray(xr.decode_cf(dataset).x.values)


def same_bits(one: Values, other: Values) -> bool:
    one, other = (v.astype(v.dtype.newbyteorder("=")) for v in (one, other))
    if one.dtype != other.dtype:
        return False
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    nan = np.isnan(one) & np.isnan(other)
    return one[~nan].tobytes() == other[~nan].tobytes() and np.array_equal(np.isnan(one), np.isnan(other))


@settings(max_examples=300)
@given(packed())
def test_unpacks_as_xarray_does(case: tuple[Values, dict[str, Any]]) -> None:
    values, attributes = case
    try:
        wanted = as_xarray_has_it(values, attributes)
    except (OverflowError, ValueError, TypeError, np.exceptions.DTypePromotionError):
        return  # xarray itself does not decode it
    packing = packing_of(attributes, values.dtype)
    assert packing is not None
    with np.errstate(all="ignore"):
        got = packing.unpack(values)
        again = Packing.from_json(packing.to_json()).unpack(values)
    assert same_bits(got, wanted), (got, wanted, got.dtype, wanted.dtype, attributes)
    assert same_bits(again, got)


@pytest.mark.parametrize("name", ["scale_factor", "add_offset", "_FillValue", "missing_value"])
def test_text_is_not_a_number(name: str) -> None:
    packing = packing_of({name: "1"}, np.dtype("i2"))
    assert packing is not None
    assert packing.unpack(np.array([1], "i2")).tolist() == [1]


def test_values_that_are_not_numbers_have_no_packing() -> None:
    assert packing_of({"scale_factor": 2.0}, np.dtype("S4")) is None
    assert packing_of({"_FillValue": 1}, np.dtype(bool)) is None


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        {},
        {"dtype": "S4"},
        {"dtype": "no type"},
        {"dtype": "<f8", "scale": 1},
        {"dtype": "<f8", "scale": ["<f8"]},
        {"dtype": "<f8", "scale": ["S4", 1]},
        {"dtype": "<f8", "scale": ["<f8", "1"]},
        {"dtype": "<f8", "mask": 5},
        {"dtype": "<f8", "integers": "<f4"},
    ],
)
def test_damaged_packing(document: Any) -> None:
    with pytest.raises(FormatError):
        Packing.from_json(document).unpack(np.array([1, 2], dtype="i2"))


def test_numbers_keep_their_type() -> None:
    for value in (np.float32(0.1), np.float64(0.1), np.int16(-3), np.uint64(2**64 - 1)):
        back = Number.from_json(Number.of(value).to_json()).scalar()
        assert back == value
        assert back.dtype == value.dtype


KINDS = [np.dtype(k) for k in (*INTEGERS, *FLOATS, "f2", "c8", "c16", "S1", "S4", "?", ">i4", ">f8", "M8[s]")]


def extremes(kind: np.dtype[Any]) -> list[Any]:
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        low, high = int(limits.min), int(limits.max)
        return [low, low + 1, high, high - 1, high // 2 + 1, (high >> 1) | 1, 0]
    if kind.kind == "f":
        finfo = np.finfo(kind)
        return [finfo.max, finfo.min, finfo.tiny, finfo.smallest_subnormal, kind.type(0.1), -0.0]
    if kind.kind == "c":
        return [complex(np.finfo(kind).max, 0.1)]
    if kind.kind == "S":
        return [b"x" * kind.itemsize, b""]
    return [True, False] if kind.kind == "b" else [np.datetime64(1, "s")]


@settings(max_examples=400)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), st.data())
def test_widening_is_lossless(kind: np.dtype[Any], wider: np.dtype[Any], data: st.DataObject) -> None:
    """Every value goes there and back, and is told from its neighbours there."""
    if not widens(kind, wider):
        return
    some: list[Any] = extremes(kind)
    if kind.kind in "iu":
        limits = np.iinfo(kind)
        some = [*some, *data.draw(st.lists(st.integers(int(limits.min), int(limits.max)), max_size=5))]
    values = np.array(some, dtype=kind)
    there = values.astype(wider)
    back = there.real.astype(kind) if wider.kind == "c" and kind.kind != "c" else there.astype(kind)
    assert back.tobytes() == values.tobytes()
    if kind.kind in "iu" and wider.kind in "iu":
        assert [int(v) for v in there] == [int(v) for v in values]
    if kind.kind in "iu" and wider.kind == "f":
        assert [int(v) for v in there] == [int(v) for v in values]


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("other", KINDS, ids=str)
def test_common_type_holds_both(kind: np.dtype[Any], other: np.dtype[Any]) -> None:
    common = common_type([kind, other])
    if common is not None:
        assert widens(kind, common)
        assert widens(other, common)
    swapped = common_type([other, kind])
    assert (common is None) == (swapped is None)
    if common is not None and swapped is not None:
        assert common.newbyteorder("=") == swapped.newbyteorder("=")


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        (("i2", "f4"), "f4"),
        (("i4", "f4"), "f8"),
        (("i8", "f8"), None),
        (("i8", "u8"), None),
        (("u8", "i1"), None),
        (("u4", "i4"), "i8"),
        (("u4", "f4"), "f8"),
        (("S4", "S8"), "S8"),
        (("S4", "i4"), None),
        (("?", "u1"), None),
        ((">i2", "i4"), ">i4"),
        (("i1", "u1", "f2"), "f4"),
        (("i2", "f2"), "f4"),
    ],
)
def test_common_types(kinds: tuple[str, ...], expected: str | None) -> None:
    assert common_type([np.dtype(kind) for kind in kinds]) == (None if expected is None else np.dtype(expected))
