"""How far a verification is, for terminals and notebooks (rich)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from refindex.verification.result import Stage


@contextmanager
def stage_bar() -> Iterator[Callable[[Stage], None]]:
    """Show what is looked at, how much of it, and how many problems there are; gives the function to call."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[problems]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("manifest", total=None, problems="")

        def update(stage: Stage) -> None:
            problems = f"[red]{stage.problems} problems[/red]" if stage.problems else ""
            bar.update(task, description=stage.name, completed=stage.done, total=stage.total, problems=problems)

        yield update
