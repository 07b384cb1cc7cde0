"""The xarray engine ``refindex``: manifests, and HDF5 / NetCDF files themselves."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr
import zarr
from xarray.backends import AbstractDataStore, BackendEntrypoint, StoreBackendEntrypoint
from xarray.backends.zarr import FillValueCoder, ZarrArrayWrapper
from xarray.core import indexing

from refindex.access import urls
from refindex.access.files import Stale
from refindex.access.trust import Allow
from refindex.model.grid import Runs
from refindex.model.manifest import Node
from refindex.serve.codec_pipeline import open_group
from refindex.serve.opening import Opening, open_keys
from refindex.serve.quiet import quiet, rectilinear
from refindex.serve.zarr_store import RefindexStore
from refindex.storage import is_archive
from refindex.storage.protocol import require


class RefindexDataStore(AbstractDataStore):
    """One group of an archive as xarray's backends see it; nothing is read but the manifest."""

    def __init__(self, store: RefindexStore, nodes: Mapping[str, Node], group: str) -> None:
        self._node = require(nodes, group, str(store.archive))
        prefix = f"{self._node.path}/" if self._node.path else ""
        self._arrays = {
            path.removeprefix(prefix): node
            for path, node in nodes.items()
            if node.is_array and path.startswith(prefix) and "/" not in path.removeprefix(prefix)
        }
        self._group = open_group(store, self._node.path)

    def get_attrs(self) -> dict[str, Any]:
        return dict(self._node.typed_attributes)

    def get_dimensions(self) -> dict[str, int]:
        return {str(d): n for node in self._arrays.values() for d, n in zip(node.dims, node.shape, strict=True)}

    def get_variables(self) -> dict[str, xr.Variable]:
        with quiet(), rectilinear():
            return {name: self._variable(name, node) for name, node in self._arrays.items()}

    def _variable(self, name: str, node: Node) -> xr.Variable:
        array = self._group[name]
        if not isinstance(array, zarr.Array):
            raise TypeError(f"/{node.path} is not an array")
        attributes = dict(node.typed_attributes)
        if "_FillValue" in attributes:
            decoded = FillValueCoder.decode(attributes["_FillValue"], array.dtype)
            attributes["_FillValue"] = np.asarray(decoded).astype(array.dtype)[()]
        chunks = tuple(
            edge if isinstance(edge, int) else _clipped(edge, extent)
            for edge, extent in zip(node.grid.edges, node.shape, strict=True)
        )
        encoding: dict[str, Any] = {"chunks": chunks, "source": str(self._group.store)}
        if node.grid.size > 1:
            # An array in one chunk prefers nothing: xarray would warn of every other choice for its dimensions.
            encoding["preferred_chunks"] = dict(zip(node.dims, chunks, strict=True))
        data = indexing.LazilyIndexedArray(ZarrArrayWrapper(array))  # type: ignore[no-untyped-call]
        return xr.Variable(node.dims, data, attributes, encoding)


def _clipped(runs: Runs, extent: int) -> tuple[int, ...]:
    """Chunk lengths of a dimension as dask takes them: the last one ends where the array does."""
    lengths = [n for n, count in runs for _ in range(count)]
    over = sum(lengths) - extent
    return (*lengths[:-1], lengths[-1] - over) if over < lengths[-1] else tuple(lengths)


class RefindexBackendEntrypoint(BackendEntrypoint):
    """Open refindex archives, and HDF5 / NetCDF files through references, as xarray objects."""

    description = "Open refindex archives, and HDF5 / NetCDF files, as Zarr"
    url = "https://refindex.readthedocs.io"
    supports_groups = True

    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Only archives: .nc and .h5 files are left to their own engines unless this one is asked for."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        url = urls.absolute(filename_or_obj)
        if url.rstrip("/").endswith(".refindex"):
            return True
        return urls.is_local(url) and url.endswith((".sqlite", ".sqlite3")) and is_archive(url)

    def open_dataset(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: bool = True,
        decode_times: Any = True,
        concat_characters: bool = True,
        decode_coords: Any = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: bool | None = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        version: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        stale: Stale = "error",
        allow: Allow = None,
    ) -> xr.Dataset:
        store = _store(filename_or_obj, version, storage_options, stale, allow)
        return _open_group(
            store,
            group or "",
            mask_and_scale=mask_and_scale,
            decode_times=decode_times,
            concat_characters=concat_characters,
            decode_coords=decode_coords,
            drop_variables=drop_variables,
            use_cftime=use_cftime,
            decode_timedelta=decode_timedelta,
        )

    def open_groups_as_dict(
        self,
        filename_or_obj: Any,
        *,
        mask_and_scale: bool = True,
        decode_times: Any = True,
        concat_characters: bool = True,
        decode_coords: Any = True,
        drop_variables: str | Iterable[str] | None = None,
        use_cftime: bool | None = None,
        decode_timedelta: Any = None,
        group: str | None = None,
        version: int | None = None,
        storage_options: Mapping[str, Any] | None = None,
        stale: Stale = "error",
        allow: Allow = None,
    ) -> dict[str, xr.Dataset]:
        store = _store(filename_or_obj, version, storage_options, stale, allow)
        top = (group or "").strip("/")
        inside = f"{top}/" if top else ""
        paths = [p for p, n in store.nodes.items() if not n.is_array and (p == top or p.startswith(inside))]
        return {
            "/" + path.removeprefix(top).strip("/"): _open_group(
                store,
                path,
                mask_and_scale=mask_and_scale,
                decode_times=decode_times,
                concat_characters=concat_characters,
                decode_coords=decode_coords,
                drop_variables=drop_variables,
                use_cftime=use_cftime,
                decode_timedelta=decode_timedelta,
            )
            for path in paths
        }

    def open_datatree(self, filename_or_obj: Any, **kwargs: Any) -> xr.DataTree:
        return xr.DataTree.from_dict(self.open_groups_as_dict(filename_or_obj, **kwargs))


def _store(
    filename_or_obj: Any, version: int | None, storage_options: Mapping[str, Any] | None, stale: Stale, allow: Allow
) -> RefindexStore:
    if isinstance(filename_or_obj, RefindexStore):
        return filename_or_obj
    archive = Opening(
        url=urls.absolute(filename_or_obj),
        version=version,
        storage_options=dict(storage_options or {}),
        stale=stale,
        allow=allow,
    )
    return RefindexStore(archive, keys=open_keys(archive))


def _open_group(store: RefindexStore, group: str, **decoding: Any) -> xr.Dataset:
    data = RefindexDataStore(store, store.nodes, group)
    with quiet():
        dataset = StoreBackendEntrypoint().open_dataset(data, **decoding)
    dataset.encoding["source"] = str(store)
    return dataset
