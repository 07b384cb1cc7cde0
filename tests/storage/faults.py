# ruff: noqa: PTH110, PTH112, PTH115, PTH118, PTH120
"""A local disk that fails: the n-th thing that changes it is refused, done by half, or the last before power goes.

What changes files passes the functions of ``os`` and ``open``, and of SQLite a layer below that of the checksums. Of
the disk as it would be after a loss of power, only what was synchronised is certain: the bytes of a file by ``fsync``
of the file, its name by ``fsync`` of its folder.
"""

from __future__ import annotations

import builtins
import errno
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw
import numpy as np

from refindex.storage.sqlite import pages

_open, _stat, _listdir = builtins.open, os.stat, os.listdir
_numbers = itertools.count()


class PowerLossError(BaseException):
    """Nothing runs any more, cleaning up neither."""


@dataclass(kw_only=True)
class Disk:
    """What is done below a folder, and the fault in it.

    Parameters
    ----------
    at:
        The number of the step at which the fault happens, None for never.
    fault:
        ``refused`` (I/O error, once), ``full`` (no space left, from then on), ``interrupt`` (Ctrl-C),
        ``answer`` (it is done, and reported as failed), ``power`` (nothing happens any more), ``read`` (the n-th read).
    """

    below: Path
    at: int | None = None
    fault: str = "power"
    steps: list[str] = field(default_factory=list)
    lost: bool = False
    contents: dict[int, bytes] = field(default_factory=dict)
    entries: dict[int, dict[str, int]] = field(default_factory=dict)
    times: dict[int, int] = field(default_factory=dict)
    unsynced: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)
    kept: list[Any] = field(default_factory=list)
    """Open files, so that no number of one is given to another."""

    def __post_init__(self) -> None:
        for folder, _, names in os.walk(self.below):
            self.synced_folder(folder)
            for name in names:
                path = os.path.join(folder, name)
                self.synced(_stat(path), Path(path).read_bytes())

    def is_here(self, path: Any) -> bool:
        return isinstance(path, str | bytes | os.PathLike) and str(self.below) in os.fsdecode(path)

    @contextmanager
    def step(
        self, what: str, path: Any, *, half: Callable[[], object] | None = None, space: bool = False
    ) -> Iterator[None]:
        """One thing that changes the disk; ``half`` does a part of it, ``space`` says whether it takes any."""
        if self.lost:
            raise PowerLossError
        number = len(self.steps)
        self.steps.append(f"{what} {Path(os.fsdecode(path)).name}")
        here = self.at is not None and number == self.at
        if here and self.fault == "power":
            if half is not None:
                half()
            self.lost = True
            raise PowerLossError
        if here and self.fault == "interrupt":
            raise KeyboardInterrupt
        if here and self.fault == "refused":
            if half is not None:
                half()
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fsdecode(path))
        if self.fault == "full" and self.at is not None and number >= self.at and space:
            if half is not None:
                half()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fsdecode(path))
        yield
        if here and self.fault == "answer":
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fsdecode(path))

    def reading(self, path: Any) -> None:
        if self.fault != "read":
            return
        self.steps.append(f"read {Path(os.fsdecode(path)).name}")
        if len(self.steps) - 1 == self.at:
            raise OSError(errno.EIO, os.strerror(errno.EIO), os.fsdecode(path))

    def synced(self, file: os.stat_result, content: bytes) -> None:
        self.contents[file.st_ino], self.times[file.st_ino] = content, file.st_mtime_ns
        self.unsynced.pop(file.st_ino, None)

    def synced_folder(self, folder: Any) -> None:
        names = _listdir(folder)
        self.entries[_stat(folder).st_ino] = {
            name: _stat(os.path.join(folder, name)).st_ino for name in map(os.fsdecode, names)
        }

    def after_power_loss(self, target: Path, *, names: bool, seed: int | None = None) -> None:
        """Make the disk as it may be found then.

        Parameters
        ----------
        names:
            Whether names that were not synchronised are there.
        seed:
            If given, some of the writes that were not synchronised have reached the file, in whole or in part.
        """
        random = np.random.default_rng(seed)

        def content(number: int) -> bytes:
            data = bytearray(self.contents.get(number, b""))
            for offset, written in self.unsynced.get(number, []) if seed is not None else []:
                part = written[: [0, len(written) // 512 // 2 * 512, len(written)][int(random.integers(3))]]
                data.extend(bytes(max(0, offset + len(part) - len(data))))
                data[offset : offset + len(part)] = part
            return bytes(data)

        def build(folder: Path, number: int, now: str | None) -> None:
            folder.mkdir(parents=True, exist_ok=True)
            found = dict(self.entries.get(number, {}))
            if names and now is not None:
                found = {name: _stat(os.path.join(now, name)).st_ino for name in _listdir(now)}
            for name, inode in found.items():
                path = None if now is None else os.path.join(now, name)
                is_folder = inode in self.entries or (
                    path is not None and os.path.isdir(path) and _stat(path).st_ino == inode
                )
                if is_folder:
                    same = path is not None and os.path.exists(path) and _stat(path).st_ino == inode
                    build(folder / name, inode, path if same else None)
                else:
                    (folder / name).write_bytes(content(inode))
                    os.utime(folder / name, ns=(self.times.get(inode, 0),) * 2)

        build(target, _stat(self.below).st_ino, os.fspath(self.below))


class _File:
    """A file that is written."""

    def __init__(self, disk: Disk, file: Any, path: Any) -> None:
        self._disk, self._file, self._path = disk, file, path

    def write(self, data: Any) -> Any:
        view = data.encode() if isinstance(data, str) else bytes(data)
        offset = self._file.tell()
        self._disk.unsynced.setdefault(os.fstat(self._file.fileno()).st_ino, []).append((offset, view))
        with self._disk.step("write", self._path, half=lambda: self._file.write(data[: len(data) // 2]), space=True):
            return self._file.write(data)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def failing(disk: Disk) -> Iterator[Disk]:
    """All that is done meanwhile below the folder of the disk passes it."""
    real = {
        name: getattr(os, name) for name in ("link", "replace", "rename", "unlink", "remove", "mkdir", "rmdir", "fsync")
    }

    def through(name: str, space: bool) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **options: Any) -> Any:
            if not disk.is_here(path):
                return real[name](path, *args, **options)
            if name in ("unlink", "remove", "replace", "rename"):
                victim = args[0] if name in ("replace", "rename") else path
                if os.path.exists(victim):
                    # Else the next file may get its number.
                    disk.kept.append(os.open(victim, os.O_RDONLY))
            with disk.step(name, path, space=space):
                return real[name](path, *args, **options)

        return call

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if not disk.is_here(path):
            real["fsync"](descriptor)
            return
        with disk.step("fsync", path):
            if os.path.isdir(path):
                disk.synced_folder(path)
            else:
                disk.synced(os.fstat(descriptor), Path(f"/proc/self/fd/{descriptor}").read_bytes())

    def open_(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not disk.is_here(path):
            return _open(path, mode, *args, **options)
        if not set(mode) & set("wxa+"):
            disk.reading(path)
            return _open(path, mode, *args, **options)
        file = None
        try:
            with disk.step("create", path, space=True):
                file = _open(path, mode, *args, **options)
        except BaseException:
            if file is not None:
                file.close()
            raise
        return _File(disk, file, path)

    name = f"refindex-faulty-{next(_numbers)}"
    below, above = _Files(disk, name + "-below"), pages.CheckedFiles(name, base=name + "-below")
    known, pages.NAME = pages.NAME, name
    for function in real:
        setattr(os, function, fsync if function == "fsync" else through(function, function in ("link", "mkdir")))
    builtins.open = open_  # type: ignore[assignment]
    try:
        yield disk
    finally:
        builtins.open = _open
        for function, original in real.items():
            setattr(os, function, original)
        pages.NAME = known
        above.unregister()
        below.unregister()
        for descriptor in disk.kept:
            os.close(descriptor)
        disk.kept.clear()


@contextmanager
def _as_sqlite() -> Iterator[None]:
    """Errors as SQLite's own way to files reports them."""
    try:
        yield
    except OSError as error:
        raise (apsw.FullError if error.errno == errno.ENOSPC else apsw.IOError)(str(error)) from error


class _Files(apsw.VFS):
    def __init__(self, disk: Disk, name: str) -> None:
        self._disk = disk
        super().__init__(name, base="")

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
        return _Database(self._disk, name, flags)

    def xDelete(self, path: str, sync: bool) -> None:
        if os.path.exists(path):
            self._disk.kept.append(os.open(path, os.O_RDONLY))
        with _as_sqlite(), self._disk.step("delete", path):
            super().xDelete(path, sync)
            if sync:
                self._disk.synced_folder(os.path.dirname(path))


class _Database(apsw.VFSFile):
    def __init__(self, disk: Disk, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._disk, self._path, self._here = disk, path or "", path is not None and disk.is_here(path)
        self._main = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB)
        if self._here and not os.path.exists(self._path):
            with _as_sqlite(), disk.step("create", self._path, space=True):
                super().__init__("", name, flags)
        else:
            super().__init__("", name, flags)
        self._number = _stat(self._path).st_ino if self._here else 0

    def xRead(self, amount: int, offset: int) -> bytes:
        if self._here:
            with _as_sqlite():
                self._disk.reading(self._path)
        return super().xRead(amount, offset)

    def xWrite(self, data: Any, offset: int) -> None:
        if not self._here:
            super().xWrite(data, offset)
            return
        raw = bytes(data)
        self._disk.unsynced.setdefault(self._number, []).append((offset, raw))
        half = raw[: len(raw) // 2]
        with _as_sqlite(), self._disk.step("write", self._path, half=lambda: self._write(half, offset), space=True):
            super().xWrite(raw, offset)

    def _write(self, data: bytes, offset: int) -> None:
        if data:
            super().xWrite(data, offset)

    def xTruncate(self, size: int) -> None:
        if not self._here:
            super().xTruncate(size)
            return
        with _as_sqlite(), self._disk.step("truncate", self._path):
            super().xTruncate(size)

    def xSync(self, flags: int) -> None:
        if not self._here:
            super().xSync(flags)
            return
        with _as_sqlite(), self._disk.step("fsync", self._path):
            size = super().xFileSize()
            self._disk.synced(_stat(self._path), super().xRead(size, 0) if size else b"")
            if not self._main:
                self._disk.synced_folder(os.path.dirname(self._path))
