"""Chunks as an archive serves them beside what the library of each file reads there."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.archive import Archive
from refindex.errors import RefindexError, SourceError
from refindex.model.manifest import Node
from refindex.serve.quiet import quiet
from refindex.storage import ManifestReader
from refindex.storage.windows import windows
from refindex.verification.comparison import difference
from refindex.verification.declared import REMEDY, JoinedFills, Notes, check_array, check_attributes
from refindex.verification.expected import Expected, expected, served_fill
from refindex.verification.lineage import Box, Lineage, Part
from refindex.verification.originals import Original, OriginalArray, Originals, UnavailableError, Values
from refindex.verification.relations import Relations
from refindex.verification.result import Findings, Kind
from refindex.verification.sampling import Picks

_ABSENT = 4096
"""Chunks of one array without a reference that are looked at, where all chunks are."""

_ALIKE = 3
"""Files that are looked at where all must have the same: the first, and some at random."""

_CANDIDATES = 32
"""Files at one place that are tried, of which one must have the values."""

_FILES = 16
"""Files, at least, that a chunk of a sample is compared with: one may hold values of thousands."""

_DOCUMENTS = 64
"""Files of each array whose documents are compared."""

DAMAGED = "the file is damaged, or the manifest is not of it: scan it again (refindex append --replace)"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """A chunk that is to be compared, and where it lies in its array."""

    path: str
    chunk: int
    box: Box
    absent: bool


@dataclass(kw_only=True)
class Comparison:
    """The comparison of an archive with its originals.

    Parameters
    ----------
    broken:
        Sources that are not as they were recorded, by number: their URLs. What lies in them is not compared.
    workers:
        Threads in which chunks are read and decoded; originals are read in that of the caller.
    """

    archive: Archive
    reader: ManifestReader
    relations: Relations
    lineage: Lineage
    originals: Originals
    picks: Picks
    found: Findings
    paths: Sequence[str]
    broken: Mapping[int, str]
    workers: int
    seed: int = 0
    _arrays: dict[str, Any] = field(default_factory=dict)
    _checked: dict[str, set[str]] = field(default_factory=dict)
    _becoming: dict[tuple[str, str], Expected] = field(default_factory=dict)
    _seen: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Compare documents, then values."""
        with np.errstate(all="ignore"):  # casts of what is not a number are meant
            self._run()

    def _run(self) -> None:
        self._fills = JoinedFills()
        self._random = np.random.default_rng(self.seed)
        self._notes = Notes(self.relations.report)
        self._bad = {urls.display(url) for url in self.broken.values()}
        self._limit: int | None = None
        readable = self._opened()
        self._groups()
        for path in self.paths:
            try:
                self._document(path)
            except Exception as error:  # documents can say anything
                self.found.skip(f"what is said of it could not be compared: {_said(error)}", f"/{path}")
        tasks, total = self._tasks(readable)
        done = 0
        self.found.told("values", 0, total)
        with ThreadPoolExecutor(max_workers=self.workers, thread_name_prefix="refindex-verify") as pool:
            waiting: deque[tuple[_Task, Future[Values]]] = deque()
            try:
                for task in itertools.chain(tasks, itertools.repeat(None, 1)):
                    if task is not None:
                        waiting.append((task, pool.submit(self._served, task)))
                    while waiting and (task is None or len(waiting) > 2 * self.workers):
                        self._compare(*waiting.popleft())
                        done += 1
                        self.found.told("values", done, total)
                if self.lineage.kept_all:
                    self._fills.check(self.relations.nodes, self.found)
            finally:
                for _, future in waiting:
                    future.cancel()
                self.found.tally["originals"] = len(self.originals.seen)

    def _opened(self) -> list[str]:
        """Arrays that zarr opens; the others are problems."""
        readable = []
        with quiet():
            try:
                group = self.archive.group
            except Exception as error:
                self.found.add(Kind.DOCUMENT, f"zarr cannot open the archive: {_said(error)}", remedy=REMEDY)
                return []
            for path in self.paths:
                try:
                    self._arrays[path] = group[path]
                    readable.append(path)
                except Exception as error:
                    self.found.add(Kind.DOCUMENT, f"zarr cannot open it: {_said(error)}", path=path, remedy=REMEDY)
        return readable

    def _tasks(self, readable: Sequence[str]) -> tuple[Iterator[_Task], int]:
        """What is to be compared, in an order in which files are opened once, and how much it is."""
        counts = dict(self.picks.counts())
        if self.picks.wanted is None:
            holes = {path: self._holes(path, _ABSENT) for path in readable}
            total = sum(counts.get(path, 0) + len(holes[path]) for path in readable)
            return self._all(readable, holes), total
        chosen = {path: numbers for path, numbers in self.picks.chosen().items() if path in self._arrays}
        n_chosen = sum(map(len, chosen.values()))
        self._limit = max(_FILES, self.picks.wanted // max(1, n_chosen))
        each = min(64, max(2, self.picks.wanted // (5 * max(1, len(readable)))))
        holes = {path: self._holes(path, each) for path in readable}
        listed = [
            self._task(path, number, absent)
            for path in readable
            for number, absent in sorted([(n, False) for n in chosen.get(path, ())] + [(n, True) for n in holes[path]])
        ]
        return iter(sorted(listed, key=self._order)), len(listed)

    def _order(self, task: _Task) -> tuple[str, ...]:
        part = next(iter(self.lineage.parts(task.path, task.box)), None)
        return (part.files[0] if part is not None and part.files else "", task.path)

    def _all(self, readable: Sequence[str], holes: Mapping[str, Sequence[int]]) -> Iterator[_Task]:
        for path in readable:
            size = self.relations.nodes[path].grid.size
            for window in windows(self.reader, path):
                numbers = window.columns["chunk"]
                for number in numbers[(numbers >= 0) & (numbers < size)].tolist():
                    yield self._task(path, number, False)
            for number in holes[path]:
                yield self._task(path, number, True)

    def _holes(self, path: str, most: int) -> list[int]:
        """Chunks of an array that are absent."""
        candidates = np.unique(np.array(self.picks.holes(path, most), dtype=np.int64))
        if not len(candidates):
            return []
        try:
            there = self.reader.find(path, candidates).chunk
        except RefindexError:
            return []
        return [int(n) for n in np.setdiff1d(candidates, there)]

    def _task(self, path: str, chunk: int, absent: bool) -> _Task:
        grid = self.relations.nodes[path].grid
        box = tuple(
            (min(low, end), min(low + length, end))
            for low, length, end in zip(grid.origin(chunk), grid.chunk_shape(chunk), grid.shape, strict=True)
        )
        return _Task(path=path, chunk=chunk, box=box, absent=absent)

    def _served(self, task: _Task) -> Values:
        region = tuple(slice(low, high) for low, high in task.box)
        return np.asarray(self._arrays[task.path][region if region else ...])

    def _compare(self, task: _Task, future: Future[Values]) -> None:
        try:
            served = future.result()
        except Exception as error:
            self._unread(task, error)
            return
        node = self.relations.nodes[task.path]
        compared = False
        for part in self._some(self.lineage.parts(task.path, task.box)):
            inside = tuple(slice(low - at, high - at) for (low, high), (at, _) in zip(part.box, task.box, strict=True))
            try:
                compared |= self._compare_part(task, node, part, served[inside] if inside else served)
            except Exception as error:  # as above
                self.found.skip(f"it could not be compared: {_said(error)}", _at(task))
        if compared:
            self.found.tally["absent" if task.absent else "chunks"] += 1

    def _unread(self, task: _Task, error: Exception) -> None:
        text = _said(error)
        if isinstance(error, SourceError) and any(name in text for name in self._bad):
            self.found.skip("the file is not as it was scanned, which is a problem of its own", _at(task))
            return
        if "UnknownCodecError" in text or isinstance(error, ImportError):
            self.found.skip(text, _at(task))
            return
        files = next((part.files for part in self.lineage.parts(task.path, task.box)), ())
        self.found.add(
            Kind.UNREADABLE if isinstance(error, RefindexError) else Kind.DOCUMENT,
            f"it cannot be read: {text}",
            path=task.path,
            chunk=task.chunk,
            source=urls.display(files[0]) if files else "",
            remedy=DAMAGED,
        )

    def _some(self, parts: Iterator[Part]) -> list[Part]:
        """All parts of a chunk; of a sample, a few, those of files first that were not looked at so far."""
        listed = list(parts)
        if self._limit is None or len(listed) <= self._limit:
            return listed
        keys = self._random.random(len(listed))
        order = sorted(range(len(listed)), key=lambda n: (bool(self._seen.intersection(listed[n].files)), keys[n]))
        return [listed[n] for n in sorted(order[: self._limit])]

    def _compare_part(self, task: _Task, node: Node, part: Part, served: Values) -> bool:
        """Compare a part of a chunk with its files; whether there was anything to compare."""
        where: dict[str, Any] = {"path": task.path, "chunk": task.chunk}
        constant = self.lineage.kind == "joined" and not any(self.lineage.joined_axes(task.path))
        differing: tuple[str, tuple[str, str, str]] | None = None
        tried = 0

        def spare() -> Iterator[tuple[str, tuple[int, ...]]]:
            """Files of no joined dimension: where files were merged, one of them may have it."""
            if constant and not tried:
                yield from ((url, tuple(low for low, _ in part.box)) for url in self.lineage.others)

        for url, origin in itertools.chain(self._candidates(part, constant=constant), spare()):
            try:
                found = self._original(url, node, _at(task))
            except UnavailableError:
                return False
            if found is None:
                continue
            array, becoming = found
            self._seen.add(url)
            values = self._read(array, origin, part, task, url)
            if values is None:
                return False
            tried += 1
            why = becoming.differ(values, served)
            if why is None and not (constant and tried < _ALIKE and not self.lineage.first_only):
                self.found.tally["parts"] += 1
                return True
            if why is not None:
                differing = differing or (url, why)
                if constant and not self.lineage.first_only:
                    break
            if tried >= _CANDIDATES:
                break
        self.found.tally["parts"] += 1
        if differing is not None:
            url, (what, wanted, got) = differing
            source = urls.display(url)
            self.found.add(Kind.VALUES, what, expected=wanted, got=got, source=source, remedy=REMEDY, **where)
        elif not tried:
            return self._without_file(task, node, part, served)
        return True

    def _without_file(self, task: _Task, node: Node, part: Part, served: Values) -> bool:
        """Compare what no file has: where files were joined, that is the fill value."""
        if task.path in self.lineage.stacked:
            self.found.skip("made when the files were joined: no file has it", f"/{task.path}")
            return False
        if self.lineage.kind != "joined":
            if self.lineage.kind == "side by side" and not part.files:
                self.found.skip("the manifest does not say which file the group is of", f"/{task.path}")
            return False  # that the file does not have the array was found with the documents
        fill = served_fill(node)
        wanted = np.full(served.shape, fill, dtype=object if node.dtype is None else node.dtype)
        if node.dtype is None and served.size and isinstance(served.reshape(-1)[0], bytes):
            wanted = np.full(served.shape, b"", dtype=object)
        why = difference(wanted, served)
        if why is not None:
            what = f"no file has values here: {why[0]}"
            self.found.add(
                Kind.VALUES, what, expected=why[1], got=why[2], path=task.path, chunk=task.chunk, remedy=REMEDY
            )
        return True

    def _candidates(self, part: Part, *, constant: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
        """The files that may have a part; of those that must all be the same, the first and some at random."""
        pairs = list(zip(part.files, part.origins, strict=True))
        if not constant or len(pairs) <= _ALIKE:
            yield from pairs
            return
        yield pairs[0]
        rest = self._random.permutation(len(pairs) - 1) + 1
        yield from (pairs[int(n)] for n in rest)

    def _original(self, url: str, node: Node, place: str) -> tuple[OriginalArray, Expected] | None:
        """An array of a file, and what becomes of its values; None if the file does not have it.

        Raises
        ------
        UnavailableError
            If the file is of no use; that has been counted.
        """
        try:
            if urls.display(url) in self._bad:
                raise UnavailableError("the file is not as it was scanned, which is a problem of its own")
            original = self.originals.of(url)
            array = original.array(self.lineage.original_path(node.path))
            return None if array is None else (array, self._becomes(url, node, original, array))
        except UnavailableError as error:
            self.found.skip(str(error), place)
            raise

    def _becomes(self, url: str, node: Node, original: Original, array: OriginalArray) -> Expected:
        key = (url, node.path)
        if key not in self._becoming:
            if len(self._becoming) > 4096:
                self._becoming.clear()
            joined = self.lineage.kind == "joined"
            becoming = expected(node, self.relations.nodes, original, array, joined=joined)
            self._becoming[key] = becoming
            checked = self._checked.setdefault(node.path, set())
            if url not in checked and len(checked) < _DOCUMENTS:
                checked.add(url)
                self.found.tally["documents"] += 1
                check_array(node, url, array, becoming, self.lineage, self._notes, self.found)
                if joined:
                    self._fills.see(node, array, becoming)
        return self._becoming[key]

    def _read(self, array: OriginalArray, origin: tuple[int, ...], part: Part, task: _Task, url: str) -> Values | None:
        """The values of an original at a part, with the dimensions that it lacks; None if they cannot be read."""
        extra = len(origin) - len(array.shape)
        if extra < 0 or (extra and self.lineage.kind != "joined"):
            return None  # found with the documents
        lengths = tuple(high - low for low, high in part.box)
        region = tuple(slice(at, at + n) for at, n in zip(origin[extra:], lengths[extra:], strict=True))
        try:
            values = array.read(region)
        except UnavailableError as error:
            self.found.skip(str(error), f"{_at(task)} of {urls.display(url)}")
            return None
        return np.broadcast_to(values, lengths) if extra else values

    def _document(self, path: str) -> None:
        """Compare what is said of an array with its first file that has it."""
        node = self.relations.nodes[path]
        if path in self.lineage.stacked:
            return
        files = self.lineage.files_of(path)
        if not files:
            reason = "the manifest does not say which file it is of"
            self.found.skip(reason if self.lineage.kind != "single" else "it has no file", f"/{path}")
            return
        constant = not any(self.lineage.joined_axes(path)) if self.lineage.kind == "joined" else False
        places = (*files, *self.lineage.others) if constant else files
        for url in places[:_DOCUMENTS]:
            try:
                if self._original(url, node, f"/{path}") is not None:
                    return
            except UnavailableError:
                return
        if len(places) <= _DOCUMENTS:
            names = urls.display(files[0]) + (f" and {len(files) - 1} more" if len(files) > 1 else "")
            self.found.add(Kind.DOCUMENT, "no file has such an array", path=path, source=names, remedy=REMEDY)

    def _groups(self) -> None:
        """Compare the attributes of groups."""
        if self.lineage.kind == "imported":
            return
        for path, node in self.relations.nodes.items():
            if node.is_array or (self.lineage.kind == "side by side" and not path):
                continue
            for url in self.lineage.files_of(path)[:_ALIKE]:
                if urls.display(url) in self._bad:
                    continue
                try:
                    attributes = self.originals.of(url).group(self.lineage.original_path(path))
                except UnavailableError as error:
                    self.found.skip(str(error), f"/{path}")
                    continue
                if attributes is None:
                    continue
                where = {"path": path, "source": urls.display(url), "remedy": REMEDY}
                own, joined = self.lineage.original_path(path), self.lineage.kind == "joined"
                check_attributes(node, attributes, set(), own, self._notes, where, self.found, joined=joined)


def _at(task: _Task) -> str:
    return f"/{task.path} chunk {task.chunk}"


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, RefindexError) else f"{type(error).__name__}: {text}"
