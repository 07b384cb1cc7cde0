"""Which other files the HDF5 library reads for an array. It follows links wherever they lead; what may be read is
looked at before."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import h5py

from refindex.access.trust import Allowed
from refindex.verification.originals import UnavailableError

_MAX_DEPTH = 32
"""Links, and virtual datasets in each other."""

_ERRORS = (OSError, RuntimeError, ValueError, TypeError, KeyError)


def check_reach(file: h5py.File, path: str, allowed: Allowed) -> None:
    """Refuse an array of which the library would read what may not be read.

    Raises
    ------
    UnavailableError
        Naming the other file.
    """
    _follow(file, path, allowed, set(), 0)


def _follow(file: h5py.File, path: str, allowed: Allowed, seen: set[tuple[str, str]], depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise UnavailableError(f"it is reached through more than {_MAX_DEPTH} links")
    if (file.filename, path) in seen:
        return
    seen.add((file.filename, path))
    parts = [part for part in path.split("/") if part not in ("", ".")]
    for n in range(len(parts)):
        here, rest = "/".join(parts[: n + 1]), parts[n + 1 :]
        try:
            link = file.get(here, getlink=True)
        except _ERRORS:
            return
        if isinstance(link, h5py.SoftLink):
            target = link.path if link.path.startswith("/") else "/".join([*parts[:n], link.path])
            _follow(file, "/".join([target, *rest]), allowed, seen, depth + 1)
            return
        if isinstance(link, h5py.ExternalLink):
            _into(file, link.filename, "/".join([link.path, *rest]), allowed, seen, depth)
            return
    try:
        found = file[path or "/"]
    except _ERRORS:
        return
    if not isinstance(found, h5py.Dataset):
        return
    for name, _, _ in found.external or ():
        _places(file, name, allowed)
    if found.is_virtual:
        for source in dict.fromkeys((s.file_name, s.dset_name) for s in found.virtual_sources()):
            if source[0] == ".":
                _follow(file, source[1], allowed, seen, depth + 1)
            else:
                _into(file, *source, allowed, seen, depth)


def _into(file: h5py.File, name: str, path: str, allowed: Allowed, seen: set[tuple[str, str]], depth: int) -> None:
    """What an array in another file, by the name that this one has for it, is made of."""
    for place in _places(file, name, allowed):
        with contextlib.suppress(OSError), h5py.File(place, "r") as other:
            _follow(other, path, allowed, seen, depth + 1)


def _places(file: h5py.File, name: str, allowed: Allowed) -> list[Path]:
    """Where the library would look for a file, as far as something is there."""
    here = Path(file.filename)
    last = os.path.basename(name) if os.path.isabs(name) else name  # noqa: PTH117, PTH119 -- may be any text
    # An absolute name stays as it is when it is joined.
    candidates = [folder / each for each in (name, last) for folder in (here.parent, here.resolve().parent, Path.cwd())]
    if "%" in name:  # the number of a block is still to be put in
        candidates = [candidate.parent for candidate in candidates]
    found = [path for path in dict.fromkeys(candidates) if path.exists()]
    for path in found:
        objection = allowed.objection(f"file://{path.parent.resolve() / path.name}")
        if objection is not None:
            raise UnavailableError(objection)
    return [path for path in found if path.is_file()]
