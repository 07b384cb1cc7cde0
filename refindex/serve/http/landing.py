"""The landing page: what is in the archive, how to open it, and a place to look at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

from refindex.access import urls
from refindex.model.html import chunk_lengths, count
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import dumps
from refindex.serve.zarr_store import RefindexStore

MOST_ARRAYS = 2000
"""Arrays that the page lists."""

_SHOWN = 200
"""Characters of an attribute that the page shows."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the landing page tells of an archive.

    Parameters
    ----------
    store:
        The archive.
    plain_nodes:
        Its nodes in the plain view.
    view:
        Which view is at the root.
    identity:
        Of the version that is served.
    names:
        First parts of the paths that are not the archive's: of ``plain``, ``pinned`` and ``page``.
    """

    store: RefindexStore
    plain_nodes: Mapping[str, Node]
    view: str
    identity: str
    names: Mapping[str, str]

    @property
    def title(self) -> str:
        """The archive's name."""
        return urls.name(self.store.archive.url) or "archive in memory"

    @property
    def arrays(self) -> list[Node]:
        return [node for node in self.store.nodes.values() if node.is_array]


def facts(page: Page, url: str) -> dict[str, Any]:
    """What the page tells, for programs."""
    url = url.rstrip("/")
    return {
        "archive": page.title,
        "version": page.store.archive.version,
        "view": page.view,
        "zarr": f"{url}/",
        "plain": f"{url}/{page.names['plain']}/",
        "pinned": f"{url}/{page.names['pinned']}/{page.identity}/",
        "arrays": {
            node.path: {"shape": list(node.shape), "dims": list(node.dims), "data_type": node.json["data_type"]}
            for node in page.arrays
        },
    }


def snippets(page: Page, url: str) -> dict[str, str]:
    """How to open what is served, by the name of the library."""
    url = url.rstrip("/")
    plain = url if page.view == "plain" else f"{url}/{page.names['plain']}"
    # What has chunks of unequal lengths is read by everybody in the plain view only.
    usual = url if all(node.grid.is_regular for node in page.arrays) else plain
    first = next((node.path for node in page.arrays if node.dtype is not None and node.dtype.kind in "iuf"), "NAME")
    return {
        "xarray": f"import xarray as xr\n\nds = xr.open_zarr({usual!r})",
        "zarr": f"import zarr\n\ngroup = zarr.open_group({usual!r}, mode='r')\ngroup[{first!r}][...]",
        "tensorstore": (
            "import tensorstore as ts\n\n"
            f"array = ts.open({{'driver': 'zarr3', 'kvstore': {f'{plain}/{first}/'!r}}}, read=True).result()\n"
            "array.read().result()"
        ),
        "zarrita.js": (
            'import * as zarr from "zarrita";\n\n'
            f"const store = new zarr.FetchStore({dumps(plain)});\n"
            f'const array = await zarr.open.v3(zarr.root(store).resolve({dumps(first)}), {{ kind: "array" }});\n'
            "const all = await zarr.get(array);"
        ),
        "curl": f"curl -s {_quoted(f'{url}/zarr.json')}",
    }


def _quoted(text: str) -> str:
    """For a shell."""
    return "'" + text.replace("'", "'\\''") + "'"


def html(page: Page, url: str) -> str:
    """The page. Whatever comes from the archive or from the request is escaped."""
    return "".join(_html(page, url))


def _html(page: Page, url: str) -> Iterator[str]:
    title, arrays = escape(page.title), page.arrays
    names = {name: escape(taken) for name, taken in page.names.items()}
    version = "" if page.store.archive.version is None else f" · version {page.store.archive.version}"
    pinned = f"{names['pinned']}/{escape(page.identity)}/{names['plain']}/"
    attributes = page.store.nodes[""].attributes
    yield (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{title}</title>\n"
        f'<link rel="icon" href="{names["page"]}/icon.svg" type="image/svg+xml">\n'
        f'<link rel="stylesheet" href="{names["page"]}/page.css">\n'
        f'<script type="module" src="{names["page"]}/page.mjs"></script>\n</head>\n'
        f'<body data-zarr="{pinned}">\n'
        '<a class="skip" href="#arrays">Skip to the arrays</a>\n'
        f'<header>\n<p class="kind">Zarr v3, served by refindex</p>\n<h1>{title}</h1>\n'
        f"<p>{count(len(arrays), 'array')} · {count(len(page.store.nodes) - len(arrays), 'group')}{version}</p>\n"
    )
    for name in ("title", "summary", "institution", "source"):
        if isinstance(attributes.get(name), str):
            yield f"<p>{_short(attributes[name])}</p>\n"
    yield "</header>\n<main>\n"
    yield _LOOK
    yield '<section aria-labelledby="open-title">\n<h2 id="open-title">Open it</h2>\n'
    for number, (library, text) in enumerate(snippets(page, url).items()):
        yield (
            f"<details{'' if number else ' open'}><summary>{escape(library)}</summary>"
            f'<pre tabindex="0"><code>{escape(text)}</code></pre></details>\n'
        )
    yield (
        "<p>The root serves chunks "
        + ("as the archive stores them" if page.view == "declared" else "uncompressed, of one size")
        + f'; <a href="{names["plain"]}/zarr.json">{names["plain"]}/</a> serves them uncompressed and of one size, for '
        "every client of Zarr v3. What never changes and can be cached for good is below "
        f'<a href="{names["pinned"]}/{escape(page.identity)}/zarr.json">{names["pinned"]}/{escape(page.identity)}/</a>.'
        "</p>\n</section>\n"
    )
    yield '<section id="arrays" aria-labelledby="arrays-title">\n<h2 id="arrays-title">Arrays</h2>\n'
    yield from _groups(page, arrays)
    yield (
        "</section>\n</main>\n<footer><p>Read only. "
        '<a href="zarr.json">zarr.json</a> has all metadata.</p></footer>\n</body>\n</html>\n'
    )


def _groups(page: Page, arrays: list[Node]) -> Iterator[str]:
    groups: dict[str, list[Node]] = {}
    for node in arrays[:MOST_ARRAYS]:
        groups.setdefault(node.path.rpartition("/")[0], []).append(node)
    for group, members in sorted(groups.items()):
        yield (
            f'<h3>/{escape(group)}</h3>\n<div class="wide" tabindex="0" role="region" aria-label="arrays of '
            f'/{escape(group)}"><table>\n'
            '<thead><tr><th scope="col">array</th><th scope="col">dimensions</th><th scope="col">type</th>'
            '<th scope="col">chunks</th><th scope="col">units</th><th scope="col">what it is</th></tr></thead>'
            "\n<tbody>\n"
        )
        for node in members:
            yield _row(page, node)
        yield "</tbody></table></div>\n"
    if len(arrays) > MOST_ARRAYS:
        yield f"<p>… and {len(arrays) - MOST_ARRAYS} more.</p>\n"


def _row(page: Page, node: Node) -> str:
    attributes = node.attributes
    kind = node.json["data_type"]
    dims = ", ".join(f"{name or '·'}: {n}" for name, n in zip(node.dims, node.shape, strict=True)) or "a single value"
    meaning = next((attributes[n] for n in ("long_name", "standard_name", "description") if n in attributes), "")
    cells = (
        dims,
        kind if isinstance(kind, str) else str(kind.get("name", kind)),
        chunk_lengths(node.grid),
        attributes.get("units", ""),
        meaning,
    )
    name = escape(node.path.rpartition("/")[2] or "/")
    if node.shape and node.dtype is not None and node.dtype.kind in "biuf":
        name = f'<a href="#look" data-array="{escape(node.path)}">{name}</a>'
    return f'<tr><th scope="row">{name}</th>' + "".join(f"<td>{_short(cell)}</td>" for cell in cells) + "</tr>\n"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else str(value)
    return escape(text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…")


_LOOK = """\
<section id="look" aria-labelledby="look-title">
<h2 id="look-title">Look at it</h2>
<noscript><p>The picture needs JavaScript; everything else on this page does not.</p></noscript>
<form id="controls" hidden>
<label>array <select id="array"></select></label>
<div id="sliders"></div>
</form>
<figure>
<canvas id="picture" width="640" height="320" role="img" aria-label="no array drawn yet" aria-describedby="legend" \
tabindex="0"></canvas>
<div id="scale" hidden><span id="least"></span><canvas id="bar" width="256" height="1" aria-hidden="true"></canvas>\
<span id="greatest"></span></div>
<figcaption id="legend" role="status" aria-live="polite"></figcaption>
</figure>
</section>
"""
