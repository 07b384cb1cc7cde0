"""Warnings of zarr-python about choices that the archive has made and its reader cannot change."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator


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
