"""Stored chunks to values in the result of one selection."""

from __future__ import annotations

import threading
from collections.abc import Buffer, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.decode.checksum import check
from refindex.decode.decoder import MANY, Decoder
from refindex.errors import DecodeError, FormatError, SourceError, UnsupportedError
from refindex.model.chunks import INLINE
from refindex.serve.cache import ChunkCache
from refindex.serve.parts import Points, Runs, gather, is_basic, strided
from refindex.serve.places import Places
from refindex.serve.plan import IntArray, Plan
from refindex.serve.strips import distinct, put_strip, runs_of

type Values = np.ndarray[Any, Any]

_TOGETHER = 4 << 20
"""Decoded bytes of small chunks that are decoded together: they stay in the processor's cache."""

_FEW = 4
"""Ranges up to which handling them together takes longer than one by one."""

_LONG = 16 << 10
"""Bytes of a range beyond which copying it costs more than what Python does around it."""


class Scatter:
    """Decodes the chunks of a plan to where they go. Safe to use from several threads, each with chunks of its own.

    Parameters
    ----------
    plan, places:
        What is read, and where it goes.
    out:
        The result.
    fill:
        Value of what is not in a source.
    drop_axes:
        Dimensions of length one in what is selected of a chunk that the result does not have.
    cache:
        Where decoded chunks are kept of which only a part was wanted.
    sources:
        The sources, for messages.
    everything:
        Whether these places are all of the result.
    """

    def __init__(
        self,
        plan: Plan,
        places: Places,
        out: Values,
        *,
        fill: Any,
        drop_axes: tuple[int, ...] = (),
        cache: ChunkCache | None = None,
        sources: Sequence[Any] = (),
        everything: bool = True,
    ) -> None:
        self.plan = plan
        self.places = places
        self.out = out
        self._fill = fill
        self._drop = drop_axes
        self._cache = cache
        self._sources = sources
        self._lock = threading.Lock()
        self._all = len(places.chunks) if everything else -1
        self._gathered: dict[int, tuple[Values, int]] = {}

    def absent(self) -> None:
        """Fill in the places of chunks that do not exist."""
        if len(self.plan.absent) == len(self.places.chunks) == self._all:
            self.out[...] = self._fill
            return
        outside = self.places.outside
        for position in self.plan.absent.tolist():
            self.out[outside[position]] = self._fill

    def inline(self) -> None:
        """Decode the chunks whose bytes are in the manifest."""
        table = self.plan.table
        for row in self.plan.inline.tolist():
            start = int(table.offset[row])
            self.whole(row, memoryview(table.data)[start : start + int(table.length[row])])

    def target(self, number: int) -> memoryview | None:
        """Where the bytes of a range go if all of them do, in their order, and without conversion."""
        plan = self.plan
        row = int(plan.row[number])
        decoder, position = plan.decoders[int(plan.which[row])], int(plan.position[row])
        if plan.table.checksum is not None:
            return None  # what is not as it was must not get there
        if not (decoder.plain and decoder.element == self.out.dtype and not self._drop and plan.covered[row]):
            return None
        which = int(plan.part[row])
        target: Any = None
        if which < 0:
            if int(plan.table.length[row]) == decoder.nbytes:
                target = self._whole_target(decoder, position)
        else:
            part, outside = plan.parts[which], self.places.outside[position]
            if isinstance(part, Runs) and part.is_dense(self.out.itemsize) and is_basic(outside):
                target = self.out[outside][part.at(number - int(plan.first[row]))]
        if isinstance(target, np.ndarray) and target.ndim and target.flags.c_contiguous:
            return memoryview(target.reshape(-1).view(np.uint8))
        return None

    def _whole_target(self, decoder: Decoder, position: int) -> Values | None:
        inside, outside = self.places.inside[position], self.places.outside[position]
        if not is_basic(outside) or not all(isinstance(part, slice) for part in inside):
            return None
        target = self.out[outside]
        # Slices give the shape of the whole chunk only where they are all of it.
        return target if isinstance(target, np.ndarray) and target.shape == decoder.encoding.shape else None

    def region(self, ranges: IntArray) -> memoryview | None:
        """Where ranges that follow each other in their source go, if that is one piece of memory, in their order."""
        plan, layout, rows = self.plan, self.places.layout, self.plan.row[ranges]
        positions = plan.position[rows]
        if plan.table.checksum is not None:
            return None
        if layout is None or self._drop or bool((plan.part[rows] >= 0).any()) or not bool(plan.covered[rows].all()):
            return None
        which = distinct(plan.which[rows])
        decoder = plan.decoders[which[0]]
        if len(which) > 1 or not decoder.plain or decoder.element is None or decoder.element != self.out.dtype:
            return None
        if bool((plan.length[ranges] != decoder.nbytes).any()):
            return None
        if bool((np.diff(positions) != 1).any()) or not bool(layout.follows[positions[1:]].all()):
            return None
        if len(distinct(layout.kinds[positions])) > 1:
            return None
        begin, end = self.places.outside[int(positions[0])], self.places.outside[int(positions[-1])]
        axis, shape = layout.axis, decoder.encoding.shape
        if not is_basic(begin) or not is_basic(end) or len(begin) != len(shape):
            return None
        target = self.out[(*begin[:axis], slice(begin[axis].start, end[axis].stop), *begin[axis + 1 :])]
        wanted = (*shape[:axis], shape[axis] * len(rows), *shape[axis + 1 :])
        if target.shape != wanted or any(n != 1 for n in shape[:axis]) or not target.flags.c_contiguous:
            return None
        return memoryview(target.reshape(-1).view(np.uint8))

    def arrived(self, ranges: IntArray, begins: IntArray, buffer: memoryview) -> None:
        """Decode ranges, of which ``begins`` are the first bytes in ``buffer``.

        Raises
        ------
        DecodeError
            Naming the array, the chunk, and where it is stored.
        """
        plan = self.plan
        rows = plan.row[ranges]
        ends = begins + plan.length[ranges]
        self._check(rows, begins, ends, buffer)
        alone = np.ones(len(rows), dtype=bool)
        if len(rows) > _FEW and not self._drop:
            which, part = plan.which[rows], plan.part[rows]
            for number in distinct(which):
                decoder = plan.decoders[number]
                if decoder.nbytes > MANY:
                    continue
                chosen = np.flatnonzero((which == number) & (part < 0) & plan.covered[rows])
                if self._cache is not None and self.places.layout is None:
                    chosen = chosen[~self.places.partial[plan.position[rows[chosen]]]]
                if len(chosen):
                    alone[chosen] = False
                    self._many(decoder, rows[chosen], begins[chosen], ends[chosen], buffer)
            for number in distinct(part) if plan.parts else ():
                chosen = np.flatnonzero(part == number)
                if number >= 0 and len(chosen) > _FEW:
                    alone[chosen[self._many_parts(plan.parts[number], ranges[chosen], begins[chosen], buffer)]] = False
        for at in np.flatnonzero(alone).tolist():
            self._one(int(ranges[at]), buffer[int(begins[at]) : int(ends[at])])

    def one(self, number: int, data: memoryview) -> None:
        """Decode one range, of which ``data`` are the bytes.

        Raises
        ------
        DecodeError
            As :meth:`arrived`.
        """
        row = self.plan.row[number : number + 1]
        self._check(row, np.zeros(1, dtype=np.int64), np.full(1, len(data)), data)
        self._one(number, data)

    def _check(self, rows: IntArray, begins: IntArray, ends: IntArray, buffer: memoryview) -> None:
        """Compare ranges of a buffer with the checksums of their references."""
        if self.plan.table.checksum is None:
            return
        expected = self.plan.table.checksum[rows]
        for at in np.flatnonzero(expected >= 0).tolist():
            try:
                check(buffer[int(begins[at]) : int(ends[at])], int(expected[at]))
            except DecodeError as error:
                raise self._undecoded(int(rows[at]), error) from error

    def _one(self, number: int, data: memoryview) -> None:
        row = int(self.plan.row[number])
        part = int(self.plan.part[row])
        if part < 0:
            self.whole(row, data)
        else:
            self._part(row, self.plan.parts[part], number - int(self.plan.first[row]), data)

    def _many(self, decoder: Decoder, rows: IntArray, begins: IntArray, ends: IntArray, buffer: memoryview) -> None:
        step = max(1, _TOGETHER // max(1, decoder.nbytes))
        if decoder.plain and decoder.element is not None and bool((ends - begins == decoder.nbytes).all()):
            shape = decoder.encoding.shape
            strides = np.empty(shape, dtype=np.bool_).strides
            strides = tuple(decoder.element.itemsize * n for n in strides)
            for at in range(0, len(rows), step):
                some = slice(at, at + step)
                values = strided(buffer, begins[some], decoder.nbytes, decoder.element, shape, strides)
                self._select(decoder, rows[some], values)
            return
        # Slices of bytes, and not of the buffer: the garbage collector would look at each of those.
        content = buffer.obj if isinstance(buffer.obj, bytes) and len(buffer.obj) == buffer.nbytes else bytes(buffer)
        for at in range(0, len(rows), step):
            some = slice(at, at + step)
            stored = [content[a:b] for a, b in zip(begins[some].tolist(), ends[some].tolist(), strict=True)]
            try:
                values = decoder.many(stored)
            except (DecodeError, FormatError, UnsupportedError):
                for row, data in zip(rows[some].tolist(), stored, strict=True):
                    self.whole(row, data)  # finds the one that fails, and names it
                raise
            if self._cache is not None and not decoder.plain:
                self._keep(rows[some], values)
            self._select(decoder, rows[some], values)

    def _keep(self, rows: IntArray, values: Values) -> None:
        """Put the chunks of which only a part is wanted into the cache, each with memory of its own."""
        if self._cache is None:
            return
        for at in np.flatnonzero(self.places.partial[self.plan.position[rows]]).tolist():
            self._cache.put(self.key(int(self.plan.table.chunk[rows[at]])), values[at].copy())

    def _select(self, decoder: Decoder, rows: IntArray, values: Values) -> None:
        """Put what is wanted of chunks where it goes; where the places allow it, of many at a time."""
        positions, places = self.plan.position[rows], self.places
        if places.layout is None:
            self._put(values, positions, self._neighbours(decoder, rows, positions), -1, self.places.inside)
            return
        kinds = places.layout.kinds[positions]
        numbers = distinct(kinds)
        for number in numbers if 4 * len(numbers) <= len(kinds) else ():
            chosen = np.flatnonzero(kinds == number)
            some, where = (values, positions) if len(chosen) == len(kinds) else (values[chosen], positions[chosen])
            inside = places.inside[int(where[0])]
            if is_basic(inside):
                self._put_blocks(some[(slice(None), *inside)], where)
            else:
                self._put(some, where, [], 0, places.inside)
        if 4 * len(numbers) > len(kinds):
            self._put(values, positions, [], 0, places.inside)

    def _put_blocks(self, blocks: Values, positions: IntArray) -> None:
        """Put what is wanted of chunks, all of one shape, where it goes."""
        layout = self.places.layout
        if layout is None:
            self._put(blocks, positions, [], 0)
            return
        joined = (np.diff(positions) == 1) & layout.follows[positions[1:]]
        self._put(blocks, positions, runs_of(joined), layout.axis)

    def _put(
        self,
        values: Values,
        positions: IntArray,
        strips: list[tuple[int, int]],
        axis: int,
        inside: Sequence[Any] | None = None,
    ) -> None:
        """Put values, or what ``inside`` selects of them, where they go: strips of neighbours as one block."""
        left = positions.tolist()
        done, out, outside = 0, self.out, self.places.outside
        for first, last in [*strips, (len(left), len(left))]:
            if first == last or put_strip(out, outside[left[first]], outside[left[last - 1]], values[first:last], axis):
                for value, position in zip(values[done:first], left[done:first], strict=True):
                    out[outside[position]] = value if inside is None else value[inside[position]]
                done = last

    def _neighbours(self, decoder: Decoder, rows: IntArray, positions: IntArray) -> list[tuple[int, int]]:
        """Runs of chunks, all wanted whole, that are neighbours in the last dimension; first and last-plus-one each."""
        plan, ndim = self.plan, self.plan.shapes.shape[1]
        if not ndim or len(rows) < 2 or len(decoder.encoding.shape) != ndim:
            return []
        whole = ~self.places.partial[positions] & (plan.shapes[rows] == decoder.encoding.shape).all(axis=1)
        chunk = plan.table.chunk[rows]
        count = plan.node.grid.counts[-1]
        joined = (np.diff(positions) == 1) & (np.diff(chunk) == 1) & (chunk[1:] % count != 0) & whole[1:] & whole[:-1]
        # The chunk at the far end may overhang the array: it is not like its neighbours.
        return runs_of(joined & (chunk[1:] % count != count - 1))

    def _many_parts(self, part: Runs | Points, ranges: IntArray, begins: IntArray, buffer: memoryview) -> IntArray:
        """Put ranges of chunks, of all of which the same part is wanted, where they go; which of them are done."""
        plan = self.plan
        rows = plan.row[ranges]
        numbers = ranges - plan.first[rows]
        element = plan.decoders[int(plan.which[rows[0]])].element
        none = np.zeros(0, dtype=np.int64)
        if element is None:
            return none
        if isinstance(part, Points):
            # The elements of a chunk are put together, so all of them must be there.
            if len(numbers) != len(part.first) - 1 or bool((numbers != np.arange(len(numbers))).any()):
                return none
            at = part.at + np.repeat(begins - part.at[part.first[:-1]], np.diff(part.first))
            found = np.empty(len(at), element)
            found[part.order] = gather(buffer, at, element)
            self.out[self.places.outside[int(plan.position[rows[0]])]] = found.reshape(part.shape)
            return np.arange(len(ranges))
        if part.span > _LONG:
            return none
        values = strided(buffer, begins, part.span, element, part.inner, part.strides)
        if len(part.offsets) == 1:
            self._put_blocks(values.reshape(len(values), *part.shape), plan.position[rows])
            return np.arange(len(ranges))
        done = np.ones(len(ranges), dtype=bool)
        for row in distinct(rows):
            chosen = np.flatnonzero(rows == row)
            outside = self.places.outside[int(plan.position[row])]
            if not is_basic(outside) or not part.outer:
                done[chosen] = False
                continue
            self.out[outside][np.unravel_index(numbers[chosen], part.outer)] = values[chosen]
        return np.flatnonzero(done)

    def whole(self, row: int, data: Buffer) -> None:
        """Decode one chunk, of which all bytes are there."""
        plan = self.plan
        decoder, position = plan.decoders[int(plan.which[row])], int(plan.position[row])
        try:
            if plan.covered[row] and not self._drop:
                target = self._whole_target(decoder, position)
                if target is not None:
                    decoder.into(data, target)
                    return
            values = decoder.values(data)
            if not plan.covered[row]:
                values = decoder.placed(values, tuple(plan.shapes[row].tolist()), self._fill)
            if self._cache is not None and self.places.partial[position] and not decoder.plain:
                if not decoder.copies or values.base is None:
                    values = values.copy()
                self._cache.put(self.key(int(plan.table.chunk[row])), values)
            self.assign(position, values)
        except (DecodeError, FormatError, UnsupportedError) as error:
            raise self._undecoded(row, error) from error

    def key(self, chunk: int) -> tuple[str, int]:
        """What a chunk is called in the cache."""
        return self.plan.node.path, chunk

    def assign(self, position: int, values: Values) -> None:
        """Put what is selected of a whole chunk where it goes."""
        selected = values[self.places.inside[position]]
        if self._drop:
            selected = selected.squeeze(axis=self._drop)
        self.out[self.places.outside[position]] = selected

    def _part(self, row: int, part: Runs | Points, number: int, data: memoryview) -> None:
        """Put one range of a chunk, the ``number``-th of those that were asked for, where it goes."""
        plan = self.plan
        position = int(plan.position[row])
        element = plan.decoders[int(plan.which[row])].element
        if element is None:
            raise FormatError(f"/{plan.node.path}: a part of a chunk whose elements are not stored as they are")
        if isinstance(part, Runs):
            values: Values = np.ndarray(part.inner, element, data, strides=part.strides)
            outside = self.places.outside[position]
            if is_basic(outside) and not self._drop:
                if part.shape:
                    target: Values = self.out[outside]
                    target[part.at(number)] = values
                else:
                    self.out[outside] = values
                return
            whole, done = self._collect(row, part.shape, element, len(part.offsets))
            whole[part.at(number)] = values
        else:
            some = slice(int(part.first[number]), int(part.first[number + 1]))
            whole, done = self._collect(row, part.shape, element, len(part.first) - 1)
            whole.reshape(-1)[part.order[some]] = gather(data, part.at[some] - part.at[some.start], element)
        with self._lock:
            values, left = self._gathered[row]
            self._gathered[row] = values, left - 1
            done = left == 1
        if done:
            selected = values.squeeze(axis=self._drop) if self._drop else values
            self.out[self.places.outside[position]] = selected
            with self._lock:
                del self._gathered[row]

    def _collect(self, row: int, shape: tuple[int, ...], element: np.dtype[Any], count: int) -> tuple[Values, bool]:
        with self._lock:
            if row not in self._gathered:
                self._gathered[row] = np.empty(shape, element), count
            return self._gathered[row][0], False

    def name(self, row: int) -> str:
        """The key of a chunk."""
        return f"/{self.plan.node.path}/{self.plan.node.grid.key(int(self.plan.table.chunk[row]))}"

    def _undecoded(self, row: int, error: Exception) -> DecodeError:
        table = self.plan.table
        where = "the manifest"
        if int(table.source[row]) != INLINE:
            where = f"{table.offset[row]} of {urls.display(self._sources[int(table.source[row])].url)}"
        return DecodeError(
            f"{self.name(row)}: {table.length[row]} bytes at {where}: {error}. "
            "The file is damaged, or the manifest does not belong to it: scan it again."
        )

    def unread(self, rows: npt.NDArray[np.int64], error: SourceError) -> SourceError:
        """A failed request as an error that names the chunks for which it was."""
        some = ", ".join(self.name(int(row)) for row in rows[:3]) + (" and others" if len(rows) > 3 else "")
        return type(error)(f"{error} (for {some})")
