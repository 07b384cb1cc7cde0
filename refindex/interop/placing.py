"""Outputs that appear complete or not at all: written under another name, and put in place when all of it is there."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from pathlib import Path
from types import TracebackType
from typing import Self

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.errors import ExistsError


class Placing:
    """One output, a file or a folder, and perhaps a second file beside it, which it refers to.

    Parameters
    ----------
    dest:
        Path or URL of the output.
    overwrite:
        Whether what is there is replaced.
    pair:
        Whether there may be a second file; otherwise, what is written ``beside`` is for the time being.

    Attributes
    ----------
    main, beside:
        Where to write them: local paths.
    beside_url:
        What the second file will be called.

    Raises
    ------
    ExistsError
        If something is there and ``overwrite`` is not set.
    """

    def __init__(
        self, dest: str, *, overwrite: bool, pair: bool = True, storage_options: StorageOptions = None
    ) -> None:
        self.url = urls.absolute(dest).rstrip("/")
        self.beside_url = f"{self.url}.data"
        self._options = storage_options
        self._local = urls.is_local(self.url)
        self._pair = pair
        for url in (self.url, self.beside_url) if pair else (self.url,):
            if not overwrite and self._exists(url):
                raise ExistsError(f"{urls.display(url)} exists; give overwrite=True (--overwrite) to replace it")
        if self._local:
            target = urls.local_path(self.url)
            target.parent.mkdir(parents=True, exist_ok=True)
            token = uuid.uuid4().hex[:12]
            self._folder = None
            self.main = target.with_name(f".{target.name}.{token}")
            self.beside = target.with_name(f".{target.name}.data.{token}")
        else:
            self._folder = Path(tempfile.mkdtemp(prefix="refindex-"))
            self.main, self.beside = self._folder / "main", self._folder / "data"

    def _exists(self, url: str) -> bool:
        if urls.is_local(url):
            path = urls.local_path(url)
            return path.exists() or path.is_symlink()
        with reading(url, "looking whether it is there"):
            fs, path_there = filesystem(url, self._options)
            return bool(fs.exists(path_there))

    def publish(self, last: str = "") -> None:
        """Put everything in place. Of a folder, the file ``last`` is uploaded last: readers begin with it."""
        if self._local:
            self._publish_local()
        else:
            self._publish_remote(last)

    def _publish_local(self) -> None:
        target, data = urls.local_path(self.url), urls.local_path(self.beside_url)
        aside = self.main.with_name(f"{self.main.name}.old")
        # The old output must not be read beside the new second file; folders cannot be replaced by renaming.
        in_the_way = self.main.is_dir() or target.is_dir() or (self._pair and data.exists())
        if in_the_way and (target.exists() or target.is_symlink()):
            target.rename(aside)
        if self._pair:
            if self.beside.exists():
                self.beside.replace(data)
            else:
                data.unlink(missing_ok=True)
        self.main.replace(target)
        _remove(aside)

    def _publish_remote(self, last: str) -> None:
        with reading(self.url, "writing it"):
            fs, target = filesystem(self.url, self._options)
            data = f"{target}.data"
            if fs.exists(target):
                fs.rm(target, recursive=True)
            if self._pair and fs.exists(data):
                fs.rm(data)
            if self._pair and self.beside.exists():
                fs.put_file(str(self.beside), data)
            if not self.main.is_dir():
                fs.put_file(str(self.main), target)
                return
            files = [p for p in self.main.rglob("*") if p.is_file()]
            for path in sorted(files, key=lambda p: p.relative_to(self.main).as_posix() == last):
                name = f"{target}/{path.relative_to(self.main).as_posix()}"
                fs.makedirs(name.rpartition("/")[0], exist_ok=True)
                fs.put_file(str(path), name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _remove(self.main)
        _remove(self.beside)
        if self._folder is not None:
            _remove(self._folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
