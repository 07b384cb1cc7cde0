"""The nodes of a store and their documents, read in as few requests as there can be.

Consolidated metadata is used where it is (``.zmetadata`` of version 2; the member ``consolidated_metadata`` of the
root's ``zarr.json``), as zarr-python does. What it does not have is read from the documents themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from refindex.errors import FormatError, RefindexError, UnsupportedError
from refindex.model.zarr_v3 import loads
from refindex.scan.zarr.listing import DOCUMENTS, Objects
from refindex.scan.zarr.plan import shortened, understood

MAX_DOCUMENT = 256 << 20
"""Bytes of one metadata document; consolidated metadata of ten thousand arrays takes about 20 MB."""

_BATCH = 1024
_GROUP_MEMBERS = {"zarr_format", "node_type", "attributes", "consolidated_metadata"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A node. ``document`` is its ``zarr.json`` or ``.zarray`` (empty for a version 2 group); ``attributes`` are the
    ``.zattrs`` of version 2."""

    path: str
    version: int
    is_array: bool
    document: dict[str, Any]
    attributes: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True, kw_only=True)
class Hierarchy:
    """The nodes by path, parents first; what could not be read (path -> error); notes on the whole store."""

    nodes: dict[str, Found] = field(default_factory=dict)
    failed: dict[str, RefindexError] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read_hierarchy(objects: Objects) -> Hierarchy:
    """Find all nodes of a store.

    Raises
    ------
    SourceError
        If documents cannot be read.
    """
    listing, result = objects.listing, Hierarchy()
    rows = {name: row for row, name in enumerate(listing.names) if name.endswith(DOCUMENTS) and _is_document(name)}
    documents: dict[str, Any] = {}
    consolidated = _consolidated(objects, rows, documents, result)
    # Of a node that is there in both versions, version 3 counts, as for zarr-python; .zgroup says nothing but its name.
    wanted = [
        name
        for name in rows
        if name not in documents
        and name not in (".zmetadata",)
        and not name.endswith(".zgroup")
        and (name.endswith("zarr.json") or _folder(name) + "zarr.json" not in rows)
        and not (name.endswith(".zattrs") and not _has_node(name, rows))
    ]
    if consolidated:
        new = [name for name in wanted if name.endswith(("zarr.json", ".zarray")) and name != "zarr.json"]
        if new:
            result.notes.append(f"{len(new)} nodes are not in its consolidated metadata, e.g. {new[0]}")
        gone = [n for n in documents if n.endswith(("zarr.json", ".zarray")) and n not in rows]
        if gone:
            result.notes.append(f"{len(gone)} nodes are in its consolidated metadata only, e.g. {gone[0]}")
    documents |= dict(_read(objects, rows, wanted))
    documents |= {name: {} for name in rows if name.endswith(".zgroup") and name not in documents}
    _build(documents, result)
    return result


def _is_document(name: str) -> bool:
    return name.rpartition("/")[2] in DOCUMENTS


def _folder(name: str) -> str:
    """The folder of a key, with a slash unless it is the root."""
    return name[: name.rfind("/") + 1]


def _has_node(name: str, rows: dict[str, int]) -> bool:
    folder = _folder(name)
    return f"{folder}.zarray" in rows or f"{folder}.zgroup" in rows


def _read(objects: Objects, rows: dict[str, int], names: list[str]) -> Iterator[tuple[str, Any]]:
    """Parsed documents; a :class:`FormatError` in place of one that is damaged."""
    size = objects.listing.size
    for first in range(0, len(names), _BATCH):
        part = names[first : first + _BATCH]
        large = [name for name in part if size[rows[name]] > MAX_DOCUMENT]
        yield from ((name, FormatError(f"{name} is larger than {MAX_DOCUMENT} bytes")) for name in large)
        part = [name for name in part if name not in large]
        numbers = [rows[name] for name in part]
        found = objects.read(numbers, [0] * len(part), [int(size[n]) for n in numbers])
        for name, text in zip(part, found, strict=True):
            yield name, parsed(text, name)


def parsed(text: bytes, name: str) -> Any:
    """A document, or the error that it is."""
    try:
        document = loads(text, name)
    except FormatError as error:
        return error
    return document if isinstance(document, dict) else FormatError(f"{name}: not a JSON object")


def _consolidated(objects: Objects, rows: dict[str, int], documents: dict[str, Any], result: Hierarchy) -> bool:
    """Add the documents that consolidated metadata holds; whether there is any."""
    if "zarr.json" in rows:
        ((_, root),) = _read(objects, rows, ["zarr.json"])
        documents["zarr.json"] = root
        inline = root.get("consolidated_metadata") if isinstance(root, dict) else None
        if inline is None:
            return False
        metadata = inline.get("metadata") if isinstance(inline, dict) and inline.get("kind") == "inline" else None
        if not isinstance(metadata, dict):
            result.notes.append(f"its consolidated metadata is not used: {shortened(inline)}")
            return False
        for path, document in metadata.items():
            if isinstance(document, dict) and _is_path(path):
                documents[f"{path}/zarr.json"] = document
        return True
    if ".zmetadata" not in rows:
        return False
    ((_, root),) = _read(objects, rows, [".zmetadata"])
    metadata = root.get("metadata") if isinstance(root, dict) else None
    if not isinstance(metadata, dict):
        result.notes.append(f"its consolidated metadata is damaged, and not used: {shortened(root)}")
        return False
    for name, document in metadata.items():
        folder = _folder(name)[:-1]
        if isinstance(document, dict) and _is_document(name) and (not folder or _is_path(folder)):
            documents[name] = document
    # What is consolidated is so with its attributes: none there are none.
    for name in [n for n in documents if n.endswith(".zarray")]:
        documents.setdefault(f"{_folder(name)}.zattrs", {})
    return True


def _is_path(path: str) -> bool:
    return all(part.strip(".") for part in path.split("/")) and "\0" not in path


def _build(documents: dict[str, Any], result: Hierarchy) -> None:
    paths = sorted({_folder(name)[:-1] for name in documents if not name.endswith(".zmetadata")})
    for path in paths:
        prefix = f"{path}/" if path else ""
        try:
            path.encode()
            if path and not _is_path(path):
                raise UnsupportedError("no Zarr node can be called that")
            found = _node(path, *(documents.get(f"{prefix}{name}") for name in DOCUMENTS[:4]))
        except RefindexError as error:
            result.failed[path] = error
        except UnicodeEncodeError:
            result.failed[ascii(path)] = UnsupportedError("its name is not Unicode")
        else:
            if found is not None:
                result.nodes[path] = found


def _node(path: str, v3: Any, group: Any, array: Any, attributes: Any) -> Found | None:
    if v3 is not None:
        document = _checked(v3)
        if document.get("zarr_format") != 3 or document.get("node_type") not in ("array", "group"):
            raise FormatError(
                f"zarr.json has zarr_format {shortened(document.get('zarr_format'))} and node_type "
                f"{shortened(document.get('node_type'))}; expected 3, and array or group"
            )
        is_array = document["node_type"] == "array"
        if not is_array:
            understood(document, _GROUP_MEMBERS)
        return Found(path=path, version=3, is_array=is_array, document=document)
    if array is not None or group is not None:
        values = {} if attributes is None else _checked(attributes)
        document = {} if array is None else _checked(array)
        return Found(path=path, version=2, is_array=array is not None, document=document, attributes=values)
    return None


def _checked(document: Any) -> dict[str, Any]:
    if isinstance(document, RefindexError):
        raise document
    if not isinstance(document, dict):
        raise FormatError(f"a metadata document is {shortened(document)}; expected a JSON object")
    return document
