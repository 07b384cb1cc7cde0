"""What a virtual dataset is made of: its mappings, and the files and datasets that they name.

libhdf5 reads a source that is missing (the file or the dataset) as fill values without a word, so that every one is
looked for before anything is read. Format specification IV.A.2.i (data layout message, version 4, class 3) and the
"Virtual Object Global Heap Block".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from h5py import h5d, h5p, h5s

from refindex.errors import RefindexError, UnsupportedError
from refindex.scan.hdf5.external_links import find_dataset
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.other_files import RAW_PREFIX, VDS_PREFIX, locate
from refindex.scan.hdf5.types import read_kind
from refindex.scan.hdf5.walk import Found

_UNLIMITED = {h5s.UNLIMITED, 2**64 - 1, -1}
_MAX_DEPTH = 8
_MAX_BLOCKS = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A block without gaps: its first element and its shape."""

    start: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def stop(self) -> tuple[int, ...]:
        return tuple(a + n for a, n in zip(self.start, self.shape, strict=True))

    def within(self, extent: tuple[int, ...]) -> bool:
        """Whether the block lies in a dataset of this shape."""
        return len(extent) == len(self.start) and all(b <= n for b, n in zip(self.stop, extent, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mapping:
    """A selection of a source that appears in a selection of the virtual dataset, element by element."""

    filename: str
    dataset: str
    source: h5s.SpaceID
    target: h5s.SpaceID

    @property
    def is_empty(self) -> bool:
        return bool(self.target.get_select_type() == h5s.SEL_NONE)

    @property
    def is_pattern(self) -> bool:
        """Whether the names stand for several sources: ``%b`` is the number of a block (H5Pset_virtual)."""
        return "%" in self.filename or "%" in self.dataset

    @property
    def is_unlimited(self) -> bool:
        return _is_unlimited(self.source) or _is_unlimited(self.target)


def read_mappings(creation: h5p.PropDCID) -> list[Mapping]:
    """The mappings of a virtual dataset, in the order in which libhdf5 applies them."""
    return [
        Mapping(
            filename=creation.get_virtual_filename(i),
            dataset=creation.get_virtual_dsetname(i),
            source=creation.get_virtual_srcspace(i),
            target=creation.get_virtual_vspace(i),
        )
        for i in range(creation.get_virtual_count())
    ]


def _is_unlimited(space: h5s.SpaceID) -> bool:
    if space.get_select_type() != h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab():
        return False
    _, _, count, block = space.get_regular_hyperslab()
    return any(n in _UNLIMITED for n in (*count, *block))


def box_of(space: h5s.SpaceID, extent: tuple[int, ...]) -> Box | None:
    """The block that is selected in a dataset of shape ``extent``.

    None if the selection has gaps, is unlimited, or is made of points. A selection of everything is kept without the
    extent in which it was made: it is that of the dataset now.
    """
    if space.get_select_type() == h5s.SEL_ALL:
        return Box(start=(0,) * len(extent), shape=extent)
    if space.get_select_type() != h5s.SEL_HYPERSLABS or not space.is_regular_hyperslab() or _is_unlimited(space):
        return None
    start, stride, count, block = space.get_regular_hyperslab()
    if any(c > 1 and s != b for s, c, b in zip(stride, count, block, strict=True)):
        return None
    return Box(start=tuple(int(n) for n in start), shape=tuple(int(c * b) for c, b in zip(count, block, strict=True)))


def is_virtual(creation: h5p.PropDCID) -> bool:
    return bool(creation.get_layout() == getattr(h5d, "VIRTUAL", 3))


def source_file(index: FileIndex, name: str) -> FileIndex:
    """The file that a mapping names; ``.`` is the file itself.

    Raises
    ------
    UnsupportedError
        If it is missing or cannot be opened.
    """
    if name == ".":
        return index
    try:
        url = locate(
            name,
            index.url,
            prefix=VDS_PREFIX,
            storage_options=index.storage_options,
            allowed=index.files.allowed,
        )
        return index.files.use(url)
    except RefindexError as error:
        raise UnsupportedError(
            f"a source of this virtual dataset: {error}; libhdf5 would read fill values without a word"
        ) from error


def source_dataset(index: FileIndex, filename: str, dataset: str) -> tuple[FileIndex, h5d.DatasetID]:
    """The dataset that a mapping names, and the file that it lies in.

    Raises
    ------
    UnsupportedError
        If file or dataset is missing.
    """
    origin = source_file(index, filename)
    try:
        return find_dataset(origin, dataset)
    except RefindexError as error:
        raise UnsupportedError(
            f"a source of this virtual dataset, {dataset!r} in {filename!r}: {error}; libhdf5 would read fill values "
            "without a word"
        ) from error


def require_sources(index: FileIndex, dataset: h5d.DatasetID) -> None:
    """Make sure that everything is there that libhdf5 reads for a virtual dataset, and record the files.

    Raises
    ------
    UnsupportedError
        Naming what is missing, or what keeps libhdf5 from finding it.
    """
    if index.file.driver == "fileobj":
        # Given a Python object for a file, h5py's driver reads that same object for every file that is named.
        raise UnsupportedError(
            "a virtual dataset that only libhdf5 can put together, in a file that is not on this machine, or that its "
            "writer did not close: libhdf5 cannot reach its sources"
        )
    _require(index, index.url, dataset.get_create_plist(), tuple(dataset.shape), depth=0)


def _require(index: FileIndex, url: str, creation: h5p.PropDCID, shape: tuple[int, ...], *, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnsupportedError(f"virtual datasets nested deeper than {_MAX_DEPTH} levels, or in a circle")
    seen: set[tuple[str, str]] = set()
    for mapping in read_mappings(creation):
        for filename, name in _names(mapping, shape):
            if (filename, name) in seen or mapping.is_empty:
                continue
            seen.add((filename, name))
            here = index if url == index.url else index.files.use(url)
            origin, found = source_dataset(here, filename, name)
            if origin.url != index.url:
                index.add_source(origin.sources[0])
            plist = found.get_create_plist()
            if plist.get_external_count():
                _require_raw(index, origin, plist)
            if is_virtual(plist):
                # By URL: files that are used meanwhile may close this one.
                _require(index, origin.url, plist, tuple(found.shape), depth=depth + 1)


def _require_raw(index: FileIndex, origin: FileIndex, creation: h5p.PropDCID) -> None:
    for i in range(creation.get_external_count()):
        name = creation.get_external(i)[0].decode("utf-8", "surrogateescape")
        if not name.startswith("/"):
            raise UnsupportedError(
                f"a source is in the external file {name!r}: libhdf5 looks for it in the current directory"
            )
        url = locate(
            name,
            origin.url,
            prefix=RAW_PREFIX,
            storage_options=index.storage_options,
            allowed=index.files.allowed,
        )
        index.source_number(url)


def _names(mapping: Mapping, shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
    """The names of a mapping's sources: with ``%b``, one for each block that the virtual dataset reaches."""
    if not mapping.is_pattern:
        yield mapping.filename, mapping.dataset
        return
    blocks = 1
    if mapping.target.get_select_type() == h5s.SEL_HYPERSLABS and mapping.target.is_regular_hyperslab():
        start, stride, count, _ = mapping.target.get_regular_hyperslab()
        axis = next((i for i, n in enumerate(count) if n in _UNLIMITED), None)
        if axis is not None:
            blocks = -(-(shape[axis] - int(start[axis])) // int(stride[axis]))
    if blocks > _MAX_BLOCKS:
        raise UnsupportedError(f"a virtual dataset of {blocks} numbered sources")
    # The number of blocks that there are is how many of the sources libhdf5 found: no less than one is needed.
    for block in range(max(1, blocks)):
        yield _numbered(mapping.filename, block), _numbered(mapping.dataset, block)


def _numbered(name: str, block: int) -> str:
    return "%".join(part.replace("%b", str(block)) for part in name.split("%%"))


def check_objects(found: Found, index: FileIndex) -> None:
    """Values that are no plain bytes are read by libhdf5 whatever the layout: make sure that it finds them.

    Raises
    ------
    UnsupportedError
        If they lie in other files of which one is missing, or which libhdf5 would look for elsewhere.
    """
    dataset = found.id
    if not isinstance(dataset, h5d.DatasetID):
        return
    if found.lies_here:
        return
    creation = found.creation
    external = creation.get_external_count()
    if not (external or is_virtual(creation)):
        return
    if read_kind(dataset.get_type()).stored is not None:
        return
    if external:
        _require_raw(index, index, creation)
    else:
        require_sources(index, dataset)
