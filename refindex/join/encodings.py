"""The encodings and the codec chain of a joined array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.join.axis import Use
from refindex.join.variables import ArrayPlan
from refindex.model.chunks import DECLARED, ChunkTable
from refindex.model.dtype import StoredType, Text, type_from_json
from refindex.model.encoding import Encoding, bytes_codec, native_codecs
from refindex.model.manifest import Node
from refindex.model.zarr_v3 import dumps

type IntArray = npt.NDArray[np.int64]


def same_meaning(plan: ArrayPlan, kind: int) -> bool:
    """Whether the rows of an archive's array mean the same in the joined one."""
    node = plan.variants.nodes[kind]
    return plan.dtype == node.dtype and plan.packings[kind] is None


def declared_codecs(
    plan: ArrayPlan, uses: Sequence[Use], table_of: Callable[[Use], ChunkTable], base: Use | None
) -> list[dict[str, Any]]:
    """The codec chain of most of the chunks; that of the archive that is appended to, where it can stay.

    The first file of each kind stands for the others.
    """
    nodes = plan.variants.nodes
    if plan.dtype is None:
        return nodes[0].codecs
    if base is not None and same_meaning(plan, base.kind):
        return nodes[base.kind].codecs
    times = Counter(use.kind for use in uses)
    weights: Counter[str] = Counter()
    chains: dict[str, list[dict[str, Any]]] = {}
    for kind, count in times.items():
        if plan.packings[kind] is not None:
            continue
        table = table_of(next(use for use in uses if use.kind == kind))
        numbers, rows = np.unique(table.encoding, return_counts=True)
        for number, n in zip(numbers.tolist(), rows.tolist(), strict=True):
            if number == DECLARED:
                codecs = nodes[kind].codecs if nodes[kind].dtype == plan.dtype else None
            else:
                codecs = native_codecs(nodes[kind].encodings[number], plan.dtype)
            if codecs is not None:
                weights[dumps(codecs)] += n * count
                chains.setdefault(dumps(codecs), codecs)
    if not weights:
        return [bytes_codec(plan.dtype)]
    return chains[weights.most_common(1)[0][0]]


class Encodings:
    """The encodings of a joined array, each once."""

    def __init__(self, plan: ArrayPlan, codecs: list[dict[str, Any]], initial: Sequence[Encoding]) -> None:
        self.found: list[Encoding] = list(initial)
        self._numbers = {encoding: n for n, encoding in enumerate(self.found)}
        self._plan = plan
        self.codecs = codecs

    def add(self, encoding: Encoding) -> int:
        number = self._numbers.setdefault(encoding, len(self.found))
        if number == len(self.found):
            self.found.append(encoding)
        return number

    def of_kind(self, kind: int) -> IntArray:
        """Numbers of a kind's encodings in the joined array."""
        packing = self._plan.packings[kind]
        numbers = [
            self.add(e if packing is None or e.packing is not None else replace(e, packing=packing))
            for e in self._plan.variants.nodes[kind].encodings
        ]
        return np.array(numbers, dtype=np.int64)

    def declared_stays(self, node: Node, kind: int) -> bool:
        """Whether bytes as a document declares them are bytes as the joined one does."""
        return node.dtype == self._plan.dtype and self._plan.packings[kind] is None and node.codecs == self.codecs

    def of_declared(self, node: Node, kind: int, shape: tuple[int, ...]) -> int | None:
        """The encoding of bytes as a document declares them; None if no encoding says it."""
        if node.dtype is None or len(node.codecs) != 1:
            return None
        stored = stored_type(node.dtype)
        if stored is None:
            return None
        return self.add(Encoding(type=stored, shape=shape, packing=self._plan.packings[kind]))


def stored_type(dtype: np.dtype[Any]) -> StoredType | None:
    """The stored type of elements that lie as a document declares them."""
    if dtype.kind == "S":
        return Text(dtype.itemsize, "nullpad")
    if dtype.names is not None:
        return None
    return type_from_json(dtype.str)
