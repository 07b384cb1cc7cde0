"""Manifests made by hand, of chunks that are stored in every way that an encoding can say."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np

from refindex import ChunkGrid, ChunkTable, Encoding, Filter, Manifest
from refindex.model.chunks import DECLARED, INLINE
from refindex.model.dtype import Leaf, data_type_json, fill_value_json
from refindex.model.encoding import bytes_codec, native_codecs
from refindex.model.manifest import EMPTY_ROOT, Array, Source
from refindex.model.packing import Number, Packing
from refindex.model.zarr_v3 import array_document, dumps

FILTERS: dict[str, tuple[Filter, ...]] = {
    "none": (),
    "deflate": (Filter(id=1, values=(1,)),),
    "shuffle+deflate": (Filter(id=2), Filter(id=1, values=(1,))),
    "shuffle": (Filter(id=2),),
    "fletcher32": (Filter(id=3),),
    "shuffle+deflate+fletcher32": (Filter(id=2), Filter(id=1, values=(1,)), Filter(id=3)),
    "zstd": (Filter(id=32015, values=(3,)),),
}


def stored(values: np.ndarray[Any, Any], filters: Sequence[Filter]) -> bytes:
    """Values as a writer that applies the filters stores them. Independent of refindex."""
    data = np.ascontiguousarray(values).tobytes()
    for applied in filters:
        match applied.id:
            case 1:
                data = zlib.compress(data, applied.values[0])
            case 2:
                data = np.frombuffer(data, "u1").reshape(-1, applied.values[0]).T.tobytes()
            case 3:
                data = bytes(numcodecs.Fletcher32().encode(data))
            case _:
                data = bytes(numcodecs.Zstd(3).encode(data))
    return data


def filters_for(name: str, itemsize: int) -> tuple[Filter, ...]:
    return tuple(Filter(id=2, values=(itemsize,)) if f.id == 2 else f for f in FILTERS[name])


def lengths(grid: ChunkGrid, axis: int) -> list[int]:
    edge = grid.edges[axis]
    return [edge] * grid.counts[axis] if isinstance(edge, int) else [n for n, count in edge for _ in range(count)]


KINDS = ("native", "swapped", "other filters", "larger", "start", "broadcast", "packed", "inline", "absent", "narrow")


class Craft:
    """Writes the chunks of an array, each of a kind drawn by ``choose``, into a few sources with gaps between them.

    ``values`` is what must be read: where chunks are absent it is overwritten with the fill value.
    """

    def __init__(
        self,
        folder: Path,
        values: np.ndarray[Any, Any],
        edges: tuple[Any, ...],
        *,
        filters: str = "none",
        choose: Callable[[], str] = lambda: "native",
        gap: Callable[[], int] = lambda: 0,
        sources: int = 1,
        shuffled: bool = False,
        fill: Any = 0,
    ) -> None:
        self.values = values
        self.grid = ChunkGrid(shape=values.shape, edges=edges)
        self.fill = fill
        dtype = values.dtype
        self._filters = filters_for(filters, dtype.itemsize)
        self._encodings: list[Encoding] = []
        self._paths = [folder / f"source-{n}.bin" for n in range(sources)]
        bodies = [bytearray(b"\xee" * 7) for _ in self._paths]
        inline = bytearray()
        rows = []
        places = list(itertools.product(*(range(n) for n in self.grid.counts)))
        order = np.random.default_rng(0).permutation(len(places)) if shuffled else np.arange(len(places))
        for number in order.tolist():
            kind = choose()
            block, where = self._block(places[number])
            if kind == "absent":
                values[where] = fill
                continue
            if kind == "inline":
                data = self._declared(block)
                rows.append((number, INLINE, len(inline), len(data), DECLARED))
                inline += data
                continue
            if kind == "broadcast":
                block = np.broadcast_to(block[:1], block.shape)
                values[where] = block[tuple(slice(0, n) for n in values[where].shape)]
            encoding, data = self._encode(kind, block)
            source = number % sources
            bodies[source] += b"\xdd" * gap()
            rows.append((number, source, len(bodies[source]), len(data), self._number(encoding)))
            bodies[source] += data
        for path, body in zip(self._paths, bodies, strict=True):
            path.write_bytes(body + b"\xcc" * 5)
        columns = np.array(rows, dtype=np.int64).reshape(-1, 5)
        table = ChunkTable.from_columns(
            chunk=columns[:, 0],
            source=columns[:, 1],
            offset=columns[:, 2],
            length=columns[:, 3],
            encoding=columns[:, 4],
            data=bytes(inline),
        )
        document = array_document(
            grid=self.grid,
            data_type=data_type_json(dtype),
            codecs=self.codecs,
            fill_value=fill_value_json(dtype, fill),
            dimension_names=[f"d{axis}" for axis in range(values.ndim)],
            attributes={},
        )
        array = Array(path="a", document=dumps(document), encodings=tuple(self._encodings), chunks=table)
        self.manifest = Manifest(groups={"": EMPTY_ROOT}, arrays={"a": array}, sources=tuple(map(_source, self._paths)))

    @property
    def codecs(self) -> list[dict[str, Any]]:
        """The declared chain: the filters, where they have codecs for every chunk shape."""
        shape = tuple(max(lengths(self.grid, axis)) for axis in range(self.grid.ndim))
        encoding = Encoding(type=Leaf(self.values.dtype.str), shape=shape, filters=self._filters)
        return native_codecs(encoding, self.values.dtype) or [bytes_codec(self.values.dtype)]

    def _block(self, place: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], tuple[slice, ...]]:
        """A whole chunk, its overhang filled with garbage, and the part of the array that it covers."""
        starts = [sum(lengths(self.grid, axis)[:at]) for axis, at in enumerate(place)]
        shape = tuple(lengths(self.grid, axis)[at] for axis, at in enumerate(place))
        where = tuple(slice(start, start + n) for start, n in zip(starts, shape, strict=True))
        block = np.full(shape, 99, dtype=self.values.dtype)
        inside = self.values[where]
        block[tuple(slice(0, n) for n in inside.shape)] = inside
        return block, where

    def _declared(self, block: np.ndarray[Any, Any]) -> bytes:
        return stored(block, self._filters if len(self.codecs) > 1 else ())

    def _number(self, encoding: Encoding) -> int:
        if encoding not in self._encodings:
            self._encodings.append(encoding)
        return self._encodings.index(encoding)

    def _encode(self, kind: str, block: np.ndarray[Any, Any]) -> tuple[Encoding, bytes]:
        dtype, filters = self.values.dtype, self._filters
        extra: dict[str, Any] = {}
        shape = block.shape
        if kind == "swapped":
            dtype = dtype.newbyteorder("S")
        elif kind == "other filters":
            filters = filters_for("zstd" if filters else "shuffle+deflate", dtype.itemsize)
        elif kind == "larger":
            block = np.pad(block, [(0, 2)] * block.ndim, constant_values=98)
        elif kind == "start":
            extra["start"] = (1,) * block.ndim
            block = np.pad(block, [(1, 1)] * block.ndim, constant_values=97)
        elif kind == "broadcast":
            block = block[:1]
            extra["broadcast"] = (0,) if shape[0] > 1 else ()
        elif kind == "packed":
            dtype = np.dtype("<i2")
            block = ((block - 3) / 2).round().astype("<i2")
            extra["packing"] = Packing(
                dtype=self.values.dtype.newbyteorder("=").str,
                scale=Number.of(np.float64(2)),
                offset=Number.of(np.float64(3)),
            )
        elif kind == "narrow":
            dtype = np.dtype("<i2")
            block = block.astype("<i2")
        if dtype.itemsize != self.values.dtype.itemsize:
            filters = tuple(Filter(id=2, values=(dtype.itemsize,)) if f.id == 2 else f for f in filters)
        block = block.astype(dtype)
        encoding = Encoding(type=Leaf(dtype.str), shape=block.shape, filters=filters, **extra)
        return encoding, stored(block, filters)


def _source(path: Path) -> Source:
    status = path.stat()
    return Source(url=f"file://{path}", size=status.st_size, mtime=status.st_mtime_ns // 1000)
