"""A verification from its beginning to its end: the manifest, the sources, the values."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import replace
from typing import Any, Literal

from refindex.access import urls
from refindex.access.trust import Allowed
from refindex.archive import Archive
from refindex.errors import NotFoundError
from refindex.serve.opening import Opening
from refindex.storage import ManifestReader, MemoryReader, history
from refindex.verification.lineage import Lineage
from refindex.verification.originals import Originals
from refindex.verification.references import check_references
from refindex.verification.relations import Relations, check_relations
from refindex.verification.result import Findings, Stage, Verification, VerificationInterrupted
from refindex.verification.sampling import Picks
from refindex.verification.sources import check_sources
from refindex.verification.values import Comparison

type Sample = int | Literal["all"]


def verify(
    url: str,
    *,
    sample: Sample,
    variables: Collection[str] | None,
    seed: int,
    sources_only: bool,
    version: int | None,
    storage_options: Mapping[str, Any] | None,
    allow: Allowed | None = None,
    progress: bool | Callable[[Stage], None],
    workers: int | None,
) -> Verification:
    """See :func:`refindex.api.verify`."""
    if sample != "all" and not (type(sample) is int and sample >= 0):
        raise ValueError(f"sample must be 'all' or a number of chunks, got {sample!r}")
    watching: AbstractContextManager[Callable[[Stage], None] | None]
    if callable(progress):
        watching = nullcontext(progress)
    elif progress:
        from refindex.verification.bar import stage_bar

        watching = stage_bar()
    else:
        watching = nullcontext(None)
    opening = Opening(url=url, version=version, storage_options=dict(storage_options or {}), allow=allow)
    with watching as report, closing(opening.reader(check=False)) as reader:
        if isinstance(reader, MemoryReader):  # scanned on the spot: once is enough
            opening = replace(opening, manifest=reader.manifest)
        else:
            opening = replace(opening, version=reader.version)
        found = Findings(report)
        picks = Picks(None if sample == "all" else sample, seed)
        try:
            _verify(
                opening, reader, found, picks, variables, sources_only, workers or min(8, os.cpu_count() or 1), seed
            )
        except KeyboardInterrupt:
            raise VerificationInterrupted(found.result(urls.display(url), reader.version, complete=False)) from None
        return found.result(urls.display(url), reader.version)


def _verify(
    opening: Opening,
    reader: ManifestReader,
    found: Findings,
    picks: Picks,
    variables: Collection[str] | None,
    sources_only: bool,
    workers: int,
    seed: int,
) -> None:
    relations = check_relations(reader, found)
    if opening.allowed is not None:
        listed = [source.url for source in relations.sources if source is not None]
        opening.allowed.check(listed, str(opening), links=True)
    found.tally["arrays"] = len(relations.arrays)
    found.tally["sources"] = len(relations.sources)
    paths = _wanted(relations, variables)
    for path in paths:
        picks.add(path, relations.nodes[path])
    check_references(reader, relations, found, picks)
    wrong = check_sources(relations.sources, opening.storage_options, found)
    if sources_only or picks.wanted == 0:
        return
    if not relations.readable:
        found.skip("the manifest contradicts itself, so that nothing can be read by it", "all values")
        return
    lineage = replace(Lineage.of(reader, relations), kept_all=_kept_all(reader, opening))
    if lineage.kind == "imported" and len(lineage.files) != 1:
        found.skip("references that were imported: nothing says which part of an array each file has", "all values")
        return
    versions = {s.url: s.version for s in relations.sources if s is not None and s.version is not None}
    with (
        Archive(opening) as archive,
        closing(Originals(lineage.stores, opening.storage_options, _allowed(reader, opening), versions)) as originals,
    ):
        Comparison(
            archive=archive,
            reader=reader,
            relations=relations,
            lineage=lineage,
            originals=originals,
            picks=picks,
            found=found,
            paths=paths,
            broken=wrong,
            workers=workers,
            seed=seed,
        ).run()


def _allowed(reader: ManifestReader, opening: Opening) -> Allowed | None:
    """Where the libraries that read the originals may look for other files."""
    if isinstance(reader, MemoryReader):  # a file that was scanned on the spot, in this process
        return replace(opening, manifest=None).allowed
    return opening.allowed


def _kept_all(reader: ManifestReader, opening: Opening) -> bool:
    """Whether the log says that no file was ever taken out, or replaced."""
    if isinstance(reader, MemoryReader):
        return True
    operations = {commit.version: commit.operation for commit in history(opening.url, opening.storage_options)}
    return 0 in operations and not {"remove", "replace"}.intersection(operations.values())


def _wanted(relations: Relations, variables: Collection[str] | None) -> list[str]:
    """The arrays that are compared: all, or those of some names or paths."""
    if variables is None:
        return list(relations.arrays)
    asked = {name.strip("/") for name in variables}
    paths = [path for path in relations.arrays if path in asked or path.rpartition("/")[2] in asked]
    missing = asked - set(paths) - {path.rpartition("/")[2] for path in paths}
    if missing:
        raise NotFoundError(f"there is no array {', '.join(sorted(missing))}")
    return paths
