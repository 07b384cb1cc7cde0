"""Tiny HDF5 files, their object headers found, and changes to them that know where metadata lies."""

from __future__ import annotations

import ctypes
import functools
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import h5py
import numpy as np
from h5py import h5d, h5f, h5p, h5s, h5t

from refindex.scan.hdf5 import checksum
from refindex.scan.hdf5.checksum import lookup3
from tests.fuzz.mutation import anywhere, mutate_bytes

PREFIX = 5
"""Bytes before the file: options, and the address of the object header that is looked at."""

VERIFY, RANGES = 1, 2
"""Options: verify checksums; read by ranges, as a remote file is."""

_MARKS = re.compile(rb"\x89HDF|TREE|SNOD|HEAP|GCOL|OHDR|OCHK|FAHD|FADB|EAHD|EAIB|EADB|EASB|BTHD|BTIN|BTLF")

_VERSIONS = {
    "earliest": (h5f.LIBVER_EARLIEST, h5f.LIBVER_V110),
    "v108": (h5f.LIBVER_V18, h5f.LIBVER_V110),
    "v110": (h5f.LIBVER_V110, h5f.LIBVER_V110),
    "latest": (h5f.LIBVER_LATEST, h5f.LIBVER_LATEST),
}


@dataclass(kw_only=True)
class Dataset:
    """How a dataset is written; ``chunks_written``: grid coordinates, None for all."""

    shape: tuple[int, ...]
    chunks: tuple[int, ...] | None = None
    maxima: tuple[int | None, ...] | None = None
    libver: str = "latest"
    deflate: bool = False
    early: bool = False
    sizes: tuple[int, int] = (8, 8)
    user_block: int = 0
    chunks_written: list[tuple[int, ...]] | None = None
    istore_k: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)


def library() -> Any:
    """libhdf5, for what h5py does not wrap; None where it cannot be found."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    mapped = {line.split()[-1] for line in maps.read_text(encoding="utf-8").splitlines() if "/libhdf5" in line}
    names = [path for path in sorted(mapped) if "_hl" not in path]
    return ctypes.CDLL(names[0]) if names else None


def _call(function: str, plist: h5p.PropInstanceID, *values: int) -> None:
    loaded = library()
    if loaded is not None:  # without it, nodes are larger
        called = getattr(loaded, function)
        called.argtypes = [ctypes.c_int64, *[ctypes.c_uint] * len(values)]
        called(plist.id, *values)


def write(spec: Dataset) -> tuple[bytes, int]:
    """A file with the dataset ``d``, and the address of its object header."""
    creation, access, properties = (h5p.create(kind) for kind in (h5p.FILE_CREATE, h5p.FILE_ACCESS, h5p.DATASET_CREATE))
    creation.set_sizes(*spec.sizes)
    creation.set_userblock(spec.user_block)
    if spec.istore_k is not None:
        _call("H5Pset_istore_k", creation, spec.istore_k)
    _call("H5Pset_sym_k", creation, 2, 2)
    access.set_libver_bounds(*_VERSIONS[spec.libver])
    if spec.chunks is not None:
        properties.set_chunk(spec.chunks)
    if spec.deflate:
        properties.set_shuffle()
        properties.set_deflate(1)
    if spec.early:
        properties.set_alloc_time(h5d.ALLOC_TIME_EARLY)
    maxima = tuple(h5s.UNLIMITED if n is None else n for n in spec.maxima or spec.shape)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f.h5"
        with h5py.File(h5f.create(bytes(path), h5f.ACC_TRUNC, creation, access)) as file:
            space = h5s.create_simple(spec.shape, maxima)
            dataset = h5py.Dataset(h5d.create(file.id, b"d", h5t.STD_I16LE, space, properties))
            if spec.chunks_written is None:
                dataset[...] = np.arange(dataset.size, dtype="<i2").reshape(spec.shape)
            for at in spec.chunks_written or ():
                dataset[tuple(slice(i * n, (i + 1) * n) for i, n in zip(at, spec.chunks or (), strict=True))] = 1
            for name, value in spec.attributes.items():
                dataset.attrs[name] = value
            address = int(h5py.h5o.get_info(dataset.id).addr)
        return path.read_bytes(), address + spec.user_block


def packed(data: bytes, address: int, options: int = 0) -> bytes:
    """An input."""
    return bytes((options,)) + address.to_bytes(4, "little") + data


def unpacked(data: bytes) -> tuple[int, int, bytes]:
    """Options, address and file of an input."""
    return data[0] if data else 0, int.from_bytes(data[1:PREFIX], "little"), data[PREFIX:]


def metadata_places(data: bytes | bytearray, rng: Random) -> int:
    """A place in the metadata: near a signature, in the header that is looked at, or anywhere."""
    chosen = rng.random()
    if chosen < 0.1:
        return anywhere(data, rng)
    if chosen < 0.4:
        return PREFIX + int.from_bytes(data[1:PREFIX], "little") + int(rng.random() * 320)
    marks = [match.start() for match in _MARKS.finditer(data)]
    if not marks:
        return anywhere(data, rng)
    mark = marks[int(rng.random() * len(marks))]
    return mark + int(rng.expovariate(1 / 40 if rng.random() < 0.8 else 1 / 400))


class Repairing:
    """Changes HDF5 metadata, and mostly repairs the checksums behind it.

    How long the structures with a checksum are is learnt from sound files, from what is hashed when they are read.
    """

    def __init__(self) -> None:
        self._lengths: dict[bytes, set[int]] = {}
        """By signature."""

    def learn(self, data: bytes, run: Callable[[bytes], Any]) -> None:
        """Read a sound input, its checksums verified, and remember what has one."""
        hashed: list[bytes] = []

        def note(body: bytes) -> int:
            hashed.append(body)
            return lookup3(body)

        with mock.patch.object(checksum, "lookup3", note), mock.patch.object(checksum, "_SIDE_BY_SIDE", 1 << 30):
            run(bytes((data[0] | VERIFY,)) + data[1:])
        for body in hashed:
            self._lengths.setdefault(body[:4], set()).add(len(body) + 4)

    def _marked(self, data: bytes | bytearray) -> Iterator[tuple[int, bytes]]:
        for match in _MARKS.finditer(data):
            if match[0] not in (b"TREE", b"SNOD", b"HEAP", b"GCOL"):
                yield match.start(), bytes(match[0])

    def __call__(self, data: bytes, rng: Random) -> bytes:
        before = {(start, mark): self._length(data, start, mark) for start, mark in self._marked(data)}
        changed = bytearray(mutate_bytes(data, rng, metadata_places, resize=0.05))
        if len(changed) == len(data) and rng.random() < 0.8:
            for (start, mark), length in before.items():
                if (
                    length
                    and changed[start : start + 4] == mark
                    and data[start : start + length] != changed[start : start + length]
                ):
                    body = bytes(changed[start : start + length - 4])
                    changed[start + length - 4 : start + length] = lookup3(body).to_bytes(4, "little")
        return bytes(changed)

    def _length(self, data: bytes, start: int, mark: bytes) -> int:
        """The length of a structure as it is in the input, 0 if its checksum is wrong already."""
        return next((n for n in self._lengths.get(mark, ()) if _is_whole(data, start, n)), 0)


@functools.lru_cache(maxsize=1 << 16)
def _hash(data: bytes) -> int:
    return lookup3(data)


def _is_whole(data: bytes, start: int, length: int) -> bool:
    found = data[start : start + length]
    return len(found) == length and _hash(bytes(found[:-4])) == int.from_bytes(found[-4:], "little")
