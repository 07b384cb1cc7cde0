"""The objects of a store as columns, and what a scan asks of where they are."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from refindex.errors import UnsupportedError
from refindex.model.manifest import Source

type IntArray = npt.NDArray[np.int64]
type Rows = IntArray | npt.NDArray[np.intp] | Sequence[int]

DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zattrs", ".zmetadata")
"""Keys of metadata (core specification 3.0, "Metadata documents"; storage specification 2, "Arrays", "Groups")."""

MARKERS = frozenset({"zarr.json", ".zgroup", ".zarray", ".zmetadata"})
"""What makes a folder a store."""

NO_TIME = np.iinfo(np.int64).min
"""``mtime`` of objects of which the storage does not tell it."""

MAX_OBJECTS = 20_000_000
"""More objects than this are not held in memory: such a store's groups can be scanned one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """All objects below a store's root, sorted by name.

    ``names`` are relative to the root; ``size`` is in bytes; ``mtime`` in microseconds since 1970 UTC or ``NO_TIME``;
    ``etag`` is None where no object has one. ``refused`` are links that are not followed (of folders, with a slash at
    the end), and why not.
    """

    names: list[str]
    size: IntArray
    mtime: IntArray
    etag: list[str | None] | None = None
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        names: list[str],
        size: Sequence[int],
        mtime: Sequence[int],
        etag: list[str | None] | None = None,
        refused: Mapping[str, str] | None = None,
    ) -> Listing:
        """A listing from columns in any order."""
        if len(names) > MAX_OBJECTS:
            raise too_many()
        order = sorted(range(len(names)), key=names.__getitem__)
        return cls(
            names=[names[i] for i in order],
            size=np.asarray(size, dtype=np.int64)[order],
            mtime=np.asarray(mtime, dtype=np.int64)[order],
            etag=[etag[i] for i in order] if etag is not None and any(etag) else None,
            refused=refused or {},
        )

    def __len__(self) -> int:
        return len(self.names)

    def row(self, name: str) -> int | None:
        """The row of an object, None if there is none of this name."""
        at = bisect_left(self.names, name)
        return at if at < len(self.names) and self.names[at] == name else None

    def below(self, path: str) -> range:
        """The rows of all objects in a folder, through and through."""
        if not path:
            return range(len(self.names))
        # "0" is the character after "/".
        return range(bisect_left(self.names, f"{path}/"), bisect_left(self.names, f"{path}0"))

    def difference(self, other: Listing) -> str | None:
        """How another listing differs, or None if it is the same."""
        if self.names != other.names:
            changed = sorted(set(self.names).symmetric_difference(other.names))
            return f"{len(changed)} objects appeared or went, e.g. {changed[0]}"
        differs = (self.size != other.size) | (self.mtime != other.mtime)
        if self.etag is not None and other.etag is not None:
            differs |= np.array([a != b for a, b in zip(self.etag, other.etag, strict=True)], dtype=bool)
        rows = np.flatnonzero(differs)
        return f"{len(rows)} objects were written, e.g. {self.names[int(rows[0])]}" if len(rows) else None


class Objects(Protocol):
    """The objects of one store and their bytes."""

    @property
    def url(self) -> str: ...

    @property
    def listing(self) -> Listing: ...

    @property
    def whole(self) -> Source | None:
        """The one source of all objects; None if each is a source of its own."""
        ...

    def offsets(self, rows: IntArray) -> IntArray:
        """First byte of each object in its source; -1 where the source does not hold the object's bytes as they are."""
        ...

    def sources(self, rows: IntArray) -> list[Source]:
        """A source for each object, where they are sources of their own."""
        ...

    def read(self, rows: Rows, starts: Rows, lengths: Rows) -> list[bytes]:
        """Ranges of objects, which lie within them, read at the same time where that is faster.

        Raises
        ------
        SourceError
            If one cannot be read, or fewer bytes come back.
        """
        ...


def too_many() -> UnsupportedError:
    return UnsupportedError(
        f"the store has more than {MAX_OBJECTS} objects; scan its groups or arrays one by one, they are stores, too"
    )
