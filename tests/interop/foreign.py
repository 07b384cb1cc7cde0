"""What others read of exports: fsspec's reference filesystem, Icechunk, and zarr-python, none of it of refindex."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pytest
import zarr
from fsspec.implementations.reference import LazyReferenceMapper

OUTPUTS = [
    ("kerchunk", 2),
    ("kerchunk", 3),
    ("kerchunk-parquet", 2),
    ("kerchunk-parquet", 3),
    ("icechunk", 3),
    ("zarr", 3),
]
"""Each output and the version of Zarr that it is in."""


def installed(package: str) -> bool:
    try:
        importlib.import_module(package)
    except ImportError:
        return False
    return True


class _Frames:
    """pandas as the layout of these files presumes it: what is missing is None."""

    @staticmethod
    def read_parquet(data: Any, engine: str) -> pd.DataFrame:
        frame = pd.read_parquet(data, engine=engine)
        return frame.astype(object).where(frame.notna(), None)


class Mapper(LazyReferenceMapper):
    """fsspec's reader, with Parquet read by pyarrow."""

    @property
    def pd(self) -> Any:
        return _Frames


def reference_filesystem(dest: Path, *, asynchronous: bool = False) -> Any:
    """fsspec's ``reference`` filesystem over an export of references."""
    fo: Any = str(dest) if dest.is_file() else Mapper(str(dest), engine="pyarrow")
    return fsspec.filesystem("reference", fo=fo, remote_protocol="file", asynchronous=asynchronous)


def foreign_store(dest: Path, to: str) -> Any:
    """An export as a store that zarr-python opens."""
    if to == "zarr":
        return zarr.storage.LocalStore(dest, read_only=True)
    if to == "icechunk":
        return icechunk_session(dest).store
    return zarr.storage.FsspecStore(reference_filesystem(dest, asynchronous=True), read_only=True, path="")


def icechunk_session(dest: Path) -> Any:
    """A repository opened with access to its virtual chunks."""
    icechunk = pytest.importorskip("icechunk")
    storage = icechunk.local_filesystem_storage(str(dest))
    prefixes = icechunk.Repository.open(storage).config.virtual_chunk_containers or {}
    access = dict.fromkeys(prefixes, icechunk.credentials.LocalFileSystemAccess)
    return icechunk.Repository.open(storage, authorize_virtual_chunk_access=access).readonly_session("main")


def foreign_group(dest: Path, to: str, zarr_format: int) -> zarr.Group:
    return zarr.open_group(foreign_store(dest, to), mode="r", zarr_format=zarr_format)


@contextlib.contextmanager
def gate() -> Iterator[None]:
    """zarr-python asks for its experimental grids."""
    with zarr.config.set({"array.rectilinear_chunks": True}):
        yield


def same_values(one: Any, other: Any) -> bool:
    """Whether two arrays are equal in shape and bit for bit, but for their byte order."""
    one, other = np.asarray(one), np.asarray(other)
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return False
    if one.dtype.kind in ("O", "T"):
        return one.tolist() == other.tolist()
    native = one.dtype.newbyteorder("=")
    return np.ascontiguousarray(one.astype(native)).tobytes() == np.ascontiguousarray(other.astype(native)).tobytes()
