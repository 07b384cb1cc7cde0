"""Checkpoints: a version of the table as one Parquet file, so that opening need not replay the log from its start.

Source: the Delta Lake transaction log protocol (PROTOCOL.md of delta-io/delta), "Checkpoints" and "Last
Checkpoint File".
"""

from __future__ import annotations

import contextlib
import io
import os
import posixpath
import re
import uuid
import zlib
from dataclasses import dataclass
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from refindex.access import urls
from refindex.errors import FormatError, ManifestError
from refindex.model.zarr_v3 import dumps, loads
from refindex.storage.parquet import log
from refindex.storage.parquet.log import DataFile, Snapshot

EVERY = 10
"""Commits from one checkpoint to the next."""

LAST = "_last_checkpoint"
_WITHIN = 64 << 10
"""Versions of up to so many bytes are in ``_last_checkpoint`` itself: one request less where nothing can be listed."""
_TIMESTAMP_KEY = "refindex.timestamp"
_VERSION_KEY = "refindex.version"
_CHECKSUM_KEY = "refindex.crc32"
_WITHIN_KEY = "refindex.entry"
# The key, and the digits as the next field (2, of type binary) of the footer's key and value, in compact Thrift.
_DIGITS = re.compile(re.escape(_CHECKSUM_KEY.encode()) + rb"\x18\x08([0-9a-f]{8})")

_MAP = pa.map_(pa.string(), pa.string())
_SCHEMA = pa.schema(
    {
        "protocol": pa.struct({"minReaderVersion": pa.int32(), "minWriterVersion": pa.int32()}),
        "metaData": pa.struct(
            {
                "id": pa.string(),
                "name": pa.string(),
                "description": pa.string(),
                "format": pa.struct({"provider": pa.string(), "options": _MAP}),
                "schemaString": pa.string(),
                "partitionColumns": pa.list_(pa.string()),
                "configuration": _MAP,
                "createdTime": pa.int64(),
            }
        ),
        "add": pa.struct(
            {
                "path": pa.string(),
                "partitionValues": _MAP,
                "size": pa.int64(),
                "modificationTime": pa.int64(),
                "dataChange": pa.bool_(),
                "stats": pa.string(),
                "tags": _MAP,
            }
        ),
        "remove": pa.struct({"path": pa.string(), "deletionTimestamp": pa.int64(), "dataChange": pa.bool_()}),
    }
)


def checkpoint_path(root: str, version: int) -> str:
    return posixpath.join(root, log.LOG, f"{version:020d}.checkpoint.parquet")


def encode(snapshot: Snapshot) -> bytes:
    """A snapshot as the bytes of a checkpoint.

    Its footer has the CRC-32 of the whole file, computed with the digits of the checksum as zeros.
    """
    adds = []
    for file in snapshot.files.values():
        add = file.add(snapshot.timestamp) | {"dataChange": False}
        adds.append(add | {name: list(add[name].items()) for name in ("partitionValues", "tags")})
    meta = dict(snapshot.metadata)
    meta["format"] = {"provider": meta["format"]["provider"], "options": list(meta["format"]["options"].items())}
    meta["configuration"] = list(meta["configuration"].items())
    rows: list[dict[str, Any]] = [{"protocol": log.PROTOCOL}, {"metaData": meta}, *({"add": add} for add in adds)]
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, _SCHEMA, compression="zstd", write_page_checksum=True, store_schema=False) as writer:
        writer.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))
        said = {_TIMESTAMP_KEY: str(snapshot.timestamp), _VERSION_KEY: str(snapshot.version)}
        writer.add_key_value_metadata(said | {_CHECKSUM_KEY: "0" * 8})
    data = sink.getvalue()
    start, stop = _digits(data)
    return data[:start] + f"{zlib.crc32(data):08x}".encode() + data[stop:]


def _digits(data: bytes) -> tuple[int, int]:
    found = list(_DIGITS.finditer(data))
    if not found:
        raise FormatError("it has no checksum")
    return found[-1].span(1)


def decode(data: bytes, version: int, url: str) -> Snapshot:
    """The snapshot in a checkpoint.

    Raises
    ------
    FormatError
        If it is damaged.
    ManifestError
        If it is of a format that this refindex does not read.
    """
    try:
        start, stop = _digits(data)
        if zlib.crc32(data[:start] + b"0" * 8 + data[stop:]) != int(data[start:stop], 16):
            raise FormatError("it does not have the checksum that it says")
        with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
            said = file.metadata.metadata
            timestamp = int(said[_TIMESTAMP_KEY.encode()])
            if (found := int(said.get(_VERSION_KEY.encode(), version))) != version:
                raise FormatError(f"it is that of version {found}")
            rows = file.read().to_pylist()
        snapshot = Snapshot(version=version, timestamp=timestamp)
        for row in rows:
            log.check_format(row, urls.display(url))
            if row["metaData"] is not None:
                meta = {name: value for name, value in row["metaData"].items() if value is not None}
                meta["configuration"] = dict(meta["configuration"])
                meta["format"] = {"provider": meta["format"]["provider"], "options": dict(meta["format"]["options"])}
                snapshot.metadata = meta
            elif row["add"] is not None:
                added = DataFile.from_add(row["add"])
                snapshot.files[added.path] = added
    except ManifestError:
        raise
    except (
        FormatError, pa.ArrowException, OSError, KeyError, TypeError, ValueError, OverflowError, AttributeError,
    ) as error:  # fmt: skip
        raise FormatError(f"checkpoint {version} is damaged: {error}") from error
    return snapshot


def read(fs: fsspec.AbstractFileSystem, root: str, version: int, url: str) -> Snapshot | None:
    """The snapshot of a checkpoint, None if it is missing or damaged: what it says is in the entries too."""
    data = log.fetch(fs, checkpoint_path(root, version), url)
    if data is None:
        return None
    with contextlib.suppress(FormatError):
        return decode(data, version, url)
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hint:
    """What ``_last_checkpoint`` says: a version (-1 if it is damaged), and its snapshot if that is in it."""

    version: int = -1
    snapshot: Snapshot | None = None


def hint(fs: fsspec.AbstractFileSystem, root: str, url: str) -> Hint | None:
    """What ``_last_checkpoint`` says, None if it is missing. What its snapshot says is in the log, too.

    Raises
    ------
    ManifestError
        If the snapshot is of a format that this refindex does not read.
    """
    data = log.fetch(fs, posixpath.join(root, log.LOG, LAST), url)
    if data is None:
        return None
    try:
        said = loads(data, LAST)
        version = said["version"]
    except (FormatError, KeyError, TypeError):
        return Hint()
    if not isinstance(version, int) or not 0 <= version < 10**19:
        return Hint()
    return Hint(version=version, snapshot=_within(said, version, url))


def _within(said: dict[str, Any], version: int, url: str) -> Snapshot | None:
    """The snapshot that is in ``_last_checkpoint`` itself, None if it is not, or damaged."""
    text = said.get(_WITHIN_KEY)
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else b""
    sums = log.checksum(data)
    if sums is None or sums[0] != sums[1]:
        return None
    actions = log.parse(data, version, url)
    if not log.is_in_place(actions, version):  # the number beside it has no checksum
        return None
    snapshot = Snapshot(version=-1)
    log.apply(snapshot, actions, version, url)
    return snapshot if snapshot.metadata else None


def last(fs: fsspec.AbstractFileSystem, root: str, url: str) -> int | None:
    """The version that ``_last_checkpoint`` names, None if it is missing, -1 if damaged. It is a hint and no more."""
    found = hint(fs, root, url)
    return None if found is None else found.version


def write(fs: fsspec.AbstractFileSystem, root: str, url: str, snapshot: Snapshot) -> None:
    """Write the checkpoint of a version, and name it in ``_last_checkpoint`` unless a later one is named there."""
    data = encode(snapshot)
    _replace(fs, url, checkpoint_path(root, snapshot.version), data)
    before = last(fs, root, url)
    if before is None or before < snapshot.version or not fs.exists(checkpoint_path(root, before)):
        start, stop = _digits(data)
        said: dict[str, Any] = {
            "version": snapshot.version,
            "size": 2 + len(snapshot.files),
            "sizeInBytes": len(data),
            "numOfAddFiles": len(snapshot.files),
            _CHECKSUM_KEY: data[start:stop].decode(),
        }
        entry = log.entry(
            snapshot=snapshot,
            added=snapshot.files.values(),
            removed=(),
            operation="checkpoint",
            details={},
            whole=True,
        )
        if len(entry) <= _WITHIN:
            said[_WITHIN_KEY] = entry.decode()
        _replace(fs, url, posixpath.join(root, log.LOG, LAST), dumps(said).encode())


def _replace(fs: fsspec.AbstractFileSystem, url: str, target: str, data: bytes) -> None:
    """Write a file so that readers see the old one or the new one."""
    if not urls.is_local(url):
        fs.pipe_file(target, data)
        return
    temporary = f"{target}.{uuid.uuid4().hex}.tmp"
    try:
        log.write_local(temporary, data)
        os.replace(temporary, target)  # noqa: PTH105 -- fsspec paths are strings
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)  # noqa: PTH108
