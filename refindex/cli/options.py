"""Options that several subcommands have."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, get_args

import typer
import ujson

JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]

STORAGE_OPTIONS = Annotated[
    str | None,
    typer.Option("--storage-options", help="Options for fsspec as JSON, e.g. '{\"anon\": true}'.", metavar="JSON"),
]

VERSION = Annotated[int | None, typer.Option("--version", help="Snapshot to open; the newest by default.")]

AS_OF = Annotated[
    datetime | None,
    typer.Option("--as-of", help="Snapshot that was the newest at this time (local), e.g. 2026-01-31T12:00:00."),
]

OVERLAP = Annotated[
    str | None,
    typer.Option(
        "--overlap",
        help="Where files have coordinates in common: error, or take the first or last.",
        metavar="error|first|last",
        show_default=False,
    ),
]

ON_DIFFERENCE = Annotated[
    str | None,
    typer.Option(
        "--on-difference",
        help="Where a variable without the joined dimension differs: error, take the first file's, or stack all.",
        metavar="error|first|stack",
        show_default=False,
    ),
]

SOURCES = Annotated[
    list[str] | None,
    typer.Argument(help="Files, URLs, globs or folders.", metavar="SOURCES", show_default=False),
]

FROM_FILE = Annotated[
    str | None,
    typer.Option("--from-file", help="Read sources from a file, one a line; '-' is standard input."),
]

VARIABLE = Annotated[
    list[str] | None,
    typer.Option("--variable", "-v", help="Only this array, by name or path (repeat for more)."),
]

PROGRESS = Annotated[
    bool | None,
    typer.Option("--progress/--no-progress", help="By default on a terminal.", show_default=False),
]

WORKERS = Annotated[int | None, typer.Option("--workers", "-j", min=1, help="Processes; 1 stays in this one.")]

STRICT = Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be scanned.")]


def choice(option: str, value: str | None, kind: Any) -> Any:
    """The value of an option that takes one of a few words."""
    choices = get_args(kind.__value__)
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{option} must be one of {', '.join(choices)}; got {value!r}")
    return value


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


def plural(count: int, noun: str) -> str:
    """``1 array``, ``2 arrays``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def dump(value: Any) -> None:
    """Print JSON."""
    typer.echo(ujson.dumps(value, indent=2, ensure_ascii=False, escape_forward_slashes=False))
