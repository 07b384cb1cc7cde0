"""Encodings: how the stored bytes of a chunk become values.

An array declares one Zarr v3 codec chain. A chunk whose :class:`Encoding` has the same bytes is
*native* and passed through untouched; any other is *adapted*: decoded by its own encoding,
converted, padded or cropped to its place, and encoded again as declared where raw bytes are wanted.
A per-chunk filter mask is just another encoding.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from refindex.errors import FormatError
from refindex.model.dtype import StoredType, numpy_dtype, same_bytes, type_from_json, type_to_json
from refindex.model.packing import Packing

DEFLATE, SHUFFLE, FLETCHER32, SZIP, NBIT, SCALEOFFSET = 1, 2, 3, 4, 5, 6
BZIP2, LZF, BLOSC, BITSHUFFLE, ZSTD = 307, 32000, 32001, 32008, 32015
"""Registered HDF5 filter numbers (1-6: file format specification IV.A.2.l; others: registered filters)."""

FILTER_NAMES = {
    DEFLATE: "deflate",
    SHUFFLE: "shuffle",
    FLETCHER32: "fletcher32",
    SZIP: "szip",
    NBIT: "nbit",
    SCALEOFFSET: "scaleoffset",
    BZIP2: "bzip2",
    LZF: "lzf",
    BLOSC: "blosc",
    32004: "lz4",
    BITSHUFFLE: "bitshuffle",
    32013: "zfp",
    ZSTD: "zstd",
    32017: "sz",
    32024: "sz3",
    32026: "blosc2",
    32028: "sperr",
}
_MOST_DIMENSIONS = 64
"""What numpy arrays can have."""

_BLOSC_CNAMES = {0: "blosclz", 1: "lz4", 2: "lz4hc", 4: "zlib", 5: "zstd"}  # 3, snappy, is not in numcodecs
_BLOSC_SHUFFLES = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """One HDF5 filter as applied: its registered number and client data values."""

    id: int
    values: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        return FILTER_NAMES.get(self.id, f"filter {self.id}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """How the stored bytes of a chunk become values.

    Parameters
    ----------
    type:
        Stored type of an element.
    shape:
        Shape of the stored chunk in elements of the *array* (trailing dimensions of an array type included). It may
        lack leading dimensions of length one, along which files were stacked.
    filters:
        The filters applied to this chunk, in the order in which they were applied when it was written.
    hdf5_type:
        For elements that only libhdf5 reads (:class:`~refindex.model.dtype.Foreign`): the HDF5 datatype as H5Tencode
        gives it. Empty otherwise.
    start:
        First element of the stored chunk that is served, along each dimension; empty: the first of all. What lies
        before it, or beyond the place that the chunk has in its array, is not served.
    broadcast:
        Dimensions along which the stored chunk has one element that is repeated over the place of the chunk.
    packing:
        How the stored numbers become values, where the array is served unpacked.
    """

    type: StoredType
    shape: tuple[int, ...]
    filters: tuple[Filter, ...] = ()
    hdf5_type: bytes = b""
    start: tuple[int, ...] = ()
    broadcast: tuple[int, ...] = ()
    packing: Packing | None = None

    @property
    def as_stored(self) -> bool:
        """Whether the values are served as they are stored, from the chunk's first element on."""
        return self.packing is None and not self.broadcast and not any(self.start)

    @property
    def nbytes(self) -> int:
        """Bytes of the chunk once decoded."""
        dtype = numpy_dtype(self.type)
        base = dtype.base if dtype.subdtype else dtype
        return math.prod(self.shape) * base.itemsize

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "type": type_to_json(self.type),
            "shape": list(self.shape),
            "filters": [{"id": f.id, "name": f.name, "values": list(f.values)} for f in self.filters],
        }
        if self.hdf5_type:
            document["hdf5_type"] = base64.b64encode(self.hdf5_type).decode()
        if self.start:
            document["start"] = list(self.start)
        if self.broadcast:
            document["broadcast"] = list(self.broadcast)
        if self.packing is not None:
            document["packing"] = self.packing.to_json()
        return document

    @classmethod
    def from_json(cls, document: Any) -> Encoding:
        """Inverse of :meth:`to_json`.

        Raises
        ------
        FormatError
            If the JSON is not an encoding.
        """
        try:
            shape = tuple(int(n) for n in document["shape"])
            start = tuple(int(n) for n in document.get("start", ()))
            broadcast = tuple(int(n) for n in document.get("broadcast", ()))
            rank = max(len(shape), len(start), *(axis + 1 for axis in broadcast), 0)
            if any(n < 0 for n in shape) or rank > _MOST_DIMENSIONS:
                raise FormatError(f"encoding: a stored chunk of {shape} from {start}, repeated along {broadcast}")
            whole = (1,) * (rank - len(shape)) + shape
            if start and (len(start) != rank or any(not 0 <= s < n for s, n in zip(start, whole, strict=True))):
                raise FormatError(f"encoding: a start {start} in a stored chunk of {shape}")
            if any(axis < 0 or whole[axis] != 1 for axis in broadcast):
                raise FormatError(f"encoding: dimensions {broadcast} of a stored chunk of {shape} cannot be repeated")
            stored = type_from_json(document["type"])
            numpy_dtype(stored)  # numpy has more to say on a type than what is looked at there
            return cls(
                type=stored,
                shape=shape,
                filters=tuple(
                    Filter(id=int(f["id"]), values=tuple(int(v) for v in f["values"])) for f in document["filters"]
                ),
                hdf5_type=base64.b64decode(document.get("hdf5_type", ""), validate=True),
                start=start,
                broadcast=broadcast,
                packing=Packing.from_json(document["packing"]) if "packing" in document else None,
            )
        except FormatError:
            raise
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, binascii.Error) as error:
            raise FormatError(f"encoding: cannot read {document!r}: {error}") from error


def filter_codecs(filters: Sequence[Filter], nbytes: int) -> list[dict[str, Any]] | None:
    """The bytes-to-bytes codecs with which stock zarr-python decodes what the filters made, or None.

    ``nbytes`` is the size of the decoded chunk. HDF5's shuffle leaves a remainder of less than an
    element as it is, zarr's refuses one: native only where the size is known to divide.
    """
    codecs: list[dict[str, Any]] = []
    size: int | None = nbytes
    for applied in filters:
        codec: dict[str, Any]
        match applied.id, applied.values:
            case 1, (level, *_) if 0 <= level <= 9:
                codec = {"name": "numcodecs.zlib", "configuration": {"level": level}}
                size = None
            case 2, (elementsize, *_):
                if size is None or elementsize < 1 or size % elementsize:
                    return None
                if elementsize == 1:
                    continue
                codec = {"name": "numcodecs.shuffle", "configuration": {"elementsize": elementsize}}
            case 3, _:
                codec = {"name": "numcodecs.fletcher32", "configuration": {}}
                size = None if size is None else size + 4
            case 307, (level, *_) if 1 <= level <= 9:
                codec = {"name": "numcodecs.bz2", "configuration": {"level": level}}
                size = None
            case 32001, (_, _, typesize, _, clevel, shuffle, cname, *_) if (
                cname in _BLOSC_CNAMES and shuffle in _BLOSC_SHUFFLES and 1 <= typesize <= 255 and clevel <= 9
            ):
                codec = {
                    "name": "blosc",
                    "configuration": {
                        "cname": _BLOSC_CNAMES[cname],
                        "clevel": clevel,
                        "shuffle": _BLOSC_SHUFFLES[shuffle],
                        "typesize": typesize,
                        "blocksize": 0,
                    },
                }
                size = None
            case 32015, values:
                level = values[0] if values and 0 < values[0] <= 22 else 3
                codec = {"name": "zstd", "configuration": {"level": level, "checksum": False}}
                size = None
            case _:
                return None
        codecs.append(codec)
    return codecs


def bytes_codec(dtype: np.dtype[Any]) -> dict[str, Any]:
    """The ``bytes`` codec for a served dtype; types without a byte order take no ``endian``."""
    orders = {dtype[name].str[0] for name in dtype.names} if dtype.names else {dtype.str[0]}
    if dtype.names is None and orders == {"|"}:
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "big" if ">" in orders else "little"}}


def native_codecs(encoding: Encoding, served: np.dtype[Any]) -> list[dict[str, Any]] | None:
    """The Zarr v3 codec chain to which an encoding is native, or None if there is none."""
    if not encoding.as_stored or not same_bytes(encoding.type, served):
        return None
    codecs = filter_codecs(encoding.filters, encoding.nbytes)
    return None if codecs is None else [bytes_codec(served), *codecs]
