"""How far a rewriting is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewriting:
    """How far a rewriting is.

    Parameters
    ----------
    path:
        The variable that is being written.
    done, total:
        Bytes of values of all variables, those of shards included that were there already.
    kept:
        Of those done, bytes of values in shards that were there already.
    written:
        Bytes of shards that were written.
    seconds:
        Since the rewriting began.
    """

    path: str
    done: int
    total: int
    kept: int
    written: int
    seconds: float

    @property
    def rate(self) -> float:
        """Bytes of values a second."""
        return (self.done - self.kept) / self.seconds if self.seconds > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds that the rest will take at this rate; None if nothing is known of that yet."""
        return (self.total - self.done) / self.rate if self.rate else None


def watching(
    progress: bool | Callable[[Rewriting], None],
) -> AbstractContextManager[Callable[[Rewriting], None] | None]:
    """What is called after every block: a function of the caller, a bar, or None."""
    if callable(progress):
        return nullcontext(progress)
    return _bar() if progress else nullcontext(None)


@contextmanager
def _bar() -> Iterator[Callable[[Rewriting], None]]:
    from datetime import timedelta

    from rich.console import Console
    from rich.filesize import decimal
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        # The bar's own rate would take shards that were there for some that were written.
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("rewriting", total=None, rate="", left="")

        def update(now: Rewriting) -> None:
            bar.update(
                task,
                description=f"rewriting {now.path}",
                completed=now.done,
                total=now.total,
                rate=f"{decimal(int(now.rate))}/s",
                left="" if now.left is None else f"{timedelta(seconds=round(now.left))} left",
            )

        yield update
