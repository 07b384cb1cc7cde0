"""Whatever goes wrong in a selection raises from the very read, names where, and leaves nothing running."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crafted import Craft

import refindex
from refindex.access.files import SourcePool
from refindex.serve import reading as reading_module
from refindex.serve.codec_pipeline import open_group
from refindex.serve.opening import Opening
from refindex.serve.selection import SelectionReader
from refindex.serve.zarr_store import RefindexStore

SHAPE, EDGES = (64, 96), (16, 24)


def craft(folder: Path, filters: str = "shuffle+deflate+fletcher32", sources: int = 2) -> Craft:
    values = np.random.default_rng(0).integers(0, 1000, size=SHAPE).astype("<i4")
    return Craft(folder, values, EDGES, filters=filters, sources=sources, fill=-1)


def damage(made: Craft, chunk: int, change: Callable[[bytearray, int, int], None]) -> Path:
    """Change the bytes around a chunk behind the back of the modification time."""
    table = made.manifest.arrays["a"].chunks
    row = int(np.flatnonzero(table.chunk == chunk)[0])
    path = Path(made.manifest.sources[int(table.source[row])].url.removeprefix("file://"))
    status = path.stat()
    data = bytearray(path.read_bytes())
    change(data, int(table.offset[row]), int(table.length[row]))
    path.write_bytes(bytes(data))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    return path


def flip(data: bytearray, offset: int, length: int) -> None:
    data[offset + length // 2] ^= 0x10


def cut(data: bytearray, offset: int, length: int) -> None:
    del data[offset + length // 2 :]


@pytest.fixture(params=["one thread", "threads"])
def threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "threads":
        monkeypatch.setattr(reading_module, "_SMALL", 0)
        monkeypatch.setattr(reading_module, "_WORTH_THREADS", 0)
    return str(request.param)


def read(made: Craft, selection: Any = ..., **options: Any) -> Any:
    store = RefindexStore(Opening(manifest=made.manifest, **options))
    try:
        return open_group(store)["a"][selection]
    finally:
        store.keys.resolver.close()


@pytest.mark.parametrize("filters", ["shuffle+deflate+fletcher32", "fletcher32", "deflate"])
@pytest.mark.parametrize("selection", [..., (slice(20, 30), slice(30, 40)), (21, 31)])
def test_a_flipped_byte(tmp_path: Path, filters: str, selection: Any, threads: str) -> None:
    made = craft(tmp_path, filters)
    path = damage(made, 5, flip)
    with pytest.raises(refindex.DecodeError, match=rf"/a/c/1/1: \d+ bytes at \d+ of {path}: ") as caught:
        read(made, selection)
    assert "scan it again" in str(caught.value)
    assert np.array_equal(read(made, slice(32, None)), made.values[32:])


@pytest.mark.parametrize("filters", ["shuffle+deflate+fletcher32", "none"])
@pytest.mark.parametrize("selection", [..., (slice(20, 30), slice(30, 40)), (21, 31)])
def test_a_truncated_source(tmp_path: Path, filters: str, selection: Any, threads: str) -> None:
    made = craft(tmp_path, filters, sources=1)
    path = damage(made, 5, cut)
    with pytest.raises(
        refindex.StaleSourceError, match=f"{path} has changed since it was scanned: size was .*c/1/1|others"
    ):
        read(made, selection)
    with pytest.raises(refindex.SourceError, match=rf"{path}: expected \d+ bytes at \d+, got \d+.*/a/c/") as caught:
        read(made, selection, stale="ignore")
    assert not isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("selection", [..., (21, 31)])
def test_a_missing_source(tmp_path: Path, selection: Any, threads: str) -> None:
    made = craft(tmp_path)
    path = damage(made, 5, flip)
    path.unlink()
    with pytest.raises(refindex.SourceError, match=rf"{path}: no such file .*for /a/c/") as caught:
        read(made, selection)
    assert not isinstance(caught.value, FileNotFoundError)


def test_a_stale_source(tmp_path: Path, threads: str) -> None:
    made = craft(tmp_path)
    path = damage(made, 5, lambda *_: None)
    os.utime(path, ns=(1, 1))
    with pytest.raises(refindex.StaleSourceError, match=f"{path} has changed since it was scanned: modified"):
        read(made)
    with pytest.warns(UserWarning, match="has changed since it was scanned"):
        assert np.array_equal(read(made, stale="warn"), made.values)


@pytest.mark.parametrize("filters", ["none", "shuffle", "deflate"])
def test_a_chunk_of_another_size(tmp_path: Path, filters: str, threads: str) -> None:
    made = craft(tmp_path, filters)
    array = made.manifest.arrays["a"]
    object.__setattr__(array.chunks, "length", array.chunks.length - (array.chunks.chunk == 5) * 4)
    for selection in (..., (slice(20, 30), slice(30, 40))):
        with pytest.raises(refindex.DecodeError, match=r"/a/c/1/1: .*(decodes to|truncated)"):
            read(made, selection)


def test_a_bomb_takes_no_memory(tmp_path: Path) -> None:
    import tracemalloc
    import zlib

    bomb = zlib.compress(bytes(1 << 28), 9)
    made = craft(tmp_path, "deflate", sources=1)
    path = tmp_path / "source-0.bin"
    path.write_bytes(bomb)
    table = made.manifest.arrays["a"].chunks
    object.__setattr__(table, "offset", np.zeros(len(table), dtype=np.int64))
    object.__setattr__(table, "length", np.full(len(table), len(bomb), dtype=np.int64))
    tracemalloc.start()
    with pytest.raises(refindex.DecodeError, match="longer than the 1536 bytes"):
        read(made, stale="ignore")
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


def test_a_damaged_manifest(tmp_path: Path) -> None:
    for column, number in (("source", 7), ("encoding", 9)):
        made = craft(tmp_path)
        table = made.manifest.arrays["a"].chunks
        object.__setattr__(table, column, np.full_like(getattr(table, column), number))
        with pytest.raises(refindex.ManifestError, match="which the manifest does not have"):
            read(made)


def test_a_failure_stops_the_other_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "_SMALL", 0)
    monkeypatch.setattr(reading_module, "_WORTH_THREADS", 0)
    from refindex.access import ranges

    monkeypatch.setattr(SelectionReader, "local", ranges.Merging(gap=0, limit=1))
    monkeypatch.setattr(reading_module, "_BATCHED", 0)
    made = craft(tmp_path, sources=1)
    reads: list[int] = []
    read_into = SourcePool.read_into

    def failing(self: SourcePool, source: int, offset: int, buffers: Any) -> None:
        reads.append(offset)
        if len(reads) == 3:
            raise refindex.SourceError("made to fail")
        read_into(self, source, offset, buffers)

    monkeypatch.setattr(SourcePool, "read_into", failing)
    with pytest.raises(refindex.SourceError, match=r"made to fail \(for /a/c/"):
        read(made)
    assert len(reads) <= 3 + threading.active_count()


def test_a_file_that_is_not_found_is_never_a_missing_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = craft(tmp_path)

    def lost(*_: Any) -> None:
        raise FileNotFoundError("gone")

    for name in ("read_into", "read_each"):
        monkeypatch.setattr(SourcePool, name, lost)
    with pytest.raises(refindex.SourceError, match="gone"):
        read(made)
