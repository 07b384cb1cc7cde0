"""Scan one NetCDF classic file: CDF-1, CDF-2 (64-bit offset) or CDF-5 (64-bit data)."""

from refindex.scan.netcdf3.scanner import scan_netcdf3

__all__ = ["scan_netcdf3"]
