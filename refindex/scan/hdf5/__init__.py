"""Scan one HDF5 or NetCDF-4 file."""

from refindex.scan.hdf5.known import Known
from refindex.scan.hdf5.scanner import SIGNATURE, scan_hdf5

__all__ = ["SIGNATURE", "Known", "scan_hdf5"]
