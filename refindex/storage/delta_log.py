"""The commit log of a Parquet manifest: the Delta Lake transaction log, as much of it as a manifest needs.

Source: the Delta Lake transaction log protocol (PROTOCOL.md of delta-io/delta), "Delta Log Entries" and
"Actions". Each commit is one file of JSON lines, named by its version and created exclusively, so that
readers see the table before or after it and nothing between.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import posixpath
import re
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

import fsspec

from refindex.access import urls
from refindex.access.files import reading
from refindex.errors import ExistsError, FormatError, ManifestError, NotFoundError
from refindex.model.manifest import FORMAT_VERSION
from refindex.model.zarr_v3 import dumps, loads

LOG = "_delta_log"
_COMMIT = re.compile(r"^(\d{20})\.json$")
_FORMAT_KEY = "refindex.format"
_FOOTER_KEY = "refindex.footer.crc32"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFile:
    """One live Parquet file of a snapshot.

    ``path`` is below the archive; ``kind`` that of its rows; ``footer`` the CRC-32 of its footer, which holds the
    statistics that decide which rows are looked at (pages have checksums of their own).
    """

    path: str
    kind: str
    size: int
    rows: int
    footer: int | None = None


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """One version of the table."""

    version: int
    timestamp: int
    files: dict[str, DataFile] = field(default_factory=dict)
    configuration: dict[str, str] = field(default_factory=dict)

    def of_kind(self, kind: str) -> list[DataFile]:
        return [file for file in self.files.values() if file.kind == kind]


def log_path(root: str, version: int) -> str:
    return posixpath.join(root, LOG, f"{version:020d}.json")


def versions(fs: fsspec.AbstractFileSystem, root: str) -> list[int]:
    """All committed versions, oldest first; empty if there is no log.

    Where nothing can be listed (a plain HTTP server), versions are probed one after the other until one is missing.
    """
    if _cannot_list(fs):
        return list(_probe(fs, root))
    try:
        names = fs.ls(posixpath.join(root, LOG), detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    matches = (_COMMIT.match(posixpath.basename(name.rstrip("/"))) for name in names)
    return sorted(int(match[1]) for match in matches if match)


def _cannot_list(fs: fsspec.AbstractFileSystem) -> bool:
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return "http" in protocols or "https" in protocols


def _probe(fs: fsspec.AbstractFileSystem, root: str) -> Iterator[int]:
    for version in itertools.count():
        try:
            # Not fs.exists: it takes a server that fails for one that has no such file, and would end the log there.
            fs.cat_file(log_path(root, version), start=0, end=1)
        except FileNotFoundError:
            return
        yield version


def read_snapshot(fs: fsspec.AbstractFileSystem, root: str, url: str, version: int | None = None) -> Snapshot:
    """Replay the log up to a version (the newest if None).

    Raises
    ------
    NotFoundError
        If there is no archive, or not this version of it.
    ManifestError
        If an entry is missing or damaged, or the format is newer than this refindex reads.
    """
    where = urls.display(url)
    found = versions(fs, root)
    if not found:
        raise NotFoundError(f"{where}: no archive here: {LOG}/ has no commit")
    newest = found[-1] if version is None else version
    if newest not in found:
        raise NotFoundError(f"{where}: there is no version {newest}; versions are {found[0]} to {found[-1]}")
    snapshot = Snapshot(version=newest, timestamp=0)
    for number in range(newest + 1):
        if number not in found:
            raise ManifestError(f"{where}: log entry {LOG}/{number:020d}.json is missing")
        with reading(url, f"reading log entry {number}"):
            text = fs.cat_file(log_path(root, number))
        for line in bytes(text).splitlines():
            try:
                _apply(snapshot, loads(line, f"log entry {number}"))
            except (FormatError, KeyError, TypeError, ValueError, AttributeError) as error:
                raise ManifestError(f"{where}: {LOG}/{number:020d}.json is damaged: {error}") from error
    written = snapshot.configuration.get(_FORMAT_KEY)
    if written is None:
        raise ManifestError(f"{where}: a Delta table, but not a refindex archive ({_FORMAT_KEY} is not set)")
    if written != str(FORMAT_VERSION):
        raise ManifestError(
            f"{where}: manifest format {written}; this refindex reads format {FORMAT_VERSION}. Upgrade refindex."
        )
    return snapshot


def _apply(snapshot: Snapshot, action: Mapping[str, Any]) -> None:
    if "add" in action:
        add = action["add"]
        stats = loads(add.get("stats") or "{}", "file statistics")
        tags = add.get("tags") or {}
        path = unquote(add["path"])
        snapshot.files[path] = DataFile(
            path=path,
            kind=str(add["partitionValues"]["kind"]),
            size=int(add["size"]),
            rows=int(stats.get("numRecords", -1)),
            footer=None if _FOOTER_KEY not in tags else int(tags[_FOOTER_KEY], 16),
        )
    elif "remove" in action:
        snapshot.files.pop(unquote(action["remove"]["path"]), None)
    elif "metaData" in action:
        snapshot.configuration = dict(action["metaData"].get("configuration", {}))
    elif "commitInfo" in action:
        snapshot.timestamp = int(action["commitInfo"].get("timestamp", 0))
    elif "protocol" in action:
        needs = int(action["protocol"]["minReaderVersion"])
        if needs > 1:
            raise ManifestError(f"the table needs Delta reader version {needs}; refindex reads 1")


def commit_lines(
    *,
    version: int,
    schema: str,
    added: Sequence[DataFile],
    removed: Iterable[DataFile],
    operation: str,
    table_id: str | None = None,
) -> bytes:
    """The actions of one commit as JSON lines."""
    now = time.time_ns() // 1_000_000
    actions: list[dict[str, Any]] = [
        {
            "commitInfo": {
                "timestamp": now,
                "operation": operation,
                "operationParameters": {"mode": "Overwrite" if version else "ErrorIfExists"},
                "engineInfo": "refindex",
            }
        }
    ]
    if version == 0:
        actions += [
            {"protocol": {"minReaderVersion": 1, "minWriterVersion": 2}},
            {
                "metaData": {
                    "id": table_id or str(uuid.uuid4()),
                    "name": "refindex manifest",
                    "format": {"provider": "parquet", "options": {}},
                    "schemaString": schema,
                    "partitionColumns": ["kind"],
                    "configuration": {_FORMAT_KEY: str(FORMAT_VERSION)},
                    "createdTime": now,
                }
            },
        ]
    actions += [
        {"remove": {"path": quote(f.path, safe="/=-_.~"), "deletionTimestamp": now, "dataChange": True}}
        for f in removed
    ]
    actions += [
        {
            "add": {
                "path": quote(f.path, safe="/=-_.~"),
                "partitionValues": {"kind": f.kind},
                "size": f.size,
                "modificationTime": now,
                "dataChange": True,
                "stats": dumps({"numRecords": f.rows}),
                "tags": {} if f.footer is None else {_FOOTER_KEY: f"{f.footer:08x}"},
            }
        }
        for f in added
    ]
    return "".join(dumps(action) + "\n" for action in actions).encode()


def commit(fs: fsspec.AbstractFileSystem, root: str, url: str, version: int, lines: bytes) -> None:
    """Create the log entry of a version, which must not exist.

    Locally through a temporary file and a hard link: creation by O_EXCL followed by a write would let
    readers see half an entry. Elsewhere by the storage's exclusive creation (conditional put).

    Raises
    ------
    ExistsError
        If another writer committed this version first.
    """
    target = log_path(root, version)
    taken = f"{urls.display(url)}: version {version} was committed by another writer meanwhile; try again"
    if urls.is_local(url):
        os.makedirs(os.path.dirname(target), exist_ok=True)  # noqa: PTH103, PTH120 -- fsspec paths are strings
        temporary = f"{target}.{uuid.uuid4().hex}.tmp"
        try:
            with open(temporary, "wb") as file:  # noqa: PTH123
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, target)
        except FileExistsError as error:
            raise ExistsError(taken) from error
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)  # noqa: PTH108
        return
    try:
        fs.pipe_file(target, lines, mode="create")
    except FileExistsError as error:
        raise ExistsError(taken) from error
