"""What the format allows and libraries trip over: bytes made by hand, judged by netCDF4-python where it reads them."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr
from classic import FORMATS, TYPES, Classic, Var, compare, damaged, example, opened
from oracle import netcdf4

import refindex
from refindex import FormatError, Status, UnsupportedError
from refindex.scan.netcdf3 import variable

INTS = np.arange(1, 5, dtype=">i4")


def fixed(**options: object) -> Classic:
    """Four integers at 400."""
    return Classic(
        dims=[("x", 4)],
        variables=[Var(name="a", dims=[0], type="i4", begin=400, **options)],  # type: ignore[arg-type]
    )


def reasons(report: refindex.ScanReport) -> dict[str, tuple[Status, str]]:
    return {e.path: (e.status, e.reason) for e in report if e.reason and e.status != Status.DIMENSION}


@pytest.mark.parametrize("version", FORMATS)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_single_record_variable_is_not_padded(tmp_path: Path, version: int, streaming: bool) -> None:
    for kind in TYPES[version]:
        values = np.arange(1, 16, dtype="u1").reshape(5, 3)
        data = (values.view("S1") if kind == "S1" else values.astype(np.dtype(kind).newbyteorder(">"))).tobytes()
        made = Classic(version=version, numrecs=5, dims=[("x", 3), ("t", 0)])
        made.variables = [Var(name="v", dims=[1, 0], type=kind, begin=400)]
        path = made.write(tmp_path / "v.nc", (400, data))
        compare(path)
        if streaming:
            made.numrecs = None
            with refindex.open(made.write(tmp_path / "s.nc", (400, data))) as archive, opened(path) as file:
                assert np.array_equal(archive.group["v"][...], file["v"][...])


@pytest.mark.parametrize("version", FORMATS)
def test_records_of_several_variables_are_padded(tmp_path: Path, version: int) -> None:
    made = Classic(version=version, numrecs=3, dims=[("t", 0), ("x", 3)])
    made.variables = [
        Var(name="b", dims=[0], type="i1", begin=400),
        Var(name="f", dims=[1], type="i2", begin=380),
        Var(name="c", dims=[0, 1], type="S1", begin=404),
        Var(name="s", dims=[0, 1], type="i2", begin=408),
    ]
    record = [struct.pack(">b3x3sx3h2x", i, b"ab%d" % i, i, -i, 300 + i) for i in range(3)]
    compare(made.write(tmp_path / "v.nc", (380, struct.pack(">3h", 1, 2, 3)), (400, b"".join(record))))
    # The padding of the last record may be missing.
    whole = made.file((380, bytes(6)), (400, b"".join(record)[:-2]))
    (tmp_path / "w.nc").write_bytes(whole)
    compare(tmp_path / "w.nc")


@pytest.mark.parametrize("version", FORMATS)
def test_streaming_counts_the_complete_records(tmp_path: Path, version: int) -> None:
    """netCDF-C takes the mark for a number of records, and reads zeros behind the end of the file."""
    made = Classic(version=version, numrecs=None, dims=[("t", 0)])
    made.variables = [
        Var(name="t", dims=[0], type="i2", begin=400),
        Var(name="v", dims=[0], type="f4", begin=404),
        Var(name="b", dims=[0], type="i1", begin=408),
    ]
    data = b"".join(struct.pack(">h2xfb3x", i, i / 2, -i) for i in range(9))
    for cut, expected in ((0, 9), (3, 9), (4, 8), (12, 8), (15, 8), (16, 7), (len(data), 0), (len(data) + 30, 0)):
        whole = made.file((400, data))
        path = tmp_path / f"{cut}.nc"
        path.write_bytes(whole[: len(whole) - cut])
        with refindex.open(path) as archive:
            assert archive.group["v"][...].tolist() == [i / 2 for i in range(expected)], cut
            assert archive.group["b"][...].tolist() == [-i for i in range(expected)], cut
            note = archive.report.select(Status.NOTE)[0]
            assert note.path == "/"
            assert f"size of the file: {expected} are complete" in note.reason


def test_vsize_is_not_trusted(tmp_path: Path) -> None:
    for claimed in (0, 4, 9999, 2**32 - 1):
        made = Classic(numrecs=2, dims=[("x", 4), ("t", 0)])
        made.variables = [
            Var(name="a", dims=[0], type="i4", begin=400, vsize=claimed),
            Var(name="r", dims=[1, 0], type="i4", begin=416, vsize=claimed),
            Var(name="s", dims=[1], type="i1", begin=432, vsize=claimed),
        ]
        data = INTS.tobytes() + b"".join(INTS.tobytes() + bytes([i, 0, 0, 0]) for i in range(2))
        compare(made.write(tmp_path / "v.nc", (400, data)))


def test_truncated_data(tmp_path: Path) -> None:
    """netCDF-C reads zeros behind the end of the file; what nobody wrote is not served."""
    made = Classic(numrecs=3, dims=[("t", 0), ("x", 4)])
    made.variables = [
        Var(name="a", dims=[1], type="i4", begin=400),
        Var(name="r", dims=[0], type="i2", begin=416),
        Var(name="s", dims=[0], type="i4", begin=420),
    ]
    whole = made.file((400, INTS.tobytes()), (416, b"".join(struct.pack(">h2xi", i + 1, -i) for i in range(3))))
    path = tmp_path / "v.nc"
    for cut, served in ((0, "ars"), (1, "ar"), (4, "ar"), (6, "ar"), (7, "a"), (24, "a"), (25, ""), (200, "")):
        path.write_bytes(whole[: len(whole) - cut])
        report = compare(path, served=set(served))
        for problem in report.problems:
            assert f"of a file of {len(whole) - cut} bytes: the file is truncated" in problem.reason
        with xr.open_dataset(path, engine="refindex") as found:
            assert set(found.variables) == set(served)
    with opened(path) as file:
        assert file["a"][...].tolist() == [0, 0, 0, 0]


def test_more_data_than_records(tmp_path: Path) -> None:
    """A writer adds records before it counts them."""
    made = Classic(numrecs=2, dims=[("t", 0)])
    made.variables = [Var(name="a", dims=[0], type="i2", begin=400), Var(name="b", dims=[0], type="i2", begin=404)]
    data = b"".join(struct.pack(">h2xh2x", i, i * i) for i in range(9))
    compare(made.write(tmp_path / "v.nc", (400, data)))


@pytest.mark.parametrize("version", FORMATS)
def test_empty_files(tmp_path: Path, version: int) -> None:
    nothing = Classic(version=version)
    assert len(nothing.header()) == (48 if version == 5 else 32)
    compare(nothing.write(tmp_path / "n.nc"))
    only = Classic(version=version, numrecs=4, dims=[("t", 0), ("x", 3)], attributes=[("a", "i4", INTS.tobytes())])
    report = compare(only.write(tmp_path / "d.nc"))
    assert [e.path for e in report.select(Status.DIMENSION)] == ["/t", "/x"]
    scalars = Classic(version=version)
    scalars.variables = [
        Var(name="s", dims=[], type="i2", begin=400),
        Var(name="d", dims=[], type="f8", begin=404),
        Var(name="c", dims=[], type="S1", begin=412),
    ]
    path = scalars.write(tmp_path / "s.nc", (400, struct.pack(">h2xdc", -5, 2.5, b"x")))
    compare(path)
    xr.testing.assert_identical(xr.open_dataset(path, engine="refindex").load(), netcdf4(path))


def test_a_record_dimension_without_variables(tmp_path: Path) -> None:
    made = fixed()
    made.numrecs, made.dims = None, [("x", 4), ("t", 0)]
    with refindex.open(made.write(tmp_path / "v.nc", (400, INTS.tobytes()))) as archive:
        assert archive.group["a"][...].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("version", FORMATS)
def test_attributes(tmp_path: Path, version: int) -> None:
    made = fixed()
    made.version = version
    made.variables[0].begin = 4000
    numbers = [
        (f"{kind}_{n}", kind, np.arange(1, n + 1).astype(np.dtype(kind).newbyteorder(">")).tobytes())
        for kind in TYPES[version]
        if kind != "S1"
        for n in (0, 1, 3)
    ]
    extremes = [(f"max_{k}", k, b"\xff" * np.dtype(k).itemsize) for k in TYPES[version] if k[0] in "iu"]
    made.attributes = [*numbers, *extremes, ("ü", "S1", "größe".encode()), ("nul", "S1", b"ab\0c\0"), ("", "i1", b"\1")]
    made.variables[0].attributes = [*numbers, *extremes, ("twice", "i1", b"\1"), ("twice", "i1", b"\2")]
    path = made.write(tmp_path / "v.nc", (4000, INTS.tobytes()))
    report = compare(path)
    assert reasons(report) == {"/a": (Status.NOTE, "attribute 'twice': occurs twice; the first one is kept")}
    expected = netcdf4(path)
    found = xr.open_dataset(path, engine="refindex").load()
    xr.testing.assert_identical(found, expected)
    assert {k: np.asarray(v).dtype for k, v in found["a"].attrs.items()} == {
        k: np.asarray(v).dtype for k, v in expected["a"].attrs.items()
    }


def test_attributes_that_json_has_no_words_for(tmp_path: Path) -> None:
    made = fixed()
    made.attributes = [
        ("latin", "S1", b"gr\xf6\xdfe"),
        ("nan", "f4", struct.pack(">f", np.nan)),
        ("infinite", "f8", struct.pack(">2d", np.inf, -np.inf)),
    ]
    manifest = refindex.scan(made.write(tmp_path / "v.nc", (400, INTS.tobytes())))
    assert manifest.groups[""].attributes == {"latin": "größe", "nan": "NaN", "infinite": ["Infinity", "-Infinity"]}
    assert len(manifest.report.select(Status.NOTE)) == 2


FILLS = [
    ("f4", np.float32(np.nan), True),
    ("f8", np.float64(np.inf), True),
    ("f8", np.float64(-999), True),
    ("i2", np.int16(-7), True),
    ("i4", np.float32(3), True),
    ("i4", np.float32(2.5), False),
    ("i4", np.float32(np.nan), False),
    ("f4", np.float64(1e20), False),
    ("f4", np.float64(1e300), False),
    ("i1", np.int16(300), False),
    ("i4", np.array([1, 2], "i4"), False),
    ("i4", np.array([], "i4"), False),
    ("i4", np.array(list("NaN"), "S1"), False),
]


@pytest.mark.parametrize("number", range(len(FILLS)))
def test_fill_value_attributes(tmp_path: Path, number: int) -> None:
    """``_FillValue`` must be of the variable's type, says the specification; old files have others."""
    kind, fill, kept = FILLS[number]
    values = np.array([1, 3, -7, 100], np.dtype(kind).newbyteorder(">"))
    if kept:
        values[0] = fill
    raw = np.asarray(fill)
    stored = raw.astype(raw.dtype.newbyteorder(">")).tobytes()
    attribute = ("_FillValue", raw.dtype.str[1:], stored)
    made = Classic(dims=[("x", 4)], variables=[Var(name="a", dims=[0], type=kind, begin=400, attributes=[attribute])])
    path = made.write(tmp_path / "v.nc", (400, values.tobytes()))
    report = compare(path)
    found = xr.open_dataset(path, engine="refindex").load()
    assert ("_FillValue" in found["a"].encoding) == kept
    if kept:
        xr.testing.assert_equal(found, netcdf4(path))
        assert refindex.open(path).group["a"].fill_value == fill or np.isnan(fill)
        assert not report.select(Status.NOTE)
    else:
        assert found["a"].values.tolist() == values.tolist()
        assert "left out" in report.select(Status.NOTE)[0].reason


def test_unsigned_and_characters_through_xarray(tmp_path: Path) -> None:
    made = Classic(numrecs=2, dims=[("t", 0), ("n", 4)])
    unsigned = [("_Unsigned", "S1", b"true"), ("_FillValue", "i1", b"\xff"), ("scale_factor", "f4", b"\x3f\0\0\0")]
    made.variables = [
        Var(name="u", dims=[0, 1], type="i1", begin=600, attributes=unsigned),
        Var(name="word", dims=[0, 1], type="S1", begin=604),
        Var(name="filled", dims=[0, 1], type="S1", begin=608, attributes=[("_FillValue", "S1", b"-")]),
    ]
    data = b"".join(bytes([1, 200, 255, i]) + b"ab\0\0" + b"c--d" for i in range(2))
    path = made.write(tmp_path / "v.nc", (600, data))
    compare(path)
    for concat in (True, False):
        expected = netcdf4(path, concat_characters=concat).drop_vars("filled")
        found = xr.open_dataset(path, engine="refindex", concat_characters=concat).drop_vars("filled").load()
        xr.testing.assert_identical(found, expected)
        assert found["word"].dtype == expected["word"].dtype
        assert found["u"].dtype == expected["u"].dtype
    assert refindex.open(path).group["filled"].fill_value == b"-"


@pytest.mark.parametrize("version", FORMATS)
def test_unicode_names(tmp_path: Path, version: int) -> None:
    path = tmp_path / "größe 日本.nc"
    with netCDF4.Dataset(path, "w", format=FORMATS[version]) as file:
        file.createDimension("länge", None)
        file.createVariable("länge", "f8", ("länge",)).setncattr("einheit_°", "m")
        file.createVariable("温度", "i2", ("länge",)).setncattr("注", "ö" * 5)
        file["länge"][:] = [1, 2, 3]
        file["温度"][:] = [4, 5, 6]
    compare(path)
    xr.testing.assert_identical(xr.open_dataset(path, engine="refindex").load(), netcdf4(path))


def test_names_that_no_node_can_have(tmp_path: Path) -> None:
    for name in ("a/b", "", ".", "..", "zarr.json"):
        made = fixed()
        made.variables = [
            Var(name=name, dims=[0], type="i4", begin=400),
            Var(name="ok", dims=[0], type="i4", begin=416),
        ]
        path = made.write(tmp_path / "v.nc", (400, INTS.tobytes() * 2))
        report = compare(path, served={"ok"})
        assert report.problems[0].reason == f"no Zarr node can be called {name!r}"


def test_names_that_occur_twice(tmp_path: Path) -> None:
    """netCDF4-python gives the last such variable; which one was meant, nobody knows."""
    made = fixed()
    made.variables = [
        Var(name=n, dims=[0], type="i4", begin=400 + 16 * i) for i, n in enumerate(("twice", "once", "twice"))
    ]
    path = made.write(tmp_path / "v.nc", (400, INTS.tobytes() * 3))
    report = compare(path, served={"once"})
    assert [e.reason for e in report.problems] == ["damaged: 2 variables have this name"] * 2
    made = Classic(dims=[("x", 4), ("x", 2)])  # netCDF4-python opens it, and fails at the variables
    made.variables = [Var(name="a", dims=[0, 1], type="i1", begin=400), Var(name="x", dims=[1], type="i1", begin=408)]
    manifest = refindex.scan(made.write(tmp_path / "d.nc", (400, bytes(range(10)))))
    assert {name: array.dims for name, array in manifest.arrays.items()} == {"a": ("x_4", "x"), "x": ("x",)}


def test_a_dimension_that_occurs_twice_in_a_variable(tmp_path: Path) -> None:
    path = tmp_path / "odd.nc"
    with netCDF4.Dataset(path, "w", format="NETCDF3_CLASSIC") as file:
        file.createDimension("x", 3)
        file.createVariable("covariance", "f8", ("x", "x"))[:] = np.eye(3)
        file.createVariable("x", "f8", ("x",))[:] = [1, 2, 3]
    found = xr.open_dataset(path, engine="refindex")
    assert found["covariance"].dims == ("x", "x_3")
    assert np.array_equal(found["covariance"], np.eye(3))
    assert reasons(refindex.scan(path).report)["/covariance"][1].endswith("within an array it occurs once")


def test_two_record_dimensions(tmp_path: Path) -> None:
    """The specification has one; netCDF-C takes every dimension of length 0 for it."""
    made = Classic(numrecs=2, dims=[("t", 0), ("u", 0)])
    made.variables = [Var(name="a", dims=[0], type="i4", begin=400), Var(name="b", dims=[1], type="i4", begin=404)]
    compare(made.write(tmp_path / "v.nc", (400, INTS.tobytes())))


CONTRADICTIONS = {
    "record dimension second": ([("x", 4), ("t", 0)], [("a", [0, 1], 400)], "can only be the first"),
    "record dimension twice": ([("t", 0)], [("a", [0, 0], 400)], "can only be the first"),
    "no such dimension": ([("x", 4)], [("a", [1], 400)], "expected an index below 1, found 1"),
    "out of order": ([("x", 4)], [("a", [0], 416), ("b", [0], 400)], "where variable 'a' ends, found 400"),
    "overlap": ([("x", 4)], [("a", [0], 400), ("b", [0], 412)], "expected 416 or more"),
    "in the header": ([("x", 4)], [("a", [0], 40)], "where the header ends, found 40"),
    "records before the rest": ([("x", 4), ("t", 0)], [("a", [0], 404), ("r", [1], 400)], "where variable 'a' ends"),
    "too large": ([("x", 2**31)] * 3, [("a", [0, 1, 2], 400)], r"expected up to 2\*\*63 bytes"),
    "large, not the last": ([("x", 2**30)], [("a", [0], 400), ("b", [0], 800)], "expected up to 2147483644 bytes"),
    "large, and records": ([("x", 2**30), ("t", 0)], [("a", [0], 400), ("b", [1], 800)], "expected up to 2147483644"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_headers_that_contradict_themselves(tmp_path: Path, case: str) -> None:
    """Refused, as netCDF-C refuses them."""
    dims, variables, match = CONTRADICTIONS[case]
    made = Classic(dims=dims, numrecs=2)
    made.variables = [Var(name=n, dims=d, type="i4", begin=b) for n, d, b in variables]
    path = made.write(tmp_path / "v.nc", (400, INTS.tobytes() * 4))
    with pytest.raises(FormatError, match=match) as caught:
        refindex.scan(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "described at offset" in str(caught.value)
    if case != "too large":  # netCDF-C's arithmetic overflows
        with pytest.raises((OSError, RuntimeError)):
            opened(path)


def test_more_dimensions_than_numpy_has(tmp_path: Path) -> None:
    made = Classic(dims=[("x", 1)], variables=[Var(name="a", dims=[0] * 65, type="i4", begin=4000)])
    manifest = refindex.scan(made.write(tmp_path / "v.nc", (4000, INTS.tobytes())))
    assert manifest.report.problems[0].reason == "65 dimensions; numpy arrays have up to 64"


def test_more_references_than_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(variable, "_MAX_REFERENCES", 2)
    made = Classic(numrecs=3, dims=[("t", 0)])
    made.variables = [Var(name=n, dims=[0], type="i4", begin=400 + 4 * i) for i, n in enumerate("ab")]
    manifest = refindex.scan(made.write(tmp_path / "v.nc", (400, bytes(24))))
    assert manifest.report.problems[0].reason.startswith("3 records, which lie apart, of 4 bytes")


def sparse(path: Path, made: Classic, size: int, *pieces: tuple[int, bytes]) -> Path:
    """A large file of which only the header and some pieces take room on the disk."""
    path.write_bytes(made.header())
    os.truncate(path, size)
    with path.open("r+b") as file:
        for offset, data in pieces:
            file.seek(offset)
            file.write(data)
    assert path.stat().st_blocks * 512 < 1 << 20
    return path


def test_data_behind_4_gib(tmp_path: Path) -> None:
    at = 5 << 30
    made = Classic(version=2, numrecs=3, dims=[("x", 4), ("t", 0), ("y", 1 << 30)])
    made.variables = [
        Var(name="near", dims=[0], type="i4", begin=400),
        Var(name="wide", dims=[2], type="i2", begin=416),
        Var(name="far", dims=[0], type="i4", begin=at),
        Var(name="r", dims=[1, 0], type="i4", begin=at + 16),
        Var(name="s", dims=[1], type="i1", begin=at + 32),
    ]
    records = b"".join((INTS + i).astype(">i4").tobytes() + bytes([i, 0, 0, 0]) for i in range(3))
    last = 416 + (2 << 30)
    path = sparse(
        tmp_path / "v.nc",
        made,
        at + 16 + 60,
        (400, INTS.tobytes()),
        (last - 4, b"\1\2\3\4"),
        (at, INTS.tobytes()),
        (at + 16, records),
    )
    with refindex.open(path) as archive, opened(path) as file:
        for name in ("near", "far", "r", "s"):
            assert np.array_equal(zarr.open_array(archive.store, path=name)[...], file[name][...]), name
        assert archive.group["r"][...].tolist() == [[1 + i, 2 + i, 3 + i, 4 + i] for i in range(3)]
        tail = slice((1 << 30) - 3, None)
        assert archive.group["wide"][tail].tolist() == file["wide"][tail].tolist() == [0, 258, 772]
        assert len(archive.arrays["wide"].chunks) == 128


@pytest.mark.parametrize(("version", "is_record"), [(2, False), (2, True), (5, False), (5, True)])
def test_variables_beyond_4_gib(tmp_path: Path, version: int, is_record: bool) -> None:
    """The last one may be that large in CDF-2; its ``vsize`` cannot say so. In CDF-5 any may."""
    length, records = (1 << 30) + 5, 3 if is_record else 1
    nbytes = 4 * length
    made = Classic(version=version, numrecs=3, dims=[("t", 0), ("y", length), ("x", 4)])
    made.variables = [
        Var(name="first", dims=[2], type="i4", begin=400),
        Var(name="huge", dims=[0, 1] if is_record else [1], type="f4", begin=416, vsize=2**32 - 1),
    ]
    stride, behind = nbytes, []
    if version == 5:
        made.variables.append(Var(name="next", dims=[0] if is_record else [2], type="i2", begin=416 + nbytes))
        stride += 4 if is_record else 0
        behind = [(416 + nbytes, struct.pack(">4h", 7, 8, 9, 10)[: 2 if is_record else 8])]
    ends = [416 + i * stride + nbytes for i in range(records)]
    pieces = [(end - 8, struct.pack(">2f", i + 1, i + 2)) for i, end in enumerate(ends)]
    path = sparse(tmp_path / "v.nc", made, ends[-1] + 8, *pieces, *behind)
    with refindex.open(path) as archive, opened(path) as file:
        tail = slice(length - 3, None)
        key = (slice(None), tail) if is_record else tail
        expected = [[0, i + 1, i + 2] for i in range(records)]
        assert archive.group["huge"][key].tolist() == (expected if is_record else expected[0])
        assert np.array_equal(archive.group["huge"][key], file["huge"][key])
        if version == 5:
            assert np.array_equal(archive.group["next"][...], file["next"][...])
            assert archive.group["next"][0] == 7


def test_a_damaged_header_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "v.nc"
    path.write_bytes(fixed().header()[:-2])
    with pytest.raises(FormatError, match=r"v\.nc: .* at offset \d+: .* the file ends within its header"):
        refindex.scan(path)
    path.write_bytes(b"CDF\x03" + bytes(100))
    with pytest.raises(FormatError, match="not HDF5 or NetCDF"):
        refindex.scan(path)
    path.write_bytes(b"CDF\1" + struct.pack(">3I", 0, 0, 0))
    with pytest.raises(FormatError, match="the attributes"):
        refindex.scan(path)
    made = Classic(dims=[("x", 1)], variables=[Var(name="v", dims=[0] * 1025, type="i1", begin=9000)])
    with pytest.raises(UnsupportedError, match="expected up to 1024"):
        refindex.scan(made.write(path))


@pytest.mark.parametrize("version", FORMATS)
def test_damaged_files_are_served_or_refused(tmp_path: Path, version: int) -> None:
    """Whatever a scan accepts can be read, but for data that is not there; it raises nothing unexpected."""
    header, data = example(version).header(), bytes(range(256)) * 8
    path = tmp_path / "v.nc"
    scanned = 0
    for seed in range(400):
        path.write_bytes(header[:4] + damaged(header[4:], seed) + data)
        try:
            archive = refindex.open(path)
        except (FormatError, UnsupportedError):
            continue
        with archive:
            scanned += 1
            for name, array in archive.arrays.items():
                assert archive.group[name][...].shape == array.shape
    assert scanned > 20
