"""What is known of an HDF5 dataset before its chunks are looked at: types, shape, fill value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t, h5z

from refindex.decode import libhdf5
from refindex.errors import UnsupportedError
from refindex.model.dtype import (
    StoredType,
    Subarray,
    is_foreign,
    numpy_dtype,
    readable,
    served_dtype,
    to_served,
)
from refindex.scan.hdf5.types import Kind

EXACT_NBYTES = 16 << 20
"""Numbers wider than double precision are looked at in blocks of about this many bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is known of a dataset before its chunks are looked at.

    ``shape`` is that of the array: the dataset's, or the longer one with which it is served, and the trailing
    dimensions of an array type.
    """

    kind: Kind
    stored: StoredType
    served: np.dtype[Any]
    shape: tuple[int, ...]
    type_dims: tuple[int, ...]
    fill: Any
    creation: h5p.PropDCID

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.served.itemsize


def plan_array(
    dataset: h5d.DatasetID,
    kind: Kind,
    stored: StoredType,
    extended: tuple[int, ...] | None = None,
    creation: h5p.PropDCID | None = None,
) -> Plan:
    creation = dataset.get_create_plist() if creation is None else creation
    dims = stored.dims if isinstance(stored, Subarray) else ()
    base: StoredType = stored
    while isinstance(base, Subarray):
        dims = dims if base is stored else (*dims, *base.dims)
        base = base.base
    served = served_dtype(stored)
    _check_exact(dataset, stored)
    return Plan(
        kind=kind,
        stored=stored,
        served=served,
        shape=(*(dataset.shape if extended is None else extended), *dims),
        type_dims=dims,
        fill=_fill_value(dataset, creation, stored, base, served),
        creation=creation,
    )


def _check_exact(dataset: h5d.DatasetID, stored: StoredType) -> None:
    """Refuse numbers that libhdf5 would round to double precision, the widest that Zarr v3 has.

    They are rare, and most are doubles that were written as ``long double``: all values are looked at.
    """
    kind = dataset.get_type()
    if not libhdf5.exceeds_double(kind, stored):
        return
    shape = tuple(dataset.shape)
    # The first dimension of which one step is small enough is cut into blocks; those before it, into single steps.
    axis = 0
    while axis < len(shape) - 1 and math.prod(shape[axis + 1 :]) * kind.get_size() > EXACT_NBYTES:
        axis += 1
    step = max(1, EXACT_NBYTES // max(1, math.prod(shape[axis + 1 :]) * kind.get_size()))
    for before in np.ndindex(shape[:axis]):
        for start in range(0, shape[axis], step) if shape else (0,):
            count = (*(1 for _ in before), min(step, shape[axis] - start), *shape[axis + 1 :]) if shape else ()
            raw = np.empty(count, dtype=f"V{kind.get_size()}")
            space = dataset.get_space()
            if shape and raw.size:
                space.select_hyperslab((*before, start, *(0 for _ in shape[axis + 1 :])), count)
            dataset.read(h5s.create_simple(count) if shape else h5s.ALL, space, raw, kind)
            if not libhdf5.is_exact(raw.tobytes(), kind, stored):
                raise UnsupportedError(
                    "floating-point numbers wider than double precision, of which some are not exact in it: "
                    "Zarr v3 has no wider type"
                )


def served_values(
    raw: bytes, kind: h5t.TypeID, stored: StoredType, served: np.dtype[Any], shape: tuple[int, ...]
) -> np.ndarray[Any, Any]:
    """Elements as libhdf5 reads them in their own type ``kind`` -> values as served."""
    if is_foreign(stored):
        return to_served(libhdf5.convert(raw, kind, stored).reshape(shape), readable(stored), served)
    dtype = numpy_dtype(stored)
    return to_served(np.frombuffer(raw, dtype=dtype.base).reshape(shape), stored, served)


def _fill_value(
    dataset: h5d.DatasetID,
    creation: h5p.PropDCID,
    stored: StoredType,
    base: StoredType,
    served: np.dtype[Any],
) -> Any:
    """What libhdf5 returns for elements that were never written; zero where nothing is defined."""
    if creation.fill_value_defined() != h5d.FILL_VALUE_USER_DEFINED:
        return np.zeros((), dtype=served)
    if isinstance(stored, Subarray) or is_foreign(stored):
        raw = _fill_bytes(dataset, creation)
        if not libhdf5.is_exact(raw, dataset.get_type(), stored):
            raise UnsupportedError("the fill value is not exact in double precision: Zarr v3 has no wider type")
        count = len(raw) // numpy_dtype(base).itemsize
        flat = served_values(raw, dataset.get_type(), stored, served, (count,))
        if any(element.tobytes() != flat[0].tobytes() for element in flat):
            raise UnsupportedError("the fill value of an array type differs between its elements")
        return flat[0]
    value = np.zeros((), dtype=dataset.dtype)
    creation.get_fill_value(value)
    if served.names is None:
        return value.astype(served) if served.kind != "V" else value
    out = np.zeros((), dtype=served)
    out[()] = value.astype(served)
    return out


def _fill_bytes(dataset: h5d.DatasetID, creation: h5p.PropDCID) -> bytes:
    """The fill value of an array type, or of one that numpy does not know, as stored.

    h5py asks for fill values by numpy dtype, and numpy has no scalar of such a type: an empty
    dataset of the same type and fill value, in memory, is read in its own type instead.
    """
    if creation.get_external_count():
        raise UnsupportedError("the fill value of such a type in external files is not served yet")
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(1 << 16, False)
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    file = h5f.create(b"fill", h5f.ACC_TRUNC, fapl=access)
    try:
        kind = dataset.get_type()
        kind = kind.copy() if kind.committed() else kind
        plain = creation.copy()
        plain.remove_filter(h5z.FILTER_ALL)
        plain.set_layout(h5d.CONTIGUOUS)
        made = h5d.create(file, b"d", kind, h5s.create_simple((1,)), plain)
        out = np.zeros((1,), dtype=f"V{kind.get_size()}")
        made.read(h5s.ALL, h5s.ALL, out, kind)
        return out.tobytes()
    finally:
        file.close()


def type_reason(plan: Plan) -> str:
    if is_foreign(plan.stored):
        return f"elements are numbers that numpy does not know: converted by libhdf5, served as {plan.served}"
    return f"elements are stored as {numpy_dtype(plan.stored)} and served as {plan.served}"
