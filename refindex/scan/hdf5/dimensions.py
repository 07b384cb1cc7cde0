"""Dimension names: dimension scales as netCDF-4 writes them, phony dimensions as netCDF-C names them.

Sources: HDF5 dimension scale specification 1.0; netCDF-4 format specification, "Creation order",
"Dimension scales" and "Dimensions without variables". ``_Netcdf4Dimid`` numbers dimensions over the whole
file, ``_Netcdf4Coordinates`` lists the dimensions of a scale that has several.

An unlimited dimension of netCDF-4 is as long as the longest variable over it, in whatever group; of a variable that
was written less far, netCDF returns fill values from there on (netCDF-C, ``nc4_find_dim_len``, ``NC4_get_vars``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from h5py import h5a, h5d, h5ds, h5i, h5s, h5t

from refindex.errors import RefindexError
from refindex.model.encoding import BITSHUFFLE, BLOSC, BZIP2, DEFLATE, FLETCHER32, LZF, SHUFFLE, SZIP, ZSTD
from refindex.scan.hdf5.objects import is_variable
from refindex.scan.hdf5.plain_attributes import fixed_text, integers, scale_addresses
from refindex.scan.hdf5.walk import Found, object_address

NOT_A_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"
NON_COORDINATE = "_nc4_non_coord_"
"""Prefix that netCDF-4 gives to a variable named like a dimension that is not its own."""

ADDED_OBJECTS = 1 << 22
"""Values of variable length are kept in the manifest: so many fill values are added to them at most."""

_LIBRARY_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError, OverflowError)
"""What h5py raises where attributes are damaged."""

_LOSSLESS = {DEFLATE, SHUFFLE, FLETCHER32, SZIP, BZIP2, LZF, BLOSC, BITSHUFFLE, ZSTD}
"""Filters that keep every value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A dataset that is a dimension scale."""

    found: Found
    shape: tuple[int, ...]
    unlimited: bool
    dimid: int | None
    coordinates: tuple[int, ...]
    is_variable: bool

    @property
    def name(self) -> str:
        return served_name(self.found.name)


@dataclass(slots=True, kw_only=True)
class Dimensions:
    """The dimensions of one file: names of each dataset's axes, scales, and how long each dimension is."""

    scales: dict[int, Scale] = field(default_factory=dict)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)
    lengths: dict[int, int] = field(default_factory=dict)
    """Length of each scale's dimension by the address of the scale."""
    axes: dict[str, tuple[int | None, ...]] = field(default_factory=dict)
    """Address of the scale of each axis of a dataset, None for phony dimensions."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    full: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shape in netCDF's view of each dataset whose extent in HDF5 is shorter."""
    kept_short: dict[str, str] = field(default_factory=dict)
    """Why some of those are served as they are in HDF5."""

    def shape(self, found: Found) -> tuple[int, ...]:
        """The shape with which a dataset is served."""
        own = found.shape
        return own if found.path in self.kept_short else self.full.get(found.path, own)


def served_name(name: str) -> str:
    """A dataset's name without netCDF-4's escape."""
    return name.removeprefix(NON_COORDINATE)


def read_dimensions(datasets: Sequence[Found]) -> Dimensions:
    """Name the axes of all datasets of a file."""
    result = Dimensions()
    for found in datasets:
        try:
            if found.address not in result.scales and _is_scale(found):
                result.scales[found.address] = _read_scale(found)
        except _LIBRARY_ERRORS as error:
            _failed(found, "whether it is a dimension scale", error, result)
    by_dimid = {scale.dimid: scale for scale in result.scales.values() if scale.dimid is not None}
    for address, scale in result.scales.items():
        result.lengths[address] = scale.shape[0] if scale.shape else 0
    unnamed: list[Found] = []
    for found in datasets:
        axes = None
        try:
            axes = _axes(found, result, by_dimid)
        except _LIBRARY_ERRORS as error:
            _failed(found, "which dimensions it has", error, result)
        if axes is None:
            unnamed.append(found)
            continue
        result.axes[found.path] = axes
    _lengthen(datasets, result)
    _name_phony(unnamed, result)
    for path, axes in result.axes.items():
        if path not in result.names:
            result.names[path] = tuple(
                result.scales[address].name if address is not None else f"dim_{i}" for i, address in enumerate(axes)
            )
    return result


def _failed(found: Found, what: str, error: Exception, result: Dimensions) -> None:
    """Note what cannot be read, unless it is the file as a whole that cannot be."""
    if isinstance(error, RefindexError):
        raise error
    if found.origin.blocks is not None:
        found.origin.blocks.check()
    result.notes.append((found.path, f"{what} cannot be read: {error}"))


def _is_scale(found: Found) -> bool:
    messages = found.messages
    if messages is not None:
        if b"CLASS" not in messages:
            return False
        message = messages[b"CLASS"][0]
        if message.data == b"DIMENSION_SCALE\0" and message.datatype[1:2] == b"\0" and fixed_text(message) is not None:
            return True
    return bool(h5ds.is_scale(found.id))


def _read_scale(found: Found) -> Scale:
    label = _scale_name(found)
    coordinates = _numbers(found, b"_Netcdf4Coordinates") or ()
    dimids = _numbers(found, b"_Netcdf4Dimid")
    return Scale(
        found=found,
        shape=found.shape,
        unlimited=found.maxima[:1] == (h5s.UNLIMITED,),
        dimid=dimids[0] if dimids else None,
        coordinates=coordinates,
        is_variable=not label.startswith(NOT_A_VARIABLE),
    )


def _scale_name(found: Found) -> bytes:
    messages = found.messages
    if messages is not None:
        label = fixed_text(messages[b"NAME"][0]) if b"NAME" in messages else b""
        if label is not None:
            return label
    return h5ds.get_scale_name(found.id) or b""


def _numbers(found: Found, name: bytes) -> tuple[int, ...] | None:
    """The numbers in an attribute; None if there is no such attribute."""
    messages = found.messages
    if messages is not None:
        numbers = integers(messages[name][0]) if name in messages else None
        if numbers is not None or name not in messages:
            return numbers
    if not h5a.exists(found.id, name):
        return None
    attribute = h5a.open(found.id, name)
    out = np.empty(attribute.shape, dtype=np.int64)
    attribute.read(out)
    return tuple(int(v) for v in np.atleast_1d(out).reshape(-1))


def _plain_axes(found: Found, ndim: int, result: Dimensions) -> tuple[int | None, ...] | None:
    """Scale addresses of a dataset's axes where its attributes tell them plainly, and each is known to be a scale."""
    messages, plain = found.messages, found.origin.plain
    if messages is None or plain is None or b"DIMENSION_LIST" not in messages:
        return None
    addresses = scale_addresses(messages[b"DIMENSION_LIST"][0], ndim, plain)
    if addresses is None or any(address is not None and address not in result.scales for address in addresses):
        return None
    return tuple(addresses)


def _axes(found: Found, result: Dimensions, by_dimid: dict[int, Scale]) -> tuple[int | None, ...] | None:
    """Scale addresses of a dataset's axes; None if it has no scale at all."""
    dataset = found.id
    ndim = len(found.shape)
    scale = result.scales.get(found.address)
    if scale is not None:
        if len(scale.coordinates) == ndim and all(d in by_dimid for d in scale.coordinates):
            return tuple(by_dimid[d].found.address for d in scale.coordinates)
        if ndim == 1:
            return (found.address,)
    if ndim == 0:
        return ()
    told = _plain_axes(found, ndim, result)
    if told is not None:
        return told if any(address is not None for address in told) else None
    if not _has_attribute(found, b"DIMENSION_LIST"):
        return None
    axes: list[int | None] = []
    for axis in range(ndim):
        attached: list[int] = []

        def visit(scale_id: h5d.DatasetID, into: list[int] = attached) -> int:
            address = object_address(scale_id)[1]
            into.append(address)
            if found.origin.linked and address not in result.scales:
                # An external link can lead to a variable without its dimensions: their names are known all the same.
                path = (h5i.get_name(scale_id) or b"").decode(errors="replace").strip("/")
                if path:
                    scale = Found(path=path, address=address, id=scale_id, origin=found.origin)
                    result.scales[address] = _read_scale(scale)
                    result.lengths[address] = result.scales[address].shape[0] if result.scales[address].shape else 0
            return 1  # the first scale names the dimension; the others are ordinary coordinates

        try:
            if h5ds.get_num_scales(dataset, axis):  # libhdf5 fails to go through none
                h5ds.iterate(dataset, axis, visit, 0)
        except (OSError, RuntimeError, ValueError) as error:
            result.notes.append((found.path, f"the dimension scale of axis {axis} cannot be read: {error}"))
        axes.append(attached[0] if attached and attached[0] in result.scales else None)
    return tuple(axes) if any(address is not None for address in axes) else None


def _has_attribute(found: Found, name: bytes) -> bool:
    return name in found.messages if found.messages is not None else bool(h5a.exists(found.id, name))


def _lengthen(datasets: Sequence[Found], result: Dimensions) -> None:
    """Find the lengths of netCDF's unlimited dimensions, and the datasets that are shorter."""
    growing = {a for a, s in result.scales.items() if s.dimid is not None and s.unlimited and not s.found.origin.linked}
    if not growing:
        return
    lengths = dict.fromkeys(growing, 0)
    for found in datasets:
        scale = result.scales.get(found.address)
        if scale is not None and not scale.is_variable:
            continue  # netCDF asks variables only: that of a dimension without one says nothing
        for address, extent in zip(result.axes.get(found.path, ()), found.shape, strict=False):
            if address in growing:
                lengths[address] = max(lengths[address], extent)
    result.lengths |= lengths
    for found in datasets:
        own = found.shape
        full = list(own)
        axes = zip(result.axes.get(found.path, ()), found.maxima, strict=False)
        for axis, (address, maximum) in enumerate(axes):
            if address in growing and maximum == h5s.UNLIMITED:
                full[axis] = lengths[address]
        if tuple(full) == own:
            continue
        result.full[found.path] = tuple(full)
        scale = result.scales.get(found.address)
        if (scale is None or scale.is_variable) and (why := _why_short(found, math.prod(full) - math.prod(own))):
            result.kept_short[found.path] = why


def _why_short(found: Found, added: int) -> str:
    """Why fill values cannot follow a dataset's own; empty if they can.

    A chunk that reaches beyond the extent must hold the fill value there. libhdf5 relies on that itself when a dataset
    grows, and puts it there when it allocates the chunk, unless it is told never to (netCDF's no-fill mode).
    """
    creation = found.creation
    if creation.get_layout() != h5d.CHUNKED:
        return "it is not stored in chunks"
    if creation.get_fill_time() == h5d.FILL_TIME_NEVER or creation.fill_value_defined() != h5d.FILL_VALUE_USER_DEFINED:
        return "it was written without fill values"
    if any(creation.get_filter(i)[0] not in _LOSSLESS for i in range(creation.get_nfilters())):
        return "its filters may have changed the fill values"
    datatype = found.id.get_type()
    if is_variable(datatype):
        plain = datatype.get_class() == h5t.VLEN and not is_variable(datatype.get_super())
        if datatype.get_class() != h5t.STRING and not plain:
            return "values of variable length inside another type are not filled up"
        if added > ADDED_OBJECTS:
            return f"it would take {added} values of variable length in the manifest"
    return ""


def _name_phony(unnamed: Sequence[Found], result: Dimensions) -> None:
    """Name the axes of datasets without scales as netCDF-C does.

    Within a group, axes of one length (and one kind: unlimited or not) share a phony dimension, but
    never two axes of one variable; numbers go on over the whole file, groups below before their parent.
    """
    number = 1 + max((s.dimid for s in result.scales.values() if s.dimid is not None), default=-1)
    if not number:
        number = len(result.scales)
    order = sorted(range(len(unnamed)), key=lambda i: (-unnamed[i].path.count("/"), i))
    known: dict[str, list[tuple[str, int, bool]]] = {}
    for i in order:
        found = unnamed[i]
        names: list[str] = []
        for length, maximum in zip(found.shape, found.maxima, strict=True):
            unlimited = maximum == h5s.UNLIMITED
            candidates = known.setdefault(found.parent, [])
            name = next((n for n, k, u in candidates if (k, u) == (length, unlimited) and n not in names), None)
            if name is None:
                name = f"phony_dim_{number}"
                number += 1
                candidates.append((name, length, unlimited))
            names.append(name)
        result.names[found.path] = tuple(names)
