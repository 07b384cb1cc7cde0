"""Which scanner reads a file: chosen by content, never by name."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial

from refindex.access import urls
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import RangeReader, StorageOptions, describe_change, open_reader, reading
from refindex.access.transport import RemoteStats
from refindex.access.trust import Allowed
from refindex.errors import FormatError, NotFoundError, RefindexError, SourceError
from refindex.model.manifest import Manifest, Source
from refindex.scan.hdf5 import SIGNATURE, Known, scan_hdf5
from refindex.scan.netcdf3 import scan_netcdf3
from refindex.scan.zarr import ZIP_SIGNATURES, is_local_folder, is_store, scan_folder, scan_zip

_LOOK = 1 << 14
"""Bytes that are looked at to see what a remote file is."""

_PAGE = 512
"""Bytes by which a web page is recognised."""

_NETCDF3 = {1: "NetCDF classic", 2: "NetCDF 64-bit offset", 5: "NetCDF CDF-5"}


def scan_source(
    url: str,
    *,
    variables: Collection[str] | None = None,
    storage_options: StorageOptions = None,
    stats: RemoteStats | None = None,
    blocks: RemoteBlocks | None = None,
    known: Known | None = None,
    allowed: Allowed | None = None,
) -> Manifest:
    """Index one file, whatever its format.

    The file's identity is taken before and after, so that one that changes meanwhile is not recorded as
    something it never was. A folder with Zarr metadata is listed before and after instead.

    Parameters
    ----------
    stats:
        Where the requests for remote files are counted.
    blocks:
        The file, if it is remote and already open.
    known:
        What other files of the same scan have told: with it, files that are alike take less time.
    allowed:
        Where files may be that it refers to; beside and below it if None.

    Raises
    ------
    FormatError
        If it is not, or not soundly, a file of a known format.
    UnsupportedError
        If its structure is larger than any that is served.
    SourceError
        If it cannot be read, or changes while it is scanned.
    """
    allowed = (Allowed().beside(url) if allowed is None else allowed).with_target(url)
    if not urls.is_local(url):
        return _scan_remote(url, variables, storage_options, stats, blocks, known, allowed)
    if is_local_folder(url) and is_store(url):
        return scan_folder(url, variables=variables, allowed=allowed)
    reader = open_reader(url, storage_options)
    with reading(url, "looking at it"):
        before = reader.identity()
        kind = identify_format(url, reader, before.size)
    scan = _scan_hdf5(known, allowed) if kind == "HDF5" else scan_zip if kind == "zip" else scan_netcdf3
    manifest = scan(before, variables=variables, storage_options=storage_options)
    return _unchanged(manifest, before, storage_options)


def _scan_remote(
    url: str,
    variables: Collection[str] | None,
    storage_options: StorageOptions,
    stats: RemoteStats | None,
    blocks: RemoteBlocks | None,
    known: Known | None,
    allowed: Allowed,
) -> Manifest:
    """The answers that bring the file's bytes also say which version they are of."""
    try:
        opened = blocks or RemoteBlocks.open(url, storage_options, stats=stats)
    except RefindexError as error:
        if may_be_folder(url, error) and is_store(url, storage_options):
            return scan_folder(url, variables=variables, storage_options=storage_options)
        raise
    with contextlib.closing(opened):
        # To some object stores, a folder is a name without bytes.
        if opened.size == 0 and _has_folders(url) and is_store(url, storage_options):
            return scan_folder(url, variables=variables, storage_options=storage_options)
        kind = identify_format(url, opened, opened.size)
        before = opened.source
        if kind == "zip":
            manifest = scan_zip(before, variables=variables, storage_options=storage_options)
            return _unchanged(manifest, before, storage_options)
        scan = _scan_hdf5(known, allowed) if kind == "HDF5" else scan_netcdf3
        return scan(before, variables=variables, storage_options=storage_options, blocks=opened)


def _scan_hdf5(known: Known | None, allowed: Allowed) -> Callable[..., Manifest]:
    return partial(scan_hdf5, known=known, allowed=allowed)


def may_be_folder(url: str, error: RefindexError) -> bool:
    """Whether a remote URL that cannot be opened as a file may be that of a folder; HTTP knows none."""
    return _has_folders(url) and (isinstance(error, NotFoundError) or isinstance(error.__cause__, IsADirectoryError))


def _has_folders(url: str) -> bool:
    """Whether the storage of a remote URL has folders: HTTP has none, and some servers answer whatever is asked for."""
    return not url.partition("::")[0].startswith(("http://", "https://"))


def _unchanged(manifest: Manifest, before: Source, storage_options: StorageOptions) -> Manifest:
    """The manifest, if its file is still what it was before the scan."""
    with reading(before.url, "looking at it again"):
        after = open_reader(before.url, storage_options).identity()
    _check_unchanged(before, after)
    # Files that it refers to were looked at when they were first come upon.
    for other in manifest.sources[1:]:
        if urls.is_local(other.url):
            with reading(other.url, "looking at it again"):
                _check_unchanged(other, open_reader(other.url).identity())
    return manifest if after == before else replace(manifest, sources=(after, *manifest.sources[1:]))


def _check_unchanged(before: Source, after: Source) -> None:
    change = describe_change(before, after)
    if change is not None:
        raise SourceError(
            f"{urls.display(before.url)} changed while it was scanned: {change}; scan it when it is complete"
        )


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
    if reader.read(0, min(size, _PAGE)).lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise FormatError(
            f"{where}: a web page and not the file it should be (it begins with {head!r}); is a login missing (pass "
            "storage_options, --storage-options), or is this the address of a page about the file?"
        )
    raise FormatError(
        f"{where}: not HDF5 or NetCDF, nor a Zarr store in a zip file: it begins with {head!r} and has no HDF5 "
        "signature"
    )


def is_source(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether a URL names a file, or a folder, that a scanner knows by its content."""
    if is_local_folder(url):
        return is_store(url)
    try:
        if urls.is_local(url):
            reader = open_reader(url)
            with reading(url, "looking at it"):
                return identify_format(url, reader, reader.identity().size) != ""
        with contextlib.closing(RemoteBlocks.open(url, storage_options, first=_LOOK, whole=0)) as blocks:
            if blocks.size == 0 and _has_folders(url) and is_store(url, storage_options):
                return True
            return identify_format(url, blocks, blocks.size) != ""
    except FormatError:
        return False
    except RefindexError as error:
        if may_be_folder(url, error) and is_store(url, storage_options):
            return True
        raise
