"""Scanning HDF5 and NetCDF-4: what is served equals h5py, what is not is in the report."""

from __future__ import annotations

from pathlib import Path

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from oracle import compare_file, netcdf4
from zarr.core.metadata.v3 import ArrayV3Metadata

import refindex
from refindex import Status
from refindex.serve.quiet import quiet


def check(path: Path) -> refindex.Manifest:
    """All datasets that are served equal h5py's values; the manifest."""
    verdict = compare_file(str(path))
    assert verdict.wrong == []
    return refindex.scan(path)


def statuses(manifest: refindex.Manifest) -> dict[str, Status]:
    return {e.path.strip("/"): e.status for e in manifest.report if e.status is not Status.NOTE}


def test_groups_links_and_names(tmp_path: Path) -> None:
    path = tmp_path / "links.h5"
    with h5py.File(path, "w") as f:
        f["a/b/c"] = np.arange(1000)
        f["a/hard"] = f["a/b/c"]
        f["a/soft"] = h5py.SoftLink("/a/b/c")
        f["a/group"] = h5py.SoftLink("/a/b")
        f["a/dangling"] = h5py.SoftLink("/nowhere")
        f["a/external"] = h5py.ExternalLink("other.h5", "/x")
        f["a/loop"] = f["a"]
        f["a/up"] = h5py.SoftLink("/")
        f["type"] = np.dtype("f8")
        f["a/ünï cødé"] = 5
        f.create_group("empty")
    manifest = check(path)
    assert set(manifest.arrays) == {"a/b/c", "a/hard", "a/soft", "a/group/c", "a/ünï cødé"}
    assert set(manifest.groups) == {"", "a", "a/b", "a/group", "empty"}
    reasons = {e.path: e.reason for e in manifest.report.select(Status.UNSERVED)}
    assert reasons.keys() == {"/a/dangling", "/a/external", "/a/loop", "/a/up"}
    assert "not there" in reasons["/a/dangling"]
    assert "other.h5" in reasons["/a/external"]
    assert "contains it" in reasons["/a/loop"]


def test_a_link_into_another_file_is_never_resolved_in_this_one(tmp_path: Path) -> None:
    """The same path exists in both files: values of the wrong one would be served without a word."""
    with h5py.File(tmp_path / "other.h5", "w") as f:
        f["x"] = np.arange(1000) + 7
    with h5py.File(tmp_path / "this.h5", "w") as f:
        f["x"] = np.arange(1000)
        f["out"] = h5py.ExternalLink("other.h5", "/")
        f["through"] = h5py.SoftLink("/out/x")
    manifest = check(tmp_path / "this.h5")
    assert set(manifest.arrays) == {"x", "out/x", "through"}
    assert manifest.report.problems == ()
    with refindex.open(tmp_path / "this.h5") as archive:
        assert [archive.group[path][0] for path in ("x", "out/x", "through")] == [0, 7, 7]


def test_types(tmp_path: Path) -> None:
    path = tmp_path / "types.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as f:
        for code in ("i1", "<i2", ">i4", "<i8", "u1", ">u2", "<u4", ">u8", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"):
            f[f"number/{code}"] = rng.integers(0, 100, 900).astype(code)
        f["complex/<c8"] = (rng.random(900) + 1j).astype("<c8")
        f["complex/>c16"] = (rng.random(900) + 1j).astype(">c16")
        f["bool"] = rng.integers(0, 2, 2000).astype(bool)
        f["string/fixed"] = np.array([b"a", b"bcd", b""] * 500)
        for pad, name in (
            (h5py.h5t.STR_NULLTERM, "term"),
            (h5py.h5t.STR_SPACEPAD, "space"),
            (h5py.h5t.STR_NULLPAD, "pad"),
        ):
            kind = h5py.h5t.TypeID.copy(h5py.h5t.C_S1)
            kind.set_size(5)
            kind.set_strpad(pad)
            space = h5py.h5s.create_simple((400,))
            made = h5py.h5d.create(f["string"].id, name.encode(), kind, space)
            raw = np.array([b"ab\0xy", b"ab   ", b"a b  ", b"\0\0\0\0\0", b"abcde"] * 80, "V5")
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, raw, kind)
        f["string/variable"] = np.array(["ä", "", "long" * 100] * 10, dtype=object)
        f["string/scalar"] = "ümlaut"
        f["string/latin"] = np.array([b"\xe4", b"a"], dtype=h5py.string_dtype("ascii"))
        f["opaque"] = np.frombuffer(rng.bytes(3000), "V3")
        f["date"] = np.arange("2000-01-01", "2003-01-01", dtype="M8[D]").astype(h5py.opaque_dtype("M8[D]"))
        f.create_dataset("enum", data=rng.integers(0, 2, 2000), dtype=h5py.enum_dtype({"RED": 0, "BLUE SKY": 1}, "i2"))
        kind = np.dtype(
            {"names": ["b", "a", "s"], "formats": ["<f8", ">i2", "S3"], "offsets": [8, 2, 17], "itemsize": 24}
        )
        records = np.zeros(300, kind)
        records["a"], records["b"], records["s"] = np.arange(300), rng.random(300), b"xy"
        f.create_dataset("compound/padded", data=records, chunks=(50,), compression="gzip")
        f["compound/nested"] = np.zeros(200, [("x", [("y", "<f4"), ("z", "S2")]), ("c", "<c8"), ("t", "?")])
        f.create_dataset("array", (30, 20), np.dtype(("<f4", (3, 2))), chunks=(7, 20), shuffle=True, compression="gzip")
        f["array"][...] = rng.random((30, 20, 3, 2))
    manifest = check(path)
    assert manifest.report.problems == ()
    found = statuses(manifest)
    assert found["number/>f8"] is Status.NATIVE
    assert found["compound/padded"] is Status.ADAPTED
    assert found["string/space"] is Status.ADAPTED
    assert found["string/pad"] is Status.NATIVE
    assert manifest.arrays["enum"].typed_attributes["flag_meanings"] == "RED BLUE_SKY"
    assert manifest.arrays["enum"].typed_attributes["flag_values"].dtype == np.int16
    assert manifest.arrays["array"].dims[2:] == ("element_dim_0", "element_dim_1")


def test_what_is_not_served_is_reported_and_costs_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "odd.h5"
    with h5py.File(path, "w") as f:
        f["good"] = np.arange(1000)
        f.create_dataset("nested", (3,), h5py.vlen_dtype(h5py.vlen_dtype("i4")))
        f.create_dataset("inside", (3,), np.dtype([("a", h5py.vlen_dtype("i4"))]))
        f["inside"][0] = (np.array([1, 2], "i4"),)
    manifest = check(path)
    assert set(manifest.arrays) == {"good"}
    reasons = {e.path.strip("/"): e.reason for e in manifest.report.select(Status.UNSERVED)}
    assert reasons.keys() == {"nested", "inside"}
    assert "sequences" in reasons["nested"]


def test_values_of_variable_length(tmp_path: Path) -> None:
    path = tmp_path / "variable.h5"
    with h5py.File(path, "w") as f:
        f["data"] = np.arange(20).reshape(4, 5)
        f["group/inner"] = 1
        for code in ("<i4", ">f8", "u1", "?"):
            made = f.create_dataset(f"sequence/{code}", (2, 2), h5py.vlen_dtype(code))
            made[0, 0], made[1, 1] = np.array([1, 0, 1], code), np.array([], code)
        records = f.create_dataset("sequence/records", (2,), h5py.vlen_dtype(np.dtype([("a", "<i2"), ("b", ">f4")])))
        records[0] = np.array([(1, 2.5), (3, 4.5)], [("a", "<i2"), ("b", ">f4")])
        texts = f.create_dataset("sequence/texts", (2,), h5py.vlen_dtype(h5py.string_dtype()))
        texts[0] = np.array(["a", "üü"], dtype=object)
        references = f.create_dataset("references/objects", (3,), h5py.ref_dtype)
        references[0], references[1] = f["data"].ref, f["group/inner"].ref
        regions = f.create_dataset("references/regions", (3,), h5py.regionref_dtype)
        regions[0], regions[1] = f["data"].regionref[1:3, 2:4], f["data"].regionref[[0, 2], 1]
        f["references/scalar"] = f["data"].ref
        kind = np.dtype([("n", "<i4"), ("s", h5py.string_dtype()), ("r", h5py.ref_dtype), ("a", ">f4", (2, 3))])
        mixed = np.zeros(3, kind)
        mixed["s"] = [b"", "long ü".encode(), b"x"]
        mixed["a"] = np.arange(18).reshape(3, 2, 3)
        mixed["r"] = [f["data"].ref] * 3
        f.create_dataset("mixed", data=mixed, dtype=kind)
        f["null/number"], f["null/text"] = h5py.Empty("f4"), h5py.Empty(h5py.string_dtype())
        f["arrays"] = np.arange(60, dtype="i2").view([("a", "i2", (2, 3)), ("b", "i2"), ("c", [("d", "i2", (3,))])])
        f["large"] = np.zeros(2, [("a", ">i4", (2000,)), ("b", "u1")])
        f["strings/array"] = np.array([["a", "bc"], ["", "ü"]], dtype=object)
    manifest = check(path)
    assert manifest.report.problems == ()
    verdict = compare_file(str(path))
    assert sorted(verdict.right) == sorted(manifest.arrays)
    assert manifest.arrays["sequence/>f8"].attributes["vlen_base_type"] == "<f8"
    with refindex.open(path) as archive:
        assert archive.group["references/objects"][...].tolist() == ["/data", "/group/inner", ""]
        assert archive.group["references/regions"][...].tolist()[0] == '/data {"blocks":[[[1,2],[2,3]]]}'
        assert archive.group["null/number"].shape == (0,)
        assert archive.group["mixed"][...]["r"].tolist() == [b"/data"] * 3
        assert archive.to_xarray(group="references")["objects"].values.tolist() == ["/data", "/group/inner", ""]
        assert np.array_equal(archive.group["arrays"][...]["a"]["1"]["2"], np.arange(60).reshape(6, 10)[:, 5])


def test_storage(tmp_path: Path) -> None:
    path = tmp_path / "storage.h5"
    values = np.arange(10_000, dtype="f4").reshape(100, 100)
    with h5py.File(path, "w", userblock_size=2048) as f:
        f["contiguous"] = values
        f.create_dataset("unwritten", (100, 100), "f4", fillvalue=7)
        f.create_dataset("undefined", (100, 100), "f4")
        f.create_dataset("sparse", (100, 100), "f4", chunks=(10, 10), fillvalue=-1)[35:40, 5:7] = 3
        f.create_dataset("nothing", (100, 100), "f4", chunks=(10, 10), compression="gzip", fillvalue=np.nan)
        f.create_dataset("edges", data=values, chunks=(33, 40), compression="gzip", shuffle=True)
        f.create_dataset("larger", data=values[:5, :7], chunks=(64, 64), maxshape=(None, None))
        f.create_dataset("zero", (0, 5), "f4", chunks=(10, 5), maxshape=(None, 5))
        f.create_dataset("rotated", data=values, chunks=(10, 7), maxshape=(100, None))
        f["scalar"] = 5.5
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((60, 20))
        made = h5py.h5d.create(f.id, b"compact", h5py.h5t.NATIVE_INT16, space, plist)
        made.write(h5py.h5s.ALL, h5py.h5s.ALL, np.arange(1200, dtype="i2").reshape(60, 20))
    manifest = check(path)
    assert manifest.report.problems == ()
    assert len(manifest.arrays["sparse"].chunks) == 1
    assert len(manifest.arrays["nothing"].chunks) == 0
    assert statuses(manifest)["compact"] is Status.INLINED


@pytest.mark.parametrize("libver", ["earliest", "v110", "latest"])
def test_every_file_version(tmp_path: Path, libver: str) -> None:
    path = tmp_path / "v.h5"
    values = np.arange(120 * 90, dtype="i4").reshape(120, 90)
    with h5py.File(path, "w", libver=libver) as f:
        for name, maximum in (("fixed", None), ("one", (None, 90)), ("behind", (120, None)), ("both", (None, None))):
            for filters in ({}, {"compression": "gzip"}):
                f.create_dataset(f"{name}{len(filters)}", data=values, chunks=(7, 5), maxshape=maximum, **filters)
                f.create_dataset(f"few-{name}{len(filters)}", data=values, chunks=(50, 40), maxshape=maximum, **filters)
        f.create_dataset("single", data=values, chunks=values.shape)
    manifest = check(path)
    assert set(statuses(manifest).values()) == {Status.NATIVE}


SHAPES = st.lists(st.integers(0, 20), max_size=3).map(tuple)


@settings(max_examples=80)
@given(data=st.data())
def test_any_dataset_equals_h5py(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    shape = data.draw(SHAPES)
    dtype = data.draw(st.sampled_from(["<f4", ">f8", "<i2", ">u4", "?", "S3", "<c16", "V5"]))
    options: dict[str, object] = {}
    if shape and data.draw(st.booleans()):
        options["chunks"] = tuple(data.draw(st.integers(1, max(1, n) + 2)) for n in shape)
        options["maxshape"] = tuple(
            data.draw(st.sampled_from([None, max(n, c)])) for n, c in zip(shape, options["chunks"], strict=True)
        )
        options["compression"] = data.draw(st.sampled_from([None, "gzip", "lzf"]))
        options["shuffle"] = data.draw(st.booleans())
        options["fletcher32"] = data.draw(st.booleans()) and dtype != "V5"
    values = (
        data.draw(hnp.arrays(np.dtype(dtype), shape))
        if dtype != "V5"
        else np.frombuffer(
            data.draw(st.binary(min_size=5 * int(np.prod(shape)), max_size=5 * int(np.prod(shape)))), "V5"
        ).reshape(shape)
    )
    if dtype not in ("V5", "S3") and data.draw(st.booleans()):
        options["fillvalue"] = data.draw(hnp.from_dtype(np.dtype(dtype)))
    path = tmp_path_factory.mktemp("any") / "x.h5"
    with h5py.File(path, "w", libver=data.draw(st.sampled_from(["earliest", "v110", "latest"]))) as f:
        dataset = f.create_dataset("d", shape, dtype, **options)
        if shape and 0 not in shape and data.draw(st.booleans()):
            part = tuple(slice(*sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))))) for n in shape)
            dataset[part] = values[part]
        else:
            dataset[...] = values
    verdict = compare_file(str(path))
    assert verdict.right == ["d"], verdict


def test_documents_are_valid(weather: Path) -> None:
    manifest = refindex.scan(weather)
    for array in manifest.arrays.values():
        with quiet():
            parsed = ArrayV3Metadata.from_dict(array.json)
        assert parsed.shape == array.shape
        assert parsed.dimension_names == array.dims


def test_dimensions_are_netcdfs(tmp_path: Path) -> None:
    path = tmp_path / "dims.nc"
    with netCDF4.Dataset(path, "w") as f:
        for name, n in (("x", 4), ("y", 3), ("time", None), ("n", 2), ("x_other", 4)):
            f.createDimension(name, n)
        f.createVariable("x", "f4", ("x",))[:] = range(4)
        f.createVariable("time", "i4", ("time",))[:] = range(5)
        f.createVariable("data", "f4", ("time", "y", "x"))[:] = np.zeros((5, 3, 4))
        f.createVariable("y", "S1", ("y", "n"))[:] = np.full((3, 2), b"a")  # several dimensions, named like one
        f.createVariable("n", "i4", ("x",))[:] = range(4)  # named like a dimension that is not its own
        f.createVariable("other", "f4", ("x_other", "x"))[:] = np.zeros((4, 4))
        group = f.createGroup("g")
        group.createDimension("z", 6)
        group.createVariable("w", "f8", ("z", "x"))[:] = np.zeros((6, 4))
    manifest = refindex.scan(path)
    assert {p: a.dims for p, a in manifest.arrays.items()} == {
        "x": ("x",),
        "time": ("time",),
        "data": ("time", "y", "x"),
        "y": ("y", "n"),
        "n": ("x",),
        "other": ("x_other", "x"),
        "g/w": ("z", "x"),
    }
    for group in (None, "g"):
        xr.testing.assert_identical(
            xr.open_dataset(path, engine="refindex", group=group).load(), netcdf4(path, group=group)
        )


def test_phony_dimensions_are_netcdfs(tmp_path: Path) -> None:
    path = tmp_path / "phony.h5"
    with h5py.File(path, "w") as f:
        f["a"] = np.zeros((5, 5, 3))
        f["b"] = np.zeros((3, 7))
        f.create_dataset("c", (5, 3), "f4", maxshape=(None, 3))
        f["g/d"] = np.zeros((7, 5))
        f["g/h/e"] = np.zeros(5)
    manifest = refindex.scan(path)
    with netCDF4.Dataset(path) as f:
        expected = {
            **{n: v.dimensions for n, v in f.variables.items()},
            "g/d": f["g"].variables["d"].dimensions,
            "g/h/e": f["g/h"].variables["e"].dimensions,
        }
    assert {p: a.dims for p, a in manifest.arrays.items()} == expected


def test_attributes(tmp_path: Path) -> None:
    path = tmp_path / "attributes.nc"
    with h5py.File(path, "w") as f:
        data = f.create_dataset("d", data=np.arange(1000, dtype="f4"))
        a = data.attrs
        a["i2"], a["f4"], a["f8"], a["u8"] = np.int16(5), np.float32(0.1), 0.1, np.uint64(2**64 - 1)
        a["numbers"] = np.array([1, 2], "i1")
        a["one"] = np.array([3.5], "f4")
        a["matrix"] = np.arange(4).reshape(2, 2)
        a["text"], a["bytes"], a["latin"] = "ü", np.bytes_(b"abc"), np.bytes_(b"\xe4")
        a["texts"] = np.array(["a", "bc"], dtype=object)
        a["nan"], a["inf"] = np.nan, np.array([np.inf, 1])
        a["bool"] = True
        a["empty"] = h5py.Empty("S1")
        a["nothing"] = np.array([], "f8")
        a["reference"] = f["d"].ref
        a["compound"] = np.zeros(1, [("x", "i4")])[0]
        a["complex"] = 1 + 2j
        a["_FillValue"] = np.float32(-9)
        a["missing_value"] = np.float32(np.nan)
    manifest = refindex.scan(path)
    array = manifest.arrays["d"]
    typed = array.typed_attributes
    assert typed["i2"].dtype == np.int16
    assert typed["f4"] == np.float32(0.1)
    assert typed["f4"].dtype == np.float32
    assert typed["u8"] == np.uint64(2**64 - 1)
    assert typed["numbers"].dtype == np.int8
    assert typed["one"] == 3.5
    assert typed["matrix"].tolist() == [[0, 1], [2, 3]]
    assert (typed["text"], typed["bytes"], typed["latin"], typed["texts"]) == ("ü", "abc", "ä", ["a", "bc"])
    assert typed["nan"] == "NaN"
    assert typed["inf"] == ["Infinity", 1.0]
    assert typed["empty"] == ""
    assert typed["reference"] == "/d"
    assert "missing_value" not in typed
    notes = {e.reason.split(":")[0] for e in manifest.report.select(Status.NOTE)}
    assert {"attribute 'compound'", "attribute 'complex'", "attribute 'nan'", "attribute 'inf'"} <= notes
    opened = xr.open_dataset(path, engine="refindex", mask_and_scale=False)
    assert opened["d"].attrs["_FillValue"] == -9
    import json

    json.loads(array.document, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))


def test_one_variable_and_its_coordinates(weather: Path) -> None:
    manifest = refindex.scan(weather, variables=["rain"])
    assert set(manifest.arrays) == {"rain", "time", "lat"}
    assert set(refindex.scan(weather, variables=["derived/mean"]).arrays) == {"derived/mean", "lat"}
    assert set(refindex.scan(weather, variables=["count"]).arrays) == {"derived/deeper/count"}
    assert refindex.scan(weather, variables=["nothing"]).arrays == {}


def test_coordinates_are_inline_and_large_data_is_not(tmp_path: Path) -> None:
    path = tmp_path / "c.nc"
    with netCDF4.Dataset(path, "w") as f:
        f.createDimension("time", None)
        f.createVariable("time", "f8", ("time",))[:] = np.arange(100_000)
        f.createVariable("data", "f4", ("time",), zlib=True)[:] = np.arange(100_000)
    found = statuses(refindex.scan(path))
    assert found == {"time": Status.INLINED, "data": Status.NATIVE}


def test_a_source_that_changes_meanwhile_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from refindex.scan import registry

    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as f:
        f["d"] = np.arange(1000)
    real = registry.scan_hdf5

    def slow(*args, **kwargs):
        result = real(*args, **kwargs)
        with path.open("ab") as f:
            f.write(b"more")
        return result

    monkeypatch.setattr(registry, "scan_hdf5", slow)
    with pytest.raises(refindex.SourceError, match="changed while it was scanned"):
        refindex.scan(path)


def test_a_million_chunks_take_little_memory(tmp_path: Path) -> None:
    import subprocess
    import sys

    path = tmp_path / "m.h5"
    with h5py.File(path, "w", libver="latest") as f:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((1,))
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        plist.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(f.id, b"d", h5py.h5t.NATIVE_INT32, h5py.h5s.create_simple((1_000_000,)), plist)
    code = (
        "import refindex, resource, sys\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "m = refindex.scan(sys.argv[1]); m.save(sys.argv[2])\n"
        "print(m.n_references, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "m.refindex")],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout.split()
    assert out[0] == "1000000"
    assert int(out[1]) < 300


def test_zarr_reads_parts(weather: Path) -> None:
    with refindex.open(weather) as archive, h5py.File(weather) as file:
        array = zarr.open_array(archive.store, path="rain", mode="r")
        for part in (np.s_[1:5:2, ::3, 4], np.s_[-1], np.s_[..., 0], np.s_[2, 3:3, :]):
            assert np.array_equal(array[part], file["rain"][...][part], equal_nan=True)


@pytest.mark.parametrize("libver", [None, "latest"])
def test_scales_on_some_axes_only(tmp_path: Path, libver: str | None) -> None:
    """An axis without a scale is nothing to speak of; libhdf5 fails to go through the scales that it does not have."""
    path = tmp_path / "f.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file["time"] = np.arange(4.0)
        file["time"].make_scale("time")
        for name, axis in (("first", 0), ("last", 2), ("gone", 1)):
            file[name] = np.zeros((4, 4, 4))
            file[name].dims[axis].attach_scale(file["time"])
        file["gone"].dims[1].detach_scale(file["time"])
        expected = {name: [file[name].dims[axis].keys() for axis in range(3)] for name in ("first", "last", "gone")}
    manifest = refindex.scan(path)
    assert not manifest.report.select(Status.NOTE, Status.UNSERVED)
    for name, scales in expected.items():
        dims = manifest.arrays[name].dims
        assert [dim == "time" for dim in dims] == [bool(list(of_axis)) for of_axis in scales], name
        assert len(set(dims)) == 3
