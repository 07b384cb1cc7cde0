"""What zarr-python asks, or warns, about choices that the archive has made and its reader cannot change."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator

import zarr


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings about codecs and data types outside the core of the Zarr v3 specification.

    HDF5's deflate and shuffle have only zarr-python's ``numcodecs.*`` names, its byte strings only zarr-python's
    ``null_terminated_bytes``; both are how stock zarr-python reads the stored bytes untouched.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification.*")
        warnings.filterwarnings("ignore", message=".*not in the Zarr version 3 specification.*")
        warnings.filterwarnings("ignore", message=".*[Rr]ectilinear.*", category=FutureWarning)
        yield


class _Gate:
    """zarr-python's permission to open rectilinear chunk grids, while anybody needs it.

    It is a setting of the whole process: of several threads that set it and put back what was there, one would take it
    from another.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._setting: contextlib.AbstractContextManager[object] = contextlib.nullcontext()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._setting = zarr.config.set({"array.rectilinear_chunks": True})
                self._setting.__enter__()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._setting.__exit__(None, None, None)


rectilinear = _Gate().open
