"""VirtualiZarr's manifests, and so whatever its parsers read -> a manifest."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import numpy as np
import xarray as xr
from xarray.conventions import encode_dataset_coordinates
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.trust import Allow, Allowed
from refindex.errors import FormatError, UnsupportedError
from refindex.interop.assemble import Rows, Urls, assemble
from refindex.interop.optional import require
from refindex.interop.spelling import blank_of, misread, respelled
from refindex.model.chunks import INLINE
from refindex.model.dtype import dtype_from_json, xarray_fill_value
from refindex.model.manifest import Manifest
from refindex.model.zarr_v3 import dumps, group_document, json_value, loads
from refindex.scan.zarr.plan import Plan
from refindex.serve.quiet import quiet

_ENCODED = ("_FillValue", "missing_value", "scale_factor", "add_offset", "units", "calendar", "dtype")
_PLAIN = ("http://", "https://")


def from_virtualizarr(source: Any, *, allow: Allow = None, storage_options: StorageOptions = None) -> Manifest:
    """Take over what VirtualiZarr has parsed. The files are looked at, and no array is read.

    Parameters
    ----------
    source:
        A ``ManifestStore``, a ``ManifestGroup``, or a virtual ``xarray.Dataset`` or ``DataTree``. Variables that were
        loaded are kept in the manifest.
    allow:
        Objects in memory may refer to anything; if this is given, to these folders and files only.
    storage_options:
        Options for fsspec, for the files that it refers to.

    Raises
    ------
    FormatError, UnsupportedError
        If it is none of this, or references reach beyond their files.
    SourceError, NotFoundError
        If a file that it refers to cannot be looked at.
    """
    return take(
        source,
        where=f"VirtualiZarr's {type(source).__name__}",
        resolve=lambda url: url if url.startswith(_PLAIN) else urls.absolute(unquote(url)),
        allowed=None if allow is None else Allowed.of(allow),
        storage_options=storage_options,
    )


def take(
    source: Any,
    *,
    where: str,
    resolve: Callable[[str], str],
    allowed: Allowed | None = None,
    storage_options: StorageOptions = None,
) -> Manifest:
    """As :func:`from_virtualizarr`.

    Parameters
    ----------
    where:
        What it comes from, for messages.
    resolve:
        The absolute URL of one that it has.
    allowed:
        Where the files may be; anywhere if None.
    """
    manifests = require("virtualizarr.manifests")
    documents: dict[str, bytes] = {}
    arrays: dict[str, Any] = {}
    loaded: dict[str, dict[str, bytes]] = {}
    found = Urls()
    if isinstance(source, manifests.ManifestStore):
        _of_group("", source._group, documents, arrays)
    elif isinstance(source, manifests.ManifestGroup):
        _of_group("", source, documents, arrays)
    elif isinstance(source, xr.Dataset | xr.DataTree):
        for path, dataset in _datasets(source):
            _of_dataset(path, dataset, manifests.ManifestArray, documents, arrays, loaded)
    else:
        raise FormatError(f"{type(source).__name__} is no ManifestStore, ManifestGroup, Dataset or DataTree")

    def rows_of(path: str, plan: Plan) -> Rows:
        if path in loaded:
            return _loaded_rows(loaded[path], plan)
        reason = misread(plan.document)
        if reason is not None:
            raise UnsupportedError(reason)
        return _rows(path, arrays[path].manifest, plan, found)

    return assemble(
        where,
        documents,
        rows_of,
        found,
        resolve=resolve,
        allowed=allowed,
        storage_options=storage_options,
    )


def _key(path: str) -> str:
    return f"{path}/zarr.json".lstrip("/")


def _of_group(path: str, group: Any, documents: dict[str, bytes], arrays: dict[str, Any]) -> None:
    documents[_key(path)] = dumps(group_document(_strict(dict(group.metadata.attributes or {})))).encode()
    for name, array in group.arrays.items():
        below = f"{path}/{name}".lstrip("/")
        documents[_key(below)] = dumps(_document(array)).encode()
        arrays[below] = array
    for name, member in group.groups.items():
        _of_group(f"{path}/{name}".lstrip("/"), member, documents, arrays)


def _document(array: Any) -> dict[str, Any]:
    """The ``zarr.json`` of a ManifestArray."""
    with quiet():
        text = array.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()
    document = respelled(loads(text, "metadata of VirtualiZarr"))
    document["attributes"] = _attributes(document, document.get("attributes") or {})
    return document


def _attributes(document: Mapping[str, Any], attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as JSON; a plain ``_FillValue`` as xarray reads it in Zarr v3."""
    values = _strict(dict(attributes))
    blank = blank_of(document, attributes)
    if blank is not None:
        return {**values, "_FillValue": xarray_fill_value(np.dtype("f8"), blank)}
    fill = values.get("_FillValue")
    if fill is None or isinstance(fill, str | list):
        numeric = isinstance(attributes.get("_FillValue"), float)  # NaN, which JSON does not have
        if not numeric:
            return values
    dtype = dtype_from_json(document["data_type"], "little")
    encoded = None if dtype is None else xarray_fill_value(dtype, attributes["_FillValue"])
    if encoded is None:
        del values["_FillValue"]
        return values
    return {**values, "_FillValue": encoded}


def _strict(values: dict[str, Any]) -> dict[str, Any]:
    plain = {
        str(name): value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for name, value in values.items()
    }
    strict, _ = json_value(plain)
    return {name: str(v) if isinstance(v, np.dtype | type) else v for name, v in strict.items()}


def _datasets(source: xr.Dataset | xr.DataTree) -> Iterator[tuple[str, xr.Dataset]]:
    if isinstance(source, xr.Dataset):
        yield "", source
        return
    for node in source.subtree:
        yield node.path.strip("/"), node.to_dataset(inherit=False)


def _of_dataset(
    path: str,
    dataset: xr.Dataset,
    kind: type[Any],
    documents: dict[str, bytes],
    arrays: dict[str, Any],
    loaded: dict[str, dict[str, bytes]],
) -> None:
    variables, attributes = encode_dataset_coordinates(dataset)
    documents[_key(path)] = dumps(group_document(_strict(dict(attributes)))).encode()
    for name, variable in variables.items():
        below = f"{path}/{name}".lstrip("/")
        if isinstance(variable.data, kind):
            document = _document(variable.data)
            encoding = {k: v for k, v in variable.encoding.items() if k in _ENCODED and k != "dtype" and v is not None}
            document["attributes"] = _attributes(document, {**variable.attrs, **encoding})
            document["dimension_names"] = [str(dim) for dim in variable.dims]
            documents[_key(below)] = dumps(document).encode()
            arrays[below] = variable.data
        else:
            loaded[below] = _written(str(name), variable)
            documents[_key(below)] = loaded[below].pop("zarr.json")


def _written(name: str, variable: Any) -> dict[str, bytes]:
    """A variable in memory as xarray writes it to Zarr: the keys of one array, in one chunk."""
    objects: dict[str, Buffer] = {}
    encoding = {name: {"chunks": tuple(max(n, 1) for n in variable.shape), "compressors": ()}}
    bare = variable.copy(deep=False)
    bare.encoding = {k: v for k, v in variable.encoding.items() if k in _ENCODED}
    dataset = xr.Dataset(data_vars={name: bare}) if name not in variable.dims else xr.Dataset(coords={name: bare})
    try:
        with quiet():
            dataset.to_zarr(MemoryStore(objects), zarr_format=3, consolidated=False, encoding=encoding)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise UnsupportedError(f"variable {name!r}, which was loaded, cannot be written as Zarr: {error}") from error
    return {key.removeprefix(f"{name}/"): b.to_bytes() for key, b in objects.items() if key.startswith(f"{name}/")}


def _loaded_rows(objects: Mapping[str, bytes], plan: Plan) -> Rows:
    numbers, at = plan.keys.numbers(list(objects), plan.grid)
    data = [list(objects.values())[n] for n in at.tolist()]
    sizes = np.array([len(text) for text in data], dtype=np.int64)
    return Rows(
        chunk=numbers,
        url=np.full(len(data), INLINE, dtype=np.int64),
        offset=np.cumsum(sizes) - sizes,
        length=sizes,
        data=b"".join(data),
    )


def _rows(path: str, manifest: Any, plan: Plan, found: Urls) -> Rows:
    """The references of a ChunkManifest, whose arrays have the shape of the chunk grid."""
    paths, offsets, lengths = manifest._paths, manifest._offsets, manifest._lengths
    # Of a single value, no parser says that it was never written; some do not look for where it is.
    if paths.size != plan.grid.size or (not plan.grid.counts and not manifest._inlined and not paths.reshape(-1)[0]):
        # So it is of data that VirtualiZarr has not found: compact, external or virtual, or never written.
        raise UnsupportedError(
            f"its manifest has {paths.shape} chunks, its grid {plan.grid.counts}: VirtualiZarr does not know "
            "where they are"
        )
    spelled, inverse = np.unique(paths.reshape(-1), return_inverse=True)
    inlined = dict(manifest._inlined)
    names = [str(name) for name in spelled.tolist()]
    numbers = np.array([found.number(n) if "://" in n else INLINE for n in names], dtype=np.int64)
    odd = [n for n in names if n and "://" not in n and n != "__inlined__"]
    if odd:
        raise FormatError(f"/{path} refers to {odd[0]!r}, which is no URL")
    url = numbers[inverse.reshape(-1)]
    missing = np.array([not name for name in names], dtype=bool)[inverse.reshape(-1)]
    offset = offsets.reshape(-1).astype(np.int64)
    length = lengths.reshape(-1).astype(np.int64)
    counts = plan.grid.counts
    data: list[bytes] = []
    at = 0
    for index, text in inlined.items():
        number = int(np.ravel_multi_index(index, counts)) if counts and index else 0
        url[number], offset[number], length[number] = INLINE, at, len(text)
        missing[number] = False
        data.append(bytes(text))
        at += len(text)
    there = np.flatnonzero(~missing)
    if np.sum(url[there] == INLINE) != len(inlined):
        raise FormatError(f"/{path} has chunks that are said to be inline, and are not there")
    return Rows(
        chunk=there.astype(np.int64), url=url[there], offset=offset[there], length=length[there], data=b"".join(data)
    )
