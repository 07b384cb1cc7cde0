"""The page beside a published archive: what is in it, and how to open it. It needs no script and no other host."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import Any

from refindex.model.zarr_v3 import dumps
from refindex.publication.coverage import text_of
from refindex.publication.facts import Facts, chunks_text, dims_text, meaning_of, members, type_text
from refindex.serve.explain import nbytes

MARK = '<meta name="generator" content="refindex">'
"""What says that a page was written here, and may be written anew."""

_MOST_ARRAYS = 2000
_SHOWN = 400
"""Characters of an attribute."""

_NUMBERED = {"x": "longitude", "y": "latitude", "z": "vertical"}

_STYLE = """\\
:root{color-scheme:light dark;--line:#8885;--soft:#8882;--link:#06c}
@media (prefers-color-scheme:dark){:root{--link:#7bf}}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:0 auto;padding:1rem}
h1{line-height:1.2;margin-bottom:.2em}h2{margin-top:1.6em}a{color:var(--link)}
table{border-collapse:collapse;width:100%;font-size:.9rem}
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem;border-bottom:1px solid var(--line)}
td,dd{overflow-wrap:anywhere}thead th{background:var(--soft)}
pre{background:var(--soft);padding:.8rem;overflow-x:auto}
dt{font-weight:600}dd{margin:0 0 .5rem;white-space:pre-wrap}.wide{overflow-x:auto}"""


def page(facts: Facts, *, stac: str | None) -> str:
    """The page as HTML. Whatever comes from the archive is escaped, and the browser is told to run nothing.

    Parameters
    ----------
    stac:
        The name of the STAC item beside it, None if there is none.
    """
    return "".join(_parts(facts, stac))


def _parts(facts: Facts, stac: str | None) -> Iterator[str]:
    title, arrays = escape(facts.title), facts.arrays
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'\">\n"
        f"{MARK}\n<title>{title}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n<header>\n<h1>{title}</h1>\n"
        f"<p>{_count(len(arrays), 'array')} in {_count(len(facts.groups), 'group')}; "
        f"{_count(facts.references, 'reference')} into {_count(len(facts.sources), 'file')} of {nbytes(facts.nbytes)}. "
        f"Version {facts.version} of <code>{escape(facts.name)}</code>, published "
        f'<time datetime="{facts.time:%Y-%m-%dT%H:%M:%SZ}">{facts.time:%Y-%m-%d %H:%M} UTC</time>.</p>\n'
        "</header>\n<main>\n"
    )
    yield from _opening(facts)
    yield from _coverage(facts)
    yield from _list("How to cite it", facts.citation.items())
    yield "<h2>What is in it</h2>\n"
    shown = arrays[:_MOST_ARRAYS]
    for group in facts.groups:
        found = members(shown, group.path)
        if found or group.path:
            yield f"<h3>/{escape(group.path)}</h3>\n"
        if found:
            yield from _table(found)
    if len(arrays) > len(shown):
        yield f"<p>&hellip; and {len(arrays) - len(shown)} more.</p>\n"
    item = f' <a href="{escape(stac)}">STAC item</a>.' if stac else ""
    yield (
        "</main>\n<footer><p>The archive has no data of its own but coordinates and small arrays: it says where the "
        f"values lie in the files.{item}</p></footer>\n</body>\n</html>\n"
    )


def _opening(facts: Facts) -> Iterator[str]:
    first = next((group.path for group in facts.groups if members(facts.arrays, group.path)), "")
    group = f", group={dumps(first)}" if first else ""
    code = f'import xarray as xr\n\nds = xr.open_dataset({dumps(facts.address)}, engine="refindex"{group}, chunks={{}})'
    yield f'<h2>Open it</h2>\n<pre tabindex="0"><code>{escape(code)}</code></pre>\n'
    if facts.address == facts.name:
        beside = "lies beside this page" if facts.is_file else "is the folder of this page"
        yield (
            f"<p><code>{escape(facts.name)}</code> {beside}: write its address, as <code>https://…</code> or as a "
            "path, in place of its name. <code>pip install refindex[http]</code> has what it takes.</p>\n"
        )


def _coverage(facts: Facts) -> Iterator[str]:
    coverage = facts.coverage
    rows: list[tuple[str, str]] = []
    if coverage.start is not None:
        rows.append(("time", f"{coverage.start} to {coverage.end}"))
    for axis in coverage.axes.values():
        if axis.kind != "t":
            low, high = map(text_of, axis.extent)
            rows.append((f"{_NUMBERED[axis.kind]} (/{axis.path})", f"{low} to {high} {axis.units}"))
    rows += [("note", note) for note in coverage.notes]
    yield from _list("What it reaches over", rows)


def _list(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    terms = "".join(f"<dt>{_short(name)}</dt><dd>{_short(value)}</dd>\n" for name, value in rows)
    if terms:
        yield f"<h2>{title}</h2>\n<dl>\n{terms}</dl>\n"


def _table(nodes: Iterable[Any]) -> Iterator[str]:
    names = ("array", "dimensions", "type", "chunks", "units", "what it is")
    yield (
        '<div class="wide" tabindex="0"><table>\n<thead><tr>'
        + "".join(f'<th scope="col">{name}</th>' for name in names)
        + "</tr></thead>\n<tbody>\n"
    )
    for node in nodes:
        cells = (
            dims_text(node),
            type_text(node),
            chunks_text(node.grid),
            node.attributes.get("units", ""),
            meaning_of(node),
        )
        name = _short(node.path.rpartition("/")[2] or "/")
        yield f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{_short(cell)}</td>" for cell in cells) + "</tr>\n"
    yield "</tbody></table></div>\n"


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return escape(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")
