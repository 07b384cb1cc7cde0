"""Which scanner reads a file: chosen by content, never by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from refindex.access import urls
from refindex.access.files import RangeReader, StorageOptions, describe_change, open_reader, reading
from refindex.errors import FormatError, SourceError
from refindex.model.manifest import Manifest
from refindex.scan.hdf5 import SIGNATURE, scan_hdf5
from refindex.scan.netcdf3 import scan_netcdf3

_NETCDF3 = {1: "NetCDF classic", 2: "NetCDF 64-bit offset", 5: "NetCDF CDF-5"}


def scan_source(
    url: str, *, variables: Collection[str] | None = None, storage_options: StorageOptions = None
) -> Manifest:
    """Index one file, whatever its format.

    The file's identity is taken before and after, so that one that changes meanwhile is not recorded as
    something it never was.

    Raises
    ------
    FormatError
        If it is not, or not soundly, a file of a known format.
    UnsupportedError
        If its structure is larger than any that is served.
    SourceError
        If it cannot be read, or changes while it is scanned.
    """
    reader = open_reader(url, storage_options)
    with reading(url, "looking at it"):
        before = reader.identity()
        kind = identify_format(url, reader, before.size)
    scan = scan_hdf5 if kind == "HDF5" else scan_netcdf3
    manifest = scan(before, variables=variables, storage_options=storage_options)
    with reading(url, "looking at it again"):
        after = open_reader(url, storage_options).identity()
    change = describe_change(before, after)
    if change is not None:
        raise SourceError(f"{urls.display(url)} changed while it was scanned: {change}; scan it when it is complete")
    return manifest if after == before else replace(manifest, sources=(after, *manifest.sources[1:]))


def identify_format(url: str, reader: RangeReader, size: int) -> str:
    """The name of a file's format by its signature.

    Raises
    ------
    FormatError
        If it has none that is known.
    """
    where = urls.display(url)
    if size == 0:
        raise FormatError(f"{where}: the file is empty; expected HDF5 or NetCDF")
    head = reader.read(0, min(size, 8))
    if head == SIGNATURE:
        return "HDF5"
    if head[:3] == b"CDF" and len(head) > 3 and head[3] in _NETCDF3:
        return _NETCDF3[head[3]]
    offset = 512
    while offset + len(SIGNATURE) <= size:  # behind a user block
        if reader.read(offset, len(SIGNATURE)) == SIGNATURE:
            return "HDF5"
        offset *= 2
    raise FormatError(f"{where}: not HDF5 or NetCDF: it begins with {head!r} and has no HDF5 signature")


def is_source(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether a URL names a file that a scanner knows by its content."""
    reader = open_reader(url, storage_options)
    try:
        with reading(url, "looking at it"):
            return identify_format(url, reader, reader.identity().size) != ""
    except FormatError:
        return False
