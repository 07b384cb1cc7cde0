"""An archive as an fsspec filesystem: ``refindex::s3://bucket/archive.refindex``, or ``fo=`` a URL."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fsspec.asyn import AsyncFileSystem
from fsspec.callbacks import DEFAULT_CALLBACK

from refindex.access import urls
from refindex.access.files import Stale
from refindex.access.trust import Allow
from refindex.serve.keys import KeySpace
from refindex.serve.opening import Opening, open_keys
from refindex.serve.resolver import ByteRange


class RefindexFileSystem(AsyncFileSystem):  # type: ignore[misc]
    """The keys of an archive (Zarr v3 documents and chunks) as read-only files.

    Parameters
    ----------
    fo:
        Path or URL of a manifest, or of an HDF5 / NetCDF file, which is scanned on the spot.
    target_protocol, target_options:
        Protocol and options with which fsspec opens ``fo``; chained URLs fill them in.
    remote_options:
        Options for the sources; those of the target if not given.
    version:
        Snapshot to open, the newest if not given.
    stale:
        What to do when a source is not what was scanned: ``"error"``, ``"warn"`` or ``"ignore"``.
    allow:
        Prefixes that the archive may read besides what lies below the folder that holds it, see
        :func:`refindex.open`.
    """

    protocol = "refindex"
    async_impl = True
    root_marker = ""
    cachable = False  # an instance is pinned to the version that it opened: a cached one would hide newer ones

    def __init__(
        self,
        fo: str,
        *,
        target_protocol: str | None = None,
        target_options: Mapping[str, Any] | None = None,
        remote_options: Mapping[str, Any] | None = None,
        version: int | None = None,
        stale: Stale = "error",
        allow: Allow = None,
        keys: KeySpace | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        url = str(fo)
        if target_protocol not in (None, "file", "local") and "://" not in url:
            url = f"{target_protocol}://{url}"
        options = remote_options if remote_options is not None else target_options
        self.archive = Opening(
            url=urls.absolute(url), version=version, storage_options=dict(options or {}), stale=stale, allow=allow
        )
        self._keys = keys
        self._opening = threading.Lock()

    @property
    def keys(self) -> KeySpace:
        if self._keys is None:
            with self._opening:  # several threads may ask first: one of them opens it
                if self._keys is None:
                    self._keys = open_keys(self.archive)
        return self._keys

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **kwargs: Any) -> bytes:
        path = self._strip_protocol(path)
        if self._keys is None:  # what opens remote archives waits for the loop that this runs on
            await asyncio.to_thread(lambda: self.keys.exists(path))
        whole = (end is not None and end < 0) or (start is not None and start < 0 and end is not None)
        part = ByteRange() if whole else ByteRange(start=start or 0, stop=end)
        data = await self.keys.read_async(path, part)
        if data is None:
            if await asyncio.to_thread(self._is_folder, path):
                raise IsADirectoryError(path)
            raise FileNotFoundError(path)
        return data[start:end] if whole else data

    def _is_folder(self, path: str) -> bool:
        return path == "" or next(iter(self.keys.children(path)), None) is not None

    def _entry(self, path: str, folder: bool) -> dict[str, Any]:
        if folder:
            return {"name": path, "size": 0, "type": "directory"}
        return {"name": path, "size": self.keys.size(path), "type": "file"}

    def _info_now(self, path: str) -> dict[str, Any]:
        size = self.keys.size(path)
        if size is not None:
            return {"name": path, "size": size, "type": "file"}
        if self._is_folder(path):
            return {"name": path, "size": 0, "type": "directory"}
        raise FileNotFoundError(path)

    async def _info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return await asyncio.to_thread(self._info_now, self._strip_protocol(path))

    async def _exists(self, path: str, **kwargs: Any) -> bool:
        path = self._strip_protocol(path)
        return await asyncio.to_thread(lambda: self.keys.exists(path) or self._is_folder(path))

    def _ls_now(self, path: str, detail: bool) -> list[Any]:
        prefix = f"{path}/" if path else ""
        children = [(prefix + name, folder) for name, folder in self.keys.children(path)]
        if not children and path:
            entry = self._info_now(path)
            return [entry] if detail else [path]
        return [self._entry(*child) for child in children] if detail else [name for name, _ in children]

    async def _ls(self, path: str, detail: bool = True, **kwargs: Any) -> list[Any]:
        return await asyncio.to_thread(self._ls_now, self._strip_protocol(path), detail)

    async def _get_file(self, rpath: str, lpath: str, callback: Any = DEFAULT_CALLBACK, **kwargs: Any) -> None:
        rpath = self._strip_protocol(rpath)
        info = await self._info(rpath)
        target = Path(lpath)
        if info["type"] == "directory":
            target.mkdir(parents=True, exist_ok=True)
            return
        data = await self._cat_file(rpath)
        callback.set_size(len(data))
        await asyncio.to_thread(_write, target, data)
        callback.relative_update(len(data))

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> io.BytesIO:
        if mode != "rb":
            raise OSError(f"{self.archive}: the filesystem is read-only; cannot open {path!r} with mode {mode!r}")
        return io.BytesIO(self.cat_file(path))


def _write(target: Path, data: bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
