"""What h5py reads, beside what refindex serves through stock zarr-python: the judge in many tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
import xarray as xr
import zarr

import refindex
from refindex import Status


def netcdf4(path: Any, **options: Any) -> xr.Dataset:
    """What xarray's netcdf4 engine reads, in memory.

    The file is closed at once: netCDF-C is not thread-safe, and a dataset that the garbage collector
    closes on another thread while a file is opened on this one crashes the process.
    """
    with xr.open_dataset(path, engine="netcdf4", **options) as opened:
        return opened.load()


@dataclass(slots=True)
class Verdict:
    """Datasets of one file by what became of them; ``wrong`` must stay empty."""

    right: list[str] = field(default_factory=list)
    reported: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def h5py_datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset | None, str]]:
    """All datasets by path through hard and soft links, each group once a path; None where a link does not resolve."""
    stack: list[tuple[h5py.Group, str, tuple[int, ...]]] = [(file, "", ())]
    while stack:
        group, path, above = stack.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in above:
            continue
        try:
            names = list(group.keys())
        except Exception as error:
            yield path, None, f"cannot list: {error}"
            continue
        for name in names:
            child = f"{path}/{name}".lstrip("/")
            try:
                if isinstance(group.get(name, getlink=True), h5py.ExternalLink):
                    continue
                found = group[name]
            except Exception as error:
                yield child, None, str(error)
                continue
            if isinstance(found, h5py.Dataset):
                yield child, found, ""
            elif isinstance(found, h5py.Group):
                stack.append((found, child, (*above, address)))


def same(expected: Any, served: Any) -> str:
    """Empty if both hold the same values, element for element and bit for bit; else how they differ."""
    if isinstance(expected, bytes | str):  # a scalar of variable length
        expected = np.array(expected, dtype=object)
    expected, served = np.asarray(expected), np.asarray(served)
    if expected.shape != served.shape:
        return f"shape {served.shape}, expected {expected.shape}"
    if expected.dtype.names is not None:
        if served.dtype.names != expected.dtype.names:
            return f"fields {served.dtype.names}, expected {expected.dtype.names}"
        return "; ".join(
            f"{name}: {why}" for name in expected.dtype.names if (why := same(expected[name], served[name]))
        )
    if expected.dtype.kind == "O":
        a = [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else v for v in expected.reshape(-1)]
        b = [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v) for v in served.reshape(-1)]
        return "" if a == b else f"strings differ, e.g. {[x for x in zip(a, b, strict=True) if x[0] != x[1]][:1]}"
    native = expected.dtype.newbyteorder("=")
    if served.dtype.newbyteorder("=") != native and not (served.dtype.kind == "V" and native.kind == "V"):
        return f"dtype {served.dtype}, expected {expected.dtype}"
    if np.ascontiguousarray(expected.astype(native)).tobytes() != np.ascontiguousarray(served.astype(native)).tobytes():
        differ = np.flatnonzero(expected.reshape(-1) != served.reshape(-1))
        at = int(differ[0]) if len(differ) else 0
        return (
            f"{len(differ)} values differ, first at {at}: {served.reshape(-1)[at]!r} for {expected.reshape(-1)[at]!r}"
        )
    return ""


def compare_file(path: str, *, max_nbytes: int = 1 << 28) -> Verdict:
    """Compare every dataset of a file that h5py can read."""
    verdict = Verdict()
    with warnings.catch_warnings(), refindex.open(path) as archive, h5py.File(path, "r") as file:
        warnings.simplefilter("ignore")
        reasons = {
            e.path.strip("/"): f"{e.status}: {e.reason}"
            for e in archive.report.select(Status.UNSERVED, Status.DIMENSION, Status.FAILED)
        }
        for name, dataset, problem in h5py_datasets(file):
            served_name = name.replace("_nc4_non_coord_", "")
            where = next((n for n in (name, served_name) if n in archive.arrays), None)
            reason = _reason(name, reasons)
            expected, error = None, problem
            if dataset is not None:
                try:
                    if dataset.size is not None and dataset.nbytes > max_nbytes:
                        continue
                    expected = dataset[()]
                except Exception as failure:
                    error = f"{type(failure).__name__}: {failure}"
                    if "no appropriate function for conversion path" in error:
                        # h5py asks for opaque data without the tag that it has; libhdf5 itself can read it.
                        kind = dataset.id.get_type()
                        expected = np.empty(dataset.shape, dtype=f"V{kind.get_size()}")
                        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, expected, kind)
                        error = ""
            if expected is None or error:
                verdict.unreadable.append(name)
                if where is not None:
                    try:
                        zarr.open_array(archive.store, path=where, mode="r")[...]
                    except Exception:
                        continue
                    verdict.wrong.append((name, f"served, though h5py cannot read it: {error}"))
                continue
            if where is None:
                if reason is None:
                    verdict.wrong.append((name, "neither served nor in the report"))
                else:
                    verdict.reported.append((name, reason))
                continue
            try:
                served = zarr.open_array(archive.store, path=where, mode="r")[...]
            except Exception as failure:
                verdict.wrong.append((name, f"zarr raises {type(failure).__name__}: {failure}"))
                continue
            why = same(expected, served)
            if why:
                verdict.wrong.append((name, why))
            else:
                verdict.right.append(name)
    return verdict


def _reason(name: str, reasons: dict[str, str]) -> str | None:
    parts = name.split("/")
    for depth in range(len(parts), 0, -1):
        found = reasons.get("/".join(parts[:depth]))
        if found is not None:
            return found
    return None
