"""Every filter that libhdf5 has here is undone outside its file, to the values that h5py reads from the file."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z
from oracle import compare_file

import refindex
from refindex import Encoding, Filter
from refindex.decode import libhdf5
from refindex.decode.image import chunk_image, type_image
from refindex.decode.pipeline import is_built_in
from refindex.errors import DecodeError, FormatError, UnsupportedError
from refindex.model.dtype import Leaf
from refindex.scan.hdf5.filters import parse_pipeline, read_pipeline
from refindex.scan.hdf5.object_header import Message

NUMBERS = ("<f4", ">f4", "<f8", ">f8", "|u1", "|i1", "<u2", ">i2", "<i4", ">u4", "<i8", ">i8", "<f2")
FLOATS = ("<f4", "<f8")
WORDS = ("<f4", ">f4", "<f8", ">f8", "<i4", "<i8", ">i8")

BLOSC = {
    f"blosc-{name}-{shuffle}": dict(hdf5plugin.Blosc(cname=name, shuffle=shuffle))
    for name in ("blosclz", "lz4", "lz4hc", "snappy", "zlib", "zstd")
    for shuffle in (0, 1, 2)
}
BLOSC2 = {
    f"blosc2-{name}-{filters}": dict(hdf5plugin.Blosc2(cname=name, filters=filters))
    for name in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")
    # Number 4 (truncated precision) needs a parameter that hdf5plugin does not give: every chunk skips the filter.
    for filters in (0, 1, 2, 3)
}
LOSSLESS: dict[str, dict[str, Any]] = {
    **BLOSC,
    **BLOSC2,
    **{f"bitshuffle-{name}": dict(hdf5plugin.Bitshuffle(cname=name)) for name in ("none", "lz4", "zstd")},
    "bitshuffle-64": dict(hdf5plugin.Bitshuffle(nelems=64, cname="lz4")),
    "lz4": dict(hdf5plugin.LZ4()),
    "lz4-512": dict(hdf5plugin.LZ4(nbytes=512)),
    "zstd": dict(hdf5plugin.Zstd(clevel=19)),
    "bzip2": dict(hdf5plugin.BZip2()),
    "fcidecomp": dict(hdf5plugin.FciDecomp()),
    "szip-nn": {"compression": "szip", "compression_opts": ("nn", 8)},
    "szip-ec": {"compression": "szip", "compression_opts": ("ec", 16)},
    "lzf": {"compression": "lzf"},
}
ZFP = {
    "zfp-rate": dict(hdf5plugin.Zfp(rate=10)),
    "zfp-precision": dict(hdf5plugin.Zfp(precision=12)),
    "zfp-accuracy": dict(hdf5plugin.Zfp(accuracy=1e-3)),
    "zfp-reversible": dict(hdf5plugin.Zfp(reversible=True)),
    "zfp-expert": dict(hdf5plugin.Zfp(minbits=1, maxbits=16657, maxprec=64, minexp=-1074)),
}
LOSSY: dict[str, dict[str, Any]] = {
    "sz-absolute": dict(hdf5plugin.SZ(absolute=1e-3)),
    "sz-relative": dict(hdf5plugin.SZ(relative=1e-3)),
    "sz-pointwise": dict(hdf5plugin.SZ(pointwise_relative=1e-3)),
    "sz3-absolute": dict(hdf5plugin.SZ3(absolute=1e-2)),
    "sperr-rate": dict(hdf5plugin.Sperr(rate=16)),
    "sperr-psnr": dict(hdf5plugin.Sperr(peak_signal_to_noise_ratio=80)),
    "sperr-absolute": dict(hdf5plugin.Sperr(absolute=1e-3)),
}


def ramp(dtype: str, shape: tuple[int, ...] = (41, 37)) -> np.ndarray:
    """Smooth values that differ from chunk to chunk."""
    values = np.add.outer(np.arange(shape[0]), np.arange(shape[1])) * 1.0
    if np.dtype(dtype).kind == "f":
        values = values / 7
    return (values % 100).astype(dtype)


def all_equal(path: Path, names: set[str]) -> refindex.Manifest:
    """The datasets are served and equal h5py's, bit for bit; their manifest."""
    verdict = compare_file(str(path))
    assert (verdict.wrong, verdict.reported, verdict.unreadable) == ([], [], [])
    assert set(verdict.right) == names
    return refindex.scan(path)


def write(path: Path, options: dict[str, Any], dtypes: tuple[str, ...]) -> set[str]:
    with h5py.File(path, "w") as file:
        for dtype in dtypes:
            file.create_dataset(dtype, data=ramp(dtype), chunks=(16, 37), **options)
            file.create_dataset(f"{dtype}-odd", data=ramp(dtype), chunks=(13, 11), **options)
        return set(file)


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_filters(tmp_path: Path, name: str) -> None:
    # 16-bit and smaller images only: fcidecomp writes others, too, but means nothing by it.
    dtypes = ("|u1", "<u2") if name == "fcidecomp" else NUMBERS
    path = tmp_path / "f.h5"
    manifest = all_equal(path, write(path, LOSSLESS[name], dtypes))
    # Some chunks do not become smaller: there the filter is in the mask.
    filtered = [any(encoding.filters for encoding in array.encodings) for array in manifest.arrays.values()]
    assert sum(filtered) > len(filtered) // 2


@pytest.mark.parametrize("name", ZFP)
def test_zfp(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.h5"
    all_equal(path, write(path, ZFP[name], WORDS))
    with h5py.File(path, "r") as file:
        exact = np.array_equal(file["<f4"][()], ramp("<f4"))
    assert exact == (name == "zfp-reversible"), "the test means nothing if nothing is lost"


@pytest.mark.parametrize("name", LOSSY)
def test_lossy_filters(tmp_path: Path, name: str) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for dtype in FLOATS:
            file.create_dataset(dtype, data=ramp(dtype), chunks=(20, 37), **LOSSY[name])
    all_equal(path, set(FLOATS))


def test_htj2k(tmp_path: Path) -> None:
    if not hasattr(hdf5plugin, "Htj2k"):
        pytest.skip("hdf5plugin has it from version 7")
    path = tmp_path / "f.h5"
    all_equal(path, write(path, dict(hdf5plugin.Htj2k()), ("|u1", "|i1", "<u2")))


@pytest.mark.parametrize("fill", [None, 0, 7, -3])
def test_scaleoffset(tmp_path: Path, fill: int | None) -> None:
    path = tmp_path / "f.h5"
    with h5py.File(path, "w") as file:
        for dtype in ("<f4", ">f4", "<f8", "|u1", "|i1", "<i2", ">i4", "<u8", ">i8"):
            given = None if fill is None else np.abs(fill) if dtype[1] == "u" else fill
            for factor in (0, 3, 9):
                if factor == 9 and dtype[2] == "1":
                    continue  # more bits than the type has
                made = file.create_dataset(
                    f"{dtype}-{factor}", (60, 37), dtype, chunks=(20, 37), scaleoffset=factor, fillvalue=given
                )
                made[:41] = ramp(dtype)
                # Fill values among the others are stored by a code of their own.
                made[5:9] = 0 if given is None else given
        names = set(file)
    all_equal(path, names)


def integer(precision: int, offset: int, *, size: int = 4, big: bool = False, signed: bool = True) -> h5t.TypeID:
    base = {2: h5t.STD_I16LE, 4: h5t.STD_I32LE, 8: h5t.STD_I64LE}[size].copy()
    base.set_precision(precision)
    base.set_offset(offset)
    base.set_order(h5t.ORDER_BE if big else h5t.ORDER_LE)
    base.set_sign(h5t.SGN_2 if signed else h5t.SGN_NONE)
    return base


def make(
    file: h5py.File,
    name: str,
    kind: h5t.TypeID,
    values: np.ndarray,
    *,
    filters: tuple[tuple[int, tuple[int, ...]], ...] = (),
    chunks: tuple[int, ...] | None = (7,),
    memory: h5t.TypeID | None = None,
) -> None:
    """A dataset of an HDF5 type that numpy has not."""
    creation = h5p.create(h5p.DATASET_CREATE)
    if chunks:
        creation.set_chunk(chunks)
    for number, given in filters:
        creation.set_filter(number, h5z.FLAG_OPTIONAL, given)
    made = h5d.create(file.id, name.encode(), kind, h5s.create_simple(values.shape), creation)
    made.write(h5s.ALL, h5s.ALL, values, memory) if memory else made.write(h5s.ALL, h5s.ALL, values)


@pytest.mark.parametrize("after", [(), ((1, (4,)),), ((32000, ()), (3, ()))])
def test_nbit(tmp_path: Path, after: tuple[tuple[int, tuple[int, ...]], ...]) -> None:
    path = tmp_path / "f.h5"
    filters = ((5, (0,)), *after)
    with h5py.File(path, "w") as file:
        for size, precision, offset in ((2, 11, 3), (4, 20, 5), (4, 31, 0), (8, 41, 7), (4, 32, 0)):
            for big, signed in itertools.product((False, True), repeat=2):
                kind = integer(precision, offset, size=size, big=big, signed=signed)
                name = f"{precision}-{offset}-{'be' if big else 'le'}-{'i' if signed else 'u'}"
                make(file, name, kind, np.arange(400) - 200 * signed, filters=filters)
        for name, kind in (("float", h5t.IEEE_F32BE), ("double", h5t.IEEE_F64LE)):
            make(file, name, kind, np.linspace(-3, 3, 400), filters=filters)
        records = h5t.create(h5t.COMPOUND, 24)
        records.insert(b"a", 0, integer(20, 5, big=True))
        records.insert(b"b", 8, h5t.IEEE_F64LE)
        records.insert(b"c", 18, integer(9, 2, size=2))
        values = np.zeros(400, [("a", "<i4"), ("b", "<f8"), ("c", "<i2")])
        values["a"], values["b"], values["c"] = np.arange(400) - 200, np.linspace(0, 9, 400), np.arange(400) % 200
        make(file, "compound", records, values, filters=filters)
        names = set(file)
    all_equal(path, names)


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("after", [(), ((32000, ()),)])
def test_a_filter_with_more_values_than_h5py_reads(
    tmp_path: Path, after: tuple[tuple[int, tuple[int, ...]], ...], libver: str
) -> None:
    path = tmp_path / "f.h5"
    count = 60
    names = [f"x{i}" for i in range(count)]
    with h5py.File(path, "w", libver=libver, userblock_size=512) as file:
        records = h5t.create(h5t.COMPOUND, 4 * count)
        for i, name in enumerate(names):
            records.insert(name.encode(), 4 * i, integer(20, i % 12))
        values = np.zeros(300, [(name, "<i4") for name in names])
        for i, name in enumerate(names):
            values[name] = np.arange(300) * i
        make(file, "wide", records, values, filters=((5, (0,)), *after))
        with pytest.raises(UnsupportedError, match="values that h5py reads"):
            read_pipeline(file["wide"].id.get_create_plist())
    manifest = all_equal(path, {"wide"})
    filters = manifest.arrays["wide"].encodings[0].filters
    assert [f.id for f in filters] == [5, *(number for number, _ in after)]
    assert len(filters[0].values) > 300


COMBINED = {
    "lzf": (32000, ()),
    "shuffle": (2, ()),
    "fletcher32": (3, ()),
    "deflate": (1, (4,)),
    "lz4": (32004, (0,)),
    "bitshuffle": (32008, (0, 2)),
    "zstd": (32015, (3,)),
    "zfp": (32013, (5, 0, 0, 0, 0, 0)),
    "blosc2": (32026, (0, 0, 0, 0, 5, 1, 1)),
}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_combinations_in_any_order(tmp_path: Path, count: int) -> None:
    """zfp and blosc2 want the chunk itself, so they come first; every other filter at every place."""
    path = tmp_path / "f.h5"
    values = ramp("<f4").reshape(-1)
    with h5py.File(path, "w") as file:
        for names in itertools.permutations(COMBINED, count):
            if "zfp" in names[1:] or "blosc2" in names[1:]:
                continue
            filters = tuple(COMBINED[name] for name in names)
            make(file, "+".join(names), h5t.IEEE_F32LE, values, filters=filters, chunks=(500,))
        made = set(file)
    manifest = all_equal(path, made)
    # A compressor behind another may find nothing to gain, and is then in the mask.
    whole = [
        [COMBINED[n][0] for n in name.split("+")] in [[f.id for f in e.filters] for e in array.encodings]
        for name, array in manifest.arrays.items()
    ]
    assert sum(whole) > len(whole) // 4


@pytest.mark.parametrize("dtype", ["<i4", ">i2"])
def test_filter_masks(tmp_path: Path, dtype: str) -> None:
    """Each chunk skips other filters; which bytes it then holds is read from datasets with only the others."""
    path = tmp_path / "f.h5"
    names = ("shuffle", "lzf", "fletcher32")
    values = ramp(dtype).reshape(-1)[:800]
    kind = h5t.py_create(np.dtype(dtype))
    with h5py.File(tmp_path / "parts.h5", "w") as parts, h5py.File(path, "w") as file:
        make(file, "d", kind, np.zeros(800, dtype), filters=tuple(COMBINED[n] for n in names), chunks=(100,))
        for mask in range(8):
            rest = tuple(COMBINED[n] for i, n in enumerate(names) if not mask >> i & 1)
            make(parts, str(mask), kind, values, filters=rest, chunks=(100,))
            _, data = parts[str(mask)].id.read_direct_chunk((100 * mask,))
            file["d"].id.write_direct_chunk((100 * mask,), bytes(data), mask)
    manifest = all_equal(path, {"d"})
    assert len(manifest.arrays["d"].encodings) == 8
    with h5py.File(path, "r") as file:
        assert np.array_equal(file["d"][()], values)


LZF = Filter(id=32000, values=(4, 261, 400))


def stored(options: dict[str, Any], dtype: str = "<f4", shape: tuple[int, int] = (41, 37)) -> tuple[bytes, Encoding]:
    with h5py.File("stored", "w", driver="core", backing_store=False) as file:
        made = file.create_dataset("d", data=ramp(dtype, shape), chunks=shape, **options)
        filters = read_pipeline(made.id.get_create_plist())
        mask, data = made.id.read_direct_chunk((0, 0))
        assert mask == 0
    return bytes(data), Encoding(type=Leaf(dtype), shape=shape, filters=filters)


def test_chunks_of_many_sizes_through_one_file() -> None:
    """The open file is used again, also after failures; it neither mixes up chunks nor grows."""
    rng = np.random.default_rng(0)
    chunks = []
    for i in range(60):
        values = (rng.integers(0, 2 + 4 * i, 1000)).astype("<i4")
        with h5py.File("one", "w", driver="core", backing_store=False) as file:
            made = file.create_dataset("d", data=values, chunks=(1000,), compression="lzf")
            _, data = made.id.read_direct_chunk((0,))
        chunks.append((bytes(data), values))
    encoding = Encoding(type=Leaf("<i4"), shape=(1000,), filters=(Filter(id=32000, values=(4, 261, 4000)),))
    for i in rng.integers(0, len(chunks), 1000):
        data, values = chunks[i]
        assert libhdf5.decode(data, encoding) == values.tobytes()
        if i % 7 == 0:
            with pytest.raises(DecodeError):
                libhdf5.decode(b"", encoding)
    largest = max(len(data) for data, _ in chunks)
    key = encoding.filters, encoding.nbytes
    assert libhdf5._OPEN[key][0].get_filesize() < 4 * largest + 4096


def test_few_files_are_kept_open() -> None:
    for size in range(10, 40):
        data, encoding = stored({"compression": "lzf"}, shape=(size, 37))
        assert libhdf5.decode(data, encoding) == ramp("<f4", (size, 37)).tobytes()
    assert len(libhdf5._OPEN) <= 8
    data, encoding = stored({"compression": "lzf"}, dtype="<f8", shape=(400, 400))
    libhdf5.decode(data, encoding)
    assert (encoding.filters, encoding.nbytes) not in libhdf5._OPEN


def test_threads_do_not_mix_up_their_chunks() -> None:
    from concurrent.futures import ThreadPoolExecutor

    cases = [(*stored({"compression": "lzf"}, shape=(size, 37)), ramp("<f4", (size, 37))) for size in (5, 5, 9, 20)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: libhdf5.decode(*cases[i % 4][:2]), range(400)))
    assert all(found[i] == cases[i % 4][2].tobytes() for i in range(400))


def test_the_image_is_a_valid_file(tmp_path: Path) -> None:
    """Also for the libhdf5 of netCDF4, another version than h5py's."""
    import netCDF4

    data, encoding = stored({"compression": "gzip"})
    path = tmp_path / "image.h5"
    path.write_bytes(chunk_image(data, encoding.filters, encoding.nbytes))
    with h5py.File(path, "r") as file:
        assert list(file) == ["d"]
        assert file["d"].compression == "gzip"
        assert file["d"].id.get_chunk_info(0).size == len(data)
        assert file["d"][()].tobytes() == ramp("<f4").tobytes()
    with netCDF4.Dataset(path) as file:
        assert np.asarray(file["d"][:]).tobytes() == ramp("<f4").tobytes()


def test_a_datatype_image(tmp_path: Path) -> None:
    for kind in (h5t.IEEE_F64BE, h5t.py_create(np.dtype([("a", "<i2"), ("b", ">f4", (2, 3))])), integer(20, 5)):
        assert libhdf5.read_type(kind.encode()).equal(kind)
        assert not libhdf5.read_type(kind.encode()).committed()


@pytest.mark.parametrize(
    "encoded", [b"", b"\x03\x00", b"\x03\x01" + bytes(30), b"\x03\x00" + bytes(70_000), b"\3\0\xff"]
)
def test_what_is_no_datatype(encoded: bytes) -> None:
    with pytest.raises(DecodeError, match="datatype"):
        libhdf5.read_type(encoded)


def test_what_does_not_fit_into_an_image() -> None:
    with pytest.raises(UnsupportedError, match="too large"):
        chunk_image(b"", [LZF], 2**32)
    with pytest.raises(UnsupportedError, match="do not fit"):
        chunk_image(b"", [Filter(id=70_000)], 8)
    with pytest.raises(UnsupportedError, match="do not fit"):
        chunk_image(b"", [Filter(id=5, values=(0,) * 20_000)], 8)
    with pytest.raises(UnsupportedError, match="do not fit"):
        chunk_image(b"", [Filter(id=1, values=(-1,))], 8)
    with pytest.raises(UnsupportedError, match="bytes 3 and 0"):
        type_image(b"\0\0")


def test_what_is_not_available() -> None:
    encoding = Encoding(type=Leaf("<f4"), shape=(10,), filters=(Filter(id=305, values=(1,)),))
    with pytest.raises(UnsupportedError, match="filter 305"):
        libhdf5.decode(b"abc", encoding)


@pytest.mark.parametrize("shape", [(0,), (3, 0)])
def test_a_chunk_without_elements(shape: tuple[int, ...]) -> None:
    with pytest.raises(DecodeError):
        libhdf5.decode(b"abc", Encoding(type=Leaf("<f4"), shape=shape, filters=(LZF,)))


@pytest.mark.parametrize("version", [1, 2])
def test_pipeline_messages(version: int) -> None:
    """Laid out by hand as section IV.A.2.l says: a name in version 1, an odd number of values."""
    if version == 1:
        body = bytes([1, 2]) + bytes(6)
        body += b"\x02\0" + b"\x08\0" + b"\x01\0" + b"\x01\0" + b"shuffle\0" + b"\4\0\0\0" + bytes(4)
        body += b"\x01\x7d" + b"\0\0" + b"\0\0" + b"\x02\0" + b"\1\0\0\0\2\0\0\0"
    else:
        body = bytes([2, 2]) + b"\x02\0" + b"\x01\0" + b"\x01\0" + b"\4\0\0\0"
        body += b"\x01\x7d" + b"\x03\0" + b"\0\0" + b"\x02\0" + b"abc" + b"\1\0\0\0\2\0\0\0"
    expected = (Filter(id=2, values=(4,)), Filter(id=32001, values=(1, 2)))
    assert parse_pipeline(body + bytes(3)) == expected
    with pytest.raises(UnsupportedError, match="version 7"):
        parse_pipeline(b"\7" + body[1:])


@pytest.mark.parametrize("cut", [1, 2, 9, 40])
def test_a_damaged_pipeline_message(tmp_path: Path, cut: int) -> None:
    records = h5t.create(h5t.COMPOUND, 240)
    for i in range(60):
        records.insert(b"%d" % i, 4 * i, integer(20, 0))
    with h5py.File(tmp_path / "f.h5", "w") as file:
        make(file, "wide", records, np.zeros(10, "V240"), filters=((5, (0,)),), memory=records)
        creation = file["wide"].id.get_create_plist()
        message = Message(kind=0x000B, flags=0, body=bytes([2, 1, 5, 0, 0, 0, 60, 0] * 6)[:cut], address=0)
        with pytest.raises(FormatError, match="damaged"):
            read_pipeline(creation, lambda: (message,))
        with pytest.raises(FormatError, match="no filter pipeline"):
            read_pipeline(creation, lambda: ())
        shared = Message(kind=0x000B, flags=2, body=b"", address=0)
        with pytest.raises(UnsupportedError, match="shared"):
            read_pipeline(creation, lambda: (shared,))


# Runs in a child process: a decoder that crashes takes it down. Prints what became of each input.
CHILD = """
import random, sys
sys.path[:0] = sys.argv[1:3]
import test_image as t
from refindex.decode import plugins
plugins.register()
from refindex.decode.pipeline import decode
from refindex.errors import DecodeError
name = sys.argv[3]
options = {**t.LOSSLESS, **t.ZFP, **t.LOSSY, "scaleoffset": {"scaleoffset": 3}, "fletcher32": {"fletcher32": True}}
dtype = "<u2" if name in ("fcidecomp", "szip-nn", "szip-ec") else "<f4"
data, encoding = t.stored(options[name], dtype)
rng = random.Random(0)
inputs = [data[:n] for n in (0, 1, 4, 11, 16, 17, 40, len(data) // 2, len(data) - 1)] + [data + b"x" * 9]
inputs += [rng.randbytes(n) for n in (1, 7, 16, 64, 300, len(data))]
for _ in range(25):
    damaged = bytearray(data)
    damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    inputs.append(bytes(damaged))
for raw in inputs:
    try:
        assert decode(raw, encoding, t.np.dtype(dtype)).nbytes == encoding.nbytes
    except DecodeError:
        print("refused", flush=True)
    else:
        print("decoded", flush=True)
intact = decode(data, encoding, t.np.dtype(dtype))
assert options[name] in t.ZFP.values() or t.np.abs(intact - t.ramp(dtype)).max() < 0.1
print("done")
"""
HARDENED = [
    *(name for name in LOSSLESS if name.endswith(("-1", "none", "512", "nn", "ec"))),
    "lz4",
    "zstd",
    "bzip2",
    "lzf",
    "scaleoffset",
    "fletcher32",
    *ZFP,
    "fcidecomp",
]
"""Not among them: bitshuffle with a compressor, sz, sz3 and sperr, whose plugins read or write beyond their buffers on
damaged bytes, inside h5py as here."""


@pytest.mark.parametrize("name", HARDENED)
def test_damaged_bytes_never_crash(name: str) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(here), str(here.parent), name],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 0, f"{name}: exit {done.returncode} after {done.stdout.splitlines()[-3:]} {done.stderr}"
    assert "done" in done.stdout.splitlines()
    # zfp, scaleoffset and bitshuffle alone make something of any bytes.
    assert "refused" in done.stdout.splitlines() or name in (*ZFP, "bitshuffle-none", "scaleoffset")


def test_lossy_filters_are_not_built_in() -> None:
    """Otherwise the tests above would not go through libhdf5 at all."""
    for options in (*ZFP.values(), *LOSSY.values(), BLOSC["blosc-snappy-1"], LOSSLESS["lzf"]):
        dtype = "<f4"
        assert not all(is_built_in(f) for f in stored(options, dtype)[1].filters)
