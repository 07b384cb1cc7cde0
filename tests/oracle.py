"""What h5py reads, beside what refindex serves through stock zarr-python: the judge in many tests."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
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


def spelled(value: Any, dataset: h5py.Dataset, base: str | None) -> Any:
    """h5py's values of variable length and references, as the documentation says that they are served."""
    dtype = dataset.dtype
    if isinstance(value, h5py.Empty):
        return np.zeros((0,), dtype=value.dtype if value.dtype.kind != "O" else object)
    vlen, reference = h5py.check_vlen_dtype(dtype), h5py.check_ref_dtype(dtype)
    if dtype.names is not None:
        out = np.array(value, dtype=object if not hasattr(value, "dtype") else value.dtype)
        for name in dtype.names:
            if h5py.check_ref_dtype(dtype[name]) is not None:
                paths = [h5py.h5r.get_name(r, dataset.id) if r else b"" for r in out[name].reshape(-1)]
                out[name] = np.array(paths, dtype=object).reshape(out.shape)
        return out
    if vlen in (None, bytes, str) and reference is None:
        return value
    values = np.empty((), dtype=object) if not isinstance(value, np.ndarray) else value
    if not isinstance(value, np.ndarray):
        values[()] = value

    def path(item: Any) -> str:
        if not item:
            return ""
        name = h5py.h5r.get_name(item, dataset.id)
        return name.decode() if name else ""

    out = np.empty(values.shape, dtype=object)
    flat = []
    for item in values.reshape(-1):
        if reference is not None:
            flat.append(path(item))
        elif base in ("string", "reference"):
            entries = [] if item is None else list(item)
            flat.append([path(e) if base == "reference" else e.decode(errors="backslashreplace") for e in entries])
        else:
            flat.append(np.asarray([] if item is None else item, dtype=vlen))
    for at, item in enumerate(flat):
        out.reshape(-1)[at] = item
    return out


def unfolded(served: Any, base: str | None) -> Any:
    """Served sequences and regions in the form that :func:`spelled` gives."""
    served = np.asarray(served)
    if base is None or served.dtype.kind not in {"O", "T", "U"}:
        return served
    out = np.empty(served.shape, dtype=object)
    for at, item in enumerate(served.reshape(-1)):
        if base in ("string", "reference"):
            out.reshape(-1)[at] = json.loads(str(item))
        else:
            kind = np.dtype([tuple(f) for f in json.loads(base)]) if base.startswith("[") else np.dtype(base)
            out.reshape(-1)[at] = np.frombuffer(item, kind)
    return out


def same_objects(expected: Any, served: Any) -> str:
    """Like :func:`same`, for arrays of lists and of arrays."""
    if expected.shape != served.shape:
        return f"shape {served.shape}, expected {expected.shape}"
    for a, b in zip(expected.reshape(-1), served.reshape(-1), strict=True):
        if isinstance(a, np.ndarray):
            if why := same(a, b):
                return why
        elif a != b and not str(b).startswith(f"{a} {{"):  # a region is its path and the selection
            return f"{b!r} for {a!r}"
    return ""


@dataclass(slots=True)
class Verdict:
    """Datasets of one file by what became of them; ``wrong`` must stay empty."""

    right: list[str] = field(default_factory=list)
    reported: list[tuple[str, str]] = field(default_factory=list)
    wrong: list[tuple[str, str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def h5py_datasets(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset | None, str]]:
    """All datasets by path through all links, each group once a path; None where a link does not resolve."""
    stack: list[tuple[h5py.Group, str, tuple[tuple[int, int], ...]]] = [(file, "", ())]
    while stack:
        group, path, above = stack.pop()
        info = h5py.h5o.get_info(group.id)
        address = (info.fileno, info.addr)
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
    if not isinstance(expected, np.ndarray):  # a scalar: strings and references of variable length among them
        scalar = np.empty((), dtype=expected.dtype if isinstance(expected, np.generic) else object)
        scalar[()] = expected
        expected = scalar
    served = np.asarray(served)
    if expected.dtype.str[1:] == "f16":  # long double is served as double where that loses nothing
        expected = expected.astype(np.float64) if np.array_equal(expected, expected.astype(np.float64)) else expected
    if expected.shape != served.shape:
        return f"shape {served.shape}, expected {expected.shape}"
    if expected.dtype.names is not None:
        if served.dtype.names != expected.dtype.names:
            return f"fields {served.dtype.names}, expected {expected.dtype.names}"
        problems = []
        for name in expected.dtype.names:
            want, have = np.asarray(expected[name]), np.asarray(served[name])
            if want.ndim > have.ndim and want.dtype.kind != "O":  # an array in a compound: a compound of its elements
                element = have.dtype
                for _ in range(want.ndim - have.ndim):
                    element = element[0] if element.names else np.dtype(want.dtype.newbyteorder("<"))
                have = np.ascontiguousarray(have).reshape(*have.shape, 1).view(element).reshape(want.shape)
            if why := same(want, have):
                problems.append(f"{name}: {why}")
        return "; ".join(problems)
    if expected.dtype.kind == "O" and served.dtype.kind == "S":  # strings in compounds have one width
        expected = np.array([v if isinstance(v, bytes) else v.encode() for v in expected.reshape(-1)]).reshape(
            expected.shape
        )
        return "" if np.array_equal(expected, served) or not expected.size else "strings differ"
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


def _declared(archive: refindex.Archive) -> Any:
    return archive.store


def _is_netcdf(dataset: h5py.Dataset) -> bool:
    try:
        return "_Netcdf4Dimid" in dataset.attrs
    except RuntimeError:  # damaged
        return False


def compare_file(
    path: str, *, max_nbytes: int = 1 << 28, store_of: Callable[[refindex.Archive], Any] = _declared
) -> Verdict:
    """Compare every dataset of a file that h5py can read with what zarr-python reads of a store over the archive."""
    verdict = Verdict()
    gate = zarr.config.set({"array.rectilinear_chunks": True})  # zarr-python asks for it
    with warnings.catch_warnings(), gate, refindex.open(path) as archive, h5py.File(path, "r") as file:
        warnings.simplefilter("ignore")
        reasons = {
            e.path.strip("/"): f"{e.status}: {e.reason}"
            for e in archive.report.select(Status.UNSERVED, Status.DIMENSION, Status.FAILED)
        }
        netcdf = any(d is not None and _is_netcdf(d) for _, d, _ in h5py_datasets(file))
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
                    if "Insufficient precision in available types" in error:
                        # numpy has no type that wide; libhdf5 itself converts to double.
                        expected, error = np.empty(dataset.shape, dtype="f8"), ""
                        dataset.id.read(h5py.h5s.ALL, h5py.h5s.ALL, expected)
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
                        zarr.open_array(store_of(archive), path=where, mode="r")[...]
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
                array = zarr.open_array(store_of(archive), path=where, mode="r")
                served = array[...]
                if netcdf and dataset.shape:
                    served = without_fill(served, dataset, array.fill_value)
            except Exception as failure:
                verdict.wrong.append((name, f"zarr raises {type(failure).__name__}: {failure}"))
                continue
            base = archive.nodes[where].attributes.get("vlen_base_type")
            if dataset.id.get_type().get_class() == h5py.h5t.FLOAT and not isinstance(expected, h5py.Empty):
                # Some have no numpy type to ask further about.
                why = same(expected, served)
                (verdict.wrong.append((name, why)) if why else verdict.right.append(name))
                continue
            if base is not None or h5py.check_ref_dtype(dataset.dtype) is not None:
                why = same_objects(spelled(expected, dataset, base), unfolded(served, base))
            else:
                why = same(spelled(expected, dataset, None), served)
            if why:
                verdict.wrong.append((name, why))
            else:
                verdict.right.append(name)
    return verdict


def without_fill(served: Any, dataset: h5py.Dataset, fill: Any) -> Any:
    """The part of served values that HDF5 has too, if all others are the fill value: netCDF's view can be longer."""
    own = dataset.shape
    if served.shape[: len(own)] == own or any(n < m for n, m in zip(served.shape, own, strict=False)):
        return served
    if h5py.check_string_dtype(dataset.dtype) is not None and dataset.dtype.kind == "O":
        fill = dataset.fillvalue.decode()
    leading = tuple(slice(0, n) for n in own)
    behind = np.ones(served.shape, dtype=bool)
    behind[leading] = False
    rest = served[behind]
    expected = np.full(rest.shape, fill, dtype=rest.dtype)
    right = list(rest) == list(expected) if rest.dtype.kind in {"O", "T"} else rest.tobytes() == expected.tobytes()
    return served[leading] if right else served


def _reason(name: str, reasons: dict[str, str]) -> str | None:
    parts = name.split("/")
    for depth in range(len(parts), 0, -1):
        found = reasons.get("/".join(parts[:depth]))
        if found is not None:
            return found
    return None
