"""The decoder of last resort: libhdf5 itself, on an in-memory file of one chunk.

A dataset with the same type, chunk shape and filters is made in a file that lives in memory, the
stored bytes are written into its only chunk as they are, and libhdf5 reads it back. hdf5plugin
brings the filters that libhdf5 lacks.
"""

from __future__ import annotations

import threading

import h5py
import hdf5plugin
import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t, h5z

from refindex.errors import DecodeError, UnsupportedError
from refindex.model.dtype import Subarray, numpy_dtype
from refindex.model.encoding import SCALEOFFSET, SZIP, Encoding

# Importing netCDF4 points HDF5_PLUGIN_PATH at filters that are linked with netCDF4's own libhdf5; h5py's picks them
# up and fails ("error during user callback"). Registering hdf5plugin's by force puts the right ones in their place.
hdf5plugin.register(force=True)

_LOCK = threading.Lock()
"""h5py serialises its calls anyway; this keeps one chunk's calls together."""


def available(filter_id: int) -> bool:
    """Whether libhdf5, with hdf5plugin, can decode a filter."""
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
    for applied in encoding.filters:
        if not available(applied.id):
            raise UnsupportedError(f"{applied.name} (HDF5 filter {applied.id}) is not available to libhdf5 here")
    stored = numpy_dtype(encoding.type)
    type_dims = encoding.type.dims if isinstance(encoding.type, Subarray) else ()
    shape = encoding.shape[: len(encoding.shape) - len(type_dims)]
    with _LOCK:
        try:
            return _read_back(data, encoding, shape, stored.itemsize)
        except (OSError, RuntimeError, ValueError, TypeError) as error:
            names = " + ".join(applied.name for applied in encoding.filters)
            raise DecodeError(f"libhdf5 cannot decode a chunk of {len(data)} bytes ({names}): {error}") from error


def _read_back(data: bytes, encoding: Encoding, shape: tuple[int, ...], itemsize: int) -> bytes:
    kind = h5t.decode(encoding.hdf5_type) if encoding.hdf5_type else h5t.py_create(numpy_dtype(encoding.type))
    access = h5p.create(h5p.FILE_ACCESS)
    access.set_fapl_core(max(len(data), 1 << 16), False)
    access.set_libver_bounds(h5f.LIBVER_LATEST, h5f.LIBVER_LATEST)
    # A failed read leaves the dataset alive in its traceback: the file must close all the same.
    access.set_fclose_degree(h5f.CLOSE_STRONG)
    creation = h5p.create(h5p.DATASET_CREATE)
    creation.set_chunk(shape)
    if encoding.hdf5_fill:
        creation.set_fill_value(np.frombuffer(encoding.hdf5_fill, dtype=numpy_dtype(encoding.type)))
    for applied in encoding.filters:
        match applied.id:
            case 4:
                # The stored values carry what set-up adds; only mask and block size are the user's.
                creation.set_filter(SZIP, h5z.FLAG_OPTIONAL, applied.values[:2])
            case 6:
                creation.set_filter(SCALEOFFSET, h5z.FLAG_OPTIONAL, applied.values)
            case _:
                creation.set_filter(applied.id, h5z.FLAG_OPTIONAL, applied.values)
    file = h5f.create(b"chunk", h5f.ACC_TRUNC, fapl=access)
    try:
        dataset = h5d.create(file, b"d", kind, h5s.create_simple(shape), creation)
        dataset.write_direct_chunk((0,) * len(shape), data, 0)
        out = np.empty(shape, dtype=f"V{itemsize}")
        dataset.read(h5s.ALL, h5s.ALL, out, kind)
        return out.tobytes()
    finally:
        file.close()


def library_version() -> tuple[int, int, int]:
    """The version of libhdf5."""
    major, minor, release = h5py.version.hdf5_version_tuple
    return major, minor, release
