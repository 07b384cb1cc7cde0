"""Filters and compressors of Zarr v2 (numcodecs, by ``id``) as Zarr v3 codecs that undo the same bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refindex.errors import FormatError, UnsupportedError
from refindex.scan.zarr.plan import shortened
from refindex.scan.zarr.v2_types import Strings

_OBJECTS: dict[str, Strings] = {"vlen-utf8": "string", "vlen-bytes": "variable_length_bytes"}
_TYPED = ("delta", "fixedscaleoffset", "quantize", "bitround", "astype", "packbits")
"""Array -> array codecs."""
_BYTES_BYTES = (
    "zlib", "gzip", "bz2", "lzma", "lz4", "blosc", "zstd", "shuffle", "crc32", "crc32c", "adler32", "fletcher32",
    "jenkins_lookup3",
)  # fmt: skip
_ARRAY_BYTES = ("zfpy", "pcodec")
_SHUFFLES = {0: "noshuffle", 1: "shuffle", 2: "bitshuffle"}


@dataclass(slots=True, kw_only=True)
class Chain:
    """A codec chain without the ``bytes`` codec that may stand between its two parts.

    ``stored``: the dtype in which values come to bytes, None if that is the array's. ``text``: the data type of an
    object array. ``makes_bytes``: whether ``codecs`` begins with what makes bytes of arrays.
    """

    before: list[dict[str, Any]] = field(default_factory=list)
    codecs: list[dict[str, Any]] = field(default_factory=list)
    stored: np.dtype[Any] | None = None
    text: Strings | None = None
    makes_bytes: bool = False


def codec_chain(dtype: np.dtype[Any] | None, filters: list[dict[str, Any]], compressor: dict[str, Any] | None) -> Chain:
    """The chain for filters, in the order in which they were applied, and the compressor after them.

    Raises
    ------
    UnsupportedError
        Naming what zarr-python cannot express in Zarr v3.
    """
    chain, flowing = Chain(stored=dtype), dtype
    for number, codec in enumerate([*filters, *([compressor] if compressor else [])]):
        name = codec["id"]
        configuration = {key: value for key, value in codec.items() if key != "id"}
        if name in _OBJECTS:
            if dtype is not None or number:
                raise UnsupportedError(f"filter {name!r} on values of {dtype or 'what another filter made'}")
            chain.text, chain.makes_bytes = _OBJECTS[name], True
            chain.codecs.append({"name": name, "configuration": {}})
        elif dtype is None and not chain.makes_bytes:
            raise UnsupportedError(f"objects encoded by {name!r}; zarr-python reads vlen-utf8 and vlen-bytes only")
        elif name in _TYPED:
            if chain.codecs or flowing is None:
                raise UnsupportedError(f"filter {name!r} after one that works on bytes")
            translated, flowing = _typed(name, configuration, flowing)
            chain.before.append(translated)
            chain.stored = flowing
        elif name in _ARRAY_BYTES:
            if chain.codecs:
                raise UnsupportedError(f"codec {name!r} after one that works on bytes")
            chain.makes_bytes = True
            chain.codecs.append({"name": f"numcodecs.{name}", "configuration": configuration})
        elif name in _BYTES_BYTES:
            itemsize = flowing.itemsize if flowing is not None and not chain.codecs else 1
            chain.codecs.append(_of_bytes(name, configuration, itemsize))
        else:
            raise UnsupportedError(f"codec {name!r}: zarr-python has no Zarr v3 codec for it")
    if dtype is None and not chain.makes_bytes:
        raise UnsupportedError("objects without a filter that encodes them")
    return chain


def _of_bytes(name: str, configuration: dict[str, Any], itemsize: int) -> dict[str, Any]:
    def number(key: str, default: int) -> int:
        value = configuration.get(key, default)
        if type(value) is not int:
            raise FormatError(f"codec {name!r}: {key} is {shortened(value)}; expected an integer")
        return value

    match name:
        case "blosc":
            shuffle = number("shuffle", 1)
            # -1 lets numcodecs choose by the size of elements; undoing it does not depend on the choice.
            kind = _SHUFFLES.get(shuffle, "bitshuffle" if itemsize == 1 else "shuffle")
            cname = configuration.get("cname", "lz4")
            if cname not in ("lz4", "lz4hc", "blosclz", "snappy", "zlib", "zstd"):
                raise FormatError(f"codec 'blosc': cname is {shortened(cname)}")
            return {
                "name": "blosc",
                "configuration": {
                    "cname": cname,
                    "clevel": max(0, min(9, number("clevel", 5))),
                    "shuffle": kind,
                    "typesize": min(itemsize, 255),
                    "blocksize": max(0, number("blocksize", 0)),
                },
            }
        case "zstd":
            return {
                "name": "zstd",
                "configuration": {"level": number("level", 0), "checksum": bool(configuration.get("checksum", False))},
            }
        case "gzip":
            return {"name": "gzip", "configuration": {"level": max(0, min(9, number("level", 1)))}}
        case "crc32c" if configuration.get("location", "end") == "end":
            return {"name": "crc32c"}
        case "shuffle":
            return {"name": "numcodecs.shuffle", "configuration": {"elementsize": number("elementsize", 4)}}
    return {"name": f"numcodecs.{name}", "configuration": configuration}


def _typed(name: str, configuration: dict[str, Any], flowing: np.dtype[Any]) -> tuple[dict[str, Any], np.dtype[Any]]:
    """An array -> array codec, and the dtype that it gives.

    zarr-python's ``bytes`` codec gives values in the machine's byte order, while numcodecs looks at them with the type
    that is written in its configuration: there, all types become little endian.
    """

    def dtype_of(key: str, default: np.dtype[Any]) -> np.dtype[Any]:
        value = configuration.get(key)
        try:
            return default if value is None else np.dtype(str(value))
        except (TypeError, ValueError, SyntaxError) as error:
            raise FormatError(f"filter {name!r}: {key} is {shortened(value)}") from error

    def little(dtype: np.dtype[Any]) -> str:
        return dtype.newbyteorder("<").str

    def expect(stated: np.dtype[Any]) -> None:
        if stated != flowing:
            raise UnsupportedError(f"filter {name!r} of {stated} on values of {flowing}")

    if name != "packbits" and flowing.kind not in "biuf":
        raise UnsupportedError(f"filter {name!r} on values of {flowing}")
    translated = dict(configuration)
    result = flowing
    match name:
        case "astype":
            expect(dtype_of("decode_dtype", flowing))
            result = dtype_of("encode_dtype", flowing)
            translated |= {"encode_dtype": little(result), "decode_dtype": little(flowing)}
        case "delta" | "fixedscaleoffset" | "quantize":
            expect(dtype_of("dtype", flowing))
            result = dtype_of("astype", flowing)
            if name == "quantize" and result != flowing:
                raise UnsupportedError(f"filter 'quantize' that stores {result} for {flowing}")
            translated |= {"dtype": little(flowing), "astype": little(result)}
        case "packbits":
            expect(np.dtype(bool))
            result = np.dtype("u1")
    if result.kind not in "biuf":
        raise UnsupportedError(f"filter {name!r} that stores {result}")
    return {"name": f"numcodecs.{name}", "configuration": translated}, result
