"""Lazy arrays: selections that are composed, sent to others as JSON, and read when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
import zarr_indexing as zi

from refindex.errors import FormatError, UnsupportedError
from refindex.model.manifest import Node
from refindex.serve.explain import Cost, Explanation, usual_selections
from refindex.serve.source import ArraySource, array_source
from refindex.serve.views import Affine, Wanted, coordinates, follows, wanted

type Values = np.ndarray[Any, Any]


class _Origin:
    """What all views of an array share: found when the first of them is read."""

    def __init__(self, array: zarr.Array[Any], node: Node) -> None:
        self._array, self._node = array, node

    @cached_property
    def source(self) -> ArraySource | None:
        """What reads the array by plans, None where that is left to zarr-python."""
        return array_source(self._array, self._node)


class LazyArray:
    """A view of an array of an archive. Nothing is read until its values are asked for.

    Made by ``archive["t2m"]``. Selections compose: ``archive["t2m"][::2][5]`` is one read of one map. ``oindex``
    selects along each dimension by itself, ``vindex`` selects points. ``np.asarray(view)`` and :meth:`compute` read.

    A view is a coordinate transform in the sense of the ``ndsel`` format of the package zarr-indexing; :meth:`to_json`
    gives it, and :meth:`refindex.Archive.view` makes the view again.
    """

    def __init__(self, array: zarr.Array[Any], node: Node, transform: zi.IndexTransform | None = None) -> None:
        self._array = array
        self._node = node
        # Views that slices make are composed here in microseconds; all others are composed by zarr-indexing.
        self._affine = Affine.whole(tuple(int(n) for n in array.shape)) if transform is None else None
        self._transform = transform
        self._origin = _Origin(array, node)
        if transform is not None:
            _ = self._view  # refuses one that is not of this array

    @cached_property
    def _view(self) -> zi.LazyArray:
        whole = zi.LazyArray(self._array).with_reader(_READER)
        transform = self.transform
        return whole[transform]

    def _derived(self, transform: zi.IndexTransform | None, affine: Affine | None = None) -> LazyArray:
        """Another view of the same array."""
        derived = LazyArray.__new__(type(self))
        derived._array, derived._node, derived._origin = self._array, self._node, self._origin
        derived._affine, derived._transform = affine, transform
        return derived

    @property
    def path(self) -> str:
        """Path of the array in the hierarchy."""
        return self._node.path

    @property
    def transform(self) -> zi.IndexTransform:
        """From the coordinates of the view to those of the array."""
        if self._affine is not None:
            return self._affine.transform
        if self._transform is None:
            raise TypeError(f"a view of /{self.path} without a transform")
        return self._transform

    @property
    def shape(self) -> tuple[int, ...]:
        """Elements along each dimension of the view."""
        if self._affine is not None:
            return self._affine.shape
        return tuple(int(n) for n in self.transform.domain.shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(np.prod(self.shape, dtype=object))

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the values, as Zarr serves them (packed numbers are not unpacked)."""
        return np.dtype(self._array.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of the values in memory."""
        return self.size * self.dtype.itemsize

    @property
    def dims(self) -> tuple[str | None, ...]:
        """Names of the view's dimensions; None where a selection made one of several, or of none."""
        names: list[list[str | None]] = [[] for _ in self.shape]
        for name, output in zip(self._node.dims, self.transform.output, strict=True):
            for axis in follows(output):
                names[axis].append(name)
        return tuple(found[0] if len(found) == 1 else None for found in names)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """Attributes of the array, with the types that they have in its source."""
        return self._node.typed_attributes

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """Chunk lengths along each dimension of the whole array (not of the view), clipped to its shape."""
        return tuple(
            tuple(np.diff(np.minimum(_edges(start, count), extent)).tolist())
            for start, count, extent in zip(
                self._node.grid.starts, self._node.grid.counts, self._node.shape, strict=True
            )
        )

    def __getitem__(self, selection: Any) -> LazyArray:
        """Select by integers, slices (steps of either sign) and ``...``, as numpy does; nothing is read.

        Raises
        ------
        IndexError
            If it is outside the view, or no basic selection.
        """
        if self._affine is not None:
            affine = self._affine.select(selection)
            if affine is not None:
                return self._derived(None, affine)
        return self._select(self._view, selection)

    @property
    def oindex(self) -> _Indexer:
        """Select along each dimension by itself: integers, slices, arrays of integers or Booleans."""
        return _Indexer(self, "oindex")

    @property
    def vindex(self) -> _Indexer:
        """Select points: arrays of integers that are broadcast against each other, or one array of Booleans."""
        return _Indexer(self, "vindex")

    def isel(self, **indexers: Any) -> LazyArray:
        """Select by dimension names: ``view.isel(time=slice(10, 20), lat=3)``.

        Raises
        ------
        KeyError
            If the view has no such dimension.
        """
        unknown = [name for name in indexers if name not in self.dims]
        if unknown:
            raise KeyError(f"/{self.path} has no dimension {', '.join(unknown)}; it has {self.dims}")
        chosen = tuple(indexers.get(name, slice(None)) if name else slice(None) for name in self.dims)
        if any(not isinstance(c, int | np.integer | slice) for c in chosen):
            return self.oindex[chosen]
        return self[chosen]

    def _select(self, indexer: Any, selection: Any) -> LazyArray:
        return self._derived(indexer[selection].transform)

    def _wanted(self) -> Wanted | None:
        return wanted(self.transform if self._affine is None else self._affine)

    def compute(self) -> Values:
        """Read the values.

        Raises
        ------
        SourceError, DecodeError
            If they cannot be read: never other values instead.
        """
        source = self._origin.source
        if source is not None:
            chosen = self._wanted()
            if chosen is not None:
                values = source.read(chosen)
            else:
                values = source.read_points(self.shape, coordinates(self.transform))
            if values is not None:
                return values
        return np.asarray(self._view.result())

    def explain(self, label: str = "selection") -> Explanation:
        """What reading the view costs, beside a series and a map of the whole array. Reads no source.

        Requests and bytes are those of a first read: chunks that are kept in memory later cost nothing.

        Raises
        ------
        UnsupportedError
            If the array is one that zarr-python reads chunk by chunk: of strings of any length, or with codecs that
            are not decoded here.
        """
        whole = self._derived(None, Affine.whole(self._node.shape))
        others = usual_selections(whole.shape, whole.dims)
        return Explanation(
            array=self.path,
            cost=self._cost(label),
            others=tuple(whole[selection]._cost(name) for name, selection in others.items()),
        )

    def _cost(self, label: str) -> Cost:
        source = self._origin.source
        if source is None:
            raise UnsupportedError(f"/{self.path}: zarr-python reads it chunk by chunk, which is not planned")
        chosen = self._wanted()
        if chosen is not None:
            return source.cost(chosen, label)
        return source.cost_of_points(self.shape, coordinates(self.transform), label)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> Values:
        if copy is False:
            raise ValueError("a lazy array has no values without reading them: a copy cannot be avoided")
        values = self.compute()
        return values if dtype is None else values.astype(dtype, copy=False)

    def to_json(self) -> dict[str, Any]:
        """The view as a small document: the array's path, and the transform (``ndsel``)."""
        return {"array": self.path, "transform": self.transform.to_json()}

    def __reduce__(self) -> tuple[Any, ...]:
        return LazyArray, (self._array, self._node, self.transform)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a lazy array without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        dims = ", ".join(f"{name or '?'}: {n}" for name, n in zip(self.dims, self.shape, strict=True))
        return f"<refindex.LazyArray /{self.path} ({dims}) {self.dtype}>"


class _Indexer:
    """``view.oindex[...]`` and ``view.vindex[...]``."""

    def __init__(self, view: LazyArray, kind: str) -> None:
        self._lazy, self._kind = view, kind

    def __getitem__(self, selection: Any) -> LazyArray:
        return self._lazy._select(getattr(self._lazy._view, self._kind), selection)


def _edges(start: int | npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Where the chunks of one dimension begin, and where the last one ends."""
    return np.arange(count + 1, dtype=np.int64) * start if isinstance(start, int) else start


def transform_from_json(document: Any, node: Node) -> zi.IndexTransform:
    """The transform of a document that :meth:`LazyArray.to_json` made.

    Raises
    ------
    FormatError
        If it is none, or not one of this array.
    """
    try:
        transform = zi.IndexTransform.from_json(document["transform"])
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(f"view of /{node.path}: cannot read {document!r}: {error}") from error
    if transform.output_rank != len(node.shape):
        raise FormatError(
            f"view of /{node.path}: it selects in {transform.output_rank} dimensions, the array has {len(node.shape)}"
        )
    return transform


class _ZarrReader:
    """Fills buffers with what a transform selects of a zarr array, in one read of it."""

    def read_into(self, source: zarr.Array[Any], context: zi.ReadContext, out: Values, /) -> None:
        if not out.size:
            return
        transform = context.transform
        if transform.index_array_structure == "general" or _shares_axes(transform):
            out[...] = _points(source, transform)
        else:
            out[...] = _outer(source, transform)


_READER = _ZarrReader()


def _shares_axes(transform: zi.IndexTransform) -> bool:
    """Whether two dimensions of the array follow the same dimension of the view, as along a diagonal."""
    used = [axis for output in transform.output for axis in follows(output)]
    return len(used) != len(set(used))


def _outer(source: zarr.Array[Any], transform: zi.IndexTransform) -> Values:
    """What is selected along each dimension by itself."""
    shape = transform.domain.shape
    selection: list[Any] = []
    order: list[int | None] = []
    for output in transform.output:
        if isinstance(output, zi.DimensionMap):
            axis = output.input_dimension
            selection.append(_slice(output.offset, output.stride, shape[axis]))
            order.append(axis)
        elif isinstance(output, zi.ArrayMap):
            axes = follows(output)
            index = output.offset + output.stride * np.asarray(output.index_array).reshape(-1)
            selection.append(index)
            order.append(axes[0] if axes else None)
        else:
            selection.append(np.array([output.offset]))
            order.append(None)
    if any(isinstance(chosen, slice) for chosen in selection) and all(
        isinstance(chosen, slice) or len(chosen) == 1 for chosen in selection
    ):
        basic = tuple(c if isinstance(c, slice) else slice(int(c[0]), int(c[0]) + 1) for c in selection)
        values = np.asarray(source.get_basic_selection(basic))
    else:
        values = np.asarray(source.get_orthogonal_selection(tuple(selection)) if selection else source[...])
    values = values.reshape([n for n, axis in zip(values.shape, order, strict=True) if axis is not None])
    present = [axis for axis in order if axis is not None]
    # From the order of the array's dimensions to that of the view's; along others, all elements are the same.
    values = values.transpose(np.argsort(present)) if present else values
    return np.broadcast_to(values.reshape([n if axis in present else 1 for axis, n in enumerate(shape)]), shape)


def _slice(offset: int, stride: int, count: int) -> Any:
    """Indices along one dimension as a slice, where zarr takes one: with a positive step."""
    if stride > 0:
        return slice(offset, offset + stride * (count - 1) + 1, stride)
    return offset + stride * np.arange(count)


def _points(source: zarr.Array[Any], transform: zi.IndexTransform) -> Values:
    """What is selected point by point."""
    shape = transform.domain.shape
    points = np.indices(shape, dtype=np.intp).reshape(len(shape), -1).T + np.array(
        transform.domain.inclusive_min, dtype=np.intp
    )
    where = transform.apply_many(points)
    return np.asarray(source.get_coordinate_selection(tuple(where.T))).reshape(shape)
