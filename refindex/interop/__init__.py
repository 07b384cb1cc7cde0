"""Exchange with other tools: kerchunk, Icechunk, VirtualiZarr, and plain Zarr.

Each module knows one of them; what they share is what an export can say (:mod:`~refindex.interop.prepare`) and how
documents and references become a manifest (:mod:`~refindex.interop.assemble`).
"""
