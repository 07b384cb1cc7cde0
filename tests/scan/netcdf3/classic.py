"""NetCDF classic files made byte by byte, and their comparison with netCDF4-python."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np
import zarr
from oracle import same

import refindex
from refindex import Status

FORMATS = {1: "NETCDF3_CLASSIC", 2: "NETCDF3_64BIT_OFFSET", 5: "NETCDF3_64BIT_DATA"}
CODES = dict(zip(("i1", "S1", "i2", "i4", "f4", "f8", "u1", "u2", "u4", "i8", "u8"), range(1, 12), strict=True))
CLASSIC_TYPES = ("i1", "S1", "i2", "i4", "f4", "f8")
TYPES = {1: CLASSIC_TYPES, 2: CLASSIC_TYPES, 5: tuple(CODES)}


@dataclass(kw_only=True)
class Var:
    """A variable of a hand-made file; ``vsize`` is what the header claims."""

    name: str | bytes
    dims: Sequence[int]
    type: str | int
    begin: int
    vsize: int = 0
    attributes: Sequence[tuple[str | bytes, str | int, bytes]] = ()


@dataclass(kw_only=True)
class Classic:
    """A hand-made header. ``dims`` are ``(name, length)``; ``numrecs`` None writes STREAMING."""

    version: int = 1
    numrecs: int | None = 0
    dims: Sequence[tuple[str | bytes, int]] = ()
    attributes: Sequence[tuple[str | bytes, str | int, bytes]] = ()
    variables: Sequence[Var] = field(default_factory=list)

    def word(self, number: int) -> bytes:
        return struct.pack(">Q" if self.version == 5 else ">I", number)

    def name(self, name: str | bytes) -> bytes:
        raw = name if isinstance(name, bytes) else name.encode()
        return self.word(len(raw)) + padded(raw)

    def code(self, kind: str | int) -> bytes:
        return struct.pack(">I", kind if isinstance(kind, int) else CODES[kind])

    def entries(self, tag: int, parts: Sequence[bytes]) -> bytes:
        return struct.pack(">I", tag if parts else 0) + self.word(len(parts)) + b"".join(parts)

    def attribute_list(self, attributes: Sequence[tuple[str | bytes, str | int, bytes]]) -> bytes:
        def size(kind: str | int) -> int:
            return np.dtype(kind).itemsize if isinstance(kind, str) else 1

        return self.entries(
            12, [self.name(n) + self.code(k) + self.word(len(v) // size(k)) + padded(v) for n, k, v in attributes]
        )

    def variable(self, var: Var) -> bytes:
        return (
            self.name(var.name)
            + self.word(len(var.dims))
            + b"".join(self.word(d) for d in var.dims)
            + self.attribute_list(var.attributes)
            + self.code(var.type)
            + self.word(var.vsize)
            + struct.pack(">I" if self.version == 1 else ">Q", var.begin)
        )

    def header(self) -> bytes:
        numrecs = self.numrecs if self.numrecs is not None else (2**64 - 1 if self.version == 5 else 2**32 - 1)
        return (
            b"CDF"
            + bytes([self.version])
            + self.word(numrecs)
            + self.entries(10, [self.name(n) + self.word(length) for n, length in self.dims])
            + self.attribute_list(self.attributes)
            + self.entries(11, [self.variable(v) for v in self.variables])
        )

    def file(self, *pieces: tuple[int, bytes]) -> bytes:
        """The header and pieces of data at their offsets."""
        out = bytearray(self.header())
        for offset, data in pieces:
            assert offset >= len(self.header()), "the header is longer than the test thinks"
            out += bytes(max(0, offset + len(data) - len(out)))
            out[offset : offset + len(data)] = data
        return bytes(out)

    def write(self, path: Path, *pieces: tuple[int, bytes]) -> Path:
        path.write_bytes(self.file(*pieces))
        return path


def padded(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 4)


def example(version: int = 1) -> Classic:
    """A header with everything in it, its data at 1000."""
    attributes = [("units", "S1", b"K"), ("range", "f8", struct.pack(">2d", -1, 1)), ("flags", "i2", b"\0\1\0\2\0\3")]
    return Classic(
        version=version,
        numrecs=2,
        dims=[("time", 0), ("xyz", 3)],
        attributes=[("title", "S1", b"hello"), ("empty", "i4", b"")],
        variables=[
            Var(name="pos", dims=[1], type="f4", begin=1000, attributes=attributes),
            Var(name="t", dims=[0, 1], type="i2", begin=1012),
            Var(name="u", dims=[0], type="i1", begin=1020),
        ],
    )


def damaged(data: bytes, seed: int) -> bytes:
    """Bits flipped, bytes and lengths replaced or missing, the end cut off."""
    rng = random.Random(seed)
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        at = rng.randrange(len(out))
        match rng.randrange(4):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.randrange(256)
            case 2:
                out[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\0\x0c"])
            case 3:
                del out[at : at + rng.randrange(1, 9)]
                out += b"\0"
    return bytes(out[: rng.randrange(len(out)) + 1] if rng.random() < 0.2 else out)


def opened(path: Path) -> netCDF4.Dataset:
    """A file as netCDF4-python opens it, values as they are stored."""
    file = netCDF4.Dataset(path)
    file.set_auto_maskandscale(False)
    file.set_auto_chartostring(False)
    file.set_always_mask(False)
    return file


def compare(path: Path, *, served: set[str] | None = None) -> refindex.ScanReport:
    """Assert that refindex, through stock zarr-python, serves what netCDF4-python reads: values, names, attributes.

    ``served``: the variables expected, by default all.
    """
    with refindex.open(path) as archive, opened(path) as file:
        assert set(archive.arrays) == (set(file.variables) if served is None else served)
        compare_attributes(file, archive.group.metadata.attributes, {})
        for name, array in archive.arrays.items():
            variable = file.variables[name]
            found = zarr.open_array(archive.store, path=name, mode="r")
            assert array.dims == variable.dimensions, name
            assert not (why := same(variable[...], found[...])), f"{name}: {why}"
            pick = tuple(slice(n // 3, None, 2) for n in variable.shape)
            assert not (why := same(variable[pick], found[pick])), f"{name}{pick}: {why}"
            compare_attributes(variable, array.attributes, dict(array.attribute_types))
        problems = {entry.path.strip("/") for entry in archive.report.problems}
        assert problems == set(file.variables) - set(archive.arrays)
        statuses = {e.path[1:]: e.status for e in archive.report.select(Status.NATIVE, Status.ADAPTED, Status.INLINED)}
        assert set(statuses) == set(archive.arrays)
        return archive.report


def compare_attributes(owner: Any, found: dict[str, Any], types: dict[str, str]) -> None:
    expected = {name: owner.getncattr(name) for name in owner.ncattrs() if name != "_FillValue"}
    assert [name for name in found if name != "_FillValue"] == list(expected)
    for name, value in expected.items():
        if isinstance(value, str):
            assert found[name] == value, name
        else:
            assert np.array_equal(np.asarray(found[name], dtype=np.asarray(value).dtype), value), name
            if types:
                assert types[name] == np.asarray(value).dtype.name, name
