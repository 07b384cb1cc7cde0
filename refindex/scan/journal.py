"""What a scan has done so far, on disk, so that one that was killed can go on.

A folder with four files:

``scan.json``
    What the scan was asked for that changes what it gives, and by which version of refindex.
``documents.jsonl``
    Nodes and reports, each once; only added to.
``files.jsonl``
    A line for each file that was scanned, or failed; only added to, the last line of a file counts.
``references``
    Their records, see :mod:`refindex.scan.packed`.

Every line begins with a digest of what it says: documents are known by theirs, and a line of which a part is missing
or wrong is as good as none. Lines of files also say the checksum of their records. What a line names is written
before the line, so that whatever is there when the writer dies can be told from what is not.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from pathlib import Path
from typing import Any

from refindex.access import urls
from refindex.errors import ConflictError, ExistsError, FormatError, RefindexError, SourceError
from refindex.model.encoding import Encoding
from refindex.model.manifest import Node, Source
from refindex.scan.lines import is_node, is_report, parsed, strange, told
from refindex.scan.packed import ALIGNED, Interner, Layout, Line, Packed
from refindex.scan.records import Records

FORMAT = 3
"""Version of the files' format."""

HEADER, DOCUMENTS, FILES, REFERENCES = "scan.json", "documents.jsonl", "files.jsonl", "references"

_DIGEST = 16
"""Hexadecimal digits of a digest."""

_FLUSHED, _SYNCED = 0.5, 5.0
"""Seconds after which what was scanned is handed to the operating system (it survives the process), and to the disk (it
survives the machine)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A scanned file as a journal has it: where its record lies, and all else."""

    nodes: tuple[Node, ...]
    layout: Layout
    at: int
    sources: tuple[Source, ...]
    report: tuple[Line, ...]


class Journal:
    """The journal in a folder; one process at a time has it.

    Parameters
    ----------
    folder:
        Where it is, or will be.
    asked:
        What changes what the scan gives, as JSON. No secrets: it is written.

    Raises
    ------
    FormatError
        If another version of refindex wrote it, or a scan that was asked for something else.
    ConflictError
        If another process has it.
    SourceError
        Here and in all methods, if it cannot be written or read.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        self.folder = folder
        self._known: set[str] = set()
        self._texts: dict[str, bytes] = {}
        self._digests: dict[int, tuple[object, str]] = {}
        self._waiting: dict[str, list[bytes]] = {DOCUMENTS: [], FILES: []}
        self._flushed = self._synced = time.monotonic()
        self._lines: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(folder)
        except OSError as error:
            raise self._failed(error) from error
        self._unlock = weakref.finalize(self, os.close, self._lock)
        try:
            self._begin({"format": FORMAT, "refindex": version("refindex"), "asked": dict(asked)})
            self.records = Records(folder / REFERENCES)
            self._read()
        except BaseException as error:
            self._unlock()
            if isinstance(error, OSError) and not isinstance(error, RefindexError):
                raise self._failed(error) from error
            raise

    def _read(self) -> None:
        """What is there, and sound; the rest is dropped."""
        for text in self._sound_lines(DOCUMENTS):
            self._texts[_digest(text)] = text
        self._known.update(self._texts)
        end = 0
        for text in self._sound_lines(FILES):
            line = told(text, self.folder / FILES)
            self._lines[line["url"]] = line
            end = max(end, line.get("at", 0) + line.get("nbytes", 0))
        end = min(end, self.records.size)
        self.records.truncate(end - end % ALIGNED)

    def _failed(self, error: OSError) -> SourceError:
        return SourceError(f"{self.folder}: what is scanned cannot be kept here: {error.strerror or error}")

    def _begin(self, header: dict[str, Any]) -> None:
        path = self.folder / HEADER
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            strange = [path for path in self.folder.iterdir() if path.name != HEADER + ".tmp"]
            if strange:
                raise ExistsError(
                    f"{self.folder} is not what a scan keeps, it has no {HEADER}: remove it, or choose another name"
                ) from None
            temporary = self.folder / (HEADER + ".tmp")
            with temporary.open("wb") as file:
                file.write(_text(header))
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            os.fsync(self._lock)
            return
        except ValueError:
            found = None
        advice = "remove the folder, or scan without going on with it"
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise FormatError(f"{path}: not of a form that this refindex knows; {advice}")
        if found.get("refindex") != header["refindex"]:
            raise FormatError(
                f"{self.folder} was begun by refindex {found.get('refindex')}, and this is {header['refindex']}; "
                f"{advice}"
            )
        if found.get("asked") != header["asked"]:
            raise FormatError(
                f"{self.folder} was begun by a scan of {_asked(found.get('asked'))}, and this is one of "
                f"{_asked(header['asked'])}; {advice}"
            )

    def _sound_lines(self, name: str) -> Iterator[bytes]:
        """The lines that are whole; what comes behind the last end of a line is dropped."""
        path = self.folder / name
        end = 0
        with path.open("a+b") as file:
            file.seek(0)
            for line in file:
                if line.endswith(b"\n"):
                    end += len(line)
                    text = line[_DIGEST + 4 : -2]
                    if line == _line(text):
                        yield text
            file.truncate(end)

    def entries(self, sources: Iterable[str], interner: Interner) -> Iterator[tuple[str, Entry]]:
        """Those of the files that were scanned, are all there and still sound, and are what they were.

        Remote files are not asked: that they are others is noticed when they are read. To be called once.
        """
        for url in sources:
            line = self._lines.get(url)
            if line is not None and "failed" not in line:
                entry = self._entry(url, line, interner)
                if entry is not None:
                    yield url, entry
        self._lines.clear()
        self._texts.clear()

    def _entry(self, url: str, line: Mapping[str, Any], interner: Interner) -> Entry | None:
        texts = [self._texts.get(digest) for digest in (*line["nodes"], line["report"])]
        sources = tuple(
            Source(url=s[0] or url, size=s[1], mtime=s[2], etag=s[3], version=s[4]) for s in line["sources"]
        )
        # A folder is not among its own sources: what has changed in it cannot be told from them.
        if None in texts or url not in {source.url for source in sources} or not all(map(_unchanged, sources)):
            return None
        at, layout = line["at"], Layout(tuple(line["counts"]), tuple(line["sizes"]), line["checked"])
        if line["nbytes"] != layout.nbytes or at + layout.nbytes > self.records.size:
            return None
        if zlib.crc32(self.records.read(at, [(0, layout.nbytes)])[0]) != line["crc"]:
            return None
        nodes = interner.nodes(map(self._node, line["nodes"]))
        report = tuple(tuple(entry) for entry in self._document_of(line["report"], is_report))
        for value, digest in zip((*nodes, interner.value(report)), (*line["nodes"], line["report"]), strict=True):
            self._digests[id(value)] = value, digest
        return Entry(nodes=nodes, layout=layout, at=at, sources=sources, report=interner.value(report))

    def _document_of(self, digest: str, is_sound: Callable[[Any], bool]) -> Any:
        """A document as it was written.

        Raises
        ------
        FormatError
            If it is not what it is said to be, though its digest is right.
        """
        value = parsed(self._texts[digest])
        if not is_sound(value):
            raise strange(self.folder / DOCUMENTS, self._texts[digest])
        return value

    def _node(self, digest: str) -> Node:
        node = self._document_of(digest, is_node)
        return Node(
            path=node["path"],
            document=node["document"],
            encodings=tuple(Encoding.from_json(encoding) for encoding in node["encodings"]),
            attribute_types=node["attribute_types"],
            joined=node["joined"],
        )

    def add(self, url: str, packed: Packed) -> int:
        """Write down a scanned file, and return the position of its record.

        Nodes and reports are to be interned: each object is written once.
        """
        at = self.records.append(packed.record)
        line = {
            "url": url,
            "sources": [(s.url if s.url != url else "", s.size, s.mtime, s.etag, s.version) for s in packed.sources],
            "nodes": [self._document(node) for node in packed.nodes],
            "report": self._document(packed.report),
            "counts": packed.counts,
            "sizes": packed.sizes,
            "checked": packed.checked,
            "at": at,
            "nbytes": len(packed.record),
            "crc": zlib.crc32(packed.record),
        }
        self._write(FILES, _text(line))
        return at

    def fail(self, url: str, reason: str) -> None:
        """Write down that a file could not be scanned: what was known of it before counts no more."""
        self._write(FILES, _text({"url": url, "failed": reason}))

    def _document(self, value: Node | Sequence[Line]) -> str:
        known = self._digests.get(id(value))
        if known is not None:
            return known[1]
        if isinstance(value, Node):
            text = _text(
                {
                    "path": value.path,
                    "document": value.document,
                    "encodings": [encoding.to_json() for encoding in value.encodings],
                    "attribute_types": dict(value.attribute_types),
                    "joined": None if value.joined is None else dict(value.joined),
                }
            )
        else:
            text = _text(value)
        digest = _digest(text)
        if digest not in self._known:
            self._known.add(digest)
            self._write(DOCUMENTS, text)
        self._digests[id(value)] = value, digest
        return digest

    def _write(self, name: str, text: bytes) -> None:
        self._waiting[name].append(_line(text))

    def tick(self) -> None:
        """Flush, if it is time."""
        now = time.monotonic()
        if now - self._flushed > _FLUSHED:
            self.flush(durable=now - self._synced > _SYNCED)

    def flush(self, *, durable: bool = False) -> None:
        """Hand what was added to the operating system, or (``durable``) to the disk, lines last."""
        self.records.flush(durable=durable)
        try:
            for name in (DOCUMENTS, FILES):
                waiting = self._waiting[name]
                if waiting or durable:
                    with (self.folder / name).open("ab", buffering=0) as file:
                        data, done = b"".join(waiting), 0
                        # Should it stop half-way, what is there of it is a line by itself when it is written again.
                        waiting.insert(0, b"\n")
                        while done < len(data):
                            done += file.write(memoryview(data)[done:]) or 0
                        if durable:
                            os.fsync(file.fileno())
                    waiting.clear()
        except OSError as error:
            raise self._failed(error) from error
        self._flushed = time.monotonic()
        if durable:
            self._synced = self._flushed

    def close(self) -> None:
        """Write what waits, and let another process have the folder. Records can still be read."""
        if self._unlock.alive:
            try:
                self.flush(durable=True)
            finally:
                self._unlock()


def kept(folder: Path) -> int | None:
    """How many files the journal in a folder has that were scanned; None if there is none."""
    if not (folder / HEADER).exists():
        return None
    found: dict[str, bool] = {}
    try:
        with (folder / FILES).open("rb") as file:
            for line in file:
                text = line[_DIGEST + 4 : -2]
                if line == _line(text):
                    said = told(text, folder / FILES)
                    found[said["url"]] = "failed" not in said
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise SourceError(f"{folder}: what was scanned cannot be read: {error.strerror or error}") from error
    return sum(found.values())


def remove(folder: Path) -> None:
    """Remove a journal: its files, and the folder if nothing else is in it.

    Raises
    ------
    ConflictError
        If another process has it.
    """
    try:
        file = _locked(folder)
    except FileNotFoundError:
        return
    try:
        for name in (HEADER, HEADER + ".tmp", DOCUMENTS, FILES, REFERENCES):
            (folder / name).unlink(missing_ok=True)
        if folder.exists() and next(folder.iterdir(), None) is None:
            folder.rmdir()
    except OSError as error:
        raise SourceError(f"{folder} cannot be removed: {error.strerror or error}") from error
    finally:
        os.close(file)


def _locked(folder: Path) -> int:
    """The folder, opened; nobody else has it until it is closed."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(file)
        raise ConflictError(f"{folder}: another process is scanning into this folder; wait for it") from error
    return file


def _text(value: Any) -> bytes:
    # The standard library's JSON: names of files may have what is no valid Unicode, and come back as they were.
    return json.dumps(value, separators=(",", ":")).encode("ascii")


def _digest(text: bytes) -> str:
    return blake2b(text, digest_size=_DIGEST // 2).hexdigest()


def _line(text: bytes) -> bytes:
    """A line: JSON as well, a list of the digest and what it is of."""
    return b'["%b",%b]\n' % (_digest(text).encode(), text)


def _asked(asked: Any) -> str:
    variables = asked.get("variables") if isinstance(asked, Mapping) else None
    how = " with checksums" if isinstance(asked, Mapping) and asked.get("checksum") else ""
    return (f"the variables {', '.join(variables)}" if variables else "all variables") + how


def _unchanged(source: Source) -> bool:
    """Whether a local file is exactly what it was."""
    if not urls.is_local(source.url):
        return True
    try:
        status = urls.local_path(source.url).stat()
    except OSError:
        return False
    return status.st_size == source.size and status.st_mtime_ns // 1000 == source.mtime
