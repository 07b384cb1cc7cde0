"""Which files references from elsewhere may name.

A set of references is data: it can come from anyone, and to open it is to read the files that it names. So one rule:
what was read from this machine may refer to anything; what was read from elsewhere may refer to local files only where
``allow`` has a folder or file around them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from refindex.access import urls
from refindex.access.prefixes import Prefix
from refindex.errors import UnsupportedError

_SOME = 5


def check_allowed(found: Iterable[str], where: str, *, remote: bool, allow: Sequence[str]) -> None:
    """Refuse local files in what came from elsewhere.

    Parameters
    ----------
    found:
        Absolute URLs.
    where:
        What they were read from, for the message.
    remote:
        Whether that is not on this machine.
    allow:
        Folders and files that may be referred to nevertheless.

    Raises
    ------
    UnsupportedError
        Naming some of the files.
    """
    if not remote:
        return
    prefixes = [Prefix.of(prefix) for prefix in allow]
    local = [url for url in found if is_of_this_machine(url)]
    refused = [url for url in local if not any(prefix.rest(url) is not None for prefix in prefixes)]
    if refused:
        some = ", ".join(urls.display(url) for url in refused[:_SOME])
        raise UnsupportedError(
            f"{where}: it is not of this machine, and refers to {len(refused)} files of it: {some}"
            f"{', ...' if len(refused) > _SOME else ''}. If you trust it, say below which folders they may lie with "
            "allow= (--allow)"
        )


def is_of_this_machine(url: str) -> bool:
    """Whether an absolute URL, the last link of a chain if it is one, names a local file (or memory)."""
    protocol = url.rpartition("::")[2].partition("://")[0]
    return protocol in ("file", "local", "memory")
