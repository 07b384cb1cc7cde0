"""Which file every part of every array comes from, as the manifest says: by placements, or groups, or there is one."""

from __future__ import annotations

import itertools
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from refindex.access import urls
from refindex.model.manifest import Node, Placement, Source, Status
from refindex.storage import ManifestReader
from refindex.verification.originals import folder_of_store
from refindex.verification.relations import Relations, dimension_key, dimension_sizes

type Box = tuple[tuple[int, int], ...]
"""First and last-plus-one element along each dimension."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A part of an array that lies in one file, or in each of several that must have the same there.

    Parameters
    ----------
    box:
        Where it lies in the array.
    files:
        URLs of the files that may have it; the first that has the array counts. None at all: fill values.
    origins:
        For each file, the first element along each dimension in the file.
    """

    box: Box
    files: tuple[str, ...]
    origins: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pieces:
    """The pieces of one joined dimension, sorted: their first elements, their ends, and who has them from where on."""

    starts: list[int]
    stops: list[int]
    holders: list[dict[int, int]]

    def within(self, low: int, high: int) -> list[tuple[int, int, dict[int, int]]]:
        """The pieces of a range, and the gaps in it, which nobody has; holders have the offset of the first element."""
        found: list[tuple[int, int, dict[int, int]]] = []
        at = low
        for n in range(max(bisect_right(self.starts, low) - 1, 0), bisect_left(self.starts, high)):
            first, stop = max(self.starts[n], low), min(self.stops[n], high)
            if first >= stop or first < at:
                continue
            if first > at:
                found.append((at, first, {}))
            shift = first - self.starts[n]
            found.append((first, stop, {source: offset + shift for source, offset in self.holders[n].items()}))
            at = stop
        if at < high:
            found.append((at, high, {}))
        return found


def _pieces(dim: str, placements: Sequence[Placement], size: int) -> _Pieces:
    """The pieces of a joined dimension of ``size`` elements.

    An archive that came to be joined along it later on may not say that its first files lie along it, too: they have
    what no other file has.
    """
    by_span: dict[tuple[int, int], dict[int, int]] = {}
    own = [p for p in placements if p.dim == dim]
    for p in own:
        if p.length:
            by_span.setdefault((p.start, p.start + p.length), {}).setdefault(p.source, p.offset)
    unsaid = sorted({p.source for p in placements} - {p.source for p in own})
    at = before = 0
    for start, stop in [*sorted(by_span), (size, size)] if unsaid else ():
        if start > at:
            by_span[at, start] = dict.fromkeys(unsaid, before)
            before += start - at
        at = max(at, stop)
    spans = sorted(by_span)
    return _Pieces(
        starts=[start for start, _ in spans],
        stops=[stop for _, stop in spans],
        holders=[dict(sorted(by_span[span].items())) for span in spans],
    )


@dataclass(kw_only=True)
class Lineage:
    """Where the arrays of an archive come from.

    Parameters
    ----------
    kind:
        ``single``, ``side by side``, ``joined``, or ``imported``: references that no scan of refindex made.
    files:
        URLs of the scanned files, in their order; of Zarr stores, one of their chunk files or their folder.
    others:
        Sources of a joined archive that have no part of a joined dimension.
    groups:
        Side by side: the file of each group.
    stores:
        Zarr stores in folders.
    stacked:
        Names of dimensions that the files do not have.
    first_only:
        Whether variables that differ were taken from the first file.
    kept_all:
        Whether no file was ever taken out: one that was may have left what no other file says.
    """

    kind: str
    files: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    groups: Mapping[str, str] = field(default_factory=dict)
    stores: tuple[str, ...] = ()
    stacked: frozenset[str] = frozenset()
    first_only: bool = False
    kept_all: bool = True
    nodes: Mapping[str, Node] = field(default_factory=dict)
    sources: Sequence[Source | None] = ()
    pieces: Mapping[str, _Pieces] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._key = dimension_key({path: node for path, node in self.nodes.items() if node.is_array})
        self._axes: dict[str, tuple[_Pieces | None, ...]] = {}

    @classmethod
    def of(cls, reader: ManifestReader, relations: Relations) -> Lineage:
        """From what the manifest says."""
        root = relations.nodes.get("")
        joined = dict(root.joined or {}) if root is not None else {}
        names = list(dict.fromkeys(e.source for e in relations.report if e.status != Status.FAILED and e.source))
        known = {urls.display(s.url): s.url for s in relations.sources if s is not None}
        stores = [urls.absolute(n) for n in names if n not in known and _holds(n, relations.sources)]
        made = partial(cls, nodes=relations.nodes, sources=relations.sources)
        if joined.get("side_by_side"):
            places = {name: known.get(name, urls.absolute(name)) for name in names if name in known or _local(name)}
            stores += [u for u in places.values() if u not in known.values()]
            groups = _groups(reader, relations, places)
            return made(kind="side by side", files=tuple(groups.values()), groups=groups, stores=tuple(stores))
        if relations.placements:
            numbers = sorted({p.source for p in relations.placements})
            files = [s.url for n in numbers if (s := relations.sources[n]) is not None]
            stores += [s for s in map(folder_of_store, files) if s is not None and s not in stores]
            inside = tuple(f"{store.rstrip('/')}/" for store in stores)
            others = (s.url for n, s in enumerate(relations.sources) if s is not None and n not in set(numbers))
            options = joined.get("options", {})
            dims = dict.fromkeys(p.dim for p in relations.placements)
            sizes = {dim: max(lengths) for dim, lengths in dimension_sizes(relations.arrays).items()}
            return made(
                kind="joined",
                files=tuple(files),
                others=tuple(url for url in others if not url.startswith(inside)),
                stores=tuple(stores),
                stacked=frozenset(options.get("stack", {})),
                first_only=options.get("on_difference") == "first",
                pieces={dim: _pieces(dim, relations.placements, sizes.get(dim, 0)) for dim in dims},
            )
        if "options" in joined:  # joined along nothing: all files have the same dimensions
            files = [s.url for s in relations.sources if s is not None]
            return made(
                kind="joined",
                files=tuple(files),
                stores=tuple(stores),
                first_only=joined["options"].get("on_difference") == "first",
            )
        if stores:
            return made(kind="single", files=(stores[0],), stores=tuple(stores))
        main = relations.sources[0] if relations.sources else None
        if main is not None and (urls.display(main.url) in names or (not names and len(relations.sources) == 1)):
            return made(kind="single", files=(main.url,))
        files = [s.url for s in relations.sources if s is not None]
        return made(kind="imported", files=tuple(files))

    def original_path(self, path: str) -> str:
        """The path of a node in its file."""
        return path.partition("/")[2] if self.kind == "side by side" else path

    def files_of(self, path: str) -> tuple[str, ...]:
        """The files that may have an array or a group."""
        if self.kind == "side by side":
            found = self.groups.get(path.partition("/")[0])
            return () if found is None else (found,)
        return self.files

    def joined_axes(self, path: str) -> tuple[_Pieces | None, ...]:
        """For each dimension of an array, its pieces, if it is joined."""
        if path not in self._axes:
            node = self.nodes[path]
            self._axes[path] = tuple(self.pieces.get(self._key(path, dim)) for dim in node.dims)
        return self._axes[path]

    def parts(self, path: str, box: Box) -> Iterator[Part]:
        """The parts that a box of an array consists of."""
        axes = self.joined_axes(path) if self.kind == "joined" else (None,) * len(box)
        origin = tuple(low for low, _ in box)
        if not any(axis is not None for axis in axes):
            files = self.files_of(path)
            yield Part(box=box, files=files, origins=(origin,) * len(files))
            return
        choices = [
            [(low, high, None)] if axis is None else axis.within(low, high)
            for axis, (low, high) in zip(axes, box, strict=True)
        ]
        for picked in itertools.product(*choices):
            holders = [has for _, _, has in picked if has is not None]
            common = [n for n in holders[0] if all(n in has for has in holders)]
            named = [(n, s.url) for n in common if (s := self.sources[n]) is not None]
            yield Part(
                box=tuple((low, high) for low, high, _ in picked),
                files=tuple(url for _, url in named),
                origins=tuple(tuple(low if has is None else has[n] for low, _, has in picked) for n, _ in named),
            )


def _local(name: str) -> bool:
    return urls.is_local(urls.absolute(name))


def _holds(name: str, sources: Sequence[Source | None]) -> bool:
    """Whether the sources are the chunk files of a store in this folder; a store may have none."""
    folder = urls.absolute(name).rstrip("/") + "/"
    some = [s for s in sources if s is not None]
    if any(s.url.startswith(folder) for s in some):
        return True
    return not some and urls.is_local(folder) and urls.local_path(folder).is_dir()


def _groups(reader: ManifestReader, relations: Relations, places: Mapping[str, str]) -> dict[str, str]:
    """The file of each group: it is named after it, or its references point there."""
    found: dict[str, str] = {}
    tops = dict.fromkeys(path.partition("/")[0] for path in relations.nodes if path)
    for group in tops:
        named = [url for url in places.values() if _is_named(group, url)]
        if len(named) > 1 or not named:
            referred = _referred(reader, relations, group)
            candidates = named or list(places.values())
            named = [url for url in candidates if any(r == url or r.startswith(f"{url}/") for r in referred)]
        if len(named) == 1:
            found[group] = named[0]
    return found


def _is_named(group: str, url: str) -> bool:
    links, at = urls.links_of(url)
    *folders, name = links[at].partition("://")[2].partition("?")[0].strip("/").split("/")
    stem = name.rpartition(".")[0] or name
    parts = [*folders, stem]
    plain, _, number = group.rpartition("_")
    names = {group, plain} if number.isdigit() else {group}
    return any("_".join(parts[-depth:]) in names for depth in range(1, len(parts) + 1))


def _referred(reader: ManifestReader, relations: Relations, group: str) -> set[str]:
    referred: set[str] = set()
    for path in relations.arrays:
        if path.partition("/")[0] == group and not referred:
            column = reader.find(path).source
            numbers = np.unique(column[column >= 0]).tolist()
            referred = {s.url for n in numbers if (s := relations.sources[n]) is not None}
    return referred
