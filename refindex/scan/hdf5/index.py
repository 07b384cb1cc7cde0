"""Chunk tables of one open HDF5 file: read directly from the file, or by libhdf5 where that is faster."""

from __future__ import annotations

import contextlib
import math
import mmap
import resource
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5s

from refindex.access import urls
from refindex.access.blocks import KEPT, RemoteBlocks
from refindex.access.files import StorageOptions, open_reader, reading
from refindex.access.gather import Gatherer, LocalGatherer, drive_together
from refindex.access.transport import RemoteStats
from refindex.access.trust import Allowed
from refindex.errors import FormatError, UnsupportedError
from refindex.model.encoding import Filter
from refindex.model.manifest import Source
from refindex.scan.hdf5.chunk_index import index_walk, read_chunks
from refindex.scan.hdf5.chunks import StoredChunks, iterate_chunks, one_unlimited_behind_first
from refindex.scan.hdf5.family import read_family
from refindex.scan.hdf5.known import Known
from refindex.scan.hdf5.object_header import LAYOUT_MESSAGE, read_layout
from refindex.scan.hdf5.opening import opened
from refindex.scan.hdf5.other_files import check_place, file_key
from refindex.scan.hdf5.plain import PlainFile
from refindex.scan.hdf5.superblock import Superblock, read_superblock
from refindex.scan.hdf5.walk import Found

CROSSOVER = 100
"""Chunk grids up to this size are read faster by ``H5Dchunk_iter`` than directly (measured: both take 0.1 ms)."""


_SPARE = 192
"""Open files that are left to everything else, by the process's limit."""

_RECENT = 32
"""Files open at the same time for virtual datasets."""


class FileIndex:
    """One open file: where the chunks of its datasets are, and which other files they lie in.

    Where the file cannot be read directly, libhdf5 reads all chunk tables, and datasets for which it would be wrong
    are refused. It is opened a second time for that when it is first needed; a scan can have many files open.
    """

    def __init__(
        self,
        source: Source,
        *,
        file: h5py.File,
        files: OpenFiles,
        note: str = "",
        blocks: RemoteBlocks | None = None,
        storage_options: StorageOptions = None,
    ) -> None:
        self.file = file
        self.blocks = blocks
        self.files = files
        self.note = note
        self.linked = False
        """Whether the scan came to this file through a link in another."""
        self.url = source.url
        self.sources = [source]
        self._numbers = {source.url: 0}
        self.size = source.size
        self.storage_options = storage_options
        self.family = read_family(file.filename) if file.driver == "family" else None
        if self.family is not None:
            for member in self.family.members[1:]:
                check_place(member.url, files.allowed)
            self.size = self.family.size
        self._user_block = file.userblock_size
        self._stack = contextlib.ExitStack()
        self._direct: tuple[Gatherer, Superblock] | None = None
        self._mapping: mmap.mmap | None = None

    def close(self) -> None:
        """Let go of what was opened to read chunk tables; libhdf5's file belongs to its opener."""
        self._direct = self._mapping = None
        self.__dict__.pop("plain", None)
        self._stack.close()

    def chunks(self, found: Found, *, pipeline: tuple[Filter, ...]) -> StoredChunks:
        """The chunks that a dataset has allocated.

        Raises
        ------
        UnsupportedError
            If the index cannot be read directly, and libhdf5 would misread it.
        """
        dataset = found.id
        shape, maxima = found.shape, found.maxima
        chunk_shape = found.chunk
        size = math.prod(-(-n // step) for n, step in zip(shape, chunk_shape, strict=True))
        # What only the layout message tells: edge chunks stored without their filters, and an extensible array over
        # which libhdf5 2.0.0 iterates wrongly.
        unfiltered_edges = bool(pipeline) and any(n % step for n, step in zip(shape, chunk_shape, strict=True))
        rotated = one_unlimited_behind_first(maxima)
        if size <= CROSSOVER and not unfiltered_edges and not rotated:
            return self._few(found) or iterate_chunks(dataset, chunk_shape, user_block=self._user_block, few=True)
        try:
            return self._read(found, shape, maxima, filtered=bool(pipeline))
        except (FormatError, UnsupportedError) as error:
            if rotated or unfiltered_edges:
                raise UnsupportedError(
                    f"its chunk index cannot be read directly ({error}), and libhdf5 may misread it"
                ) from error
            return iterate_chunks(dataset, chunk_shape, user_block=self._user_block)

    def _few(self, found: Found) -> StoredChunks | None:
        """The chunks of a dataset where they are plain to see."""
        if self.plain is None or found.header is None or found.header.extent is None:
            return None
        layout = found.header.bodies[LAYOUT_MESSAGE]
        leaf = self.plain.leaf(layout, len(found.shape), 2 * self.direct()[1].indexed_storage_k)
        if leaf is None:
            return None
        return StoredChunks(scaled=leaf.scaled, offset=leaf.offset, length=leaf.length, mask=leaf.mask)

    def _read(self, found: Found, shape: tuple[int, ...], maxima: tuple[int, ...], *, filtered: bool) -> StoredChunks:
        gatherer, superblock = self.direct()
        layout = read_layout(gatherer, superblock, found.address + superblock.base_address)
        columns = read_chunks(
            gatherer,
            superblock,
            layout,
            shape=shape,
            max_shape=tuple(None if n == h5s.UNLIMITED else n for n in maxima),
            filtered=filtered,
        )
        return StoredChunks(
            scaled=columns.scaled,
            offset=columns.offset,
            length=columns.length,
            mask=columns.filter_mask.astype(np.int64),
        )

    def fetch_indexes(self, datasets: Sequence[Found]) -> None:
        """Fetch the chunk indexes of datasets of a remote file side by side: one after the other, each level of each
        would be a round trip. What cannot be fetched so is left to whoever needs it."""
        if self.blocks is None or self.blocks.is_whole:
            return
        try:
            gatherer, superblock = self.direct()
        except (FormatError, UnsupportedError):
            return
        walks = []
        for found in datasets:
            creation = found.creation
            if creation.get_layout() != h5d.CHUNKED:
                continue
            shape, maxima = found.shape, found.maxima
            walks.append(
                index_walk(
                    superblock,
                    found.address + superblock.base_address,
                    shape=shape,
                    max_shape=tuple(None if n == h5s.UNLIMITED else n for n in maxima),
                    filtered=creation.get_nfilters() > 0,
                )
            )
        drive_together(walks, gatherer, most=KEPT // 2)

    def direct(self) -> tuple[Gatherer, Superblock]:
        """What reads the file without libhdf5.

        Raises
        ------
        FormatError, UnsupportedError
            If its superblock cannot be read so.
        """
        if self._direct is None and self.family is not None:
            joined = self.family.gatherer()
            self._direct = joined, read_superblock(joined, joined=True)
        if self._direct is None:
            with contextlib.ExitStack() as stack:
                if self.blocks is None:
                    mapping = stack.enter_context(_mapped(self.sources[0]))
                    gatherer: Gatherer = LocalGatherer(mapping, name=urls.display(self.sources[0].url))
                else:
                    gatherer = self.blocks.gatherer()
                self._direct = gatherer, read_superblock(gatherer, left_open=bool(self.note))
                self._mapping = None if self.blocks is not None else mapping
                self._stack.push(stack.pop_all())
        return self._direct

    @cached_property
    def plain(self) -> PlainFile | None:
        """What tells of objects by the bytes of their headers, where all bytes are at hand; None elsewhere."""
        if self.family is not None or self.note or not (self.blocks is None or self.blocks.is_whole):
            return None
        try:
            superblock = self.direct()[1]
        except (FormatError, UnsupportedError):
            return None
        data = self._mapping if self.blocks is None else self.blocks.read(0, self.size)
        return None if data is None else PlainFile.of(data, superblock)

    def source_number(self, url: str) -> int:
        """The number of another file that data of this one lies in; the file itself is 0.

        Raises
        ------
        NotFoundError
            If it is not there.
        """
        if url in self._numbers:
            return self._numbers[url]
        with reading(url, "looking at it"):
            return self.add_source(open_reader(url, self.storage_options).identity())

    def add_source(self, source: Source) -> int:
        """The number of a file whose identity was taken before it was read."""
        number = self._numbers.setdefault(source.url, len(self.sources))
        if number == len(self.sources):
            self.sources.append(source)
        return number

    def check_range(self, offset: npt.NDArray[np.int64], length: npt.NDArray[np.int64]) -> None:
        """Refuse data that ends beyond the file."""
        # Compared before they are added: the end of a hostile one may be more than an int64 holds.
        over = offset > self.size - length
        if over.any():
            row = int(np.argmax(over))
            raise FormatError(f"data ends at byte {int(offset[row]) + int(length[row])} of a file of {self.size} bytes")


class OpenFiles:
    """The files that one scan reads: the scanned one, and those that it names. Each is opened once.

    ``blocks`` are those of the scanned file, if it is remote; the requests of others are counted in ``stats``.
    ``known`` is what files before this one have told; ``allowed`` where others may be, anywhere if None.
    """

    def __init__(
        self,
        storage_options: StorageOptions = None,
        *,
        blocks: RemoteBlocks | None = None,
        stats: RemoteStats | None = None,
        known: Known | None = None,
        allowed: Allowed | None = None,
    ) -> None:
        self.known = Known() if known is None else known
        self.allowed = allowed
        self._options = storage_options
        self._blocks = blocks
        self._stats = stats
        self._remote: list[RemoteBlocks] = []
        self._stack = contextlib.ExitStack()
        self._kept: dict[str, FileIndex] = {}
        self._recent: OrderedDict[str, tuple[contextlib.ExitStack, FileIndex]] = OrderedDict()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *error: object) -> None:
        for stack, _ in self._recent.values():
            stack.close()
        self._stack.close()

    def keep(self, url: str, source: Source | None = None) -> FileIndex:
        """A file that stays open until the scan ends, because objects in it are passed on."""
        key = file_key(url)
        if key not in self._kept:
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - _SPARE
            if len(self._kept) >= most > 0:
                raise UnsupportedError(
                    f"{urls.display(url)}: more than {most} linked files; raise the limit on open files (ulimit -n)"
                )
            self._kept[key] = self._stack.enter_context(self._open(url, source))
            self._kept[key].linked = source is None
        return self._kept[key]

    def use(self, url: str) -> FileIndex:
        """A file that stays open until a number of others were used: a virtual dataset can name thousands."""
        key = file_key(url)
        if key in self._kept:
            return self._kept[key]
        if key in self._recent:
            self._recent.move_to_end(key)
            return self._recent[key][1]
        if len(self._recent) >= _RECENT:
            self._recent.popitem(last=False)[1][0].close()
        stack = contextlib.ExitStack()
        index = stack.enter_context(self._open(url, None))
        self._recent[key] = stack, index
        return index

    def finish(self) -> None:
        """Raise for remote files that could not be read, or that changed: libhdf5 may have gone on without them."""
        for blocks in self._remote:
            blocks.finish()

    @contextlib.contextmanager
    def _open(self, url: str, source: Source | None) -> Iterator[FileIndex]:
        with contextlib.ExitStack() as stack:
            blocks: RemoteBlocks | None = None
            if not urls.is_local(url):
                blocks = self._blocks if self._blocks is not None and self._blocks.url == url else None
                if blocks is None:
                    blocks = RemoteBlocks.open(url, self._options, stats=self._stats)
                    stack.callback(blocks.close)
                self._remote.append(blocks)
                source = blocks.source
            elif source is None:  # before it is read: what changes afterwards must be noticed
                with reading(url, "looking at it"):
                    source = open_reader(url, self._options).identity()
            file, note = stack.enter_context(opened(url, blocks))
            index = FileIndex(source, file=file, files=self, note=note, blocks=blocks, storage_options=self._options)
            stack.callback(index.close)
            yield index


@contextlib.contextmanager
def _mapped(source: Source) -> Iterator[mmap.mmap]:
    with (
        urls.local_path(source.url).open("rb") as opened,
        mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
    ):
        yield mapping
