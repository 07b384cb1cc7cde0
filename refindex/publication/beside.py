"""The small files beside a published archive, and what runs that were killed have left there."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from pathlib import Path

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.errors import ExistsError
from refindex.storage import GRACE, disk

_TYPES = {"s3": "ContentType", "s3a": "ContentType", "gs": "content_type", "gcs": "content_type"}
"""What filesystems call the media type of what they write. Browsers save what they are not told to show."""


def join(folder: str, name: str) -> str:
    """The URL of a file in a folder, which may be chained."""
    links, at = urls.links_of(folder)
    links[at] = f"{links[at].rstrip('/')}/{name}"
    return "::".join(links)


def check_ours(url: str, mark: str, storage_options: StorageOptions) -> None:
    """Refuse to replace a file that was not written here.

    Raises
    ------
    ExistsError
        If there is one.
    """
    fs, path = filesystem(url, storage_options)
    with reading(url, "looking at it"):
        try:
            fs.invalidate_cache()
            found = bytes(fs.cat_file(path))
        except (FileNotFoundError, NotADirectoryError):
            return
    if mark.encode() not in found:
        raise ExistsError(
            f"{urls.display(url)} exists and was not written by refindex: move it away, or publish without it "
            "(summary=False, stac=False; --no-summary, --no-stac)"
        )


def write(url: str, text: str, media_type: str, storage_options: StorageOptions) -> None:
    """Write a file so that readers see the old one or the new one."""
    fs, path = filesystem(url, storage_options)
    data = text.encode("utf-8", "replace")  # JSON of archives can have halves of characters
    with reading(url, "writing"):
        if urls.is_local(url):
            place = urls.local_path(url)
            temporary = place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")
            try:
                temporary.write_bytes(data)
                disk.sync(temporary)  # an empty one would be taken for the file of somebody else
                temporary.replace(place)
            finally:
                temporary.unlink(missing_ok=True)
        else:
            name = _TYPES.get(url.partition("://")[0])
            fs.pipe_file(path, data, **({name: media_type} if name else {}))


def temporary_for(place: Path) -> Path:
    """A new name beside a place, which tells what was to go there."""
    return place.with_name(f".{place.name}.{uuid.uuid4().hex}.tmp")


def remove_leftovers(place: Path) -> None:
    """Remove what runs that were killed have left beside a place, once it has been still for an hour.

    Until then it may be that of a run that is busy.
    """
    ours = re.compile(re.escape(f".{place.name}.") + r"[0-9a-f]{32}\.tmp(\.loose\.tmp)?")
    before = time.time() - GRACE.total_seconds()
    with contextlib.suppress(OSError):
        for entry in os.scandir(place.parent):
            if ours.fullmatch(entry.name) and _last_change(Path(entry.path)) < before:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def _last_change(path: Path) -> float:
    """When the last file at or below a path was changed."""
    return max(p.lstat().st_mtime for p in [path, *path.rglob("*")])
