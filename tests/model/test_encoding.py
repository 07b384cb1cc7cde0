"""Encodings: JSON, and that every native codec chain is read by stock zarr-python from HDF5's own bytes."""

from __future__ import annotations

import warnings
from pathlib import Path

import h5py
import hdf5plugin
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from refindex import Encoding, Filter
from refindex.decode.pipeline import decode, encode
from refindex.errors import DecodeError, FormatError
from refindex.model.dtype import Leaf
from refindex.model.encoding import native_codecs
from refindex.scan.hdf5.filters import read_pipeline

FILTERS = {
    "deflate": {"compression": "gzip", "compression_opts": 4},
    "deflate-0": {"compression": "gzip", "compression_opts": 0},
    "shuffle": {"shuffle": True},
    "shuffle+deflate": {"shuffle": True, "compression": "gzip"},
    "fletcher32": {"fletcher32": True},
    "all": {"shuffle": True, "compression": "gzip", "fletcher32": True},
    "zstd": dict(hdf5plugin.Zstd()),
    "bzip2": dict(hdf5plugin.BZip2()),
    **{f"blosc-{c}": dict(hdf5plugin.Blosc(cname=c)) for c in ("blosclz", "lz4", "lz4hc", "zlib", "zstd")},
    "blosc-bitshuffle": dict(hdf5plugin.Blosc(shuffle=hdf5plugin.Blosc.BITSHUFFLE)),
}
ADAPTED = {
    "lzf": {"compression": "lzf"},
    "szip": {"compression": "szip"},
    "scaleoffset": {"scaleoffset": 0},
    "lz4": dict(hdf5plugin.LZ4()),
    "bitshuffle": dict(hdf5plugin.Bitshuffle()),
    "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
    "bitshuffle-zstd": dict(hdf5plugin.Bitshuffle(cname="zstd")),
    "blosc2": dict(hdf5plugin.Blosc2()),
    "shuffle+lzf": {"shuffle": True, "compression": "lzf"},
}


def one_chunk(folder: Path, options: dict[str, object], dtype: str) -> tuple[np.ndarray, Encoding, bytes]:
    values = (np.arange(1000) // 7 % 100).astype(dtype).reshape(40, 25)
    with h5py.File(folder / "f.h5", "w") as file:
        dataset = file.create_dataset("d", data=values, chunks=values.shape, **options)
        kind = dataset.id.get_type().encode()
        encoding = Encoding(
            type=Leaf(np.dtype(dtype).str),
            shape=values.shape,
            filters=read_pipeline(dataset.id.get_create_plist()),
            hdf5_type=kind,
        )
        _, data = dataset.id.read_direct_chunk((0, 0))
    return values, encoding, bytes(data)


@pytest.mark.parametrize("dtype", ["<f4", ">i2", "|u1", "<f8"])
@pytest.mark.parametrize("name", FILTERS)
def test_native_filters_are_read_by_stock_zarr(tmp_path: Path, name: str, dtype: str) -> None:
    values, encoding, data = one_chunk(tmp_path, FILTERS[name], dtype)
    codecs = native_codecs(encoding, np.dtype(dtype))
    assert codecs is not None
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(values.shape),
        "data_type": np.dtype(dtype).name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(values.shape)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs,
        "attributes": {},
    }
    import json

    (tmp_path / "z/c/0").mkdir(parents=True)
    (tmp_path / "z/zarr.json").write_text(json.dumps(document))
    (tmp_path / "z/c/0/0").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(zarr.open_array(tmp_path / "z", mode="r")[...], values)
    assert np.array_equal(decode(data, encoding, np.dtype(dtype)), values)
    # Encoding as declared, and reading that back, closes the circle for adapted chunks.
    assert np.array_equal(decode(encode(values, codecs), encoding, np.dtype(dtype)), values)


@pytest.mark.parametrize("dtype", ["<i4", ">i2"])
@pytest.mark.parametrize("name", ADAPTED)
def test_other_filters_are_decoded_by_libhdf5(tmp_path: Path, name: str, dtype: str) -> None:
    values, encoding, data = one_chunk(tmp_path, ADAPTED[name], dtype)
    assert native_codecs(encoding, np.dtype(dtype)) is None
    assert np.array_equal(decode(data, encoding, np.dtype(dtype)), values)


CHECKED = ["deflate", "shuffle+deflate", "fletcher32", "all", "zstd", "bzip2", "blosc-lz4", "lz4", "bitshuffle-lz4"]


@pytest.mark.parametrize("name", CHECKED)
def test_damaged_bytes_raise(tmp_path: Path, name: str) -> None:
    """lzf, szip and scaleoffset have nothing to tell damage by: there the library's own answer is garbage, too."""
    _, encoding, data = one_chunk(tmp_path, {**FILTERS, **ADAPTED}[name], "<i4")
    for broken in (data[: len(data) // 2], b"", b"\xa5\x5a" * (len(data) // 2)):
        with pytest.raises(DecodeError):
            decode(broken, encoding, np.dtype("<i4"))


def test_a_deflate_bomb_is_cut_short() -> None:
    import zlib

    bomb = zlib.compress(bytes(50_000_000))
    encoding = Encoding(type=Leaf("|u1"), shape=(10,), filters=(Filter(id=1, values=(4,)),))
    with pytest.raises(DecodeError, match="longer than the 10 bytes"):
        decode(bomb, encoding, np.dtype("u1"))


def test_a_changed_bit_fails_the_checksum(tmp_path: Path) -> None:
    _, encoding, data = one_chunk(tmp_path, FILTERS["fletcher32"], "<f4")
    changed = bytearray(data)
    changed[17] ^= 4
    with pytest.raises(DecodeError, match="fletcher32"):
        decode(bytes(changed), encoding, np.dtype("<f4"))


FILTER = st.builds(Filter, id=st.integers(0, 65535), values=st.lists(st.integers(0, 2**32 - 1), max_size=8).map(tuple))


@given(filters=st.lists(FILTER, max_size=4), raw=st.binary(max_size=20))
def test_json_round_trip(filters: list[Filter], raw: bytes) -> None:
    encoding = Encoding(type=Leaf("<f4"), shape=(3, 4), filters=tuple(filters), hdf5_type=raw)
    assert Encoding.from_json(encoding.to_json()) == encoding


@pytest.mark.parametrize("document", [None, [], {}, {"type": "<f4"}, {"type": "<f4", "shape": ["a"], "filters": []}])
def test_what_is_no_encoding(document: object) -> None:
    with pytest.raises(FormatError):
        Encoding.from_json(document)


@pytest.mark.parametrize(
    ("filters", "nbytes"),
    [
        ([(2, (4,))], 10),  # zarr's shuffle refuses a remainder, HDF5's leaves it
        ([(1, (4,)), (2, (4,))], 16),  # what deflate makes need not divide
        ([(3, ()), (2, (8,))], 16),  # 16 + 4 bytes of checksum
        ([(32001, (2, 2, 4, 64, 5, 1, 3))], 16),  # snappy
        ([(4, (4, 8))], 16),
        ([(1, (77,))], 16),
    ],
)
def test_what_stock_zarr_would_refuse_is_not_native(filters: list[tuple[int, tuple[int, ...]]], nbytes: int) -> None:
    encoding = Encoding(type=Leaf("|u1"), shape=(nbytes,), filters=tuple(Filter(id=i, values=v) for i, v in filters))
    assert native_codecs(encoding, np.dtype("u1")) is None


STORED_VALUES = {
    "zfp": dict(hdf5plugin.Zfp(reversible=True)),
    "szip": {"compression": "szip"},
    "scaleoffset": {"scaleoffset": 0},
    "bitshuffle-lz4": dict(hdf5plugin.Bitshuffle(cname="lz4")),
}


@pytest.mark.parametrize("name", STORED_VALUES)
def test_the_stored_client_data_values_are_enough(tmp_path: Path, name: str) -> None:
    """Neither the HDF5 datatype nor the fill value is needed, also after a trip through JSON."""
    values, encoding, data = one_chunk(tmp_path, STORED_VALUES[name], "<i4")
    bare = Encoding(type=encoding.type, shape=encoding.shape, filters=encoding.filters)
    assert len(bare.filters[0].values) >= 4
    assert np.array_equal(decode(data, Encoding.from_json(bare.to_json()), np.dtype("<i4")), values)
