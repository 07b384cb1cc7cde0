"""DMR++ through VirtualiZarr's parser: values as h5py has them, references as a scan finds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import pytest
from dmrpp_writing import DAP, DMRPP, write_dmrpp
from parsing import SQUARE

import refindex
from refindex.exchange import _opened

pytest.importorskip("virtualizarr")
pytest.importorskip("obstore")


def test_dmrpp(hdf5: Path, served: Any) -> None:
    """Values as h5py has them, and references as a scan finds them."""
    archive = served(write_dmrpp(hdf5), "auto")
    assert not archive.report.problems
    own = refindex.scan(hdf5)
    theirs = refindex.import_references(hdf5.with_name(f"{hdf5.name}.dmrpp"))
    assert theirs.sources == own.sources
    assert set(theirs.arrays) == set(own.arrays)
    with h5py.File(hdf5) as file:
        for path in own.arrays:
            values = archive.group[path][...]
            assert values.dtype == file[path].dtype
            np.testing.assert_array_equal(values, file[path][...])
            one, other = theirs.arrays[path], own.arrays[path]
            # Bytes that are shuffled by one stay where they are; the checksum is passed over by both.
            assert one.json["codecs"][1:] == other.json["codecs"][1:] or path.endswith(("checked", "1 packed"))
            for column in ("chunk", "source", "offset", "length"):
                np.testing.assert_array_equal(getattr(one.chunks, column), getattr(other.chunks, column))
    masked = archive.to_xarray(group="packed")["masked"]
    assert masked.attrs["units"] == "K"
    assert np.flatnonzero(np.isnan(masked).all("phony_dim_1")).tolist() == [4]


def variable(root: ElementTree.Element, name: str) -> ElementTree.Element:
    (found,) = [element for element in root.iter() if element.get("name") == name]
    return found


def edited(name: str, **attributes: str) -> Callable[[ElementTree.Element], None]:
    """Change the table of a variable's chunks."""

    def edit(root: ElementTree.Element) -> None:
        table = variable(root, name).find(f"{DMRPP}chunks")
        assert table is not None
        for key, value in attributes.items():
            table.set(key, value)

    return edit


def doubled(root: ElementTree.Element) -> None:
    table = variable(root, "d").find(f"{DMRPP}chunks")
    assert table is not None
    chunk = table.find(f"{DMRPP}chunk")
    assert chunk is not None
    ElementTree.SubElement(table, f"{DMRPP}chunk", {**chunk.attrib, "offset": "0"})


def named(root: ElementTree.Element) -> None:
    for dim in variable(root, "d").iterfind(f"{DAP}Dim"):
        dim.set("name", "/x")
    ElementTree.SubElement(root, f"{DAP}Dimension", {"name": "x", "size": "20"})


def untabled(root: ElementTree.Element) -> None:
    element = variable(root, "d")
    element.remove(element.find(f"{DMRPP}chunks"))  # type: ignore[arg-type]
    ElementTree.SubElement(element, f"{DMRPP}compact").text = "AAAA"


def retyped(root: ElementTree.Element) -> None:
    variable(root, "d").tag = f"{DAP}String"


def unfiltered(file: Any) -> None:
    data = file.create_dataset("d", (20,), "i4", chunks=(10,), shuffle=True)
    data[...] = np.arange(20)
    data.id.write_direct_chunk((0,), np.arange(10, dtype="i4").tobytes(), filter_mask=1)


ODD: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
    "big-endian": (lambda f: f.create_dataset("d", data=SQUARE.astype(">i4")), None, "big-endian"),
    "not filtered": (unfiltered, None, r"not filtered \(fm\)"),
    "checked": (lambda f: f.create_dataset("d", data=SQUARE, chunks=(7, 7), fletcher32=True), None, "filters fletch"),
    "unknown filter": (
        lambda f: f.create_dataset("d", data=SQUARE), edited("d", compressionType="szip"), "filters szip",
    ),
    "elsewhere": (lambda f: f.create_dataset("d", data=SQUARE), edited("d", href="b.h5"), "href"),
    "pieces": (lambda f: f.create_dataset("d", data=SQUARE, chunks=(7, 7)), doubled, "several pieces"),
    "one name": (lambda f: f.create_dataset("d", data=SQUARE), named, "one name"),
    "compact": (lambda f: f.create_dataset("d", data=SQUARE), untabled, "compact"),
    "text": (lambda f: f.create_dataset("d", data=SQUARE), retyped, "of the type String"),
    "scalar": (lambda f: f.create_dataset("d", data=3.5), None, "does not know where"),
    "never written": (lambda f: f.create_dataset("d", (9, 9), "i4", chunks=(3, 3)), None, "no chunks"),
    "written in part": (lambda f: f.create_dataset("d", (9,), "i4", chunks=(3,)).__setitem__(0, 5), None, "know where"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_dmrpp_that_is_left_out(name: str, tmp_path: Path) -> None:
    """What VirtualiZarr's parser reads wrongly, or passes over, is told, and other variables are served."""
    make, edit, reason = ODD[name]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        make(file)
        file["other"] = SQUARE
    path = write_dmrpp(tmp_path / "a.h5", edit) if edit else write_dmrpp(tmp_path / "a.h5")
    manifest = refindex.import_references(path)
    (problem,) = manifest.report.problems
    assert problem.path == "/d"
    with pytest.raises(ValueError, match=reason):
        raise ValueError(problem.reason)
    with _opened(manifest, None, None, None) as archive:
        assert list(archive.arrays) == ["other"]
        np.testing.assert_array_equal(archive.group["other"][...], SQUARE)


def test_what_is_no_dmrpp(hdf5: Path) -> None:
    path = write_dmrpp(hdf5)
    for data, message_ in ((b"<Dataset/>", "not a DMR"), (b"<Data", "not an XML document")):
        path.write_bytes(data)
        with pytest.raises(refindex.FormatError, match=message_):
            refindex.import_references(path)
    with pytest.raises(refindex.UnsupportedError, match="does not end in .dmrpp"):
        refindex.import_references(hdf5, format="dmrpp")
    write_dmrpp(hdf5)
    hdf5.unlink()
    with pytest.raises(refindex.NotFoundError, match="files that it refers to"):
        refindex.import_references(path)
