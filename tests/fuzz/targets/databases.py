"""SQLite manifests: pages that change, with the checksums of a writer who means it."""

from __future__ import annotations

import functools
import os
import zlib
from random import Random
from typing import Any

import apsw

import refindex  # noqa: F401 -- manifests can be saved
from refindex.storage.sqlite import pages
from refindex.storage.sqlite.reader import SQLiteReader
from tests.fuzz.mutation import mutate_bytes
from tests.fuzz.target import FindingError, Target
from tests.fuzz.targets.archives import small
from tests.fuzz.targets.scratch import folder

_PAGE = 512


def run(data: bytes) -> Any:
    path = folder("sqlite") / "a.sqlite"
    path.write_bytes(data)
    for suffix in ("-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    reader = SQLiteReader(f"file://{path}")
    try:
        nodes = reader.nodes
        n_sources = len(reader.sources)
        reader.placements  # noqa: B018
        reader.report  # noqa: B018
        reader.history()
        for name in nodes:
            table = reader.find(name)
            if len(table) and (table.chunk[0] < 0 or int(table.offset.min()) < 0):
                raise FindingError("a chunk or an offset is negative")
            reader.find(name, [0, 1, 2])
        return nodes, n_sources
    finally:
        reader.close()


@functools.cache
def _sound() -> tuple[bytes, ...]:
    path = folder("sqlite-made") / "made.sqlite"
    path.unlink(missing_ok=True)
    small().save(f"file://{path}")
    # Smaller pages, so that more of an input is something.
    other = path.with_name("small.sqlite")
    other.unlink(missing_ok=True)
    db = apsw.Connection(os.fspath(path), vfs=pages.NAME)
    db.execute(f"PRAGMA page_size={_PAGE}").fetchall()
    db.execute("VACUUM INTO ?", (os.fspath(other),)).fetchall()
    db.close()
    data = other.read_bytes()
    return (b"".join(_summed(data[at : at + _PAGE], at // _PAGE + 1) for at in range(0, len(data), _PAGE)),)


def _summed(page: bytes, number: int) -> bytes:
    """A page with its checksum; the bytes drawn for the file are all the same."""
    body = page[: -pages.RESERVED] + b"salt"
    return body + zlib.crc32(body, number).to_bytes(4, "little") + bytes(4)


def mutate(data: bytes, rng: Random) -> bytes:
    """Pages change, in their heads more than in their rows, and mostly have the right checksum."""
    size = int.from_bytes(data[16:18], "big")
    if size < _PAGE or rng.random() < 0.05:
        return mutate_bytes(data, rng)

    def place(found: bytes | bytearray, r: Random) -> int:
        page = int(r.random() * (len(found) // size)) * size
        chosen = r.random()
        if chosen < 0.3:
            return page + int(r.random() * (108 if page == 0 else 40))
        return page + int(r.random() * (size - pages.RESERVED))

    changed = bytearray(mutate_bytes(data, rng, place, resize=0.02))
    if rng.random() < 0.9:
        for start in range(0, len(changed) - size + 1, size):
            if changed[start : start + size] != data[start : start + size]:
                body = bytes(changed[start : start + size - 8])
                summed = zlib.crc32(body, start // size + 1).to_bytes(4, "little")
                changed[start + size - 8 : start + size - 4] = summed
    return bytes(changed)


TARGETS = [
    Target(
        name="sqlite",
        run=run,
        seeds=lambda: list(_sound()),
        mutate=mutate,
        modules=("refindex.storage.sqlite.reader", "refindex.storage.sqlite.database", "refindex.storage.sqlite.pages"),
    )
]
