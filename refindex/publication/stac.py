"""A published archive as a STAC item, so that catalogues find it.

Sources: the STAC item specification 1.1.0; the datacube extension 2.2.0; the xarray-assets extension 1.0.0; RFC 7946,
3.1.9 and 5.2, on what reaches over the antimeridian.
"""

from __future__ import annotations

import re
from typing import Any

from refindex.model.manifest import Node
from refindex.publication.coverage import Axis, Coverage, rfc3339
from refindex.publication.facts import Facts, meaning_of

DATACUBE = "https://stac-extensions.github.io/datacube/v2.2.0/schema.json"
XARRAY_ASSETS = "https://stac-extensions.github.io/xarray-assets/v1.0.0/schema.json"
MARK = '"refindex:version"'
"""What says that an item was written here, and may be written anew."""


def item(facts: Facts, *, page: str | None) -> dict[str, Any]:
    """The item; its links are relative, so that it can be moved together with the archive.

    Parameters
    ----------
    page:
        The name of the page beside it, None if there is none.
    """
    coverage = facts.coverage
    assets: dict[str, Any] = {
        "archive": {
            "href": f"./{facts.name}" if facts.is_file else "./",
            "title": facts.title,
            "description": f"refindex archive: references into {len(facts.sources)} files, served as Zarr v3",
            "type": "application/vnd.sqlite3" if facts.is_file else "application/vnd.apache.parquet",
            "roles": ["data", "references"],
            "xarray:open_kwargs": {"engine": "refindex"},
        }
    }
    if page is not None:
        assets["page"] = {"href": f"./{page}", "title": "Summary", "type": "text/html", "roles": ["overview"]}
    cube = _dimensions(facts)
    found: dict[str, Any] = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [*([DATACUBE] if cube else []), XARRAY_ASSETS],
        "id": re.sub(r"[^\w.-]+", "-", facts.name.rpartition(".")[0] or facts.name),
        "geometry": geometry(coverage.bbox),
        "properties": _properties(facts, cube),
        "links": [],
        "assets": assets,
    }
    if coverage.bbox is not None:
        found["bbox"] = list(coverage.bbox)
    return found


def _properties(facts: Facts, cube: dict[str, Any]) -> dict[str, Any]:
    coverage, attributes = facts.coverage, facts.citation
    notes = list(coverage.notes)
    now = f"{facts.time:%Y-%m-%dT%H:%M:%SZ}"
    properties: dict[str, Any] = {"title": facts.title}
    if coverage.start is None:
        # An item must have a time.
        properties["datetime"] = now
        notes.append("the archive has no times that could be read: datetime is that of its publication")
    elif coverage.start == coverage.end:
        properties["datetime"] = coverage.start
    else:
        properties |= {"datetime": None, "start_datetime": coverage.start, "end_datetime": coverage.end}
    said = [attributes[name] for name in ("summary", "description") if name in attributes][:1]
    if said or notes:
        properties["description"] = "\n\n".join([*said, *(f"Note: {note}." for note in notes)])
    if "institution" in attributes:
        properties["providers"] = [{"name": attributes["institution"], "roles": ["producer"]}]
    if "license" in attributes:
        # An identifier of SPDX, or a text that the item must not have here.
        known = re.fullmatch(r"[\w.+-]+", attributes["license"])
        properties["license"] = attributes["license"] if known else "other"
    properties |= {"created": now, "updated": now, "refindex:version": facts.version}
    if cube:
        properties |= {"cube:dimensions": cube, "cube:variables": _variables(facts)}
    return properties


def geometry(bbox: tuple[float, float, float, float] | None) -> dict[str, Any] | None:
    """The outline of a box; two of them over the antimeridian."""
    if bbox is None:
        return None
    west, south, east, north = bbox
    if west <= east:
        return {"type": "Polygon", "coordinates": [_ring(west, south, east, north)]}
    parts = [_ring(west, south, 180.0, north), _ring(-180.0, south, east, north)]
    return {"type": "MultiPolygon", "coordinates": [[ring] for ring in parts]}


def _ring(west: float, south: float, east: float, north: float) -> list[list[float]]:
    return [[west, south], [east, south], [east, north], [west, north], [west, south]]


def _dim_path(node: Node, dim: str) -> str:
    """A dimension by the group of the arrays that have it, as groups may have others of the same name."""
    group = node.path.rpartition("/")[0]
    return f"{group}/{dim}" if group else dim


def _dimensions(facts: Facts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in facts.arrays:
        for dim, length in zip(node.dims, node.shape, strict=True):
            if dim is not None and (path := _dim_path(node, dim)) not in found:
                found[path] = _dimension(facts.coverage, path, length)
    return found


def _dimension(coverage: Coverage, path: str, length: int) -> dict[str, Any]:
    axis = coverage.axes.get(path)
    if axis is None:
        return {"type": "index", "extent": [0, max(length - 1, 0)], "description": "no coordinate: positions"}
    if axis.kind == "t":
        return _temporal(axis, length)
    found: dict[str, Any] = {"type": "spatial", "axis": axis.kind, "extent": list(axis.extent)}
    return found | ({"unit": axis.units} if axis.kind == "z" and axis.units else {})


def _temporal(axis: Axis, length: int) -> dict[str, Any]:
    try:
        return {"type": "temporal", "extent": [rfc3339(value, axis.units, axis.calendar) for value in axis.extent]}
    except (ValueError, TypeError, OverflowError):
        return {"type": "index", "extent": [0, max(length - 1, 0)], "description": f"times: {axis.units}"}


def _variables(facts: Facts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for node in facts.arrays:
        if None in node.dims:
            continue
        own = node.path.rpartition("/")[2] in node.dims or node.path in facts.coverage.axes
        found[node.path] = {
            "dimensions": [_dim_path(node, str(dim)) for dim in node.dims],
            "type": "auxiliary" if own else "data",
        }
        for name, value in (("description", meaning_of(node)), ("unit", node.attributes.get("units"))):
            if isinstance(value, str) and value:
                found[node.path][name] = value
    return found
