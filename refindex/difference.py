"""What differs between two versions of an archive."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from refindex.access import urls
from refindex.model.chunks import INLINE, ChunkTable
from refindex.model.manifest import Node, Source
from refindex.storage import ManifestReader


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayDifference:
    """What differs of one array: shapes (None: it is not there), what of its document, numbers of references."""

    path: str
    old_shape: tuple[int, ...] | None
    new_shape: tuple[int, ...] | None
    document: tuple[str, ...] = ()
    added: int = 0
    removed: int = 0
    changed: int = 0

    def __str__(self) -> str:
        if self.old_shape is None:
            return f"+ /{self.path} {_shape(self.new_shape)}: {self.added} references"
        if self.new_shape is None:
            return f"- /{self.path} {_shape(self.old_shape)}: {self.removed} references"
        parts = []
        if self.old_shape != self.new_shape:
            parts.append(f"{_shape(self.old_shape)} -> {_shape(self.new_shape)}")
        if self.document:
            parts.append(", ".join(self.document))
        if self.added or self.removed or self.changed:
            parts.append(f"references +{self.added} -{self.removed} ~{self.changed}")
        return f"~ /{self.path} {'; '.join(parts)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What differs between two versions: files as people write them, groups, and arrays.

    Of files that are elsewhere now, ``sources_moved`` has both names.
    """

    old: int
    new: int
    sources_added: tuple[str, ...] = ()
    sources_removed: tuple[str, ...] = ()
    sources_changed: tuple[str, ...] = ()
    sources_moved: tuple[tuple[str, str], ...] = ()
    groups_added: tuple[str, ...] = ()
    groups_removed: tuple[str, ...] = ()
    groups_changed: tuple[str, ...] = ()
    arrays: tuple[ArrayDifference, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.sources_added
            or self.sources_removed
            or self.sources_changed
            or self.sources_moved
            or self.groups_added
            or self.groups_removed
            or self.groups_changed
            or self.arrays
        )

    def __str__(self) -> str:
        lines = [f"version {self.old} -> {self.new}: {'' if self else 'no difference'}".rstrip(": ")]
        for sign, names in (("+", self.sources_added), ("-", self.sources_removed), ("~", self.sources_changed)):
            lines += [f"{sign} source {name}" for name in names]
        lines += [f"~ source {was} -> {now}" for was, now in self.sources_moved]
        for sign, names in (("+", self.groups_added), ("-", self.groups_removed), ("~", self.groups_changed)):
            lines += [f"{sign} group /{name}" for name in names]
        return "\n".join([*lines, *(str(array) for array in self.arrays)])


def compare(old: ManifestReader, new: ManifestReader) -> Difference:
    """What differs between two versions of an archive.

    References are compared by what they say: the file (by URL; one that has moved is the same), the range, the
    encoding; one array at a time is in memory.

    Raises
    ------
    ManifestError
        If either is damaged.
    """
    before = {source.url: source for source in old.sources}
    after = {source.url: source for source in new.sources}
    groups = [{p: n for p, n in reader.nodes.items() if not n.is_array} for reader in (old, new)]
    changed = [
        path for path, node in groups[0].items() if path in groups[1] and node.attributes != groups[1][path].attributes
    ]
    numbers: dict[Source, int] = {}
    moved = _moved(old.sources, new.sources)
    maps = [
        np.array([numbers.setdefault(moved.get(source, source), len(numbers)) for source in reader.sources] or [0])
        for reader in (old, new)
    ]
    paths = dict.fromkeys(path for reader in (old, new) for path, node in reader.nodes.items() if node.is_array)
    arrays = [_compare_array(path, old, new, maps) for path in paths]
    return Difference(
        old=old.version,
        new=new.version,
        sources_added=_names(after.keys() - before.keys() - {now.url for now in moved}),
        sources_removed=_names(before.keys() - after.keys() - {was.url for was in moved.values()}),
        sources_changed=_names(url for url, source in after.items() if url in before and before[url] != source),
        sources_moved=tuple((urls.display(was.url), urls.display(now.url)) for now, was in moved.items()),
        groups_added=tuple(p for p in groups[1] if p not in groups[0]),
        groups_removed=tuple(p for p in groups[0] if p not in groups[1]),
        groups_changed=tuple(changed),
        arrays=tuple(array for array in arrays if array is not None),
    )


def _moved(before: Sequence[Source], after: Sequence[Source]) -> dict[Source, Source]:
    """Sources of the new version that are those of the old one in another place.

    A relocation keeps their numbers and sizes, and their names; one that was renamed has its time or entity tag.
    """
    old, new = ({source.url for source in sources} for sources in (before, after))
    return {
        now: was
        for was, now in zip(before, after, strict=False)
        if was.url not in new
        and now.url not in old
        and was.size == now.size
        and (urls.name(was.url) == urls.name(now.url) or (was.mtime, was.etag) == (now.mtime, now.etag) != (None, None))
    }


def _names(found: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(urls.display(url) for url in found))


def _shape(shape: Sequence[int] | None) -> str:
    return f"({', '.join(str(n) for n in shape or ())})"


def _array(reader: ManifestReader, path: str) -> Node | None:
    node = reader.nodes.get(path)
    return node if node is not None and node.is_array else None


def _compare_array(
    path: str, old: ManifestReader, new: ManifestReader, maps: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]]
) -> ArrayDifference | None:
    nodes = [_array(reader, path) for reader in (old, new)]
    tables = [
        ChunkTable.empty() if node is None else reader.find(path)
        for reader, node in zip((old, new), nodes, strict=True)
    ]
    first, second = nodes
    if first is None or second is None:
        return ArrayDifference(
            path=path,
            old_shape=None if first is None else first.shape,
            new_shape=None if second is None else second.shape,
            added=len(tables[1]),
            removed=len(tables[0]),
        )
    document = tuple(
        key
        for key in ("data_type", "fill_value", "codecs", "attributes", "dimension_names", "chunk_grid")
        if first.json.get(key) != second.json.get(key) and (key != "chunk_grid" or first.shape == second.shape)
    )
    # Numbers mean the same chunk only while the grid's later dimensions stay.
    if first.grid.counts[1:] == second.grid.counts[1:]:
        same, one, two = np.intersect1d(tables[0].chunk, tables[1].chunk, assume_unique=True, return_indices=True)
    else:
        same, one, two = (np.zeros(0, dtype=np.int64),) * 3
    changed = _changed(first, second, tables, maps, one, two)
    difference = ArrayDifference(
        path=path,
        old_shape=first.shape,
        new_shape=second.shape,
        document=document,
        added=len(tables[1]) - len(same),
        removed=len(tables[0]) - len(same),
        changed=changed,
    )
    nothing = not (document or difference.added or difference.removed or changed or first.shape != second.shape)
    return None if nothing else difference


def _changed(
    first: Node,
    second: Node,
    tables: Sequence[ChunkTable],
    maps: Sequence[np.ndarray[tuple[int], np.dtype[np.int64]]],
    one: np.ndarray[tuple[int], np.dtype[np.int64]],
    two: np.ndarray[tuple[int], np.dtype[np.int64]],
) -> int:
    """Number of chunks that both have, and that are other bytes."""
    if not len(one):
        return 0
    old, new = tables[0].take(one), tables[1].take(two)
    encodings = {encoding: n for n, encoding in enumerate(first.encodings)}
    mapping = np.array([encodings.get(e, len(encodings) + n) for n, e in enumerate(second.encodings)] or [0])
    sources = [
        np.where(t.source == INLINE, INLINE, m[np.maximum(t.source, 0)]) for t, m in zip((old, new), maps, strict=True)
    ]
    inline = (old.source == INLINE) & (new.source == INLINE)
    differs = (sources[0] != sources[1]) | (old.length != new.length)
    differs |= ~inline & (old.offset != new.offset)
    differs |= old.encoding != np.where(new.encoding < 0, new.encoding, mapping[np.maximum(new.encoding, 0)])
    if old.checksum is not None and new.checksum is not None:
        # Where only one of them has a checksum, nothing says that the bytes are others.
        differs |= (old.checksum != new.checksum) & (old.checksum >= 0) & (new.checksum >= 0)
    for row in np.flatnonzero(inline & ~differs).tolist():
        differs[row] = old.inline_bytes(row) != new.inline_bytes(row)
    return int(differs.sum())
