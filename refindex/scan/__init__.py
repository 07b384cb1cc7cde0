"""Sources -> manifests, one scanner a format."""

from refindex.scan.many import Progress, ProgressCallback, Scanned, expand, scan_many
from refindex.scan.registry import is_source, scan_source

__all__ = ["Progress", "ProgressCallback", "Scanned", "expand", "is_source", "scan_many", "scan_source"]
