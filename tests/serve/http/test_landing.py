"""The landing page: what it tells, that nothing of an archive can become markup, and its reader in Node.js."""

from __future__ import annotations

import json
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from asking import ask

import refindex

NODE = shutil.which("node")
SCRIPTS = Path(__file__).parent / "node"
PAGE = Path(refindex.__file__).parent / "serve" / "http" / "page"
HOSTILE = "<img src=x onerror=alert(1)>\"'&</title></script><script>alert(2)</script>"

needs_node = pytest.mark.skipif(NODE is None, reason="Node.js is not installed")


def node(script: str, *arguments: str) -> Any:
    done = subprocess.run(
        [str(NODE), str(SCRIPTS / script), *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Parsed(HTMLParser):
    """Elements, texts, and the attributes of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == name]


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A file that says markup wherever a file can say something."""
    with h5py.File(tmp_path / "hostile<b>.h5", "w") as file:
        file.attrs["title"] = HOSTILE
        data = file.create_dataset(HOSTILE.replace("/", "|"), data=np.arange(12.0).reshape(3, 4))
        for name in ("units", "long_name", "standard_name", "description"):
            data.attrs[name] = HOSTILE
        file.create_group("<i>group</i>".replace("/", "|"))["x"] = np.arange(3)
    return tmp_path / "hostile<b>.h5"


def test_what_is_in_the_archive(server: str, archive: refindex.Archive) -> None:
    found = ask(server, Accept="text/html,application/xhtml+xml,*/*;q=0.8")
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert ask(server, "index.html").body.replace(b"index.html", b"") == found.body
    again = ask(server, Accept="text/html", If_None_Match=found.headers["etag"])
    assert (again.status, again.body) == (304, b"")
    assert ask(server, If_None_Match=found.headers["etag"]).status == 200  # is JSON
    page = Parsed(found.body.decode())
    for text in (
        "weather.refindex",
        "made-up weather",
        "version 0",
        "time: 6, lat: 10, lon: 20",
        "int16",
        "2 \u00d7 10 \u00d7 20",
    ):
        assert text in page.text, text
    for node_ in archive.arrays.values():
        assert node_.path.rpartition("/")[2] in page.text
    assert {link["data-array"] for link in page.named("a") if "data-array" in link} >= {"t2m", "derived/mean"}


def test_the_snippets_run(server: str, archive: refindex.Archive) -> None:
    page = ask(server, Accept="text/html").body.decode()
    facts = json.loads(ask(server).body)
    assert facts["zarr"] == server
    import html as markup
    import re

    snippets = [markup.unescape(text) for text in re.findall(r"<code>(.*?)</code>", page, re.DOTALL)]
    assert len(snippets) == 5
    ran = 0
    for snippet in snippets:
        if "import xarray" in snippet or "import zarr\n" in snippet:
            names: dict[str, Any] = {}
            exec(snippet, names)
            if "ds" in names:
                names["ds"].close()
            ran += 1
        elif "import tensorstore" in snippet:
            pytest.importorskip("tensorstore")
            exec(snippet, {})
            ran += 1
    assert ran == 3


def test_the_policy(server: str) -> None:
    headers = ask(server, Accept="text/html").headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert "Accept" in headers["vary"]
    page = Parsed(ask(server, "index.html").body.decode())
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "style" for name in attributes)
        for name in ("src", "href"):
            address = attributes.get(name) or ""
            assert "://" not in address
            if address and not address.startswith("#"):
                assert ask(server, address).status == 200, address


def test_what_an_archive_says_is_text(hostile: Path) -> None:
    with refindex.open(hostile) as archive, archive.serve() as running:
        text = ask(running.url, "index.html").body.decode()
    page = Parsed(text)
    assert HOSTILE in page.text
    assert "hostile<b>.h5" in page.text
    assert [script.get("src") for script in page.named("script")] == ["page/page.mjs"]
    assert not page.named("img")
    assert not page.named("b")
    assert not page.named("i")


def test_what_a_request_says_is_text(archive: refindex.Archive) -> None:
    from refindex.serve.http.landing import html
    from refindex.serve.http.server import open_server

    with open_server(archive.store) as running:
        page = running.app.page
        text = html(page, "http://x\"><script>alert(1)</script>/';alert(2)//")
        assert len(Parsed(text).named("script")) == 1
        # And a host that is none of this machine's gets no page at all.
        assert ask(running.url, "index.html", Host='x"><script>').status == 400


def test_of_very_many_arrays_some_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("refindex.serve.http.landing.MOST_ARRAYS", 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for number in range(5):
            file[f"array{number}"] = [number]
    with refindex.open(tmp_path / "a.h5") as archive, archive.serve() as running:
        text = Parsed(ask(running.url, "index.html").body.decode()).text
    assert "array2" in text
    assert "array4" not in text
    assert "… and 2 more" in text


def test_an_empty_archive(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w"):
        pass
    with refindex.open(tmp_path / "a.h5") as archive, archive.serve() as running:
        assert ask(running.url, "index.html").status == 200
        assert ask(running.url, "zarr.json").status == 200


@needs_node
def test_its_reader_reads_what_h5py_reads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    expected: dict[str, np.ndarray[Any, Any]] = {}
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for dtype in (
            "i1",
            "u1",
            "<i2",
            ">i2",
            "<u4",
            ">i4",
            "<i8",
            ">u8",
            "<f2",
            ">f2",
            "<f4",
            ">f4",
            "<f8",
            ">f8",
            "?",
        ):
            for shape, chunks in (((7,), (3,)), ((5, 6), (2, 6)), ((4, 5, 3), (3, 2, 2)), ((2, 3, 2, 3), (1, 2, 2, 2))):
                kind = np.dtype(dtype).kind
                values = rng.integers(0, 100, shape) - (50 if kind in "if" else 0)
                name = f"{dtype.replace('<', 'l').replace('>', 'b').replace('?', 'bool')}_{len(shape)}"
                expected[name] = (values / 8 if kind == "f" else values % 2 if kind == "b" else values).astype(dtype)
                file.create_dataset(name, data=expected[name], chunks=chunks, compression="gzip")
        special = np.array([[np.nan, np.inf, -np.inf], [0, 6e-8, 65504]], "f2")
        expected["special"] = special
        file["special"] = special
        sparse = file.create_dataset(
            "sparse", (900, 700), "f8", chunks=(300, 700), fillvalue=np.nan, compression="gzip"
        )
        sparse[300:600] = 1.5
        expected["sparse"] = sparse[()]
    with refindex.open(tmp_path / "a.h5") as archive, archive.serve() as running:
        found = node("landing.mjs", (PAGE / "zarr.mjs").as_uri(), f"{running.url}plain/")
    assert set(found) == set(expected)
    for name, values in expected.items():
        box = tuple(slice(a, b) for a, b in zip(*found[name]["box"], strict=True))
        for which, wanted in (("whole", values), ("part", values[box])):
            numbers = np.array([float(v.replace("Infinity", "inf")) for v in found[name][which]])
            assert np.array_equal(numbers, wanted.astype("f8").reshape(-1), equal_nan=True), name


@needs_node
def test_its_reader_tells_failures_from_what_is_absent(weather: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weather.nc"
    copy.write_bytes(weather.read_bytes())
    refindex.scan(copy, variables=["t2m"]).save(tmp_path / "a.refindex")
    copy.unlink()
    with refindex.open(tmp_path / "a.refindex") as archive, archive.serve() as running:
        done = subprocess.run(
            [str(NODE), str(SCRIPTS / "landing.mjs"), (PAGE / "zarr.mjs").as_uri(), f"{running.url}plain/"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode != 0
    assert "no such file" in done.stderr


@needs_node
@pytest.mark.skipif(not (SCRIPTS / "node_modules" / "zarrita").is_dir(), reason="zarrita.js is not installed here")
def test_zarrita_reads_what_h5py_reads(tmp_path: Path, weather: Path) -> None:
    with h5py.File(weather) as file:
        expected = {
            path: file[path][()] for path in ("t2m", "rain", "lat", "time", "derived/mean", "derived/deeper/count")
        }
    with refindex.open(weather) as archive, archive.serve() as running:
        found = node("zarrita.mjs", f"{running.url}plain", *expected)
    for path, values in expected.items():
        assert tuple(found[path]["shape"]) == np.shape(values)
        numbers = np.array([float(v) for v in found[path]["values"]])
        assert np.array_equal(numbers, np.asarray(values, "f8").reshape(-1), equal_nan=True), path


@needs_node
@pytest.mark.skipif(not (SCRIPTS / "node_modules" / "puppeteer-core").is_dir(), reason="no browser is installed here")
def test_the_page_in_a_browser(weather: Path, tmp_path: Path) -> None:
    steps = [{"slide": 3}, {"choose": "derived/mean"}, {"choose": "lat"}]
    picture = tmp_path / "page.png"
    with refindex.open(weather) as archive, archive.serve() as running:
        found = node("browse.mjs", running.url, str(picture), _browser(), json.dumps(steps))
        host = running.url.removeprefix("http://").rstrip("/")
    assert found["trouble"] == []
    assert found["hosts"] == [host]
    assert found["elements"] == {"scripts": 1, "images": 0, "unlabelled": 0, "wide": False}
    with h5py.File(weather) as file:
        t2m, fill = file["t2m"][()], file["t2m"].attrs["_FillValue"][0]
        wanted = [
            ("t2m", t2m[0]),
            ("t2m", t2m[3]),
            ("derived/mean", file["derived/mean"][()]),
            ("lat", file["lat"][()]),
        ]
    for shown, (name, values) in zip(found["shown"], wanted, strict=True):
        present = values[values != fill].astype("f8")
        assert (shown["state"], shown["array"], shown["count"]) == ("drawn", name, str(present.size)), shown
        assert float(shown["sum"]) == pytest.approx(present.sum(), rel=1e-12)
        assert (float(shown["least"]), float(shown["greatest"])) == (present.min(), present.max())
        assert name in shown["label"]
        if values.ndim == 2:
            assert (shown["height"], shown["width"]) == values.shape
            assert shown["colours"] > 20
    assert "time=3" in found["shown"][1]["hash"]
    assert picture.read_bytes()[:4] == b"\x89PNG"


@needs_node
@pytest.mark.skipif(not (SCRIPTS / "node_modules" / "puppeteer-core").is_dir(), reason="no browser is installed here")
def test_markup_in_a_browser(hostile: Path, tmp_path: Path) -> None:
    with refindex.open(hostile) as archive, archive.serve() as running:
        found = node("browse.mjs", running.url, str(tmp_path / "page.png"), _browser())
    assert found["trouble"] == []
    assert found["elements"]["scripts"] == 1
    assert found["elements"]["images"] == 0
    assert HOSTILE in found["shown"][0]["legend"]
    assert float(found["shown"][0]["sum"]) == 66


def _browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((where for name in names if (where := shutil.which(name))), "")
