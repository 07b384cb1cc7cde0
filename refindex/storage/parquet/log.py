"""The commit log of a Parquet manifest: the Delta Lake transaction log, as much of it as a manifest needs.

Source: the Delta Lake transaction log protocol (PROTOCOL.md of delta-io/delta), "Delta Log Entries" and
"Actions". Each commit is one file of JSON lines, named by its version and created exclusively, so that
readers see the table before or after it and nothing between.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import time
import uuid
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import fsspec

from refindex.access import urls
from refindex.access.files import reading
from refindex.access.filesystems import create_exclusively
from refindex.errors import ConflictError, FormatError, ManifestError, SourceError
from refindex.model.change import Commit
from refindex.model.manifest import FORMAT_VERSION
from refindex.model.zarr_v3 import dumps, loads
from refindex.storage import disk

LOG = "_delta_log"
FORMAT_KEY = "refindex.format"
FOOTER_KEY = "refindex.footer.crc32"
INLINE_PREFIX = "inline-"
"""What the names of files begin with that hold nothing but inline chunks."""

_CHECKSUM = re.compile(rb'"crc32":"([0-9a-f]{8})"')
_NO_DIGITS = b"00000000"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One live Parquet file of a snapshot.

    ``path`` is below the archive; ``kind`` that of its rows; ``footer`` the CRC-32 of its footer, which holds the
    statistics that decide which rows are looked at (pages have checksums of their own). ``inline`` tells whether all
    references are. Of kinds with paths the least and greatest path are known, and of references the chunk.
    """

    path: str
    kind: str
    size: int
    rows: int
    footer: int | None = None
    first_path: str | None = None
    last_path: str | None = None
    first_chunk: int | None = None
    last_chunk: int | None = None

    @property
    def inline(self) -> bool:
        return posixpath.basename(self.path).startswith(INLINE_PREFIX)

    def may_hold(self, path: str, first: int, last: int) -> bool:
        """Whether references of an array with chunk numbers ``first`` to ``last`` may be here."""
        return within(path, self.first_path, self.last_path) and overlaps(
            first, last, self.first_chunk, self.last_chunk
        )

    def stats(self) -> dict[str, Any]:
        """Delta's per-file statistics."""
        found: dict[str, Any] = {"numRecords": self.rows}
        if self.first_path is not None:
            for name, path, chunk in (
                ("minValues", self.first_path, self.first_chunk),
                ("maxValues", self.last_path, self.last_chunk),
            ):
                found[name] = {"path": path} | ({} if chunk is None else {"chunk": chunk})
        return found

    def tags(self) -> dict[str, str]:
        return {} if self.footer is None else {FOOTER_KEY: f"{self.footer:08x}"}

    def add(self, now: int) -> dict[str, Any]:
        """The body of the action that adds the file."""
        return {
            "path": quote(self.path, safe="/=-_.~"),
            "partitionValues": {"kind": self.kind},
            "size": self.size,
            "modificationTime": now,
            "dataChange": True,
            "stats": dumps(self.stats()),
            "tags": self.tags(),
        }

    @classmethod
    def from_add(cls, add: Mapping[str, Any]) -> DataFile:
        stats = loads(add.get("stats") or "{}", "file statistics")
        least, greatest = (stats.get(name) or {} for name in ("minValues", "maxValues"))
        tags = dict(add.get("tags") or {})
        for bounds in (least, greatest):
            path, chunk = bounds.get("path"), bounds.get("chunk")
            if not isinstance(path, str | None) or not isinstance(chunk, int | None):
                raise FormatError(f"bounds of a file are {bounds!r}; expected a path and a chunk number")
        return cls(
            path=unquote(add["path"]),
            kind=str(dict(add["partitionValues"])["kind"]),
            size=int(add["size"]),
            rows=int(stats.get("numRecords", -1)),
            footer=None if FOOTER_KEY not in tags else int(tags[FOOTER_KEY], 16),
            first_path=least.get("path"),
            last_path=greatest.get("path"),
            first_chunk=least.get("chunk"),
            last_chunk=greatest.get("chunk"),
        )


def within(path: str, least: str | None, greatest: str | None) -> bool:
    """Whether a path is between two, of which None is not known.

    Paths compare alike by code points and by the bytes of their UTF-8.
    """
    return least is None or greatest is None or least <= path <= greatest


def overlaps(first: int, last: int, least: int | None, greatest: int | None) -> bool:
    """Whether chunk numbers from ``first`` to ``last`` and from ``least`` to ``greatest`` (None: not known) meet."""
    return least is None or greatest is None or (least <= last and greatest >= first)


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """One version of the table."""

    version: int
    timestamp: int = 0
    files: dict[str, DataFile] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[DataFile]:
        return [file for file in self.files.values() if file.kind == kind]

    def n_rows(self, kind: str) -> int:
        return sum(file.rows for file in self.of_kind(kind))


def entry_path(root: str, version: int) -> str:
    return posixpath.join(root, LOG, f"{version:020d}.json")


def can_list(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether a filesystem can list folders: all but plain HTTP servers."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not {"http", "https"} & set(protocols)


def fetch(fs: fsspec.AbstractFileSystem, path: str, url: str) -> bytes | None:
    """The bytes of a file of the log, None if there is none.

    Not ``fs.exists`` first: it takes a server that fails for one that has no such file.
    """
    with reading(url, f"reading {posixpath.basename(path)}"):
        try:
            return bytes(fs.cat_file(path))
        except (FileNotFoundError, NotADirectoryError):
            return None


def checksum(data: bytes) -> tuple[str, str] | None:
    """The CRC-32 that an entry says it has and the one that it has, None if it says none."""
    found = _CHECKSUM.search(data)
    if found is None:
        return None
    start, stop = found.span(1)
    return found[1].decode(), f"{zlib.crc32(data[:start] + _NO_DIGITS + data[stop:]):08x}"


def parse(data: bytes, version: int, url: str) -> list[dict[str, Any]]:
    """The actions of an entry.

    Raises
    ------
    ManifestError
        If it is damaged, or of a format that this refindex does not read.
    """
    where = f"{urls.display(url)}: {LOG}/{version:020d}.json"
    actions = []
    try:
        for line in data.splitlines():
            action = loads(line, f"log entry {version}")
            if not isinstance(action, dict):
                raise FormatError("a line is not an object")
            # Before the checksum: what a newer format does about checksums is not known here.
            check_format(action, urls.display(url))
            actions.append(action)
    except (FormatError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(f"{where} is damaged: {error}") from error
    sums = checksum(data)
    if sums is None or sums[0] != sums[1]:
        said = "has no checksum" if sums is None else f"has the checksum {sums[1]}, expected {sums[0]}"
        raise ManifestError(f"{where} is damaged: it {said}. Restore it from a copy, or scan again.")
    return actions


def check_place(actions: Iterable[Mapping[str, Any]], version: int, url: str) -> None:
    """Refuse an entry that is in the place of another."""
    if not is_in_place(actions, version):
        raise ManifestError(
            f"{urls.display(url)}: {LOG}/{version:020d}.json is damaged: it is the entry of version "
            f"{_own(actions)['version']}. Restore it from a copy, or scan again."
        )


def is_in_place(actions: Iterable[Mapping[str, Any]], version: int) -> bool:
    """Whether an entry is that of a version, as far as it says so: the oldest ones do not."""
    return bool(_own(actions).get("version", version) == version)


def _own(actions: Iterable[Mapping[str, Any]]) -> Mapping[str, Any]:
    """What refindex alone says of a commit."""
    info = next((action["commitInfo"] for action in actions if "commitInfo" in action), None)
    own = info.get("refindex") if isinstance(info, Mapping) else None
    return own if isinstance(own, Mapping) else {}


def check_format(action: Mapping[str, Any], where: str) -> None:
    """Refuse what this refindex does not read."""
    if action.get("protocol") is not None and (needs := int(action["protocol"]["minReaderVersion"])) > 1:
        raise ManifestError(f"{where}: the table needs Delta reader version {needs}; refindex reads 1")
    if action.get("metaData") is not None:
        written = dict(action["metaData"].get("configuration") or {}).get(FORMAT_KEY)
        if written is None:
            raise ManifestError(f"{where}: a Delta table, but not a refindex archive ({FORMAT_KEY} is not set)")
        if written != str(FORMAT_VERSION):
            raise ManifestError(
                f"{where}: manifest format {written}; this refindex reads format {FORMAT_VERSION}. Upgrade refindex."
            )


def apply(snapshot: Snapshot, actions: Iterable[Mapping[str, Any]], version: int, url: str) -> None:
    """Make a snapshot that of the next version."""
    try:
        actions = list(actions)
        for action in actions:
            if "add" in action:
                file = DataFile.from_add(action["add"])
                snapshot.files[file.path] = file
            elif "remove" in action:
                snapshot.files.pop(unquote(action["remove"]["path"]), None)
            elif "metaData" in action:
                snapshot.metadata = dict(action["metaData"])
            elif "commitInfo" in action:
                snapshot.timestamp = int(action["commitInfo"]["timestamp"])
        table = snapshot.metadata.get("id")
        if _own(actions).get("table", table) != table:
            raise FormatError("it is that of another archive. Restore it from a copy, or scan again")
    except (FormatError, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ManifestError(f"{urls.display(url)}: {LOG}/{version:020d}.json is damaged: {error}") from error
    snapshot.version = version


def describe(actions: Iterable[Mapping[str, Any]], version: int, url: str) -> Commit:
    """What an entry says of its commit."""
    try:
        info = next(action["commitInfo"] for action in actions if "commitInfo" in action)
        return Commit(
            version=version,
            timestamp=int(info["timestamp"]),
            operation=str(info["operation"]),
            details=dict(info["refindex"].get("details") or {}),
        )
    except (StopIteration, KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ManifestError(f"{urls.display(url)}: {LOG}/{version:020d}.json is damaged: {error}") from error


def next_timestamp(previous: int) -> int:
    """Milliseconds since 1970: now, or just behind the version before where the clock is not."""
    return max(time.time_ns() // 1_000_000, previous + 1)


def entry(
    *,
    snapshot: Snapshot,
    added: Iterable[DataFile],
    removed: Iterable[DataFile],
    operation: str,
    details: Mapping[str, Any],
    whole: bool = False,
) -> bytes:
    """The log entry that makes ``snapshot`` (its version, timestamp, metadata) as JSON lines; whole: from nothing."""
    now = snapshot.timestamp
    info = {
        # First, so that the first checksum in the text is that of the entry, whatever the details say. The id makes
        # entries differ, so that a writer knows its own after a request of which the answer was lost. Version and table
        # tell an entry that is in the place of another.
        "refindex": {
            "crc32": _NO_DIGITS.decode(),
            "id": uuid.uuid4().hex,
            "version": snapshot.version,
            "table": snapshot.metadata.get("id"),
            "details": dict(details),
        },
        "timestamp": now,
        "operation": operation,
        "operationParameters": {},
        "engineInfo": "refindex",
    }
    actions: list[dict[str, Any]] = [{"commitInfo": info}]
    if whole or snapshot.version == 0:
        actions += [{"protocol": PROTOCOL}, {"metaData": snapshot.metadata}]
    actions += [
        {"remove": {"path": quote(f.path, safe="/=-_.~"), "deletionTimestamp": now, "dataChange": True}}
        for f in removed
    ]
    actions += [{"add": f.add(now)} for f in added]
    data = "".join(dumps(action) + "\n" for action in actions).encode()
    return data.replace(_NO_DIGITS, f"{zlib.crc32(data):08x}".encode(), 1)


PROTOCOL = {"minReaderVersion": 1, "minWriterVersion": 2}


def metadata(schema: str, now: int) -> dict[str, Any]:
    """The metadata action of a new table."""
    return {
        "id": str(uuid.uuid4()),
        "name": "refindex manifest",
        "format": {"provider": "parquet", "options": {}},
        "schemaString": schema,
        "partitionColumns": ["kind"],
        # Without the second, delta-rs takes the bounds of all other columns for null, and finds nothing by them.
        "configuration": {FORMAT_KEY: str(FORMAT_VERSION), "delta.dataSkippingStatsColumns": "path,chunk"},
        "createdTime": now,
    }


class UnknownOutcomeError(SourceError):
    """The entry may come to be or not: the files that it names must stay."""


def create(fs: fsspec.AbstractFileSystem, root: str, url: str, version: int, data: bytes) -> None:
    """Create the log entry of a version, which must not exist.

    Locally through a temporary file and a hard link: creation by O_EXCL followed by a write would let
    readers see half an entry. Elsewhere by the storage's exclusive creation (conditional put). A request
    whose answer is lost, or that is repeated below us, may have done its work: the entry that is there tells.

    Raises
    ------
    ConflictError
        If another writer committed this version first.
    UnknownOutcomeError
        If it failed, and the entry is not there, but may yet appear.
    """
    target = entry_path(root, version)
    local = urls.is_local(url)
    try:
        if local:
            _link(target, data)
        else:
            create_exclusively(fs, target, data)
    except Exception as error:
        there = None
        with contextlib.suppress(Exception):
            there = fetch(fs, target, url)
        if there != data:
            if there is not None or _refused(error):
                raise ConflictError(
                    f"{urls.display(url)}: version {version} was committed by another writer meanwhile; nothing was "
                    "written. Read the newest version and try again."
                ) from error
            if local:
                raise
            raise UnknownOutcomeError(
                f"{urls.display(url)}: the request that commits version {version} failed, and whether it was carried "
                f"out is not known: {error}. Look at the newest version, then try again if it is not this one."
            ) from error
    _check_not_expired(fs, root, url, version)


def _refused(error: Exception) -> bool:
    """Whether a server says that another writer was first (S3: 412), or is at it (409)."""
    response = getattr(error.__cause__, "response", None)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, Mapping) else None
    return status in (409, 412)


def _check_not_expired(fs: fsspec.AbstractFileSystem, root: str, url: str, version: int) -> None:
    """Take an entry back that was created where a vacuum has removed a newer one.

    A vacuum removes the oldest entries first: if the entry before ours is there, ours never was before.
    """
    if version == 0 or fetch(fs, entry_path(root, version - 1), url) is not None:
        return
    with reading(url, f"removing log entry {version}"):
        fs.rm_file(entry_path(root, version))
    raise ConflictError(
        f"{urls.display(url)}: versions {version} and later were committed, and expired, meanwhile; nothing was "
        "written. Read the newest version and try again."
    )


def _link(target: str, data: bytes) -> None:
    folder = os.path.dirname(target)  # noqa: PTH120 -- fsspec paths are strings
    disk.make_folder(folder)
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        write_local(temporary, data)
        os.link(temporary, target)
        disk.sync(folder)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108


def write_local(path: str, data: bytes | memoryview) -> None:
    """Write a file and bring its bytes to the disk."""
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
