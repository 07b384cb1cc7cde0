"""What stands in the way of a join, and what it decided: collected from all files before anything is written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from refindex.errors import JoinError
from refindex.model.manifest import ReportEntry, Status

_MOST_NAMES = 3


@dataclass(slots=True, kw_only=True)
class Findings:
    """Barriers and decisions of one join.

    ``hint`` is what else can be done. ``barriers`` are sentences that name the files; ``entries`` go into the report.
    """

    hint: str = ""
    barriers: list[str] = field(default_factory=list)
    entries: list[ReportEntry] = field(default_factory=list)

    def bar(self, message: str) -> None:
        """Note something that stands in the way of the join; the same message is noted once."""
        if message not in self.barriers:
            self.barriers.append(message)

    def note(self, source: str, path: str, reason: str, status: Status = Status.NOTE) -> None:
        """Note a decision for the report."""
        self.entries.append(ReportEntry(source=source, path=path or "/", status=status, reason=reason))

    def check(self) -> None:
        """Raise what was found.

        Raises
        ------
        JoinError
            With all barriers, one a line.
        """
        if self.barriers:
            count = "1 thing stands" if len(self.barriers) == 1 else f"{len(self.barriers)} things stand"
            lines = "\n".join(f"  - {barrier}" for barrier in self.barriers)
            raise JoinError(
                f"the files cannot be joined; {count} in the way:\n{lines}\nNothing was written.{self.hint}"
            )


def some(names: Iterable[str]) -> str:
    """A few names for a message: ``a.nc, b.nc and 7 more``."""
    listed = list(names)
    if len(listed) <= _MOST_NAMES:
        return " and ".join([", ".join(listed[:-1]), listed[-1]]) if len(listed) > 1 else "".join(listed)
    return f"{', '.join(listed[:_MOST_NAMES])} and {len(listed) - _MOST_NAMES} more"


def condense(reports: Sequence[Iterable[ReportEntry]]) -> list[ReportEntry]:
    """The entries of many files' reports that a reader should see, each kind once.

    That a variable of a thousand files is served as it is needs no thousand lines: what is said of the joined
    array replaces it. What is not served, and what is noted, is kept with the first file and the number of others.
    """
    first: dict[tuple[str, Status, str], ReportEntry] = {}
    counts: dict[tuple[str, Status, str], int] = {}
    for report in reports:
        for entry in report:
            if entry.status in (Status.NATIVE, Status.INLINED):
                continue
            key = (entry.path, entry.status, entry.reason)
            first.setdefault(key, entry)
            counts[key] = counts.get(key, 0) + 1
    return [
        entry
        if counts[key] == 1
        else ReportEntry(
            source=entry.source,
            path=entry.path,
            status=entry.status,
            reason=f"{entry.reason}{' ' if entry.reason else ''}(and in {counts[key] - 1} more files)",
        )
        for key, entry in first.items()
    ]
