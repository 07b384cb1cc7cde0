"""A progress bar for terminals and notebooks (rich)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from refindex.scan import Progress


@contextmanager
def progress_bar(total: int, file: IO[str] | None = None) -> Iterator[Callable[[Progress], None]]:
    """Show files done, rate, time left and failures; gives the function to call after every file."""
    console = Console(file=file, stderr=file is None)
    columns = (
        TextColumn("scanning"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        # The bar's own estimate would take files that were kept for files that were scanned.
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[failed]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("scanning", total=total, rate="", left="", failed="")

        def update(progress: Progress) -> None:
            bar.update(
                task,
                completed=progress.done,
                rate=f"{progress.rate:.1f} files/s",
                left="" if progress.left is None else f"{timedelta(seconds=round(progress.left))} left",
                failed=f"[red]{progress.failed} failed[/red]" if progress.failed else "",
            )

        yield update
