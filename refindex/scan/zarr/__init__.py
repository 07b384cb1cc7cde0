"""Zarr stores, versions 2 and 3, in folders and zip files -> manifests."""

from refindex.scan.zarr.folder import is_local_folder, is_store, stores_among
from refindex.scan.zarr.listing import MARKERS
from refindex.scan.zarr.scanner import scan_folder, scan_zip
from refindex.scan.zarr.zipped import SIGNATURES as ZIP_SIGNATURES

__all__ = ["MARKERS", "ZIP_SIGNATURES", "is_local_folder", "is_store", "scan_folder", "scan_zip", "stores_among"]
