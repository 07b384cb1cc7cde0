"""Array metadata of Zarr v3 (core specification 3.0 and 3.1, "Array metadata"), passed through."""

from __future__ import annotations

from functools import cache
from importlib.metadata import entry_points
from typing import Any

from refindex.errors import FormatError, UnsupportedError
from refindex.model.dtype import dtype_from_json, fill_value_from_json
from refindex.model.grid import ChunkGrid
from refindex.scan.zarr.plan import (
    ChunkKeys,
    Plan,
    extents,
    members,
    regular_grid,
    required,
    shortened,
    understood,
)

_REQUIRED = ("shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")
_KNOWN = frozenset({*_REQUIRED, "zarr_format", "node_type", "attributes", "storage_transformers", "dimension_names"})

_ARRAY_ARRAY = {
    "transpose", "cast_value", "scale_offset", "numcodecs.delta", "numcodecs.fixedscaleoffset", "numcodecs.quantize",
    "numcodecs.astype", "numcodecs.bitround", "numcodecs.packbits",
}  # fmt: skip
_ARRAY_BYTES = {
    "bytes", "sharding_indexed", "vlen-utf8", "vlen-bytes", "numcodecs.pcodec", "numcodecs.zfpy",
}  # fmt: skip
_BYTES_BYTES = {
    "gzip", "blosc", "zstd", "crc32c",
    *(f"numcodecs.{name}" for name in (
        "blosc", "lz4", "zstd", "zlib", "gzip", "bz2", "lzma", "shuffle", "crc32", "crc32c", "adler32", "fletcher32",
        "jenkins_lookup3",
    )),
}  # fmt: skip
_DATA_TYPES = {
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128", "string", "bytes", "variable_length_bytes", "fixed_length_utf32",
    "null_terminated_bytes", "raw_bytes", "numpy.datetime64", "numpy.timedelta64", "struct", "structured",
}  # fmt: skip


@cache
def _installed(group: str) -> frozenset[str]:
    """Names that packages beside zarr-python register with it."""
    return frozenset(entry.name for entry in entry_points(group=group))


def plan(document: dict[str, Any]) -> Plan:
    """Understand one array's ``zarr.json``.

    Raises
    ------
    FormatError
        If it contradicts the specification.
    UnsupportedError
        If it has a feature that stock zarr-python cannot read, by name. (One such array would keep zarr-python from
        opening any of the archive.)
    """
    required(document, _REQUIRED, "zarr.json")
    kept = {name: value for name, value in document.items() if name in _KNOWN}
    understood(document, _KNOWN)
    if kept.pop("storage_transformers", None):
        raise UnsupportedError(f"storage transformers: {shortened(document['storage_transformers'])}")
    shape = extents(kept["shape"], "shape")
    grid = _grid(shape, kept["chunk_grid"])
    data_type = named(kept["data_type"], "data_type") if isinstance(kept["data_type"], dict) else kept["data_type"]
    codecs = check_codecs(kept["codecs"], len(shape))
    _check_type(data_type, kept["fill_value"], codecs)
    names = kept.get("dimension_names")
    if names is not None and (
        not isinstance(names, list)
        or len(names) != len(shape)
        or not all(name is None or isinstance(name, str) for name in names)
    ):
        raise FormatError(f"dimension_names is {shortened(names)}; expected {len(shape)} strings")
    keys = _keys(kept["chunk_key_encoding"])
    kept |= {
        "chunk_grid": grid.to_json(),
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": codecs,
        "attributes": members(kept.get("attributes", {}), "attributes"),
    }
    if names is None:
        kept.pop("dimension_names", None)
    return Plan(document=kept, grid=grid, keys=keys)


def named(value: Any, what: str) -> dict[str, Any]:
    """An extension point: an object with a name and, perhaps, a configuration; 3.1 allows the bare name."""
    if isinstance(value, str):
        return {"name": value}
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise FormatError(f"{what} is {shortened(value)}; expected an object with a name")
    configuration = value.get("configuration", {})
    if not isinstance(configuration, dict):
        raise FormatError(f"{what} {value['name']!r}: its configuration is {shortened(configuration)}")
    return value


def _grid(shape: tuple[int, ...], value: Any) -> ChunkGrid:
    grid = named(value, "chunk_grid")
    configuration = grid.get("configuration", {})
    if grid["name"] == "regular":
        return regular_grid(shape, extents(configuration.get("chunk_shape"), "chunk_shape"))
    if grid["name"] == "rectilinear":
        if configuration.get("kind") != "inline":
            raise UnsupportedError(f"a rectilinear chunk grid of kind {shortened(configuration.get('kind'))}")
        return ChunkGrid.from_json(shape, grid)
    raise UnsupportedError(f"chunk grid {grid['name']!r}")


def _keys(value: Any) -> ChunkKeys:
    encoding = named(value, "chunk_key_encoding")
    if encoding["name"] not in ("default", "v2"):
        raise UnsupportedError(f"chunk key encoding {encoding['name']!r}")
    default = encoding["name"] == "default"
    separator = encoding.get("configuration", {}).get("separator", "/" if default else ".")
    if separator not in ("/", "."):
        raise FormatError(f"chunk key separator {shortened(separator)}; expected '/' or '.'")
    return ChunkKeys(default=default, separator=separator)


def check_codecs(value: Any, ndim: int) -> list[dict[str, Any]]:
    """A codec chain whose names zarr-python knows, in an order that is possible.

    3.0, "Codecs": any number of array -> array codecs, one array -> bytes codec, any number of bytes -> bytes codecs.
    """
    if not isinstance(value, list) or not value:
        raise FormatError(f"codecs is {shortened(value)}; expected a list of codecs")
    chain = [named(codec, "codec") for codec in value]
    stage = 0
    for codec in chain:
        name = codec["name"]
        kind = 0 if name in _ARRAY_ARRAY else 1 if name in _ARRAY_BYTES else 2 if name in _BYTES_BYTES else None
        if kind is None:
            if name not in _installed("zarr.codecs"):
                raise UnsupportedError(f"codec {name!r}: neither zarr-python nor an installed package has it")
            return chain  # the order of a chain with a codec of unknown kind is for zarr-python to check
        if kind < stage or kind == stage == 1 or (kind == 2 and stage == 0):
            raise FormatError(f"codec {name!r} cannot be where it is in {[c['name'] for c in chain]}")
        stage = max(stage, kind)
        if name == "transpose":
            order = codec.get("configuration", {}).get("order")
            if (
                not isinstance(order, list)
                or set(map(repr, order)) != set(map(repr, range(ndim)))
                or len(order) != ndim
            ):
                raise FormatError(f"codec 'transpose': order is {shortened(order)}; expected all of {ndim} dimensions")
        if name == "bytes" and codec.get("configuration", {}).get("endian", "little") not in ("little", "big", None):
            raise FormatError(f"codec 'bytes': {shortened(codec['configuration'])}")
    if stage == 0:
        raise FormatError(f"no codec of {[c['name'] for c in chain]} makes bytes of an array")
    return chain


def _check_type(data_type: Any, fill_value: Any, codecs: list[dict[str, Any]]) -> None:
    name = data_type["name"] if isinstance(data_type, dict) else data_type
    if not isinstance(name, str):
        raise FormatError(f"data_type is {shortened(data_type)}; expected a name or an object with a name")
    bits = name[1:] if name.startswith("r") else ""
    if not (name in _DATA_TYPES or name in _installed("zarr.data_type") or (bits.isascii() and bits.isdigit())):
        raise UnsupportedError(f"data type {shortened(name)}: neither zarr-python nor an installed package has it")
    if fill_value is None:
        raise FormatError("fill_value is null; expected a value of the data type")
    if name in ("struct", "structured"):
        fields = data_type.get("configuration", {}).get("fields") if isinstance(data_type, dict) else None
        if not isinstance(fields, list):
            raise FormatError(f"data_type is {shortened(data_type)}; expected fields")
        return
    dtype = dtype_from_json(data_type, "little")
    if dtype is None:
        return
    if dtype.kind in "iu" and type(fill_value) is not int:
        raise FormatError(f"fill_value {shortened(fill_value)} is not of type {name}")
    if dtype.kind in "biufc":
        fill_value_from_json(dtype, fill_value)
    if dtype.itemsize > 1 and dtype.kind in "iufcmM":
        last = next((c for c in codecs if c["name"] == "bytes"), None)
        if last is not None and codecs[0] is last and last.get("configuration", {}).get("endian") is None:
            raise FormatError(f"codec 'bytes' does not give the byte order of {name}")
