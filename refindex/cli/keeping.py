"""What a scan of many files leaves beside the manifest: what it has done so far, and a list of what failed."""

from __future__ import annotations

from pathlib import Path

import typer

from refindex.access import urls
from refindex.access.files import reading
from refindex.cli.options import plural
from refindex.errors import ExistsError
from refindex.scan import ScanStats, Spool, journal

LEAST = 100
"""Files from which on what a scan has done is kept in a folder: it then takes long enough to be interrupted."""

_HEAD = "# refindex: "


def folder_of(out: str) -> Path:
    """The folder in which a scan into ``out`` is kept: beside it, or in the current one if it is remote."""
    url = urls.absolute(out).rstrip("/")
    return Path(f"{urls.local_path(url) if urls.is_local(url) else urls.name(url)}.scan")


def spool_of(out: str, *, resume: bool, fresh: bool) -> Spool:
    """Where a scan into ``out`` keeps what it has done.

    Raises
    ------
    ExistsError
        If an interrupted scan has kept something, and neither ``resume`` nor ``fresh`` says what to do with it.
    """
    folder = folder_of(out)
    if resume:
        return Spool.resume(folder)
    kept = journal.kept(folder)
    if kept is not None:
        if kept and not fresh:
            raise ExistsError(
                f"{folder} has {plural(kept, 'scanned file')} of a scan that did not come to its end: "
                "--resume goes on with them, --fresh starts anew"
            )
        journal.remove(folder)
    return Spool(folder, least=LEAST)


def tell_kept(spool: Spool) -> bool:
    """Say what a scan has kept that did not come to its end, and whether it has anything."""
    if not spool.is_kept:
        return False
    if not spool.files:
        spool.remove()
        return False
    spool.close()
    typer.echo(
        f"refindex: {plural(len(spool.files), 'scanned file')} kept in {spool.folder}; --resume goes on from there",
        err=True,
    )
    return True


def write_failures(name: str | None, spool: Spool) -> None:
    """Write the files that could not be scanned, and why, as a list for ``--from-file``.

    If there are none, a list of before is removed, so that nobody takes it for one of now.

    Raises
    ------
    SourceError
        If it cannot be written.
    """
    if name is None:
        return
    path = Path(name)
    with reading(urls.absolute(path), "writing the list of failures"):
        if not spool.failures:
            if path.exists() and path.read_text(encoding="utf-8", errors="replace").startswith(_HEAD):
                path.unlink()
            return
        lines = [f"{_HEAD}{plural(len(spool.failures), 'file')} could not be scanned"]
        for url in sorted(spool.failures):
            entry = spool.failure(url)
            # The URL itself: what is shown has no signatures, and could not be scanned.
            name = str(urls.local_path(url)) if urls.is_local(url) else url
            lines += [f"# {' '.join(entry.reason.split())}", name]
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
        temporary.replace(path)


def stats_json(stats: ScanStats) -> dict[str, object]:
    """What a scan has cost, for programs."""
    return {
        "local_files": stats.local_files,
        "local_seconds": round(stats.local_seconds, 3),
        "remote_files": stats.files,
        "requests": stats.requests,
        "retries": stats.retries,
        "bytes": stats.nbytes,
    }


def tell_stats(stats: ScanStats) -> None:
    """What a scan has cost, for people."""
    if stats.local_files:
        typer.echo(
            f"  {plural(stats.local_files, 'local file')} in {stats.local_seconds:.2f} s, of all processes together"
        )
    if stats.files or stats.requests:
        typer.echo(
            f"  {plural(stats.files, 'remote file')}: {plural(stats.requests, 'request')}, {stats.retries} of them "
            f"again, {stats.nbytes / 1e6:.2f} MB"
        )
    if not (stats.local_files or stats.files or stats.requests):
        typer.echo("  no file was scanned")
