"""An array of an archive as what views of it are read from: by plans, without zarr-python."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import zarr

from refindex.errors import SourceError, UnsupportedError
from refindex.model.manifest import Node
from refindex.serve.direct import plan_elements, read_elements, read_one
from refindex.serve.explain import Cost
from refindex.serve.keys import ManifestKeys
from refindex.serve.places import IntArray, Places, Strided, check, outer, points
from refindex.serve.selection import SelectionReader
from refindex.serve.views import Values, Wanted
from refindex.serve.zarr_store import RefindexStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ArraySource:
    """Reads what views want of one array.

    Parameters
    ----------
    reader, node:
        The archive and the array.
    dtype, fill:
        Dtype of the values, and the value of what is not in a source.
    """

    reader: SelectionReader
    node: Node
    dtype: np.dtype[Any]
    fill: Any

    def read(self, chosen: Wanted) -> Values | None:
        """The values of a selection along each dimension; None where zarr-python has to read it.

        Raises
        ------
        SourceError, DecodeError, ManifestError
            If they cannot be read.
        """
        if 0 in chosen.shape:
            return np.empty(chosen.shape, self.dtype)
        values, target = chosen.result(self.dtype)
        check(self.node.grid, chosen.axes)
        done = chosen.is_strided and read_one(
            self.reader, self.node, cast("tuple[Strided, ...]", chosen.axes), target, self.fill
        )
        if not done and not self._run(outer(self.node.grid, chosen.axes), target):
            return None
        return chosen.shown(values)

    def read_points(self, shape: tuple[int, ...], coordinates: IntArray) -> Values | None:
        """The values of elements ``(n, ndim)``, in a given shape; None where zarr-python has to read them.

        Raises
        ------
        SourceError, DecodeError, ManifestError
            If they cannot be read.
        """
        values: Values = np.empty(len(coordinates), self.dtype)
        if len(coordinates):
            self._check_points(coordinates)
            if not self._read_elements(coordinates, values) and not self._run(
                points(self.node.grid, coordinates), values
            ):
                return None
        return values.reshape(shape)

    def _read_elements(self, coordinates: IntArray, values: Values) -> bool:
        plan = plan_elements(self.reader, self.node, coordinates)
        if plan is None:
            return False
        try:
            read_elements(self.reader, plan, values)
        except SourceError as error:
            raise type(error)(f"{error} (for elements of /{self.node.path})") from error
        return True

    def _run(self, places: Places, target: Values) -> bool:
        try:
            reading, _ = self.reader.prepare(self.node, places, target, fill=self.fill)
        except UnsupportedError:
            return False
        reading.run()
        return True

    def _check_points(self, coordinates: IntArray) -> None:
        check(self.node.grid, [coordinates[:, axis] for axis in range(coordinates.shape[1])])

    def cost(self, chosen: Wanted, label: str) -> Cost:
        """What reading a selection along each dimension takes. Reads no source.

        Raises
        ------
        UnsupportedError
            If some chunks are in a codec chain that is not decoded here.
        """
        if 0 in chosen.shape:
            return _nothing(label, chosen.shape)
        check(self.node.grid, chosen.axes)
        return self._cost(outer(self.node.grid, chosen.axes), chosen.shape, label)

    def cost_of_points(self, shape: tuple[int, ...], coordinates: IntArray, label: str) -> Cost:
        """What reading elements takes. Reads no source.

        Raises
        ------
        UnsupportedError
            If some chunks are in a codec chain that is not decoded here.
        """
        if not len(coordinates):
            return _nothing(label, shape)
        self._check_points(coordinates)
        plan = plan_elements(self.reader, self.node, coordinates)
        if plan is None:
            return self._cost(points(self.node.grid, coordinates), shape, label)
        return Cost(
            label=label,
            shape=shape,
            chunks=plan.chunks,
            absent=0,
            inline=0,
            requests=len(plan.requests),
            nbytes_read=plan.requests.nbytes,
            nbytes_wanted=len(coordinates) * self.dtype.itemsize,
            nbytes_decoded=plan.nbytes_decoded,
            sources=len(np.unique(plan.requests.source)),
        )

    def _cost(self, places: Places, shape: tuple[int, ...], label: str) -> Cost:
        plan = self.reader.plan(self.node, places)
        return Cost(
            label=label,
            shape=shape,
            chunks=len(places.chunks),
            absent=len(plan.absent),
            inline=len(plan.inline),
            requests=plan.requests,
            nbytes_read=plan.nbytes,
            nbytes_wanted=math.prod(shape) * self.dtype.itemsize,
            nbytes_decoded=plan.decoded_nbytes,
            sources=len(np.unique(np.concatenate((plan.local.source, plan.remote.source)))),
        )


def _nothing(label: str, shape: tuple[int, ...]) -> Cost:
    return Cost(
        label=label,
        shape=shape,
        chunks=0,
        absent=0,
        inline=0,
        requests=0,
        nbytes_read=0,
        nbytes_wanted=0,
        nbytes_decoded=0,
        sources=0,
    )


def array_source(array: zarr.Array[Any], node: Node) -> ArraySource | None:
    """What reads an array by plans, None where that is left to zarr-python."""
    store, dtype = array.store, np.dtype(array.dtype)
    if not isinstance(store, RefindexStore) or not isinstance(store.keys, ManifestKeys) or node.dtype is None:
        return None
    if dtype.hasobject or dtype.newbyteorder("=") != node.dtype.newbyteorder("="):
        return None
    if tuple(array.shape) != node.shape or not array.config.read_missing_chunks:
        return None  # zarr-python raises for chunks that do not exist
    reader = store.keys.resolver.selections
    return ArraySource(reader=reader, node=node, dtype=dtype, fill=array.metadata.fill_value)
