"""Opening HDF5 files for reading, those included that libhdf5 refuses although nothing is wrong with their data."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any, BinaryIO

import h5py

from refindex.access import urls
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import reading
from refindex.decode import plugins
from refindex.errors import FormatError, RefindexError, UnsupportedError
from refindex.scan.hdf5.checksum import lookup3
from refindex.scan.hdf5.collection import COLLECTION
from refindex.scan.hdf5.family import pattern_of, read_family

_LIBRARY_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError, MemoryError, OverflowError)
_SIGNATURE = b"\x89HDF\r\n\x1a\n"

LEFT_OPEN = (
    "the superblock says that a writer has the file open, or ended without closing it (consistency flags {flags:#x}): "
    "what it had not written yet is missing; read as it is on disk"
)


@contextlib.contextmanager
def opened(url: str, blocks: RemoteBlocks | None = None) -> Iterator[tuple[h5py.File, str]]:
    """A file open for reading by libhdf5, and a note for the report; local ones directly, others from their ``blocks``.

    Raises
    ------
    FormatError
        If libhdf5 cannot open it.
    UnsupportedError
        If it is one of several files that make one (family and multi drivers).
    SourceError
        If it cannot be read.
    """
    plugins.register()
    with contextlib.ExitStack() as stack:
        where: Any
        if blocks is None:
            where = urls.local_path(url)
        else:
            if not blocks.is_whole:
                stack.enter_context(COLLECTION.paused())
            where = stack.enter_context(blocks.file())
        note = ""
        try:
            file = stack.enter_context(h5py.File(where, "r"))
        except PermissionError:
            with reading(url, "opening"):
                raise
        except _LIBRARY_ERRORS as error:
            if blocks is not None:
                blocks.check()  # libhdf5 does not say why it could not read
            if "already open for" in str(error):
                file, note = _left_open(url, where, stack, error)
            else:
                file, note = _family(url, where, stack, error)
        if blocks is not None and not note:
            # libhdf5 minds these flags only where its own drivers read.
            with blocks.file() as binary:
                patch = clear_flags(binary)
            if patch is not None and patch[2] & 0b101:
                note = LEFT_OPEN.format(flags=patch[2])
        yield file, note


def _left_open(url: str, where: Any, stack: contextlib.ExitStack, error: Exception) -> tuple[h5py.File, str]:
    binary: BinaryIO = stack.enter_context(where.open("rb")) if urls.is_local(url) else where
    with reading(url, "reading the superblock"):
        patch = clear_flags(binary)
    if patch is None:
        raise FormatError(f"{urls.display(url)}: libhdf5 cannot open it: {error}") from error
    start, block, flags = patch
    try:
        file = stack.enter_context(h5py.File(PatchedFile(binary, start, block), "r"))
    except _LIBRARY_ERRORS as again:
        raise FormatError(
            f"{urls.display(url)}: its writer did not close it, and libhdf5 cannot open what is on disk: {again}"
        ) from again
    return file, LEFT_OPEN.format(flags=flags)


def _superblock_start(binary: BinaryIO | io.RawIOBase) -> int | None:
    """Section II.A: the signature is at byte 0, 512, 1024, 2048, ..."""
    size = binary.seek(0, io.SEEK_END)
    start = 0
    while start + len(_SIGNATURE) <= size:
        binary.seek(start)
        if binary.read(len(_SIGNATURE)) == _SIGNATURE:
            return start
        start = max(512, start * 2)
    return None


def clear_flags(binary: BinaryIO | io.RawIOBase) -> tuple[int, bytes, int] | None:
    """The superblock as if its file had been closed: where it starts, its bytes, and the flags that it had.

    Format specification II.A, version 3: file consistency flags at byte 11 (bit 0 write access, bit 2 single
    writer), a checksum behind four addresses. None if it is of another version, or damaged.
    """
    start = _superblock_start(binary)
    if start is None:
        return None
    binary.seek(start)
    head = binary.read(12 + 4 * 32 + 4)
    if len(head) < 12 or head[8] != 3:
        return None
    length = 12 + 4 * head[9]
    if len(head) < length + 4 or lookup3(head[:length]) != int.from_bytes(head[length : length + 4], "little"):
        return None
    block = head[:11] + b"\0" + head[12:length]
    return start, block + lookup3(block).to_bytes(4, "little"), head[11]


class PatchedFile(io.RawIOBase):
    """A file open for reading in which a few bytes are others than on disk, where nothing is ever written."""

    def __init__(self, binary: BinaryIO, start: int, patch: bytes) -> None:
        super().__init__()
        self._binary, self._start, self._patch = binary, start, patch
        self._position = 0
        self._size = binary.seek(0, io.SEEK_END)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        self._binary.seek(self._position)
        data = bytearray(self._binary.read(len(view)))
        first = max(self._start, self._position)
        last = min(self._start + len(self._patch), self._position + len(data))
        if first < last:
            data[first - self._position : last - self._position] = self._patch[first - self._start : last - self._start]
        view[: len(data)] = data
        self._position += len(data)
        return len(data)


def _family(url: str, where: Any, stack: contextlib.ExitStack, error: Exception) -> tuple[h5py.File, str]:
    """Open the family of which a file is the first, or raise what keeps libhdf5 from opening it."""
    refused = _refused(url, where, error)
    pattern = pattern_of(where) if urls.is_local(url) else None
    if pattern is None or not (isinstance(refused, UnsupportedError) or "truncated file" in str(error)):
        raise refused from error
    try:
        read_family(pattern)
        file = stack.enter_context(h5py.File(pattern, "r", driver="family", memb_size=0))
    except (RefindexError, *_LIBRARY_ERRORS) as again:
        raise FormatError(f"{refused}; as the first of a family of files: {again}") from error
    return file, f"the first of a family of files, {pattern}"


def _refused(url: str, where: Any, error: Exception) -> FormatError | UnsupportedError:
    """The error for a file that libhdf5 does not open; files of a family are sound, but not alone."""
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
        binary: BinaryIO = stack.enter_context(where.open("rb")) if urls.is_local(url) else where
        start = _superblock_start(binary)
        if start is not None:
            binary.seek(start)
            # Section II.B: driver identification; since version 2 in the superblock extension, which follows.
            head = binary.read(1 << 12)
            for mark, driver, remedy in (
                (b"NCSAfami", "family", "h5repart -family_to_sec2 'NAME%d.h5' joined.h5"),
                (b"NCSAmult", "multi", "h5repack"),
            ):
                if mark in head:
                    return UnsupportedError(
                        f"{urls.display(url)}: one of several files that are one (HDF5's {driver} driver); "
                        f"not served yet: join them with {remedy}"
                    )
    return FormatError(f"{urls.display(url)}: libhdf5 cannot open it: {error}")
