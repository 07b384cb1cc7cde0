"""icechunk: references that VirtualiZarr found, committed to a repository."""

from __future__ import annotations

import zlib
from pathlib import Path

import icechunk
import zarr
from obspec_utils.registry import ObjectStoreRegistry
from obstore.store import LocalStore
from virtualizarr import open_virtual_dataset
from virtualizarr.parsers import HDFParser

from tests.benchmarks.work import Expected, Found, Measured


def read(data: Path, expected: Expected) -> Measured:
    stored = data.with_name(f"{data.stem}.icechunk")
    prefix = f"{data.parent.as_uri()}/"
    access = {prefix: icechunk.Credentials.LocalFileSystemAccess()}
    storage = icechunk.local_filesystem_storage(str(stored))
    if not stored.exists():
        registry = ObjectStoreRegistry({"file://": LocalStore()})
        config = icechunk.RepositoryConfig.default()
        store = icechunk.local_filesystem_store(str(data.parent))
        config.set_virtual_chunk_container(icechunk.VirtualChunkContainer(prefix, store))
        made = icechunk.Repository.create(storage, config, authorize_virtual_chunk_access=access)
        session = made.writable_session("main")
        found = open_virtual_dataset(data.as_uri(), registry=registry, parser=HDFParser(), loadable_variables=[])
        found.vz.to_icechunk(session.store)
        session.commit("references")
    repository = icechunk.Repository.open(storage, authorize_virtual_chunk_access=access)

    def run(out: Path) -> Found:
        store = repository.readonly_session("main").store
        values = zarr.open_group(store, mode="r")["v0"][...]
        return lambda: zlib.crc32(values.tobytes()), "crc"

    return run
