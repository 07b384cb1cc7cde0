"""The files as the libraries of their formats read them: h5py, netCDF4, zarr. Nothing here knows of the scanners.

All calls are made from one thread: netCDF-C is not safe to use from several, and libhdf5 that reads a file through
Python must not be interrupted by a garbage collection that comes upon one of its objects.
"""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from refindex.access import urls
from refindex.access.options import StorageOptions, filesystem_at
from refindex.access.trust import Allowed

type Region = tuple[slice, ...]
type Values = np.ndarray[Any, Any]

_MOST_OPEN = 16
"""Files that are kept open."""

_MOST_DOWNLOADED = 1 << 30
"""Bytes of a remote file that is downloaded, where its library reads local files only."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
_DOCUMENTS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata")


class UnavailableError(Exception):
    """Why an original, or something in it, cannot be compared. Never leaves this package."""


class OriginalArray(Protocol):
    """An array as the library of its format presents it.

    ``shape`` has the dimensions of an array type behind the others. ``dtype`` is None for values of variable length.
    ``dims`` has names where the file gives them, and None where it does not; it is None if that is not known.
    ``attributes`` are as in the file, with numpy types; those that cannot be read are named in ``unreadable``.
    """

    @property
    def path(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any] | None: ...

    @property
    def dims(self) -> tuple[str | None, ...] | None: ...

    @property
    def attributes(self) -> Mapping[str, Any]: ...

    @property
    def unreadable(self) -> frozenset[str]: ...

    @property
    def fill(self) -> Any:
        """What elements that were never written read as; None if nothing says so."""
        ...

    def is_called(self, axis: int, name: str) -> bool:
        """Whether a dimension has this name, which may be one of several."""
        ...

    def read(self, region: Region) -> Values:
        """Values of a region; behind the end of a dimension that can grow, the fill value.

        Raises
        ------
        UnavailableError
            If the library cannot read them.
        """
        ...


class Original(Protocol):
    """A file, or a store, open for reading."""

    def array(self, path: str) -> OriginalArray | None:
        """The array that is served at a path, None if there is none."""
        ...

    def group(self, path: str) -> Mapping[str, Any] | None:
        """The attributes of a group, None if there is none."""
        ...

    def close(self) -> None: ...


class Originals:
    """Originals by URL; a few are kept open.

    Parameters
    ----------
    stores:
        Zarr stores in folders: their URLs, of which chunk files are sources.
    storage_options:
        Options for fsspec.
    allowed:
        Where files may be that originals refer to; anywhere if None.
    versions:
        The versions of files that are recorded, by URL: those are the originals, and not what the files are now.
    """

    def __init__(
        self,
        stores: Sequence[str],
        storage_options: StorageOptions,
        allowed: Allowed | None = None,
        versions: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._versions = versions
        self._stores = tuple(stores)
        self._allowed = allowed
        self._options = storage_options
        self._open: OrderedDict[str, Original] = OrderedDict()
        self._refused: dict[str, str] = {}
        self.seen: set[str] = set()

    def of(self, url: str) -> Original:
        """The original that a source is, or is a part of.

        Raises
        ------
        UnavailableError
            If it cannot be opened.
        """
        place = self._place(url)
        if place in self._refused:
            raise UnavailableError(self._refused[place])
        found = self._open.get(place)
        if found is not None:
            self._open.move_to_end(place)
            return found
        try:
            found = self._opened(place)
        except UnavailableError as error:
            self._refused[place] = str(error)
            raise
        self.seen.add(place)
        self._open[place] = found
        if len(self._open) > _MOST_OPEN:
            self._open.popitem(last=False)[1].close()
        return found

    def close(self) -> None:
        """Close all that is open."""
        while self._open:
            self._open.popitem()[1].close()

    def _place(self, url: str) -> str:
        """The store that a chunk file belongs to, or the file itself."""
        return next((s for s in self._stores if url == s or url.startswith(f"{s.rstrip('/')}/")), url)

    def _opened(self, place: str) -> Original:
        try:
            if urls.is_local(place):
                allowed = None if self._allowed is None else self._allowed.with_target(place)
                return _local(urls.local_path(place), place in self._stores, allowed)
            return self._remote(place)
        except UnavailableError:
            raise
        except Exception as error:
            raise UnavailableError(f"it cannot be opened by the library of its format: {_said(error)}") from error

    def _remote(self, place: str) -> Original:
        if place in self._stores:
            from refindex.verification.original_zarr import open_remote_store

            return open_remote_store(place, self._options)
        fs, path = filesystem_at(place, self._versions.get(place), self._options)
        head = bytes(fs.cat_file(path, start=0, end=8))
        if head[:3] == b"CDF" or head[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
            size = int(fs.size(path) or 0)
            if size > _MOST_DOWNLOADED:
                raise UnavailableError(f"its library reads local files only, and {size} bytes are not downloaded")
            folder = tempfile.TemporaryDirectory(prefix="refindex-")
            try:
                copy = Path(folder.name) / "original"
                fs.get_file(path, str(copy))
                return _Closing(_local(copy, False, self._allowed), folder.cleanup)
            except BaseException:
                folder.cleanup()
                raise
        from refindex.verification.original_hdf5 import HDF5File

        return HDF5File.remote(fs, path)


class _Closing:
    """An original that leaves something behind to clean up."""

    def __init__(self, original: Original, after: Callable[[], object]) -> None:
        self._original, self._after = original, after
        self.array, self.group = original.array, original.group

    def close(self) -> None:
        self._original.close()
        self._after()


def _local(path: Path, is_store: bool, allowed: Allowed | None) -> Original:
    # Each library is imported where it is needed: most archives need one.
    if is_store or path.is_dir():
        from refindex.verification.original_zarr import open_folder

        return open_folder(path)
    with path.open("rb") as file:
        head = file.read(8)
    if head[:3] == b"CDF":
        from refindex.verification.original_netcdf3 import NetCDF3File

        return NetCDF3File(path)
    if head != _HDF5 and zipfile.is_zipfile(path):
        from refindex.verification.original_zarr import open_zip

        return open_zip(path)
    from refindex.verification.original_hdf5 import HDF5File

    return HDF5File.local(path, allowed)


def folder_of_store(url: str) -> str | None:
    """The store that a local chunk file is in, by the metadata beside it and above; None if there is none."""
    if not urls.is_local(url):
        return None
    found = None
    with contextlib.suppress(OSError):
        for folder in urls.local_path(url).parents:
            if any((folder / name).exists() for name in _DOCUMENTS):
                found = folder
            elif found is not None:
                break
    return None if found is None else f"file://{found}"


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
