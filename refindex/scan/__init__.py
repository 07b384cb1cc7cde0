"""Sources -> manifests, one scanner a format."""

from refindex.scan.isolation import Isolation
from refindex.scan.many import Progress, ProgressCallback, Scanned, expand, named, scan_many
from refindex.scan.parallel import Job, ScanStats, scan_alone
from refindex.scan.registry import is_source, scan_source
from refindex.scan.spool import ScannedFile, Spool

__all__ = [
    "Isolation",
    "Job",
    "Progress",
    "ProgressCallback",
    "ScanStats",
    "Scanned",
    "ScannedFile",
    "Spool",
    "expand",
    "is_source",
    "named",
    "scan_alone",
    "scan_many",
    "scan_source",
]
