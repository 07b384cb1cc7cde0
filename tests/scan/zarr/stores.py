"""Comparing what refindex serves of a Zarr store with what zarr-python reads from the store itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import zarr

import refindex


@contextmanager
def quietly() -> Iterator[None]:
    """zarr-python warns of codecs and types that are not in the specification, when writing and when reading."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zarr.config.set({"array.rectilinear_chunks": True}):
            yield


def same_values(expected: Any, found: Any) -> str:
    """Empty if both are the same in type, shape and every bit; else how they differ. Byte order aside."""
    expected, found = np.asarray(expected), np.asarray(found)
    if expected.shape != found.shape:
        return f"shape {found.shape}, expected {expected.shape}"
    if expected.dtype.kind in ("O", "T"):
        return (
            "" if expected.dtype == found.dtype and expected.tolist() == found.tolist() else f"{found} for {expected}"
        )
    if expected.dtype.newbyteorder("=") != found.dtype.newbyteorder("="):
        return f"dtype {found.dtype}, expected {expected.dtype}"
    native = expected.dtype.newbyteorder("=")
    if expected.astype(native).tobytes() != found.astype(native).tobytes():
        return f"{found} for {expected}"
    return ""


def compare(where: Any, original: Any, **options: Any) -> refindex.ScanReport:
    """Every array that zarr-python finds in a store must be served with the same values, attributes and names."""
    with quietly(), refindex.open(where, **options) as archive:
        node = zarr.open(original, mode="r") if not isinstance(original, zarr.Group | zarr.Array) else original
        if isinstance(node, zarr.Array):
            (path,) = archive.arrays
            pairs = [(path, node)]
        else:
            pairs = [(path, member) for path, member in node.members(max_depth=None)]
            groups = {path for path, member in pairs if isinstance(member, zarr.Group)}
            assert {p for p, n in archive.nodes.items() if not n.is_array and p} == groups
            pairs = [(path, member) for path, member in pairs if isinstance(member, zarr.Array)]
        assert set(archive.arrays) == {path for path, _ in pairs}, archive.report
        for path, member in pairs:
            found = archive.group[path]
            assert (why := same_values(member[...], found[...])) == "", f"{path}: {why}\n{archive.report}"
            if member.metadata.zarr_format == 3:
                assert dict(found.attrs) == dict(member.attrs), path
                assert found.metadata.dimension_names == member.metadata.dimension_names, path
        return archive.report
