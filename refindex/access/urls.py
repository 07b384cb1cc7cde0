"""URLs of sources and archives: one absolute spelling in memory, relative where a manifest is stored.

Local files are ``file://`` URLs followed by the path as it is (no percent-encoding: fsspec's
convention). Chained fsspec URLs (``zip://a.nc::s3://bucket/x.zip``, ``simplecache::s3://bucket/a.nc``) are links, the
outermost storage last: the first link that has a path of its own names the file.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from refindex.errors import FormatError

_FILE = "file://"

_PARAMETER = re.compile(r"(?<=[?&;])([\w.%-]+)=")
_VALUE = re.compile(r"[^&;#\s'\"]+")
_SECRET = re.compile(
    r"signature|token|secret|passw(?:or)?d|credential|api[-_]?key|access[-_]?key|authorization"
    r"|\A(?:sig|key|auth|jwt|hmac|policy|key-pair-id)\Z",
    re.IGNORECASE,
)
_PASSWORD = re.compile(r"(://[^/\s:@]+):[^/\s@]+@")


def absolute(url: str | os.PathLike[str]) -> str:
    """The absolute URL, with its protocol, of a path or URL. Symbolic links are kept.

    Of a chained URL the last link may be a path: ``zip://a.nc::x.zip``.

    Raises
    ------
    FormatError
        If it has a NUL, which no path has.
    """
    text = os.fspath(url)
    chain, chained, last = text.rpartition("::")
    if last.startswith("local://"):
        last = last.removeprefix("local://")
    if last.startswith(_FILE):
        last = last.removeprefix(_FILE)
    elif "://" in last:
        return text
    if "\0" in last:
        raise FormatError(f"{text!r} is no path: no name of a file has a NUL in it")
    # Not Path.expanduser, which wants every user to be known; not Path.resolve, which follows links.
    return chain + chained + _FILE + os.path.abspath(os.path.expanduser(last))  # noqa: PTH100, PTH111


def is_local(url: str) -> bool:
    """Whether an absolute URL names a file of this machine."""
    return url.startswith(_FILE) and "::" not in url


def local_path(url: str) -> Path:
    """The path of a local absolute URL."""
    return Path(url.removeprefix(_FILE))


def display(url: str) -> str:
    """A URL as people write it: local files as plain paths, others without the secrets that they may hold."""
    return str(local_path(url)) if is_local(url) else masked(url)


def masked(text: str) -> str:
    """A text with ``***`` for what looks like signatures, keys and passwords in the URLs in it."""
    if "://" not in text:
        return text
    # Step by step, and not in one expression: that one took time by the square of the length of a text.
    parts, at = [], 0
    for found in _PARAMETER.finditer(text):
        if found.start() < at or not _SECRET.search(found[1]):
            continue
        value = _VALUE.match(text, found.end())
        if value is None:
            continue
        # What ends a sentence, or a part of it, stays.
        ended = value[0].rstrip(":,.)")
        if ended:
            parts += [text[at : found.end()], "***"]
            at = found.end() + len(ended)
    return _PASSWORD.sub(r"\1:***@", "".join([*parts, text[at:]]))


def parent(url: str) -> str:
    """The URL of the folder that holds ``url``, without a slash at the end (but for a bare ``s3://``)."""
    links, at = links_of(url)
    protocol, mark, path = links[at].rpartition("://")
    links[at] = protocol + mark + path.rstrip("/").rpartition("/")[0]
    return "::".join(links)


def links_of(url: str) -> tuple[list[str], int]:
    """The links of a URL, and which of them names the file: the first that has a path."""
    links = url.split("::")
    return links, next((n for n, link in enumerate(links) if "://" in link), len(links) - 1)


def name(url: str) -> str:
    """The last part of a URL's path; of a chained URL, that of the link that names the file."""
    links, at = links_of(url)
    return links[at].partition("?")[0].rstrip("/").rpartition("/")[2]


def relative(url: str, base: str) -> str:
    """``url`` relative to the folder ``base`` when it lies below it, else unchanged.

    Of a chained URL, the links that are not those of ``base`` are kept: ``zip://a.nc::s3://bucket/x.zip`` below
    ``s3://bucket`` is ``zip://a.nc::x.zip``.
    """
    kept, last, folder = "", url, base
    if "::" in url or "::" in base:
        links, at = links_of(base)
        mine = url.split("::")
        before, mine = mine[: -len(links)], mine[-len(links) :]
        if len(mine) < len(links) or mine[:at] + mine[at + 1 :] != links[:at] + links[at + 1 :]:
            return url
        kept, last, folder = "".join(f"{link}::" for link in before), mine[at], links[at]
    rest = last.removeprefix(_folder(folder))
    # A relative URL must not look absolute, nor climb out when it is resolved again.
    if rest == last or not rest or "://" in rest or ".." in rest.split("/") or (kept and rest.startswith(("/", ":"))):
        return url
    return kept + rest


def resolve(url: str, base: str) -> str:
    """Inverse of :func:`relative`."""
    kept, chained, last = url.rpartition("::")
    if "://" in last or (chained and last.startswith("/")):
        return url
    links, at = links_of(base)
    links[at] = _folder(links[at]) + last
    return kept + chained + "::".join(links)


def _folder(link: str) -> str:
    """How all links to what is below a link begin."""
    return link if link.endswith("/") and link != _FILE else link + "/"
