"""Codec chains as encodings: what other tools' references say of their bytes, as a scan says it of HDF5's chunks.

Chunks with an encoding can be joined to those of files that went through other filters.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from refindex.interop.content import Document
from refindex.model.dtype import Leaf, StoredType, Struct, Text, dtype_from_json
from refindex.model.encoding import (
    BLOSC,
    BZIP2,
    DEFLATE,
    FLETCHER32,
    SHUFFLE,
    ZSTD,
    Encoding,
    Filter,
    native_codecs,
)
from refindex.model.grid import ChunkGrid

_BLOSC_CNAMES = {"blosclz": 0, "lz4": 1, "lz4hc": 2, "zlib": 4, "zstd": 5}
_BLOSC_SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
_BLOSC = {"clevel", "shuffle", "typesize"}


def encoding_of(document: Document, grid: ChunkGrid) -> Encoding | None:
    """The encoding to which chunks as the document declares them are native; None if there is none."""
    codecs = document["codecs"]
    if not grid.is_regular or not codecs or codecs[0]["name"] != "bytes":
        return None
    dtype = dtype_from_json(document["data_type"], codecs[0].get("configuration", {}).get("endian"))
    stored = None if dtype is None else _stored(dtype)
    if dtype is None or stored is None:
        return None
    shape = grid.chunk_shape()
    filters = []
    for codec in codecs[1:]:
        applied = _filter(codec, math.prod(shape) * dtype.itemsize)
        if applied is None:
            return None
        filters.append(applied)
    encoding = Encoding(type=stored, shape=shape, filters=tuple(filters))
    return encoding if native_codecs(encoding, dtype) == codecs else None


def _stored(dtype: np.dtype[Any]) -> StoredType | None:
    if dtype.kind == "S":
        return Text(dtype.itemsize, "nullpad")
    if dtype.names is None:
        return Leaf(dtype.str)
    fields: list[tuple[str, int, StoredType]] = []
    for name in dtype.names:
        stored = _stored(dtype[name])
        if stored is None:
            return None
        fields.append((name, int(dtype.fields[name][1]) if dtype.fields else 0, stored))
    return Struct(tuple(fields), dtype.itemsize)


def _filter(codec: Document, nbytes: int) -> Filter | None:
    """The HDF5 filter that makes the same bytes as a codec."""
    options = codec.get("configuration", {})
    match codec["name"]:
        case "numcodecs.zlib":
            return Filter(id=DEFLATE, values=(options.get("level", 1),))
        case "numcodecs.shuffle":
            return Filter(id=SHUFFLE, values=(options.get("elementsize", 4),))
        case "numcodecs.fletcher32":
            return Filter(id=FLETCHER32)
        case "numcodecs.bz2":
            return Filter(id=BZIP2, values=(options.get("level", 1),))
        case "zstd" if 0 < options.get("level", 0) <= 22:
            return Filter(id=ZSTD, values=(options["level"],))
        case "blosc" if options.get("cname") in _BLOSC_CNAMES and options.keys() >= _BLOSC and options["typesize"]:
            shuffle, cname = _BLOSC_SHUFFLES[options["shuffle"]], _BLOSC_CNAMES[options["cname"]]
            # 2, 2: versions of the filter and of Blosc's format.
            return Filter(id=BLOSC, values=(2, 2, options["typesize"], nbytes, options["clevel"], shuffle, cname))
    return None
