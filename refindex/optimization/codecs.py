"""How the chunks of rewritten variables are compressed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numcodecs
import numpy as np

from refindex.errors import UnsupportedError
from refindex.model.dtype import Leaf, StoredType, Struct, Text
from refindex.model.encoding import BLOSC, ZSTD, Encoding, Filter, bytes_codec, filter_codecs, native_codecs

DEFAULT = "blosc-zstd:3"

_BLOSC = {"blosclz": 0, "lz4": 1, "lz4hc": 2, "zlib": 4, "zstd": 5}
_NAMES = ("zstd", *(f"blosc-{name}" for name in _BLOSC), "none")
_MOST_NBYTES = (1 << 31) - (1 << 16)
"""A compressor takes no more at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A compressor: ``zstd``, ``blosc-...`` with shuffled bytes, or ``none``."""

    name: str
    level: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """``zstd:3``, ``blosc-lz4:5``, ``none``.

        Raises
        ------
        ValueError
            If there is no such codec, or level.
        """
        name, mark, level = text.partition(":")
        most = 22 if name == "zstd" else 9
        if name not in _NAMES or (name == "none" and mark):
            raise ValueError(f"codec must be one of {', '.join(_NAMES)}, with a level as in zstd:3; got {text!r}")
        if name == "none":
            return cls(name=name)
        number = int(level) if level.isascii() and level.isdigit() else 0 if mark else 3
        if not 1 <= number <= most:
            raise ValueError(f"codec {name}: levels are 1 to {most}; got {level!r}")
        return cls(name=name, level=number)

    def __str__(self) -> str:
        return f"{self.name}:{self.level}" if self.level else self.name

    def filters(self, dtype: np.dtype[Any], nbytes: int) -> tuple[Filter, ...]:
        """The same as HDF5 filters, for chunks of so many bytes."""
        match self.name.partition("-"):
            case "zstd", _, _:
                return (Filter(id=ZSTD, values=(self.level,)),)
            case "blosc", _, cname:
                size = _typesize(dtype)
                shuffle = int(size > 1)
                return (Filter(id=BLOSC, values=(2, 2, size, nbytes, self.level, shuffle, _BLOSC[cname])),)
        return ()

    def encode(self, values: np.ndarray[Any, Any]) -> bytes:
        """The bytes of a chunk whose values are contiguous and in little endian."""
        match self.name.partition("-"):
            case "zstd", _, _:
                return bytes(numcodecs.Zstd(level=self.level).encode(values.tobytes()))
            case "blosc", _, cname:
                size = _typesize(values.dtype)
                # Blosc knows the size of an element by the buffer alone.
                data = values.reshape(-1).view(f"V{size}")
                return bytes(numcodecs.Blosc(cname=cname, clevel=self.level, shuffle=int(size > 1)).encode(data))
        return values.tobytes()


def _typesize(dtype: np.dtype[Any]) -> int:
    return dtype.itemsize if dtype.itemsize <= 255 else 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Storing:
    """How the chunks of one array are stored.

    Parameters
    ----------
    dtype:
        Of the values, in little endian.
    codec:
        What compresses them.
    chain:
        The codec chain that says so.
    encoding:
        The encoding that says the same, by which a join can move and cut chunks; None where none does.
    """

    dtype: np.dtype[Any]
    codec: Codec
    chain: list[dict[str, Any]]
    encoding: Encoding | None

    @classmethod
    def of(cls, path: str, dtype: np.dtype[Any], chunk: tuple[int, ...], codec: Codec) -> Self:
        """For chunks of one shape.

        Raises
        ------
        UnsupportedError
            If they are too large for a compressor.
        """
        little = dtype.newbyteorder("<")
        nbytes = int(np.prod(chunk, dtype=object)) * little.itemsize
        if nbytes > _MOST_NBYTES:
            raise UnsupportedError(
                f"/{path}: a chunk of {chunk} takes {nbytes} bytes; at most {_MOST_NBYTES} are written"
            )
        filters = codec.filters(little, nbytes)
        rest = filter_codecs(filters, nbytes)
        if rest is None:
            raise UnsupportedError(f"/{path}: {codec} has no codec of Zarr for elements of {little.itemsize} bytes")
        chain = [bytes_codec(little), *rest]
        encoding = Encoding(type=_stored(little), shape=chunk, filters=filters)
        native = native_codecs(encoding, little) == chain
        return cls(dtype=little, codec=codec, chain=chain, encoding=encoding if native else None)


def _stored(dtype: np.dtype[Any]) -> StoredType:
    """The stored type of elements that lie as a document declares them."""
    if dtype.kind == "S":
        return Text(dtype.itemsize, "nullpad")
    if dtype.names is None or dtype.fields is None:
        return Leaf(dtype.str)
    fields = tuple((name, int(dtype.fields[name][1]), _stored(dtype.fields[name][0])) for name in dtype.names)
    return Struct(fields, dtype.itemsize)
