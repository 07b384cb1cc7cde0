"""What notebooks show of manifests, archives, reports, growths and explanations."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import refindex
from refindex.growth import Growth
from refindex.model import html
from refindex.model.chunks import ChunkTable
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import EMPTY_ROOT, Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import array_document, dumps, group_document
from refindex.serve.explain import Cost, Explanation

EVIL = """<script>alert('x')</script>"><img src=x onerror="alert(1)"> & </div></style>"""
ALLOWED = {
    "div": {"class"},
    "style": set(),
    "b": set(),
    "span": {"class"},
    "details": {"open"},
    "summary": set(),
    "ul": set(),
    "li": set(),
    "table": {"class"},
    "caption": set(),
    "thead": set(),
    "tbody": set(),
    "tr": set(),
    "th": {"scope", "class"},
    "td": {"class"},
}
"""Every tag and attribute that may be there: none that runs anything or loads from elsewhere."""


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    children: list[Element | str] = field(default_factory=list)

    def find(self, tag: str) -> list[Element]:
        """All elements of a kind below this one, in order."""
        below = [child for child in self.children if isinstance(child, Element)]
        return [found for child in below for found in ([child] if child.tag == tag else []) + child.find(tag)]

    @property
    def text(self) -> str:
        return "".join(
            child if isinstance(child, str) else child.text for child in self.children if not is_style(child)
        )


def is_style(child: Element | str) -> bool:
    return isinstance(child, Element) and child.tag == "style"


class Reader(HTMLParser):
    """HTML of which every element that begins ends, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED, f"<{tag}> is not one of ours"
        assert {name for name, _ in attrs} <= ALLOWED[tag], f"<{tag}> has attributes {attrs}"
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        raise AssertionError(f"<{tag}/> ends itself")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> ends another element"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def parse(document: str) -> Element:
    """The one element of a representation; whatever is in it is well-formed, and only what we write."""
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert len(reader.open) == 1, f"not ended: {[element.tag for element in reader.open[1:]]}"
    (root,) = reader.open[0].children
    assert isinstance(root, Element)
    assert root.tag == "div"
    assert len(root.find("style")) == 1
    return root


def rows(root: Element) -> dict[str, list[str]]:
    """The cells of all rows of tables, by their first."""
    return {row.find("th")[0].text: [cell.text for cell in row.find("td")] for row in root.find("tr") if row.find("td")}


def named(name: str) -> Manifest:
    """A manifest in which all that can be named has one name."""
    group = name.replace("/", "") or "group"
    path = f"{group}/{group}"
    grid = ChunkGrid.regular((3,), (2,))
    document = array_document(
        grid=grid,
        data_type={"name": name},
        fill_value=0,
        codecs=[],
        dimension_names=(name,),
        attributes={name: name},
    )
    entries = [ReportEntry(source=name, path=name, status=status, reason=name) for status in Status]
    array = Array(path=path, document=dumps(document), chunks=ChunkTable.inline([(0, b"ab")]))
    return Manifest(
        groups={
            "": Node(path="", document=dumps(group_document({"title": name}))),
            group: Node(path=group, document=dumps(group_document({}))),
        },
        # Types that Zarr v3 does not know are an error before they are shown.
        arrays={path: array.knowing(dtype=np.dtype("i1"))},
        sources=(Source(url=f"file:///{name}", size=1),),
        report=ScanReport(entries=tuple(entries)),
    )


def everything(name: str) -> dict[str, str]:
    """All that is shown of things that have this name, by what they are."""
    manifest = named(name)
    cost = Cost(
        label=name,
        shape=(),
        chunks=1,
        absent=0,
        inline=0,
        requests=1,
        nbytes_read=1,
        nbytes_wanted=1,
        nbytes_decoded=1,
        sources=1,
    )
    return {
        "manifest": manifest._repr_html_(),
        "archive": html.hierarchy(
            "refindex.Archive",
            name=name,
            facts=["version 0"],
            nodes=manifest.nodes,
            sources=manifest.sources,
            report=manifest.report,
        ),
        "report": manifest.report._repr_html_(),
        "growth": Growth(version=1, added=(name,), removed=(name,) * 30, report=manifest.report)._repr_html_(),
        "explanation": Explanation(array=name, cost=cost, others=(cost,))._repr_html_(),
    }


@pytest.mark.parametrize("what", list(everything("a")))
def test_names_are_text_and_nothing_else(what: str) -> None:
    root = parse(everything(EVIL)[what])
    assert EVIL in root.text
    assert "<script" not in everything(EVIL)[what]


@given(name=st.text(st.characters(exclude_categories=()), min_size=1))
def test_whatever_a_file_calls_things_it_is_shown_as_text(name: str) -> None:
    for shown in everything(name).values():
        parse(shown)
        shown.encode("utf-8")  # lone surrogates, as in names of files that are not UTF-8
        assert shown.replace("\n", "").isprintable(), "nothing turns the text round, or hides it"


def test_long_names_are_shortened() -> None:
    assert len(html.text("x" * 10_000)) < 200
    assert html.text("x" * 100) == "x" * 100
    assert html.text("a\u202eb\0") == r"a\u202eb\x00"


def test_colours_are_those_of_the_page() -> None:
    """No colour is given but in variables, and those come from the colour of the text: light on dark, dark on light."""
    style = parse(ScanReport()._repr_html_()).find("style")[0].children[0]
    assert isinstance(style, str)
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", style)
    assert len(rules) > 5
    for selectors, body in rules:
        assert all(s.strip().startswith(".refindex-view") for s in selectors.split(",")), "only ours is styled"
        for name, value in re.findall(r"([\w-]+):\s*([^;]+);", body):
            if name.startswith("--"):
                assert "currentColor" in value or "var(--refindex-text)" in value
            elif "color" in name or "background" in name or "border-bottom" in name:
                assert re.search(r"var\(--refindex-\w+\)$|^inherit$|^none$", value), f"{name}: {value}"


@pytest.fixture
def weather(tmp_path: Path) -> Path:
    """A file with groups in groups, and a variable of which a chunk was never written."""
    path = tmp_path / "weather.h5"
    random = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["title"] = "made up"
        t2m = file.create_dataset("t2m", (1000, 20, 30), "f4", chunks=(100, 20, 30), compression="gzip")
        t2m[:950] = random.normal(size=(950, 20, 30)).round(2)
        holes = file.create_dataset("run/first/holes", (400, 50), "i2", chunks=(100, 50))
        holes[:200] = 1
        file.create_dataset("run/one", data=np.float64(3))
        file.create_group("run/second")
        file.create_group("running/first")
        file.create_dataset("run/first/words", data=["a", "b"], dtype=h5py.string_dtype())
    return path


def test_a_manifest_is_shown_as_h5py_sees_the_file(weather: Path) -> None:
    manifest = refindex.scan(weather)
    shown = rows(parse(manifest._repr_html_()))
    with h5py.File(weather) as file:
        for path, dims in (("t2m", 3), ("run/first/holes", 2)):
            dataset = file[path]
            lengths, kind, chunks, size, stored, references = shown[path.rpartition("/")[2]]
            assert [int(n) for n in re.findall(r": (\d+)", lengths)] == list(dataset.shape)
            assert len(re.findall(r"phony_dim_\d", lengths)) == dims
            assert kind == dataset.dtype.name
            assert chunks == " × ".join(map(str, dataset.chunks))  # noqa: RUF001
            assert size == html.nbytes(dataset.nbytes)
            assert stored == html.nbytes(dataset.id.get_storage_size())
            assert references.split(" of ")[0] == str(dataset.id.get_num_chunks())
        assert shown["holes"][-1] == "2 of 4"
        assert shown["t2m"][-1] == "10"
    assert shown["one"][0] == "a single value"
    assert shown["words"][3] == "", "of text of any length, nobody knows the size"


def test_numbers_are_set_as_numbers(weather: Path) -> None:
    head, *body = parse(refindex.scan(weather)._repr_html_()).find("table")[0].find("tr")
    columns = [cell.text for cell in head.find("th") if "class" in cell.attributes]
    assert columns == ["bytes", "stored", "references"]
    assert all(["class" in cell.attributes for cell in row.find("td")] == [False] * 3 + [True] * 3 for row in body)


def test_groups_are_in_their_groups(weather: Path) -> None:
    root = parse(refindex.scan(weather)._repr_html_())
    tree = root.find("details")[0]
    assert "made up" in root.text
    assert f"1 source of {html.nbytes(weather.stat().st_size)}" in root.text

    def groups(element: Element) -> dict[str, Any]:
        own = [child for child in element.children if isinstance(child, Element) and child.tag == "details"]
        return {child.find("summary")[0].text.split("/")[0]: groups(child) for child in own}

    assert groups(tree) == {"run": {"first": {}, "second": {}}, "running": {"first": {}}}
    names = [[cell.text for cell in table.find("th") if "scope" in cell.attributes] for table in tree.find("table")]
    assert ["t2m" in found for found in names] == [True, False, False]
    assert ["holes" in found for found in names] == [False, False, True]


@pytest.mark.parametrize("suffix", [".refindex", ".sqlite"])
def test_an_archive_tells_where_it_is_and_its_version(weather: Path, tmp_path: Path, suffix: str) -> None:
    url = tmp_path / f"archive{suffix}"
    manifest = refindex.scan(weather)
    manifest.save(url)
    manifest.save(url, overwrite=True)
    with refindex.open(url) as archive:
        root = parse(archive._repr_html_())
        shown, full = rows(root), rows(parse(manifest._repr_html_()))
    assert "version 1" in root.text
    assert str(url) in root.text
    assert shown == {name: cells[:4] for name, cells in full.items()}, "references are not read for it"
    assert root.text.endswith(parse(manifest.report._repr_html_()).text.removeprefix("refindex.ScanReport "))


def test_references_of_an_archive_are_not_read(weather: Path, tmp_path: Path) -> None:
    refindex.scan(weather).save(tmp_path / "archive.refindex")
    for path in (tmp_path / "archive.refindex" / "kind=chunk").glob("*.parquet"):
        path.unlink()
    with refindex.open(tmp_path / "archive.refindex") as archive:
        parse(archive._repr_html_())
        with pytest.raises(refindex.RefindexError):
            archive.find("t2m")


def test_an_archive_keeps_secrets(weather: Path) -> None:
    with refindex.open(weather) as archive:
        archive.url = "https://someone:secret@example.org/a.refindex?token=secret"
        assert "secret" not in archive._repr_html_()


def entry(status: Status, number: int, *, path: str = "", reason: str = "why") -> ReportEntry:
    return ReportEntry(source=f"f{number}.nc", path=path or f"v{number}", status=status, reason=reason)


def test_a_report_begins_with_the_worst() -> None:
    order = [Status.NATIVE, Status.ADAPTED, Status.UNSERVED, Status.NOTE, Status.DIMENSION, Status.FAILED]
    root = parse(ScanReport(entries=tuple(entry(s, n) for n, s in enumerate(order)))._repr_html_())
    lines = [line.text.split()[0] for line in root.find("li")]
    assert lines == ["failed", "unserved", "note", "adapted"]
    assert "1 failed, 1 unserved, 1 note, 1 adapted, 1 native, 1 dimension" in root.text
    assert [line.find("span")[0].attributes["class"] for line in root.find("li")] == [
        "refindex-alert",
        "refindex-alert",
        "refindex-faint",
        "refindex-faint",
    ]


@pytest.mark.parametrize(
    ("status", "is_open"),
    [(Status.FAILED, True), (Status.UNSERVED, True), (Status.NOTE, False), (Status.ADAPTED, False)],
)
def test_a_report_is_open_where_something_is_not_served(status: Status, is_open: bool) -> None:
    root = parse(ScanReport(entries=(entry(status, 0),))._repr_html_())
    assert ["open" in details.attributes for details in root.find("details")] == [is_open]


def test_what_is_said_of_many_files_is_said_once() -> None:
    many = [entry(Status.UNSERVED, n, path="t") for n in range(5000)]
    root = parse(ScanReport(entries=(*many, entry(Status.UNSERVED, 7, path="u")))._repr_html_())
    assert [line.text for line in root.find("li")] == [
        "unserved f0.nc:t and 4,999 more: why",
        "unserved f7.nc:u: why",
    ]
    assert "5,001 unserved" in root.text


def test_what_is_not_shown_is_counted() -> None:
    report = ScanReport(entries=tuple(entry(Status.NOTE, n) for n in range(html.MOST_LINES + 3)))
    root = parse(report._repr_html_())
    assert len(root.find("li")) == html.MOST_LINES
    assert "… and 3 more" in root.text
    assert "nothing scanned" in parse(ScanReport()._repr_html_()).text


@pytest.mark.parametrize(
    "groups", [[f"g{n}" for n in range(html.MOST_NODES + 50)], ["/".join(["g"] * n) for n in range(1, 2500)]]
)
def test_very_many_groups_and_very_deep_ones_are_cut(groups: list[str]) -> None:
    nodes = {path: Node(path=path, document=EMPTY_ROOT.document) for path in ["", *groups]}
    shown = html.hierarchy("refindex.Manifest", nodes=nodes, sources=(), report=())
    root = parse(shown) if len(groups) < 1000 else None
    assert shown.count("<details") == shown.count("</details>") == html.MOST_NODES
    assert f"… and {len(nodes) - html.MOST_NODES:,} more" in shown
    assert root is None or sum("open" in d.attributes for d in root.find("details")) == 1, "only the root is open"


def test_many_arrays_of_a_group_are_cut(weather: Path) -> None:
    manifest = refindex.scan(weather)
    nodes = {"": manifest.groups[""]} | {f"a{n}": manifest.arrays["t2m"].moved(f"a{n}") for n in range(500)}
    root = parse(html.hierarchy("refindex.Manifest", nodes=nodes, sources=(), report=()))
    assert len(rows(root)) == html.MOST_NODES
    assert f"… and {501 - html.MOST_NODES - 1} more" in root.text


def test_bytes_of_very_many_references_are_not_added_up(weather: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = refindex.scan(weather)
    monkeypatch.setattr(html, "_ADDED_UP", 3)
    monkeypatch.setattr(ChunkTable, "nbytes_stored", property(lambda _: pytest.fail("added up")))
    assert rows(parse(manifest._repr_html_()))["t2m"][-1] == "10"


def test_lengths_of_unequal_chunks_are_least_and_greatest() -> None:
    grid = ChunkGrid(shape=(90, 7), edges=(((31, 2), (28, 1)), 4))
    assert html.chunk_lengths(grid) == "28–31 × 4"  # noqa: RUF001
    assert html.chunk_lengths(ChunkGrid(shape=(), edges=())) == ""


def test_a_growth_names_its_files(tmp_path: Path) -> None:
    for year in (2001, 2002, 2003):
        time = xr.date_range(f"{year}-01-01", periods=10)
        xr.Dataset({"x": ("time", np.arange(10.0))}, {"time": time}).to_netcdf(tmp_path / f"{year}.nc")
    refindex.scan([tmp_path / "2001.nc", tmp_path / "2002.nc"]).save(tmp_path / "a.refindex")
    growth = refindex.append(tmp_path / "a.refindex", [tmp_path / "2002.nc", tmp_path / "2003.nc"])
    root = parse(growth._repr_html_())
    assert "version 1" in root.text
    assert [summary.text for summary in root.find("summary")][:2] == ["1 file added", "1 file skipped"]
    assert [line.text for line in root.find("li")][:2] == [str(tmp_path / "2003.nc"), str(tmp_path / "2002.nc")]


@given(size=st.integers(0, 10**18))
def test_numbers_of_bytes_are_short_and_near(size: int) -> None:
    number, unit = html.nbytes(size).split()
    assert len(number) <= 6
    assert float(number) * 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(unit) == pytest.approx(size, rel=0.051)
