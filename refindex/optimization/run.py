"""Rewriting variables of an archive as shards, from the plan to the commit."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, Literal

import numpy as np

from refindex import storage
from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.remembered import remember
from refindex.access.trust import Allowed
from refindex.archive import Archive
from refindex.errors import NotFoundError, RefindexError, SourceError, UnsupportedError
from refindex.growth import commit_on_newest
from refindex.model.change import Change
from refindex.model.chunks import INLINE, ChunkTable
from refindex.model.dtype import fill_value_from_json
from refindex.model.manifest import Node, ReportEntry, Source, Status
from refindex.model.zarr_v3 import dumps
from refindex.optimization.checks import check_sample, refuse_changed, refuse_unwritable
from refindex.optimization.codecs import DEFAULT, Codec, Storing
from refindex.optimization.job import Job, Made
from refindex.optimization.layout import For, Layout, Lengths, Region, check_lengths, chunk_shape
from refindex.optimization.presence import present
from refindex.optimization.progress import Rewriting
from refindex.optimization.result import Optimized
from refindex.optimization.shards import Folder, shard_document
from refindex.optimization.writing import Tally, Writer
from refindex.serve.keys import ManifestKeys
from refindex.serve.opening import Opening
from refindex.storage import ManifestReader

type Values = np.ndarray[Any, Any]

MEMORY = 512 << 20
"""Bytes that are held at a time, about: a block that is read, one that is compressed, and what decoding takes."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked of a rewriting; see :func:`refindex.api.optimize`."""

    variables: Collection[str]
    chunks: Lengths | For
    shards: Lengths | Literal["auto"] | None = "auto"
    codec: str = DEFAULT
    to: str | None = None
    resume: bool = True
    memory: int = MEMORY
    workers: int | None = None
    dry_run: bool = False
    storage_options: StorageOptions = field(default=None, repr=False)
    allow: Allowed = Allowed()  # noqa: RUF009 -- frozen


def optimize(url: str, wish: Wish, report: Callable[[Rewriting], None] | None = None) -> Optimized:
    """Rewrite variables as shards, and commit; see :func:`refindex.api.optimize`."""
    refuse_unwritable(url)
    with closing(storage.open_reader(url, storage_options=wish.storage_options)) as reader:
        version = reader.version
    # All is read from one version, whatever others commit meanwhile.
    options = dict(wish.storage_options or {})
    with closing(Archive(Opening(url=url, version=version, storage_options=options, allow=wish.allow))) as archive:
        _keep_nothing(archive)
        jobs, skipped = _plan(url, archive, wish)
        if wish.dry_run or not jobs:
            arrays = tuple(job.result(None) for job in jobs)
            return Optimized(version=version, arrays=arrays, skipped=skipped)
        tally = Tally(total=sum(job.nbytes for job in jobs), report=report)
        made = [_rewrite(archive, job, wish, tally) for job in jobs]
        sources = archive.sources

        def content(newest: ManifestReader) -> Change:
            if newest.version != version:
                for job in jobs:
                    refuse_changed(newest, job, sources)
            return _change(newest, jobs, made)

        number = commit_on_newest(
            url,
            content,
            operation="optimize",
            details=_details(jobs, made),
            storage_options=wish.storage_options,
        )
    if wish.to is not None:
        remember(url, (f"{job.folder.url}/" for job in jobs))
    done = tuple(job.result(one) for job, one in zip(jobs, made, strict=True))
    return Optimized(version=number, arrays=done, skipped=skipped)


def _keep_nothing(archive: Archive) -> None:
    """Let an archive not keep what it decodes: blocks are read once, and memory is counted here."""
    keys = archive.store.keys
    if isinstance(keys, ManifestKeys):
        keys.resolver.selections.cache.budget = 0


def _plan(url: str, archive: Archive, wish: Wish) -> tuple[list[Job], tuple[str, ...]]:
    nodes = _wanted(archive, wish.variables)
    codec = Codec.parse(wish.codec)
    if not isinstance(wish.chunks, str):
        check_lengths("chunks", wish.chunks, nodes)
    if wish.shards is not None and wish.shards != "auto":
        check_lengths("shards", wish.shards, nodes)
    jobs: list[Job] = []
    skipped: list[str] = []
    base = (urls.absolute(wish.to) if wish.to is not None else f"{url}.data").rstrip("/")
    for node in nodes:
        dtype = node.dtype
        if dtype is None:
            raise UnsupportedError(
                f"/{node.path}: values of {node.json['data_type']}, of no fixed size, stay as they are"
            )
        if 0 in node.shape or not node.shape:
            raise UnsupportedError(f"/{node.path}: of the shape {node.shape}, there are no chunks to choose")
        chunk = chunk_shape(node, archive.nodes, wish.chunks, dtype.itemsize)
        storing = Storing.of(node.path, dtype, chunk, codec)
        layout = Layout.of(
            node,
            chunk=chunk,
            shards=wish.shards,
            itemsize=dtype.itemsize,
            block_nbytes=wish.memory // 3,
        )
        table = archive.find(node.path)
        if _is_so(node, table, layout, storing):
            skipped.append(node.path)
            continue
        key = _key(node, table, archive.sources, layout, storing)
        unique = key[:10] if wish.resume else secrets.token_hex(5)
        name = re.sub(r"[^\w.-]", "_", node.path.replace("/", "."), flags=re.ASCII)
        document = shard_document(node.json, layout, storing.chain)
        folder = Folder(f"{base}/{name}-{unique}", document, layout, wish.storage_options)
        jobs.append(
            Job(
                node=node,
                table=table,
                layout=layout,
                storing=storing,
                present=present(table, node.grid, layout.grid),
                key=key if wish.resume else unique,
                folder=folder,
            )
        )
    return jobs, tuple(skipped)


def _wanted(archive: Archive, variables: Collection[str]) -> list[Node]:
    """The arrays of these paths, or names.

    Raises
    ------
    NotFoundError
        If there is none, or more than one, of a name.
    """
    found: dict[str, Node] = {}
    for name in variables:
        path = name.strip("/")
        paths = [path] if path in archive.arrays else [p for p in archive.arrays if p.rpartition("/")[2] == path]
        if len(paths) != 1:
            what = "is the name of several" if paths else "there is no such array; there are"
            names = ", ".join(paths or archive.arrays)
            raise NotFoundError(f"{urls.display(archive.url)}: {name}: {what} {names}")
        found[paths[0]] = archive.arrays[paths[0]]
    if not found:
        raise ValueError(f"give the variables to rewrite; there are {', '.join(archive.arrays)}")
    return list(found.values())


def _is_so(node: Node, table: ChunkTable, layout: Layout, storing: Storing) -> bool:
    """Whether an array is stored already as it is to be."""
    if node.json["chunk_grid"] != layout.grid.to_json() or node.codecs != storing.chain:
        return False
    used = np.unique(table.encoding[table.source != INLINE]).tolist()
    return all(n < 0 or (node.native_encodings[n] and node.encodings[n].shape == layout.chunk) for n in used)


def _key(node: Node, table: ChunkTable, sources: Sequence[Source], layout: Layout, storing: Storing) -> str:
    """A digest of all that the shards depend on: other references, sources or options make other ones."""
    digest = blake2b(digest_size=16)
    encodings = [encoding.to_json() for encoding in node.encodings]
    asked = [node.path, node.document, encodings, list(layout.chunk), list(layout.shard), str(storing.codec), 1]
    digest.update(dumps(asked).encode())
    used: set[int] = set()
    for rows in table.windows():
        for column in (table.chunk, table.source, table.offset, table.length, table.encoding):
            digest.update(np.ascontiguousarray(column[rows]).tobytes())
        used.update(np.unique(table.source[rows]).tolist())
    digest.update(table.data)
    for number in sorted(used - {INLINE}):
        source = sources[number]
        digest.update(dumps([source.url, source.size, source.mtime, source.etag]).encode())
    return digest.hexdigest()


def _rewrite(archive: Archive, job: Job, wish: Wish, tally: Tally) -> Made:
    """Write the shards of a variable that are not there yet, and see that they hold what they should."""
    path, folder = job.node.path, job.folder
    array = archive[path]

    def read(region: Region) -> Values:
        return np.asarray(array[region])

    said = {"refindex": "shards of a variable that was optimized", "array": path, "codec": str(job.storing.codec)}
    with folder.opened(job.key, said):
        sound = folder.sound()
        job.kept = len(sound)
        writer = Writer(
            path=path,
            layout=job.layout,
            storing=job.storing,
            folder=folder,
            read=read,
            fill=_fill(job.node),
            present=job.present,
            sound=sound,
            workers=wish.workers or min(8, os.cpu_count() or 1),
        )
        try:
            writer.run(tally)
        except OSError as error:
            if isinstance(error, RefindexError):
                raise
            raise SourceError(
                f"{urls.display(folder.url)}: writing it: {error}. Nothing was committed; finished shards stay there, "
                "and the next try goes on behind them"
            ) from error
        table, sources = folder.references(job.present)
    table, encodings = _encoded(table, job.storing)
    node = Node(
        path=path,
        document=dumps({**job.node.json, "chunk_grid": job.layout.grid.to_json(), "codecs": job.storing.chain}),
        encodings=encodings,
        attribute_types=job.node.attribute_types,
    )
    made = Made(node=node, table=table, sources=sources)
    check_sample(read, job, made, wish.storage_options)
    return made


def _fill(node: Node) -> Any:
    if node.dtype is None:
        raise TypeError(f"/{node.path}: no fill value of its type")
    return fill_value_from_json(node.dtype, node.json["fill_value"])


def _encoded(table: ChunkTable, storing: Storing) -> tuple[ChunkTable, tuple[Any, ...]]:
    """References with the encoding that says what they are, where there is one."""
    if storing.encoding is None:
        return table, ()
    numbered = ChunkTable.from_columns(
        chunk=table.chunk, source=table.source, offset=table.offset, length=table.length, encoding=0
    )
    return numbered, (storing.encoding,)


def _change(newest: ManifestReader, jobs: Sequence[Job], made: Sequence[Made]) -> Change:
    """The newest version, with the variables in their new places."""
    nodes = dict(newest.nodes)
    known: dict[Source, int] = {}
    for n, source in enumerate(newest.sources):
        known.setdefault(source, n)
    added: list[Source] = []

    def number(source: Source) -> int:
        at = known.setdefault(source, len(newest.sources) + len(added))
        if at == len(newest.sources) + len(added):
            added.append(source)
        return at

    chunks: dict[str, ChunkTable] = {}
    entries: list[ReportEntry] = []
    for job, one in zip(jobs, made, strict=True):
        nodes[one.node.path] = one.node
        if len(one.table):
            chunks[one.node.path] = one.table.with_sources([number(source) for source in one.sources])
        entries.append(
            ReportEntry(
                source=urls.display(job.folder.url),
                path=one.node.path,
                status=Status.NATIVE,
                reason=f"rewritten in chunks of {job.layout.chunk}",
            )
        )
    return Change(
        nodes=nodes,
        sources=tuple(added),
        dropped={one.node.path: 0 for one in made},
        chunks=chunks,
        report=tuple(entries),
    )


def _details(jobs: Sequence[Job], made: Sequence[Made]) -> dict[str, Any]:
    """What the log says: lists have an entry a variable."""
    return {
        "variables": [job.node.path for job in jobs],
        "chunks": [" x ".join(map(str, job.layout.chunk)) for job in jobs],
        "shards": [" x ".join(map(str, job.layout.shard)) for job in jobs],
        "codec": str(jobs[0].storing.codec),
        "folders": [urls.display(job.folder.url) for job in jobs],
        "references": sum(len(one.table) for one in made),
    }
