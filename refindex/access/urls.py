"""URLs of sources and archives: one absolute spelling in memory, relative where a manifest is stored.

Local files are ``file://`` URLs followed by the path as it is (no percent-encoding: fsspec's
convention). Chained fsspec URLs (``zip://a.nc::s3://bucket/x.zip``) are kept as they are.
"""

from __future__ import annotations

import os
from pathlib import Path

_FILE = "file://"


def absolute(url: str | os.PathLike[str]) -> str:
    """The absolute URL, with its protocol, of a path or URL. Symbolic links are kept."""
    text = os.fspath(url)
    if text.startswith("local://"):
        text = text.removeprefix("local://")
    if text.startswith(_FILE):
        text = text.removeprefix(_FILE)
    elif "://" in text or "::" in text:
        return text
    return _FILE + os.path.abspath(Path(text).expanduser())  # noqa: PTH100 -- Path.resolve would follow links


def is_local(url: str) -> bool:
    """Whether an absolute URL names a file of this machine."""
    return url.startswith(_FILE) and "::" not in url


def local_path(url: str) -> Path:
    """The path of a local absolute URL."""
    return Path(url.removeprefix(_FILE))


def display(url: str) -> str:
    """A URL as people write it: local files as plain paths."""
    return str(local_path(url)) if is_local(url) else url


def parent(url: str) -> str:
    """The URL of the folder that holds ``url``, without a slash at the end."""
    return url.rstrip("/").rpartition("/")[0]


def name(url: str) -> str:
    """The last part of a URL's path; of a chained URL, that of its first link."""
    return url.partition("::")[0].partition("?")[0].rstrip("/").rpartition("/")[2]


def relative(url: str, base: str) -> str:
    """``url`` relative to the folder ``base`` when it lies below it, else unchanged."""
    prefix = base.rstrip("/") + "/"
    rest = url.removeprefix(prefix)
    # A relative URL must not look absolute, nor climb out when it is resolved again.
    if rest == url or not rest or "::" in url or "://" in rest or ".." in rest.split("/"):
        return url
    return rest


def resolve(url: str, base: str) -> str:
    """Inverse of :func:`relative`."""
    return url if "://" in url or "::" in url else f"{base.rstrip('/')}/{url}"
