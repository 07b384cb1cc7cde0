"""Chunk references as columns: no Python object a chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from refindex.errors import FormatError

type IntArray = npt.NDArray[np.int64]

INLINE = -1
"""``source`` of a chunk whose bytes are in the manifest itself."""

DECLARED = -1
"""``encoding`` of a chunk whose bytes are exactly what the array's codec chain says."""

UNCHECKED = -1
"""``checksum`` of a chunk of which none was taken."""


WINDOW = 1 << 20
"""Rows of a table that are looked at in one go, where columns that are derived from it would be large."""


class Pages(Protocol):
    """The memory that columns are mapped to from files."""

    def release(self) -> None:
        """Let go of it; it comes back from the files when it is looked at."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkTable:
    """The references of one array, one row a chunk that exists, sorted by chunk number.

    Columns (all of length ``n``):

    chunk: int64
        C-order number in the array's chunk grid, strictly increasing.
    source: int32
        Index into the manifest's sources, or ``INLINE``.
    offset, length: int64
        Byte range in the source; for inline chunks, in ``data``.
    encoding: int32
        Index into the array's encodings, or ``DECLARED``.
    data: bytes
        The bytes of all inline chunks, one after the other.
    checksum: int64, or None
        CRC-32C (RFC 3720, appendix B.4) of the bytes in the source, or ``UNCHECKED``; None where all are.
    pages:
        For columns that are mapped from files: what they take of memory.

    A chunk with no row does not exist in the source and reads as fill value.

    Raises
    ------
    FormatError
        If columns differ in length, rows are not sorted and unique, or a range is negative.
    """

    chunk: IntArray
    source: npt.NDArray[np.int32]
    offset: IntArray
    length: IntArray
    encoding: npt.NDArray[np.int32]
    data: bytes = b""
    checksum: IntArray | None = None
    pages: Pages | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        n = len(self.chunk)
        for name in ("source", "offset", "length", "encoding", *(() if self.checksum is None else ("checksum",))):
            if len(getattr(self, name)) != n:
                raise FormatError(f"chunk table: {len(getattr(self, name))} rows of {name} for {n} chunks")
        if n and self.chunk[0] < 0:
            raise FormatError("chunk table: chunk numbers must be >= 0, sorted and unique")
        for rows in self.windows():
            chunk = self.chunk[max(rows.start - 1, 0) : rows.stop]
            if n > 1 and (chunk[1:] <= chunk[:-1]).any():
                raise FormatError("chunk table: chunk numbers must be >= 0, sorted and unique")
            if self.offset[rows].min() < 0 or self.length[rows].min() < 0:
                raise FormatError("chunk table: an offset or a length is negative")

    def __reduce__(self) -> tuple[Any, ...]:
        # Mapped columns travel between processes as what they hold.
        columns = (self.chunk, self.source, self.offset, self.length, self.encoding, self.data, self.checksum)
        return _unpickled, columns

    def windows(self, rows: int = WINDOW) -> Iterator[slice]:
        """Ranges of rows, one after the other; of mapped columns, only one is in memory at a time."""
        for start in range(0, len(self.chunk), rows):
            yield slice(start, min(start + rows, len(self.chunk)))
            if self.pages is not None:
                self.pages.release()

    @classmethod
    def empty(cls) -> ChunkTable:
        """A table without rows."""
        return cls.from_columns(chunk=(), source=0, offset=(), length=())

    @classmethod
    def from_columns(
        cls,
        *,
        chunk: npt.ArrayLike,
        source: npt.ArrayLike,
        offset: npt.ArrayLike,
        length: npt.ArrayLike,
        encoding: npt.ArrayLike = 0,
        data: bytes = b"",
        checksum: npt.ArrayLike | None = None,
    ) -> ChunkTable:
        """Build a table from columns in any order; ``source`` and ``encoding`` may be one number for all.

        Raises
        ------
        FormatError
            If a chunk number occurs twice.
        """
        chunk = np.asarray(chunk, dtype=np.int64).reshape(-1)
        n = len(chunk)
        sources = _column(source, n, np.int32)
        offsets = np.asarray(offset, dtype=np.int64).reshape(-1)
        lengths = _column(length, n, np.int64)
        encodings = _column(encoding, n, np.int32)
        checksums = None if checksum is None else np.asarray(checksum, dtype=np.int64).reshape(-1)
        if np.any(chunk[1:] <= chunk[:-1]):
            order = np.argsort(chunk, kind="stable")
            chunk, sources, offsets = chunk[order], sources[order], offsets[order]
            lengths, encodings = lengths[order], encodings[order]
            checksums = None if checksums is None else checksums[order]
        return cls(
            chunk=chunk,
            source=np.ascontiguousarray(sources),
            offset=offsets,
            length=np.ascontiguousarray(lengths),
            encoding=np.ascontiguousarray(encodings),
            data=data,
            checksum=None if checksums is None or not (checksums >= 0).any() else checksums,
        )

    @classmethod
    def inline(cls, chunks: Sequence[tuple[int, bytes]]) -> ChunkTable:
        """A table of a few chunks whose bytes (already encoded as declared) are kept in the manifest."""
        lengths = np.array([len(data) for _, data in chunks], dtype=np.int64)
        return cls.from_columns(
            chunk=[number for number, _ in chunks],
            source=INLINE,
            offset=np.cumsum(lengths) - lengths,
            length=lengths,
            encoding=DECLARED,
            data=b"".join(data for _, data in chunks),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[ChunkTable]) -> ChunkTable:
        """Tables of different chunks of one array as one.

        Raises
        ------
        FormatError
            If two of them have the same chunk.
        """
        if not parts:
            return cls.empty()
        if len(parts) == 1:
            return parts[0]
        shift = np.cumsum([0, *(len(part.data) for part in parts[:-1])])
        return cls.from_columns(
            chunk=np.concatenate([p.chunk for p in parts]),
            source=np.concatenate([p.source for p in parts]),
            offset=np.concatenate(
                [np.where(p.source < 0, p.offset + s, p.offset) for p, s in zip(parts, shift, strict=True)]
            ),
            length=np.concatenate([p.length for p in parts]),
            encoding=np.concatenate([p.encoding for p in parts]),
            data=b"".join(p.data for p in parts),
            checksum=joined_checksums(parts),
        )

    def __len__(self) -> int:
        return len(self.chunk)

    @property
    def nbytes_stored(self) -> int:
        """Bytes that the referenced chunks take in their sources (and inline)."""
        return sum(int(self.length[rows].sum()) for rows in self.windows())

    @property
    def is_inline(self) -> bool:
        """Whether the bytes of all its chunks are in the manifest itself."""
        return all(bool((self.source[rows] == INLINE).all()) for rows in self.windows())

    def bounds(self, column: str) -> tuple[int, int]:
        """Least and greatest value of a column of a table that has rows."""
        values = getattr(self, column)
        if len(values) <= WINDOW:
            return int(values.min()), int(values.max())
        found = [(values[rows].min(), values[rows].max()) for rows in self.windows()]
        return int(min(low for low, _ in found)), int(max(high for _, high in found))

    def find(self, chunks: npt.ArrayLike) -> npt.NDArray[np.intp]:
        """Row of each chunk number, -1 where the chunk does not exist."""
        wanted = np.asarray(chunks, dtype=np.int64).reshape(-1)
        if not len(self.chunk):
            return np.full(len(wanted), -1, dtype=np.intp)
        rows = np.searchsorted(self.chunk, wanted)
        rows[rows == len(self.chunk)] = 0
        rows[self.chunk[rows] != wanted] = -1
        return rows

    def take(self, rows: npt.ArrayLike | slice) -> ChunkTable:
        """The given rows (in increasing order), sharing the inline data."""
        selection = rows if isinstance(rows, slice) else np.asarray(rows)
        return ChunkTable(
            chunk=self.chunk[selection],
            source=self.source[selection],
            offset=self.offset[selection],
            length=self.length[selection],
            encoding=self.encoding[selection],
            data=self.data,
            checksum=None if self.checksum is None else self.checksum[selection],
            pages=self.pages if isinstance(selection, slice) else None,
        )

    def between(self, start: int, stop: int | None = None) -> ChunkTable:
        """The rows with chunk numbers ``[start, stop)``; to the last one if ``stop`` is None."""
        first = int(np.searchsorted(self.chunk, start)) if start else 0
        last = len(self.chunk) if stop is None else int(np.searchsorted(self.chunk, stop))
        return self if last - first == len(self.chunk) else self.take(slice(first, last))

    def inline_bytes(self, row: int) -> bytes:
        """Bytes of an inline chunk."""
        start = int(self.offset[row])
        return self.data[start : start + int(self.length[row])]

    def with_sources(self, mapping: npt.ArrayLike) -> ChunkTable:
        """The table with source numbers replaced through ``mapping`` (inline rows stay inline)."""
        renumber = np.asarray(mapping, dtype=np.int32)
        low, high = self.bounds("source") if len(self) else (INLINE, INLINE)
        if low == high:
            # One number for all takes no memory, however many references there are.
            one = np.int32(INLINE if low == INLINE else renumber[low])
            return replace(self, source=np.broadcast_to(one, len(self)))
        source = np.empty(len(self), dtype=np.int32)
        for rows in self.windows():
            part = self.source[rows]
            source[rows] = np.where(part == INLINE, INLINE, renumber[np.maximum(part, 0)])
        return replace(self, source=source)

    def same_references(self, other: ChunkTable) -> bool:
        """Whether both tables say the same of every chunk (inline data compared by value)."""
        if len(self) != len(other):
            return False
        inline = self.source == INLINE
        if not all(
            np.array_equal(getattr(self, name), getattr(other, name))
            for name in ("chunk", "source", "length", "encoding")
        ):
            return False
        if not np.array_equal(self.offset[~inline], other.offset[~inline]):
            return False
        checksums = joined_checksums((self, other))
        if checksums is not None and not np.array_equal(checksums[: len(self)], checksums[len(self) :]):
            return False
        return all(self.inline_bytes(int(r)) == other.inline_bytes(int(r)) for r in np.flatnonzero(inline))


def joined_checksums(parts: Sequence[ChunkTable]) -> IntArray | None:
    """The column ``checksum`` of tables, one after the other."""
    if all(part.checksum is None for part in parts):
        return None
    return np.concatenate([np.full(len(p), UNCHECKED) if p.checksum is None else p.checksum for p in parts])


def _unpickled(*columns: Any) -> ChunkTable:
    chunk, source, offset, length, encoding, data, checksum = columns
    return ChunkTable(
        chunk=chunk, source=source, offset=offset, length=length, encoding=encoding, data=data, checksum=checksum
    )


def _column(value: npt.ArrayLike, n: int, dtype: type[Any]) -> npt.NDArray[Any]:
    """A column of ``n`` rows, of one number for all or of one a row."""
    column = np.asarray(value, dtype=dtype)
    return np.full(n, column, dtype=dtype) if column.ndim == 0 else column.reshape(-1)
