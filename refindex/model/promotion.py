"""Types that hold all values of others: what an array joined of several types is served as."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np


def widens(kind: np.dtype[Any], wider: np.dtype[Any]) -> bool:
    """Whether every value of a type, byte order aside, is also one of another.

    Stricter than numpy, to which 64-bit integers are "safe" as double precision, and booleans as numbers.
    """
    if kind.newbyteorder("=") == wider.newbyteorder("="):
        return True
    if kind.kind == wider.kind == "S":
        return kind.itemsize <= wider.itemsize
    if kind.kind not in "iufc" or wider.kind not in "iufc":
        return False
    if kind.kind in "iu" and wider.kind in "fc":
        real = np.finfo(wider)
        # A float holds the integers of one bit more than its mantissa stores, and as many negative ones.
        return kind.itemsize * 8 - (kind.kind == "i") <= real.nmant + 1
    return bool(np.can_cast(kind, wider, "safe"))


def common_type(kinds: Sequence[np.dtype[Any]]) -> np.dtype[Any] | None:
    """The smallest type that holds all values of some, in the byte order of the first; None if there is none."""
    first = kinds[0]
    if all(kind.newbyteorder("=") == first.newbyteorder("=") for kind in kinds):
        return first
    try:
        wider = reduce(np.promote_types, (kind.newbyteorder("=") for kind in kinds))
    except TypeError:
        return None
    if not all(widens(kind, wider) for kind in kinds):
        return None
    return wider.newbyteorder(">") if first.str[0] == ">" else wider
