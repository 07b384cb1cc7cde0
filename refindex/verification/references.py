"""Whether references are right in themselves: sorted, unique, in range, within their files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.errors import RefindexError
from refindex.model.manifest import Node, Source
from refindex.storage import ManifestReader
from refindex.storage.windows import NULL, Window, windows
from refindex.verification.relations import ANEW, Relations
from refindex.verification.result import Findings, Kind
from refindex.verification.sampling import Picks

type IntArray = npt.NDArray[np.int64]
type Mask = npt.NDArray[np.bool_]

_NAMED = 20
"""Rows that are named one by one, of those of one window that are wrong in the same way."""

_SPAN = 1 << 24
"""Chunk numbers among which doubles are looked for at a time."""


@dataclass(slots=True, kw_only=True)
class _Array:
    """What is known of an array while its references pass by."""

    node: Node
    size: int
    expected: IntArray
    inline: int
    pieces: dict[str, list[int]]


def check_references(reader: ManifestReader, relations: Relations, found: Findings, picks: Picks) -> None:
    """Look at every reference once; ``picks`` sees all those that are right."""
    arrays: dict[str, _Array] = {}
    sizes = np.array([NULL if s is None else s.size for s in relations.sources] or [0], dtype=np.int64)
    total = 0
    last: dict[str, tuple[bytes, int]] = {}
    strangers: dict[str, int] = {}
    for window in _guarded(windows(reader), found):
        total += len(window)
        found.tally["references"] = total
        found.tally["inline"] += int((window.columns["data"] != NULL).sum())
        found.told("manifest", total, None)
        name = window.path.encode(errors="surrogatepass")
        chunk = window.columns["chunk"]
        before = last.get(window.place)
        if before is not None and (name < before[0]) and window.place:
            found.add(
                Kind.MANIFEST, "references are not sorted by path", path=window.path, got=window.place, remedy=ANEW
            )
        previous = before[1] if before is not None and before[0] == name else NULL
        last[window.place] = name, int(chunk[-1])
        node = relations.nodes.get(window.path)
        if node is None or not node.is_array:
            strangers[window.path] = strangers.get(window.path, 0) + len(window)
            continue
        if window.path not in arrays:
            arrays[window.path] = _of(node)
        _check_window(window, previous, arrays[window.path], relations.sources, sizes, found, picks)
    for path, count in strangers.items():
        if path not in relations.nodes:
            found.add(Kind.MANIFEST, f"{count} references of an array that is not there", path=path, remedy=ANEW)
        else:
            found.add(Kind.MANIFEST, f"{count} references of a group", path=path, remedy=ANEW)
    for path, known in arrays.items():
        _check_doubles(reader, path, known.pieces, found)


def _guarded(some: Iterable[Window], found: Findings) -> Iterator[Window]:
    """What can be read of the references; what cannot is a problem."""
    try:
        yield from some
    except RefindexError as error:
        found.add(Kind.MANIFEST, f"references cannot be read: {error}", remedy=ANEW)


def _of(node: Node) -> _Array:
    grid = node.grid
    plain = node.dtype is not None and [c["name"] for c in node.codecs] == ["bytes"] and grid.is_regular
    return _Array(
        node=node,
        size=grid.size,
        # What an encoding without filters makes is as long as its chunk.
        expected=np.array([-1 if e.filters else e.nbytes for e in node.encodings] or [-1], dtype=np.int64),
        inline=math.prod(grid.chunk_shape()) * node.dtype.itemsize if plain and node.dtype is not None else -1,
        pieces={},
    )


def _check_window(
    window: Window,
    previous: int,
    array: _Array,
    sources: Sequence[Source | None],
    sizes: IntArray,
    found: Findings,
    picks: Picks,
) -> None:
    columns = window.columns
    chunk, source, offset, length = (columns[name] for name in ("chunk", "source", "offset", "length"))
    encoding, data = columns["encoding"], columns["data"]
    inline, referring = data != NULL, source != NULL
    n_sources, n_encodings = len(sources), len(array.node.encodings)

    def bad(rows: Mask, what: str, expected: str, column: str) -> None:
        _name(window, rows, what, expected, columns[column], sources, found)

    outside = (chunk < 0) | (chunk >= array.size)
    bad(outside, "the chunk number is out of range", f"one of {array.size}", "chunk")
    unsorted = np.diff(chunk, prepend=previous) <= 0 if previous != NULL else np.diff(chunk, prepend=-1) <= 0
    if previous == NULL and len(chunk):
        unsorted[0] = False
    bad(unsorted, "chunk numbers are not sorted and unique", "more than the one before", "chunk")
    bad(inline == referring, "it must have either a source or inline data", "one of both", "source")
    unknown = referring & ((source < 0) | (source >= n_sources))
    bad(unknown, "the source is not listed", f"one of {n_sources}", "source")
    bad(inline & (length != data), "the length is not that of the inline data", "its size", "length")
    bad((encoding != NULL) & ((encoding < 0) | (encoding >= n_encodings)), "the encoding is not listed",
        f"one of {n_encodings}", "encoding")  # fmt: skip
    negative = (length < 0) | (referring & (offset < 0))
    bad(length < 0, "the length is negative or missing", "0 or more", "length")
    bad(referring & (offset < 0), "the offset is negative or missing", "0 or more", "offset")
    known = referring & ~unknown & ~negative
    end = np.where(known, sizes[np.where(known, source, 0)], 0)
    # Compared by what is left behind the offset, so that nothing overflows.
    beyond = known & (end != NULL) & ((offset > end) | (length > end - offset))
    bad(beyond, "it ends beyond the end of its source", "a range within the file's size", "offset")
    numbered = (known | inline) & (encoding >= 0) & (encoding < n_encodings)
    wanted = np.where(numbered, array.expected[np.where(numbered, encoding, 0)], -1)
    bad((wanted >= 0) & (length != wanted), "the length is not that of a chunk with this encoding", "all its bytes",
        "length")  # fmt: skip
    if array.inline >= 0:
        bad(inline & (length != array.inline) & (encoding == NULL), "the inline data is not a whole chunk",
            f"{array.inline} bytes", "length")  # fmt: skip
    summed = columns["checksum"]
    bad((summed != NULL) & (inline | (summed < 0) | (summed >= 1 << 32)), "the checksum is none of bytes in a source",
        "null, or 0 to 2**32 - 1", "checksum")  # fmt: skip
    piece = array.pieces.setdefault(window.place, [int(chunk.min()), int(chunk.max())])
    piece[0], piece[1] = min(piece[0], int(chunk.min())), max(piece[1], int(chunk.max()))
    fine = ~(outside | unknown | negative)
    picks.see(window, array.node, fine)


def _name(
    window: Window,
    rows: Mask,
    what: str,
    expected: str,
    column: IntArray,
    sources: Sequence[Source | None],
    found: Findings,
) -> None:
    """Name the rows that are wrong, up to some; count all."""
    wrong = np.flatnonzero(rows)
    for number, row in enumerate(wrong[:_NAMED].tolist()):
        at = int(window.columns["source"][row])
        named = sources[at] if 0 <= at < len(sources) else None
        found.add(
            Kind.MANIFEST,
            what,
            count=len(wrong) - _NAMED + 1 if number == _NAMED - 1 else 1,
            path=window.path,
            chunk=int(window.columns["chunk"][row]),
            source="" if named is None else urls.display(named.url),
            expected=expected,
            got=_row(window.columns, row, column),
            remedy=ANEW,
        )


def _row(columns: Mapping[str, IntArray], row: int, column: IntArray) -> str:
    told = "null" if int(column[row]) == NULL else str(int(column[row]))
    offset, length = int(columns["offset"][row]), int(columns["length"][row])
    return told if offset == NULL else f"{told} (bytes {offset} to {offset + length})"


def _check_doubles(reader: ManifestReader, path: str, pieces: Mapping[str, Sequence[Any]], found: Findings) -> None:
    """Within one file numbers rise; whether two files have the same is found out where their ranges overlap."""
    spans = sorted((low, high) for low, high in pieces.values())
    overlaps = [
        (max(one[0], two[0]), min(one[1], two[1]))
        for number, one in enumerate(spans)
        for two in spans[number + 1 :]
        if two[0] <= one[1]
    ]
    for first, stop in _united(overlaps):
        for low in range(first, stop + 1, _SPAN):
            high = min(low + _SPAN, stop + 1)
            seen = np.zeros(high - low, dtype=bool)
            for window in _guarded(windows(reader, path, low, high), found):
                chunk = window.columns["chunk"]
                chunk = chunk[(chunk >= low) & (chunk < high)] - low
                for number in np.flatnonzero(seen[chunk])[:_NAMED].tolist():
                    found.add(
                        Kind.MANIFEST,
                        "two files of the manifest have this chunk",
                        path=path,
                        chunk=int(chunk[number]) + low,
                        expected="one reference",
                        got=f"another in {window.place}",
                        remedy=ANEW,
                    )
                seen[chunk] = True


def _united(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges without overlaps that have the same numbers."""
    united: list[tuple[int, int]] = []
    for low, high in sorted(spans):
        if united and low <= united[-1][1] + 1:
            united[-1] = united[-1][0], max(united[-1][1], high)
        else:
            united.append((low, high))
    return united
