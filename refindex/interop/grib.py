"""GRIB messages as gribberish does not look at them: which of them it would read wrongly, or passes over.

WMO Manual on Codes, volume I.2, FM 92 GRIB (edition 2: sections 0, 3, 7; flag table 3.4) and FM 92 GRIB edition 1
(sections 0 to 2; flag table 8).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from refindex.errors import FormatError

_SCANNING = {0: 72, 1: 72, 10: 60, 20: 65, 30: 65, 40: 72}
"""Octet of the scanning mode by the template of the grid (edition 2, section 3)."""

_SCANNING_1 = {0: 28, 1: 28, 3: 28, 4: 28, 5: 28, 10: 28}
"""The same for the representation types of edition 1 (section 2)."""

_COLUMNS = 0x20
"""Flag of the scanning mode: points that follow each other lie along a column."""

_MISSING = b"\xff\xff"
_UNEQUAL = "GRIB with rows of unequal length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message: where it is, and why it is not read rightly, if so."""

    offset: int
    length: int
    objection: str | None = None


def messages_of(data: bytes, where: str) -> Iterator[Message]:
    """All messages of a file, between which there may be anything.

    Raises
    ------
    FormatError
        If one is cut off, or its sections do not fit into it.
    """
    at = data.find(b"GRIB")
    while at >= 0:
        edition = data[at + 7] if at + 8 <= len(data) else 0
        if edition not in (1, 2):
            at = data.find(b"GRIB", at + 4)
            continue
        length = int.from_bytes(data[at + 8 : at + 16]) if edition == 2 else int.from_bytes(data[at + 4 : at + 7])
        end = at + length
        if length < 16 or end > len(data) or data[end - 4 : end] != b"7777":
            raise FormatError(
                f"{where}: GRIB message at byte {at}: {length} bytes long by its header, and does not end there"
            )
        yield Message(
            offset=at,
            length=length,
            objection=_objection_2(data, at, end, where) if edition == 2 else _objection_1(data, at, end, where),
        )
        at = data.find(b"GRIB", end)


def _objection_2(data: bytes, start: int, end: int, where: str) -> str | None:
    at, fields, objection = start + 16, 0, None
    while at < end - 4:
        length, number = int.from_bytes(data[at : at + 4]), data[at + 4]
        if length < 5 or at + length > end - 4:
            raise FormatError(f"{where}: GRIB message at byte {start}: a section of {length} bytes at byte {at}")
        fields += number == 7
        if number == 3:
            objection = objection or _objection_to_grid(data[at : at + length])
        at += length
    return f"GRIB of {fields} fields in a message, of which gribberish takes one" if fields != 1 else objection


def _objection_to_grid(section: bytes) -> str | None:
    template = int.from_bytes(section[12:14])
    octet = _SCANNING.get(template)
    if octet is None or octet > len(section):
        return f"GRIB grid template {template}, of which the order of points is not known here"
    points, columns, rows = (int.from_bytes(section[n : n + 4]) for n in (6, 30, 34))
    if section[10] or columns * rows != points:
        return _UNEQUAL
    return _order(section[octet - 1])


def _objection_1(data: bytes, start: int, end: int, where: str) -> str | None:
    at = start + 8
    length, flags = int.from_bytes(data[at : at + 3]), data[at + 7]
    if not flags & 0x80:
        return "GRIB without a grid description"
    at += length
    length = int.from_bytes(data[at : at + 3])
    if length < 6 or at + length > end - 4:
        raise FormatError(f"{where}: GRIB message at byte {start}: a grid description of {length} bytes at byte {at}")
    section = data[at : at + length]
    octet = _SCANNING_1.get(section[5])
    if octet is None or octet > length:
        return f"GRIB grid type {section[5]}, of which the order of points is not known here"
    if _MISSING in (section[6:8], section[8:10]):
        return _UNEQUAL
    return _order(section[octet - 1])


def _order(scanning: int) -> str | None:
    if scanning & _COLUMNS:
        return "GRIB points that follow each other along columns, which gribberish takes for rows"
    return None
