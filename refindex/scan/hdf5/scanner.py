"""One HDF5 / NetCDF-4 file -> one manifest.

libhdf5 (low-level h5py) supplies groups, types, spaces, filters, fill values and attributes; what cannot be
served goes into the report with its path and the reason, and never takes the rest of the file with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from refindex.access import urls
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import StorageOptions
from refindex.access.trust import Allowed
from refindex.errors import FormatError, RefindexError, SourceError, UnsupportedError
from refindex.model.manifest import Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import dumps, group_document
from refindex.scan.cf import Attributes
from refindex.scan.hdf5 import attributes as attribute_reader
from refindex.scan.hdf5.attributes import AttributesRead
from refindex.scan.hdf5.dataset import Compiled, compile_dataset
from refindex.scan.hdf5.dimensions import Dimensions, read_dimensions, served_name
from refindex.scan.hdf5.family import into_members
from refindex.scan.hdf5.index import FileIndex, OpenFiles
from refindex.scan.hdf5.known import Known
from refindex.scan.hdf5.virtual_sources import check_objects
from refindex.scan.hdf5.walk import Found, walk
from refindex.scan.naming import DimensionNames

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
    compiled: dict[tuple[tuple[str, int], bool], Compiled] = field(default_factory=dict)
    """Datasets by file and address, and whether as a coordinate: a second path shares the chunk table of the first."""

    def report(self, path: str, status: Status, reason: str = "") -> None:
        self.entries.append(ReportEntry(source=self.where, path=f"/{path}", status=status, reason=reason))


def scan_hdf5(
    source: Source,
    *,
    variables: Collection[str] | None = None,
    storage_options: StorageOptions = None,
    blocks: RemoteBlocks | None = None,
    known: Known | None = None,
    allowed: Allowed | None = None,
) -> Manifest:
    """Index one file.

    Parameters
    ----------
    source:
        The file's URL and identity.
    variables:
        Names or paths of the arrays wanted, with the coordinates of their dimensions; None for all.
    blocks:
        The file, if it is remote and already open.
    known:
        What other files of the same scan have told, and this one adds to.
    allowed:
        Where files may be that it refers to; anywhere if None.

    Raises
    ------
    FormatError
        If libhdf5 cannot open the file.
    SourceError
        If it cannot be read.
    """
    stats = None if blocks is None else blocks.stats
    with OpenFiles(storage_options, blocks=blocks, stats=stats, known=known, allowed=allowed) as files:
        index = files.keep(source.url, source)
        scan = _Scan(source=source, where=urls.display(source.url), index=index)
        if index.note:
            scan.report("", Status.NOTE, index.note)
        try:
            manifest = _scan_file(scan, variables)
            files.finish()
            return manifest
        except RefindexError:
            raise
        except _LIBRARY_ERRORS as error:
            if index.blocks is not None:
                index.blocks.check()
            raise FormatError(f"{urls.display(source.url)}: libhdf5 cannot walk through it: {error}") from error


def _scan_file(scan: _Scan, variables: Collection[str] | None) -> Manifest:
    found = walk(scan.index)
    for path, status, reason in found.passed:
        scan.report(path, status, reason)
    for group in found.groups:
        _add_group(scan, group)
    dimensions = _read_dimensions(found.datasets)
    for path, note in (note for each in dimensions.values() for note in each.notes):
        scan.report(path, Status.NOTE, note)
    wanted = _selected(found.datasets, dimensions, variables)
    names = _consistent_names(wanted, dimensions, scan)
    _fetch_indexes(wanted)
    for dataset in wanted:
        _add_dataset(scan, dataset, dimensions[dataset.origin.url], names[dataset.path])
    groups = scan.groups
    if variables is not None:
        groups = {p: g for p, g in groups.items() if not p or any(a.startswith(f"{p}/") for a in scan.arrays)}
    return Manifest(
        groups=groups,
        arrays=scan.arrays,
        sources=tuple(scan.index.sources),
        report=ScanReport(entries=tuple(scan.entries)),
    )


def _fetch_indexes(datasets: list[Found]) -> None:
    by_file: dict[str, dict[int, Found]] = {}
    for found in datasets:
        by_file.setdefault(found.origin.url, {})[found.address] = found
    for members in by_file.values():
        each = list(members.values())
        with contextlib.suppress(SourceError, *_LIBRARY_ERRORS):  # each dataset by itself will say what is wrong
            each[0].origin.fetch_indexes(each)


def _read_dimensions(datasets: list[Found]) -> dict[str, Dimensions]:
    """The dimensions of every file by its URL: addresses, by which scales are told, mean nothing in another."""
    by_file: dict[str, list[Found]] = {}
    for found in datasets:
        by_file.setdefault(found.origin.url, []).append(found)
    return {url: read_dimensions(members) for url, members in by_file.items()}


def _selected(
    datasets: list[Found], dimensions: dict[str, Dimensions], variables: Collection[str] | None
) -> list[Found]:
    if variables is None:
        return datasets
    asked = {name.strip("/") for name in variables}
    chosen = {d.path for d in datasets if d.path in asked or served_name(d.name) in asked}
    axes = {
        (url, address) for url, each in dimensions.items() for path in chosen for address in each.axes.get(path, ())
    }
    return [d for d in datasets if d.path in chosen or d.key in axes]


def _consistent_names(
    datasets: list[Found], dimensions: dict[str, Dimensions], scan: _Scan
) -> dict[str, tuple[str, ...]]:
    """Dimension names of all datasets, by path; the report says which are not the file's own."""
    chosen = DimensionNames()
    for found in datasets:
        # What ends before its dimension does must not give the dimension its length.
        dimension = dimensions[found.origin.url]
        if found.path in dimension.kept_short:
            for name, extent in zip(dimension.names[found.path], dimension.full[found.path], strict=True):
                chosen.hold(found.parent, name, extent)
    # Coordinates decide first what length a name has.
    order = sorted(datasets, key=lambda d: d.address not in dimensions[d.origin.url].scales)
    result: dict[str, tuple[str, ...]] = {}
    for found in order:
        dimension = dimensions[found.origin.url]
        axes = zip(dimension.names[found.path], dimension.shape(found), strict=True)
        result[found.path] = chosen.of(found.parent, axes, partial(scan.report, found.path, Status.NOTE))
    return result


def _add_group(scan: _Scan, group: Found) -> None:
    values = _guarded(scan, group.path, lambda: _attributes(group)) or Attributes()
    for note in values.notes:
        scan.report(group.path, Status.NOTE, note)
    scan.groups[group.path] = Node(
        path=group.path, document=dumps(group_document(values.values)), attribute_types=values.types
    )


def _attributes(found: Found, *, is_scale: bool = False) -> AttributesRead:
    return attribute_reader.read(found.id, is_scale=is_scale, messages=found.messages, plain=found.origin.plain)


def _add_dataset(scan: _Scan, found: Found, dimensions: Dimensions, dims: tuple[str, ...]) -> None:
    scale = dimensions.scales.get(found.address)
    if scale is not None and not scale.is_variable:
        scan.report(found.path, Status.DIMENSION, "a netCDF dimension without a variable")
        return
    path = f"{found.parent}/{served_name(found.name)}".lstrip("/")
    if path in scan.groups or path in scan.arrays:
        path = found.path
    attributes = _guarded(scan, found.path, lambda: _attributes(found, is_scale=scale is not None))
    if attributes is None:
        return
    is_coordinate = len(dims) == 1 and dims[0] == path.rpartition("/")[2]
    compiled = scan.compiled.get((found.key, is_coordinate))
    if compiled is not None:
        array = _at_path(compiled.array, path, dims)
    else:
        compiled = _guarded(
            scan,
            found.path,
            lambda: _compile(
                scan, found, dims, path, attributes, shape=dimensions.shape(found), is_coordinate=is_coordinate
            ),
        )
        if compiled is None:
            return
        scan.compiled[found.key, is_coordinate] = compiled
        array = compiled.array
    scan.arrays[path] = array
    scan.report(found.path, compiled.status, compiled.reason)
    for note in compiled.notes:
        scan.report(found.path, Status.NOTE, note)
    if note := _note_on_length(found, dimensions):
        scan.report(found.path, Status.NOTE, note)


def _note_on_length(found: Found, dimensions: Dimensions) -> str:
    """What became of a dataset that is shorter than its netCDF dimensions; empty if it is not."""
    if found.path not in dimensions.full:
        return ""
    names, own, full = dimensions.names[found.path], found.shape, dimensions.full[found.path]
    short = [
        (f"dimension {name!r}", has, length) for name, has, length in zip(names, own, full, strict=True) if has < length
    ]
    if why := dimensions.kept_short.get(found.path):
        ends = ", ".join(f"{name} is {length} long, it ends at {has}" for name, has, length in short)
        return f"{ends}; netCDF shows fill values there, here it is served as long as it is: {why}"
    steps = ", ".join(f"along {name} from {has} to {length}" for name, has, length in short)
    return f"extended {steps} with the fill value, as netCDF shows it"


def _compile(
    scan: _Scan,
    found: Found,
    dims: tuple[str, ...],
    path: str,
    attributes: AttributesRead,
    *,
    shape: tuple[int, ...],
    is_coordinate: bool,
) -> Compiled:
    index = found.origin
    check_objects(found, index)
    compiled = compile_dataset(
        found, index=index, dims=dims, path=path, attributes=attributes, is_coordinate=is_coordinate, extended=shape
    )
    if index.family is not None:
        numbers = [index.add_source(member) for member in index.family.members]
        compiled.array = into_members(compiled.array, index.family, numbers)
    if index is not scan.index:
        # Its chunk table numbers the files of the file that it lies in.
        numbers = [scan.index.add_source(source) for source in index.sources]
        array = compiled.array
        compiled.array = array.moved(path, chunks=array.chunks.with_sources(numbers))
        compiled.notes.append(f"it lies in {urls.display(index.url)}")
        if index.note:
            compiled.notes.append(f"{urls.display(index.url)}: {index.note}")
    return compiled


def _at_path(array: Array, path: str, dims: tuple[str, ...]) -> Array:
    """An array at a further path of its dataset, with the names that its dimensions have there."""
    names = [*dims, *array.dims[len(dims) :]]
    if tuple(names) == array.dims:
        return array.moved(path)
    document = {**array.json, "dimension_names": names}
    return Array(
        path=path,
        document=dumps(document),
        encodings=array.encodings,
        attribute_types=array.attribute_types,
        chunks=array.chunks,
    ).knowing(json=document, grid=array.grid)


def _guarded[T](scan: _Scan, path: str, work: Callable[[], T]) -> T | None:
    """Do the work on one object; what it cannot do goes into the report."""
    try:
        return work()
    except UnsupportedError as error:
        scan.report(path, Status.UNSERVED, str(error))
    except FormatError as error:
        scan.report(path, Status.UNSERVED, f"damaged: {error}")
    except RefindexError as error:
        scan.report(path, Status.UNSERVED, str(error))
    except _LIBRARY_ERRORS as error:
        scan.report(path, Status.UNSERVED, f"libhdf5 cannot read it: {error}")
    return None
