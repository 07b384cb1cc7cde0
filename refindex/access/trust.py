"""Where references may point: one rule for manifests, scans and imports.

A manifest is data: it can come from anyone, and to open it is to read the files that it names. So it may name what lies
below its own location, and what the person who opens it allows, and nothing else. What a file names (external links,
external data, sources of virtual datasets) is held to the same rule when the file is scanned.

URLs are compared as places: in one spelling, at the borders of path segments. Whatever could be read in two ways
(``..``, also percent-encoded, backslashes in the name of a host, ``file://`` with a host) is no place, and refused.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self
from urllib.parse import quote, unquote, urlsplit

from refindex.access import urls
from refindex.access.prefixes import common_folders
from refindex.errors import NotAllowedError

type Allow = Literal[True] | str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | None
"""Prefixes (folders or files, by path or URL), ``"*"`` or True for everything."""

EVERYTHING = "*"

_SOME = 5
"""Files, and prefixes, that a message names."""

_OVER = frozenset({"zip", "tar", "libarchive", "simplecache", "filecache", "blockcache"})
"""Protocols that lie over the next link of a chain: what they name is in the file that the next one names."""

_SAME = {"local": "file", "s3a": "s3", "s3n": "s3", "gcs": "gs"}
"""Names of one protocol."""

_PORTS = {"http": 80, "https": 443}

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_ODD = re.compile(r"\.\.|::|[%\\\x00-\x1f\x7f]")
"""In a URL without any of this, what begins like a prefix is below it."""

_ENCODED = 8
"""How often a name may be percent-encoded on top of itself."""


class ImproperError(ValueError):
    """A URL that could be read in two ways. Never leaves this module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Places that may be read.

    Parameters
    ----------
    prefixes:
        Files, or folders with all that is below them, as :func:`place_of` spells them.
    everything:
        Whether anything may be.
    """

    prefixes: tuple[str, ...] = ()
    everything: bool = False

    @classmethod
    def of(cls, allow: Allow) -> Self:
        """What a person allows.

        Raises
        ------
        ValueError
            If a prefix is none.
        """
        if allow is None:
            return cls()
        if allow is True or allow == EVERYTHING:
            return cls(everything=True)
        several = [allow] if isinstance(allow, str | os.PathLike) else list(allow)
        if EVERYTHING in several:
            return cls(everything=True)
        found: list[str] = []
        for prefix in several:
            try:
                found += places_of(urls.absolute(prefix))
            except ImproperError as error:
                raise ValueError(f"allow: {os.fspath(prefix)!r} is no prefix: {error}") from error
        return cls(prefixes=tuple(dict.fromkeys(found)))

    def adding(self, prefixes: Iterable[str]) -> Self:
        """More places, absolute URLs; what is no place is passed over."""
        found: dict[str, None] = dict.fromkeys(self.prefixes)
        for prefix in prefixes:
            try:
                found |= dict.fromkeys(places_of(prefix))
            except ImproperError:
                continue
        return replace(self, prefixes=tuple(found))

    def beside(self, url: str) -> Self:
        """What lies beside and below a file or an archive, too."""
        folder = urls.parent(url)
        # The folder around a host, or a bucket, would be all of them.
        bare = folder.endswith("://") and not folder.startswith(("file://", "local://", "memory://"))
        return self.adding([url if bare or "://" not in folder else folder])

    def with_target(self, url: str) -> Self:
        """What lies beside the file that a local one is a symbolic link to, if it is one."""
        if not urls.is_local(url):
            return self
        path = str(urls.local_path(url))
        real = os.path.realpath(path)
        return self if real == path else self.beside(f"file://{real}")

    def admits(self, url: str) -> bool:
        """Whether an absolute URL is allowed."""
        return not self.refused([url])

    def refused(self, found: Iterable[str]) -> list[str]:
        """Those of absolute URLs that are not allowed."""
        if self.everything:
            return []
        found = list(found)
        starts = tuple(_folder(prefix) for prefix in self.prefixes)
        if _ODD.search("".join(found)) is None:  # as of most archives: a look at all of them takes no time
            return [url for url in found if not url.startswith(starts) and not self._admits(url, starts)]
        return [
            url
            for url in found
            if not (url.startswith(starts) and _ODD.search(url) is None) and not self._admits(url, starts)
        ]

    def _admits(self, url: str, starts: tuple[str, ...]) -> bool:
        try:
            places = places_of(url)
        except ImproperError:
            return False
        return all(place in self.prefixes or place.startswith(starts) for place in places)

    def check(self, found: Iterable[str], where: str, *, links: bool = False) -> None:
        """Refuse what is not allowed.

        Parameters
        ----------
        found:
            Absolute URLs.
        where:
            What names them, for the message.
        links:
            Whether to look at local files, too: where symbolic links lead must be allowed.

        Raises
        ------
        NotAllowedError
            Naming some of them, and what would allow them.
        """
        if self.everything:
            return
        found = list(found)
        refused = self.refused(found)
        if refused:
            raise NotAllowedError(self._message(refused, where))
        if links:
            targets = [target for url in found if (target := self.leads_out(url)) is not None]
            if targets:
                raise NotAllowedError(self._message(targets, f"{where}: symbolic links lead elsewhere"))

    def leads_out(self, url: str) -> str | None:
        """The URL that a local file is a symbolic link to, on whichever part of its path, if that is not allowed."""
        if self.everything or not _may_be_local(url):
            return None
        try:
            paths = [place.removeprefix("file://") for place in places_of(url) if place.startswith("file://")]
        except ImproperError:
            return url
        for path in paths:
            real = os.path.realpath(path)
            if real != path and not self._admits_target(real):
                return f"file://{real}"
        return None

    def _admits_target(self, real: str) -> bool:
        if self.admits(f"file://{real}"):
            return True
        # The allowed folder may itself be reached through a link.
        roots = [os.path.realpath(p.removeprefix("file://") or "/") for p in self.prefixes if p.startswith("file://")]
        return any(real == root or real.startswith(os.path.join(root, "")) for root in roots)  # noqa: PTH118

    def objection(self, url: str) -> str | None:
        """Why a file that another one refers to is not read, if so."""
        what, target = urls.display(url), url
        if self.admits(url):
            leads = self.leads_out(url)
            if leads is None:
                return None
            what, target = f"{what}, a symbolic link that leads to {urls.display(leads)}", leads
        return f"it refers to {what}, outside of what may be read. {self._remedy([target])}"

    def said(self) -> str:
        """The places, for people."""
        if self.everything:
            return "anything"
        shown = [_shown(prefix) for prefix in self.prefixes[:_SOME]]
        more = len(self.prefixes) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "") or "nothing"

    def _message(self, refused: Sequence[str], where: str) -> str:
        some = ", ".join(urls.display(url) for url in refused[:_SOME])
        some += f" and {len(refused) - _SOME} more" if len(refused) > _SOME else ""
        files = "a file" if len(refused) == 1 else f"{len(refused)} files"
        return f"{where}: it refers to {files} that it may not read: {some}. {self._remedy(refused)}"

    def _remedy(self, refused: Sequence[str]) -> str:
        by_folder: dict[str, list[str]] = {}
        improper: list[str] = []
        for url in refused:
            try:
                for place in places_of(url):
                    if not self.admits(place):
                        by_folder.setdefault(urls.parent(place), []).append(place)
            except ImproperError as error:
                improper.append(f"{urls.display(url)}: {error}")
        said = f"Allowed is what lies below {self.said()}."
        if improper:
            said += f" Not to be allowed by a prefix: {improper[0]}."
        if by_folder:
            wanted: list[str] = []
            for folder, members in by_folder.items():
                # Not all of a machine, or of a storage, for some files at its top.
                wanted += members if len(members) == 1 or folder.endswith("://") else [folder]
            folders, more = common_folders(wanted, _SOME)
            named = [_shown(folder) for folder in folders]
            options = " ".join(f"--allow {shlex.quote(name)}" for name in named)
            said += f" If you trust it, pass allow={named!r}{' and more' if more else ''} ({options})"
        else:
            said += ' allow="*" (--allow "*") lets it read anything'
        return said


def places_of(url: str) -> list[str]:
    """The places that an absolute URL reads, each as :func:`place_of` spells it: of a chained one, those of all links
    that have one.

    Raises
    ------
    ImproperError
        If it could be read in two ways.
    """
    *chain, last = url.split("::")
    over = [link for link in chain if link.partition("://")[0].lower() not in _OVER]
    if any("://" not in link for link in over):
        raise ImproperError("a link of the chain has no place, and is of no protocol that lies over others")
    if _CONTROL.search(url):
        raise ImproperError("it has control characters")
    return [place_of(link) for link in (*over, last)]


def place_of(link: str) -> str:
    """One link of a URL, or an absolute path, as all of its spellings are compared, without slashes at its end.

    Raises
    ------
    ImproperError
        If it could be read in two ways.
    """
    protocol, mark, rest = link.partition("://")
    if not mark:
        protocol, rest = "file", link
    protocol = protocol.lower()
    protocol = _SAME.get(protocol, protocol)
    if protocol in _PORTS:
        return _http(protocol, rest)
    if _climbs(rest):
        raise ImproperError("it has '..' in it, which leads out of a folder")
    if protocol == "memory":
        rest = "/" + rest.strip("/")
    elif protocol == "file":
        if not rest.startswith("/") and rest:
            raise ImproperError("it is of this machine, and its path is not absolute")
        rest = "/" + os.path.normpath(rest or "/").lstrip("/")
    elif not rest:
        return f"{protocol}://"
    return f"{protocol}://{rest.rstrip('/')}"


def _http(protocol: str, rest: str) -> str:
    """Without user and password, query and fragment; the host in lower case, the path encoded in one way."""
    if not rest:
        return f"{protocol}://"
    try:
        parts = urlsplit(f"{protocol}://{rest}")
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ImproperError(f"its host cannot be understood ({error})") from error
    if not host or "\\" in parts.netloc or any(c.isspace() for c in parts.netloc):
        raise ImproperError("its host cannot be understood")
    if _climbs(parts.path):
        raise ImproperError("it has '..' in it, which leads out of a folder")
    place = f"[{host}]" if ":" in host else host
    place += "" if port is None or port == _PORTS[protocol] else f":{port}"
    path = "/".join(quote(unquote(part), safe="~=+,@:!$&'()*;") for part in parts.path.split("/"))
    return f"{protocol}://{place}{path.rstrip('/')}"


def _climbs(path: str) -> bool:
    """Whether a part of a path is ``..``, however encoded, and whichever slash is before it."""
    if ".." not in path and "%" not in path:
        return False
    for _ in range(_ENCODED):
        # Some servers cut what follows a semicolon off a part of a path.
        if any(part.partition(";")[0] == ".." for part in re.split(r"[/\\]", path)):
            return True
        plainer = unquote(path)
        if plainer == path:
            return False
        path = plainer
    return True


def _may_be_local(url: str) -> bool:
    """Whether a URL may name a file of this machine; takes less time than to find its places."""
    return "file:" in url.lower() or "local:" in url.lower() or url.rpartition("::")[2].startswith("/")


def _folder(prefix: str) -> str:
    """How all that is below a prefix begins."""
    bare = prefix.endswith("://") and prefix not in ("file://", "memory://")
    return prefix if bare else f"{prefix}/"


def _shown(prefix: str) -> str:
    return "/" if prefix == "file://" else urls.display(prefix)
