"""The objects of an HDF5 file, by the links that lead to them; also those in other files."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from h5py import h5, h5d, h5g, h5l, h5o, h5p

from refindex.errors import FormatError, RefindexError, UnsupportedError
from refindex.model.manifest import Status
from refindex.scan.hdf5.attributes import names as attribute_names
from refindex.scan.hdf5.external_links import follow_path
from refindex.scan.hdf5.known import Form
from refindex.scan.hdf5.plain import Header
from refindex.scan.hdf5.plain_attributes import Messages, by_name
from refindex.scan.hdf5.symbol_table import GroupChecks
from refindex.scan.hdf5.types import field_name

if TYPE_CHECKING:
    from refindex.scan.hdf5.index import FileIndex

MAX_OBJECTS = 1_000_000
"""Paths followed in one file at most."""

_NO_NAMES = frozenset((b"", b".", b".."))

MAX_REPEATED = 20_000
"""Paths followed at most below groups that were listed at another path before. Each group with two links to the next
doubles them: a file of 40 groups can have a million million paths."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A group or dataset at a path (no slashes at the ends), and the address of its object header.

    ``origin`` is the file that it lies in: behind an external link, another than the one that is scanned.
    """

    path: str
    address: int
    id: h5g.GroupID | h5d.DatasetID
    origin: FileIndex

    @property
    def key(self) -> tuple[str, int]:
        """The same for all paths of one object: addresses repeat from file to file."""
        return self.origin.url, self.address

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> str:
        return self.path.rpartition("/")[0]

    @cached_property
    def header(self) -> Header | None:
        """The messages of its object header, where they are plain to see."""
        return None if self.origin.plain is None else self.origin.plain.header(self.address)

    @cached_property
    def messages(self) -> Messages | None:
        """Its attributes by name, where they are plain to see and libhdf5 has no objection to any."""
        if self.header is None:
            return None
        known = self.origin.files.known.attributes
        messages = by_name(self.header, known)
        if messages is None or known.are_sound(messages):
            return messages
        try:
            names = attribute_names(self.id)
        except (OSError, RuntimeError, ValueError, TypeError, KeyError):
            return None  # whoever asks libhdf5 next is told what is wrong
        if names != sorted(messages):
            return None
        known.found_sound(messages)
        return messages

    # Of a dataset. Each question to h5py makes an object, which takes as long as the answer: they are asked once.

    @cached_property
    def form(self) -> Form:
        """What other datasets may have told of it; one of its own where the header does not say which these are."""
        header = self.header
        if header is None or header.key is None:
            return Form(key=())
        return self.origin.files.known.form(header.key)

    @property
    def lies_here(self) -> bool:
        """Whether its data is known to lie in its own file: it is not virtual, and has no external files."""
        return bool(self.form.key)

    @property
    def has_extent(self) -> bool:
        """Whether it is known to have one, if only that of a scalar."""
        return self.header is not None and self.header.extent is not None

    @property
    def creation(self) -> h5p.PropDCID:
        """With which properties it was created."""
        if self.form.creation is None:
            self.form.creation = self.id.get_create_plist()
        return self.form.creation

    @property
    def layout(self) -> int:
        """How it is stored, see ``h5py.h5d``."""
        if self.form.layout is None:
            self.form.layout = int(self.creation.get_layout())
        return self.form.layout

    @property
    def chunk(self) -> tuple[int, ...]:
        """The shape of its chunks, if it is stored in chunks."""
        if self.form.chunk is None:
            self.form.chunk = tuple(self.creation.get_chunk())
        return self.form.chunk

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Its extent; empty for a scalar, and for one without any."""
        if self.header is not None and self.header.extent is not None:
            return self.header.extent.shape
        return tuple(self.id.shape or ())

    @cached_property
    def maxima(self) -> tuple[int, ...]:
        """The extent that it can grow to, see ``H5S_UNLIMITED``."""
        if self.header is not None and self.header.extent is not None:
            return self.header.extent.maxima
        return tuple(self.id.get_space().get_simple_extent_dims(True) or ())


@dataclass(slots=True, kw_only=True)
class Walk:
    """All paths of a file: groups, datasets, and what was passed over with the reason."""

    groups: list[Found] = field(default_factory=list)
    datasets: list[Found] = field(default_factory=list)
    passed: list[tuple[str, Status, str]] = field(default_factory=list)
    checks: dict[str, GroupChecks | None] = field(default_factory=dict)
    """By the URL of the file; None for one that cannot be read without libhdf5."""


def object_address(opened: h5g.GroupID | h5d.DatasetID) -> tuple[int, int]:
    """The number of the file and the address of the object header, without the user block.

    ``H5Oget_info`` would also size the whole chunk index, ``H5Gget_objinfo`` does not: 0.03 ms instead of 40 ms for a
    million chunks.
    """
    info = h5g.get_objinfo(opened)
    return info.fileno[0] | info.fileno[1] << 32, info.objno[0] | info.objno[1] << 32


def walk(index: FileIndex) -> Walk:
    """Follow hard, soft and external links from the root group.

    An object with several links appears at each of its paths; a link to a group that contains it
    ends there and is reported.

    Raises
    ------
    FormatError
        If the root group is damaged. Other damaged groups are reported, and not listed.
    """
    result = Walk()
    root = h5g.open(index.file.id, b"/")
    # With each group goes how many are above it.
    stack = [(Found(path="", address=object_address(root)[1], id=root, origin=index), 0)]
    # The keys of the group that is listed and of those above it, in order and as a set; and of all that were listed.
    trail: list[tuple[str, int]] = []
    above: set[tuple[str, int]] = set()
    listed: set[tuple[str, int]] = set()
    repeated = left_out = 0
    while stack:
        group, depth = stack.pop()
        if group.key in listed and repeated > MAX_REPEATED:
            left_out += 1
            continue
        result.groups.append(group)
        below: list[tuple[Found, int]] = []
        above.difference_update(trail[depth:])
        del trail[depth:]
        trail.append(group.key)
        above.add(group.key)
        links = _links(group, result)
        repeated += 1 + len(links) if group.key in listed else 0
        listed.add(group.key)
        for raw, address in links:
            if len(result.groups) + len(result.datasets) + len(stack) > MAX_OBJECTS:
                result.passed.append(
                    (
                        group.path,
                        Status.UNSERVED,
                        f"the file has more than {MAX_OBJECTS} paths; the rest is left out",
                    )
                )
                stack.clear()
                break
            path = f"{group.path}/{raw.decode(errors='backslashreplace')}".lstrip("/")
            try:
                found = _follow(group, raw, path, address)
            except RefindexError as error:
                result.passed.append((path, Status.UNSERVED, str(error)))
                continue
            except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
                result.passed.append((path, Status.UNSERVED, f"libhdf5 cannot open it: {error}"))
                continue
            if found is None:
                result.passed.append((path, Status.NOTE, "a named datatype; arrays that use it are served"))
            elif isinstance(found.id, h5d.DatasetID):
                result.datasets.append(found)
            elif found.key in above:
                result.passed.append(
                    (path, Status.UNSERVED, "a link back to a group that contains it; Zarr has no cycles")
                )
            else:
                below.append((found, depth + 1))
        else:
            stack.extend(reversed(below))
    if left_out:
        result.passed.append(
            (
                "",
                Status.UNSERVED,
                f"groups that lie at other paths, too, are left out at {left_out} or more paths: {MAX_REPEATED} paths "
                "into groups that were listed before are followed",
            )
        )
    return result


def _links(group: Found, result: Walk) -> list[tuple[bytes, int | None]]:
    """Link names in creation order where the group tracks it (netCDF-4 does), else by name.

    With each comes the address that a hard link holds, None for the other kinds.
    """
    found: list[tuple[bytes, int | None]] = []

    def visit(name: bytes, info: h5l.LinkInfo) -> None:
        found.append((name, int(info.u) if info.type == h5l.TYPE_HARD else None))

    try:
        _check(group, result)
    except FormatError as error:
        if not group.path:
            raise
        result.passed.append((group.path, Status.UNSERVED, f"damaged: {error}"))
        return found
    try:
        tracked = group.id.get_create_plist().get_link_creation_order() & h5p.CRT_ORDER_TRACKED
        index = h5.INDEX_CRT_ORDER if tracked else h5.INDEX_NAME
        group.id.links.iterate(visit, idx_type=index, order=h5.ITER_INC, info=True)
    except (OSError, RuntimeError, ValueError) as error:
        result.passed.append((group.path, Status.UNSERVED, f"libhdf5 cannot list the group: {error}"))
    return found


def _check(group: Found, result: Walk) -> None:
    """Keep libhdf5 from a group that may crash it; a file that is not read directly is left to it as it is."""
    url = group.origin.url
    if url not in result.checks:
        result.checks[url] = None
        with contextlib.suppress(FormatError, UnsupportedError):
            result.checks[url] = GroupChecks(*group.origin.direct(), plain=group.origin.plain)
    checks = result.checks[url]
    if checks is not None:
        with contextlib.suppress(UnsupportedError):
            checks.check(group.address)


def _follow(group: Found, raw: bytes, path: str, address: int | None) -> Found | None:
    if address is not None:
        origin = group.origin
        try:
            opened = h5o.open(group.id, raw)
        except (OSError, RuntimeError, KeyError, ValueError, TypeError):
            group.id.links.get_info(raw)  # that the link is damaged says more than that nothing is behind it
            raise
    else:
        origin, opened = follow_path(group.origin, group.id, raw)
    if not isinstance(opened, h5g.GroupID | h5d.DatasetID):
        return None
    field_name(raw)
    if not _NO_NAMES.isdisjoint(raw.split(b"/")):
        raise UnsupportedError("a name that Zarr does not allow")
    if address is None or origin.plain is None:  # the address in a link is that of a file without a user block
        address = object_address(opened)[1]
    return Found(path=path, address=address, id=opened, origin=origin)
