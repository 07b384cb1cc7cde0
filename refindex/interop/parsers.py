"""Files of other formats, through VirtualiZarr's parsers -> a manifest.

Parsers find where the values are; what is known to come out wrong, and what they pass over without a word, is left out
here and reported.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import h5py
from zarr.core.sync import sync

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.errors import FormatError, RefindexError, UnsupportedError
from refindex.interop import dmrpp, grib
from refindex.interop.looking import look_at
from refindex.interop.object_stores import PARSED, OneFile, in_memory, one_file
from refindex.interop.optional import require
from refindex.interop.virtualizarr import take
from refindex.model.manifest import Manifest, ReportEntry, ScanReport, Status

type Parsed = Literal["tiff", "grib", "fits", "dmrpp", "netcdf3", "hdf"]

_REVERSED_BITS, _FILL_ORDER = 2, 266

_PASSED_OVER = "gribberish does not know them, or takes another one of the same variable, level and time"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Result:
    """What a parser has made.

    Parameters
    ----------
    group:
        A ``ManifestStore`` or ``ManifestGroup``.
    left:
        Paths of what is not in it, each with why.
    data:
        URL of the file that it refers to.
    """

    group: Any
    left: Sequence[tuple[str, str]] = ()
    data: str


def from_parser(source: str | os.PathLike[str], *, format: Parsed, storage_options: StorageOptions = None) -> Manifest:  # noqa: A002
    """Make a manifest of a file of another format, through VirtualiZarr's parser of it.

    Parameters
    ----------
    source:
        Path, ``http(s)://`` or ``s3://`` URL of the file.
    format:
        ``"tiff"`` takes virtual-tiff, ``"grib"`` gribberish, ``"fits"`` astropy; ``"dmrpp"``, ``"netcdf3"`` and
        ``"hdf"`` VirtualiZarr alone. The file that ``NAME.dmrpp`` is about is ``NAME``.
    storage_options:
        Options for fsspec.

    Raises
    ------
    UnsupportedError
        If a package is not installed, or the parser does not take the file.
    FormatError
        If it is damaged, or nothing of it can be served.
    NotFoundError, SourceError
        If it cannot be read.
    """
    url = urls.absolute(source)
    where = urls.display(url)
    require("virtualizarr.parsers")
    look_at([url], where, storage_options)
    file = one_file(url, storage_options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are about choices of the parsers
            found = _PARSERS[format](file, where)
    except (RefindexError, MemoryError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of a parser in Rust is no Exception
        raise UnsupportedError(
            f"{where}: VirtualiZarr's parser for {format} does not take it: {type(error).__name__}: {error}"
        ) from error
    manifest = take(found.group, where=where, resolve=lambda _: found.data, storage_options=storage_options)
    left = [
        ReportEntry(source=where, path=f"/{path}", status=Status.UNSERVED, reason=reason) for path, reason in found.left
    ]
    return replace(manifest, report=ScanReport(entries=(*manifest.report.entries, *left))) if left else manifest


def _tiff(file: OneFile, where: str) -> _Result:
    virtual_tiff = require("virtual_tiff", "virtual-tiff")
    opened = require("async_tiff", "virtual-tiff").TIFF.open
    directories = sync(_awaited(lambda: opened(file.path, store=file.store))).ifds
    reversed_bits = [n for n, ifd in enumerate(directories) if ifd.other_tags.get(_FILL_ORDER) == _REVERSED_BITS]
    if reversed_bits:
        raise UnsupportedError(f"{where}: images {reversed_bits} have their bits in reverse order (FillOrder 2)")
    flat = virtual_tiff.VirtualTIFF()(PARSED, file.registry())
    sizes: dict[str, set[int]] = {}
    for array in flat._group.arrays.values():
        for name, size in zip(array.metadata.dimension_names or (), array.shape, strict=False):
            sizes.setdefault(str(name), set()).add(size)
    # Images of several sizes, such as overviews, have dimensions of their own.
    nested = any(len(found) > 1 for found in sizes.values())
    layout = virtual_tiff.VirtualTIFF(ifd_layout="nested")(PARSED, file.registry()) if nested else flat
    return _Result(group=layout, data=file.url)


async def _awaited(begin: Callable[[], Awaitable[Any]]) -> Any:
    # It must begin where the loop is.
    return await begin()


def _fits(file: OneFile, where: str) -> _Result:
    fits = require("astropy.io.fits", "astropy")
    reader = require("obspec_utils.readers").BlockStoreReader(store=file.store, path=file.path)
    left: dict[str, str] = {}
    with fits.open(reader, do_not_scale_image_data=True) as units:
        names: list[str] = []
        for number, unit in enumerate(units):
            name = unit.name or str(number)
            names.append(f"{name}_{number}" if name in names else name)
            reason = _fits_objection(fits, unit)
            if reason is not None:
                left[names[-1]] = reason
    parser = require("virtualizarr.parsers").FITSParser(skip_variables=list(left))
    return _Result(group=parser(PARSED, file.registry()), left=list(left.items()), data=file.url)


def _fits_objection(fits: Any, unit: Any) -> str | None:
    if isinstance(unit, fits.CompImageHDU):
        return "a compressed FITS image, whose table VirtualiZarr's parser takes for its pixels"
    if isinstance(unit, fits.BinTableHDU):
        return "a FITS table in binary, whose big-endian columns Zarr cannot describe"
    if not unit.is_image and not isinstance(unit, fits.TableHDU):
        return f"a FITS unit of the kind {type(unit).__name__}"
    if isinstance(unit, fits.GroupsHDU):
        return "random groups of FITS"
    return None


def _grib(file: OneFile, where: str) -> _Result:
    gribberish = require("gribberish.virtualizarr", "gribberish")
    data = file.read()
    messages = {message.offset: message for message in grib.messages_of(data, where)}
    objections = {message.objection for message in messages.values()}
    if not messages:
        raise FormatError(f"{where}: there is no GRIB message in it")
    if None not in objections:
        raise UnsupportedError(
            f"{where}: none of its messages can be served: {', '.join(sorted(map(str, objections)))}"
        )
    seen = bytearray(data)
    for message in messages.values():
        if message.objection is not None:
            # So that gribberish does not see it: some end the process.
            seen[message.offset : message.offset + 4] = bytes(4)
    store = gribberish.GribberishParser()(PARSED, in_memory(file, bytes(seen)).registry())
    taken = {
        offset
        for array in _arrays(store._group)
        if _is_grib(array)
        for offset in array.manifest._offsets[array.manifest._paths != ""].reshape(-1).tolist()
    }
    if not taken <= set(messages):
        raise UnsupportedError(f"{where}: gribberish refers to bytes at which no GRIB message begins")
    left: dict[str, list[int]] = {}
    for message in messages.values():
        if message.offset not in taken:
            left.setdefault(message.objection or _PASSED_OVER, []).append(message.offset)
    return _Result(
        group=store,
        left=[("", f"{len(at)} of {len(messages)} messages, at byte {at[0]}: {why}") for why, at in left.items()],
        data=file.url,
    )


def _arrays(group: Any) -> list[Any]:
    return [*group.arrays.values(), *(array for below in group.groups.values() for array in _arrays(below))]


def _is_grib(array: Any) -> bool:
    return any(codec["name"] == "gribberish" for codec in array.metadata.to_dict()["codecs"])


def _dmrpp(file: OneFile, where: str) -> _Result:
    if not file.url.endswith(".dmrpp"):
        raise UnsupportedError(f"{where}: its name does not end in .dmrpp, and says not which file it is about")
    manifests = require("virtualizarr.manifests")
    data = file.read()
    whole = in_memory(file, data)
    left: dict[str, str] = {}
    found: dict[str, Any] = {}
    for path, element in dmrpp.groups_of(dmrpp.root_of(data, where)):
        objections = dict(dmrpp.variables_of(element))
        skipped = [name for name, reason in objections.items() if reason is not None]
        parser = require("virtualizarr.parsers").DMRPPParser(group=f"/{path}", skip_variables=skipped)
        found[path] = parser(f"{PARSED}.dmrpp", whole.registry())._group
        for name, reason in objections.items():
            if name not in found[path].arrays:
                said = reason or "VirtualiZarr's parser does not take it: its type, or no chunks"
                left[f"{path}/{name}".lstrip("/")] = said

    def tree(path: str) -> Any:
        below = {p.rpartition("/")[2]: tree(p) for p in found if p and p.rpartition("/")[0] == path}
        group = found[path]
        return manifests.ManifestGroup(arrays=group.arrays, groups=below, attributes=group.metadata.attributes)

    return _Result(group=tree(""), left=list(left.items()), data=file.url.removesuffix(".dmrpp"))


def _netcdf3(file: OneFile, where: str) -> _Result:
    return _Result(group=require("virtualizarr.parsers").NetCDF3Parser()(PARSED, file.registry()), data=file.url)


def _hdf(file: OneFile, where: str) -> _Result:
    reader = require("obspec_utils.readers").BlockStoreReader(store=file.store, path=file.path)
    external: list[str] = []

    def visit(name: str, link: object) -> None:
        if isinstance(link, h5py.ExternalLink):
            external.append(name)

    with h5py.File(reader) as opened:
        opened.visititems_links(visit)
    if external:
        # libhdf5 would look for what they name in this file itself.
        raise UnsupportedError(f"{where}: links to other files, such as /{external[0]}; refindex scan follows them")
    return _Result(group=require("virtualizarr.parsers").HDFParser()(PARSED, file.registry()), data=file.url)


_PARSERS: dict[str, Callable[[OneFile, str], _Result]] = {
    "tiff": _tiff,
    "grib": _grib,
    "fits": _fits,
    "dmrpp": _dmrpp,
    "netcdf3": _netcdf3,
    "hdf": _hdf,
}
