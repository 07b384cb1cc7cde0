"""Parquet manifests: the commit log, its checkpoints, the data files."""

from __future__ import annotations

import functools
import io
import re
import zlib
from random import Random
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

import refindex  # noqa: F401 -- manifests can be saved
from refindex.model.chunks import ChunkTable
from refindex.model.manifest import Array, Manifest, Node, Placement, ReportEntry, ScanReport, Source, Status
from refindex.model.zarr_v3 import dumps, group_document
from refindex.storage import tables
from refindex.storage.parquet import checkpoint, files, log, versions
from tests.fuzz.mutation import join, mutate_bytes, mutate_json, mutate_parts, split, written
from tests.fuzz.target import FindingError, Target
from tests.fuzz.targets.scratch import folder
from tests.fuzz.targets.zarr_stores import _V3

URL = "https://host/a.refindex"
_DIGITS = b"00000000"
_SUM = re.compile(rb'"crc32":"[0-9a-f]{8}"')


class _Files:
    """A filesystem of a few files that cannot be listed, as a plain HTTP server."""

    protocol = "https"

    def __init__(self, found: dict[str, bytes]) -> None:
        self.found = found

    def cat_file(self, path: str, **_: Any) -> bytes:
        if path not in self.found:
            raise FileNotFoundError(path)
        return self.found[path]

    def exists(self, path: str) -> bool:
        return path in self.found


def small() -> Manifest:
    """A manifest that has a little of everything."""
    table = ChunkTable.from_columns(
        chunk=[0, 2], source=[0, -1], offset=[8, 0], length=[16, 3], encoding=-1, data=b"abc"
    )
    return Manifest(
        groups={"": Node(path="", document=dumps(group_document({"t": 1})))},
        arrays={"a": Array(path="a", document=written(_V3 | {"attributes": {}}).decode(), chunks=table)},
        sources=(Source(url="file:///data/f.nc", size=100, mtime=5), Source(url="s3://b/g.nc", size=7, etag="x")),
        report=ScanReport(entries=(ReportEntry(source="/data/f.nc", path="/a", status=Status.NATIVE, reason="why"),)),
        placements=(Placement(dim="x", source=0, start=0, length=4),),
    )


@functools.cache
def _written() -> dict[str, bytes]:
    """The files of a small archive with three versions."""
    fs, manifest = fsspec.filesystem("memory"), small()
    name = "memory://refindex-fuzz/a.refindex"
    if fs.exists("/refindex-fuzz"):
        fs.rm("/refindex-fuzz", recursive=True)
    for version in range(3):
        manifest.save(name, overwrite=version > 0)
    snapshot = versions.snapshot(fs, "/refindex-fuzz/a.refindex", name)
    checkpoint.write(fs, "/refindex-fuzz/a.refindex", name, snapshot)
    found = {path.partition("a.refindex/")[2]: bytes(fs.cat_file(path)) for path in fs.find("/refindex-fuzz")}
    fs.rm("/refindex-fuzz", recursive=True)
    return found


# The log


def run_log(data: bytes) -> Any:
    last, point, *entries = split(data, 5)
    found = {log.entry_path("r", version): entry for version, entry in enumerate(entries) if entry}
    if last:
        found[f"r/{log.LOG}/{checkpoint.LAST}"] = last
    if point:
        found[checkpoint.checkpoint_path("r", 2)] = point
    fs: Any = _Files(found)
    seen = versions.Log(fs, "r", URL)
    if seen.newest is not None and seen.newest > 100:
        raise FindingError(f"version {seen.newest} of an archive with three")
    snapshot = seen.snapshot()
    if seen.newest is not None:
        seen.commit(seen.newest)
        seen.oldest  # noqa: B018
    for file in snapshot.files.values():
        file.may_hold("a", 0, 5)
        file.stats()
    snapshot.n_rows("chunk")
    snapshot.n_rows("node")
    return snapshot


def log_seeds() -> list[bytes]:
    found = _written()
    entries = [found[f"{log.LOG}/{version:020d}.json"] for version in range(3)]
    last = found[f"{log.LOG}/{checkpoint.LAST}"]
    point = found[f"{log.LOG}/{2:020d}.checkpoint.parquet"]
    return [join([b"", b"", *entries]), join([last, point, *entries]), join([last, b"", b"", b"", entries[2]])]


_LOG_WORDS: list[Any] = [
    {"add": {}}, {"remove": {}}, {"metaData": {}}, {"protocol": {"minReaderVersion": 2}}, {"commitInfo": {}}, "node",
    {"kind": "chunk"}, "%2e%2e/x", "../../etc", '{"numRecords":1e400}', '{"minValues":[]}',
    {"refindex.footer.crc32": "x"}, "chunk",
]  # fmt: skip


def _entry(data: bytes, rng: Random) -> bytes:
    """Lines of JSON, of which one changes; mostly with the right checksum."""
    lines = data.split(b"\n")
    at = int(rng.random() * len(lines))
    match int(rng.random() * 10):
        case 0:
            lines[at:at] = [lines[int(rng.random() * len(lines))]]
        case 1:
            del lines[at]
        case _:
            lines[at] = mutate_json(lines[at], rng, _LOG_WORDS).replace(b'"crc32": "', b'"crc32":"')
    return _summed(b"\n".join(lines)) if rng.random() < 0.85 else b"\n".join(lines)


def _summed(data: bytes) -> bytes:
    blank = _SUM.sub(b'"crc32":"' + _DIGITS + b'"', data, count=1)
    return blank.replace(_DIGITS, f"{zlib.crc32(blank):08x}".encode(), 1)


def _last(data: bytes, rng: Random) -> bytes:
    return mutate_json(data, rng, _LOG_WORDS)


# Checkpoints


def run_checkpoint(data: bytes) -> Any:
    return checkpoint.decode(data, 2, URL)


def _parquet(data: bytes, rng: Random) -> bytes:
    """A Parquet file: the footer changes more than the pages."""
    length = int.from_bytes(data[-8:-4], "little")

    def place(found: bytes | bytearray, r: Random) -> int:
        if r.random() < 0.7:
            return max(0, len(found) - 8 - int(r.random() * length))
        return int(r.random() * len(found))

    return mutate_bytes(data, rng, place, resize=0.05)


def _checkpoint(data: bytes, rng: Random) -> bytes:
    changed = _parquet(data, rng)
    places = list(checkpoint._DIGITS.finditer(changed))
    if not places or rng.random() < 0.1:
        return changed
    start, stop = places[-1].span(1)
    blank = changed[:start] + _DIGITS + changed[stop:]
    return changed[:start] + f"{zlib.crc32(blank):08x}".encode() + changed[stop:]


def checkpoint_seeds() -> list[bytes]:
    return [_written()[f"{log.LOG}/{2:020d}.checkpoint.parquet"]]


# Data files

KINDS = ("node", "source", "chunk", "placement", "report")


def run_file(data: bytes) -> Any:
    kind, body = KINDS[data[0] % len(KINDS)] if data else "node", data[5:]
    path = folder("parquet") / "f.parquet"
    path.write_bytes(body)
    # The log vouches for the footer. Where it is hostile itself, pyarrow ends the process over some footers.
    footer = int.from_bytes(data[1:5], "little")
    file = log.DataFile(path="f.parquet", kind=kind, size=len(body), rows=-1, footer=footer)
    url = f"file://{path.parent}"
    with files.OpenFile(fsspec.filesystem("file"), str(path.parent), url, file) as opened:
        try:
            if kind == "chunk":
                found: Any = [
                    tables.by_path(opened.read_group(group.number))
                    for group in opened.groups
                    if group.may_hold("a", 0, 9)
                ]
                for group in found:
                    for table in group.values():
                        table.find([0, 1, 2])
                return found
            rows = files.rows_of(opened.read())
        except (ValueError, pa.ArrowException) as error:  # what the reader makes of them
            raise opened.damaged(error) from error
    if kind == "node":
        return {row["path"]: tables.make_node(**row) for row in rows}
    if kind == "source":
        return tables.make_sources(rows, "file:///data")
    if kind == "placement":
        return tables.make_placements(rows)
    return tables.make_report(rows, "file:///data")


def _file(kind: str, data: bytes) -> bytes:
    return bytes((KINDS.index(kind),)) + zlib.crc32(files._footer(data)).to_bytes(4, "little") + data


def _pages(data: bytes, rng: Random) -> bytes:
    """A data file: what its pages hold changes, and now and then the rest."""
    length = int.from_bytes(data[-8:-4], "little") + 8

    def place(found: bytes | bytearray, r: Random) -> int:
        return (
            5 + int(r.random() * max(1, len(found) - 5 - length)) if r.random() < 0.95 else int(r.random() * len(found))
        )

    return mutate_bytes(data, rng, place, resize=0.02)


def file_seeds() -> list[bytes]:
    found = []
    for path, data in _written().items():
        kind = path.partition("kind=")[2].partition("/")[0]
        if kind in KINDS and not any(seed[0] == KINDS.index(kind) for seed in found):
            found.append(_file(kind, data))
            # A hostile file has no checksums of pages.
            table, plain = pq.read_table(io.BytesIO(data), partitioning=None), io.BytesIO()
            with pq.ParquetWriter(plain, tables.SCHEMAS[kind], compression="none") as writer:
                writer.write_table(table.select(tables.SCHEMAS[kind].names).cast(tables.SCHEMAS[kind]))
            found.append(_file(kind, plain.getvalue()))
    return found


TARGETS = [
    Target(
        name="commit-log",
        run=run_log,
        seeds=log_seeds,
        mutate=lambda data, rng: mutate_parts((_last, _checkpoint, _entry, _entry, _entry), data, rng),
        modules=(
            "refindex.storage.parquet.log",
            "refindex.storage.parquet.versions",
            "refindex.storage.parquet.checkpoint",
        ),
    ),
    Target(
        name="checkpoint",
        run=run_checkpoint,
        seeds=checkpoint_seeds,
        mutate=_checkpoint,
        modules=("refindex.storage.parquet.checkpoint", "refindex.storage.parquet.log"),
    ),
    Target(
        name="parquet-file",
        run=run_file,
        seeds=file_seeds,
        mutate=_pages,
        modules=("refindex.storage.parquet.files", "refindex.storage.tables"),
    ),
]
