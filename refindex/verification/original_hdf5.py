"""HDF5 and NetCDF-4 files as h5py reads them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from refindex.access.trust import Allowed
from refindex.scan.hdf5.collection import COLLECTION
from refindex.verification.originals import Region, UnavailableError, Values
from refindex.verification.reach import check_reach

_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, MemoryError, OverflowError)

_BOOKKEEPING = frozenset(
    {
        "CLASS", "DIMENSION_LABELS", "DIMENSION_LIST", "REFERENCE_LIST",
        "_NCProperties", "_Netcdf4Coordinates", "_Netcdf4Dimid", "_nc3_strict",
    }
)  # fmt: skip
"""Attributes of dimension scales and of netCDF-4, which netCDF does not show."""

_ESCAPE = "_nc4_non_coord_"
"""How netCDF-4 begins the name of a variable that is named like a dimension that is not its own."""

_BARE = b"This is a netCDF dimension but not a netCDF variable"

_BLOCK = 1 << 20


class HDF5File:
    """An HDF5 file."""

    def __init__(self, file: h5py.File, *closing: Callable[[], object], allowed: Allowed | None = None) -> None:
        self._file = file
        self._allowed = allowed
        self._by_python = file.driver == "fileobj"
        self._closing = closing
        self._arrays: dict[str, HDF5Array | None] = {}

    @classmethod
    def local(cls, path: Path, allowed: Allowed | None = None) -> HDF5File:
        """Open a local file; one that its writer did not close as it is, and the first of a family with all of it.

        ``allowed`` says where other files may be that its arrays are made of; anywhere if None.
        """
        try:
            return cls(h5py.File(path, "r"), allowed=allowed)
        except OSError as error:
            if "already open for" in str(error):
                binary = path.open("rb")  # of files that Python reads, libhdf5 does not mind who has them open
                try:
                    return cls(h5py.File(binary, "r"), binary.close)
                except BaseException:
                    binary.close()
                    raise
            for pattern in _families(path):
                with contextlib.suppress(OSError, ValueError):
                    return cls(h5py.File(pattern, "r", driver="family", memb_size=0))
            raise

    @classmethod
    def remote(cls, fs: Any, path: str) -> HDF5File:
        """Open a remote file, of which blocks are read as they are needed."""
        stack = contextlib.ExitStack()
        try:
            # See refindex.scan.hdf5.collection: a collection of garbage must not run while libhdf5 reads.
            stack.enter_context(COLLECTION.paused())
            binary = stack.enter_context(fs.open(path, "rb", block_size=_BLOCK, cache_type="blockcache"))
            stack.callback(lambda: fs)  # some filesystems close their files when nobody holds them any more
            return cls(h5py.File(binary, "r"), stack.close)
        except BaseException:
            stack.close()
            raise

    def close(self) -> None:
        self._arrays.clear()
        self._file.close()
        for close in self._closing:
            close()

    def array(self, path: str) -> HDF5Array | None:
        if path not in self._arrays:
            found = self._find(path)
            self._arrays[path] = None if found is None else HDF5Array(found, path)
        return self._arrays[path]

    def _find(self, path: str) -> h5py.Dataset | None:
        group, _, name = path.rpartition("/")
        if self._by_python and self._leaves(path):
            # libhdf5 would look for the other file on this machine.
            raise UnavailableError("an external link in a file that libhdf5 reads through Python")
        for candidate in (name, _ESCAPE + name):
            if self._allowed is not None and not self._by_python:
                check_reach(self._file, f"{group}/{candidate}", self._allowed)
            try:
                found = self._file[f"{group}/{candidate}"]
            except _ERRORS as error:
                if "doesn't exist" in str(error) or "component not found" in str(error):
                    continue
                raise UnavailableError(f"h5py cannot open it: {' '.join(str(error).split())}") from error
            if isinstance(found, h5py.Dataset) and not _is_bare(found):
                if found.is_virtual and self._by_python:
                    # libhdf5 would give fill values for files that it cannot find.
                    raise UnavailableError("a virtual dataset of a file that libhdf5 reads through Python")
                return _beside(found) if found.external else found
        return None

    def _leaves(self, path: str) -> bool:
        """Whether an external link is on the way to an object."""
        parts = path.split("/")
        for depth in range(1, len(parts) + 1):
            try:
                link = self._file.get("/".join(parts[:depth]), getlink=True)
            except _ERRORS:
                return False
            if isinstance(link, h5py.ExternalLink):
                return True
        return False

    def group(self, path: str) -> Mapping[str, Any] | None:
        try:
            found = self._file[path or "/"]
        except _ERRORS:
            return None
        return _attributes(found)[0] if isinstance(found, h5py.Group) else None


def _beside(dataset: h5py.Dataset) -> h5py.Dataset:
    """A dataset in external files that are looked for beside its own file, and not in the working directory."""
    access = h5py.h5p.create(h5py.h5p.DATASET_ACCESS)
    access.set_efile_prefix(b"${ORIGIN}")
    name = dataset.name.encode()
    file = dataset.file
    dataset.id.close()
    return h5py.Dataset(h5py.h5d.open(file.id, name, access))


def _families(path: Path) -> Iterator[str]:
    """The names, as libhdf5 takes them, of families of files of which one may be the first."""
    for digits in re.finditer(r"0+(?!\d)", path.name):
        if path.name[: digits.start()][-1:].isdigit():
            continue
        head, tail = (str(part).replace("%", "%%") for part in (path.name[: digits.start()], path.name[digits.end() :]))
        code = "%d" if len(digits[0]) == 1 else f"%0{len(digits[0])}d"
        yield f"{str(path.parent).replace('%', '%%')}/{head}{code}{tail}"


def _is_bare(dataset: h5py.Dataset) -> bool:
    """Whether it is a dimension of netCDF that has no variable."""
    if not dataset.is_scale:
        return False
    return (h5py.h5ds.get_scale_name(dataset.id) or b"").startswith(_BARE)


class HDF5Array:
    """A dataset."""

    def __init__(self, dataset: h5py.Dataset, path: str) -> None:
        self._dataset = dataset
        self.path = path
        self._own: tuple[int, ...] = (0,) if dataset.shape is None else dataset.shape
        kind = dataset.id.get_type()
        self._class = kind.get_class()
        inner: tuple[int, ...] = ()
        while kind.get_class() == h5py.h5t.ARRAY:
            inner, kind = (*inner, *kind.get_array_dims()), kind.get_super()
        self._inner = inner
        self.shape = (*self._own, *inner)
        self._element = kind

    @cached_property
    def _memory(self) -> np.dtype[Any] | None:
        """The type in which h5py gives elements; None where it has none."""
        try:
            dtype: np.dtype[Any] = np.dtype(self._dataset.dtype)
        except _ERRORS:
            return None
        return dtype.base if dtype.subdtype else dtype

    @property
    def is_wide(self) -> bool:
        """Whether they are numbers that numpy has no type for, or more than double precision."""
        if self._element.get_class() != h5py.h5t.FLOAT:
            return False
        return self._memory is None or self._memory.itemsize > 8

    @property
    def dtype(self) -> np.dtype[Any] | None:
        if self.is_wide:
            return np.dtype("f8")
        dtype: np.dtype[Any] | None = self._memory
        if dtype is None:
            return np.dtype(f"V{self._element.get_size()}") if self._element.get_class() == h5py.h5t.OPAQUE else None
        return None if dtype.hasobject else dtype

    @cached_property
    def dims(self) -> tuple[str | None, ...] | None:
        if self._dataset.shape is None:
            return None
        if self._dataset.is_scale and len(self._own) > 1:
            return None  # a coordinate of several dimensions, which netCDF numbers in an attribute
        return (*map(self._dim, range(len(self._own))), *(None for _ in self._inner))

    def _scale(self, axis: int) -> h5py.Dataset | None:
        """The first scale of an axis."""
        if self._dataset.is_scale and len(self._own) == 1:
            return self._dataset
        try:
            scales = self._dataset.dims[axis]
            return scales[0] if len(scales) else None
        except _ERRORS:
            return None

    def _dim(self, axis: int) -> str | None:
        scale = self._scale(axis)
        name = None if scale is None else scale.name
        return None if name is None else name.rpartition("/")[2].removeprefix(_ESCAPE)

    def is_called(self, axis: int, name: str) -> bool:
        scale = self._scale(axis) if axis < len(self._own) else None
        if scale is None:
            return False
        for start in (self._dataset.name or "/", scale.name or "/", f"/{self.path}"):
            group = start
            while group:
                group = group.rpartition("/")[0]
                with contextlib.suppress(*_ERRORS):
                    if self._dataset.file[f"{group}/{name}"] == scale:
                        return True
        return False

    @cached_property
    def _read_attributes(self) -> tuple[dict[str, Any], frozenset[str]]:
        return _attributes(self._dataset)

    @property
    def attributes(self) -> Mapping[str, Any]:
        return self._read_attributes[0]

    @property
    def unreadable(self) -> frozenset[str]:
        return self._read_attributes[1]

    @property
    def fill(self) -> Any:
        if self._dataset.shape is None:
            return None
        try:
            if self.is_wide:
                return None
            fill = self._dataset.fillvalue
        except _ERRORS:
            return None
        # Of an array type, one for each of its elements.
        return fill.reshape(-1)[0] if self._inner and isinstance(fill, np.ndarray) and fill.size else fill

    def read(self, region: Region) -> Values:
        own, inner = region[: len(self._own)], region[len(self._own) :]
        if self._dataset.shape is None:
            return np.empty(tuple(r.stop - r.start for r in region), dtype=self.dtype or object)
        inside = tuple(slice(min(r.start, n), min(r.stop, n)) for r, n in zip(own, self._own, strict=True))
        try:
            values = self._values(inside)
            if inner:
                values = values[(slice(None),) * len(own) + inner]
            if inside == own:
                return values
            return self._lengthened(values, own, inside)
        except _ERRORS as error:
            raise UnavailableError(f"h5py cannot read it: {' '.join(str(error).split())}") from error

    def _values(self, region: Region) -> Values:
        shape = (*(r.stop - r.start for r in region), *self._inner)
        if 0 in shape:
            return np.empty(shape, dtype=self.dtype or object)
        if self.is_wide:
            return self._raw(region, np.empty(shape, dtype="f8"), None)
        if self._element.get_class() == h5py.h5t.OPAQUE and (self._memory is None or self._memory.kind == "V"):
            # h5py asks for opaque bytes without the tag that they have.
            return self._raw(region, np.empty(shape, dtype=f"V{self._element.get_size()}"), self._element)
        value = self._dataset[region]
        if not isinstance(value, np.ndarray):
            made = np.empty((), dtype=value.dtype if isinstance(value, np.generic) else object)
            made[()] = value
            value = made
        return self._spelled(value)

    def _raw(self, region: Region, out: Values, kind: h5py.h5t.TypeID | None) -> Values:
        """Elements as libhdf5 gives them, converted to the type of ``out``, or in one of its own."""
        space = self._dataset.id.get_space()
        memory = h5py.h5s.ALL
        if region:
            count = tuple(r.stop - r.start for r in region)
            space.select_hyperslab(tuple(r.start for r in region), count)
            memory = h5py.h5s.create_simple(count)
        of_array = self._dataset.id.get_type() if self._inner else None
        wanted = kind
        if of_array is not None:
            base = h5py.h5t.py_create(out.dtype) if kind is None else kind
            wanted = h5py.h5t.array_create(base, self._inner)
        self._dataset.id.read(memory, space, out, wanted)
        return out

    def _lengthened(self, values: Values, own: Region, inside: Region) -> Values:
        for wanted, has, maximum in zip(own, inside, self._dataset.maxshape, strict=True):
            if wanted != has and maximum is not None:
                raise UnavailableError("the original ends there, and cannot grow")
        shape = (*(r.stop - r.start for r in own), *values.shape[len(own) :])
        if values.dtype.kind == "O":
            out = np.empty(shape, dtype=object)
            filled = self._spelled(_lone(self._dataset.fillvalue))[()]
            for at in np.ndindex(shape):
                out[at] = filled
        else:
            out = np.full(shape, self._dataset.fillvalue, dtype=values.dtype)
        out[tuple(slice(0, n) for n in values.shape)] = values
        return out

    def _spelled(self, values: Values) -> Values:
        """Objects of h5py as lists, arrays, bytes and paths; all others as they are."""
        if values.dtype.kind != "O" and not values.dtype.hasobject:
            return values
        if values.dtype.names is not None:
            return self._records(values)
        out = np.empty(values.shape, dtype=object)
        for at, item in zip(np.ndindex(values.shape), values.reshape(-1), strict=True):
            out[at] = self._item(item)
        return out

    def _records(self, values: Values) -> Values:
        columns = {name: self._spelled(values[name]) for name in values.dtype.names or ()}
        extra = {name: column.shape[values.ndim :] for name, column in columns.items()}
        out = np.empty(values.shape, dtype=[(name, c.dtype, extra[name]) for name, c in columns.items()])
        for name, column in columns.items():
            out[name] = column
        return out

    def _item(self, item: Any) -> Any:
        if isinstance(item, h5py.Reference | h5py.RegionReference):
            if not item:
                return ""
            name = h5py.h5r.get_name(item, self._dataset.id)
            return name.decode(errors="backslashreplace") if name else ""
        if isinstance(item, np.ndarray) and item.dtype.kind == "O":
            return [self._listed(entry) for entry in item]
        if isinstance(item, list | tuple):
            return [self._listed(entry) for entry in item]
        return item

    def _listed(self, entry: Any) -> Any:
        return entry.decode(errors="backslashreplace") if isinstance(entry, bytes) else self._item(entry)


def _lone(value: Any) -> Values:
    out = np.empty((), dtype=object)
    out[()] = value
    return out


def _attributes(found: h5py.Dataset | h5py.Group) -> tuple[dict[str, Any], frozenset[str]]:
    """Attributes that are data, and the names of those that h5py cannot read."""
    values: dict[str, Any] = {}
    unreadable: set[str] = set()
    hidden = _BOOKKEEPING | ({"NAME"} if isinstance(found, h5py.Dataset) and found.is_scale else set())
    for name in _names(found):
        if name in hidden:
            continue
        try:
            values[name] = _plain(found.attrs[name], found)
        except _ERRORS:
            unreadable.add(name)
    return values, frozenset(unreadable)


def _names(found: h5py.Dataset | h5py.Group) -> Iterator[str]:
    try:
        yield from list(found.attrs)
    except _ERRORS:
        return


def _plain(value: Any, found: h5py.Dataset | h5py.Group) -> Any:
    """An attribute without the objects of h5py."""
    if isinstance(value, h5py.Empty):
        return "" if value.dtype.kind in "SO" else []
    if isinstance(value, h5py.Reference):
        name = h5py.h5r.get_name(value, found.id) if value else None
        return name.decode(errors="replace") if name else ""
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        value = value.tolist()
    return [_plain(item, found) for item in value] if isinstance(value, list) else value
