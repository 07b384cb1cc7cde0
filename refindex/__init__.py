"""refindex: HDF5 and NetCDF archives as Zarr v3, by reference.

``scan`` reads where every chunk lies into a ``Manifest``; ``Manifest.save`` stores it as Parquet or SQLite; ``open``
serves it to zarr, xarray and fsspec.
"""

from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from refindex.api import open, scan  # noqa: A004
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

if TYPE_CHECKING:
    from refindex.archive import Archive

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


def __getattr__(name: str) -> Any:
    # What opens archives needs xarray and zarr, which scanning does not.
    if name == "Archive":
        from refindex.archive import Archive

        return Archive
    raise AttributeError(f"module 'refindex' has no attribute {name!r}")
