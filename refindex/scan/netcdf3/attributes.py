"""Attributes of NetCDF classic files -> JSON values, as netCDF4-python presents them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from refindex.model.zarr_v3 import json_value
from refindex.scan.cf import Attributes
from refindex.scan.netcdf3.header import Attribute

_MAX_NBYTES = 1 << 24


def read_attributes(attributes: Iterable[Attribute]) -> Attributes:
    """All attributes of a variable or of the file. Where a name occurs twice, the first one counts, as in netCDF-C."""
    result = Attributes()
    for attribute in attributes:
        name = attribute.name
        if name in result.values:
            result.notes.append(f"attribute {name!r}: occurs twice; the first one is kept")
            continue
        if len(attribute.values) > _MAX_NBYTES:
            result.notes.append(f"attribute {name!r}: {len(attribute.values)} bytes are too many; left out")
            continue
        if attribute.dtype.kind == "S":
            result.values[name] = text(attribute.values)
            continue
        numbers = np.frombuffer(attribute.values, dtype=attribute.dtype)
        value, changed = json_value(numbers.item() if numbers.size == 1 else numbers.tolist())
        if changed:
            result.notes.append(f"attribute {name!r}: JSON has no NaN or infinity; kept as text")
        else:
            result.types[name] = attribute.dtype.newbyteorder("=").name
        result.values[name] = value
    return result


def text(raw: bytes) -> str:
    """Characters as text, without NULs: UTF-8, and Latin-1 for what older tools wrote."""
    try:
        return raw.replace(b"\0", b"").decode()
    except UnicodeDecodeError:
        return raw.replace(b"\0", b"").decode("latin-1")
