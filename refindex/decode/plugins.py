"""The filters that libhdf5 lacks, from hdf5plugin.

They are registered when they are first needed, not on import: registering waits for the lock of h5py, and zarr-python
imports refindex (for its entry point) in a thread of its own, while another package may hold that lock and wait.
"""

from __future__ import annotations

import contextlib
import threading

_LOCK = threading.Lock()
_registered = False


def register() -> None:
    """Have libhdf5 know hdf5plugin's filters.

    Importing netCDF4 points HDF5_PLUGIN_PATH at filters that are linked with netCDF4's own libhdf5; h5py's picks them
    up and fails ("error during user callback"). Registering hdf5plugin's by force puts the right ones in their place.
    """
    global _registered  # noqa: PLW0603 -- libhdf5's table of filters is one of the process
    if _registered:
        return
    with _LOCK:
        if not _registered:
            import hdf5plugin

            for name in hdf5plugin.FILTERS:
                # A filter stays as it is while a dataset that is stored with it is open: it works, then.
                with contextlib.suppress(RuntimeError):
                    hdf5plugin.register(name, force=True)
            _registered = True
