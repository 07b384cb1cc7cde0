"""Decoding many chunks of one encoding: what can be decided once is decided once, not for each chunk."""

from __future__ import annotations

from collections.abc import Buffer, Sequence
from typing import Any

import numpy as np

from refindex.decode.filters import are_built_in, check_size, undo, undo_all, unshuffle_into
from refindex.decode.inflate import inflate
from refindex.decode.pipeline import Values, converted, place
from refindex.model.dtype import Leaf, Subarray, is_foreign, numpy_dtype, served_dtype
from refindex.model.encoding import BLOSC, BZIP2, DEFLATE, FLETCHER32, SHUFFLE, ZSTD, Encoding, Filter
from refindex.model.promotion import widens

MANY = 1 << 15
"""Chunks of at most this many decoded bytes are decoded together: beyond it a numpy call costs little."""

_FILTERS = {
    "numcodecs.zlib": DEFLATE,
    "numcodecs.shuffle": SHUFFLE,
    "numcodecs.fletcher32": FLETCHER32,
    "numcodecs.bz2": BZIP2,
    "blosc": BLOSC,
    "zstd": ZSTD,
}


class Decoder:
    """Turns stored chunks of one encoding into values of one array. Safe to use from several threads.

    Parameters
    ----------
    encoding:
        That of the chunks.
    served:
        Dtype of the array.

    Attributes
    ----------
    element:
        Dtype as which decoded bytes are read: equal to ``served`` but for what assigning to it converts (byte order,
        width). None where more must be done to them, as unpacking.
    plain:
        Whether stored bytes are elements: no filters, nothing moved or repeated.
    """

    def __init__(self, encoding: Encoding, served: np.dtype[Any]) -> None:
        self.encoding = encoding
        self.served = served
        self.nbytes = encoding.nbytes
        self.element = _element(encoding, served)
        self.in_place = not any(encoding.start) and not encoding.broadcast
        self.plain = self.element is not None and self.in_place and not encoding.filters
        first = encoding.filters[0] if encoding.filters else None
        self._shuffled = first.values[0] if first is not None and first.id == SHUFFLE and first.values else 0
        self._quick = are_built_in(encoding.filters)
        if self._shuffled <= 1 or self.nbytes % self._shuffled or not self._quick:
            self._shuffled = 0
        # What is undone for each chunk; the shuffle that was applied first is undone for many at a time.
        self._steps = tuple(reversed(encoding.filters[1:] if self._shuffled else encoding.filters))

    @property
    def copies(self) -> bool:
        """Whether decoded values never share the memory of the stored bytes."""
        # A checksum is cut off, and the shuffle of a single element is none.
        return any(applied.id not in {FLETCHER32, SHUFFLE} for applied in self.encoding.filters)

    def values(self, data: Buffer) -> Values:
        """The values of a stored chunk in the shape in which it was stored.

        Raises
        ------
        DecodeError
            If a filter fails, a checksum differs, or the size is not what the encoding promises.
        """
        raw = undo_all(data, self.encoding)
        if self.element is not None:
            return np.frombuffer(raw, dtype=self.element).reshape(self.encoding.shape)
        return converted(raw, self.encoding, self.served)

    def into(self, data: Buffer, out: Values) -> None:
        """Decode a chunk to where it goes; ``out`` has the shape in which it was stored.

        Raises
        ------
        DecodeError
            As :meth:`values`.
        """
        # To numpy, None is a way to write float64: a type that is not there must not be compared.
        same = self.element is not None and self.element == out.dtype
        if same and self._shuffled == out.itemsize and (out.ndim == 0 or _dense(out)):
            raw = np.frombuffer(undo_all(data, self.encoding, but_first=True), dtype=np.uint8)
            elements = out[..., np.newaxis].view(np.uint8)
            # The planes have the elements in C order, whatever the strides of the destination are.
            planes = raw.reshape(self._shuffled, *out.shape)
            for byte in range(self._shuffled):
                elements[..., byte] = planes[byte]
        else:
            out[...] = self.values(data)

    def many(self, stored: Sequence[Buffer]) -> Values:
        """The values of several chunks, in a first dimension.

        Raises
        ------
        DecodeError
            If any of them fails, as :meth:`values`.
        """
        count = len(stored)
        raw: Sequence[Buffer] = stored
        if not self._quick:
            raw = [undo_all(data, self.encoding) for data in stored]
        else:
            for step in self._steps:
                if step.id == DEFLATE:
                    raw = [inflate(data, self.nbytes) for data in raw]
                else:
                    raw = [undo(data, step, self.nbytes) for data in raw]
        joined: Buffer = b"".join(raw)
        if memoryview(joined).nbytes != count * self.nbytes or any(len(data) != self.nbytes for data in raw):  # type: ignore[arg-type]
            for data in raw:
                check_size(data, self.encoding)
        if self._shuffled:
            size = self._shuffled
            elements = np.empty((count, self.nbytes // size, size), dtype=np.uint8)
            planes = np.frombuffer(joined, dtype=np.uint8).reshape(count, size, self.nbytes // size)
            unshuffle_into(planes, elements)
            joined = elements.data
        if self.element is not None:
            return np.frombuffer(joined, dtype=self.element).reshape(count, *self.encoding.shape)
        return converted(joined, self.encoding, self.served, count=count)

    def placed(self, values: Values, shape: tuple[int, ...], fill: Any) -> Values:
        """What the values of a stored chunk are in a place of ``shape``, see :func:`refindex.decode.pipeline.place`."""
        if values.dtype != self.served:
            # What is padded is padded with the array's fill value, which the stored type may not hold.
            values = values.astype(self.served)
        return place(values, self.encoding, shape, fill)

    def covers(self, shapes: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Of places of the given shapes ``(n, ndim)``, which are filled by a stored chunk as it is, cropped at most."""
        stored = self.encoding.shape
        if not self.in_place or len(stored) != shapes.shape[1]:
            return np.zeros(len(shapes), dtype=bool)
        return np.asarray((shapes <= np.array(stored, dtype=np.int64)).all(axis=1))


def _dense(out: Values) -> bool:
    """Whether the elements of the last dimension lie one after the other, so that their bytes can be seen."""
    return out.strides[-1] == out.itemsize or out.shape[-1] == 1


def _element(encoding: Encoding, served: np.dtype[Any]) -> np.dtype[Any] | None:
    flat = encoding.type
    while isinstance(flat, Subarray):
        flat = flat.base
    if not isinstance(flat, Leaf) or encoding.packing is not None or is_foreign(flat):
        return None
    natural, element = served_dtype(flat), numpy_dtype(flat)
    if element.names is not None or natural != element or not widens(element, served):
        return None
    return element


def declared(codecs: Sequence[dict[str, Any]], shape: tuple[int, ...], served: np.dtype[Any]) -> Encoding | None:
    """The encoding that a declared codec chain is, for chunks of one shape; None where that cannot be said.

    Parameters
    ----------
    codecs:
        Of the array's document.
    served:
        Dtype of decoded bytes, in the declared byte order.
    """
    if not codecs or codecs[0]["name"] != "bytes" or served.names is not None:
        return None
    filters = []
    for codec in codecs[1:]:
        number = _FILTERS.get(codec["name"])
        if number is None:
            return None
        values = (int(codec["configuration"]["elementsize"]),) if number == SHUFFLE else ()
        filters.append(Filter(id=number, values=values))
    return Encoding(type=Leaf(served.str), shape=shape, filters=tuple(filters))
