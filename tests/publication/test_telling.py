"""The page and the STAC item: what they say is what h5py says, and nothing in an archive gets out of its text."""

from __future__ import annotations

import json
import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import jsonschema
import netCDF4
import numpy as np
import pytest
import xarray as xr

import refindex

EVIL = (
    "</code></pre></style></title>--><script src=//evil.example>alert(1)</script><img src=x onerror='alert(2)'>\"&amp;"
)


class Seen(HTMLParser):
    """The elements and texts of a page; every element must be closed where it was opened."""

    VOID = ("meta", "link", "br", "img", "input", "hr")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts.setdefault(self.open[-1], []).append(data)


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A file all names and attributes of which want to get out."""
    path = tmp_path / "evil.h5"
    name = EVIL.replace("/", "|")  # HDF5's names have no slashes
    with h5py.File(path, "w") as file:
        for key in ("title", "institution", "license", "history", "references", "summary"):
            file.attrs[key] = EVIL
        array = file.create_group(name).create_dataset(name, data=np.arange(4.0))
        for key in ("units", "long_name"):
            array.attrs[key] = EVIL
        time = file.create_dataset("time", data=np.arange(3.0))
        time.make_scale("time")
        time.attrs["units"] = f"days since 2000-01-01 {EVIL}"
        time.attrs["calendar"] = EVIL
        time.attrs["long_name"] = "\u202e\ud7ff\x7f"
    return path


@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_nothing_gets_out_of_its_text(kind: str, evil: Path) -> None:
    out = evil.parent / f"<b>&'.{kind}"
    done = refindex.publish(evil, out)
    page, item = (Path(file) for file in done.files)
    text = page.read_text(encoding="utf-8")
    seen = Seen(text)
    allowed = {
        *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "h1", "h2", "h3", "p", "a"),
        *("pre", "code", "dl", "dt", "dd", "div", "table", "thead", "tbody", "tr", "th", "td", "time"),
    }
    assert {tag for tag, _ in seen.elements} <= allowed
    assert not [name for _, attributes in seen.elements for name in attributes if name.startswith("on")]
    # No other host, and no script: the browser is told so, too.
    links = [attributes["href"] for _, attributes in seen.elements if "href" in attributes]
    assert links == [item.name]
    assert not [1 for _, attributes in seen.elements if "src" in attributes]
    assert "url(" not in text
    assert "@import" not in text
    (policy,) = [a["content"] for _, a in seen.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    # It is all there, as text.
    assert EVIL in "".join(seen.texts["h1"])
    assert EVIL in seen.texts["td"]
    assert json.loads(item.read_text(encoding="utf-8"))["properties"]["title"] == EVIL


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A file with groups, levels, and what says how to cite it."""
    path = tmp_path / "model.nc"
    with netCDF4.Dataset(path, "w") as file:
        file.setncatts(
            {
                "title": "A model",
                "institution": "An institute",
                "references": "doi:10.1000/1",
                "license": "CC-BY-4.0",
                "doi": "10.1000/1",
                "history": "made " * 200,
            }
        )
        for name, values, attributes in (
            ("time", np.arange(0, 365.0), {"units": "days since 2001-01-01", "calendar": "noleap", "axis": "T"}),
            ("plev", np.array([1000.0, 500.0]), {"units": "hPa", "positive": "down", "axis": "Z"}),
            ("lat", np.linspace(-60, 60, 20), {"units": "degrees_north"}),
            ("lon", np.arange(160.0, 200.0), {"units": "degrees_east"}),
        ):
            file.createDimension(name, values.size)
            variable = file.createVariable(name, "f8", (name,))
            variable.setncatts(attributes)
            variable[:] = values
        wind = file.createGroup("wind")
        u = wind.createVariable("u", "f4", ("time", "plev", "lat", "lon"), chunksizes=(73, 1, 20, 40), zlib=True)
        u.setncatts({"units": "m s-1", "long_name": "eastward wind"})
        u[:] = 1
        file.createDimension("n", 3)
        file.createVariable("flag", "i1", ("n",))[:] = 0
    return path


# What the specification of items 1.1.0 demands, and the extensions of theirs; written down from their texts.
NUMBER, TEXT = {"type": "number"}, {"type": "string", "minLength": 1}
TIME = {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$"}
ITEM = {
    "type": "object",
    "required": ["type", "stac_version", "id", "geometry", "properties", "links", "assets"],
    "properties": {
        "type": {"const": "Feature"},
        "stac_version": {"const": "1.1.0"},
        "stac_extensions": {"type": "array", "uniqueItems": True, "items": {"type": "string", "pattern": "^https://"}},
        "id": TEXT,
        "links": {"type": "array", "items": {"type": "object", "required": ["href", "rel"]}},
        "assets": {
            "type": "object",
            "additionalProperties": {
                "type": "object",
                "required": ["href"],
                "properties": {
                    "href": TEXT,
                    "title": {"type": "string"},
                    "type": {"type": "string"},
                    "roles": {"type": "array", "items": {"type": "string"}},
                    "xarray:open_kwargs": {"type": "object"},
                },
            },
        },
        "properties": {
            "type": "object",
            "required": ["datetime"],
            "properties": {
                "datetime": {"anyOf": [TIME, {"type": "null"}]},
                "start_datetime": TIME,
                "end_datetime": TIME,
                "created": TIME,
                "updated": TIME,
                "license": {"type": "string", "pattern": r"^[\w.+-]+$"},
                "providers": {"items": {"required": ["name"], "properties": {"name": TEXT}}},
                "cube:dimensions": {
                    "minProperties": 1,
                    "additionalProperties": {
                        "required": ["type"],
                        "oneOf": [
                            {
                                "required": ["axis", "extent"],
                                "properties": {
                                    "type": {"const": "spatial"},
                                    "axis": {"enum": ["x", "y", "z"]},
                                    "extent": {"items": NUMBER, "minItems": 2, "maxItems": 2},
                                },
                            },
                            {
                                "required": ["extent"],
                                "properties": {
                                    "type": {"const": "temporal"},
                                    "extent": {"items": TIME, "minItems": 2, "maxItems": 2},
                                },
                            },
                            {
                                "required": ["extent"],
                                "properties": {
                                    "type": {"not": {"enum": ["spatial", "temporal", "geometry"]}},
                                    "extent": {"items": NUMBER, "minItems": 2, "maxItems": 2},
                                },
                            },
                        ],
                    },
                },
                "cube:variables": {
                    "additionalProperties": {
                        "required": ["dimensions", "type"],
                        "properties": {
                            "dimensions": {"type": "array", "items": TEXT},
                            "type": {"enum": ["data", "auxiliary"]},
                            "unit": TEXT,
                            "description": TEXT,
                        },
                    }
                },
            },
            # Without a moment, there are both ends.
            "if": {"properties": {"datetime": {"type": "null"}}},
            "then": {"required": ["start_datetime", "end_datetime"]},
        },
    },
    # A box exactly where there is an outline.
    "oneOf": [
        {
            "required": ["bbox"],
            "properties": {
                "geometry": {"required": ["type", "coordinates"]},
                "bbox": {"type": "array", "items": NUMBER, "minItems": 4, "maxItems": 4},
            },
        },
        {"properties": {"geometry": {"type": "null"}, "bbox": False}},
    ],
}


def item_of(done: refindex.Published) -> dict[str, Any]:
    (file,) = [Path(name) for name in done.files if name.endswith("stac.json")]
    item: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(ITEM)
    jsonschema.validate(item, ITEM)
    variables = item["properties"].get("cube:variables", {})
    for variable in variables.values():
        assert set(variable["dimensions"]) <= set(item["properties"]["cube:dimensions"])
    for asset in item["assets"].values():
        assert (file.parent / asset["href"]).exists()
    return item


@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_the_item(kind: str, model: Path) -> None:
    item = item_of(refindex.publish(model, model.parent / f"m.{kind}"))
    assert item["id"] == "m"
    assert item["bbox"] == [160, -60, -161, 60]
    assert item["geometry"]["type"] == "MultiPolygon"
    said = item["properties"]
    assert (said["title"], said["license"], said["providers"][0]["name"]) == ("A model", "CC-BY-4.0", "An institute")
    assert (said["start_datetime"], said["end_datetime"]) == ("2001-01-01T00:00:00Z", "2001-12-31T00:00:00Z")
    assert "calendar noleap" in said["description"]
    assert said["cube:dimensions"]["lon"]["extent"] == [160, 199]
    assert said["cube:dimensions"]["plev"] == {"type": "spatial", "axis": "z", "extent": [500, 1000], "unit": "hPa"}
    assert said["cube:dimensions"]["n"]["extent"] == [0, 2]
    assert said["cube:variables"]["lat"]["type"] == "auxiliary"
    # What the item says of the archive opens it.
    asset = item["assets"]["archive"]
    folder = model.parent / f"m.{kind}" if kind == "refindex" else model.parent
    with xr.open_dataset(f"{folder}/{asset['href']}", **asset["xarray:open_kwargs"], group="wind") as dataset:
        assert dataset.u.shape == (365, 2, 20, 40)


def test_an_item_without_coordinates(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a"] = np.arange(5)
    item = item_of(refindex.publish(tmp_path / "a.h5", tmp_path / "a.refindex"))
    assert item["geometry"] is None
    assert "bbox" not in item
    assert item["properties"]["datetime"] == item["properties"]["created"]
    assert "has no times" in item["properties"]["description"]


def test_one_time(tmp_path: Path) -> None:
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        file.createDimension("time", 1)
        variable = file.createVariable("time", "i4", ("time",))
        variable.units = "hours since 2000-01-01"
        variable[:] = 6
    item = item_of(refindex.publish(tmp_path / "a.nc", tmp_path / "a.refindex"))
    assert item["properties"]["datetime"] == "2000-01-01T06:00:00Z"
    assert "start_datetime" not in item["properties"]


def test_the_page(model: Path) -> None:
    done = refindex.publish(model, model.parent / "m.refindex", title="Winds", license="CC0-1.0")
    text = Path(done.files[0]).read_text(encoding="utf-8")
    seen = Seen(text)
    assert seen.texts["h1"] == ["Winds"]
    assert "prefers-color-scheme:dark" in text
    rows = [cell for tag in ("th", "td") for cell in seen.texts[tag]]
    for cell in ("u", "time: 365, plev: 2, lat: 20, lon: 40", "float32", "73, 1, 20, 40", "m s-1", "eastward wind"):
        assert cell in rows
    assert "/wind" in seen.texts["h3"]
    terms = dict(zip(seen.texts["dt"], seen.texts["dd"], strict=True))
    assert terms["time"] == "2001-01-01T00:00:00Z to 2001-12-31T00:00:00Z"
    assert terms["latitude (/lat)"] == "-60 to 60 degrees_north"
    assert terms["vertical (/plev)"] == "500 to 1000 hPa"
    assert (terms["license"], terms["doi"], terms["institution"]) == ("CC0-1.0", "10.1000/1", "An institute")
    assert len(terms["history"]) <= 400
    with refindex.open(done.url) as archive:
        total = sum(len(archive.find(path)) for path in archive.arrays)
    assert f"{total} references into 1 file of" in "".join(seen.texts["p"])
    (moment,) = [attributes["datetime"] for tag, attributes in seen.elements if tag == "time"]
    assert moment is not None
    assert abs((datetime.now().astimezone() - datetime.fromisoformat(moment)).total_seconds()) < 100
    # The example runs, where the archive is.
    (code,) = re.findall(r"<pre[^>]*><code>(.*?)</code></pre>", text, re.DOTALL)
    lines = HTMLParser(convert_charrefs=True)
    found: list[str] = []
    lines.handle_data = found.append  # type: ignore[method-assign]
    lines.feed(code)
    lines.close()
    namespace: dict[str, Any] = {}
    source = "".join(found).replace('"m.refindex"', repr(done.url)).replace(", chunks={}", "")
    exec(source, namespace)
    assert namespace["ds"].sizes["lat"] == 20
    namespace["ds"].close()
