"""Numbers that numpy does not know are converted by libhdf5, to the values that h5py reads."""

from __future__ import annotations

import contextlib
import itertools
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from h5py import h5d, h5p, h5s, h5t, h5z
from hypothesis import given
from hypothesis import strategies as st
from oracle import compare_file

import refindex
from refindex import Encoding, Status
from refindex.decode import libhdf5
from refindex.decode.pipeline import decode
from refindex.errors import DecodeError, FormatError, UnsupportedError
from refindex.model.dtype import (
    Foreign,
    Leaf,
    Struct,
    Subarray,
    is_foreign,
    numpy_dtype,
    readable,
    same_bytes,
    served_dtype,
    to_served,
    type_from_json,
    type_to_json,
)
from refindex.model.encoding import native_codecs
from refindex.scan.hdf5.types import stored_type
from refindex.serve.quiet import quiet

STORAGE: dict[str, tuple[int, tuple[int, ...] | None, tuple[tuple[int, tuple[int, ...]], ...]]] = {
    "inline": (9, None, ()),
    "contiguous": (2000, None, ()),
    "chunked": (2000, (170,), ()),
    "deflate": (2000, (170,), ((2, (4,)), (1, (4,)))),
    "lzf": (2000, (170,), ((32000, ()),)),
    "nbit": (2000, (170,), ((5, (0,)),)),
}


def integer(size: int, precision: int, offset: int, *, big: bool = False, signed: bool = True) -> h5t.TypeID:
    kind = h5t.STD_I64LE.copy()
    kind.set_precision(precision)
    kind.set_offset(offset)
    kind.set_size(size)
    kind.set_order(h5t.ORDER_BE if big else h5t.ORDER_LE)
    kind.set_sign(h5t.SGN_2 if signed else h5t.SGN_NONE)
    return kind


def floating(size: int, sign: int, exponent: tuple[int, int], mantissa: tuple[int, int], *, big: bool) -> h5t.TypeID:
    kind = h5t.IEEE_F64LE.copy()
    kind.set_fields(sign, *exponent, *mantissa)
    kind.set_precision(sign + 1)
    kind.set_size(size)
    kind.set_ebias((1 << exponent[1] - 1) - 1)
    kind.set_order(h5t.ORDER_BE if big else h5t.ORDER_LE)
    return kind


FLOATS = {
    f"{name}-{'be' if big else 'le'}": floating(*fields, big=big)  # type: ignore[arg-type]
    for big in (False, True)
    for name, fields in {
        "bfloat16": (2, 15, (7, 8), (0, 7)),
        "20 bits": (4, 19, (13, 6), (0, 13)),
        "24 bits": (3, 23, (16, 7), (0, 16)),
        "8 bits": (1, 7, (3, 4), (0, 3)),
        "40 bits": (8, 39, (30, 9), (0, 30)),
    }.items()
}
INTEGERS = {
    f"{size}-{precision}-{offset}-{'be' if big else 'le'}-{'i' if signed else 'u'}": integer(
        size, precision, offset, big=big, signed=signed
    )
    for size, precision, offset in ((1, 5, 2), (2, 11, 3), (4, 31, 0), (4, 20, 7), (8, 33, 9), (8, 63, 0))
    for big, signed in itertools.product((False, True), repeat=2)
}


def make(
    file: h5py.File, name: str, kind: h5t.TypeID, values: np.ndarray, storage: str, fill: float | None = None
) -> None:
    count, chunks, filters = STORAGE[storage]
    creation = h5p.create(h5p.DATASET_CREATE)
    if chunks:
        creation.set_chunk(chunks)
    if fill is not None:
        creation.set_fill_value(np.array(fill, dtype="f8"))
    for number, given_values in filters:
        creation.set_filter(number, h5z.FLAG_OPTIONAL, given_values)
    # Half is left unwritten, where there is a fill value.
    made = h5d.create(file.id, name.encode(), kind, h5s.create_simple((count,)), creation)
    part = values[: count // (1 if fill is None else 2)]
    space = made.get_space()
    space.select_hyperslab((0,), part.shape)
    made.write(h5s.create_simple(part.shape), space, np.ascontiguousarray(part))


def all_equal(path: Path, names: set[str]) -> refindex.Manifest:
    verdict = compare_file(str(path))
    assert (verdict.wrong, verdict.reported, verdict.unreadable) == ([], [], [])
    assert set(verdict.right) == names
    return refindex.scan(path)


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("fill", [None, 3.0])
def test_numbers_of_any_precision(tmp_path: Path, storage: str, fill: float | None) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for name, kind in FLOATS.items():
            make(file, name, kind, np.linspace(-5, 5, 2000), storage, fill)
        for name, kind in INTEGERS.items():
            make(file, name, kind, np.arange(2000) % 15 - (7 if kind.get_sign() == h5t.SGN_2 else 0), storage, fill)
        names = set(file)
        assert len(np.unique(file["20 bits-be"][()])) > 4
    manifest = all_equal(path, names)
    for name, array in manifest.arrays.items():
        for encoding in array.encodings:
            assert isinstance(encoding.type, Foreign), name
            assert encoding.hdf5_type
    assert {e.status for e in manifest.report} == {Status.INLINED if storage == "inline" else Status.ADAPTED}


def test_every_predefined_number(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    served = set()
    with h5py.File(path, "w") as file:
        for name in dir(h5t):
            kind = getattr(h5t, name)
            number = isinstance(kind, h5t.TypeIntegerID | h5t.TypeFloatID)
            # Those wider than double precision have tests of their own.
            if not number or kind.get_size() > 8:
                continue
            for storage in ("inline", "contiguous", "deflate"):
                if kind.get_size() == 1 and storage == "deflate":
                    continue  # its shuffle is set for larger ones
                make(file, f"{name}-{storage}", kind, np.arange(2000) % 100, storage)
        served = set(file)
    assert len(served) > 80
    all_equal(path, served)


@pytest.mark.parametrize("storage", ["inline", "contiguous", "chunked", "deflate", "lzf"])
@pytest.mark.parametrize("name", ["NATIVE_LDOUBLE", "LDOUBLE_BE", "IEEE_F128LE", "IEEE_F128BE"])
@pytest.mark.parametrize("fill", [None, -2.5])
def test_wide_floats_that_are_doubles(tmp_path: Path, name: str, storage: str, fill: float | None) -> None:
    """h5py gives long doubles, or refuses: served is their value in double precision."""
    kind = getattr(h5t, name, None)
    if kind is None:
        pytest.skip("this h5py has no such type")
    path = tmp_path / "f.h5"
    values = np.array([0.1, -0.0, 1e300, 5e-324, np.inf, -np.inf, np.nan, 7.0, -1.5] * 300)[:2000]
    with h5py.File(path, "w") as file:
        make(file, "d", kind, values, storage, fill)
        expected = np.empty(file["d"].shape)
        file["d"].id.read(h5s.ALL, h5s.ALL, expected)
    with refindex.open(path) as archive, quiet():
        assert archive.report.problems == ()
        served = zarr.open_array(archive.store, path="d", mode="r")
        assert served.dtype == np.float64
        assert served[...].tobytes() == expected.tobytes()
    written = len(expected) // (1 if fill is None else 2)
    assert np.array_equal(expected[:written], values[:written], equal_nan=True)
    assert fill is None or (expected[written:] == fill).all()


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="long double is no wider than double here")
@pytest.mark.parametrize("storage", ["inline", "contiguous", "deflate"])
@pytest.mark.parametrize("value", [np.longdouble(1) / 3, np.longdouble(10) ** 400, np.longdouble(10) ** -400])
@pytest.mark.parametrize("at", [0, -1])
def test_wide_floats_that_are_not_doubles_are_refused(tmp_path: Path, storage: str, value: Any, at: int) -> None:
    path = tmp_path / "f.h5"
    values = np.arange(STORAGE[storage][0]).astype(np.longdouble)
    values[at] = value
    with h5py.File(path, "w") as file:
        make(file, "d", h5t.NATIVE_LDOUBLE, values, storage)
    problems = refindex.scan(path).report.problems
    assert [p.path for p in problems] == ["/d"]
    assert "not exact" in problems[0].reason


def test_the_whole_of_a_wide_dataset_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refindex.scan.hdf5 import plan

    monkeypatch.setattr(plan, "EXACT_NBYTES", 200)
    for index in (None, (0, 0, 0), (2, 3, 4), (1, 2, 3), (2, 0, 1)):
        path = tmp_path / f"{index}.h5"
        values = np.arange(60).reshape(3, 4, 5).astype(np.longdouble)
        if index is not None:
            values[index] = np.longdouble(1) / 3
        with h5py.File(path, "w") as file:
            file["d"] = values
            file["scalar"] = values[index or (0, 0, 0)]
        assert len(refindex.scan(path).report.problems) == (0 if index is None else 2)


@pytest.mark.parametrize("name", ["IEEE_F32LE", "IEEE_F64LE"])
def test_vax_order_is_refused(name: str) -> None:
    """In memory only: what h5py's libhdf5 writes of such a type is a big-endian one."""
    kind = getattr(h5t, name).copy()
    kind.set_order(h5t.ORDER_VAX)
    with pytest.raises(UnsupportedError, match="VAX byte order"):
        stored_type(kind)


def test_inside_other_types(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    record = h5t.create(h5t.COMPOUND, 40)
    text = h5t.C_S1.copy()
    text.set_size(5)
    inner = h5t.create(h5t.COMPOUND, 8)
    inner.insert(b"x", 0, integer(4, 20, 7, big=True))
    inner.insert(b"y", 4, FLOATS["20 bits-le"])
    record.insert(b"i", 1, integer(4, 20, 7))
    record.insert(b"s", 6, text)
    record.insert(b"f", 12, FLOATS["20 bits-be"])
    record.insert(b"d", 16, h5t.IEEE_F64BE)
    record.insert(b"in", 26, inner)
    values = np.zeros(2000, [("i", "i4"), ("s", "S5"), ("f", "f4"), ("d", "f8"), ("in", [("x", "i4"), ("y", "f4")])])
    values["i"], values["s"], values["f"] = np.arange(2000) % 99 - 50, b"abc", np.linspace(-2, 2, 2000)
    values["d"], values["in"]["x"], values["in"]["y"] = np.arange(2000), np.arange(2000) % 7, np.linspace(-1, 1, 2000)
    with h5py.File(path, "w") as file:
        for storage in STORAGE:
            if storage != "nbit":
                make(file, f"compound-{storage}", record, values[: STORAGE[storage][0]], storage)
                for name, base in (("i", integer(4, 20, 7, big=True)), ("f", FLOATS["24 bits-le"])):
                    kind = h5t.array_create(base, (2, 3))
                    raw = np.zeros(STORAGE[storage][0], [("a", "f8", (2, 3))])
                    raw["a"] = np.arange(raw.size * 6).reshape(-1, 2, 3) % 50
                    creation = h5p.create(h5p.DATASET_CREATE)
                    if STORAGE[storage][1]:
                        creation.set_chunk(STORAGE[storage][1])
                    made = h5d.create(
                        file.id, f"{name}-{storage}".encode(), kind, h5s.create_simple(raw.shape), creation
                    )
                    made.write(h5s.ALL, h5s.ALL, raw.view("V48"), h5t.array_create(h5t.NATIVE_DOUBLE, (2, 3)))
        names = set(file)
        assert file["compound-inline"]["in"]["y"].any()
        assert file["f-lzf"][()].any()
    all_equal(path, names)


def test_enumerations_of_odd_precision(tmp_path: Path) -> None:
    path = tmp_path / "f.h5"
    base = integer(4, 20, 7)
    kind = h5t.enum_create(base)
    with h5py.File(path, "w") as file:
        file["odd"] = np.arange(3)
        for i, name in enumerate((b"A", b"B", b"C")):
            kind.enum_insert(name, i << 7)
        for count in (9, 2000):
            made = h5d.create(file.id, b"d%d" % count, kind, h5s.create_simple((count,)))
            made.write(h5s.ALL, h5s.ALL, ((np.arange(count) % 3) << 7).astype("<i4").view("V4"), kind)
    with refindex.open(path) as archive, quiet():
        for count in (9, 2000):
            served = zarr.open_array(archive.store, path=f"d{count}", mode="r")[...]
            assert np.array_equal(served, np.arange(count) % 3)


NUMBER = integer(4, 20, 7)
WRONG = {
    "another size": (integer(2, 11, 3), Foreign(4, "<i4")),
    "a string": (h5t.C_S1, Foreign(1, "|i1")),
    "no array": (NUMBER, Subarray((1,), Foreign(4, "<i4"))),
    "other dimensions": (h5t.array_create(NUMBER, (4,)), Subarray((2, 2), Foreign(4, "<i4"))),
    "no compound": (NUMBER, Struct((("a", 0, Foreign(4, "<i4")),), 4)),
    "variable length": (h5t.vlen_create(h5t.NATIVE_INT32), Foreign(16, "<f8")),
    "a reference": (h5t.STD_REF_OBJ, Foreign(8, "<f8")),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_datatype_that_is_not_the_stored_type(name: str) -> None:
    kind, stored = WRONG[name]
    with pytest.raises(DecodeError, match="HDF5 datatype"):
        libhdf5.convert(bytes(numpy_dtype(stored).itemsize * 3), kind, stored)


def test_what_an_encoding_must_bring() -> None:
    raw = (np.arange(6, dtype="<i4") << 7).tobytes()
    good = Encoding(type=Foreign(4, "<i4"), shape=(2, 3), hdf5_type=NUMBER.encode())
    assert np.array_equal(decode(raw, good, np.dtype("<i4")), np.arange(6).reshape(2, 3))
    assert np.array_equal(decode(raw, Encoding.from_json(good.to_json()), np.dtype("<i4")), np.arange(6).reshape(2, 3))
    assert native_codecs(good, np.dtype("<i4")) is None
    for encoded in (b"", NUMBER.encode()[:9], b"\3\0" + bytes(16)):
        with pytest.raises(DecodeError):
            decode(raw, Encoding(type=good.type, shape=good.shape, hdf5_type=encoded), np.dtype("<i4"))
    with pytest.raises(DecodeError, match="20 bytes, expected 24"):
        decode(raw[:-4], good, np.dtype("<i4"))
    with pytest.raises(DecodeError, match="whole elements"):
        libhdf5.convert(raw[:-1], NUMBER, good.type)


@given(data=st.binary(max_size=60))
def test_random_bytes_are_no_datatype_or_one(data: bytes) -> None:
    encoding = Encoding(type=Foreign(4, "<i4"), shape=(3,), hdf5_type=b"\3\0" + data)
    with contextlib.suppress(DecodeError):
        assert decode(bytes(12), encoding, np.dtype("<i4")).shape == (3,)


FOREIGN = Foreign(3, "<f4")


@pytest.mark.parametrize(
    "stored", [FOREIGN, Subarray((2,), FOREIGN), Struct((("a", 2, FOREIGN), ("b", 5, Leaf(">i2"))), 9)]
)
def test_the_stored_type(stored: Any) -> None:
    assert type_from_json(type_to_json(stored)) == stored
    assert is_foreign(stored)
    assert not is_foreign(readable(stored))
    assert not same_bytes(stored, served_dtype(stored))
    with pytest.raises(FormatError, match="only libhdf5"):
        to_served(np.zeros(4, numpy_dtype(stored).base), stored, served_dtype(stored))


def test_json_of_the_stored_type() -> None:
    assert type_to_json(FOREIGN) == {"foreign": 3, "dtype": "<f4"}
    assert numpy_dtype(FOREIGN) == np.dtype("V3")
    assert served_dtype(FOREIGN) == np.dtype("<f4")
    for bad in (
        {"foreign": 3},
        {"foreign": 0, "dtype": "<f4"},
        {"foreign": 3, "dtype": "S4"},
        {"foreign": 3, "dtype": "O"},
    ):
        with pytest.raises(FormatError):
            type_from_json(bad)
    with pytest.raises(FormatError):
        type_from_json({"foreign": 3, "dtype": "<f16"})
