"""One HDF5 dataset -> one array of the manifest."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from h5py import h5d, h5s

from refindex.errors import UnsupportedError
from refindex.model.chunks import ChunkTable
from refindex.model.dtype import (
    StoredType,
    data_type_json,
    fill_value_json,
    is_foreign,
    served_dtype,
)
from refindex.model.encoding import bytes_codec
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Array, Status
from refindex.model.zarr_v3 import array_document, dumps
from refindex.scan.cf import Attributes, document_attributes
from refindex.scan.hdf5.attributes import AttributesRead
from refindex.scan.hdf5.claims import check_claims
from refindex.scan.hdf5.external import store_external
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.known import Outline
from refindex.scan.hdf5.objects import inline_objects
from refindex.scan.hdf5.plan import Plan, plan_array
from refindex.scan.hdf5.stored import Stored, chunked, contiguous, inline
from refindex.scan.hdf5.types import Kind, read_kind
from refindex.scan.hdf5.virtual import store_virtual
from refindex.scan.hdf5.walk import Found

INLINE_NBYTES = 1024
"""Arrays up to this many bytes are kept in the manifest: a request for them costs more than they weigh."""

COORDINATE_NBYTES = 16 << 20
"""Coordinates up to this many bytes are kept in the manifest, so that opening an archive reads no source."""


@dataclass(slots=True, kw_only=True)
class Compiled:
    """An array, what became of it, why, and notes for the report."""

    array: Array
    status: Status
    reason: str = ""
    notes: list[str] = field(default_factory=list)


def compile_dataset(
    found: Found,
    *,
    index: FileIndex,
    dims: tuple[str, ...],
    path: str,
    attributes: AttributesRead,
    is_coordinate: bool,
    extended: tuple[int, ...] | None = None,
) -> Compiled:
    """Turn a dataset into an array node with references.

    Parameters
    ----------
    found:
        The dataset.
    index:
        The open file: its chunk tables, its size.
    dims:
        Names of the dataset's dimensions; an array type adds its own.
    path:
        Path of the array in the hierarchy.
    is_coordinate:
        Whether it is a coordinate of the dimension that has its name.
    extended:
        The shape with which it is served, if that is not its own: behind its extent follows the fill value.

    Raises
    ------
    UnsupportedError
        If it is not served, saying why.
    FormatError
        If it contradicts itself or the file.
    """
    dataset = found.id
    kind = found.form.kind
    if kind is None:
        kind = found.form.kind = read_kind(dataset.get_type())
    if not found.has_extent and dataset.get_space().get_simple_extent_type() == h5s.NULL:
        attributes.notes.append("a null dataspace (no elements and no shape): served as an array of no elements")
        dims = ("null",)
        data_type, codec, fill, served = _no_elements(kind)
        grid = ChunkGrid.regular((0,), (1,))
        stored = Stored(grid=grid, codecs=[codec], chunks=ChunkTable.empty(), status=Status.INLINED)
        outline = _outline(stored, data_type, fill, served, kind, dims, attributes)
    elif kind.stored is None:
        check_claims(found, index)
        objects = inline_objects(dataset, extended)
        stored = Stored(
            grid=objects.grid,
            codecs=objects.codecs,
            chunks=objects.chunks,
            status=Status.INLINED,
            reason=objects.reason,
        )
        attributes.values |= objects.attributes
        outline = _outline(stored, objects.data_type, objects.fill_value, None, kind, dims, attributes)
    else:
        if is_foreign(kind.stored):  # their values are looked at
            check_claims(found, index)
        plan = _plan(found, kind, kind.stored, extended)
        stored = _store(found, plan, index, is_coordinate=is_coordinate)
        known = index.files.known.outlines
        key = (stored.alike, dims, attributes.alike) if stored.alike and attributes.alike is not None else None
        remembered = None if key is None else known.get(key)
        if remembered is None:
            data_type, fill = data_type_json(plan.served), fill_value_json(plan.served, plan.fill)
            remembered = _outline(stored, data_type, fill, plan.served, kind, dims, attributes)
            if key is not None:
                known.put(key, remembered)
        outline = remembered
    array = Array(
        path=path,
        document=outline.document,
        encodings=stored.encodings,
        attribute_types=outline.attribute_types,
        chunks=stored.chunks,
    ).knowing(json=outline.json, grid=stored.grid)
    return Compiled(array=array, status=stored.status, reason=stored.reason, notes=list(outline.notes))


def _outline(
    stored: Stored,
    data_type: Any,
    fill: Any,
    served: np.dtype[Any] | None,
    kind: Kind,
    dims: tuple[str, ...],
    attributes: Attributes,
) -> Outline:
    document = array_document(
        grid=stored.grid,
        data_type=data_type,
        codecs=stored.codecs,
        fill_value=fill,
        dimension_names=(*dims, *_type_dims_names(dims, stored.grid.shape)),
        attributes=document_attributes(attributes, served, kind.flags),
    )
    return Outline(
        document=dumps(document), json=document, attribute_types=attributes.types, notes=tuple(attributes.notes)
    )


def _plan(found: Found, kind: Kind, stored: StoredType, extended: tuple[int, ...] | None) -> Plan:
    form, dataset = found.form, found.id
    if form.plan is None:
        plan = plan_array(dataset, kind, stored, extended, found.creation)
        if not is_foreign(stored):  # of numbers that only libhdf5 reads, the values are looked at, too
            form.plan = plan
        return plan
    shape = (*(found.shape if extended is None else extended), *form.plan.type_dims)
    return form.plan if form.plan.shape == shape else replace(form.plan, shape=shape)


def _no_elements(kind: Kind) -> tuple[Any, dict[str, Any], Any, np.dtype[Any] | None]:
    """Data type, codec, fill value and dtype of an array without elements."""
    if kind.stored is None:
        return "string", {"name": "vlen-utf8", "configuration": {}}, "", None
    served = served_dtype(kind.stored)
    return data_type_json(served), bytes_codec(served), fill_value_json(served, np.zeros((), dtype=served)), served


def _type_dims_names(dims: tuple[str, ...], shape: tuple[int, ...]) -> tuple[str, ...]:
    return tuple(f"element_dim_{i}" for i in range(len(shape) - len(dims)))


def _store(found: Found, plan: Plan, index: FileIndex, *, is_coordinate: bool) -> Stored:
    dataset = found.id
    layout = found.layout
    small = plan.nbytes <= (COORDINATE_NBYTES if is_coordinate else INLINE_NBYTES)
    # First of all, whatever the size: libhdf5 reads some of what is missing as fill values.
    if layout == getattr(h5d, "VIRTUAL", 3):
        return store_virtual(dataset, plan, index, small=small)
    if not found.lies_here and plan.creation.get_external_count() > 0:
        return store_external(dataset, plan, index, small=small)
    if 0 in plan.shape:
        grid = ChunkGrid.regular(plan.shape, tuple(max(1, n) for n in plan.shape))
        return Stored(grid=grid, codecs=[bytes_codec(plan.served)], chunks=ChunkTable.empty(), status=Status.INLINED)
    if small or layout == h5d.COMPACT:
        check_claims(found, index)
        return inline(dataset, plan, found)
    if layout == h5d.CONTIGUOUS:
        return contiguous(dataset, plan, index)
    if layout == h5d.CHUNKED:
        return chunked(found, plan, index)
    raise UnsupportedError(f"HDF5 storage layout {layout} is not known")
