"""Archives as Zarr v3: a zarr store, an fsspec filesystem, an xarray engine."""
