"""Files of shards: written here, and understood by the scanner of Zarr stores.

A shard (Zarr extension ``sharding_indexed`` 1.0) is its chunks, one after the other, and behind them the index: offset
and length of each as uint64, both 2**64 - 1 where there is none, and the CRC-32C of it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.errors import ConflictError, ExistsError, FormatError, NotFoundError, SourceError
from refindex.model.chunks import DECLARED, ChunkTable
from refindex.model.manifest import Source
from refindex.model.zarr_v3 import dumps, loads
from refindex.optimization.layout import Layout
from refindex.scan.zarr import v3
from refindex.scan.zarr.folder import LocalFolder, RemoteFolder
from refindex.scan.zarr.plan import ChunkKeys
from refindex.scan.zarr.shards import References, cut, find_sharding
from refindex.storage import disk

type Document = dict[str, Any]

SIDECAR = "shards.json"
"""What a folder of shards is of. Not ``zarr.json``: a scan of the folders around would take it for one more source."""

_PART = ".part-"
_KEYS = ChunkKeys(default=True, separator="/")
_ABSENT = 2**64 - 1


def shard_document(document: Document, layout: Layout, chain: list[Document]) -> Document:
    """The document of an array whose chunk objects are the shards."""
    little = {"endian": "little"}
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": list(layout.chunk),
            "codecs": chain,
            "index_codecs": [{"name": "bytes", "configuration": little}, {"name": "crc32c"}],
            "index_location": "end",
        },
    }
    return {**document, "chunk_grid": layout.shards.to_json(), "codecs": [sharding]}


class Shard:
    """A shard that is being written: chunks in any order, in a file of this machine."""

    def __init__(self, file: IO[bytes], number: int, count: int) -> None:
        self.number = number
        self._file = file
        self._index = np.full((count, 2), _ABSENT, dtype="<u8")
        self._at = 0

    def add(self, local: int, data: bytes) -> None:
        """Write the chunk that has this number within the shard, in C order."""
        self._index[local] = self._at, len(data)
        self._at += self._file.write(data)

    @property
    def is_empty(self) -> bool:
        return self._at == 0

    @property
    def name(self) -> str:
        return self._file.name

    def finish(self) -> int:
        """Write the index, and see that all of it is on the disk; returns the bytes of the shard."""
        index = self._index.tobytes()
        self._file.write(index + google_crc32c.value(index).to_bytes(4, "little"))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._at + len(index) + 4

    def close(self) -> None:
        """Remove what is not in its place."""
        with contextlib.suppress(OSError):
            self._file.close()
        Path(self.name).unlink(missing_ok=True)


class Folder:
    """A folder of shards, local or remote.

    Parameters
    ----------
    url:
        Absolute URL.
    document:
        Of the array whose chunk objects the shards are.
    layout:
        Of the array.
    """

    def __init__(self, url: str, document: Document, layout: Layout, storage_options: StorageOptions) -> None:
        self.url, self.document, self.layout = url, document, layout
        self._options = storage_options
        self._local = urls.local_path(url) if urls.is_local(url) else None

    @contextmanager
    def opened(self, key: str, said: Document) -> Iterator[None]:
        """Make the folder, and say in it what it is of. Locally, one process at a time has it.

        Raises
        ------
        ExistsError
            If it is of something else.
        ConflictError
            If another process has it.
        SourceError
            If it cannot be written.
        """
        text = dumps({**said, "key": key, "document": self.document}).encode()
        with contextlib.ExitStack() as stack:
            if self._local is None:
                with self._writing():
                    fs, path = filesystem(self.url, self._options)
                    there = f"{path}/{SIDECAR}"
                    found = fs.cat_file(there) if fs.exists(there) else None
                    if found is None:
                        fs.makedirs(path, exist_ok=True)
                        fs.pipe_file(there, text)
            else:
                with self._writing():
                    disk.make_folder(self._local)
                    lock = stack.enter_context((self._local / SIDECAR).open("a+b"))
                    try:
                        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError as error:
                        raise ConflictError(
                            f"{urls.display(self.url)}: another process is writing the same there; wait for it, or "
                            "pass resume=False (--no-resume) to write elsewhere"
                        ) from error
                    lock.seek(0)
                    found = lock.read() or None
                    if not _is_json(found):  # of a process that was stopped while it wrote this
                        lock.truncate(0)
                        lock.write(text)
                        lock.flush()
                        found = None
                    for left in self._local.glob(f"{_PART}*"):
                        left.unlink(missing_ok=True)
            if found is not None and loads(found, SIDECAR).get("key") != key:
                raise ExistsError(f"{urls.display(self.url)}: holds something else; remove it, or write elsewhere")
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with reading(self.url, "writing it"):
            yield

    def sound(self) -> dict[int, int]:
        """The shards that are there and complete, by number, and their bytes."""
        found = self._listed()
        if found is None:
            return {}
        objects, shards = found
        length = 16 * _count(self.layout) + 4
        whole = np.flatnonzero(shards.length >= length)
        rows, sizes = shards.row[whole], shards.length[whole]
        blocks = objects.read(rows, sizes - length, np.full(len(rows), length, dtype=np.int64))
        return {
            number: size
            for number, size, block in zip(shards.chunk[whole].tolist(), sizes.tolist(), blocks, strict=True)
            if google_crc32c.value(block[:-4]) == int.from_bytes(block[-4:], "little")
        }

    def _listed(self) -> tuple[LocalFolder | RemoteFolder, References] | None:
        """What is in the folder, and which of it are shards; None if nothing is."""
        objects: LocalFolder | RemoteFolder
        try:
            objects = LocalFolder(self.url) if self._local is not None else RemoteFolder(self.url, self._options)
        except NotFoundError:
            return None
        listing = objects.listing
        numbers, at = _KEYS.numbers(listing.names, self.layout.shards)
        order = np.argsort(numbers, kind="stable")
        rows = at[order].astype(np.int64)
        zeros = np.zeros(len(rows), dtype=np.int64)
        return objects, References(chunk=numbers[order], row=rows, offset=zeros, length=listing.size[rows])

    @contextmanager
    def shard(self, number: int) -> Iterator[Shard]:
        """Write a shard. What is not finished is removed."""
        with contextlib.ExitStack() as stack:
            with self._writing():
                file: IO[bytes]
                if self._local is not None:
                    file = (self._local / f"{_PART}{number}").open("xb")
                else:
                    file = tempfile.NamedTemporaryFile(prefix="refindex-", delete=False)  # noqa: SIM115
            made = Shard(file, number, _count(self.layout))
            stack.callback(made.close)
            yield made

    def publish(self, shard: Shard) -> int:
        """Put a shard into its place; returns its bytes. One without chunks has none."""
        if shard.is_empty:
            return 0
        key = self.layout.shards.key(shard.number)
        nbytes = shard.finish()
        with self._writing():
            if self._local is not None:
                place = self._local / key
                disk.make_folder(place.parent)
                Path(shard.name).replace(place)
                disk.sync(place.parent)
            else:
                fs, path = filesystem(self.url, self._options)
                place_remote = f"{path}/{key}"
                fs.makedirs(place_remote.rpartition("/")[0], exist_ok=True)
                fs.put_file(shard.name, place_remote)
        return nbytes

    def references(self, expected: npt.NDArray[np.bool_]) -> tuple[ChunkTable, list[Source]]:
        """The references of the chunks in all shards, and the files that they are in.

        Parameters
        ----------
        expected:
            For each chunk whether it must be there.

        Raises
        ------
        SourceError
            If others are there.
        """
        found = self._listed()
        if found is None or not len(found[1].chunk):
            if expected.any():
                raise SourceError(f"{urls.display(self.url)}: the shards that were written are gone")
            return ChunkTable.empty(), []
        objects, shards = found
        plan = v3.plan(dict(self.document))
        sharding = find_sharding(plan)
        if sharding is None:
            raise FormatError(f"{urls.display(self.url)}: {'; '.join(plan.notes)}")
        _, references = cut(sharding, plan.grid, shards, objects.read)
        order = np.argsort(references.chunk, kind="stable")
        chunk = references.chunk[order]
        if not np.array_equal(chunk, np.flatnonzero(expected)):
            raise SourceError(
                f"{urls.display(self.url)}: {len(chunk)} chunks are in the shards, {int(expected.sum())} were to be "
                "written; remove the folder, and try again"
            )
        rows, source = np.unique(references.row[order], return_inverse=True)
        table = ChunkTable.from_columns(
            chunk=chunk,
            source=source.reshape(-1),
            offset=references.offset[order],
            length=references.length[order],
            encoding=DECLARED,
        )
        return table, objects.sources(rows)


def _is_json(text: bytes | None) -> bool:
    try:
        return text is not None and isinstance(loads(text, SIDECAR), dict)
    except FormatError:
        return False


def _count(layout: Layout) -> int:
    """Chunks in a shard."""
    count = 1
    for outer, inner in zip(layout.shard, layout.chunk, strict=True):
        count *= outer // inner
    return count
