"""Decoded chunks that are likely to be wanted again: a loop over rows decodes each chunk once."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Any

import numpy as np

type Values = np.ndarray[Any, Any]

BUDGET = 64 << 20


class ChunkCache:
    """Values by key, the last used ones within a budget of bytes.

    Safe to use from several threads, and after a fork; it is never pickled with what owns it.

    Parameters
    ----------
    budget:
        Bytes that may be kept; 0 keeps nothing.
    """

    def __init__(self, budget: int = BUDGET) -> None:
        self.budget = budget
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._kept: OrderedDict[Hashable, Values] = OrderedDict()
        self._nbytes = 0

    def _own(self) -> None:
        if self._process != os.getpid():  # the lock may have been held by a thread that this process does not have
            self._forget()

    @property
    def nbytes(self) -> int:
        """Bytes that are kept now."""
        return self._nbytes

    def get(self, key: Hashable) -> Values | None:
        """The values of a key if they are kept; they must not be written to."""
        self._own()
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
            return found

    def put(self, key: Hashable, values: Values) -> None:
        """Keep values, which nobody else may change, instead of those last used longest ago."""
        if values.nbytes > self.budget:
            return
        self._own()
        values.flags.writeable = False
        with self._lock:
            previous = self._kept.pop(key, None)
            self._nbytes += values.nbytes - (0 if previous is None else previous.nbytes)
            self._kept[key] = values
            while self._nbytes > self.budget:
                self._nbytes -= self._kept.popitem(last=False)[1].nbytes

    def clear(self) -> None:
        """Let go of everything."""
        self._forget()
