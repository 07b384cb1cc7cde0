"""Options that several subcommands have."""

from __future__ import annotations

from typing import Annotated, Any

import typer
import ujson

JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]

STORAGE_OPTIONS = Annotated[
    str | None,
    typer.Option("--storage-options", help="Options for fsspec as JSON, e.g. '{\"anon\": true}'.", metavar="JSON"),
]

VERSION = Annotated[int | None, typer.Option("--version", help="Snapshot to open; the newest by default.")]


def parse_storage_options(text: str | None) -> dict[str, Any]:
    """The value of ``--storage-options``."""
    if not text:
        return {}
    try:
        value = ujson.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"--storage-options is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise typer.BadParameter("--storage-options must be a JSON object")
    return value


def nbytes(count: float) -> str:
    """A number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} PB"


def plural(count: int, noun: str) -> str:
    """``1 array``, ``2 arrays``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def dump(value: Any) -> None:
    """Print JSON."""
    typer.echo(ujson.dumps(value, indent=2, ensure_ascii=False, escape_forward_slashes=False))
