"""refindex: HDF5 and NetCDF archives as Zarr v3, by reference.

``scan`` reads where every chunk lies into a ``Manifest``; ``Manifest.save`` stores it as Parquet or SQLite; ``open``
serves it to zarr, xarray and fsspec.
"""

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from refindex.api import (
    append,
    diff,
    log,
    open,  # noqa: A004
    optimize,
    publish,
    relocate,
    remove,
    restore,
    scan,
    vacuum,
    verify,
)
from refindex.difference import ArrayDifference, Difference
from refindex.errors import (
    ConflictError,
    DecodeError,
    ExistsError,
    FormatError,
    JoinError,
    ManifestError,
    NotAllowedError,
    NotFoundError,
    RefindexError,
    SourceError,
    StaleSourceError,
    UnsupportedError,
)
from refindex.growth import Growth
from refindex.model.change import Commit
from refindex.model.chunks import ChunkTable
from refindex.model.encoding import Encoding, Filter
from refindex.model.grid import ChunkGrid
from refindex.model.manifest import Array, Manifest, Node, Placement, ReportEntry, ScanReport, Source, Status
from refindex.relocation import Relocation
from refindex.scan import Isolation, Progress, ScanStats
from refindex.storage import Removed
from refindex.verification import Problem, Verification, VerificationInterrupted

if TYPE_CHECKING:
    from refindex.archive import Archive
    from refindex.exchange import export, from_icechunk, from_kerchunk, from_virtualizarr, import_references
    from refindex.optimization import Optimized, OptimizedArray, Rewriting
    from refindex.publication import Published
    from refindex.serve.explain import Cost, Explanation
    from refindex.serve.lazy import LazyArray

__version__ = _version("refindex")

__all__ = [
    "Archive",
    "Array",
    "ArrayDifference",
    "ChunkGrid",
    "ChunkTable",
    "Commit",
    "ConflictError",
    "Cost",
    "DecodeError",
    "Difference",
    "Encoding",
    "ExistsError",
    "Explanation",
    "Filter",
    "FormatError",
    "Growth",
    "Isolation",
    "JoinError",
    "LazyArray",
    "Manifest",
    "ManifestError",
    "Node",
    "NotAllowedError",
    "NotFoundError",
    "Optimized",
    "OptimizedArray",
    "Placement",
    "Problem",
    "Progress",
    "Published",
    "RefindexError",
    "Relocation",
    "Removed",
    "ReportEntry",
    "Rewriting",
    "ScanReport",
    "ScanStats",
    "Source",
    "SourceError",
    "StaleSourceError",
    "Status",
    "UnsupportedError",
    "Verification",
    "VerificationInterrupted",
    "append",
    "diff",
    "export",
    "from_icechunk",
    "from_kerchunk",
    "from_virtualizarr",
    "import_references",
    "log",
    "open",
    "optimize",
    "publish",
    "relocate",
    "remove",
    "restore",
    "scan",
    "vacuum",
    "verify",
]


def __getattr__(name: str) -> Any:
    # What opens archives needs xarray and zarr, which scanning does not.
    module = {
        "Archive": "refindex.archive",
        "Cost": "refindex.serve.explain",
        "Explanation": "refindex.serve.explain",
        "LazyArray": "refindex.serve.lazy",
        "Optimized": "refindex.optimization",
        "OptimizedArray": "refindex.optimization",
        "Published": "refindex.publication",
        "Rewriting": "refindex.optimization",
        "export": "refindex.exchange",
        "from_icechunk": "refindex.exchange",
        "from_kerchunk": "refindex.exchange",
        "from_virtualizarr": "refindex.exchange",
        "import_references": "refindex.exchange",
    }.get(name)
    if module is not None:
        return getattr(import_module(module), name)
    raise AttributeError(f"module 'refindex' has no attribute {name!r}")
