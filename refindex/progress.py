"""A progress bar for terminals and notebooks (rich)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
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
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}"),
    )
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task("scanning", total=total, rate="", failed="")

        def update(progress: Progress) -> None:
            rate = progress.done / progress.seconds if progress.seconds > 0 else 0.0
            bar.update(
                task,
                completed=progress.done,
                rate=f"{rate:.1f} files/s",
                failed=f"[red]{progress.failed} failed[/red]" if progress.failed else "",
            )

        yield update
