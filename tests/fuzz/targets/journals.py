"""What a scan keeps to go on with: lines with digests, and records of references."""

from __future__ import annotations

import functools
import json
import tempfile
import zlib
from pathlib import Path
from random import Random
from typing import Any

from refindex.model.chunks import ChunkTable
from refindex.model.dtype import Leaf
from refindex.model.encoding import Encoding, Filter
from refindex.model.manifest import EMPTY_ROOT, Array, Manifest, ReportEntry, ScanReport, Source, Status
from refindex.scan import journal
from refindex.scan.packed import Interner, pack
from tests.fuzz.mutation import join, mutate_bytes, mutate_json, mutate_parts, split, written
from tests.fuzz.target import Target
from tests.fuzz.targets.scratch import folder
from tests.fuzz.targets.zarr_stores import _V3

URL = "s3://bucket/f.nc"
_FILES = (journal.HEADER, journal.DOCUMENTS, journal.FILES, journal.REFERENCES)


def run(data: bytes) -> Any:
    place = folder("journal")
    for name, part in zip(_FILES, split(data, 4), strict=True):
        (place / name).write_bytes(part)
    opened = journal.Journal(place, {})
    try:
        found = []
        for _, entry in opened.entries([URL, "s3://bucket/g.nc"], Interner()):
            record = opened.records.read(entry.at, [(0, entry.layout.nbytes)])[0]
            found.append((entry.layout.tables(record, None), entry.nodes))
        return found
    finally:
        opened._unlock()


@functools.cache
def _sound() -> list[bytes]:
    table = ChunkTable.from_columns(
        chunk=[0, 1], source=[0, -1], offset=[8, 0], length=[16, 3], encoding=[0, -1], data=b"abc"
    )
    array = Array(
        path="a",
        document=written(_V3).decode(),
        chunks=table,
        encodings=(Encoding(type=Leaf("<i4"), shape=(2, 4), filters=(Filter(id=1, values=(6,)),)),),
        attribute_types={"a": "float32"},
    )
    manifest = Manifest(
        groups={"": EMPTY_ROOT},
        arrays={"a": array},
        sources=(Source(url=URL, size=100, mtime=5),),
        report=ScanReport(entries=(ReportEntry(source=URL, path="/a", status=Status.NATIVE),)),
    )
    with tempfile.TemporaryDirectory() as made:
        place = Path(made) / "j"
        opened = journal.Journal(place, {})
        interner = Interner()
        opened.add(URL, pack(URL, manifest, interner))
        opened.fail("s3://bucket/g.nc", "why")
        opened.add("s3://bucket/g.nc", pack(URL, manifest, interner))
        opened.close()
        parts = [(place / name).read_bytes() for name in _FILES]

    return [join(parts)]


def _lines(data: bytes, rng: Random) -> bytes:
    """One line changes; mostly it has the right digest."""
    lines = data.split(b"\n")
    at = int(rng.random() * len(lines))
    text = lines[at][journal._DIGEST + 4 : -1]
    if rng.random() < 0.1 or not text:
        return mutate_bytes(data, rng, resize=0.3)
    lines[at] = journal._line(mutate_json(text, rng))[:-1]
    return b"\n".join(lines)


def _consistent(data: bytes, rng: Random) -> bytes:
    """Changed parts; digests and checksums of changed documents and records are repaired in what names them."""
    header, documents, files, references = split(data, 4)
    if rng.random() < 0.5:
        return mutate_parts((mutate_json, _lines, _lines, mutate_bytes), data, rng)
    before = [line for line in documents.split(b"\n") if line]
    if before and rng.random() < 0.6:
        at = int(rng.random() * len(before))
        old = before[at][2 : 2 + journal._DIGEST]
        before[at] = journal._line(mutate_json(before[at][journal._DIGEST + 4 : -1], rng))[:-1]
        documents = b"\n".join(before) + b"\n"
        files = files.replace(old, before[at][2 : 2 + journal._DIGEST])
    else:
        references = mutate_bytes(references, rng, resize=0)
    return join([header, documents, _resummed(files, references), references])


def _resummed(files: bytes, references: bytes) -> bytes:
    lines = []
    for line in files.split(b"\n"):
        text = line[journal._DIGEST + 4 : -1]
        try:
            said = json.loads(text)
            said["crc"] = zlib.crc32(references[said["at"] : said["at"] + said["nbytes"]])
            lines.append(journal._line(written(said))[:-1])
        except (ValueError, TypeError, KeyError, RecursionError):
            lines.append(line)
    return b"\n".join(lines)


TARGETS = [
    Target(
        name="journal",
        run=run,
        seeds=lambda: list(_sound()),
        mutate=_consistent,
        modules=("refindex.scan.journal", "refindex.scan.lines", "refindex.scan.packed", "refindex.scan.records"),
    )
]
