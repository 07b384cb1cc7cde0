"""What a rewriting did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizedArray:
    """One rewritten variable.

    Parameters
    ----------
    path:
        Of the array.
    folder:
        Of its shards, as people write it.
    chunks, shards:
        Shapes, in elements.
    codec:
        What compresses the chunks.
    files:
        Shards that there are, or, if nothing was written, that there can be at most.
    kept:
        Of these, shards that an interrupted rewriting had finished before.
    nbytes:
        Bytes of the values.
    nbytes_stored:
        Bytes of the shards; 0 if nothing was written.
    reads:
        How often the values were decoded, on average and at most: blocks that cut stored chunks read them again.
    """

    path: str
    folder: str
    chunks: tuple[int, ...]
    shards: tuple[int, ...]
    codec: str
    files: int
    kept: int
    nbytes: int
    nbytes_stored: int
    reads: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimized:
    """What a rewriting did.

    Parameters
    ----------
    version:
        The version that it made, or the newest one if nothing was committed.
    arrays:
        The variables that were rewritten.
    skipped:
        Paths of variables whose chunks were so already.
    """

    version: int
    arrays: tuple[OptimizedArray, ...] = ()
    skipped: tuple[str, ...] = ()
