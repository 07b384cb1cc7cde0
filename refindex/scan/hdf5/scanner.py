"""One HDF5 / NetCDF-4 file -> one manifest.

libhdf5 (low-level h5py) supplies groups, types, spaces, filters, fill values and attributes; what cannot be
served goes into the report with its path and the reason, and never takes the rest of the file with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import fsspec
import h5py
from h5py import h5d

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.errors import FormatError, RefindexError, UnsupportedError
from refindex.model.manifest import Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import dumps, group_document
from refindex.scan.cf import Attributes
from refindex.scan.hdf5 import attributes as attribute_reader
from refindex.scan.hdf5.dataset import compile_dataset
from refindex.scan.hdf5.dimensions import Dimensions, read_dimensions, served_name
from refindex.scan.hdf5.index import FileIndex, open_index
from refindex.scan.hdf5.walk import Found, walk

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""File format specification II.A: at byte 0, 512, 1024, 2048, ... of the file."""

_LIBRARY_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError, OverflowError)
"""What h5py raises when libhdf5 refuses an object, by the class of the failure."""


@dataclass(slots=True, kw_only=True)
class _Scan:
    """One file being scanned; ``where`` is how its URL is written for people."""

    source: Source
    where: str
    index: FileIndex
    groups: dict[str, Node] = field(default_factory=dict)
    arrays: dict[str, Array] = field(default_factory=dict)
    entries: list[ReportEntry] = field(default_factory=list)

    def report(self, path: str, status: Status, reason: str = "") -> None:
        self.entries.append(ReportEntry(source=self.where, path=f"/{path}", status=status, reason=reason))


def scan_hdf5(
    source: Source, *, variables: Collection[str] | None = None, storage_options: StorageOptions = None
) -> Manifest:
    """Index one file.

    Parameters
    ----------
    source:
        The file's URL and identity.
    variables:
        Names or paths of the arrays wanted, with the coordinates of their dimensions; None for all.

    Raises
    ------
    FormatError
        If libhdf5 cannot open the file.
    SourceError
        If it cannot be read.
    """
    with _opened(source.url, storage_options) as file, open_index(file, source, storage_options) as index:
        scan = _Scan(source=source, where=urls.display(source.url), index=index)
        try:
            return _scan_file(file, scan, variables)
        except RefindexError:
            raise
        except _LIBRARY_ERRORS as error:
            raise FormatError(f"{urls.display(source.url)}: libhdf5 cannot walk through it: {error}") from error


def _scan_file(file: h5py.File, scan: _Scan, variables: Collection[str] | None) -> Manifest:
    found = walk(file)
    for path, status, reason in found.passed:
        scan.report(path, status, reason)
    for group in found.groups:
        _add_group(scan, group)
    dimensions = read_dimensions(found.datasets)
    for path, note in dimensions.notes:
        scan.report(path, Status.NOTE, note)
    wanted = _selected(found.datasets, dimensions, variables)
    names = _consistent_names(wanted, dimensions, scan)
    for dataset in wanted:
        _add_dataset(scan, dataset, dimensions, names[dataset.path])
    groups = scan.groups
    if variables is not None:
        groups = {p: g for p, g in groups.items() if not p or any(a.startswith(f"{p}/") for a in scan.arrays)}
    return Manifest(
        groups=groups,
        arrays=scan.arrays,
        sources=tuple(scan.index.sources),
        report=ScanReport(entries=tuple(scan.entries)),
    )


@contextlib.contextmanager
def _opened(url: str, storage_options: StorageOptions) -> Iterator[h5py.File]:
    """A file open for reading by libhdf5; local ones directly, others through fsspec."""
    with contextlib.ExitStack() as stack:
        where: Any
        if urls.is_local(url):
            where = urls.local_path(url)
        else:
            with reading(url, "opening"):
                where = stack.enter_context(
                    fsspec.open(url, "rb", **({"cache_type": "readahead"} | dict(storage_options or {})))
                )
        try:
            file = stack.enter_context(h5py.File(where, "r"))
        except PermissionError:
            with reading(url, "opening"):
                raise
        except _LIBRARY_ERRORS as error:
            raise FormatError(f"{urls.display(url)}: libhdf5 cannot open it: {error}") from error
        yield file


def _selected(datasets: list[Found], dimensions: Dimensions, variables: Collection[str] | None) -> list[Found]:
    if variables is None:
        return datasets
    asked = {name.strip("/") for name in variables}
    chosen = {d.path for d in datasets if d.path in asked or served_name(d.name) in asked}
    axes = {address for path in chosen for address in dimensions.axes.get(path, ())}
    return [d for d in datasets if d.path in chosen or d.address in axes]


def _consistent_names(datasets: list[Found], dimensions: Dimensions, scan: _Scan) -> dict[str, tuple[str, ...]]:
    """Dimension names with which xarray can open every group.

    A name must stand for one length within a group, and occur once in an array; HDF5 demands
    neither. Where a file breaks that, the axis gets a name of its own, and the report says so.
    """
    lengths: dict[tuple[str, str], int] = {}
    # Coordinates decide first what length a name has.
    order = sorted(datasets, key=lambda d: d.address not in dimensions.scales)
    result: dict[str, tuple[str, ...]] = {}
    for found in order:
        names: list[str] = []
        for name, extent in zip(dimensions.names[found.path], found.id.shape or (), strict=True):
            chosen, attempt = name, 1
            while chosen in names or lengths.get((found.parent, chosen), extent) != extent:
                chosen = f"{name}_{extent}" if attempt == 1 and f"{name}_{extent}" not in names else f"{name}_{attempt}"
                attempt += 1
            if chosen != name:
                scan.report(
                    found.path,
                    Status.NOTE,
                    f"dimension {name!r} is called {chosen!r} here: within a group a name has one length, "
                    "and within an array it occurs once",
                )
            lengths[found.parent, chosen] = extent
            names.append(chosen)
        result[found.path] = tuple(names)
    return result


def _add_group(scan: _Scan, group: Found) -> None:
    values = _guarded(scan, group.path, lambda: attribute_reader.read(group.id)) or Attributes()
    for note in values.notes:
        scan.report(group.path, Status.NOTE, note)
    scan.groups[group.path] = Node(
        path=group.path, document=dumps(group_document(values.values)), attribute_types=values.types
    )


def _add_dataset(scan: _Scan, found: Found, dimensions: Dimensions, dims: tuple[str, ...]) -> None:
    scale = dimensions.scales.get(found.address)
    if scale is not None and not scale.is_variable:
        scan.report(found.path, Status.DIMENSION, "a netCDF dimension without a variable")
        return
    path = f"{found.parent}/{served_name(found.name)}".lstrip("/")
    if path in scan.groups or path in scan.arrays:
        path = found.path
    dataset = found.id
    if not isinstance(dataset, h5d.DatasetID):  # the walk sorts them apart
        raise TypeError(f"/{found.path} is not a dataset")
    attributes = _guarded(scan, found.path, lambda: attribute_reader.read(dataset, is_scale=scale is not None))
    if attributes is None:
        return
    compiled = _guarded(
        scan,
        found.path,
        lambda: compile_dataset(
            found,
            index=scan.index,
            dims=dims,
            path=path,
            attributes=attributes,
            is_coordinate=len(dims) == 1 and dims[0] == path.rpartition("/")[2],
        ),
    )
    if compiled is None:
        return
    scan.arrays[path] = compiled.array
    scan.report(found.path, compiled.status, compiled.reason)
    for note in compiled.notes:
        scan.report(found.path, Status.NOTE, note)


def _guarded[T](scan: _Scan, path: str, work: Callable[[], T]) -> T | None:
    """Do the work on one object; what it cannot do goes into the report."""
    try:
        return work()
    except UnsupportedError as error:
        scan.report(path, Status.UNSERVED, str(error))
    except FormatError as error:
        scan.report(path, Status.UNSERVED, f"damaged: {error}")
    except _LIBRARY_ERRORS as error:
        scan.report(path, Status.UNSERVED, f"libhdf5 cannot read it: {error}")
    return None
