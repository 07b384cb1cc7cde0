"""Files written by libhdf5 whose chunks say where they belong, and both ways to gather bytes."""

from __future__ import annotations

import ctypes
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5d, h5f, h5p, h5s, h5t

from refindex.access.gather import Gatherer, LocalGatherer, RangeGatherer
from refindex.scan.hdf5.chunk_index import ChunkColumns, read_chunks
from refindex.scan.hdf5.object_header import read_layout
from refindex.scan.hdf5.superblock import read_superblock

LIBVER = {
    "earliest": h5f.LIBVER_EARLIEST,
    "v108": h5f.LIBVER_V18,
    "v110": h5f.LIBVER_V110,
    "latest": h5f.LIBVER_LATEST,
}
FILTERS = ("shuffle", "deflate", "fletcher32")


@dataclass(kw_only=True)
class Dataset:
    """How to write one dataset. ``chunks_written`` lists grid coordinates, None for all of them.

    ``masks`` maps grid coordinates to a filter mask; these chunks are written as they are on disk.
    ``sizes``: bytes of addresses and lengths. ``resized``: extent the dataset gets at last.
    """

    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    max_shape: tuple[int | None, ...] | None = None
    libver: str = "latest"
    filters: tuple[str, ...] = ()
    user_block: int = 0
    early: bool = False
    raw_edges: bool = False
    chunks_written: Sequence[tuple[int, ...]] | None = None
    masks: dict[tuple[int, ...], int] = field(default_factory=dict)
    sizes: tuple[int, int] = (8, 8)
    istore_k: int | None = None
    resized: tuple[int, ...] | None = None

    @property
    def grid(self) -> tuple[int, ...]:
        shape = self.resized or self.shape
        return tuple(-(-size // step) for size, step in zip(shape, self.chunks, strict=True))

    @property
    def chunk_nbytes(self) -> int:
        return 8 * math.prod(self.chunks)

    def expected(self) -> set[tuple[int, ...]]:
        """Coordinates of the chunks that must be stored."""
        every = set(product(*map(range, self.grid)))
        if self.chunks_written is None or self.early:
            return every
        return every & set(self.chunks_written)


def label(scaled: Sequence[int]) -> int:
    """What every element of a chunk holds: its grid coordinates, 20 bits each, plus 1."""
    value = 0
    for coordinate in scaled:
        value = value << 20 | coordinate
    return value + 1


def encode(values: np.ndarray, filters: Sequence[str], mask: int) -> bytes:
    """A chunk as it is stored; the mask's bits skip filters. Fletcher32 must be skipped or absent."""
    data = values.tobytes()
    for bit, name in enumerate(filters):
        if mask >> bit & 1:
            continue
        if name == "shuffle":
            data = np.frombuffer(data, np.uint8).reshape(-1, 8).T.tobytes()
        elif name == "deflate":
            data = zlib.compress(data)
        else:
            raise NotImplementedError(name)
    return data


def decode(data: bytes, filters: Sequence[str], mask: int) -> np.ndarray:
    """The elements of a stored chunk, by the filters that its mask leaves."""
    for bit, name in reversed(list(enumerate(filters))):
        if mask >> bit & 1:
            continue
        if name == "fletcher32":
            data = data[:-4]
        elif name == "deflate":
            data = zlib.decompress(data)
        else:
            data = np.frombuffer(data, np.uint8).reshape(8, -1).T.tobytes()
    return np.frombuffer(data, "<i8")


def _call(function: str, plist: h5p.PropInstanceID, value: int) -> None:
    """Call a property function that h5py does not wrap, in the library that h5py has loaded."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libhdf5" in line}
    library = next((path for path in sorted(mapped) if "_hl" not in path), None)
    if library is None:
        pytest.skip(f"libhdf5 is linked statically here: {function} cannot be called")
    pointer = getattr(ctypes.CDLL(library), function)
    pointer.argtypes = [ctypes.c_int64, ctypes.c_uint]
    if pointer(plist.id, value) < 0:
        raise RuntimeError(f"{function} failed")


def _write(path: Path, spec: Dataset) -> int:
    """Write the dataset "d" and return its object header's absolute address."""
    fcpl, fapl, dcpl = (h5p.create(kind) for kind in (h5p.FILE_CREATE, h5p.FILE_ACCESS, h5p.DATASET_CREATE))
    fcpl.set_userblock(spec.user_block)
    fcpl.set_sizes(*spec.sizes)
    if spec.istore_k is not None:
        _call("H5Pset_istore_k", fcpl, spec.istore_k)
    fapl.set_libver_bounds(LIBVER[spec.libver], LIBVER["latest" if spec.libver == "latest" else "v110"])
    dcpl.set_chunk(spec.chunks)
    for name in spec.filters:
        {
            "shuffle": dcpl.set_shuffle,
            "fletcher32": dcpl.set_fletcher32,
            "deflate": lambda: dcpl.set_deflate(1),
        }[name]()
    if spec.early:
        dcpl.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    if spec.raw_edges:
        _call("H5Pset_chunk_opts", dcpl, 0x0002)  # H5D_CHUNK_DONT_FILTER_PARTIAL_CHUNKS
    maxima = spec.shape if spec.max_shape is None else spec.max_shape
    space = h5s.create_simple(spec.shape, tuple(h5s.UNLIMITED if size is None else size for size in maxima))
    with h5py.File(h5f.create(bytes(path), h5f.ACC_TRUNC, fcpl, fapl)) as file:
        dataset = h5py.Dataset(h5d.create(file.id, b"d", h5t.STD_I64LE, space, dcpl))
        grid = [range(-(-size // step)) for size, step in zip(spec.shape, spec.chunks, strict=True)]
        if spec.chunks_written is None and not spec.masks:
            axes = np.ix_(*(np.arange(n) // step for n, step in zip(spec.shape, spec.chunks, strict=True)))
            values = np.zeros((1,) * len(axes), dtype=np.int64)
            for axis in axes:
                values = values << 20 | axis
            dataset[...] = values + 1
        else:
            for scaled in product(*grid) if spec.chunks_written is None else spec.chunks_written:
                _write_chunk(dataset, scaled, spec)
        if spec.resized is not None:
            dataset.resize(spec.resized)
        address = h5py.h5o.get_info(dataset.id).addr
    return int(address) + spec.user_block


def _write_chunk(dataset: h5py.Dataset, scaled: tuple[int, ...], spec: Dataset) -> None:
    start = tuple(at * step for at, step in zip(scaled, spec.chunks, strict=True))
    if scaled in spec.masks:
        values = np.full(spec.chunks, label(scaled), dtype="<i8")
        mask = spec.masks[scaled]
        dataset.id.write_direct_chunk(start, encode(values, spec.filters, mask), mask)
    else:
        dataset[tuple(slice(at, at + step) for at, step in zip(start, spec.chunks, strict=True))] = label(scaled)


@dataclass(frozen=True, kw_only=True)
class Written:
    """A file with one dataset, and what can be said about the dataset without reading its index."""

    name: str
    data: bytes
    address: int
    spec: Dataset

    def stored(self, columns: ChunkColumns) -> dict[tuple[int, ...], int]:
        """For every row the label in the chunk's own bytes, decoded as the row says."""
        found = {}
        for scaled, offset, length, mask in zip(
            columns.scaled.tolist(),
            columns.offset.tolist(),
            columns.length.tolist(),
            columns.filter_mask.tolist(),
            strict=True,
        ):
            values = decode(self.data[offset : offset + length], self.spec.filters, mask)
            found[tuple(scaled)] = int(values[0])
        return found

    def labels(self) -> dict[tuple[int, ...], int]:
        """What :meth:`stored` must return: early allocated chunks nobody wrote hold the fill value 0."""
        written = self.spec.chunks_written
        return {scaled: label(scaled) if written is None or scaled in written else 0 for scaled in self.spec.expected()}


@pytest.fixture(scope="session")
def write(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Written]:
    """``write(**options of Dataset) -> Written``."""
    path = tmp_path_factory.mktemp("hdf5") / "written.h5"

    def build(**options: object) -> Written:
        spec = Dataset(**options)
        address = _write(path, spec)
        return Written(name=path.name, data=path.read_bytes(), address=address, spec=spec)

    return build


def _local(data: bytes, name: str) -> Gatherer:
    return LocalGatherer(data, name=name)


def _remote(data: bytes, name: str) -> Gatherer:
    def read_ranges(offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        stops = [offset + length for offset, length in zip(offsets, lengths, strict=True)]
        assert all(stop <= start for stop, start in zip(stops, offsets[1:], strict=False)), "overlapping reads"
        return [data[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True)]

    return RangeGatherer(read_ranges, name=name, size=len(data))


@pytest.fixture(scope="session", params=[_local, _remote], ids=["local", "ranges"])
def gather(request: pytest.FixtureRequest) -> Callable[[bytes, str], Gatherer]:
    """``gather(data, name)``: a gatherer over those bytes, of both kinds in turn."""
    return request.param


@pytest.fixture(scope="session")
def read(gather: Callable[[bytes, str], Gatherer]) -> Callable[..., ChunkColumns]:
    """``read(written, verify=True, data=None)``: superblock, layout and chunk table of a file.

    ``data`` replaces the bytes of the file. What libhdf5 would say about the dataset stays as written.
    """

    def run(written: Written, *, verify: bool = True, data: bytes | None = None) -> ChunkColumns:
        spec = written.spec
        gatherer = gather(written.data if data is None else data, written.name)
        superblock = read_superblock(gatherer, verify=verify)
        return read_chunks(
            gatherer,
            superblock,
            read_layout(gatherer, superblock, written.address, verify=verify),
            shape=spec.resized or spec.shape,
            max_shape=spec.max_shape or spec.shape,
            filtered=bool(spec.filters),
            chunk_nbytes=spec.chunk_nbytes,
            verify=verify,
        )

    return run
