"""What is told from object headers without libhdf5, beside what libhdf5 says of the same objects."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from refindex.access.readers import LocalFile
from refindex.errors import RefindexError
from refindex.model.manifest import Manifest
from refindex.scan.hdf5 import Known, attributes
from refindex.scan.hdf5.attributes import read
from refindex.scan.hdf5.chunks import iterate_chunks
from refindex.scan.hdf5.index import FileIndex, OpenFiles
from refindex.scan.hdf5.plain import PlainFile
from refindex.scan.hdf5.walk import Found, walk
from refindex.scan.registry import scan_source

SIMPLE = ["<f4", "<f8", "<i1", "<i2", "<i4", "<i8", "<u1"]
LIBVERS = [None, ("v108", "v110"), "latest"]


def scanned(path: Path, known: Known | None = None) -> tuple[Any, ...]:
    """All that a scan says of a file; an error with its text."""
    try:
        manifest = scan_source(f"file://{path}", known=known)
    except RefindexError as error:
        return type(error), str(error)
    return told(manifest)


def told(manifest: Manifest) -> tuple[Any, ...]:
    nodes = [
        (path, node.document, node.json, node.encodings, dict(node.attribute_types))
        for path, node in manifest.nodes.items()
    ]
    names = ("chunk", "source", "offset", "length", "encoding")
    tables = [
        ([getattr(array.chunks, name).tolist() for name in names], array.chunks.data, array.grid)
        for array in manifest.arrays.values()
    ]
    return nodes, tables, manifest.sources, tuple(manifest.report)


def objects(path: Path, check: Callable[[Found, PlainFile], None]) -> int:
    """Call ``check`` with every object of a file; returns how many there are."""
    url = f"file://{path}"
    with OpenFiles() as files:
        index = files.keep(url, LocalFile(url).identity())
        plain = index.plain
        assert plain is not None
        found = walk(index)
        for each in (*found.groups, *found.datasets):
            check(each, plain)
        return len(found.groups) + len(found.datasets)


def write_netcdf(path: Path, *, day: int = 0, short: bool = False) -> None:
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts({"title": "unié", "history": f"day {day}"})
        file.createDimension("time", None)
        file.createDimension("x", 6)
        file.createDimension("unseen", 2)
        time = file.createVariable("time", "f8", ("time",))
        time.units = "hours since 2000-01-01"
        time[:] = np.arange(4) + 4 * day
        for number in range(3):
            variable = file.createVariable(
                f"v{number}", "f4", ("time", "x"), compression="zlib", chunksizes=(1, 6), fill_value=-9.0
            )
            variable.setncatts({"units": "K", "flags": np.array([1, 2], "i1"), "nan": np.nan, "note": f"é{number}"})
            variable[: 3 if short and number else 4] = number + day
        group = file.createGroup("group")
        group.createVariable("plane", "i2", ("unseen", "x"))[:] = 3
        many = group.createVariable("many", "i4", ())
        many.setncatts({f"a{i}": i for i in range(12)})


def write_h5py(path: Path, libver: Any) -> None:
    with h5py.File(path, "w", libver=libver) as file:
        for number in range(3):
            data = np.arange(600, dtype="f4").reshape(20, 30) + number
            filtered = file.create_dataset(f"d{number}", data=data, chunks=(5, 10), compression=1, maxshape=(None, 30))
            filtered.attrs.update(
                {"units": "K", "list": ["a", "bé"], "fixed": np.bytes_("f"), "be": np.array(3, ">i4")}
            )
            filtered.attrs.update({"matrix": np.eye(2), "flag": True, "numbers": [1, 2, 3]})
        filtered.attrs["none"] = h5py.Empty("f4")
        file.create_dataset("plain", (20, 3), "i8", chunks=(3, 3))[:7] = 1
        file.create_dataset("unwritten", (20,), "i8", chunks=(3,))
        file.create_dataset("whole", data=np.arange(900.0))
        file["scalar"], file["text"] = 3.0, np.array([b"a b", b"c"], "S4")
        file.create_dataset("named", data=np.zeros(3), dtype=np.dtype("f8")).attrs["itself"] = file["plain"].ref
        file["type"] = np.dtype("f4")
        file.create_dataset("committed", (300,), dtype=file["type"], chunks=(100,))[:] = 2
        file["again"], file["soft"] = file["d0"], h5py.SoftLink("/d1")


@pytest.fixture(params=["netcdf", "short", *LIBVERS], ids=str)
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "written.nc"
    if request.param in ("netcdf", "short"):
        write_netcdf(path, short=request.param == "short")
    else:
        write_h5py(path, request.param)
    return path


def test_a_scan_says_the_same_without_headers(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    found = [scanned(written), scanned(written, known), scanned(written, known)]
    monkeypatch.setattr(FileIndex, "plain", None)
    assert found == [scanned(written)] * 3


def test_shapes_and_attributes_are_those_of_libhdf5(written: Path) -> None:
    plain_shapes = 0

    def check(found: Found, plain: PlainFile) -> None:
        nonlocal plain_shapes
        assert found.header is not None
        if found.header.extent is not None:
            plain_shapes += 1
            dataset = h5py.Dataset(found.id)
            assert found.header.extent.shape == dataset.shape
            unlimited = tuple(None if n == h5py.h5s.UNLIMITED else n for n in found.header.extent.maxima)
            assert unlimited == dataset.maxshape
        ours, theirs = read(found.id, messages=found.messages, plain=plain), read(found.id)
        assert (ours.values, ours.types, ours.notes) == (theirs.values, theirs.types, theirs.notes)
        assert list(ours.values) == list(theirs.values)

    assert objects(written, check) > 5
    assert plain_shapes > 3


def test_leaves_have_the_chunks_of_libhdf5(written: Path) -> None:
    leaves = 0

    def check(found: Found, plain: PlainFile) -> None:
        nonlocal leaves
        if found.header is None or found.header.key is None or found.layout != h5py.h5d.CHUNKED:
            return
        leaf = plain.leaf(found.header.bodies[8], len(found.shape), 64)
        if leaf is None:
            return
        leaves += 1
        theirs = iterate_chunks(found.id, found.chunk, user_block=0)
        for name in ("scaled", "offset", "length", "mask"):
            assert getattr(leaf, name).tolist() == getattr(theirs, name).tolist()

    objects(written, check)
    with h5py.File(written) as file:
        version_1 = "v0" in file or written.read_bytes().count(b"TREE\x01\x00")
    assert leaves >= 3 if version_1 else leaves == 0


def test_what_files_share_is_made_once(tmp_path: Path) -> None:
    known, made = Known(), []
    for day in range(3):
        write_netcdf(tmp_path / f"{day}.nc", day=day)
        made.append(scan_source(f"file://{tmp_path}/{day}.nc", known=known))
        assert told(made[-1]) == scanned(tmp_path / f"{day}.nc")
    first, second, third = (manifest.arrays["v1"] for manifest in made)
    assert second.document is first.document
    assert third.document is first.document
    assert made[0].arrays["time"].chunks.data != made[1].arrays["time"].chunks.data


@pytest.mark.parametrize("libver", LIBVERS, ids=str)
def test_one_other_property_makes_another_document(tmp_path: Path, libver: Any) -> None:
    known = Known()
    options: list[dict[str, Any]] = [{}, {"fillvalue": 1.0}, {"shuffle": True}, {"compression": 2}, {"chunks": (2, 10)}]
    for number, extra in enumerate(options):
        path = tmp_path / f"{number}.h5"
        with h5py.File(path, "w", libver=libver) as file:
            made = file.create_dataset("d", (20, 30), "f4", **{"chunks": (5, 10), "compression": 1, **extra})
            made.attrs["units"] = "K"
        assert scanned(path, known) == scanned(path)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.dictionaries(
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8),
        st.one_of(
            st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
            st.binary(min_size=1, max_size=20).map(np.bytes_),
            st.sampled_from([*SIMPLE, ">f4", "<u2", "<u8", "?"]).flatmap(
                lambda code: hnp.arrays(code, hnp.array_shapes(min_dims=0, max_dims=2, max_side=3))
            ),
            st.lists(st.text("abcä", max_size=4), min_size=1, max_size=3),
        ),
        max_size=6,
    ),
    libver=st.sampled_from(LIBVERS),
)
def test_any_attributes_are_those_of_libhdf5(tmp_path: Path, values: dict[str, Any], libver: Any) -> None:
    path = tmp_path / "attributes.h5"
    with h5py.File(path, "w", libver=libver) as file:
        for name, value in values.items():
            file.attrs[name] = value

    def check(found: Found, plain: PlainFile) -> None:
        ours, theirs = read(found.id, messages=found.messages, plain=plain), read(found.id)
        assert repr((ours.values, ours.types, ours.notes)) == repr((theirs.values, theirs.types, theirs.notes))

    objects(path, check)


@pytest.mark.parametrize("libver", LIBVERS, ids=str)
def test_plain_attributes_do_not_ask_libhdf5(tmp_path: Path, libver: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "attributes.h5"
    with h5py.File(path, "w", libver=libver) as file:
        file.attrs.update(
            {"text": "text", "fixed": np.bytes_("f"), "texts": ["a", "b"], "list": np.arange(3, dtype="<i4")}
        )
        file.attrs.update({f"n{i}": np.dtype(code).type(3) for i, code in enumerate(SIMPLE[:3])})
    monkeypatch.setattr(attributes, "read_value", lambda *_: pytest.fail("libhdf5 was asked"))

    def check(found: Found, plain: PlainFile) -> None:
        assert len(read(found.id, messages=found.messages, plain=plain).values) == 7

    objects(path, check)


@pytest.mark.parametrize("mark", [b"units\0", b"TREE\x01\x00", b"fixed\0", b"GCOL"])
def test_damage_is_reported_as_without_headers(tmp_path: Path, mark: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """In headers of version 1, and in the nodes of indexes, no checksum tells of damage."""
    path = tmp_path / "damaged.h5"
    write_h5py(path, None)
    sound = path.read_bytes()
    start = sound.index(mark)
    places = [*range(max(0, start - 8), start + 48)]
    found = []
    known = Known()
    for place in places:
        path.write_bytes(sound[:place] + bytes((sound[place] ^ 0x11,)) + sound[place + 1 :])
        found.append((scanned(path)[:2], scanned(path, known)[:2], scanned(path)[3:]))
    monkeypatch.setattr(FileIndex, "plain", None)
    for place, (ours, shared, report) in zip(places, found, strict=True):
        path.write_bytes(sound[:place] + bytes((sound[place] ^ 0x11,)) + sound[place + 1 :])
        theirs = scanned(path)
        assert (ours, shared, report) == (theirs[:2], theirs[:2], theirs[3:]), place


def test_nothing_behind_the_end_that_the_superblock_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "end.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=np.zeros((20, 30)), chunks=(5, 10))
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<Q", data, 40) == (len(data),)
    node = data.index(b"TREE\x01\x00")
    struct.pack_into("<Q", data, 40, node + 100)
    path.write_bytes(data)
    found = scanned(path)
    monkeypatch.setattr(FileIndex, "plain", None)
    assert found == scanned(path)
    assert "addr overflow" in repr(found)


def test_a_virtual_dataset_has_the_extent_of_its_sources(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "source.h5", "w") as file:
        file.create_dataset("d", data=np.arange(800.0).reshape(4, 200), chunks=(1, 200), maxshape=(None, 200))
        layout = h5py.VirtualLayout((4, 200), "f8", maxshape=(None, 200))
        layout[: h5py.h5s.UNLIMITED] = h5py.VirtualSource(file["d"])[: h5py.h5s.UNLIMITED]
    with h5py.File(tmp_path / "virtual.h5", "w", libver="latest") as file:
        file.create_virtual_dataset("d", layout)
    with h5py.File(tmp_path / "source.h5", "a") as file:
        file["d"].resize((6, 200))
        file["d"][4:] = 1
    with h5py.File(tmp_path / "virtual.h5") as file:
        shape = file["d"].shape
    manifest = scan_source(f"file://{tmp_path}/virtual.h5")
    assert shape == manifest.arrays["d"].shape == (6, 200)
