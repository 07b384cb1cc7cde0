"""All targets, by name."""

from __future__ import annotations

from tests.fuzz.target import Target
from tests.fuzz.targets import (
    archives,
    databases,
    decoding,
    hdf5,
    journals,
    kerchunk,
    netcdf3,
    nodes,
    requests,
    zarr_stores,
)

ALL: dict[str, Target] = {
    target.name: target
    for module in (hdf5, decoding, netcdf3, zarr_stores, nodes, archives, databases, kerchunk, journals, requests)
    for target in module.TARGETS
}
