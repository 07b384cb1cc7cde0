"""Attributes as they go into a Zarr document: what xarray's CF decoding expects there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refindex.model.dtype import xarray_fill_value


@dataclass(slots=True, kw_only=True)
class Attributes:
    """The attributes of one object.

    ``values`` are strict JSON; ``types`` the numpy dtypes of numeric ones; ``notes`` what could not
    be kept, one sentence each.
    """

    values: dict[str, Any] = field(default_factory=dict)
    types: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def document_attributes(
    attributes: Attributes, served: np.dtype[Any] | None, flags: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """Attributes for the document of an array of ``served`` (None: values of variable length).

    ``_FillValue`` is spelled as xarray reads it from Zarr v3; members of an enumeration become CF's
    ``flag_values`` and ``flag_meanings``. ``attributes.types`` and ``notes`` are brought in line.
    """
    values = dict(attributes.values)
    if flags and "flag_values" not in values and "flag_meanings" not in values:
        members = sorted(flags.items(), key=lambda member: member[1])
        values["flag_values"] = [value for _, value in members]
        values["flag_meanings"] = " ".join(name.replace(" ", "_") for name, _ in members)
        if served is not None:
            attributes.types["flag_values"] = served.newbyteorder("=").name
    if "_FillValue" in values:
        raw = values.pop("_FillValue")
        attributes.types.pop("_FillValue", None)
        encoded = None
        if served is not None and served.kind in "biufc":
            try:
                number = float("nan") if raw == "NaN" else raw
                encoded = xarray_fill_value(served, np.asarray(number).astype(served))
            except (TypeError, ValueError, OverflowError):
                attributes.notes.append(f"_FillValue {raw!r} is not of the array's type; left out")
        else:
            attributes.notes.append("_FillValue of text or compound values is left out: xarray takes none")
        if encoded is not None:
            values["_FillValue"] = encoded
            attributes.notes[:] = [n for n in attributes.notes if not n.startswith("attribute '_FillValue'")]
    missing = values.get("missing_value")
    if missing == "NaN" and served is not None and served.kind == "f":
        # NaN is masked whether or not an attribute says so; as text it would break CF decoding.
        del values["missing_value"]
        attributes.notes[:] = [n for n in attributes.notes if not n.startswith("attribute 'missing_value'")]
    return values
