"""DMR++ as VirtualiZarr's parser does not look at it: variables that it would read wrongly, or passes over.

The format: the DMR of DAP4 (OPeNDAP's specification, volume 1) with the elements of the namespace ``dmrpp`` that say
where the chunks of a variable are.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree

from refindex.errors import FormatError

DAP = "{http://xml.opendap.org/ns/DAP/4.0#}"
DMRPP = "{http://xml.opendap.org/dap/dmrpp/1.0.0#}"

_NO_VARIABLES = {"Attribute", "Dimension", "Group", "Enumeration", "Map", "Dim"}

_BYTES = {"Byte", "UByte", "Int8", "UInt8"}
_NUMBERS = {*_BYTES, "Int16", "UInt16", "Int32", "UInt32", "Int64", "UInt64", "Float32", "Float64"}
"""Types of DAP4 that the parser knows, but for text."""

_UNDONE = ("deflate", "shuffle")
"""Filters that the parser knows."""


def root_of(data: bytes, where: str) -> ElementTree.Element:
    """The document.

    Raises
    ------
    FormatError
        If it is none.
    """
    try:
        root = ElementTree.fromstring(data)
    except ElementTree.ParseError as error:
        raise FormatError(f"{where}: not an XML document: {error}") from error
    if root.tag != f"{DAP}Dataset":
        raise FormatError(f"{where}: its root is {root.tag}; expected a Dataset of DAP4: not a DMR++")
    return root


def groups_of(element: ElementTree.Element, path: str = "") -> Iterator[tuple[str, ElementTree.Element]]:
    """All groups by their paths, the root (``""``) first."""
    yield path, element
    for group in element.iterfind(f"{DAP}Group"):
        yield from groups_of(group, f"{path}/{group.get('name', '')}".lstrip("/"))


def variables_of(group: ElementTree.Element) -> Iterator[tuple[str, str | None]]:
    """The names of a group's variables, each with why it is not read rightly, or None."""
    for element in group:
        kind = element.tag.removeprefix(DAP)
        if element.tag.startswith(DAP) and kind not in _NO_VARIABLES:
            yield element.get("name", ""), _objection(element)


def _objection(variable: ElementTree.Element) -> str | None:
    kind = variable.tag.removeprefix(DAP)
    if kind not in _NUMBERS:
        return f"DMR++ of the type {kind}, which VirtualiZarr's parser does not take"
    tables = variable.findall(f"{DMRPP}chunks")
    if len(tables) != 1:
        others = sorted({child.tag.removeprefix(DMRPP) for child in variable if child.tag.startswith(DMRPP)})
        return f"DMR++ without one table of chunks{', but with ' + ', '.join(others) if others else ''}"
    table = tables[0]
    chunks = table.findall(f"{DMRPP}chunk")
    if (table.get("byteOrder") or "LE").upper() != "LE" and kind not in _BYTES:
        return "DMR++ with big-endian values, which VirtualiZarr's parser takes for little-endian ones"
    filters = (table.get("compressionType") or "").split()
    # Of deflate, a checksum that follows it is never seen.
    undone = filters[:-1] if filters[-2:] == ["deflate", "fletcher32"] else filters
    if not set(undone) <= set(_UNDONE):
        said = ", ".join(filters)
        return f"DMR++ with the filters {said}, of which VirtualiZarr's parser knows {' and '.join(_UNDONE)}"
    if any(chunk.get("fm", "0") not in ("", "0") for chunk in chunks):
        return "DMR++ with chunks that were not filtered (fm), which VirtualiZarr's parser does not see"
    if any("href" in element.attrib for element in (table, *chunks)):
        return "DMR++ with chunks in other files (href), which VirtualiZarr's parser does not see"
    places = [chunk.get("chunkPositionInArray") for chunk in chunks]
    if len(set(places)) < len(places):
        return "DMR++ with chunks in several pieces, of which VirtualiZarr's parser takes the last"
    names = [dim.get("name") for dim in variable.iterfind(f"{DAP}Dim")]
    last = [name.rpartition("/")[2] for name in names if name]
    if len(set(last)) < len(last):
        return "DMR++ with two dimensions of one name, which VirtualiZarr's parser takes for one"
    return None
