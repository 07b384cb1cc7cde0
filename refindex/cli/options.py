"""Options that several subcommands have."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, get_args

import typer
import ujson

from refindex.cli import configuration
from refindex.scan import Isolation

JSON = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text for people.")]

STORAGE_OPTIONS = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-options",
        help="Options for fsspec as JSON or @FILE, e.g. '{\"anon\": true}'; for what lies below a URL with "
        "PREFIX= before it (repeat for more). Added to those of the configuration file and of "
        "REFINDEX_STORAGE_OPTIONS.",
        metavar="[PREFIX=]JSON",
        show_default=False,
    ),
]

ALLOW = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        help="A folder or file, by path or URL, that may be read besides what lies below the archive's own folder, or "
        "for files that are scanned, below theirs (repeat for more); '*' for everything. Added to those of the "
        "configuration file and of REFINDEX_ALLOW.",
        metavar="PREFIX",
        show_default=False,
    ),
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

CHECKSUM = Annotated[
    bool,
    typer.Option(
        "--checksum",
        help="Read all that is referred to, and keep a checksum of every chunk, so that one that changes is noticed "
        "when it is read.",
    ),
]

STRICT = Annotated[bool, typer.Option("--strict", help="Stop at the first file that cannot be scanned.")]

DASK = Annotated[
    str | None,
    typer.Option(
        "--dask", help="Scan on the workers of the Dask cluster with this scheduler, e.g. tcp://10.0.0.1:8786."
    ),
]

RETRIES = Annotated[
    int,
    typer.Option(
        "--retries",
        min=0,
        help="How often files are tried again, when all others are done, whose server did not answer, or whose worker "
        "died.",
        metavar="N",
    ),
]

FAILURES = Annotated[
    str | None,
    typer.Option(
        "--failures",
        help="Write the files that could not be scanned, and why, to this file: a list for --from-file.",
        metavar="FILE",
    ),
]

ISOLATE = Annotated[
    bool,
    typer.Option(
        "--isolate",
        help="For files of unknown origin: scan each in a child process, so that one that crashes the HDF5 library, "
        "hangs or takes all memory costs itself alone.",
    ),
]

TIME_LIMIT = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        help="With --isolate: seconds that scanning a file may take, by default 60.",
        metavar="SECONDS",
        show_default=False,
    ),
]

MEMORY_LIMIT = Annotated[
    float | None,
    typer.Option(
        "--memory-limit",
        help="With --isolate: memory that scanning a file may take, by default 2 GB.",
        metavar="GB",
        show_default=False,
    ),
]

STATS = Annotated[bool, typer.Option("--stats", help="Tell what the scan has cost: requests, bytes, seconds.")]


def not_both(workers: int | None, dask: str | None) -> None:
    """Refuse two ways of scanning at once."""
    if workers is not None and dask is not None:
        raise typer.BadParameter("give --workers or --dask, not both: the cluster has the workers that it has")


def isolation(
    isolate: bool, time_limit: float | None, memory_limit: float | None, dask: str | None
) -> Isolation | Literal[False]:
    """How files are isolated, if they are."""
    if not isolate:
        if time_limit is not None or memory_limit is not None:
            raise typer.BadParameter("--time-limit and --memory-limit hold for files that are isolated: add --isolate")
        return False
    if dask is not None:
        raise typer.BadParameter("give --isolate or --dask, not both: files are isolated in processes on this machine")
    limits = Isolation()
    try:
        return Isolation(
            time_limit=limits.time_limit if time_limit is None else time_limit,
            memory_limit=limits.memory_limit if memory_limit is None else int(memory_limit * (1 << 30)),
        )
    except (ValueError, OverflowError) as error:
        raise typer.BadParameter(str(error)) from error


def choice(option: str, value: str | None, kind: Any) -> Any:
    """The value of an option that takes one of a few words."""
    choices = get_args(kind.__value__)
    if value is not None and value not in choices:
        raise typer.BadParameter(f"{option} must be one of {', '.join(choices)}; got {value!r}")
    return value


def parse_storage_options(arguments: list[str] | None) -> dict[str, Any]:
    """The values of ``--storage-options``, over those of the environment and of the configuration file."""
    return configuration.storage_options(arguments)


def parse_allow(arguments: list[str] | None) -> list[str]:
    """The values of ``--allow``, and those of the environment and of the configuration file."""
    return configuration.allowed(arguments)


def plural(count: int, noun: str) -> str:
    """``1 array``, ``2 arrays``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def dump(value: Any) -> None:
    """Print JSON."""
    typer.echo(ujson.dumps(value, indent=2, ensure_ascii=False, escape_forward_slashes=False))
