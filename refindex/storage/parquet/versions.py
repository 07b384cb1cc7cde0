"""Which versions the log of an archive has, and how one of them is put together."""

from __future__ import annotations

import posixpath
import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from itertools import batched
from typing import Any

import fsspec

from refindex.access import urls
from refindex.access.files import reading
from refindex.errors import ManifestError, NotFoundError
from refindex.model.change import Commit
from refindex.storage.parquet import checkpoint, log
from refindex.storage.parquet.log import Snapshot
from refindex.storage.protocol import milliseconds

_ENTRY = re.compile(r"^(\d{20})\.json$")
_CHECKPOINT = re.compile(r"^(\d{20})\.checkpoint\.parquet$")
_CONCURRENT = 16


class Log:
    """The log of an archive as it is when it is looked at.

    Where it can be listed, it is; else (a plain HTTP server) versions are tried one after the other, from the
    last checkpoint on, until one is missing.

    Parameters
    ----------
    newest:
        The newest version, None if there is no archive.
    """

    def __init__(self, fs: fsspec.AbstractFileSystem, root: str, url: str) -> None:
        self.fs, self.root, self.url = fs, root, url
        self._fetched: dict[int, bytes] = {}
        self._entries: list[int] = []
        self._checkpoints: list[int] = []
        self._known: Snapshot | None = None
        self._listed = log.can_list(fs)
        self.newest = self._list() if self._listed else self._probe()

    @property
    def where(self) -> str:
        return urls.display(self.url)

    def _list(self) -> int | None:
        folder = posixpath.join(self.root, log.LOG)
        self.fs.invalidate_cache()
        with reading(self.url, "listing the log"):
            try:
                names = [posixpath.basename(n.rstrip("/")) for n in self.fs.ls(folder, detail=False)]
            except (FileNotFoundError, NotADirectoryError):
                return None
        self._entries = sorted(int(match[1]) for match in map(_ENTRY.match, names) if match)
        self._checkpoints = sorted(int(match[1]) for match in map(_CHECKPOINT.match, names) if match)
        return self._entries[-1] if self._entries else None

    def _probe(self) -> int | None:
        hint = checkpoint.hint(self.fs, self.root, self.url)
        self._known = None if hint is None else hint.snapshot
        newest = 0
        if hint is not None and (hint.snapshot is not None or (hint.version >= 0 and self._fetch(hint.version))):
            newest = hint.version
        self._checkpoints = [newest] if newest else []
        if hint is None and self._fetch(0) is None:
            return None
        while self._fetch(newest + 1) is not None:
            newest += 1
        if self._known is not None:
            return newest
        if self._fetch(newest) is None or (hint is not None and newest < hint.version):
            raise ManifestError(
                f"{self.where}: {log.LOG}/{checkpoint.LAST} is damaged, or log entries up to the version that it names "
                "are missing, and this place cannot be listed to find more. Restore it from a copy, or scan again."
            )
        return newest

    def _fetch(self, version: int) -> bytes | None:
        """The bytes of an entry. Entries never change, so they are kept where they were fetched to find them."""
        if version in self._fetched:
            return self._fetched[version]
        data = log.fetch(self.fs, log.entry_path(self.root, version), self.url)
        if data is not None and not self._listed:
            self._fetched[version] = data
        return data

    @property
    def oldest(self) -> int:
        """The oldest version that can be opened: 0, or that of the first checkpoint whose older ones expired."""
        newest = self._require_newest()
        if self._listed:
            if self._entries[0] == 0:
                return 0
            return next((c for c in self._checkpoints if c >= self._entries[0]), newest)
        if self._fetch(0) is not None:
            return 0
        missing, there = 0, newest
        while there - missing > 1:
            middle = (there + missing) // 2
            if self._fetch(middle) is None:
                missing = middle
            else:
                there = middle
        return there

    def _require_newest(self) -> int:
        if self.newest is None:
            raise NotFoundError(f"{self.where}: no archive here: {log.LOG}/ has no commit")
        return self.newest

    def entry(self, version: int) -> list[dict[str, Any]]:
        """The actions of an entry.

        Raises
        ------
        ManifestError
            If it is missing or damaged.
        """
        data = self._fetch(version)
        if data is None:
            raise ManifestError(
                f"{self.where}: log entry {log.LOG}/{version:020d}.json is missing. Restore it from a copy, or scan "
                "again."
            )
        actions = log.parse(data, version, self.url)
        log.check_place(actions, version, self.url)
        return actions

    def snapshot(self, version: int | None = None) -> Snapshot:
        """The table at a version (the newest if None).

        Raises
        ------
        NotFoundError
            If there is no archive, or not this version of it.
        ManifestError
            If an entry is missing or damaged, or the format is newer than this refindex reads.
        """
        wanted = self._require_newest() if version is None else version
        if not 0 <= wanted <= self._require_newest():
            raise self._no_version(wanted)
        if self._known is not None and self._known.version <= wanted:
            found: Snapshot | None = replace(self._known, files=dict(self._known.files))
        else:
            found = next((s for s in map(self._checkpoint, self._candidates(wanted)) if s is not None), None)
        if found is None and self._fetch(0) is None:
            if wanted < self.oldest:
                raise self._no_version(wanted)
            raise ManifestError(
                f"{self.where}: log entry {log.LOG}/{0:020d}.json is missing, and no checkpoint from which version "
                f"{wanted} could be put together is there and sound. Restore it from a copy, or scan again."
            )
        snapshot = found or Snapshot(version=-1)
        for number in range(snapshot.version + 1, wanted + 1):
            log.apply(snapshot, self.entry(number), number, self.url)
        if not snapshot.metadata:
            raise ManifestError(
                f"{self.where}: a Delta table, but not a refindex archive ({log.FORMAT_KEY} is not set)"
            )
        return snapshot

    def _candidates(self, version: int) -> Iterable[int]:
        """Versions that may have a checkpoint from which a version can be put together, the best first."""
        known = self._checkpoints[: bisect_right(self._checkpoints, version)]
        if known or self._listed:
            return reversed(known)
        if not self._checkpoints:
            return ()  # there is no checkpoint, so there is none of an older version
        return range(version, max(-1, version - checkpoint.EVERY), -1)

    def _checkpoint(self, version: int) -> Snapshot | None:
        return checkpoint.read(self.fs, self.root, version, self.url)

    def _no_version(self, version: int) -> NotFoundError:
        return NotFoundError(
            f"{self.where}: there is no version {version}; versions are {self.oldest} to {self.newest}"
            + (": older ones expired" if version < self.oldest else "")
        )

    def entries_before(self, version: int) -> list[str]:
        """The paths of the entries before a version, the oldest first."""
        return [log.entry_path(self.root, number) for number in self._entries if number < version]

    def checkpoints_before(self, version: int) -> list[str]:
        """The paths of the checkpoints before a version, the oldest first."""
        return [checkpoint.checkpoint_path(self.root, number) for number in self._checkpoints if number < version]

    def commits(self) -> list[Commit]:
        """All versions, the newest first."""
        numbers = range(self._require_newest(), self.oldest - 1, -1)
        if urls.is_local(self.url):
            return [self.commit(number) for number in numbers]
        found: list[Commit] = []
        with ThreadPoolExecutor(_CONCURRENT) as pool:
            # Some at a time: the first entry that is missing ends it, however many there should be.
            for some in batched(numbers, 4 * _CONCURRENT):
                found += pool.map(self.commit, some)
        return found

    def commit(self, version: int) -> Commit:
        return log.describe(self.entry(version), version, self.url)

    def as_of(self, moment: datetime) -> int:
        """The newest version that is not younger than a moment; a few entries are read to find it.

        Raises
        ------
        NotFoundError
            If all are younger.
        """
        wanted = milliseconds(moment)
        numbers = range(self.oldest, self._require_newest() + 1)
        index = bisect_right(numbers, wanted, key=lambda number: self.commit(number).timestamp)
        if index == 0:
            first = datetime.fromtimestamp(self.commit(numbers[0]).timestamp / 1000, UTC)
            raise NotFoundError(
                f"{self.where}: there is no version as of {moment.isoformat()}; the first, version {numbers[0]}, "
                f"is of {first.isoformat(timespec='milliseconds')}"
            )
        return numbers[index - 1]


def snapshot(
    fs: fsspec.AbstractFileSystem, root: str, url: str, version: int | None = None, found: Log | None = None
) -> Snapshot:
    """The table at a version (the newest if None), as :meth:`Log.snapshot` has it, from a log that was looked at."""
    found = found or Log(fs, root, url)
    try:
        return found.snapshot(version)
    except ManifestError:
        # Entries may have expired between looking and reading: look once more.
        again = Log(fs, root, url)
        if again.newest is None or (again.newest == found.newest and again.oldest == found.oldest):
            raise
        return again.snapshot(version)


def newest(fs: fsspec.AbstractFileSystem, root: str, url: str) -> int:
    """The newest version: one listing, or a few requests.

    Raises
    ------
    NotFoundError
        If there is no archive.
    """
    found = Log(fs, root, url).newest
    if found is None:
        raise NotFoundError(f"{urls.display(url)}: no archive here: {log.LOG}/ has no commit")
    return found


def actions_of(entry: Iterable[Mapping[str, Any]], name: str) -> list[Mapping[str, Any]]:
    """The bodies of the actions of one kind."""
    return [action[name] for action in entry if name in action]
