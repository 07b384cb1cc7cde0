"""Links that may lead into other files, followed step by step.

libhdf5 is never left to follow an external link by itself: it would look in the current directory, too, and with a
file that it reads through Python (remote ones) it hands *that same file* out for every name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from h5py import h5d, h5g, h5l, h5o

from refindex.errors import RefindexError, UnsupportedError
from refindex.scan.hdf5.other_files import LINK_PREFIX, locate

if TYPE_CHECKING:
    from refindex.scan.hdf5.index import FileIndex

MAX_LINKS = 16
"""Soft and external links on the way to one object at most: libhdf5's own limit (H5Pset_nlinks)."""


@dataclass(slots=True)
class _Budget:
    left: int = MAX_LINKS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise UnsupportedError(f"a chain of more than {MAX_LINKS} links, or a circle of them")


def follow_path(origin: FileIndex, group: h5g.GroupID, path: bytes) -> tuple[FileIndex, h5o.ObjectID]:
    """The object at a path that starts in a group of the file ``origin``, and the file that it lies in.

    Raises
    ------
    UnsupportedError
        Naming what is missing on the way.
    """
    return _follow(origin, group, path, _Budget())


def _follow(origin: FileIndex, group: h5g.GroupID, path: bytes, budget: _Budget) -> tuple[FileIndex, h5o.ObjectID]:
    here: h5o.ObjectID = h5g.open(origin.file.id, b"/") if path.startswith(b"/") else group
    for part in path.split(b"/"):
        if part in (b"", b"."):
            continue
        if not isinstance(here, h5g.GroupID):
            raise UnsupportedError(f"{_text(path)} is not there: what precedes {_text(part)} is not a group")
        origin, here = _step(origin, here, part, budget)
    return origin, here


def _step(origin: FileIndex, group: h5g.GroupID, name: bytes, budget: _Budget) -> tuple[FileIndex, h5o.ObjectID]:
    if not group.links.exists(name):
        raise UnsupportedError(f"there is no {_text(name)}")
    kind = group.links.get_info(name).type
    if kind == h5l.TYPE_HARD:
        return origin, h5o.open(group, name)
    if kind not in (h5l.TYPE_SOFT, h5l.TYPE_EXTERNAL):
        raise UnsupportedError(f"a user-defined link (class {kind})")
    budget.spend()
    value = group.links.get_val(name)
    if kind == h5l.TYPE_SOFT:
        try:
            return _follow(origin, group, value, budget)
        except UnsupportedError as error:
            raise UnsupportedError(f"a soft link to {_text(value)}, which is not there: {error}") from error
    filename, target = value
    try:
        other = open_linked(origin, filename)
        return _follow(other, h5g.open(other.file.id, b"/"), target, budget)
    except RefindexError as error:
        raise UnsupportedError(f"an external link to {_text(target)} in {_text(filename)}: {error}") from error


def open_linked(origin: FileIndex, filename: bytes) -> FileIndex:
    """The file that an external link names, open until the scan ends."""
    name = filename.decode("utf-8", "surrogateescape")
    return origin.files.keep(
        locate(
            name,
            origin.url,
            prefix=LINK_PREFIX,
            storage_options=origin.storage_options,
            allowed=origin.files.allowed,
        ),
    )


def find_dataset(origin: FileIndex, path: str) -> tuple[FileIndex, h5d.DatasetID]:
    """A dataset by its path in a file, and the file that it lies in.

    Raises
    ------
    UnsupportedError
        If there is none.
    """
    root = h5g.open(origin.file.id, b"/")
    origin, found = follow_path(origin, root, path.encode("utf-8", "surrogateescape"))
    if not isinstance(found, h5d.DatasetID):
        raise UnsupportedError(f"{path!r} is not a dataset")
    return origin, found


def _text(raw: bytes) -> str:
    return repr(raw.decode(errors="backslashreplace"))
