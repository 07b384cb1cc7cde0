"""The files that references name, as they are now; all that cannot be seen are named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from refindex.access.files import StorageOptions
from refindex.access.looking import look
from refindex.errors import RefindexError, SourceError
from refindex.model.manifest import Source

_LINES = 50
"""Files that an error names one by one."""


def look_at(found: Sequence[str], where: str, storage_options: StorageOptions = None) -> list[Source]:
    """The files at absolute URLs.

    Raises
    ------
    SourceError, NotFoundError
        If any of them is not there, or cannot be seen.
    """
    looked = list(look(found, storage_options).values()) if found else []
    problems = [item for item in looked if isinstance(item, RefindexError)]
    if problems:
        kinds = {type(problem) for problem in problems}
        kind = kinds.pop() if len(kinds) == 1 else SourceError
        lines = [str(problem) for problem in problems[:_LINES]]
        more = [f"and {len(problems) - _LINES} more"] if len(problems) > _LINES else []
        head = f"{where}: {len(problems)} of the {len(found)} files that it refers to cannot be read:"
        raise kind("\n  ".join([head, *lines, *more]))
    # It was not now that the references were made: nothing says of which version they are.
    return [replace(item, version=None) for item in looked if isinstance(item, Source)]
