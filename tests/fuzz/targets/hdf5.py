"""The readers of HDF5's metadata that do not call libhdf5."""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np

from refindex.access.gather import Gatherer, LocalGatherer, RangeGatherer
from refindex.errors import UnsupportedError
from refindex.scan.hdf5 import filters, plain, plain_attributes
from refindex.scan.hdf5.chunk_index import ChunkColumns, read_chunks
from refindex.scan.hdf5.index import FileIndex
from refindex.scan.hdf5.layout_message import layout_message
from refindex.scan.hdf5.object_header import LAYOUT_MESSAGE, Message, read_messages
from refindex.scan.hdf5.superblock import Superblock, read_superblock
from refindex.scan.hdf5.symbol_table import GroupChecks
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import FindingError, Target
from tests.fuzz.targets.hdf5_files import RANGES, VERIFY, Dataset, Repairing, packed, unpacked, write

_FORMAT = ("refindex.scan.hdf5.fields", "refindex.access.gather", "refindex.scan.hdf5.checksum")
_HEADERS = ("refindex.scan.hdf5.superblock", "refindex.scan.hdf5.object_header", "refindex.scan.hdf5.layout_message")


def _gatherer(options: int, data: bytes) -> Gatherer:
    if not options & RANGES:
        return LocalGatherer(data, name="f")

    def read(offsets: Sequence[int], lengths: Sequence[int]) -> list[bytes]:
        return [data[offset : offset + length] for offset, length in zip(offsets, lengths, strict=True)]

    return RangeGatherer(read, name="f", size=len(data))


def _opened(data: bytes) -> tuple[int, int, Gatherer, Superblock]:
    options, address, file = unpacked(data)
    gatherer = _gatherer(options, file)
    return options, address, gatherer, read_superblock(gatherer, verify=bool(options & VERIFY))


def _hdf5_target(
    name: str, run: Callable[[bytes], Any], seeds: Callable[[], list[bytes]], modules: tuple[str, ...]
) -> Target:
    change = Repairing()

    @functools.cache
    def made() -> tuple[bytes, ...]:
        found = seeds()
        for data in found:
            change.learn(data, run)
        return tuple(found)

    return Target(name=name, run=run, seeds=lambda: list(made()), mutate=change, modules=modules)


# Headers


def run_headers(data: bytes) -> Any:
    options, address, gatherer, superblock = _opened(data)
    verify = bool(options & VERIFY)
    messages = read_messages(gatherer, superblock.space, address, verify=verify)
    for message in messages:
        if message.kind == LAYOUT_MESSAGE and not message.shared:
            layout_message(message.body, space=superblock.space, address=message.address)
    return messages


def header_seeds() -> list[bytes]:
    attributes = {f"a{n}": np.arange(n + 1) for n in range(3)}
    found = []
    for libver in ("earliest", "v108", "v110", "latest"):
        data, address = write(Dataset(shape=(6,), chunks=(3,), libver=libver, attributes=attributes))
        found += [packed(data, address), packed(data, address, VERIFY | RANGES)]
    found.append(packed(*write(Dataset(shape=(6,), libver="earliest", sizes=(4, 4), user_block=512))))
    found.append(packed(*write(Dataset(shape=(6,), chunks=(2,), libver="v108", istore_k=3)), VERIFY))
    return found


# Groups


def run_groups(data: bytes) -> Any:
    _, address, gatherer, superblock = _opened(data)
    plain_file = plain.PlainFile.of(unpacked(data)[2], superblock) if data[0] & VERIFY else None
    checks = GroupChecks(gatherer, superblock, plain=plain_file)
    checks.check(address)
    return True


def group_seeds() -> list[bytes]:
    found = []
    for libver in ("earliest", "v110", "latest"):
        for count in (1, 9):
            data, root = _group_file(libver, count)
            found += [packed(data, root), packed(data, root, RANGES | VERIFY)]
    return found


def _group_file(libver: str, count: int) -> tuple[bytes, int]:
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.h5"
        version: Any = libver
        with h5py.File(path, "w", libver=version) as file:
            for n in range(count):
                file.create_group(f"group {n}")
            file["soft"] = h5py.SoftLink("/group 0")
            root = int(h5py.h5o.get_info(file.id).addr)
        return path.read_bytes(), root


# Chunk indexes


def run_index(data: bytes) -> Any:
    options, address, gatherer, superblock = _opened(data)
    verify = bool(options & VERIFY)
    layout = extent = None
    filtered = False
    for message in read_messages(gatherer, superblock.space, address, verify=verify):
        if message.kind == LAYOUT_MESSAGE:
            layout = layout_message(message.body, space=superblock.space, address=message.address)
        elif message.kind == plain.DATASPACE:
            extent = plain.read_extent(message.body)
            if extent is None and superblock.space.length_size == 4:
                extent = _narrow_extent(message.body)
        filtered = filtered or message.kind == plain.PIPELINE
    if layout is None or extent is None:
        raise UnsupportedError("no dataset")  # libhdf5 would refuse it
    maxima = tuple(None if n >= 2**64 - 1 else n for n in extent.maxima)
    columns = read_chunks(
        gatherer,
        superblock,
        layout,
        shape=extent.shape,
        max_shape=maxima,
        filtered=filtered,
        verify=verify,
    )
    if layout.chunking is not None:
        check_columns(columns, extent.shape, layout.chunking.dims, gatherer.size)
    return columns


def _narrow_extent(body: bytes) -> plain.Extent | None:
    """A dataspace of a file with lengths of 4 bytes, which the plain reader leaves to libhdf5."""
    if len(body) < 8 or body[0] != 1 or len(body) < 8 + 4 * body[1] * (1 + (body[2] & 1)):
        return None
    lengths = struct.unpack_from(f"<{body[1] * (1 + (body[2] & 1))}I", body, 8)
    shape, maxima = lengths[: body[1]], lengths[body[1] :] if body[2] & 1 else lengths[: body[1]]
    return plain.Extent(shape=shape, maxima=tuple(2**64 - 1 if n == 2**32 - 1 else n for n in maxima))


def check_columns(columns: ChunkColumns, shape: Sequence[int], chunks: Sequence[int], size: int) -> None:
    """Whatever the file says: chunks in the grid, in the file, in order and each once."""
    rows = list(zip(columns.scaled.tolist(), columns.offset.tolist(), columns.length.tolist(), strict=True))
    grid = [-(-n // step) for n, step in zip(shape, chunks, strict=True)]
    before: list[int] = []
    for scaled, offset, length in rows:
        if not all(0 <= at < n for at, n in zip(scaled, grid, strict=True)):
            raise FindingError(f"chunk {scaled} in a grid of {grid}")
        if offset < 0 or length < 0 or offset + length > size:
            raise FindingError(f"{length} bytes at {offset} in a file of {size}")
        if before and scaled <= before:
            raise FindingError(f"chunk {scaled} behind {before}")
        before = scaled
    if len(rows) > math.prod(grid):
        raise FindingError("more chunks than the grid has")


def _some(count: int, step: int) -> list[tuple[int, ...]]:
    return [(n,) for n in range(0, count, step)]


INDEXES: dict[str, list[Dataset]] = {
    "btree_v1": [
        Dataset(shape=(5, 6), chunks=(2, 2), libver="earliest", istore_k=2),
        Dataset(shape=(14,), chunks=(1,), libver="earliest", deflate=True, istore_k=1),
        Dataset(shape=(9,), maxima=(None,), chunks=(2,), libver="v108", istore_k=2, user_block=512),
        Dataset(shape=(9,), chunks=(2,), libver="earliest", sizes=(4, 4), istore_k=2),
    ],
    "single": [
        Dataset(shape=(5, 6), chunks=(5, 6)),
        Dataset(shape=(5, 6), chunks=(5, 6), deflate=True),
        Dataset(shape=(30,), chunks=(30,), deflate=True, libver="v110", user_block=512),
    ],
    "implicit": [
        Dataset(shape=(5, 6), chunks=(2, 2), early=True),
        Dataset(shape=(5, 6), chunks=(2, 2), maxima=(9, 8), early=True, user_block=512),
    ],
    "fixed_array": [
        Dataset(shape=(5, 6), chunks=(2, 2)),
        Dataset(shape=(9,), maxima=(14,), chunks=(2,), deflate=True),
        Dataset(shape=(2100,), chunks=(1,), chunks_written=[(3,), (1030,), (2099,)]),
        Dataset(shape=(9,), chunks=(2,), deflate=True, libver="v110"),
    ],
    "extensible_array": [
        Dataset(shape=(9,), maxima=(None,), chunks=(2,)),
        Dataset(shape=(60,), maxima=(None,), chunks=(1,), deflate=True, chunks_written=_some(60, 11)),
        Dataset(shape=(3, 9), maxima=(5, None), chunks=(2, 2), deflate=True, libver="v110"),
        Dataset(shape=(4000,), maxima=(None,), chunks=(1,), chunks_written=[(0,), (100,), (3999,)]),
    ],
    "btree_v2": [
        Dataset(shape=(5, 6), maxima=(None, None), chunks=(2, 2)),
        Dataset(shape=(9, 5), maxima=(None, None), chunks=(1, 1), deflate=True),
        Dataset(shape=(14, 13), maxima=(None, None), chunks=(1, 1)),
    ],
}


def index_seeds(name: str) -> list[bytes]:
    found = []
    for spec in INDEXES[name]:
        data, address = write(spec)
        found += [packed(data, address), packed(data, address, VERIFY), packed(data, address, RANGES)]
    return found


# The plain reader: headers of objects, attributes, leaves, heaps


def run_plain(data: bytes) -> Any:
    options, address, file = unpacked(data)
    superblock = read_superblock(LocalGatherer(file, name="f"))
    found = plain.PlainFile.of(file, superblock)
    if found is None:
        raise UnsupportedError("not plain")
    header = found.header(address)
    if header is None:
        raise UnsupportedError("not plain")
    known = plain_attributes.PlainAttributes()
    messages = plain_attributes.by_name(header, known) or {}
    known.are_sound(messages)
    known.found_sound(messages)
    ndim = len(header.extent.shape) if header.extent is not None else options & 3
    for message, value in messages.values():
        plain_attributes.heap_texts(message, found)
        plain_attributes.fixed_text(message)
        plain_attributes.integers(message)
        for reference in plain_attributes.scale_addresses(message, ndim, found) or ():
            if reference is not None:
                found.messages(reference)
        if value is not None:
            value.copy()
    layout = header.bodies.get(plain.LAYOUT)
    if layout is not None and header.extent is not None:
        leaf = found.leaf(layout, ndim, 2 * superblock.indexed_storage_k)
        if leaf is not None and not (len(leaf.scaled) == len(leaf.offset) == len(leaf.length) == len(leaf.mask)):
            raise FindingError("columns of different lengths")
        if leaf is not None:
            check_leaf(leaf, len(file))
    return header


def check_leaf(leaf: plain.Leaf, size: int) -> None:
    """Chunks that end behind the file do not pass what the scanner checks next."""
    FileIndex.check_range(SimpleNamespace(size=size), leaf.offset, leaf.length)  # type: ignore[arg-type]
    if any(a + n > size for a, n in zip(leaf.offset.tolist(), leaf.length.tolist(), strict=True)):
        raise FindingError("a chunk behind the end of the file is let through")


def plain_seeds() -> list[bytes]:
    attributes: dict[str, Any] = {
        "units": "K",
        "names": np.array(["a", "bc"], dtype=h5py.string_dtype()),
        "fixed": np.bytes_("text"),
        "scale": np.float32(0.5),
        "list": np.arange(3, dtype="<i4"),
        "nan": np.array([np.nan, 1.0]),
        "be": np.array([1, 2], dtype=">i2"),
    }
    found = []
    for libver in ("earliest", "v108", "latest"):
        spec = Dataset(shape=(5, 6), chunks=(2, 2), libver=libver, istore_k=2, attributes=attributes)
        found.append(packed(*write(spec)))
        found.append(packed(*write(Dataset(shape=(4,), libver=libver, attributes=attributes))))
    return [*found, *_scale_seeds()]


def _scale_seeds() -> list[bytes]:
    import tempfile
    from pathlib import Path

    found = []
    with tempfile.TemporaryDirectory() as folder:
        for libver in ("earliest", "v110"):
            path = Path(folder) / "s.h5"
            version: Any = libver
            with h5py.File(path, "w", libver=version) as file:
                file["x"] = np.arange(3)
                file["x"].make_scale("x")
                file["v"] = np.zeros((3, 3), "<i2")
                file["v"].dims[1].attach_scale(file["x"])
                addresses = [int(h5py.h5o.get_info(file[name].id).addr) for name in ("x", "v")]
            found += [packed(path.read_bytes(), address, 2) for address in addresses]
    return found


# The filter pipeline message


def run_pipeline(data: bytes) -> Any:
    message = Message(kind=filters.PIPELINE_MESSAGE, flags=0, body=data, address=0)
    found = filters._from_header([message])
    for mask in (0, 1, 2**32 - 1):
        filters.applied(found, mask)
    return found


def pipeline_seeds() -> list[bytes]:
    def one(version: int, *applied: tuple[int, bytes, tuple[int, ...]]) -> bytes:
        parts = [bytes((version, len(applied))) + (bytes(6) if version == 1 else b"")]
        for number, name, values in applied:
            named = b"" if version == 2 and number < 256 else struct.pack("<H", len(name))
            parts.append(
                struct.pack("<H", number) + named + struct.pack("<HH", 0, len(values)) + (name if named else b"")
            )
            parts.append(struct.pack(f"<{len(values)}I", *values))
            if version == 1 and len(values) % 2:
                parts.append(bytes(4))
        return b"".join(parts)

    usual = ((2, b"shuffle\0", (4,)), (1, b"deflate\0", (6,)), (3, b"fletcher", ()))
    many = ((5, b"nbit\0\0\0\0", tuple(range(40))), (32015, b"zstd\0\0\0\0", (3, 0)))
    return [one(version, *applied) for version in (1, 2) for applied in (usual, many)]


TARGETS = [
    _hdf5_target("hdf5-headers", run_headers, header_seeds, (*_HEADERS, *_FORMAT)),
    _hdf5_target("hdf5-groups", run_groups, group_seeds, ("refindex.scan.hdf5.symbol_table", *_HEADERS[:2])),
    *(
        _hdf5_target(
            f"hdf5-{name.replace('_', '-')}",
            run_index,
            functools.partial(index_seeds, name),
            tuple(
                f"refindex.scan.hdf5.chunk_index.{part}"
                for part in (name, "columns", "elements")[: 3 if "array" in name else 2]
            ),
        )
        for name in INDEXES
    ),
    _hdf5_target(
        "hdf5-plain", run_plain, plain_seeds, ("refindex.scan.hdf5.plain", "refindex.scan.hdf5.plain_attributes")
    ),
    Target(
        name="hdf5-pipeline",
        run=run_pipeline,
        seeds=pipeline_seeds,
        mutate=mutate_bytes,
        modules=("refindex.scan.hdf5.filters",),
    ),
]
