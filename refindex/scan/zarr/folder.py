"""Stores in folders, local and remote: one flat listing, and concurrent ranges of many files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from refindex.access import urls
from refindex.access.files import LocalFile, StorageOptions, modification_time, reading
from refindex.access.identity import entity_tag
from refindex.access.options import filesystem
from refindex.access.trust import Allowed
from refindex.errors import NotFoundError, SourceError, UnsupportedError
from refindex.model.manifest import Source
from refindex.scan.zarr.listing import MARKERS, MAX_OBJECTS, NO_TIME, IntArray, Listing, Rows, too_many

_MAX_DEPTH = 128
"""Folders within each other; a store has as many as its groups and, at most, its arrays have dimensions."""

_ROUND = 4096
"""Ranges that are asked for at a time; fsspec bounds how many of them are under way."""


def is_store(url: str, storage_options: StorageOptions = None) -> bool:
    """Whether a URL is a folder that holds Zarr metadata."""
    if urls.is_local(url):
        path = urls.local_path(url)
        return path.is_dir() and any((path / name).is_file() for name in MARKERS)
    with reading(url, "looking for Zarr metadata"):
        fs, root = filesystem(url, storage_options)
        return any(fs.exists(f"{root.rstrip('/')}/{name}".lstrip("/" if not root else "")) for name in MARKERS)


def stores_among(names: Iterable[str]) -> list[str]:
    """The folders of the outermost stores among the files of these names."""
    found = sorted({name.rpartition("/")[0] for name in names if name.rpartition("/")[2] in MARKERS})
    outer: list[str] = []
    for folder in found:  # sorted: what lies around a folder comes before it
        if not any(folder.startswith(f"{above}/") for above in outer[-1:]):
            outer.append(folder)
    return outer


class LocalFolder:
    """A store in a folder of this machine."""

    whole: Source | None = None

    def __init__(self, url: str, allowed: Allowed | None = None) -> None:
        self.url = url
        self._root = str(urls.local_path(url))
        self._allowed = allowed
        self.listing = self._list()

    def _list(self) -> Listing:
        names: list[str] = []
        size: list[int] = []
        mtime: list[int] = []
        refused: dict[str, str] = {}
        with reading(self.url, "listing it"):
            for name, status in _walk(self._root, self._allowed, refused):
                names.append(name)
                size.append(status.st_size)
                mtime.append(status.st_mtime_ns // 1000)
                if len(names) > MAX_OBJECTS:
                    raise too_many()
        return Listing.of(names, size, mtime, refused=refused)

    def again(self) -> Listing:
        """What the folder holds now."""
        return self._list()

    def offsets(self, rows: IntArray) -> IntArray:
        return np.zeros(len(rows), dtype=np.int64)

    def sources(self, rows: IntArray) -> list[Source]:
        return _sources(self.listing, rows, f"{self.url}/", "")

    def read(self, rows: Rows, starts: Rows, lengths: Rows) -> list[bytes]:
        out = []
        for row, start, length in zip(rows, starts, lengths, strict=True):
            url = f"{self.url}/{self.listing.names[row]}"
            with reading(url, f"reading {length} bytes at {start}"):
                out.append(complete(LocalFile(url).read(int(start), int(length)), int(length), url))
        return out


def _walk(root: str, allowed: Allowed | None, refused: dict[str, str]) -> Iterator[tuple[str, os.stat_result]]:
    """Files below a folder: name relative to it, status. Links are followed, but not into a folder around them, nor to
    what may not be read: these are ``refused``."""
    stack = [(root, "", 0)]
    while stack:
        folder, prefix, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise UnsupportedError(f"folders are nested deeper than {_MAX_DEPTH}: {folder}")
        with os.scandir(folder) as entries:
            for entry in entries:
                if allowed is not None and entry.is_symlink():
                    why = allowed.objection(f"file://{entry.path}")
                    if why is not None:
                        refused[f"{prefix}{entry.name}{'/' if entry.is_dir() else ''}"] = why
                        continue
                if entry.is_dir():
                    if not (entry.is_symlink() and _leads_back(entry.path, folder)):
                        stack.append((entry.path, f"{prefix}{entry.name}/", depth + 1))
                elif entry.is_file():  # no broken links, sockets, ...
                    yield prefix + entry.name, entry.stat()


def _leads_back(link: str, folder: str) -> bool:
    """Whether a link in a folder leads to that folder, or to one around it."""
    target = os.path.realpath(link)
    return os.path.join(os.path.realpath(folder), "").startswith(os.path.join(target, ""))  # noqa: PTH118


class RemoteFolder:
    """A store in a folder that fsspec lists."""

    whole: Source | None = None

    def __init__(self, url: str, storage_options: StorageOptions = None) -> None:
        self.url = url
        self._url = url.rstrip("/")
        with reading(url, "opening"):
            self._fs, root = filesystem(url, storage_options)
        self._root = str(root).rstrip("/")
        self.listing = self._list()

    def _list(self) -> Listing:
        with reading(self.url, "listing it"):
            self._fs.invalidate_cache(self._root)
            found: dict[str, dict[str, Any]] = self._fs.find(self._root, detail=True)
        prefix = f"{self._root}/" if self._root else ""
        names: list[str] = []
        size: list[int] = []
        mtime: list[int] = []
        etag: list[str | None] = []
        for path, info in found.items():
            if not path.startswith(prefix) or info.get("type") == "directory":
                continue
            nbytes = info.get("size")
            if nbytes is None:
                raise UnsupportedError(
                    f"{urls.display(self.url)}: listing it does not tell how large objects are (of {path}); "
                    "scan it through a protocol that does"
                )
            time, tag = modification_time(info), entity_tag(info)
            names.append(path.removeprefix(prefix))
            size.append(int(nbytes))
            mtime.append(NO_TIME if time is None else time)
            etag.append(tag)
        if not names:
            raise NotFoundError(f"{urls.display(self.url)}: nothing is listed there")
        return Listing.of(names, size, mtime, etag)

    def again(self) -> Listing:
        """What the folder holds now."""
        return self._list()

    def offsets(self, rows: IntArray) -> IntArray:
        return np.zeros(len(rows), dtype=np.int64)

    def sources(self, rows: IntArray) -> list[Source]:
        # Of a chained URL, the first link that has a path is the one that the names are below.
        links = self._url.split("::")
        at = next((i for i, link in enumerate(links) if "://" in link), 0)
        link = links[at] if links[at].endswith("://") else links[at].rstrip("/") + "/"
        head = "::".join([*links[:at], link])
        tail = "".join(f"::{link}" for link in links[at + 1 :])
        return _sources(self.listing, rows, head, tail)

    def read(self, rows: Rows, starts: Rows, lengths: Rows) -> list[bytes]:
        prefix = f"{self._root}/" if self._root else ""
        out: list[bytes] = []
        for first in range(0, len(rows), _ROUND):
            part = slice(first, first + _ROUND)
            paths = [prefix + self.listing.names[row] for row in rows[part]]
            begin = [int(n) for n in starts[part]]
            wanted = [int(n) for n in lengths[part]]
            with reading(self.url, f"reading {len(paths)} objects, the first {paths[0]}"):
                stops = [a + n for a, n in zip(begin, wanted, strict=True)]
                found = self._fs.cat_ranges(paths, begin, stops, on_error="raise")
            out += [complete(bytes(d), n, p) for d, n, p in zip(found, wanted, paths, strict=True)]
        return out


def _sources(listing: Listing, rows: IntArray, head: str, tail: str) -> list[Source]:
    numbers = rows.tolist()
    times: Sequence[int | None] = [None if t == NO_TIME else t for t in listing.mtime[rows].tolist()]
    tags: Sequence[str | None] = [None] * len(numbers) if listing.etag is None else [listing.etag[r] for r in numbers]
    names = [listing.names[r] for r in numbers]
    return [
        Source(url=f"{head}{name}{tail}", size=size, mtime=time, etag=tag)
        for name, size, time, tag in zip(names, listing.size[rows].tolist(), times, tags, strict=True)
    ]


def complete(data: bytes, length: int, where: str) -> bytes:
    """The bytes, if they are as many as were asked for."""
    if len(data) != length:
        raise SourceError(
            f"{urls.display(where)}: expected {length} bytes, got {len(data)}: it changed while it was scanned"
        )
    return data


def is_local_folder(url: str) -> bool:
    """Whether a URL names a folder of this machine."""
    return urls.is_local(url) and Path(urls.local_path(url)).is_dir()
