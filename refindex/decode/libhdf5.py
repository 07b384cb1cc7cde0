"""The decoder of last resort: libhdf5 itself, on an in-memory file of one chunk.

For filters, a file is made by hand around the stored bytes (:mod:`refindex.decode.image`) and libhdf5 reads its only
chunk back; hdf5plugin brings the filters that libhdf5 lacks. For numbers that numpy does not know, libhdf5 converts.
"""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict
from typing import Any, Literal

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t, h5z

from refindex.decode import plugins
from refindex.decode.bounded import room
from refindex.decode.image import NAME, chunk_image, type_image
from refindex.errors import DecodeError, RefindexError, UnsupportedError
from refindex.model.dtype import Foreign, StoredType, Struct, Subarray, is_foreign, numpy_dtype, readable
from refindex.model.encoding import BITSHUFFLE, FLETCHER32, SZIP, Encoding, Filter

_FAILURES = (OSError, RuntimeError, ValueError, TypeError, KeyError)
"""What h5py raises where libhdf5 refuses, by the class of the failure."""

_LZ4 = 32004

_MOST_OPEN = 8
_KEEP_NBYTES = 1 << 20
"""Files kept open for the next chunk, at most; none for larger chunks, for which opening one costs little beside
the decoding. This bounds their memory."""

_LOCK = threading.Lock()
"""h5py serialises its calls anyway; this keeps one chunk's calls together, and guards ``_OPEN``."""

_OPEN: OrderedDict[tuple[tuple[Filter, ...], int], tuple[h5f.FileID, h5d.DatasetID]] = OrderedDict()
"""Files of chunks decoded before, by filters and size, the last used last. The next chunk's bytes replace the last
one's, which takes a tenth of the time of another file. After any failure the file is not used again."""

_NUMBERS = itertools.count()


def available(filter_id: int) -> bool:
    """Whether libhdf5, with hdf5plugin, can decode a filter."""
    plugins.register()
    try:
        return bool(h5z.filter_avail(filter_id)) and bool(
            h5z.get_filter_info(filter_id) & h5z.FILTER_CONFIG_DECODE_ENABLED
        )
    except (RuntimeError, ValueError):
        return False


def decode(data: bytes, encoding: Encoding) -> bytes:
    """Undo all filters of a chunk.

    Raises
    ------
    UnsupportedError
        If a filter is not available.
    DecodeError
        If libhdf5 refuses the bytes.
    """
    if not encoding.filters:
        return data
    for applied in encoding.filters:
        if not available(applied.id):
            raise UnsupportedError(f"{applied.name} (HDF5 filter {applied.id}) is not available to libhdf5 here")
    check_head(data, encoding.filters[-1], encoding.nbytes)
    key = encoding.filters, encoding.nbytes
    with _LOCK:
        kept = _OPEN.pop(key, None)
        try:
            if kept is None:
                kept = _open(chunk_image(data, *key), h5f.ACC_RDWR)
            else:
                kept[1].write_direct_chunk((0,), data, 0)
            out = np.empty(encoding.nbytes, dtype=np.uint8)
            kept[1].read(h5s.ALL, h5s.ALL, out, h5t.NATIVE_UINT8)
        except (*_FAILURES, MemoryError) as error:
            if kept is not None:
                kept[0].close()
            names = " + ".join(applied.name for applied in encoding.filters)
            raise DecodeError(f"libhdf5 cannot decode a chunk of {len(data)} bytes ({names}): {error}") from error
        if encoding.nbytes <= _KEEP_NBYTES and len(data) <= _KEEP_NBYTES:
            _OPEN[key] = kept
            kept = _OPEN.popitem(last=False)[1] if len(_OPEN) > _MOST_OPEN else None
        if kept is not None:
            kept[0].close()
    return out.tobytes()


def check_head(data: bytes, last: Filter, nbytes: int) -> None:
    """Refuse a chunk of ``nbytes`` decoded bytes for what its ``last`` filter says at its beginning.

    Below a few bytes, libhdf5 or a plugin reads beyond its buffer, and crashes; the memory for whatever size is
    written there is theirs at once.

    Raises
    ------
    DecodeError
        If it is too short, or would become larger than it should.
    """
    least, claimed = 0, 0
    if last.id == FLETCHER32:
        least = 4
    elif last.id == SZIP:
        least, claimed = 4, int.from_bytes(data[:4], "little")
    elif last.id == _LZ4 or (last.id == BITSHUFFLE and len(last.values) > 4 and last.values[4]):
        least, claimed = 12, int.from_bytes(data[:8], "big")  # decoded size and block size
    if len(data) < least:
        raise DecodeError(f"{last.name}: {len(data)} bytes, expected at least {least}")
    if claimed > room(nbytes):
        raise DecodeError(f"{last.name}: the chunk claims to become {claimed} bytes, expected {nbytes}")


def _open(image: bytes, flags: int) -> tuple[h5f.FileID, h5d.DatasetID]:
    file = _open_file(image, flags)
    try:
        access = h5p.create(h5p.DATASET_ACCESS)
        # Each chunk is read once: no cache, so that nothing is kept decoded.
        access.set_chunk_cache(0, 0, 0.0)
        return file, h5d.open(file, NAME, access)
    except BaseException:
        file.close()
        raise


def _open_file(image: bytes, flags: int) -> h5f.FileID:
    plugins.register()
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(1 << 16, False)
    # A failed read leaves the dataset alive in its traceback: the file must close all the same.
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    access.set_file_image(image)
    # libhdf5 takes two files in memory for the same one if they have the same name.
    return h5f.open(b"refindex image %d" % next(_NUMBERS), flags, access)


def read_type(encoded: bytes) -> h5t.TypeID:
    """The datatype that H5Tencode encoded.

    Raises
    ------
    DecodeError
        If it is none.
    """
    try:
        with _LOCK:
            file = _open_file(type_image(encoded), h5f.ACC_RDONLY)
            try:
                return h5t.open(file, NAME).copy()
            finally:
                file.close()
    except (*_FAILURES, RefindexError) as error:
        raise DecodeError(f"the encoded HDF5 datatype {encoded[:64]!r} cannot be read: {error}") from error


def convert(raw: bytes, kind: h5t.TypeID, stored: StoredType) -> np.ndarray[Any, Any]:
    """Let libhdf5 convert the numbers that numpy does not know.

    Parameters
    ----------
    raw:
        Whole elements, their filters undone.
    kind:
        Their HDF5 datatype.
    stored:
        Their stored type.

    Returns
    -------
    The elements, in one dimension, as ``numpy_dtype(readable(stored))``; the dimensions of an array type follow.

    Raises
    ------
    DecodeError
        If the datatype is not one of the stored type, or libhdf5 cannot convert it.
    """
    size = numpy_dtype(stored).itemsize
    out = numpy_dtype(readable(stored))
    count, rest = divmod(len(raw), size)
    if rest:
        raise DecodeError(f"{len(raw)} bytes are not whole elements of {size} bytes")
    try:
        source, target = _pair(kind, stored)
        # In place: the buffer holds the elements before and after, whichever is larger.
        buffer = np.zeros(count * max(size, out.itemsize), dtype=np.uint8)
        buffer[: len(raw)] = np.frombuffer(raw, dtype=np.uint8)
        h5t.convert(source, target, count, buffer, np.zeros(count * out.itemsize, dtype=np.uint8))
    except _FAILURES as error:
        raise DecodeError(f"libhdf5 cannot convert to {out}: {error}") from error
    return np.frombuffer(buffer[: count * out.itemsize].tobytes(), dtype=out.base).reshape(count, *out.shape)


def _pair(kind: h5t.TypeID, stored: StoredType) -> tuple[h5t.TypeID, h5t.TypeID]:
    """HDF5 types to convert from and to. All but the foreign numbers is opaque, and passes as it is.

    The sizes are checked: libhdf5 would read and write beyond the buffer if they differed from the stored type's.
    """
    size = numpy_dtype(stored).itemsize
    if not is_foreign(stored):
        opaque = h5t.create(h5t.OPAQUE, size)
        return opaque, opaque
    if isinstance(kind, h5t.TypeEnumID):
        # What is served are the numbers, whatever they are called.
        kind = kind.get_super()
    number = kind.get_class()
    if kind.get_size() != size:
        raise DecodeError(f"an element of the HDF5 datatype has {kind.get_size()} bytes, expected {size}")
    match stored:
        case Foreign() if number in (h5t.INTEGER, h5t.FLOAT):
            return kind, h5t.py_create(np.dtype(stored.dtype))
        case Foreign() if number == h5t.BITFIELD:
            dtype = np.dtype(stored.dtype)
            order = "BE" if dtype.str[0] == ">" else "LE"
            return kind, getattr(h5t, f"STD_B{8 * dtype.itemsize}{order}")
        case Subarray() if number == h5t.ARRAY and tuple(kind.get_array_dims()) == stored.dims:
            pair = _pair(kind.get_super(), stored.base)
            return h5t.array_create(pair[0], stored.dims), h5t.array_create(pair[1], stored.dims)
        case Struct() if number == h5t.COMPOUND and kind.get_nmembers() == len(stored.fields):
            source = h5t.create(h5t.COMPOUND, size)
            target = h5t.create(h5t.COMPOUND, numpy_dtype(readable(stored)).itemsize)
            at = 0
            for i, (_, offset, field) in enumerate(stored.fields):
                pair = _pair(kind.get_member_type(i), field)
                source.insert(b"%d" % i, offset, pair[0])
                target.insert(b"%d" % i, at, pair[1])
                at += pair[1].get_size()
            return source, target
    raise DecodeError(f"the HDF5 datatype, of class {number}, is not of the stored type {stored!r}")


def exceeds_double(kind: h5t.TypeID, stored: StoredType) -> bool:
    """Whether a type has foreign numbers that double precision may not hold, as the ``long double`` of C."""
    if not is_foreign(stored):
        return False
    match stored:
        case Subarray():
            return exceeds_double(kind.get_super(), stored.base)
        case Struct():
            return any(exceeds_double(kind.get_member_type(i), t) for i, (_, _, t) in enumerate(stored.fields))
        case _:
            if not isinstance(kind, h5t.TypeFloatID):
                return False
            _, _, exponent, _, mantissa = kind.get_fields()
            bias = kind.get_ebias()
            wide: bool = mantissa > 52 or (1 << exponent) - bias > 1025 or 1 - bias - mantissa < -1074
            return wide


def is_exact(raw: bytes, kind: h5t.TypeID, stored: StoredType) -> bool:
    """Whether the numbers in ``raw`` that may exceed double precision do not: converted and back they are the same.

    Raises
    ------
    DecodeError
        As :func:`convert`.
    """
    if not exceeds_double(kind, stored):
        return True
    match stored:
        case Subarray():
            return is_exact(raw, kind.get_super(), stored.base)
        case Struct():
            records = np.frombuffer(raw, dtype=numpy_dtype(stored))
            return all(
                is_exact(np.ascontiguousarray(records[name]).tobytes(), kind.get_member_type(i), field)
                for i, (name, _, field) in enumerate(stored.fields)
            )
    size = kind.get_size()
    values = convert(raw, kind, stored)
    buffer = np.zeros(len(values) * max(size, 8), dtype=np.uint8)
    buffer[: values.nbytes] = values.view(np.uint8)
    try:
        h5t.convert(h5t.py_create(values.dtype), kind, len(values), buffer)
    except _FAILURES as error:
        raise DecodeError(f"libhdf5 cannot convert {values.dtype} back: {error}") from error
    order: Literal["big", "little"] = "big" if kind.get_order() == h5t.ORDER_BE else "little"
    # The bits around a number, as the last 6 of the 16 bytes of x87, may be anything.
    mask = (((1 << kind.get_precision()) - 1) << kind.get_offset()).to_bytes(size, order)
    bits = np.frombuffer(raw, dtype=np.uint8).reshape(-1, size) & np.frombuffer(mask, dtype=np.uint8)
    back = buffer[: len(raw)].reshape(-1, size) & np.frombuffer(mask, dtype=np.uint8)
    # There are many bit patterns of "not a number", and no more than one value.
    same: bool = ((bits == back).all(axis=1) | np.isnan(values)).all().item()
    return same


def library_version() -> tuple[int, int, int]:
    """The version of libhdf5."""
    major, minor, release = h5py.version.hdf5_version_tuple
    return major, minor, release
