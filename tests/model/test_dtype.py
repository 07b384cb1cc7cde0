"""Types, beside numpy's and zarr's own reading of data types and fill values."""

from __future__ import annotations

import struct
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from xarray.backends.zarr import FillValueCoder
from zarr.dtype import parse_data_type

from refindex.errors import FormatError
from refindex.model.dtype import (
    Leaf,
    Struct,
    Subarray,
    Text,
    data_type_json,
    dtype_from_json,
    fill_value_from_json,
    fill_value_json,
    numpy_dtype,
    same_bytes,
    served_dtype,
    to_served,
    type_from_json,
    type_to_json,
    xarray_fill_value,
)

CODES = ["|b1", "|i1", "<i2", ">i4", "<i8", "|u1", ">u2", "<u4", "<f2", ">f4", "<f8", "<c8", ">c16", "|V3", "<M8[ns]"]
LEAVES = st.sampled_from(CODES).map(Leaf)
TEXTS = st.builds(Text, st.integers(1, 6), st.sampled_from(["nullpad", "nullterm", "spacepad"]))


@st.composite
def structs(draw: st.DrawFn, inner: st.SearchStrategy[object]) -> Struct:
    kinds = draw(st.lists(inner, min_size=1, max_size=4))
    fields, at = [], 0
    for i, kind in enumerate(kinds):
        at += draw(st.integers(0, 3))
        fields.append((f"f{i}", at, kind))
        at += numpy_dtype(kind).itemsize
    return Struct(tuple(fields), at + draw(st.integers(0, 3)))


PLAIN = st.recursive(LEAVES | TEXTS, structs, max_leaves=5)
STORED = PLAIN | st.builds(
    Subarray, st.lists(st.integers(1, 3), min_size=1, max_size=2).map(tuple), LEAVES | TEXTS | structs(LEAVES)
)


@given(stored=STORED)
def test_json_round_trip(stored) -> None:
    assert type_from_json(type_to_json(stored)) == stored


@given(stored=STORED)
def test_zarr_has_the_served_type(stored) -> None:
    served = served_dtype(stored)
    document = data_type_json(served)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = parse_data_type(document, zarr_format=3).to_native_dtype()
    order = "big" if served.newbyteorder("=") != served else "little"
    assert dtype_from_json(document, order) == served
    assert theirs.newbyteorder("=") == served.newbyteorder("=")


def python_values(raw: np.ndarray, stored):
    """What the HDF5 library gives for stored bytes: an independent, slow reading."""
    match stored:
        case Text(_, padding):
            value = bytes(raw)
            if padding == "nullterm":
                value = value.split(b"\0")[0]
            if padding == "spacepad":
                value = value.rstrip(b" ")
            return value.rstrip(b"\0")
        case Struct(fields, _):
            return tuple(python_values(raw[o : o + numpy_dtype(t).itemsize], t) for _, o, t in fields)
        case Leaf(code):
            return (
                np.frombuffer(bytes(raw), code)[0].tobytes()
                if code[0] != ">"
                else bytes(raw)[:: -1 if "c" not in code else 1]
            )
    raise AssertionError(stored)


def as_python(value, stored):
    match stored:
        case Text():
            return bytes(value)
        case Struct(fields, _):
            return tuple(as_python(value[n], t) for n, _, t in fields)
        case Leaf(code):
            little = np.asarray(value).astype(np.asarray(value).dtype.newbyteorder("<"))
            if code[0] == ">" and "c" in code:
                return np.asarray(value).astype(code).tobytes()
            return little.tobytes()
    raise AssertionError(stored)


@given(stored=PLAIN, data=st.data())
def test_conversion_loses_nothing(stored, data) -> None:
    itemsize = numpy_dtype(stored).itemsize
    raw = np.frombuffer(data.draw(st.binary(min_size=3 * itemsize, max_size=3 * itemsize)), np.uint8)
    if "b1" in repr(stored):
        raw = raw & 1
    values = raw.tobytes()
    served = served_dtype(stored)
    out = to_served(np.frombuffer(values, numpy_dtype(stored)), stored, served)
    assert out.dtype == served
    for i in range(3):
        assert as_python(out[i], stored) == python_values(raw[i * itemsize : (i + 1) * itemsize], stored)
    if same_bytes(stored, served):
        assert out.tobytes() == values


@given(data=st.data())
def test_fill_values_are_read_back_by_zarr(data) -> None:
    dtype = np.dtype(
        data.draw(st.sampled_from(["b1", "i1", "<i8", ">u2", "u8", "<f2", "<f4", ">f8", "<c8", "S4", "V3"]))
    )
    value = data.draw(hnp.from_dtype(dtype, allow_nan=True)) if dtype.kind != "V" else np.frombuffer(b"a\0c", "V3")[0]
    document = fill_value_json(dtype, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = parse_data_type(data_type_json(dtype), zarr_format=3).from_json_scalar(document, zarr_format=3)
    native = dtype.newbyteorder("=")
    expected = np.asarray(value, dtype).astype(native)
    if dtype.kind != "V" and not np.any(np.isnan(expected) if dtype.kind in "fc" else False):
        assert np.asarray(theirs, native).tobytes() == expected.tobytes()
    assert fill_value_from_json(dtype, document).astype(native).tobytes() == expected.tobytes()


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FC00001, 0xFFC00000])
def test_nan_payloads_survive(bits: int) -> None:
    value = np.frombuffer(struct.pack("<I", bits), "<f4")[0]
    assert fill_value_from_json(np.dtype("<f4"), fill_value_json(np.dtype("<f4"), value)).tobytes() == value.tobytes()


@given(data=st.data())
def test_fill_value_attribute_is_what_xarray_reads(data) -> None:
    dtype = np.dtype(data.draw(st.sampled_from(["b1", "i2", "u8", "f4", "f8", "c8", "c16"])))
    value = data.draw(hnp.from_dtype(dtype, allow_nan=False))
    assert FillValueCoder.decode(xarray_fill_value(dtype, value), dtype) == value


@pytest.mark.parametrize("count", [3, 2000])
def test_arrays_inside_compounds_keep_their_bytes(count: int) -> None:
    stored = Struct((("x", 1, Leaf(">i2")), ("a", 4, Subarray((2, count), Leaf(">f4")))), 4 + 8 * count)
    served = served_dtype(stored)
    values = np.zeros(5, numpy_dtype(stored))
    values["x"], values["a"] = np.arange(5), np.arange(10 * count).reshape(5, 2, count)
    out = to_served(values, stored, served)
    assert out["x"].tolist() == list(range(5))
    order = "<f4" if count == 2000 else ">f4"
    assert np.array_equal(np.ascontiguousarray(out["a"]).view(order).reshape(5, 2, count), values["a"])


@pytest.mark.parametrize("value", [{}, 3, "O", {"text": 3, "padding": "odd"}, {"fields": [["a"]], "size": 1}, None])
def test_what_is_no_type(value: object) -> None:
    with pytest.raises(FormatError, match="stored type"):
        type_from_json(value)
