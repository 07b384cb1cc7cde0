"""What the lines of a journal say: of the form in which a scan writes it, or an error."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from refindex.errors import FormatError


def parsed(text: bytes) -> Any:
    """A value, None if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def strange(path: Path, text: bytes) -> FormatError:
    """The error for a text with the right digest that no scan has written."""
    return FormatError(
        f"{path}: {text[:80]!r} has the right digest, and is not what a scan writes; remove the folder, or scan "
        "without going on with it"
    )


def told(text: bytes, path: Path) -> dict[str, Any]:
    """A line of a file that was scanned, or failed.

    Raises
    ------
    FormatError
        If it is none, though its digest is right.
    """
    line = parsed(text)
    if not isinstance(line, dict) or not isinstance(line.get("url"), str):
        raise strange(path, text)
    if "failed" in line:
        return {"url": line["url"], "failed": line["failed"]}
    sound = (
        all(_is_count(line.get(name)) for name in ("at", "nbytes", "crc"))
        and all(_is_list(line.get(name), _is_count) for name in ("counts", "sizes"))
        and isinstance(line.get("checked"), bool)
        and isinstance(line.get("report"), str)
        and _is_list(line.get("nodes"), _is_text)
        and _is_list(line.get("sources"), _is_source)
        and len(line["counts"]) == len(line["sizes"]) <= len(line["nodes"])
    )
    if not sound:
        raise strange(path, text)
    return line


def _is_list(value: Any, is_sound: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(map(is_sound, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 62


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_source(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 5:
        return False
    url, size, mtime, *names = value
    known = type(mtime) in (int, type(None)) and all(isinstance(each, str | None) for each in names)
    return known and _is_text(url) and _is_count(size)


def is_report(value: Any) -> bool:
    """Whether a value is the report of a file."""
    return _is_list(value, lambda entry: _is_list(entry, _is_text) and len(entry) == 4)


def is_node(value: Any) -> bool:
    """Whether a value is a node."""
    return (
        isinstance(value, dict)
        and "joined" in value
        and all(isinstance(value.get(name), str) for name in ("path", "document"))
        and isinstance(value.get("encodings"), list)
        and isinstance(value.get("attribute_types"), dict)
        and all(map(_is_text, value["attribute_types"].values()))
        and isinstance(value.get("joined"), dict | None)
    )
