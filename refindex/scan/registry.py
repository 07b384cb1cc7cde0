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
from refindex.scan.zarr import ZIP_SIGNATURES, is_local_folder, is_store, scan_folder, scan_zip

_NETCDF3 = {1: "NetCDF classic", 2: "NetCDF 64-bit offset", 5: "NetCDF CDF-5"}


def scan_source(
    url: str, *, variables: Collection[str] | None = None, storage_options: StorageOptions = None
) -> Manifest:
    """Index one file, whatever its format.

    The file's identity is taken before and after, so that one that changes meanwhile is not recorded as
    something it never was. A folder with Zarr metadata is listed before and after instead.

    Raises
    ------
    FormatError
        If it is not, or not soundly, a file of a known format.
    UnsupportedError
        If its structure is larger than any that is served.
    SourceError
        If it cannot be read, or changes while it is scanned.
    """
    if is_local_folder(url) and is_store(url):
        return scan_folder(url, variables=variables)
    reader = open_reader(url, storage_options)
    with reading(url, "looking at it"):
        before = reader.identity()
        # To object stores, a folder is a name without bytes.
        if before.size == 0 and not urls.is_local(url) and is_store(url, storage_options):
            return scan_folder(url, variables=variables, storage_options=storage_options)
        kind = identify_format(url, reader, before.size)
    scan = scan_hdf5 if kind == "HDF5" else scan_zip if kind == "zip" else scan_netcdf3
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
        raise FormatError(f"{where}: the file is empty; expected HDF5, NetCDF or a zipped Zarr store")
    head = reader.read(0, min(size, 8))
    if head == SIGNATURE:
        return "HDF5"
    if head[:4] in ZIP_SIGNATURES:
        return "zip"
    if head[:3] == b"CDF" and len(head) > 3 and head[3] in _NETCDF3:
        return _NETCDF3[head[3]]
    offset = 512
    while offset + len(SIGNATURE) <= size:  # behind a user block
        if reader.read(offset, len(SIGNATURE)) == SIGNATURE:
            return "HDF5"
        offset *= 2
    raise FormatError(
        f"{where}: not HDF5 or NetCDF, nor a Zarr store in a zip file: it begins with {head!r} and has no HDF5 "
        "signature"
    )


def is_source(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether a URL names a file, or a folder, that a scanner knows by its content."""
    if is_local_folder(url):
        return is_store(url)
    reader = open_reader(url, storage_options)
    try:
        with reading(url, "looking at it"):
            size = reader.identity().size
            if size == 0 and not urls.is_local(url) and is_store(url, storage_options):
                return True
            return identify_format(url, reader, size) != ""
    except FormatError:
        return False
