"""DMR++ documents about HDF5 files, as h5py tells where their chunks are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np

DAP = "{http://xml.opendap.org/ns/DAP/4.0#}"
DMRPP = "{http://xml.opendap.org/dap/dmrpp/1.0.0#}"
_TYPES = {
    "i1": "Int8", "u1": "UInt8", "i2": "Int16", "u2": "UInt16", "i4": "Int32", "u4": "UInt32", "i8": "Int64",
    "u8": "UInt64", "f4": "Float32", "f8": "Float64",
}  # fmt: skip
_FILTERS = {1: "deflate", 2: "shuffle", 3: "fletcher32", 32015: "zstd"}


def write_dmrpp(path: Path, edit: Callable[[ElementTree.Element], object] = lambda root: None) -> Path:
    """``NAME.dmrpp`` beside an HDF5 file of numbers, changed by ``edit``."""
    root = ElementTree.Element(f"{DAP}Dataset", {"name": path.name, "dapVersion": "4.0", "dmrVersion": "1.0"})
    with h5py.File(path) as file:
        _group(file, root)
    edit(root)
    out = path.with_name(f"{path.name}.dmrpp")
    ElementTree.ElementTree(root).write(out, xml_declaration=True, encoding="utf-8")
    return out


def _group(group: Any, element: ElementTree.Element) -> None:
    _attributes(group.attrs, element)
    for name, member in group.items():
        if isinstance(member, h5py.Group):
            _group(member, ElementTree.SubElement(element, f"{DAP}Group", {"name": name}))
        else:
            _variable(member, ElementTree.SubElement(element, f"{DAP}{_TYPES[member.dtype.str[1:]]}", {"name": name}))


def _attributes(attributes: Any, element: ElementTree.Element) -> None:
    for name, value in attributes.items():
        kind = "String" if isinstance(value, str) else _TYPES[np.asarray(value).dtype.str[1:]]
        below = ElementTree.SubElement(element, f"{DAP}Attribute", {"name": name, "type": kind})
        ElementTree.SubElement(below, f"{DAP}Value").text = str(value)


def _variable(data: h5py.Dataset, element: ElementTree.Element) -> None:
    for size in data.shape:
        ElementTree.SubElement(element, f"{DAP}Dim", {"size": str(size)})
    _attributes(data.attrs, element)
    creation = data.id.get_create_plist()
    filters = [_FILTERS[creation.get_filter(n)[0]] for n in range(creation.get_nfilters())]
    told = {"byteOrder": "BE" if data.dtype.byteorder == ">" else "LE", "fillValue": str(data.fillvalue)}
    if filters:
        told["compressionType"] = " ".join(filters)
    if "deflate" in filters:
        told["deflateLevel"] = str(data.compression_opts)
    table = ElementTree.SubElement(element, f"{DMRPP}chunks", told)
    if data.chunks is None:
        if data.id.get_offset() is not None:
            where = {"offset": str(data.id.get_offset()), "nBytes": str(data.id.get_storage_size())}
            ElementTree.SubElement(table, f"{DMRPP}chunk", where)
        return
    ElementTree.SubElement(table, f"{DMRPP}chunkDimensionSizes").text = " ".join(map(str, data.chunks))
    for number in range(data.id.get_num_chunks()):
        stored = data.id.get_chunk_info(number)
        where = {"offset": str(stored.byte_offset), "nBytes": str(stored.size)}
        where["chunkPositionInArray"] = f"[{','.join(map(str, stored.chunk_offset))}]"
        if stored.filter_mask:
            where["fm"] = str(stored.filter_mask)
        ElementTree.SubElement(table, f"{DMRPP}chunk", where)
