"""The ``Range`` header of a request, RFC 9110, section 14."""

from __future__ import annotations

import re

_ONE = re.compile(r"bytes=[ \t]*(?:(\d+)-(\d*)|-(\d+))[ \t]*", re.ASCII | re.IGNORECASE)

_MOST_DIGITS = 18
"""Longer numbers are behind the end of everything."""


def requested(header: str | None, size: int) -> tuple[int, int] | None:
    """First and last-plus-one byte that a header asks for, of a value of ``size`` bytes.

    None where there is no single range of bytes that could be parsed: RFC 9110 lets a server answer with the whole
    value then. Empty (first equals last-plus-one) where the value has none of the bytes.
    """
    found = _ONE.fullmatch(header) if header is not None else None
    if found is None:
        return None
    first, last, suffix = (None if text is None else _number(text) for text in found.groups())
    if suffix is not None:
        return (max(0, size - suffix), size) if suffix and size else (0, 0)
    if first is None:
        return None
    if not found[2]:
        return (first, size) if first < size else (0, 0)
    if last is None or last < first:
        return None  # not a range at all
    return (first, min(last + 1, size)) if first < size else (0, 0)


def _number(text: str) -> int:
    return int(text) if text and len(text) <= _MOST_DIGITS else 10**_MOST_DIGITS


def matches(header: str | None, etag: str) -> bool:
    """Whether ``If-None-Match`` names an entity tag; weak ones count as the RFC says (13.1.2)."""
    if header is None:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags
