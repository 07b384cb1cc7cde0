"""Manifests, archives and reports as HTML, for notebooks.

Whatever comes from files (names, attributes, reasons) goes through :func:`text`. Nothing is loaded from elsewhere, and
there is no script: trees open and close as ``details`` do. Colours follow the page, light or dark.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Array, Node, ReportEntry, Source, Status

MOST_NODES = 200
"""Groups and arrays that are shown."""

MOST_LINES = 10
"""Lines of a report that are shown, and names of files."""

_OPEN = 40
"""Groups and arrays up to which all groups are shown open."""

_ADDED_UP = 1 << 22
"""References up to which the bytes that they refer to are added up: some milliseconds."""

_SHOWN = 160
"""Characters of a name or a reason that are shown."""

_FIRST = (Status.FAILED, Status.UNSERVED, Status.NOTE, Status.ADAPTED)
"""What a reader of a report should see, the worst first."""

_LAST = (Status.NATIVE, Status.INLINED, Status.DIMENSION)

# Variables of JupyterLab, else the colour of the text around. Mixed with it, red is dark on light and light on dark.
_STYLE = """<style>
.refindex-view {
--refindex-text: var(--jp-content-font-color0, currentColor);
--refindex-faint: color-mix(in srgb, var(--refindex-text) 65%, transparent);
--refindex-line: color-mix(in srgb, var(--refindex-text) 20%, transparent);
--refindex-alert: color-mix(in srgb, #e5352b 70%, var(--refindex-text));
color: var(--refindex-text); font-size: 0.93em; line-height: 1.5; max-width: 70em; overflow-x: auto;
}
.refindex-view .refindex-faint { color: var(--refindex-faint); }
.refindex-view .refindex-alert { color: var(--refindex-alert); }
.refindex-view details { background: none; border: 0; box-shadow: none; font-size: inherit; margin: 0.15em 0 0.15em 1em;
padding: 0; }
.refindex-view summary { background: none; cursor: pointer; display: list-item; font-weight: inherit;
list-style: disclosure-closed inside; margin: 0; padding: 0; }
.refindex-view details[open] > summary { list-style-type: disclosure-open; }
.refindex-view summary::before, .refindex-view summary::after { content: none; }
.refindex-view ul { margin: 0.1em 0; padding-left: 1.4em; }
.refindex-view table { border-collapse: collapse; color: inherit; font-size: inherit; margin: 0.15em 0 0.4em 1em; }
.refindex-view caption { color: var(--refindex-faint); text-align: left; }
.refindex-view th, .refindex-view td { background: none; border: 0; border-bottom: 1px solid var(--refindex-line);
color: inherit; font-weight: normal; padding: 0.1em 0.8em 0.1em 0; text-align: left; vertical-align: top; }
.refindex-view thead th { color: var(--refindex-faint); }
.refindex-view tr .refindex-number { font-variant-numeric: tabular-nums; text-align: right; white-space: nowrap; }
</style>"""


def text(value: object) -> str:
    """Escaped, shortened where it is long, and with control characters (those that turn text round, too) spelt out."""
    shown = str(value)
    if len(shown) > _SHOWN:
        shown = f"{shown[: _SHOWN - 1]}…"
    if not shown.isprintable():
        shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in shown)
    return escape(shown)


def view(*parts: str) -> str:
    """Parts of HTML as what a notebook shows."""
    return f'<div class="refindex-view">{_STYLE}{"".join(parts)}</div>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: int = 0, caption: str = "") -> str:
    """A table; ``numbers`` of its columns, counted from the last, are numbers."""
    first = len(columns) - numbers
    head = "".join(f'<th scope="col"{_kind(at >= first)}>{text(name)}</th>' for at, name in enumerate(columns))
    body = "".join(_row(row, first) for row in rows)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    return f'<table class="refindex-table">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _row(cells: Sequence[str], first_number: int) -> str:
    name, *rest = cells
    shown = "".join(f"<td{_kind(at >= first_number)}>{text(cell)}</td>" for at, cell in enumerate(rest, start=1))
    return f'<tr><th scope="row">{text(name)}</th>{shown}</tr>'


def _kind(is_number: bool) -> str:
    return ' class="refindex-number"' if is_number else ""


def hierarchy(
    kind: str,
    *,
    nodes: Mapping[str, Node],
    sources: Sequence[Source],
    report: Iterable[ReportEntry],
    name: str = "",
    facts: Sequence[str] = (),
) -> str:
    """A manifest or an archive: what it is, its groups and arrays, and what became of the files.

    Parameters
    ----------
    kind:
        ``refindex.Archive``.
    name:
        Where it is, without secrets.
    facts:
        What more there is to say in the first line.
    """
    arrays = sum(node.is_array for node in nodes.values())
    said = (
        *facts,
        count(arrays, "array"),
        count(len(nodes) - arrays, "group"),
        f"{count(len(sources), 'source')} of {nbytes(sum(source.size for source in sources))}",
    )
    title = nodes[""].attributes.get("title") if "" in nodes else None
    return view(
        _heading(kind, name),
        f"<div>{text(title)}</div>" if isinstance(title, str) and title.strip() else "",
        f'<div class="refindex-faint">{text(" · ".join(said))}</div>',
        *_tree(nodes),
        *_report(report),
    )


def report(entries: Iterable[ReportEntry]) -> str:
    """The report of a scan: how many objects of each status, and what a reader should see first."""
    return view(_heading("refindex.ScanReport"), *_report(entries))


def growth(version: int, files: Mapping[str, Sequence[str]], entries: Iterable[ReportEntry]) -> str:
    """What an append or a removal did; ``files`` by what was done with them."""
    return view(
        _heading("refindex.Growth", f"version {version}"),
        *(_files(what, names) for what, names in files.items() if names),
        *_report(entries),
    )


def _heading(kind: str, name: str = "") -> str:
    return f"<div><b>{text(kind)}</b> {text(name)}</div>"


def _files(what: str, names: Sequence[str]) -> str:
    lines = [f"<li>{text(name)}</li>" for name in names[:MOST_LINES]]
    return (
        f"<details><summary>{text(count(len(names), 'file'))} {text(what)}</summary>"
        f"<ul>{''.join(lines)}</ul>{_more(len(names) - len(lines))}</details>"
    )


def _tree(nodes: Mapping[str, Node]) -> Iterator[str]:
    """Groups in groups, each with the table of its arrays."""
    members: dict[str, list[Node]] = {path: [] for path, node in nodes.items() if not node.is_array}
    for path, node in nodes.items():
        if node.is_array:
            members.setdefault(path.rpartition("/")[0], []).append(node)
    counted = any(isinstance(node, Array) for node in nodes.values())
    adds_up = sum(len(node.chunks) for node in nodes.values() if isinstance(node, Array)) <= _ADDED_UP
    columns = ["array", "dimensions", "type", "chunks", "bytes"]
    columns += (["stored", "references"] if adds_up else ["references"]) if counted else []
    inside: list[str] = []  # the groups that are open
    shown = 0
    for path in sorted(members, key=lambda path: path.split("/") if path else []):
        if shown >= MOST_NODES:
            break
        while inside and not path.startswith(f"{inside[-1]}/") and inside[-1]:
            inside.pop()
            yield "</details>"
        label = path.removeprefix(f"{inside[-1]}/" if inside and inside[-1] else "")
        number = count(len(members[path]), "array")
        opened = " open" if not path or len(nodes) <= _OPEN else ""
        yield f'<details{opened}><summary>{text(label)}/ <span class="refindex-faint">{number}</span></summary>'
        inside.append(path)
        arrays = members[path][: MOST_NODES - shown]
        shown += 1 + len(arrays)
        if arrays:
            numbers = len(columns) - 4
            yield table(columns, (_cells(node, adds_up) for node in arrays), numbers=numbers)
    yield "</details>" * len(inside)
    yield _more(len(nodes) - shown)


def _cells(node: Node, adds_up: bool) -> tuple[str, ...]:
    kind: Any = node.json["data_type"]
    dims = (f"{name}: {n}" if name else str(n) for name, n in zip(node.dims, node.shape, strict=True))
    size = None if node.dtype is None else math.prod(node.shape) * node.dtype.itemsize
    cells = (
        node.path.rpartition("/")[2] or "/",
        ", ".join(dims) or "a single value",
        kind if isinstance(kind, str) else str(kind.get("name", kind)),
        chunk_lengths(node.grid),
        "" if size is None else nbytes(size),
    )
    if not isinstance(node, Array):
        return cells
    references = f"{len(node.chunks):,}"
    if len(node.chunks) < node.grid.size:
        references += f" of {node.grid.size:,}"
    return (*cells, nbytes(node.chunks.nbytes_stored), references) if adds_up else (*cells, references)


def _report(entries: Iterable[ReportEntry]) -> Iterator[str]:
    """Counts, and the lines that a reader should see; one for all files of which the same is said."""
    counts: dict[Status, int] = {}
    lines: dict[tuple[Status, str, str], list[Any]] = {}
    for entry in entries:
        counts[entry.status] = counts.get(entry.status, 0) + 1
        if entry.status in _FIRST:
            lines.setdefault((entry.status, entry.path, entry.reason), [entry.source, 0])[1] += 1
    said = ", ".join(f"{counts[status]:,} {status}" for status in (*_FIRST, *_LAST) if status in counts)
    if not lines:
        yield f'<div class="refindex-faint">report: {said or "nothing scanned"}</div>'
        return
    worst = Status.FAILED in counts or Status.UNSERVED in counts
    yield f"<details{' open' if worst else ''}><summary>report: {said}</summary><ul>"
    ordered = sorted(lines.items(), key=lambda line: _FIRST.index(line[0][0]))
    for (status, path, reason), (source, times) in ordered[:MOST_LINES]:
        place = text(source) + ("" if path == "/" else f":{text(path)}")
        others = "" if times == 1 else f" and {times - 1:,} more"
        why = f": {text(reason)}" if reason else ""
        style = "alert" if status in (Status.FAILED, Status.UNSERVED) else "faint"
        yield f'<li><span class="refindex-{style}">{status}</span> {place}{others}{why}</li>'
    yield f"</ul>{_more(len(ordered) - MOST_LINES)}</details>"


def _more(left: int) -> str:
    return f'<div class="refindex-faint">… and {left:,} more</div>' if left > 0 else ""


def chunk_lengths(grid: ChunkGrid) -> str:
    """Chunk lengths along each dimension: one number, or the least and the greatest."""
    lengths = []
    for edge in grid.edges:
        each = [edge] if isinstance(edge, int) else [length for length, _ in edge]
        lengths.append(str(each[0]) if min(each) == max(each) else f"{min(each)}–{max(each)}")  # noqa: RUF001
    return " × ".join(lengths)  # noqa: RUF001


def count(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def nbytes(size: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(size) < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} PB"
