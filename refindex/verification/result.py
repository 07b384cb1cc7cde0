"""What a verification finds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from refindex.access import urls

MOST = 1000
"""Problems that are named one by one; of the others, the number is known."""

_EXAMPLES = 5
"""Places at which something could not be compared that are named for each reason."""

_SHOWN = 50
"""Problems that are printed for people."""


class Kind(StrEnum):
    """What is not right."""

    MANIFEST = "manifest"
    """A row of the manifest that contradicts the others, or cannot be."""
    SOURCE = "source"
    """A file that is not there, cannot be read, or is not what was scanned."""
    DOCUMENT = "document"
    """What the archive says of an array or a group, and its original does not: type, shape, dimensions, attributes."""
    VALUES = "values"
    """Values that are not those of the original."""
    UNREADABLE = "unreadable"
    """A chunk that cannot be read or decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that is not right, and where.

    Parameters
    ----------
    kind:
        What is not right.
    what:
        It in words.
    source:
        The file that it is about, as people write it; empty if it is about none.
    path:
        Of the array or group; None if it is about none.
    chunk:
        Number of the chunk in the array's chunk grid, if it is about one.
    expected, got:
        What the original (or the format) says, and what the archive says.
    remedy:
        What to do.
    """

    kind: Kind
    what: str
    source: str = ""
    path: str | None = None
    chunk: int | None = None
    expected: str = ""
    got: str = ""
    remedy: str = ""

    def __str__(self) -> str:
        where = [] if self.path is None else [f"/{self.path}"]
        where += [] if self.chunk is None else [f"chunk {self.chunk}"]
        place = " ".join(where)
        if self.source:
            place = f"{place} ({self.source})" if place else self.source
        says = f"{self.kind}: {f'{place}: ' if place else ''}{self.what}"
        if self.expected or self.got:
            says += f": expected {self.expected}, got {self.got}"
        return f"{says}; {self.remedy}" if self.remedy else says

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; what does not apply is null."""
        return {
            "kind": str(self.kind),
            "what": self.what,
            "source": self.source or None,
            "path": self.path,
            "chunk": self.chunk,
            "expected": self.expected or None,
            "got": self.got or None,
            "remedy": self.remedy or None,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncompared:
    """What could not be compared for one reason: how often, and a few of the places."""

    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """How far a verification is.

    Parameters
    ----------
    name:
        ``manifest``, ``sources`` or ``values``.
    done, total:
        References, files or chunks; a total of None is not known.
    problems:
        How many were found so far.
    """

    name: str
    done: int
    total: int | None
    problems: int


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What a verification looked at, and what it found.

    Parameters
    ----------
    url, version:
        The archive as people write it, and the version that was looked at.
    arrays, references, inline:
        Arrays of the manifest; its references; those of them whose bytes are in the manifest.
    sources, sources_checked:
        Files that the manifest names, and how many of them were looked at.
    chunks, absent:
        Chunks whose values were compared, and chunks without a reference that were found to be absent rightly.
    parts:
        Pieces of chunks that were compared, each with one file: a chunk may hold values of several.
    documents:
        Arrays whose type, shape, dimensions, fill value and attributes were compared, once for each file.
    originals:
        Files that were opened with the library of their format.
    uncompared:
        What could not be compared, by reason.
    problems:
        What is not right, the first :data:`MOST`.
    count:
        How many problems there are in all.
    complete:
        Whether it came to its end; False if it was interrupted.
    seconds:
        How long it took.
    """

    url: str
    version: int
    arrays: int = 0
    references: int = 0
    inline: int = 0
    sources: int = 0
    sources_checked: int = 0
    chunks: int = 0
    absent: int = 0
    parts: int = 0
    documents: int = 0
    originals: int = 0
    uncompared: Mapping[str, Uncompared] = field(default_factory=lambda: MappingProxyType({}))
    problems: tuple[Problem, ...] = ()
    count: int = 0
    complete: bool = True
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing was found that is not right."""
        return not self.count

    @property
    def counts(self) -> Mapping[Kind, int]:
        """Number of the problems that are named, by kind."""
        return MappingProxyType(Counter(problem.kind for problem in self.problems))

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        names = ("arrays", "references", "inline", "sources", "sources_checked", "chunks", "absent", "parts")
        return {
            "url": self.url,
            "version": self.version,
            "ok": self.ok,
            "complete": self.complete,
            **{name: getattr(self, name) for name in (*names, "documents", "originals")},
            "seconds": round(self.seconds, 3),
            "uncompared": [
                {"reason": reason, "count": found.count, "examples": list(found.examples)}
                for reason, found in self.uncompared.items()
            ],
            "count": self.count,
            "problems": [problem.to_json() for problem in self.problems],
        }

    def __str__(self) -> str:
        lines = [
            f"{self.url} (version {self.version}): {'right' if self.ok else f'{_many(self.count, "problem")}'}"
            f"{'' if self.complete else ', not looked at to the end'}",
            f"  manifest: {_many(self.arrays, 'array')}, {_many(self.references, 'reference')}"
            f"{f', {self.inline} of them inline' if self.inline else ''}",
            f"  sources: {self.sources_checked} of {self.sources} looked at",
        ]
        if self.documents or self.chunks or self.absent:
            absent = f", {self.absent} absent ones" if self.absent else ""
            lines.append(
                f"  values: {_many(self.chunks, 'chunk')}{absent} in {_many(self.parts, 'part')} compared with "
                f"{_many(self.originals, 'file')}, read by their own libraries"
            )
        for reason, found in self.uncompared.items():
            lines.append(f"  not compared: {found.count} ({', '.join(found.examples)}): {reason}")
        lines += [f"  {problem}" for problem in self.problems[:_SHOWN]]
        if self.count > _SHOWN:
            lines.append(f"  and {self.count - _SHOWN} more")
        return urls.masked("\n".join(lines))


class VerificationInterrupted(KeyboardInterrupt):
    """A verification was interrupted; ``so_far`` is what it had found."""

    def __init__(self, so_far: Verification) -> None:
        super().__init__(str(so_far))
        self.so_far = so_far


class Findings:
    """What is found while a verification runs. Safe to use from several threads."""

    def __init__(self, progress: Callable[[Stage], None] | None = None) -> None:
        self.problems: list[Problem] = []
        self.count = 0
        self.tally: Counter[str] = Counter()
        self._uncompared: dict[str, tuple[int, dict[str, None]]] = {}
        self._progress = progress
        self._start = time.monotonic()
        self._lock = threading.Lock()

    def add(self, kind: Kind, what: str, *, count: int = 1, **where: Any) -> None:
        """A problem; ``count`` of the same, of which this is the first."""
        with self._lock:
            self.count += count
            if len(self.problems) < MOST:
                self.problems.append(Problem(kind=kind, what=what, **where))

    def skip(self, reason: str, example: str, count: int = 1) -> None:
        """Something that cannot be compared, and why."""
        with self._lock:
            before, examples = self._uncompared.get(reason, (0, {}))
            if len(examples) < _EXAMPLES:
                examples[example] = None
            self._uncompared[reason] = before + count, examples

    def told(self, stage: str, done: int, total: int | None) -> None:
        """Tell how far it is."""
        if self._progress is not None:
            self._progress(Stage(name=stage, done=done, total=total, problems=self.count))

    def result(self, url: str, version: int, *, complete: bool = True) -> Verification:
        """All of it."""
        return Verification(
            url=url,
            version=version,
            uncompared=MappingProxyType(
                {reason: Uncompared(count=n, examples=tuple(some)) for reason, (n, some) in self._uncompared.items()}
            ),
            problems=tuple(self.problems),
            count=self.count,
            complete=complete,
            seconds=time.monotonic() - self._start,
            **self.tally,
        )


def _many(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
