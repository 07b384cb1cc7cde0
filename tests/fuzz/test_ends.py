"""References that no file has room for, in both storages: refused before memory is taken for them."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

import refindex
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import EMPTY_ROOT, Array, Manifest, Source
from tests.fuzz.mutation import written
from tests.fuzz.targets.zarr_stores import _V3


@pytest.mark.parametrize("storage", ["a.refindex", "a.sqlite"])
@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 2**63 - 1), (2**63 - 1, 2**63 - 1), (2**63 - 10, 32), (0, 1 << 40), (900, 17 << 20), (990, 32)],
)
def test_a_reference_beyond_its_file(tmp_path: Path, storage: str, offset: int, length: int) -> None:
    source = tmp_path / "f.bin"
    source.write_bytes(bytes(1000))
    status = source.stat()
    table = ChunkTable.from_columns(chunk=[0, 1], source=0, offset=[offset, 0], length=[length, 32], encoding=-1)
    Manifest(
        groups={"": EMPTY_ROOT},
        arrays={"a": Array(path="a", document=written(_V3).decode(), chunks=table)},
        sources=(Source(url=f"file://{source}", size=1000, mtime=status.st_mtime_ns // 1000),),
    ).save(tmp_path / storage)
    with refindex.open(tmp_path / storage) as archive:
        assert (archive.group["a"][:2, 4:] == 0).all()
        tracemalloc.start()
        try:
            for key in ((slice(None), slice(None)), (0, 0), (slice(0, 2), slice(1, 3))):
                with pytest.raises((refindex.ManifestError, refindex.SourceError, refindex.DecodeError)):
                    archive.group["a"][key]
            with pytest.raises((refindex.ManifestError, refindex.SourceError, refindex.DecodeError)):
                archive.to_xarray()["a"][0, 0].load()
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()
