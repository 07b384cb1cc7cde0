"""What the user himself has named for an archive: kept in his state folder, so that he need not allow it again.

Whoever scans ``/data/x/*.nc`` into ``~/a.refindex`` has said where the files are, and opens the archive without saying
it a second time. An archive that comes from elsewhere has no such record. There is one small JSON file an archive,
``refindex/allowed/SHA-256-OF-ITS-URL.json`` below ``$XDG_STATE_HOME`` (else ``~/.local/state``), with the URL and the
prefixes. Where it cannot be written or read, nothing is remembered.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from refindex.access import urls
from refindex.access.prefixes import common_folders
from refindex.access.trust import Allowed

_MOST = 1000
"""Folders that are remembered one by one; of more, those above them are."""


def remembered(url: str) -> tuple[str, ...]:
    """The prefixes that the user has named for an archive."""
    path = _record(url)
    if path is None:
        return ()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    prefixes = found.get("prefixes") if isinstance(found, dict) and found.get("archive") == _name(url) else None
    return tuple(p for p in prefixes if isinstance(p, str)) if isinstance(prefixes, list) else ()


def remember(url: str, named: Iterable[str], *, new: bool = False, within: Allowed | None = None) -> None:
    """Keep the folders of files that the user has named for an archive, as far as they are not beside it.

    Parameters
    ----------
    url:
        Of the archive, absolute.
    named:
        Absolute URLs of files. Of local ones, the folders of the files that they are symbolic links to are kept, too.
    new:
        Whether there was no archive before: what may be remembered of one that was there is then forgotten.
    within:
        What symbolic links may lead to; anything if None.
    """
    own = Allowed().beside(url)
    known = own if new else own.adding(remembered(url))
    wanted = _folders(named, known, within)
    kept = [] if new else list(remembered(url))
    path = _record(url)
    if path is None or (not wanted and not (new and path.exists())):
        return
    prefixes, _ = common_folders({*kept, *wanted}, _MOST)
    with contextlib.suppress(OSError):
        if prefixes:
            _write(path, {"archive": _name(url), "prefixes": prefixes})
        else:
            path.unlink(missing_ok=True)


def _folders(named: Iterable[str], known: Allowed, within: Allowed | None) -> list[str]:
    """The folders of files, and of what they are links to, that are not known."""
    outside = known.refused(found := list(named))
    folders = dict.fromkeys(place for url in outside for place in Allowed().beside(url).prefixes)
    real: dict[str, str] = {}
    for url in found:
        if not urls.is_local(url):
            continue
        folder, _, name = url.removeprefix("file://").rpartition("/")
        if folder not in real:
            real[folder] = os.path.realpath(folder or "/")
        place = os.path.join(real[folder], name)  # noqa: PTH118
        if os.path.islink(place):  # noqa: PTH114 -- there may be a million of them
            place = os.path.realpath(place)
        elif real[folder] == (folder or "/"):
            continue
        target = f"file://{place}"
        if known.leads_out(url) is not None and (within is None or within.leads_out(url) is None):
            folders |= dict.fromkeys(Allowed().beside(target).prefixes)
    return list(folders)


def _name(url: str) -> str:
    """An archive by one name: of a local one, without symbolic links."""
    return f"file://{os.path.realpath(urls.local_path(url))}" if urls.is_local(url) else url


def _record(url: str) -> Path | None:
    folder = Path(os.environ.get("XDG_STATE_HOME", ""))
    # As its specification has it: a relative one is not to be minded.
    if not folder.is_absolute():
        try:
            folder = Path.home() / ".local/state"
        except RuntimeError:
            return None
    return (
        folder / "refindex/allowed" / f"{hashlib.sha256(_name(url).encode(errors='surrogateescape')).hexdigest()}.json"
    )


def _write(path: Path, content: dict[str, str | Sequence[str]]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=".", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
