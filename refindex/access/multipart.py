"""Several ranges in one request of HTTP: ``multipart/byteranges``, RFC 9110, section 14.6.

The nodes of a version 1 B-tree lie 3 kB each between the chunks. One by one they are a thousand requests; with what
lies between them they are the whole file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

PARTS = 100
"""Ranges in one request: Apache takes 200 (MaxRanges), and the header must stay below 8 kB."""

_LONGEST_HEADER = 4096
_NUMBER = re.compile(rb"[0-9]{1,18}")


class MultipartError(Exception):
    """The server does not answer several ranges as asked; they are to be asked for one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes of a file from ``start`` on, and its size, where the part tells it."""

    start: int
    data: bytes
    size: int | None


def parse_multipart(body: bytes, content_type: str) -> list[Piece]:
    """The ranges in a body. They may come in any order, and neighbours may be joined.

    Raises
    ------
    MultipartError
        If it is cut off, or not what the content type says.
    """
    boundary = _boundary(content_type)
    mark = b"--" + boundary
    pieces: list[Piece] = []
    at = body.find(mark)
    while at >= 0:
        at += len(mark)
        if body.startswith(b"--", at):
            if not pieces:
                raise MultipartError("no ranges")
            return pieces
        end = body.find(b"\r\n\r\n", at, at + _LONGEST_HEADER)
        if end < 0:
            raise MultipartError("a part without a header")
        start, stop, size = _content_range(body[at:end])
        begin = end + 4
        data = body[begin : begin + stop - start]
        at = begin + len(data)
        # The length is known: what looks like a boundary may be data.
        if len(data) != stop - start or not body.startswith(b"\r\n" + mark, at):
            raise MultipartError("a part that is cut off")
        pieces.append(Piece(start=start, data=data, size=size))
        at += 2
    raise MultipartError("no end")


def _boundary(content_type: str) -> bytes:
    for parameter in content_type.split(";")[1:]:
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "boundary" and value.strip('"'):
            return value.strip('"').encode("latin-1", "replace")
    raise MultipartError(f"no boundary in {content_type!r}")


def _content_range(header: bytes) -> tuple[int, int, int | None]:
    for line in header.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() != b"content-range":
            continue
        unit, _, rest = value.strip().partition(b" ")
        span, _, total = rest.partition(b"/")
        first, _, last = span.partition(b"-")
        numbers = all(_NUMBER.fullmatch(number.strip()) for number in (first, last))
        if unit.lower() == b"bytes" and numbers and int(last) >= int(first):
            return int(first), int(last) + 1, int(total) if _NUMBER.fullmatch(total.strip()) else None
    raise MultipartError("a part without a Content-Range")
