"""refindex: HDF5 and NetCDF archives as Zarr v3, by reference.

``scan`` reads where every chunk lies into a ``Manifest``; ``Manifest.save`` stores it as Parquet or SQLite; ``open``
serves it to zarr, xarray and fsspec.
"""

from importlib.metadata import version as _version

from refindex.api import Archive, open, scan  # noqa: A004
from refindex.errors import (
    DecodeError,
    ExistsError,
    FormatError,
    ManifestError,
    NotFoundError,
    RefindexError,
    SourceError,
    StaleSourceError,
    UnsupportedError,
)
from refindex.model.chunks import ChunkTable
from refindex.model.encoding import Encoding, Filter
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Array, Manifest, Node, ReportEntry, ScanReport, Source, Status
from refindex.scan import Progress

__version__ = _version("refindex")

__all__ = [
    "Archive",
    "Array",
    "ChunkGrid",
    "ChunkTable",
    "DecodeError",
    "Encoding",
    "ExistsError",
    "Filter",
    "FormatError",
    "Manifest",
    "ManifestError",
    "Node",
    "NotFoundError",
    "Progress",
    "RefindexError",
    "ReportEntry",
    "ScanReport",
    "Source",
    "SourceError",
    "StaleSourceError",
    "Status",
    "UnsupportedError",
    "open",
    "scan",
]
