"""What VirtualiZarr's parsers write into documents, as every process reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from refindex.model.dtype import dtype_from_json

_DELTA = "virtual_tiff.HorizontalDeltaCodec"

_REGISTERED = {"HorizontalDeltaCodec": _DELTA}
"""Codecs that are written by a name that only the process knows that has imported them; that of their entry point."""

_ZLIB_LEVEL = 1
"""What numcodecs takes where none is given."""


def respelled(document: dict[str, Any]) -> dict[str, Any]:
    """A ``zarr.json`` of a parser whose codecs are found, and undone rightly, wherever the archive is opened.

    - Bands that lie pixel by pixel in a TIFF have a codec of their own there; a transposition says the same.
    - TIFF's floating-point predictor puts the most significant bytes first in files of either byte order, so its result
      is in this machine's order, not in the file's.
    - Codecs get the name of their entry point, and the level that they leave out.
    """
    codecs: list[dict[str, Any]] = []
    for codec in document["codecs"]:
        name, configuration = codec["name"], dict(codec.get("configuration") or {})
        if name == "ChunkyCodec":
            backwards = list(range(len(document["shape"])))[::-1]
            codecs.append({"name": "transpose", "configuration": {"order": backwards}})
            codec = {"name": "bytes", "configuration": configuration}  # noqa: PLW2901
        elif name in _REGISTERED:
            codec = {**codec, "name": _REGISTERED[name]}  # noqa: PLW2901
        elif name == "numcodecs.zlib" and "level" not in configuration:
            codec = {"name": name, "configuration": {**configuration, "level": _ZLIB_LEVEL}}  # noqa: PLW2901
        codecs.append(codec)
    if codecs[0]["name"] == "imagecodecs_floatpred":
        codecs = [_little(codec) if codec["name"] == "bytes" else codec for codec in codecs]
    return {**document, "codecs": codecs}


def _little(codec: dict[str, Any]) -> dict[str, Any]:
    return {"name": "bytes", "configuration": {"endian": "little"}}


def misread(document: Mapping[str, Any]) -> str | None:
    """Why what a parser says of an array would give wrong values, if it would."""
    names = [codec["name"] for codec in document["codecs"]]
    dtype = dtype_from_json(document["data_type"], "little")
    if _DELTA in names and dtype is not None and dtype.itemsize > 1:
        for codec in document["codecs"]:
            if codec["name"] == "bytes" and codec.get("configuration", {}).get("endian") == "big":
                return "TIFF's horizontal predictor over big-endian values, which virtual-tiff sums in the wrong order"
    return None


def blank_of(document: Mapping[str, Any], attributes: Mapping[str, Any]) -> float | None:
    """What the pixels of a scaled FITS image become that are not defined (``BLANK``), to the last bit.

    The codec divides by a reciprocal, ``_FillValue`` was multiplied.
    """
    first = document["codecs"][0]
    blank = attributes.get("BLANK")
    if first["name"] != "numcodecs.fixedscaleoffset" or type(blank) is not int or "_FillValue" not in attributes:
        return None
    configuration = first["configuration"]
    return float(blank / configuration["scale"] + configuration["offset"])
