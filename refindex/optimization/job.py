"""One variable that is rewritten: as it is, and as it will be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Node, Source
from refindex.optimization.codecs import Storing
from refindex.optimization.layout import Layout
from refindex.optimization.result import OptimizedArray
from refindex.optimization.shards import Folder


@dataclass(slots=True, kw_only=True)
class Job:
    """One variable: as it is, and as it will be."""

    node: Node
    table: ChunkTable
    layout: Layout
    storing: Storing
    present: npt.NDArray[np.bool_]
    key: str
    folder: Folder
    kept: int = 0

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.node.shape, dtype=object)) * self.storing.dtype.itemsize

    def result(self, made: Made | None) -> OptimizedArray:
        return OptimizedArray(
            path=self.node.path,
            folder=urls.display(self.folder.url),
            chunks=self.layout.chunk,
            shards=self.layout.shard,
            codec=str(self.storing.codec),
            files=self.layout.shards.size if made is None else len(made.sources),
            kept=self.kept,
            nbytes=self.nbytes,
            nbytes_stored=0 if made is None else sum(source.size for source in made.sources),
            reads=self.layout.reads,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A variable that is rewritten: references, which number ``sources`` from 0."""

    node: Node
    table: ChunkTable
    sources: list[Source]
