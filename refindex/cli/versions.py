"""``refindex log``, ``diff``, ``restore`` and ``vacuum``: the versions of an archive."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from refindex import api
from refindex.cli.append import ARCHIVE
from refindex.cli.options import JSON, STORAGE_OPTIONS, dump, parse_storage_options
from refindex.model.html import nbytes

_DURATION = re.compile(r"^(\d+(?:\.\d+)?)\s*([smhdw])$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


def log(
    archive: ARCHIVE,
    json: JSON = False,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """List the versions of an archive that can be opened, the newest first."""
    commits = api.log(archive, storage_options=parse_storage_options(storage_options))
    if json:
        dump([asdict(commit) for commit in commits])
        return
    for commit in commits:
        when = datetime.fromtimestamp(commit.timestamp / 1000, UTC).astimezone().isoformat(" ", "seconds")
        typer.echo(f"{commit.version:>6}  {when}  {commit.operation:<8}  {_details(commit.details)}".rstrip())


def _details(details: Any) -> str:
    """What a commit says of itself, on one line."""
    parts = []
    for name, value in details.items():
        if isinstance(value, list):
            shown = ", ".join(str(v) for v in value[:3])
            parts.append(f"{name} {shown}" + (f" and {len(value) - 3} more" if len(value) > 3 else ""))
        else:
            parts.append(f"{name} {value}")
    return "; ".join(parts)


def diff(
    archive: ARCHIVE,
    old: Annotated[int, typer.Argument(help="A version.", metavar="OLD")],
    new: Annotated[
        int | None, typer.Argument(help="Another version; the newest by default.", metavar="NEW", show_default=False)
    ] = None,
    json: JSON = False,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Show what differs between two versions: files, groups, arrays, references."""
    found = api.diff(archive, old, new, storage_options=parse_storage_options(storage_options))
    if json:
        dump(asdict(found))
    else:
        typer.echo(str(found))


def restore(
    archive: ARCHIVE,
    version: Annotated[int, typer.Argument(help="The version to take back.", metavar="VERSION")],
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Make an old version the newest again, as a new version."""
    made = api.restore(archive, version, storage_options=parse_storage_options(storage_options))
    typer.echo(f"wrote {archive} (version {made}, the same as version {version})")


def vacuum(
    archive: ARCHIVE,
    keep_versions: Annotated[
        int | None, typer.Option("--keep-versions", min=1, help="Remove versions beyond so many of the newest.")
    ] = None,
    older_than: Annotated[
        str | None,
        typer.Option(
            "--older-than", help="Remove versions that were committed longer ago, e.g. 30d, 12h.", metavar="AGE"
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tell what would be removed, remove nothing.")] = False,
    json: JSON = False,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Remove what no version needs: files of writers that were stopped, and, if asked for, old versions."""
    removed = api.vacuum(
        archive,
        keep_versions=keep_versions,
        older_than=_duration(older_than),
        dry_run=dry_run,
        storage_options=parse_storage_options(storage_options),
    )
    if json:
        dump([asdict(one) for one in removed])
        return
    for one in removed:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {one.name} ({nbytes(one.nbytes)})")
    if not removed:
        typer.echo("nothing to remove")


def _duration(text: str | None) -> timedelta | None:
    if text is None:
        return None
    match = _DURATION.match(text.strip())
    if match is None:
        raise typer.BadParameter(f"--older-than takes a number and one of s, m, h, d, w, as 30d; got {text!r}")
    return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
