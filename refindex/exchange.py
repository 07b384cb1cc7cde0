"""Archives to and from other tools: kerchunk, Icechunk, VirtualiZarr, and plain Zarr."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

from refindex.access import urls
from refindex.access.options import filesystem
from refindex.access.remembered import remember
from refindex.access.trust import Allow
from refindex.archive import Archive
from refindex.errors import FormatError, NotFoundError
from refindex.interop.icechunk_reading import from_icechunk
from refindex.interop.icechunk_writing import export_icechunk
from refindex.interop.kerchunk_reading import from_kerchunk
from refindex.interop.kerchunk_writing import export_kerchunk
from refindex.interop.parsers import from_parser
from refindex.interop.virtualizarr import from_virtualizarr
from refindex.interop.zarr_copy import export_zarr
from refindex.model.manifest import Manifest
from refindex.serve.opening import Opening

type To = Literal["kerchunk", "kerchunk-parquet", "icechunk", "zarr"]
type Format = Literal["auto", "kerchunk", "icechunk", "virtualizarr", "tiff", "grib", "fits", "dmrpp", "netcdf3", "hdf"]

_STARTS: dict[bytes, Format] = {
    b"II*\0": "tiff", b"MM\0*": "tiff", b"II+\0": "tiff", b"MM\0+": "tiff", b"GRIB": "grib", b"SIMP": "fits",
}  # fmt: skip

__all__ = ["export", "from_icechunk", "from_kerchunk", "from_virtualizarr", "import_references"]


def export(
    archive: Archive | Manifest | str | os.PathLike[str],
    dest: Any,
    *,
    to: To = "kerchunk",
    variables: Collection[str] | None = None,
    zarr_format: Literal[2, 3] = 3,
    materialize: bool = False,
    overwrite: bool = False,
    chunks: Mapping[str, int] | None = None,
    shards: Mapping[str, int] | None = None,
    version: int | None = None,
    allow: Allow = None,
    storage_options: Mapping[str, Any] | None = None,
    progress: bool | Callable[[int, int], None] = False,
) -> None:
    """Write an archive for other tools: as references that they read without refindex, or as a copy of its values.

    What the output cannot say is refused: chunks that are adapted (stored otherwise than their array declares), grids
    of unequal chunks, codecs, types or attributes that have no spelling. The error names all of it, and nothing is
    written. Chunks that do not exist stay so.

    Parameters
    ----------
    archive:
        An open archive, a manifest, or the path or URL of an archive or a source.
    dest:
        Path or URL of the output; for Icechunk a local path, an ``s3://`` URL, or an ``icechunk.Storage``. Nothing is
        there before all of it is.
    to:
        ``"kerchunk"``: JSON; ``"kerchunk-parquet"``: a folder of Parquet files, as fsspec's ``reference`` filesystem
        reads both; ``"icechunk"``: a new repository with one commit; ``"zarr"``: a plain Zarr v3 store, whose values
        are copied.
    variables:
        Names or paths of the arrays wanted; the coordinates of their dimensions come along. All if None.
    zarr_format:
        The version of Zarr that kerchunk's references are of.
    materialize:
        Whether what references cannot say is decoded and written: for kerchunk into ``DEST.data``, which must stay
        where it is; for Icechunk as chunks of its own. Grids of unequal chunks become regular for kerchunk.
    overwrite:
        Whether an output that is there is replaced. Repositories are replaced in local folders only.
    chunks, shards:
        For ``"zarr"``: lengths by the names of dimensions, -1 for all of it; by default chunks as they are, and no
        shards.
    version:
        Snapshot of an archive that is given by its path; the newest if None.
    allow:
        As for :func:`open`, for an archive that is given by its path.
    storage_options:
        Options for fsspec, for the archive, its sources and the output.
    progress:
        For ``"zarr"``: True for a bar, or a function that is called with the bytes of values that were copied, and of
        all.

    Raises
    ------
    UnsupportedError
        If the output cannot say something; all of it is named. If a package that it takes is not installed.
    ExistsError
        If something is there and ``overwrite`` is not set.
    NotFoundError
        If there is no such archive or array.
    ValueError
        If an option does not go with the output, or a dimension is not there.
    SourceError
        If sources cannot be read, or the output cannot be written.
    """
    if to not in get_args(To.__value__):
        raise ValueError(f"to must be one of {', '.join(get_args(To.__value__))}; got {to!r}")
    if to != "zarr" and (chunks or shards):
        raise ValueError('chunks and shards go with to="zarr" only: references are to chunks as they are')
    if to in ("zarr", "icechunk") and zarr_format != 3:
        raise ValueError(f"{to} is of Zarr v3; zarr_format={zarr_format} goes with kerchunk only")
    if to != "icechunk":
        dest = os.fspath(dest)
    shared: dict[str, Any] = {
        "variables": variables,
        "overwrite": overwrite,
        "storage_options": storage_options,
    }
    with _opened(archive, version, storage_options, allow) as opened:
        match to:
            case "kerchunk" | "kerchunk-parquet":
                layout: Literal["json", "parquet"] = "json" if to == "kerchunk" else "parquet"
                export_kerchunk(
                    opened.store, dest, layout=layout, zarr_format=zarr_format, materialize=materialize, **shared
                )
            case "icechunk":
                export_icechunk(opened.store, dest, materialize=materialize, **shared)
            case "zarr":
                with _watching(progress) as report:
                    export_zarr(opened.store, dest, chunks=chunks, shards=shards, progress=report, **shared)
        if to != "zarr" and isinstance(dest, str | os.PathLike):
            # So that they can be taken over again.
            named = (source.url for source in opened.sources)
            remember(urls.absolute(dest).rstrip("/"), named, within=opened.store.archive.allowed)


@contextmanager
def _opened(
    archive: Archive | Manifest | str | os.PathLike[str],
    version: int | None,
    storage_options: Mapping[str, Any] | None,
    allow: Allow = None,
) -> Iterator[Archive]:
    if isinstance(archive, Archive):
        yield archive
        return
    options = dict(storage_options or {})
    if isinstance(archive, Manifest):
        opening = Opening(manifest=archive, storage_options=options)
    else:
        opening = Opening(url=urls.absolute(archive).rstrip("/"), version=version, storage_options=options, allow=allow)
    with closing(Archive(opening)) as opened:
        yield opened


def _watching(progress: bool | Callable[[int, int], None]) -> Any:
    if callable(progress):
        return nullcontext(progress)
    return _bar() if progress else nullcontext(None)


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("copying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def import_references(
    source: Any,
    *,
    format: Format = "auto",  # noqa: A002 -- the option's plain name
    base: str | os.PathLike[str] | None = None,
    allow: Allow = None,
    absent_partitions: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> Manifest:
    """Take over another tool's references, or a file of another format, as a manifest; :meth:`Manifest.save` writes it.

    The files that it refers to are looked at: their sizes, and what identifies them, are recorded as they are now.

    Parameters
    ----------
    source:
        What :func:`from_kerchunk`, :func:`from_icechunk` or :func:`from_virtualizarr` takes; or the path, ``http(s)://``
        or ``s3://`` URL of a file of another format.
    format:
        Which of them; ``"auto"``: files, mappings, and folders with ``.zmetadata`` are kerchunk's, other folders are
        Icechunk's, local TIFF, GRIB, FITS and DMR++ files and other objects are what they are. Files of other formats
        are read by VirtualiZarr's parsers: ``"tiff"`` takes the package virtual-tiff, ``"grib"`` gribberish (and reads
        the whole file), ``"fits"`` astropy; ``"dmrpp"`` (``NAME.dmrpp`` beside the file ``NAME``), ``"netcdf3"`` and
        ``"hdf"`` VirtualiZarr alone.
    base, absent_partitions:
        For :func:`from_kerchunk`.
    allow:
        Folders and files, by path or URL, that references may name besides what lies below the folder that holds them,
        and ``base``; ``"*"`` for everything. What is in memory may name anything.
    storage_options:
        Options for fsspec.

    Raises
    ------
    FormatError
        If it is none of these, or cannot be understood as a whole; what it cannot serve of arrays is in the report.
    NotAllowedError
        If it refers to files that it may not read.
    UnsupportedError
        If a package that it takes is not installed, or a parser does not take the file.
    NotFoundError, SourceError
        If it, or a file that it refers to, cannot be read.
    """
    chosen = _recognised(source, storage_options) if format == "auto" else format
    match chosen:
        case "kerchunk":
            return from_kerchunk(
                source, base=base, allow=allow, absent_partitions=absent_partitions, storage_options=storage_options
            )
        case "icechunk":
            return from_icechunk(source, allow=allow, storage_options=storage_options)
        case "virtualizarr":
            return from_virtualizarr(source, allow=allow, storage_options=storage_options)
        case "tiff" | "grib" | "fits" | "dmrpp" | "netcdf3" | "hdf":
            return from_parser(source, format=chosen, storage_options=storage_options)
    raise ValueError(f"format must be one of {', '.join(get_args(Format.__value__))}; got {format!r}")


def _by_content(path: Path) -> Format:
    """What a local file is: one that a parser reads, or else JSON."""
    if path.suffix == ".dmrpp":
        return "dmrpp"
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return "kerchunk"  # which tells what is wrong
    if start == b"\x89HDF" or start[:3] == b"CDF":
        raise FormatError(f"{path}: no references, but a file that can be scanned: refindex scan reads it")
    return _STARTS.get(start, "kerchunk")


def _recognised(source: Any, storage_options: Mapping[str, Any] | None) -> Format:
    kind = type(source)
    if isinstance(source, str | os.PathLike):
        url = urls.absolute(source).rstrip("/")
        if urls.is_local(url):
            path = urls.local_path(url)
            if not path.exists():
                raise NotFoundError(f"{urls.display(url)}: no such file or folder")
            if path.is_dir():
                return "kerchunk" if (path / ".zmetadata").is_file() else "icechunk"
            return _by_content(path)
        fs, there = filesystem(url, storage_options)
        return "icechunk" if fs.exists(f"{there}/repo") or fs.exists(f"{there}/snapshots") else "kerchunk"
    if kind.__module__.partition(".")[0] == "icechunk":
        return "icechunk"
    if kind.__module__.partition(".")[0] in ("virtualizarr", "xarray"):
        return "virtualizarr"
    if isinstance(source, Mapping):
        return "kerchunk"
    raise FormatError(f"{kind.__name__}: neither references of kerchunk, nor of Icechunk, nor of VirtualiZarr")
