"""The data that is measured. Every function returns what a measurement must find in it."""

from __future__ import annotations

import itertools
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import netCDF4
import numpy as np

import refindex
from refindex.model.dtype import Leaf, numpy_dtype
from refindex.model.encoding import DEFLATE, SHUFFLE, bytes_codec, native_codecs
from refindex.model.packing import Number, Packing
from refindex.model.zarr_v3 import array_document, dumps, group_document
from tests.benchmarks.columns import SOURCES, columns, digest

type Expected = dict[str, int]


def chunked(path: Path, *, side: int, edge: int, libver: str | None, distinct: bool, filtered: bool = True) -> Expected:
    """A dataset ``v0`` of side x side chunks of edge x edge float32, deflated and shuffled unless not ``filtered``.

    Chunks are compressed here and written directly, which takes microseconds each. With ``distinct`` all differ;
    else they are drawn from 64 kinds, which is made faster, and their places and lengths are as irregular.
    """
    random = np.random.default_rng(0)
    kinds = random.permutation(side * side) if distinct else random.integers(64, size=side * side)
    blocks = random.integers(0, 50, size=(int(kinds.max()) + 1, edge, edge)).astype("<f4")
    stored = [zlib.compress(block.view(np.uint8).reshape(-1, 4).T.tobytes(), 1) for block in blocks]
    if not filtered:
        stored = [block.tobytes() for block in blocks]
    filters = {"compression": 1, "shuffle": True} if filtered else {}
    with h5py.File(path, "w", libver=libver) as file:
        dataset = file.create_dataset("v0", shape=(side * edge,) * 2, dtype="<f4", chunks=(edge, edge), **filters)
        for number, kind in enumerate(kinds.tolist()):
            dataset.id.write_direct_chunk((number // side * edge, number % side * edge), stored[kind])
    values = blocks[kinds].reshape(side, side, edge, edge).swapaxes(1, 2)
    return {"chunks": side * side, "crc": zlib.crc32(values.tobytes()), "digest": _digest(path)}


def _digest(path: Path) -> int:
    """The checksum of what libhdf5 says: offset and length of each chunk, in C order."""
    found: list[tuple[tuple[int, ...], int, int]] = []
    with h5py.File(path, "r") as file:
        file["v0"].id.chunk_iter(lambda info: found.append((info.chunk_offset, info.byte_offset, info.size)))
    found.sort()
    return digest(np.array([f[1] for f in found]), np.array([f[2] for f in found]))


def daily(path: Path, *, files: int) -> Expected:
    """A folder of small NetCDF-4 files: 10 variables of 24 chunks each, coordinates and attributes."""
    path.mkdir()
    random = np.random.default_rng(0)
    fields = random.normal(280, 10, size=(10, 24, 16, 32)).astype("f4").round(1)
    for day in range(files):
        with netCDF4.Dataset(path / f"day-{day:04d}.nc", "w") as file:
            file.setncatts({"Conventions": "CF-1.8", "title": "made for a benchmark", "history": f"day {day}"})
            for name, size, units in (
                ("time", None, "hours since 2000-01-01"),
                ("lat", 16, "degrees_north"),
                ("lon", 32, "degrees_east"),
            ):
                file.createDimension(name, size)
                axis = file.createVariable(name, "f8", (name,))
                axis.setncatts({"units": units, "standard_name": name, "axis": name[:1].upper()})
                axis[:] = np.arange(24) + 24 * day if size is None else np.linspace(-60, 60, size)
            for number, field in enumerate(fields):
                variable = file.createVariable(
                    f"v{number}",
                    "f4",
                    ("time", "lat", "lon"),
                    compression="zlib",
                    complevel=1,
                    chunksizes=(1, 16, 32),
                    fill_value=-9999.0,
                )
                variable.setncatts(
                    {"units": "K", "long_name": f"variable {number}", "cell_methods": "time: mean", "valid_min": 0.0}
                )
                variable[:] = np.roll(field, day, axis=0)
    with netCDF4.Dataset(path / "day-0000.nc") as file:
        file.set_auto_mask(False)
        return {"chunks": files * 240, "crc": zlib.crc32(file["v0"][0].tobytes())}


def small(path: Path, *, files: int) -> Expected:
    """A folder of small NetCDF-4 files: 3 variables of 4 chunks each, a time coordinate, attributes."""
    path.mkdir()
    field = np.random.default_rng(0).normal(280, 10, size=(4, 20, 20)).astype("f4").round(1)
    for number in range(files):
        with h5py.File(path / f"{number:05d}.nc", "w") as file:
            file.attrs.update({"Conventions": "CF-1.8", "history": f"file {number}"})
            axis = file.create_dataset("time", data=np.arange(4.0) + 4 * number)
            axis.attrs["units"] = "days since 2000-01-01"
            axis.make_scale("time")
            for n in range(3):
                data = file.create_dataset(f"v{n}", data=field, chunks=(1, 20, 20), compression="gzip", shuffle=True)
                data.attrs.update({"units": "K", "long_name": f"variable {n}"})
                data.dims[0].attach_scale(axis)
    return {"chunks": files * 12}


def manifest(references: int) -> refindex.Manifest:
    """The manifest of :func:`columns`: an array ``v0`` of one chunk a reference, and its time coordinate."""
    shape = (1, 16, 32)
    filters = (refindex.Filter(id=SHUFFLE, values=(4,)), refindex.Filter(id=DEFLATE, values=(1,)))
    encoding = refindex.Encoding(type=Leaf("<f4"), shape=shape, filters=filters)
    steps, per_step = references // 64, 64
    codecs = native_codecs(encoding, np.dtype("<f4"))
    if codecs is None:
        raise ValueError("shuffle and deflate have no Zarr codecs: the model has changed")
    times = np.arange(steps, dtype="<f8")
    array = refindex.Array(
        path="v0",
        document=dumps(
            array_document(
                grid=refindex.ChunkGrid.regular((steps, 16 * per_step, 32), shape),
                data_type="float32",
                codecs=codecs,
                fill_value=0.0,
                dimension_names=("time", "lat", "lon"),
                attributes={"units": "K"},
            )
        ),
        encodings=(encoding,),
        chunks=refindex.ChunkTable.from_columns(**columns(references)),
    )
    time = refindex.Array(
        path="time",
        document=dumps(
            array_document(
                grid=refindex.ChunkGrid.regular((steps,), (steps,)),
                data_type="float64",
                codecs=[bytes_codec(times.dtype)],
                fill_value=0.0,
                dimension_names=("time",),
                attributes={"units": "hours since 2000-01-01"},
            )
        ),
        chunks=refindex.ChunkTable.inline([(0, times.tobytes())]),
    )
    sources = tuple(
        refindex.Source(url=f"file:///archive/day-{n:04d}.nc", size=1 << 40, mtime=1_000_000 + n)
        for n in range(SOURCES)
    )
    return refindex.Manifest(
        groups={"": refindex.Node(path="", document=dumps(group_document({})))},
        arrays={"time": time, "v0": array},
        sources=sources,
    )


def archives(path: Path, *, references: int) -> Expected:
    """A folder with the same manifest in both storages: ``archive.refindex`` and ``archive.sqlite``."""
    path.mkdir()
    made = manifest(references)
    made.save(path / "archive.refindex")
    made.save(path / "archive.sqlite")
    wanted = references * 3 // 4
    return {
        "references": references,
        "wanted": wanted,
        "offset": int(columns(references)["offset"][wanted]),
    }


def stacked(path: Path, *, chunks: int, filtered: bool) -> Expected:
    """A dataset ``v0`` of ``chunks`` fields of 64 x 64 float32, each of them a chunk."""
    values = np.random.default_rng(0).normal(0, 0.1, size=(chunks, 64, 64)).cumsum(axis=2).round(2).astype("<f4")
    filters = {"compression": 4, "shuffle": True} if filtered else {}
    with h5py.File(path, "w") as file:
        file.create_dataset("v0", data=values, chunks=(1, 64, 64), **filters)
    return {"crc": zlib.crc32(values.tobytes()), "ok": 1}


def cube(path: Path, *, megabytes: int, deflated: bool) -> Expected:
    """A dataset ``v0`` of smooth float32 fields of 512 x 512; deflated and shuffled in chunks of 8 x 256 x 256."""
    random = np.random.default_rng(0)
    block = (random.normal(0, 0.1, size=(8, 512, 512)).cumsum(axis=2) + 280).round(2).astype("<f4")
    filters = {"chunks": (8, 256, 256), "compression": 4, "shuffle": True} if deflated else {}
    crc = 0
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("v0", shape=(max(8, megabytes // 8 * 8), 512, 512), dtype="<f4", **filters)
        for at in range(0, dataset.shape[0], 8):
            values = np.roll(block, at, axis=2)
            dataset[at : at + 8] = values
            crc = zlib.crc32(values.tobytes(), crc)
    return {"crc": crc, "ok": 1}


def adapted(path: Path, *, megabytes: int) -> Expected:
    """A folder with one array stored in several encodings: an archive of each. The same four chunks lie everywhere."""
    path.mkdir()
    steps, edge = max(4, megabytes // 4 * 4), (4, 256, 256)
    random = np.random.default_rng(0)
    values = (random.normal(0, 1, size=(4, 512, 512)).cumsum(axis=2) * 5).round().astype("<i2") * 2
    filters = (refindex.Filter(id=SHUFFLE, values=(4,)), refindex.Filter(id=DEFLATE, values=(4,)))
    native = refindex.Encoding(type=Leaf("<f4"), shape=edge, filters=filters)
    packing = Packing(dtype="<f4", scale=Number("<f4", 2.0))
    encodings = {
        "native": native,
        "swapped": replace(native, type=Leaf(">f4")),
        "cropped": replace(native, shape=(5, 257, 257), start=(1, 1, 1)),
        "packed": replace(native, type=Leaf("<i2"), filters=filters[1:], packing=packing),
        "other": replace(native, filters=filters[1:]),
    }
    for name, encoding in encodings.items():
        pieces = []
        for y, x in itertools.product((0, 256), (0, 256)):
            piece = values[:, y : y + 256, x : x + 256]
            if name == "cropped":
                piece = np.pad(piece, 1)[:-1, :-1, :-1]
            raw = (piece // 2 if name == "packed" else piece).astype(np.dtype(numpy_dtype(encoding.type))).tobytes()
            if len(encoding.filters) > 1:
                raw = np.frombuffer(raw, "u1").reshape(-1, 4).T.tobytes()
            pieces.append(zlib.compress(raw, 4))
        (path / f"{name}.bin").write_bytes(b"".join(pieces))
        lengths = np.tile([len(piece) for piece in pieces], steps // 4)
        offsets = np.tile(np.cumsum(lengths[:4]) - lengths[:4], steps // 4)
        _archive(path / name, (steps, 512, 512), native, encoding, offsets, lengths)
    crc = 0
    for _ in range(steps // 4):
        crc = zlib.crc32(values.astype("<f4").tobytes(), crc)
    return {"crc": crc, "ok": 1}


def _archive(
    path: Path,
    shape: tuple[int, ...],
    declared: refindex.Encoding,
    stored: refindex.Encoding,
    offsets: np.ndarray,
    lengths: np.ndarray,
) -> None:
    """``PATH.refindex``: an array ``v0`` whose chunks, of one encoding, lie in ``PATH.bin``."""
    source = path.with_suffix(".bin")
    status = source.stat()
    document = array_document(
        grid=refindex.ChunkGrid.regular(shape, declared.shape),
        data_type="float32",
        codecs=native_codecs(declared, np.dtype("<f4")) or [],
        fill_value=0.0,
        dimension_names=("time", "y", "x"),
        attributes={},
    )
    refindex.Manifest(
        groups={"": refindex.Node(path="", document=dumps(group_document({})))},
        arrays={
            "v0": refindex.Array(
                path="v0",
                document=dumps(document),
                encodings=(stored,),
                chunks=refindex.ChunkTable.from_columns(
                    chunk=np.arange(len(offsets)), source=0, offset=offsets, length=lengths
                ),
            )
        },
        sources=(
            refindex.Source(url=source.absolute().as_uri(), size=status.st_size, mtime=status.st_mtime_ns // 1000),
        ),
    ).save(path.with_suffix(".refindex"))


def remote(path: Path, *, chunks: int, files: int = 1) -> Expected:
    """A folder of files ``0.h5``, ``1.h5``, ... that hold ``chunks`` chunks of a dataset ``v0`` in all."""
    path.mkdir()
    random = np.random.default_rng(0)
    edge = (1, 64, 64) if files == 1 else (1, 180, 360)
    for number in range(files):
        with h5py.File(path / f"{number}.h5", "w") as file:
            shape = (chunks // files, *edge[1:])
            dataset = file.create_dataset("v0", shape, "<f4", chunks=edge, compression=1, shuffle=True)
            for at in range(shape[0]):
                dataset[at] = random.integers(0, 500, size=edge[1:])
    return {"chunks": chunks, "files": files, "ok": 1}
