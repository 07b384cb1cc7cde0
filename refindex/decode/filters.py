"""The filters that Python libraries undo well, one stored chunk at a time; all others are libhdf5's."""

from __future__ import annotations

from collections.abc import Buffer, Sequence
from dataclasses import replace
from typing import Any

import numcodecs
import numpy as np

from refindex.decode import libhdf5
from refindex.decode.bounded import bunzip, room, unblosc, unzstd
from refindex.decode.inflate import inflate
from refindex.errors import DecodeError, RefindexError
from refindex.model.dtype import numpy_dtype
from refindex.model.encoding import BLOSC, BZIP2, DEFLATE, FLETCHER32, SHUFFLE, ZSTD, Encoding, Filter

_BUILT_IN = {DEFLATE, SHUFFLE, FLETCHER32, BZIP2, ZSTD, BLOSC}
_SNAPPY = 3

_WIDE = 1 << 10
"""Bytes of an element from which on planes are so many, and so short, that they are not copied one by one."""

type Bytes = np.ndarray[Any, np.dtype[np.uint8]]


def is_built_in(applied: Filter) -> bool:
    """Whether a filter is undone here, without libhdf5."""
    if applied.id == BLOSC and len(applied.values) > 6 and applied.values[6] == _SNAPPY:
        return False  # numcodecs' blosc is built without it
    return applied.id in _BUILT_IN


def are_built_in(filters: Sequence[Filter]) -> bool:
    """Whether all filters are undone here, without libhdf5."""
    return all(is_built_in(applied) for applied in filters)


def undo_all(data: Buffer, encoding: Encoding, *, but_first: bool = False) -> Buffer:
    """Undo the filters of a chunk, with ``but_first`` all except the one that was applied first.

    Raises
    ------
    DecodeError
        If a filter fails, a checksum differs, or the size is not what the encoding promises.
    """
    if are_built_in(encoding.filters):
        for applied in reversed(encoding.filters[1:] if but_first else encoding.filters):
            data = undo(data, applied, encoding.nbytes)
    else:
        # libhdf5 sets no bound to what a compressor makes: what was applied last is undone here, as far as it can be.
        filters = encoding.filters
        while is_built_in(filters[-1]):
            data = undo(data, filters[-1], room(encoding.nbytes))
            filters = filters[:-1]
        data = libhdf5.decode(bytes(data), replace(encoding, filters=filters))
    check_size(data, encoding)
    return data


def check_size(data: Buffer, encoding: Encoding) -> None:
    """Raise DecodeError unless ``data`` is as long as the encoding promises."""
    found = len(data) if isinstance(data, bytes) else memoryview(data).nbytes
    if found != encoding.nbytes:
        raise DecodeError(
            f"chunk decodes to {found} bytes, expected {encoding.nbytes} "
            f"({encoding.shape} of {numpy_dtype(encoding.type)})"
        )


def undo(data: Buffer, applied: Filter, nbytes: int) -> Buffer:
    """Undo one filter of a chunk of ``nbytes`` decoded bytes.

    Raises
    ------
    DecodeError
        If it fails.
    """
    try:
        return _undo(data, applied, nbytes)
    except RefindexError:
        raise
    except Exception as error:  # each library has its own exceptions, some are bare RuntimeErrors
        raise DecodeError(f"{applied.name}: {error}") from error


def _undo(data: Buffer, applied: Filter, nbytes: int) -> Buffer:
    match applied.id:
        case 1:
            return inflate(data, nbytes)
        case 2:
            return _unshuffle(data, applied.values[0] if applied.values else 1)
        case 3:
            decoded: Buffer = numcodecs.Fletcher32().decode(data)
            return decoded
        case 307:
            return bunzip(data, nbytes)
        case 32001:
            return unblosc(data, nbytes)
        case _:
            return unzstd(data, nbytes)


def unshuffle_into(planes: Bytes, elements: Bytes) -> None:
    """Undo HDF5's byte shuffle: ``planes[..., b, n]`` are the bytes ``b`` of elements ``elements[..., n, b]``.

    Plane by plane: three times as fast as one transposed copy, in which numpy would write byte after byte. Elements of
    more bytes than any type has, which a hostile file can claim, are not worth a call for each of them.
    """
    if elements.shape[-1] > _WIDE:
        elements[...] = np.swapaxes(planes, -1, -2).reshape(elements.shape)
        return
    for byte in range(elements.shape[-1]):
        elements[..., byte] = planes[..., byte, :].reshape(elements.shape[:-1])


def _unshuffle(data: Buffer, elementsize: int) -> Buffer:
    """Undo HDF5's byte shuffle, which leaves a remainder of less than one element at the end as it is."""
    found = np.frombuffer(data, dtype=np.uint8)
    count = len(found) // elementsize if elementsize > 0 else 0
    if elementsize <= 1 or count <= 1:
        return data
    whole = count * elementsize
    out = np.empty(len(found), dtype=np.uint8)
    unshuffle_into(found[:whole].reshape(elementsize, count), out[:whole].reshape(count, elementsize))
    out[whole:] = found[whole:]
    return out.data
