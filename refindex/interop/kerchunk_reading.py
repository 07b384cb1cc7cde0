"""kerchunk's references, JSON (version 0 and 1) and Parquet -> a manifest.

kerchunk says that a chunk does not exist by having no key for it. So a key that cannot be understood is an error, and
so is a Parquet file that is not there: else what was lost would read as fill values.
"""

from __future__ import annotations

import base64
import binascii
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from refindex.access import urls
from refindex.access.files import StorageOptions, reading
from refindex.access.options import filesystem
from refindex.access.remembered import remembered
from refindex.access.trust import Allow, Allowed
from refindex.errors import FormatError, NotFoundError, UnsupportedError
from refindex.interop.assemble import WHOLE, Rows, Urls, assemble, refuse_strays
from refindex.interop.templates import expand
from refindex.model.chunks import INLINE
from refindex.model.manifest import Manifest
from refindex.model.zarr_v3 import loads
from refindex.scan.zarr.listing import DOCUMENTS
from refindex.scan.zarr.plan import Plan, shortened

_DOCUMENTS = frozenset(DOCUMENTS)
_LAZY_MEMBERS = {"metadata", "record_size", "zarr_consolidated_format"}
_AT_ONCE = 16
_MOST_PARTITIONS = 100_000
_PARTITION = re.compile(r"refs\.(0|[1-9][0-9]{0,17})\.parq", re.ASCII)
_NOTHING = np.empty(0, dtype=np.int64)


def from_kerchunk(
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    base: str | os.PathLike[str] | None = None,
    allow: Allow = None,
    absent_partitions: bool = False,
    storage_options: StorageOptions = None,
) -> Manifest:
    """Take over kerchunk's references, of Zarr version 2 or 3. The files are looked at, and no array is read.

    Parameters
    ----------
    source:
        Path or URL of a JSON file or of a folder of Parquet files; or the references themselves, as a mapping.
    base:
        What references without a protocol are below: ``"s3://"``, a folder. By default they must be absolute paths.
    allow:
        Folders and files, by path or URL, that references may name besides what lies below ``base`` and the folder that
        holds them; ``"*"`` for everything. References in memory may name anything.
    absent_partitions:
        Whether Parquet files that are not there mean that none of their chunks exist. kerchunk leaves such files out;
        they cannot be told from lost ones.
    storage_options:
        Options for fsspec, for the references and for the files that they name.

    Raises
    ------
    FormatError
        If it is none, has keys that nothing describes, or references that reach beyond their files; if a Parquet file
        is missing.
    NotAllowedError
        If it refers to files that it may not read.
    SourceError, NotFoundError
        If it, or a file that it refers to, cannot be read.
    """
    if isinstance(source, Mapping):
        return _of_json(source, "references in memory", base, None, storage_options)
    url = urls.absolute(source).rstrip("/")
    where = urls.display(url)
    allowed = Allowed.of(allow).beside(url).adding(remembered(url))
    if base is not None:
        allowed = allowed.adding([urls.absolute(base)])
    lazy = _read(f"{url}/.zmetadata", storage_options)
    if lazy is not None:
        return _of_parquet(url, loads(lazy, f"{where}/.zmetadata"), base, allowed, absent_partitions, storage_options)
    text = _read(url, storage_options)
    if text is None:
        raise NotFoundError(f"{where}: neither a file nor a folder with .zmetadata is there")
    references = loads(text, where)
    if not isinstance(references, dict):
        raise FormatError(f"{where}: not a JSON object")
    return _of_json(references, where, base, allowed, storage_options)


def _read(url: str, storage_options: StorageOptions) -> bytes | None:
    """A small file, None if it is not there (or a folder)."""
    try:
        with reading(url, "reading it"):
            fs, path = filesystem(url, storage_options)
            if urls.is_local(url):
                local = urls.local_path(url)
                return local.read_bytes() if local.is_file() else None
            try:
                return bytes(fs.cat_file(path))
            except FileNotFoundError as error:
                if isinstance(error.__cause__, KeyError):  # of filesystems in memory; others' causes are failures
                    return None
                raise
    except NotFoundError:
        return None


def _resolver(where: str, base: str | os.PathLike[str] | None) -> Callable[[str], str]:
    """From URLs as references spell them to absolute ones."""

    def resolve(url: str) -> str:
        if "://" in url.rpartition("::")[2]:
            return urls.absolute(url)
        if base is None and url.startswith("/"):
            return urls.absolute(url)
        if base is None:
            raise FormatError(
                f"{where}: it refers to {shortened(url)}, which has no protocol; say with base= (--base) what it is "
                "below, for example s3://"
            )
        head = urls.absolute(base)
        return f"{head if head.endswith('://') else head.rstrip('/') + '/'}{url.lstrip('/')}"

    return resolve


# JSON


def _of_json(
    references: Mapping[str, Any],
    where: str,
    base: str | os.PathLike[str] | None,
    allowed: Allowed | None,
    storage_options: StorageOptions,
) -> Manifest:
    refs = expand(references, where)
    documents: dict[str, bytes] = {}
    chunks: list[str] = []
    for key, value in refs.items():
        if key.rpartition("/")[2] in _DOCUMENTS:
            documents[key] = _inline(key, value, where)
        else:
            chunks.append(key)
    folders = {key.rpartition("/")[0] for key in documents if key.endswith((".zarray", "zarr.json"))}
    keys, strays = _by_array(chunks, folders)
    found = Urls()

    def rows_of(path: str, plan: Plan) -> Rows:
        mine = keys.pop(path, [])
        skip = len(path) + 1 if path else 0
        numbers, at = plan.keys.numbers([key[skip:] for key in mine], plan.grid)
        if len(at) < len(mine):
            known = set(at.tolist())
            strays.extend(key for n, key in enumerate(mine) if n not in known)
        order = at.tolist()
        return _rows(numbers, [mine[n] for n in order], refs, found, where)

    manifest = assemble(
        where,
        documents,
        rows_of,
        found,
        resolve=_resolver(where, base),
        allowed=allowed,
        storage_options=storage_options,
    )
    unserved = {entry.path.strip("/") for entry in manifest.report.problems}
    refuse_strays(where, [*strays, *(key for path, mine in keys.items() if path not in unserved for key in mine)])
    return manifest


def _by_array(keys: Sequence[str], folders: set[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Keys of chunks by the folder, of those that have documents, that they are in; and those that are in none."""
    found: dict[str, list[str]] = {folder: [] for folder in folders}
    known: dict[str, str | None] = {}
    strays: list[str] = []
    for key in keys:
        folder = key.rpartition("/")[0]
        owner = known.get(folder, "\0")
        if owner == "\0":
            above = folder
            while above and above not in folders:
                above = above.rpartition("/")[0]
            owner = known[folder] = above if above in folders else None
        if owner is None:
            strays.append(key)
        else:
            found[owner].append(key)
    return found, strays


def _inline(key: str, value: Any, where: str) -> bytes:
    """The bytes that references have in them: text, base64, or JSON."""
    if isinstance(value, bytes):
        value = value.decode("latin-1") if value.startswith(b"base64:") else value
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict):
        try:
            return json.dumps(value).encode()  # NaN and all: documents in memory have them
        except (ValueError, TypeError, RecursionError) as error:
            raise FormatError(f"{where}: {shortened(key)} is no JSON object: {error}") from error
    if not isinstance(value, str):
        raise FormatError(f"{where}: {shortened(key)} is {shortened(value)}; expected text or a JSON object")
    if not value.startswith("base64:"):
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise FormatError(f"{where}: {shortened(key)} is not Unicode: {error}") from error
    try:
        return base64.b64decode(value[7:], validate=True)
    except (binascii.Error, ValueError) as error:  # the second: characters beyond ASCII
        raise FormatError(f"{where}: {shortened(key)} is not base64: {error}") from error


def _rows(
    numbers: np.ndarray[Any, np.dtype[np.int64]], keys: list[str], refs: Mapping[str, Any], found: Urls, where: str
) -> Rows:
    values = [refs[key] for key in keys]
    referred = np.array([isinstance(value, list | tuple) for value in values], dtype=bool)
    url = np.full(len(keys), INLINE, dtype=np.int64)
    offset, length = np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.int64)
    lists = [value for value, is_list in zip(values, referred.tolist(), strict=True) if is_list]
    if lists:
        wrong = [v for v in lists if len(v) not in (1, 3) or not isinstance(v[0], str) or not v[0]]
        if wrong:
            raise FormatError(f"{where}: a reference is {shortened(wrong[0])}; expected [url] or [url, offset, length]")
        number = found.number
        url[referred] = [number(value[0]) for value in lists]
        ranges = [(0, WHOLE) if len(value) == 1 else (value[1], value[2]) for value in lists]
        columns = _integers(ranges, where)
        outside = (columns[:, 0] < 0) | ((columns[:, 1] < 0) & np.array([len(v) == 3 for v in lists], dtype=bool))
        if outside.any():
            raise FormatError(f"{where}: a reference is {shortened(lists[int(np.argmax(outside))])}")
        offset[referred], length[referred] = columns[:, 0], columns[:, 1]
    data = [_inline(keys[n], values[n], where) for n in np.flatnonzero(~referred).tolist()]
    sizes = np.array([len(d) for d in data], dtype=np.int64)
    length[~referred] = sizes
    offset[~referred] = np.cumsum(sizes) - sizes
    return Rows(chunk=numbers, url=url, offset=offset, length=length, data=b"".join(data))


def _integers(ranges: list[tuple[Any, Any]], where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    try:
        columns = np.array(ranges)
    except (ValueError, OverflowError) as error:
        raise FormatError(f"{where}: offsets and lengths must be integers") from error
    if columns.dtype.kind != "i":
        wrong = next((r for r in ranges if not all(type(n) is int and abs(n) < 2**63 for n in r)), ranges[0])
        raise FormatError(f"{where}: offset and length of a reference are {shortened(list(wrong))}")
    return columns.astype(np.int64)


# Parquet


def _of_parquet(
    url: str,
    lazy: Any,
    base: str | os.PathLike[str] | None,
    allowed: Allowed,
    absent_partitions: bool,
    storage_options: StorageOptions,
) -> Manifest:
    where = urls.display(url)
    metadata = lazy.get("metadata") if isinstance(lazy, dict) else None
    records = lazy.get("record_size") if isinstance(lazy, dict) else None
    if not isinstance(metadata, dict) or type(records) is not int or records < 1:
        raise FormatError(f"{where}: its .zmetadata has no metadata and record_size: not kerchunk's Parquet")
    refuse_strays(where, sorted(set(lazy) - _LAZY_MEMBERS))
    refuse_strays(where, [key for key in metadata if key.rpartition("/")[2] not in _DOCUMENTS])
    documents = {key: _inline(key, value, where) for key, value in metadata.items()}
    found = Urls()

    def rows_of(path: str, plan: Plan) -> Rows:
        folder = f"{url}/{path}".rstrip("/")
        count = -(-plan.grid.size // records)

        def read(record: int) -> Rows | None:
            name = f"{folder}/refs.{record}.parq"
            data = _read(name, storage_options)
            if data is None and absent_partitions:
                return None
            if data is None:
                raise FormatError(
                    f"{urls.display(name)}: no such file. Its chunks may be lost, or never have been: kerchunk "
                    "writes no file where no chunk exists. If you know that, give "
                    "absent_partitions=True (--absent-partitions)"
                )
            start = record * records
            return _partition(data, urls.display(name), start, records, plan.grid.size - start, found)

        parts: list[Rows] = []
        # Some at a time: there may be as many as numbers in the metadata say, and the first that is missing ends it.
        wanted = _partitions(folder, count, absent_partitions)
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            while some := list(itertools.islice(wanted, 4 * _AT_ONCE)):
                parts += [
                    part for part in (pool.map(read, some) if len(some) > 1 else map(read, some)) if part is not None
                ]
        return _united(parts)

    return assemble(
        where,
        documents,
        rows_of,
        found,
        resolve=_resolver(where, base),
        allowed=allowed,
        storage_options=storage_options,
    )


def _partitions(folder: str, count: int, absent: bool) -> Iterator[int]:
    """The numbers of the files of an array, of which some may be absent.

    Raises
    ------
    UnsupportedError
        If there may be so many that looking for each of them does not end.
    """
    if absent and urls.is_local(folder):
        path = urls.local_path(folder)
        names = os.listdir(path) if path.is_dir() else ()  # noqa: PTH208 -- names, not paths
        found = (_PARTITION.fullmatch(name) for name in names)
        return iter(sorted(number for match in found if match and (number := int(match[1])) < count))
    if absent and count > _MOST_PARTITIONS:
        raise UnsupportedError(
            f"its chunks are in {count} files, of which any may be absent; up to {_MOST_PARTITIONS} are looked for"
        )
    return iter(range(count))


def _partition(data: bytes, where: str, start: int, records: int, left: int, found: Urls) -> Rows:
    """The references in one file: row ``n`` is chunk ``start + n``."""
    try:
        table = pq.read_table(io.BytesIO(data), partitioning=None, page_checksum_verification=True)
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        if not {"path", "raw"} & set(columns) or set(columns) - {"path", "offset", "size", "raw"}:
            raise FormatError(f"{where}: its columns are {', '.join(columns)}; expected path, offset, size and raw")
        n = table.num_rows
        if n < min(records, left) or n > records:
            raise FormatError(f"{where}: it has {n} rows; expected {records}, or {min(records, left)}")
        url = _paths(columns.get("path"), n, found, where)
        offset, length = (_numbers(columns.get(name), n, where) for name in ("offset", "size"))
        raw = columns["raw"].to_pylist() if "raw" in columns and columns["raw"].null_count < n else [None] * n
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{where}: not a sound Parquet file: {error}") from error
    inline = np.array([value is not None for value in raw], dtype=bool)
    there = inline | (url != INLINE)
    if there[left:].any():
        raise FormatError(f"{where}: it has references of chunks outside the array's grid")
    url[inline] = INLINE
    whole = ~inline & (offset == 0) & (length == 0)
    length[whole] = WHOLE
    texts = [_inline(where, value, where) for value in raw if value is not None]
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    length[inline], offset[inline] = sizes, np.cumsum(sizes) - sizes
    rows = np.flatnonzero(there)
    wrong = (offset[rows] < 0) | (length[rows] < WHOLE)
    if wrong.any() or (length[rows][~whole[rows]] < 0).any():
        raise FormatError(f"{where}: an offset or a size is negative")
    return Rows(chunk=rows + start, url=url[rows], offset=offset[rows], length=length[rows], data=b"".join(texts))


def _paths(column: Any, n: int, found: Urls, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    if column is None or column.null_count == n:
        return np.full(n, INLINE, dtype=np.int64)
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    spelled = encoded.dictionary.to_pylist()
    names = [value.decode() if isinstance(value, bytes) else value for value in spelled]
    if not all(isinstance(name, str) for name in names):
        raise FormatError(f"{where}: paths of {encoded.dictionary.type}; expected text")
    indices = encoded.indices.fill_null(INLINE).to_numpy(zero_copy_only=False).astype(np.int64)
    numbers = np.full(len(names) + 1, INLINE, dtype=np.int64)
    # An empty path means what a missing one does.
    numbers[:-1] = [found.number(name) if name else INLINE for name in names]
    url: np.ndarray[Any, np.dtype[np.int64]] = numbers[indices]
    return url


def _numbers(column: Any, n: int, where: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    if column is None:
        return np.zeros(n, dtype=np.int64)
    if not pa.types.is_integer(column.type):
        raise FormatError(f"{where}: a column of {column.type}; expected integers")
    values = column.fill_null(0).to_numpy(zero_copy_only=False)
    return np.array(values, dtype=np.int64)


def _united(parts: Sequence[Rows]) -> Rows:
    if not parts:
        return Rows(chunk=_NOTHING, url=_NOTHING, offset=_NOTHING, length=_NOTHING)
    shift = np.cumsum([0, *(len(part.data) for part in parts[:-1])])
    return Rows(
        chunk=np.concatenate([p.chunk for p in parts]),
        url=np.concatenate([p.url for p in parts]),
        offset=np.concatenate(
            [np.where(p.url == INLINE, p.offset + s, p.offset) for p, s in zip(parts, shift, strict=True)]
        ),
        length=np.concatenate([p.length for p in parts]),
        data=b"".join(p.data for p in parts),
    )
