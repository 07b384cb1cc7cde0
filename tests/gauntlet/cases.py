"""The gauntlet: small HDF5 files, each with one feature or one pairing of features.

Every case writes one file (and, where the feature needs them, further ones beside it). Payloads number the elements, so
that a chunk read from the wrong place cannot look right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
from h5py import h5d, h5p, h5s, h5t

type Writer = Callable[[Path], None]

SHAPE = (45, 31)


def numbers(dtype: Any, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Values that tell where they belong."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    base = np.arange(count)
    if dtype.kind == "b":
        return (base * 7 % 3 == 0).reshape(shape)
    if dtype.kind in "iu":
        return (base % 120).astype(dtype).reshape(shape)
    if dtype.kind == "c":
        return (base + 1j * (base % 97)).astype(dtype).reshape(shape)
    if dtype.kind == "S":
        return np.array([f"{i % 1000}".encode() for i in base], dtype=dtype).reshape(shape)
    if dtype.kind == "V" and dtype.names is None:
        return np.frombuffer(np.random.default_rng(0).bytes(count * dtype.itemsize), dtype).reshape(shape)
    return (base % 2000 / 4).astype(dtype).reshape(shape)


def dataset(dtype: Any, values: np.ndarray | None = None, **options: Any) -> Writer:
    """A file with one dataset ``d``."""

    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            data = numbers(dtype) if values is None else values
            file.create_dataset("d", data=data, dtype=dtype, **options)

    return write


FILTERS: dict[str, dict[str, Any]] = {
    "deflate": {"compression": "gzip", "compression_opts": 6},
    "deflate level 0": {"compression": "gzip", "compression_opts": 0},
    "fletcher32": {"fletcher32": True},
    "lzf": {"compression": "lzf"},
    "szip nn": {"compression": "szip", "compression_opts": ("nn", 8)},
    "szip ec": {"compression": "szip", "compression_opts": ("ec", 16)},
    "zstd": dict(hdf5plugin.Zstd(clevel=5)),
    "bzip2": dict(hdf5plugin.BZip2()),
    "lz4": dict(hdf5plugin.LZ4()),
    "bitshuffle": dict(hdf5plugin.Bitshuffle(cname="none")),
    "bitshuffle lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    "blosc lz4": dict(hdf5plugin.Blosc(cname="lz4")),
    "blosc zlib": dict(hdf5plugin.Blosc(cname="zlib")),
    "blosc zstd bitshuffle": dict(hdf5plugin.Blosc(cname="zstd", shuffle=hdf5plugin.Blosc.BITSHUFFLE)),
    "blosc blosclz": dict(hdf5plugin.Blosc(cname="blosclz", shuffle=hdf5plugin.Blosc.NOSHUFFLE)),
    "blosc2 zstd": dict(hdf5plugin.Blosc2(cname="zstd")),
    "blosc2 lz4": dict(hdf5plugin.Blosc2(cname="lz4")),
}
LOSSY: dict[str, dict[str, Any]] = {
    "zfp rate": dict(hdf5plugin.Zfp(rate=16)),
    "zfp precision": dict(hdf5plugin.Zfp(precision=20)),
    "zfp accuracy": dict(hdf5plugin.Zfp(accuracy=0.001)),
    "zfp reversible": dict(hdf5plugin.Zfp(reversible=True)),
    "sz3": dict(hdf5plugin.SZ3(absolute=0.01)),
}


def filters() -> Iterator[tuple[str, Writer]]:
    for name, options in FILTERS.items():
        for shuffle in (False, True):
            label = f"shuffle + {name}" if shuffle else name
            yield f"filter: {label}", dataset("<f4", chunks=(16, 31), shuffle=shuffle, **options)
    for name, options in LOSSY.items():
        yield f"filter: {name}", dataset("<f4", chunks=(16, 31), **options)
    yield "filter: shuffle", dataset("<i8", chunks=(16, 31), shuffle=True)
    yield (
        "filter: shuffle, chunk bytes and all three",
        dataset("<i2", chunks=(7, 5), shuffle=True, compression="gzip", fletcher32=True),
    )
    for dtype in ("<i4", ">i2", "<u8"):
        yield f"filter: scaleoffset {dtype}", dataset(dtype, chunks=(16, 31), scaleoffset=0)
    yield "filter: scaleoffset float", dataset("<f4", chunks=(16, 31), scaleoffset=2)
    yield "filter: scaleoffset with fill value", dataset("<i4", chunks=(16, 31), scaleoffset=0, fillvalue=-7)
    yield "filter: nbit", _nbit
    yield "filter: mask on some chunks", _masks
    yield "filter: fletcher32 + deflate by hand", _by_hand((h5p_fletcher, h5p_deflate))
    yield "filter: deflate + shuffle", _by_hand((h5p_deflate, h5p_shuffle))
    yield "filter: deflate twice", _by_hand((h5p_deflate, h5p_deflate))


def h5p_deflate(plist: h5p.PropDCID) -> None:
    plist.set_deflate(4)


def h5p_shuffle(plist: h5p.PropDCID) -> None:
    plist.set_shuffle()


def h5p_fletcher(plist: h5p.PropDCID) -> None:
    plist.set_fletcher32()


def _by_hand(steps: tuple[Callable[[h5p.PropDCID], None], ...]) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            plist = h5p.create(h5p.DATASET_CREATE)
            plist.set_chunk((16, 31))
            for step in steps:
                step(plist)
            made = h5d.create(file.id, b"d", h5t.IEEE_F32LE, h5s.create_simple(SHAPE), plist)
            made.write(h5s.ALL, h5s.ALL, numbers("<f4"))

    return write


def _nbit(path: Path) -> None:
    with h5py.File(path, "w") as file:
        kind = h5t.STD_I32LE.copy()
        kind.set_precision(17)
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_chunk((16, 31))
        plist.set_filter(5, 0, ())
        made = h5d.create(file.id, b"d", kind, h5s.create_simple(SHAPE), plist)
        made.write(h5s.ALL, h5s.ALL, numbers("<i4"))


def _masks(path: Path) -> None:
    import zlib

    values = numbers("<i4", (40, 30))
    with h5py.File(path, "w") as file:
        made = file.create_dataset("d", data=values, chunks=(20, 15), shuffle=True, compression="gzip")
        made.id.write_direct_chunk((0, 0), values[:20, :15].tobytes(), filter_mask=3)
        made.id.write_direct_chunk((20, 15), zlib.compress(values[20:, 15:].tobytes()), filter_mask=1)


STORAGE: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chunked": {"chunks": (16, 31)},
    "compressed": {"chunks": (16, 31), "shuffle": True, "compression": "gzip"},
}
NUMBERS = [
    *("|i1", "|u1", "<i2", ">i2", "<u2", ">u2", "<i4", ">i4", "<u4", ">u4", "<i8", ">i8", "<u8", ">u8"),
    "<f2",
    ">f2",
    "<f4",
    ">f4",
    "<f8",
    ">f8",
    "<c8",
    ">c8",
    "<c16",
    ">c16",
]
PADDED = np.dtype({"names": ["b", "a"], "formats": ["<f8", ">i2"], "offsets": [8, 2], "itemsize": 24})
NESTED = np.dtype([("x", [("y", "<f4"), ("z", "S3")]), ("c", "<c8"), ("t", "?"), ("a", "<i2", (2, 3))])


def types() -> Iterator[tuple[str, Writer]]:
    for storage, options in STORAGE.items():
        for code in NUMBERS:
            yield f"type: {code}, {storage}", dataset(code, **options)
        yield f"type: boolean, {storage}", dataset("?", **options)
        yield f"type: opaque, {storage}", dataset("V5", **options)
        yield f"type: fixed string, {storage}", dataset("S6", **options)
        yield f"type: string padded with blanks, {storage}", _padded(h5t.STR_SPACEPAD, options)
        yield f"type: string ended by NUL, {storage}", _padded(h5t.STR_NULLTERM, options)
        yield (
            f"type: enumeration, {storage}",
            dataset(h5py.enum_dtype({"A": 0, "B": 119}, "<i2"), numbers("<i2"), **options),
        )
        yield f"type: packed compound, {storage}", dataset(None, _records([("a", "<i4"), ("b", "S3")]), **options)
        yield f"type: padded compound, {storage}", dataset(PADDED, _records(PADDED), **options)
        yield f"type: nested compound with an array, {storage}", dataset(NESTED, _records(NESTED), **options)
        yield (
            f"type: date, {storage}",
            dataset(
                h5py.opaque_dtype("<M8[s]"),
                np.arange(int(np.prod(SHAPE))).astype("<M8[s]").astype(h5py.opaque_dtype("<M8[s]")).reshape(SHAPE),
                **options,
            ),
        )
        yield f"type: array, {storage}", _arrays(options)
        yield f"type: long double, {storage}", dataset(np.longdouble, numbers("<f8").astype(np.longdouble), **options)
    yield "type: strings of variable length", _strings(h5py.string_dtype())
    yield "type: strings of variable length, ASCII", _strings(h5py.string_dtype("ascii"))
    yield "type: sequences of variable length", _sequences
    yield "type: object references", _references
    yield "type: region references", _regions
    yield "type: compound with strings of variable length", _mixed
    yield "type: bitfield", _plain(h5t.STD_B16LE, "<u2")
    yield "type: float of VAX", _plain(h5t.VAX_F32, "<f4") if hasattr(h5t, "VAX_F32") else dataset("<f4")
    yield "type: integer of 12 bits", _plain(_bits(12), "<i2")
    yield "type: float of 24 bits", _plain(_small_float(), "<f4")


def _records(dtype: Any) -> np.ndarray:
    out = np.zeros(SHAPE, dtype)
    for name in out.dtype.names or ():
        kind = out.dtype[name]
        if kind.names is None and kind.subdtype is None:
            out[name] = numbers(kind)
        elif kind.subdtype is not None:
            out[name] = numbers(kind.base, (*SHAPE, *kind.shape))
    return out


def _padded(padding: int, options: dict[str, Any]) -> Writer:
    def write(path: Path) -> None:
        kind = h5t.C_S1.copy()
        kind.set_size(6)
        kind.set_strpad(padding)
        plist = h5p.create(h5p.DATASET_CREATE)
        if "chunks" in options:
            plist.set_chunk(options["chunks"])
        if "compression" in options:
            plist.set_deflate(4)
        raw = np.array([b"ab\0xyz", b"ab    ", b" a b  ", b"abcdef", b"\0\0\0\0\0\0"] * 279, "V6").reshape(SHAPE)
        with h5py.File(path, "w") as file:
            made = h5d.create(file.id, b"d", kind, h5s.create_simple(SHAPE), plist)
            made.write(h5s.ALL, h5s.ALL, raw, kind)

    return write


def _arrays(options: dict[str, Any]) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            made = file.create_dataset("d", SHAPE, np.dtype(("<f4", (2, 3))), **options)
            made[...] = numbers("<f4", (*SHAPE, 2, 3))

    return write


def _strings(kind: Any) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            texts = ["", "a", "ü" if kind.metadata["vlen"] is str else "u", "long " * 50]
            file.create_dataset("d", data=np.array(texts * 5, dtype=object).reshape(4, 5), dtype=kind)
            file["scalar"] = "ümlaut"

    return write


def _sequences(path: Path) -> None:
    with h5py.File(path, "w") as file:
        made = file.create_dataset("d", (5,), h5py.vlen_dtype(">i4"))
        for i in range(5):
            made[i] = np.arange(i) * 3


def _references(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a/b"] = 1
        made = file.create_dataset("d", (3,), h5py.ref_dtype)
        made[0], made[1] = file["a"].ref, file["a/b"].ref


def _regions(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["a"] = numbers("<i4")
        made = file.create_dataset("d", (2,), h5py.regionref_dtype)
        made[0] = file["a"].regionref[2:4, 5:9]


def _mixed(path: Path) -> None:
    kind = np.dtype([("n", "<i4"), ("s", h5py.string_dtype())])
    values = np.zeros(6, kind)
    values["n"], values["s"] = np.arange(6), [b"", b"a", "ü".encode(), b"b" * 40, b"c", b"d"]
    with h5py.File(path, "w") as file:
        file.create_dataset("d", data=values, dtype=kind)


def _plain(kind: h5t.TypeID, memory: str) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            made = h5d.create(file.id, b"d", kind, h5s.create_simple(SHAPE))
            if isinstance(kind, h5t.TypeBitfieldID):
                made.write(h5s.ALL, h5s.ALL, numbers(memory), kind)
            else:
                made.write(h5s.ALL, h5s.ALL, numbers(memory))

    return write


def _bits(precision: int) -> h5t.TypeID:
    kind = h5t.STD_I16LE.copy()
    kind.set_precision(precision)
    return kind


def _small_float() -> h5t.TypeID:
    kind = h5t.IEEE_F32LE.copy()
    kind.set_fields(23, 15, 8, 0, 15)
    kind.set_precision(24)
    kind.set_size(3)
    kind.set_ebias(127)
    return kind


INDEXES = {
    "v1 B-tree": ("earliest", SHAPE),
    "fixed array": ("latest", SHAPE),
    "extensible array": ("latest", (None, SHAPE[1])),
    "extensible array, second dimension": ("latest", (SHAPE[0], None)),
    "v2 B-tree": ("latest", (None, None)),
    "implicit": ("latest", SHAPE),
}
COUNTS = {"one chunk": (45, 31), "a few chunks": (23, 16), "many chunks": (1, 1)}


def indexes() -> Iterator[tuple[str, Writer]]:
    for name, (libver, maximum) in INDEXES.items():
        for count, chunks in COUNTS.items():
            for filtered in (False, True):
                if filtered and (name == "implicit" or count == "many chunks"):
                    continue
                label = f"index: {name}, {count}{', filtered' if filtered else ''}"
                yield label, _indexed(libver, maximum, chunks, early=name == "implicit", filtered=filtered)
    yield "index: fixed array of pages", _indexed("latest", (1, 5000), (1, 1), shape=(1, 5000))
    yield "index: sparse v1 B-tree", _sparse("earliest", (None, None))
    yield "index: sparse extensible array", _sparse("latest", (None, 400))
    yield "index: sparse v2 B-tree", _sparse("latest", (None, None))
    yield "index: sparse fixed array", _sparse("latest", (400, 400))


def _indexed(
    libver: str,
    maximum: tuple[int | None, ...],
    chunks: tuple[int, ...],
    *,
    early: bool = False,
    filtered: bool = False,
    shape: tuple[int, ...] = SHAPE,
) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w", libver=libver) as file:
            plist = h5p.create(h5p.DATASET_CREATE)
            plist.set_chunk(chunks)
            if early:
                plist.set_alloc_time(h5d.ALLOC_TIME_EARLY)
            if filtered:
                plist.set_shuffle()
                plist.set_deflate(3)
            top = tuple(h5s.UNLIMITED if n is None else n for n in maximum)
            made = h5d.create(file.id, b"d", h5t.STD_I32LE, h5s.create_simple(shape, top), plist)
            made.write(h5s.ALL, h5s.ALL, np.arange(int(np.prod(shape)), dtype="i4").reshape(shape))

    return write


def _sparse(libver: str, maximum: tuple[int | None, ...]) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w", libver=libver) as file:
            made = file.create_dataset("d", (400, 400), "i4", chunks=(10, 10), maxshape=maximum, fillvalue=-5)
            for i in range(0, 400, 37):
                made[i, (i * 3) % 400] = i + 1

    return write


def layouts() -> Iterator[tuple[str, Writer]]:
    yield "layout: compact", _compact
    yield "layout: contiguous, nothing written", _unwritten({})
    yield "layout: chunked, nothing written", _unwritten({"chunks": (9, 9)})
    yield "layout: contiguous with a fill value, nothing written", _unwritten({"fillvalue": 7})
    yield "layout: behind a user block, nothing written", _unwritten({}, userblock_size=1024)
    yield "layout: behind a user block", _user_block
    yield "layout: edge chunks that are not filtered", _edges
    yield "layout: chunks larger than the array", dataset("<i4", chunks=(64, 64), maxshape=(None, None))
    yield "layout: scalar", _scalar
    yield "layout: no elements", _empty
    yield "layout: null dataspace", _null
    yield (
        "layout: seven dimensions",
        dataset("<i4", numbers("<i4", (2, 3, 2, 3, 2, 3, 2)), chunks=(1, 2, 1, 2, 1, 2, 1)),
    )
    yield "layout: fill value NaN", _sparse_float(np.nan)
    yield "layout: shrunk and grown again", _shrunk
    yield "layout: addresses of four bytes", _four_bytes
    yield "layout: external raw files", _external
    yield "layout: virtual, whole chunks", _virtual(slice(0, 20))
    yield "layout: virtual, part of a chunk", _virtual(slice(3, 17))
    yield "layout: virtual, unlimited", _virtual_unlimited


def _compact(path: Path) -> None:
    with h5py.File(path, "w") as file:
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_layout(h5d.COMPACT)
        made = h5d.create(file.id, b"d", h5t.STD_I16BE, h5s.create_simple(SHAPE), plist)
        made.write(h5s.ALL, h5s.ALL, numbers(">i2"))


def _unwritten(options: dict[str, Any], **how: Any) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w", **how) as file:
            file.create_dataset("d", (60, 60), "<f4", **options)

    return write


def _user_block(path: Path) -> None:
    with h5py.File(path, "w", userblock_size=512) as file:
        file["contiguous"] = numbers("<f8")
        file.create_dataset("chunked", data=numbers("<f8"), chunks=(9, 31), compression="gzip")
    with path.open("r+b") as raw:
        raw.write(b"not HDF5 at all")


def _edges(path: Path) -> None:
    import ctypes

    library = ctypes.CDLL(h5py.h5d.__file__)
    with h5py.File(path, "w", libver="latest") as file:
        plist = h5p.create(h5p.DATASET_CREATE)
        plist.set_chunk((16, 16))
        plist.set_deflate(3)
        library.H5Pset_chunk_opts(ctypes.c_int64(plist.id), 2)
        made = h5d.create(file.id, b"d", h5t.STD_I32LE, h5s.create_simple(SHAPE), plist)
        made.write(h5s.ALL, h5s.ALL, numbers("<i4"))


def _scalar(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["number"], file["text"], file["boolean"] = 5.5, "ü", True


def _empty(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("d", (0, 7), "<f4", maxshape=(None, 7), chunks=(4, 7))


def _null(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["d"] = h5py.Empty("<f4")


def _sparse_float(fill: float) -> Writer:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("d", (60, 60), "<f8", chunks=(10, 10), fillvalue=fill)[15:33, 7] = 3

    return write


def _shrunk(path: Path) -> None:
    with h5py.File(path, "w") as file:
        made = file.create_dataset("d", data=numbers("<i4"), chunks=(8, 8), maxshape=(None, None), fillvalue=-1)
        made.resize((20, 13))
        made.resize((50, 40))


def _four_bytes(path: Path) -> None:
    plist = h5p.create(h5p.FILE_CREATE)
    plist.set_sizes(4, 4)
    file = h5py.h5f.create(str(path).encode(), fcpl=plist)
    with h5py.File(file) as opened:
        opened["contiguous"] = numbers("<f8")
        opened.create_dataset("chunked", data=numbers("<f8"), chunks=(9, 31), compression="gzip")


def _external(path: Path) -> None:
    values = numbers("<i4")
    (path.parent / "one.raw").write_bytes(b"skip" + values[:20].tobytes())
    (path.parent / "two.raw").write_bytes(values[20:].tobytes())
    with h5py.File(path, "w") as file:
        file.create_dataset(
            "d",
            SHAPE,
            "<i4",
            external=[("one.raw", 4, values[:20].nbytes), ("two.raw", 0, values[20:].nbytes)],
        )


def _virtual(part: slice) -> Writer:
    def write(path: Path) -> None:
        layout = h5py.VirtualLayout((40, 31), "<i4")
        for i in range(2):
            with h5py.File(path.with_name(f"source{i}.h5"), "w") as file:
                file.create_dataset("x", data=numbers("<i4", (20, 31)) + i, chunks=(10, 31), compression="gzip")
            source = h5py.VirtualSource(f"source{i}.h5", "x", (20, 31))
            length = part.stop - part.start
            layout[20 * i : 20 * i + length] = source[part]
        with h5py.File(path, "w", libver="latest") as file:
            file.create_virtual_dataset("d", layout, fillvalue=-3)

    return write


def _virtual_unlimited(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        file.create_dataset("x", data=numbers("<i4"), chunks=(9, 31), maxshape=(None, 31))
        layout = h5py.VirtualLayout(SHAPE, "<i4", maxshape=(None, 31))
        source = h5py.VirtualSource(file["x"])
        layout[: h5s.UNLIMITED, :] = source[: h5s.UNLIMITED, :]
        file.create_virtual_dataset("d", layout, fillvalue=-3)


def links() -> Iterator[tuple[str, Writer]]:
    def write(function: Callable[[h5py.File], None]) -> Writer:
        def run(path: Path) -> None:
            with h5py.File(path.with_name("other.h5"), "w") as other:
                other["x"] = numbers("<i4") + 1
                other["group/y"] = numbers("<f8")
            with h5py.File(path, "w") as file:
                file["group/x"] = numbers("<i4")
                function(file)

        return run

    yield "link: hard", write(lambda f: f.__setitem__("again", f["group/x"]))
    yield "link: soft", write(lambda f: f.__setitem__("soft", h5py.SoftLink("/group/x")))
    yield "link: soft to a group", write(lambda f: f.__setitem__("soft", h5py.SoftLink("/group")))
    yield "link: dangling", write(lambda f: f.__setitem__("soft", h5py.SoftLink("/nowhere")))
    yield "link: cycle", write(lambda f: f.__setitem__("group/up", f["group"]))
    yield "link: external", write(lambda f: f.__setitem__("out", h5py.ExternalLink("other.h5", "/x")))
    yield "link: external to a group", write(lambda f: f.__setitem__("out", h5py.ExternalLink("other.h5", "/group")))
    yield "link: named type", write(lambda f: f.__setitem__("type", np.dtype("<f8")))
    yield "link: several scales on one axis", write(_scales)
    yield "link: dense groups and attributes", _dense


def _scales(file: h5py.File) -> None:
    for name in ("a", "b"):
        file[name] = np.arange(45.0)
        file[name].make_scale(name)
        file["group/x"].dims[0].attach_scale(file[name])


def _dense(path: Path) -> None:
    with h5py.File(path, "w", libver="latest") as file:
        group = file.create_group("many", track_order=True)
        for i in range(60):
            group[f"d{59 - i}"] = np.arange(i)
        for i in range(40):
            group.attrs[f"a{i}"] = i


def cases() -> dict[str, Writer]:
    """Every case by name."""
    found: dict[str, Writer] = {}
    for part in (filters, types, indexes, layouts, links):
        for name, writer in part():
            if name in found:
                raise ValueError(f"two cases are called {name!r}")
            found[name] = writer
    return found
