"""Prefixes of URLs: what lies below one, and what it is called below another."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote

from refindex.access import urls

_HTTP = ("http://", "https://")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefix:
    """A file, or a folder and all that is below it.

    Parameters
    ----------
    links:
        Of a chained URL one each, else one: absolute, without slashes at the end (but for a bare ``s3://``).
    at:
        The link that files are below: the first that has a path.
    """

    links: tuple[str, ...]
    at: int

    @classmethod
    def of(cls, url: str | os.PathLike[str]) -> Prefix:
        links = [_stripped(link) for link in _links(os.fspath(url))]
        return cls(links=tuple(links), at=next(n for n, link in enumerate(links) if "://" in link))

    def rest(self, url: str) -> tuple[tuple[str, ...], str] | None:
        """What of an absolute URL comes before the prefix (links of a chain) and behind it; None if it is not below.

        Links of a chain that come before those of the prefix do not matter: ``zip://a.nc::s3://b/x.zip`` is below
        ``s3://b``.
        """
        links = _links(url)
        before, mine = tuple(links[: -len(self.links)]), links[-len(self.links) :]
        if len(mine) < len(self.links):
            return None
        if any(one != other for n, (one, other) in enumerate(zip(mine, self.links, strict=True)) if n != self.at):
            return None
        link, prefix = mine[self.at], self.links[self.at]
        if link == prefix:
            return before, ""
        folder = _folder(prefix)
        return (before, link[len(folder) :]) if link.startswith(folder) and link != folder else None

    def join(self, rest: str) -> str:
        """The URL of what is called ``rest`` below the prefix; of the prefix itself, if that is empty."""
        links = list(self.links)
        if rest:
            links[self.at] = _folder(links[self.at]) + rest
        return "::".join(links)


def moved(url: str, old: Prefix, new: Prefix) -> str | None:
    """The URL below another prefix, None if it is not below the old one.

    Names in URLs of HTTP are percent-encoded where that matters, others are not: between the two they are respelled.
    """
    found = old.rest(url)
    if found is None:
        return None
    before, rest = found
    encoded, encode = (prefix.links[prefix.at].startswith(_HTTP) for prefix in (old, new))
    if encoded and not encode:
        rest = unquote(rest)
    elif encode and not encoded:
        rest = rest.replace("%", "%25").replace("?", "%3F").replace("#", "%23")
    return "::".join([*before, new.join(rest)])


def common_folders(places: Iterable[str], most: int) -> tuple[list[str], bool]:
    """The few places that hold all of some (URLs of files or folders), and whether there are more of them."""
    found = set(places)
    while True:
        # Those below another one go without saying.
        found = {place for place in found if not any(above in found for above in _above(place))}
        deepest = max((place.count("/") for place in found), default=0)
        if len(found) <= most or deepest <= 3:  # "file:///data", "s3://bucket/data"
            return sorted(found)[:most], len(found) > most
        found = {urls.parent(place) if place.count("/") == deepest else place for place in found}


def _above(place: str) -> Iterator[str]:
    """The folders that hold a place."""
    while place.count("/") > 2:
        place = urls.parent(place)
        yield place


def _links(url: str) -> list[str]:
    """The links of a URL, those that are local paths made absolute. Links before the last may be mere protocols."""
    *chain, last = url.split("::")
    local = ("file://", "local://")
    return [*(urls.absolute(link) if link.startswith(local) else link for link in chain), urls.absolute(last)]


def _stripped(link: str) -> str:
    protocol, mark, path = link.partition("://")
    return f"{protocol}{mark}{path.rstrip('/')}"


def _folder(link: str) -> str:
    """A link as all links to what is below it begin."""
    return link if link.endswith("://") and link != "file://" else f"{link}/"
