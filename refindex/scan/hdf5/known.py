"""What one object tells of others: the files of an archive are described in the same bytes again and again."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from h5py import h5p

from refindex.scan.hdf5.plain import Key
from refindex.scan.hdf5.plain_attributes import PlainAttributes

if TYPE_CHECKING:
    from refindex.model.encoding import Filter
    from refindex.scan.hdf5.plan import Plan
    from refindex.scan.hdf5.stored import Stored
    from refindex.scan.hdf5.types import Kind

_MOST = 1 << 10
"""Things of each sort that are kept; beyond, all are let go and learnt anew."""


@dataclass(slots=True, kw_only=True)
class Form:
    """What libhdf5 said of a dataset, and says of every other with the same ``key`` in its header.

    Each is None until it was asked for the first time; what raises an error is asked anew each time.
    """

    key: Key
    creation: h5p.PropDCID | None = None
    kind: Kind | None = None
    plan: Plan | None = None
    pipeline: tuple[Filter, ...] | None = None
    chunk: tuple[int, ...] | None = None
    layout: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """An array but for its path and what is stored, and the notes on it for the report."""

    document: str
    json: dict[str, Any]
    attribute_types: dict[str, str]
    notes: tuple[str, ...]


class Remembered[T]:
    """Things by what they follow from, a bounded number."""

    __slots__ = ("_kept",)

    def __init__(self) -> None:
        self._kept: dict[Hashable, T] = {}

    def get(self, key: Hashable) -> T | None:
        return self._kept.get(key)

    def put(self, key: Hashable, value: T) -> T:
        if len(self._kept) >= _MOST:
            self._kept.clear()
        self._kept[key] = value
        return value


class Known:
    """What a scan of any number of files has learnt so far. It belongs to that scan; not for several threads.

    All of it follows from the bytes that it is found by, so that it holds in every file.
    """

    __slots__ = ("attributes", "forms", "layouts", "outlines")

    def __init__(self) -> None:
        self.attributes = PlainAttributes()
        self.forms: Remembered[Form] = Remembered()
        self.layouts: Remembered[Stored] = Remembered()
        self.outlines: Remembered[Outline] = Remembered()

    def form(self, key: Key) -> Form:
        """The form of all datasets with a key."""
        found = self.forms.get(key)
        return self.forms.put(key, Form(key=key)) if found is None else found
