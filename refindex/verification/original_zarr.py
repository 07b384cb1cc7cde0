"""Zarr stores as zarr-python reads them, with its own codec pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import zarr
import zarr.storage

from refindex.access.options import StorageOptions, guarded_options_for
from refindex.serve.quiet import quiet, rectilinear
from refindex.verification.originals import Region, UnavailableError, Values


def open_folder(path: Path) -> ZarrStore:
    """A store in a local folder."""
    return ZarrStore(zarr.storage.LocalStore(path, read_only=True))


def open_zip(path: Path) -> ZarrStore:
    """A store in a local zip file."""
    store = zarr.storage.ZipStore(path, mode="r", read_only=True)
    return ZarrStore(store, store.close)


def open_remote_store(url: str, storage_options: StorageOptions) -> ZarrStore:
    """A store in a remote folder."""
    options = guarded_options_for(url, storage_options)
    return ZarrStore(zarr.storage.FsspecStore.from_url(url, storage_options=options, read_only=True))


class ZarrStore:
    """A Zarr store, a hierarchy or a single array."""

    def __init__(self, store: Any, *closing: Callable[[], object]) -> None:
        self._closing = closing
        with quiet(), rectilinear():
            try:
                self._root: Any = zarr.open(store, mode="r")
            except BaseException:
                self.close()
                raise
        self._store = store
        self._arrays: dict[str, ZarrArray | None] = {}

    def close(self) -> None:
        for close in self._closing:
            close()

    def array(self, path: str) -> ZarrArray | None:
        if path not in self._arrays:
            found = self._root if isinstance(self._root, zarr.Array) else self._opened(path)
            self._arrays[path] = ZarrArray(found, path) if isinstance(found, zarr.Array) else None
        return self._arrays[path]

    def group(self, path: str) -> Mapping[str, Any] | None:
        if isinstance(self._root, zarr.Array):
            return None
        found = self._opened(path)
        return dict(found.attrs) if isinstance(found, zarr.Group) else None

    def _opened(self, path: str) -> Any:
        with quiet(), rectilinear():
            try:
                return zarr.open(self._store, path=path, mode="r")
            except (FileNotFoundError, KeyError):
                return None
            except Exception as error:
                raise UnavailableError(f"zarr cannot open it: {type(error).__name__}: {error}") from error


class ZarrArray:
    """An array of a store."""

    def __init__(self, array: Any, path: str) -> None:
        self._array = array
        self.path = path
        self.shape = tuple(int(n) for n in array.shape)
        dtype = np.dtype(array.dtype)
        self.dtype: np.dtype[Any] | None = None if dtype.hasobject or dtype.kind in "TU" else dtype
        attributes = dict(array.attrs)
        names = attributes.pop("_ARRAY_DIMENSIONS", None) if array.metadata.zarr_format == 2 else None
        if array.metadata.zarr_format == 3:
            names = array.metadata.dimension_names
        known = isinstance(names, list | tuple) and len(names) == len(self.shape)
        self.dims: tuple[str | None, ...] | None = tuple(names) if known and names is not None else None
        if array.metadata.zarr_format == 2:
            # There, Zarr's own fill value is what netCDF calls _FillValue.
            attributes.pop("_FillValue", None)
            if array.metadata.fill_value is not None and dtype.kind in "biufc":
                attributes["_FillValue"] = array.metadata.fill_value
        self.attributes: Mapping[str, Any] = attributes
        self.unreadable: frozenset[str] = frozenset()

    def is_called(self, axis: int, name: str) -> bool:
        return self.dims is not None and self.dims[axis] == name

    @property
    def fill(self) -> Any:
        return self._array.fill_value

    def read(self, region: Region) -> Values:
        if any(r.stop > n for r, n in zip(region, self.shape, strict=True)):
            raise UnavailableError("the original ends there, and cannot grow")
        try:
            with quiet(), rectilinear():
                return np.asarray(self._array[region if region else ...])
        except Exception as error:
            raise UnavailableError(f"zarr cannot read it: {type(error).__name__}: {error}") from error
