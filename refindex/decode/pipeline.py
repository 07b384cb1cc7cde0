"""Encoding + stored bytes -> values, and values -> bytes as declared.

Filters are undone in :mod:`refindex.decode.filters`; those that Python libraries do not know by libhdf5 itself
(:mod:`refindex.decode.libhdf5`), the decoder of last resort.
"""

from __future__ import annotations

from collections.abc import Buffer
from typing import Any

import numcodecs
import numpy as np

from refindex.decode import libhdf5
from refindex.decode.filters import is_built_in, undo_all
from refindex.errors import DecodeError
from refindex.model.dtype import is_foreign, numpy_dtype, readable, served_dtype, to_served
from refindex.model.encoding import Encoding
from refindex.model.promotion import widens

__all__ = ["Values", "converted", "decode", "encode", "fit", "is_built_in", "place"]

type Values = np.ndarray[Any, Any]


def decode(data: Buffer, encoding: Encoding, served: np.dtype[Any]) -> Values:
    """The values of a stored chunk, in the shape in which it was stored, unpacked if the array is served so.

    Parameters
    ----------
    data:
        The bytes as stored.
    served:
        Dtype of the result.

    Raises
    ------
    DecodeError
        If a filter fails, a checksum differs, or the size is not what the encoding promises.
    """
    return converted(undo_all(data, encoding), encoding, served)


def converted(data: Buffer, encoding: Encoding, served: np.dtype[Any], *, count: int | None = None) -> Values:
    """The values of a chunk whose filters are undone; of ``count`` chunks one after the other, in a first dimension."""
    shape = encoding.shape if count is None else (count, *encoding.shape)
    return _convert(_natural(data, encoding, served, shape), encoding, served)


def _natural(data: Buffer, encoding: Encoding, served: np.dtype[Any], shape: tuple[int, ...]) -> Values:
    """Values in the type that Zarr has for the stored one: ``served`` itself but for its size and byte order."""
    natural = served_dtype(encoding.type)
    natural = served if encoding.packing is None and natural.newbyteorder("=") == served.newbyteorder("=") else natural
    if is_foreign(encoding.type):
        values = libhdf5.convert(bytes(data), libhdf5.read_type(encoding.hdf5_type), encoding.type)
        return to_served(values.reshape(shape), readable(encoding.type), natural)
    stored = numpy_dtype(encoding.type)
    base = stored.base if stored.subdtype else stored
    return to_served(np.frombuffer(data, dtype=base).reshape(shape), encoding.type, natural)


def _convert(values: Values, encoding: Encoding, served: np.dtype[Any]) -> Values:
    """Unpack, and widen to the type of an array that is joined of several."""
    if encoding.packing is not None:
        values = encoding.packing.unpack(values)
    if values.dtype == served:
        return values
    if not widens(values.dtype, served):
        raise DecodeError(f"values of {values.dtype} do not fit into {served}")
    return values.astype(served)


def place(values: Values, encoding: Encoding, shape: tuple[int, ...], fill: Any) -> Values:
    """What a stored chunk is in its array: from its ``start`` on, repeated, cropped or padded to ``shape``."""
    if values.ndim < len(shape):  # stacked along new dimensions
        values = values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
    if any(encoding.start):
        values = values[tuple(slice(n, None) for n in encoding.start)]
    if encoding.broadcast:
        over = tuple(shape[axis] if axis in encoding.broadcast else n for axis, n in enumerate(values.shape))
        values = np.broadcast_to(values, over)
    return fit(values, shape, fill)


def fit(values: Values, shape: tuple[int, ...], fill: Any) -> Values:
    """Crop or pad values at the far ends to ``shape``."""
    if values.shape == shape:
        return values
    common = tuple(slice(0, min(have, want)) for have, want in zip(values.shape, shape, strict=True))
    out = np.full(shape, fill, dtype=values.dtype)
    out[common] = values[common]
    return out


def encode(values: Values, codecs: list[dict[str, Any]]) -> bytes:
    """The bytes of a chunk as a declared Zarr v3 codec chain writes it (``bytes`` first)."""
    data = np.ascontiguousarray(values).tobytes()
    for codec in codecs[1:]:
        name = codec["name"].removeprefix("numcodecs.")
        configuration = dict(codec.get("configuration", {}))
        if name == "blosc":
            configuration["shuffle"] = ("noshuffle", "shuffle", "bitshuffle").index(configuration["shuffle"])
            configuration.pop("typesize", None)
        data = bytes(numcodecs.get_codec({"id": name, **configuration}).encode(data))
    return data
