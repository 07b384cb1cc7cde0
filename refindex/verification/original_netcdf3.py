"""NetCDF classic files as netCDF4 reads them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import netCDF4
import numpy as np

from refindex.verification.originals import Region, UnavailableError, Values

_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError)


class NetCDF3File:
    """A NetCDF classic file."""

    def __init__(self, path: Path) -> None:
        self._file = netCDF4.Dataset(path, "r")
        self._file.set_auto_maskandscale(False)
        self._file.set_auto_chartostring(False)
        self._arrays: dict[str, NetCDF3Array] = {}

    def close(self) -> None:
        self._arrays.clear()
        self._file.close()

    def array(self, path: str) -> NetCDF3Array | None:
        if path not in self._file.variables:
            return None
        if path not in self._arrays:
            self._arrays[path] = NetCDF3Array(self._file.variables[path], path)
        return self._arrays[path]

    def group(self, path: str) -> Mapping[str, Any] | None:
        return None if path else _attributes(self._file)[0]


class NetCDF3Array:
    """A variable."""

    def __init__(self, variable: netCDF4.Variable[Any], path: str) -> None:
        self._variable = variable
        self.path = path
        self.shape = tuple(int(n) for n in variable.shape)
        self.dtype: np.dtype[Any] | None = np.dtype(variable.dtype)
        self.dims: tuple[str | None, ...] | None = tuple(variable.dimensions)
        attributes, unreadable = _attributes(variable)
        self.attributes: Mapping[str, Any] = attributes
        self.unreadable = frozenset(unreadable)

    def is_called(self, axis: int, name: str) -> bool:
        return self.dims is not None and self.dims[axis] == name

    @property
    def fill(self) -> Any:
        own, dtype = self.attributes.get("_FillValue"), np.dtype(self._variable.dtype)
        if own is not None and np.size(own) == 1 and (np.asarray(own).dtype.kind in "SU") == (dtype.kind == "S"):
            with np.errstate(all="ignore"):
                value = np.asarray(own).reshape(-1).astype(dtype.newbyteorder("="))
            # Old files have numbers that no element can be: netCDF-C does not fill with those.
            if dtype.kind == "S" or value[0] == np.ravel(own)[0] or np.isnan(value[0]):
                return value[0]
        default = netCDF4.default_fillvals.get(dtype.str[1:])
        return None if default is None or dtype.kind == "S" else dtype.newbyteorder("=").type(default)

    def read(self, region: Region) -> Values:
        if any(r.stop > n for r, n in zip(region, self.shape, strict=True)):
            raise UnavailableError("the original ends there, and cannot grow")
        try:
            return np.asarray(self._variable[region if region else ...])
        except _ERRORS as error:
            raise UnavailableError(f"netCDF4 cannot read it: {error}") from error


def _attributes(found: Any) -> tuple[dict[str, Any], set[str]]:
    values: dict[str, Any] = {}
    unreadable: set[str] = set()
    for name in found.ncattrs():
        try:
            values[name] = value = found.getncattr(name)
            if isinstance(value, str) and "\ufffd" in value:  # of old tools, whose text is no UTF-8
                values[name] = found.getncattr(name, encoding="latin-1")
        except _ERRORS:
            unreadable.add(name)
    return values, unreadable
