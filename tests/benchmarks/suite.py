"""What is measured: tables of cases, each with the data it needs. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

KERCHUNK = ("kerchunk",)
ICECHUNK = ("icechunk", "virtualizarr", "obstore", "obspec_utils")
VIRTUALIZARR = ("virtualizarr", "obstore", "obspec_utils")


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A file or folder that a function of :mod:`tests.benchmarks.make` makes; ``name`` is unique in a run."""

    name: str
    make: str
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row.

    Parameters
    ----------
    label:
        What the table calls it.
    work:
        ``module:function`` in :mod:`tests.benchmarks.work`. The function sets up, outside the measurement, and
        returns what is measured.
    options:
        Keyword arguments of that function.
    needs:
        Packages without which it is left out.
    at_most:
        Largest ratio to the baseline that the project allows itself.
    at_most_mb:
        Largest peak memory, in MB of 10**6 bytes, above that of the process before it.
    """

    label: str
    work: str
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    at_most: float | None = None
    at_most_mb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Cases over the same data; the first one is the baseline.

    Parameters
    ----------
    name:
        The filter that selects it; several tables may share one.
    data:
        What is measured.
    warm_up:
        The same in tiny, for one run that does not count; None where a cold start is what is measured.
    per, units:
        What the seconds are also divided by, and how many of it there are.
    timeout:
        Seconds after which a case is given up.
    """

    name: str
    title: str
    data: Data
    warm_up: Data | None
    cases: tuple[Case, ...]
    per: str = ""
    units: int = 1
    timeout: float = 60

    @property
    def cold(self) -> bool:
        """Whether every measurement takes a new process."""
        return self.warm_up is None


def tables(*, quick: bool = False) -> tuple[Table, ...]:
    """All tables in the order in which they are measured; ``quick`` makes the sizes tiny."""
    found = (
        *_index(side=16 if quick else 256),
        *_scan(side=16 if quick else 256),
        _scan_1m(side=32 if quick else 1024),
        _many(files=6 if quick else 200),
        _many_small(files=20 if quick else 10_000),
        *_join(files=6 if quick else 1000),
        *_store_and_open(references=1 << (12 if quick else 20)),
        _read(side=16 if quick else 256),
        *_read_large(megabytes=8 if quick else 1024),
        *_read_series(chunks=64 if quick else 2000),
        _read_adapted(megabytes=4 if quick else 256),
        _read_dask(gigabytes=0.2 if quick else 10),
        *_remote(side=16 if quick else 256, files=4 if quick else 200),
        *_read_http(chunks=50 if quick else 2000, files=10 if quick else 365),
    )
    return tuple(_without_requirements(table) for table in found) if quick else found


def _without_requirements(table: Table) -> Table:
    return replace(table, cases=tuple(replace(case, at_most=None, at_most_mb=None) for case in table.cases))


def _chunked(
    side: int, *, edge: int = 8, libver: str | None = None, distinct: bool = True, filtered: bool = True
) -> Data:
    """One dataset of side x side chunks of edge x edge elements."""
    return Data(
        name=f"{side}x{side}-of-{edge}x{edge}-{libver or 'default'}{'' if filtered else '-plain'}.h5",
        make="chunked",
        options={"side": side, "edge": edge, "libver": libver, "distinct": distinct, "filtered": filtered},
    )


def _scan(side: int) -> tuple[Table, ...]:
    ours = (
        Case(label="refindex.scan", work="ours:scan"),
        Case(label="refindex.scan + save, Parquet", work="ours:scan", options={"save": "out.refindex"}, at_most=3),
        Case(label="refindex.scan + save, SQLite", work="ours:scan", options={"save": "out.sqlite"}),
    )
    cases = (
        Case(label="h5py chunk_iter, callback does nothing", work="bare:chunk_iter"),
        Case(label="h5py chunk_iter, callback is list.append", work="bare:chunk_iter", options={"collect": True}),
        *ours,
        Case(label="kerchunk SingleHdf5ToZarr.translate", work="kerchunk_peer:scan", needs=KERCHUNK),
        Case(label="VirtualiZarr HDFParser", work="virtualizarr_peer:scan", needs=VIRTUALIZARR),
        Case(
            label="VirtualiZarr open_virtual_dataset",
            work="virtualizarr_peer:scan",
            options={"dataset": True},
            needs=VIRTUALIZARR,
        ),
    )
    return tuple(
        Table(
            name="scan",
            title=f"scan one file of {side * side:,} chunks, {what}",
            data=_chunked(side, libver=libver),
            warm_up=_chunked(4, libver=libver),
            cases=cases,
            per="us/chunk",
            units=side * side,
        )
        for what, libver in (("version 1 B-tree", None), ("fixed array (libver latest)", "latest"))
    )


TIMES = 10
"""A chunk index alone is read in a millisecond: this often in one measurement."""


def _index(side: int) -> tuple[Table, ...]:
    """The chunk index alone, of an open file: what the direct readers gain over libhdf5's iteration."""
    cases = (
        Case(label="h5py chunk_iter into columns", work="bare:chunk_columns"),
        Case(label="h5py chunk_iter, callback does nothing", work="bare:chunk_columns", options={"collect": False}),
    )
    ours = "refindex, index read directly"
    return tuple(
        Table(
            name="index",
            title=f"read a chunk index of {side * side:,} chunks {TIMES} times, {what}",
            data=_chunked(side, libver=libver, filtered=filtered),
            warm_up=_chunked(4, libver=libver, filtered=filtered),
            cases=(*cases, Case(label=ours, work="ours:index", options={"filtered": filtered}, at_most=at_most)),
            per="us/chunk",
            units=side * side * TIMES,
        )
        for what, libver, filtered, at_most in (
            ("version 1 B-tree, deflate + shuffle", None, True, 1 / 7),
            ("fixed array, no filters", "latest", False, 1 / 50),
            ("fixed array, deflate + shuffle", "latest", True, None),
        )
    )


def _scan_1m(side: int) -> Table:
    return Table(
        name="scan-1m",
        title=f"scan one file of {side * side:,} chunks, version 1 B-tree",
        data=_chunked(side, edge=4, distinct=False),
        warm_up=_chunked(8, edge=4, distinct=False),
        cases=(
            Case(label="h5py chunk_iter, callback does nothing", work="bare:chunk_iter"),
            Case(label="refindex.scan", work="ours:scan", at_most_mb=300),
            Case(
                label="refindex.scan + save, Parquet",
                work="ours:scan",
                options={"save": "out.refindex"},
                at_most=3,
                at_most_mb=300,
            ),
            Case(
                label="refindex.scan + save, SQLite",
                work="ours:scan",
                options={"save": "out.sqlite"},
                at_most_mb=300,
            ),
            Case(label="kerchunk SingleHdf5ToZarr.translate", work="kerchunk_peer:scan", needs=KERCHUNK),
            Case(label="VirtualiZarr HDFParser", work="virtualizarr_peer:scan", needs=VIRTUALIZARR),
        ),
        per="us/chunk",
        units=side * side,
    )


def _daily(files: int) -> Data:
    return Data(name=f"{files}-daily", make="daily", options={"files": files})


def _many(files: int) -> Table:
    return Table(
        name="many",
        title=f"scan {files} daily NetCDF-4 files of 10 variables, 240 chunks each",
        data=_daily(files),
        warm_up=_daily(2),
        cases=(
            Case(label="h5py open + chunk_iter of every dataset", work="bare:chunk_iter_all"),
            Case(label="refindex.scan, workers=1", work="ours:scan", options={"workers": 1}),
            Case(
                label="refindex.scan, workers=1 + save, Parquet",
                work="ours:scan",
                options={"workers": 1, "save": "out.refindex"},
            ),
            Case(label="refindex.scan, workers=2", work="ours:scan", options={"workers": 2}),
            Case(label="kerchunk SingleHdf5ToZarr.translate", work="kerchunk_peer:scan", needs=KERCHUNK),
            Case(label="VirtualiZarr HDFParser", work="virtualizarr_peer:scan", needs=VIRTUALIZARR),
            Case(
                label="VirtualiZarr open_virtual_dataset",
                work="virtualizarr_peer:scan",
                options={"dataset": True},
                needs=VIRTUALIZARR,
            ),
        ),
        per="ms/file",
        units=files,
        timeout=120,
    )


def _many_small(files: int) -> Table:
    two = {"processes": 2}
    return Table(
        name="many-small",
        title=f"scan {files} NetCDF-4 files of 3 variables, 12 chunks each, in 2 processes",
        data=Data(name=f"small-{files}", make="small", options={"files": files}),
        warm_up=Data(name="small-4", make="small", options={"files": 4}),
        cases=(
            Case(label="refindex.scan, workers=2", work="ours:scan", options={"workers": 2}),
            Case(
                label="refindex.scan, workers=2 + join + save, Parquet",
                work="ours:scan",
                options={"workers": 2, "join": True, "save": "out.refindex"},
            ),
            Case(label="kerchunk SingleHdf5ToZarr.translate", work="kerchunk_peer:scan", options=two, needs=KERCHUNK),
            Case(label="VirtualiZarr HDFParser", work="virtualizarr_peer:scan", options=two, needs=VIRTUALIZARR),
            Case(
                label="VirtualiZarr open_virtual_dataset",
                work="virtualizarr_peer:scan",
                options={"dataset": True, **two},
                needs=VIRTUALIZARR,
            ),
        ),
        per="ms/file",
        units=files,
        timeout=400,
    )


def _join(files: int) -> tuple[Table, ...]:
    joined = Table(
        name="join",
        title=f"scan {files} daily NetCDF-4 files of 10 variables, join them along time, save",
        data=_daily(files),
        warm_up=_daily(2),
        cases=(
            Case(label="h5py open + chunk_iter of every dataset", work="bare:chunk_iter_all"),
            Case(
                label="refindex.scan + save, Parquet",
                work="ours:scan",
                options={"join": True, "save": "out.refindex"},
            ),
            Case(
                label="refindex.scan + save, SQLite",
                work="ours:scan",
                options={"join": True, "save": "out.sqlite"},
            ),
            Case(label="refindex, the join alone", work="joins:join_only"),
            Case(label="kerchunk MultiZarrToZarr, JSON", work="kerchunk_peer:join", needs=KERCHUNK),
            Case(
                label="VirtualiZarr open_virtual_mfdataset, JSON",
                work="virtualizarr_peer:join_by_coordinates",
                needs=VIRTUALIZARR,
            ),
            Case(label="VirtualiZarr + xr.concat unseen, JSON", work="virtualizarr_peer:join", needs=VIRTUALIZARR),
        ),
        per="ms/file",
        units=files,
        timeout=400,
    )
    grown = Table(
        name="append",
        title=f"append one daily file to {files - 1}, in a new process",
        data=_daily(files),
        warm_up=None,
        cases=(
            Case(label="refindex.append, Parquet", work="joins:append", options={"save": "a.refindex"}),
            Case(label="refindex.append, SQLite", work="joins:append", options={"save": "a.sqlite"}),
        ),
    )
    opened = Table(
        name="open-joined",
        title=f"xr.open_dataset of {files} joined files, and one chunk, in a new process",
        data=_daily(files),
        warm_up=None,
        cases=(
            Case(label="refindex, Parquet", work="joins:open_dataset", options={"save": "a.refindex"}),
            Case(label="refindex, SQLite", work="joins:open_dataset", options={"save": "a.sqlite"}),
        ),
    )
    return joined, grown, opened


def _archives(references: int) -> Data:
    return Data(name=f"{references}-references", make="archives", options={"references": references})


def _store_and_open(references: int) -> tuple[Table, ...]:
    data = _archives(references)
    store = Table(
        name="store",
        title=f"write {references:,} references that are in memory",
        data=data,
        warm_up=_archives(256),
        cases=(
            Case(label="pyarrow.parquet.write_table of the columns", work="bare_storage:write_columns"),
            Case(label="Manifest.save, Parquet", work="ours:save", options={"save": "out.refindex"}),
            Case(label="Manifest.save, SQLite", work="ours:save", options={"save": "out.sqlite"}),
            Case(label="kerchunk, JSON (ujson)", work="kerchunk_peer:save_json", needs=KERCHUNK),
            Case(label="kerchunk, Parquet", work="kerchunk_peer:save_parquet", needs=KERCHUNK),
        ),
        per="us/reference",
        units=references,
    )
    opened = tuple(
        Table(
            name="open",
            title=f"open {references:,} references in {what} and look one up, in a new process",
            data=data,
            warm_up=None,
            cases=cases,
        )
        for what, cases in (
            (
                "Parquet",
                (
                    Case(label="pyarrow: read one row group", work="bare_storage:find_parquet"),
                    Case(label="refindex.open + find", work="ours:find", options={"name": "archive.refindex"}),
                    Case(
                        label="kerchunk Parquet references (fsspec)",
                        work="kerchunk_peer:find",
                        needs=KERCHUNK,
                    ),
                ),
            ),
            (
                "SQLite",
                (
                    Case(label="sqlite3: select one row", work="bare_storage:find_sqlite"),
                    Case(label="refindex.open + find", work="ours:find", options={"name": "archive.sqlite"}),
                ),
            ),
        )
    )
    return (store, *opened)


def _read(side: int) -> Table:
    return Table(
        name="read",
        title=f"read {side * side:,} chunks of 8 x 8 float32 whole",
        data=_chunked(side),
        warm_up=_chunked(4),
        cases=(
            Case(label="h5py", work="bare:read"),
            Case(label="zarr over refindex, Parquet", work="ours:read", options={"save": "archive.refindex"}),
            Case(label="zarr over refindex, SQLite", work="ours:read", options={"save": "archive.sqlite"}),
            Case(label="refindex, lazy array, Parquet", work="ours:read", options={"lazy": True}),
            Case(label="zarr over kerchunk references (fsspec)", work="kerchunk_peer:read", needs=KERCHUNK),
            Case(label="zarr over VirtualiZarr ManifestStore", work="virtualizarr_peer:read", needs=VIRTUALIZARR),
        ),
        per="us/chunk",
        units=side * side,
        timeout=120,
    )


def _peers(work: str = "read") -> tuple[Case, ...]:
    return (
        Case(label="zarr over kerchunk references (fsspec)", work=f"kerchunk_peer:{work}", needs=KERCHUNK),
        Case(label="zarr over VirtualiZarr ManifestStore", work=f"virtualizarr_peer:{work}", needs=VIRTUALIZARR),
        *([Case(label="zarr over icechunk", work="icechunk_peer:read", needs=ICECHUNK)] if work == "read" else []),
    )


def _read_large(megabytes: int) -> tuple[Table, ...]:
    deflated = Data(name=f"deflated-{megabytes}mb.h5", make="cube", options={"megabytes": megabytes, "deflated": True})
    flat = Data(name=f"flat-{megabytes}mb.h5", make="cube", options={"megabytes": 2 * megabytes, "deflated": False})
    tiny = Data(name="deflated-tiny.h5", make="cube", options={"megabytes": 1, "deflated": True})
    whole = (
        Table(
            name="read-deflate",
            title=f"read {megabytes} MB of float32, deflate + shuffle, whole",
            data=deflated,
            warm_up=tiny,
            cases=(
                Case(label="h5py", work="bare:read"),
                Case(label="netCDF4", work="bare:read_netcdf4"),
                Case(label="zarr over refindex", work="ours:read", at_most=1 / 3),
                Case(label="refindex, lazy array", work="ours:read", options={"lazy": True}, at_most=1 / 3),
                *_peers(),
            ),
        ),
        Table(
            name="read-flat",
            title=f"read {2 * megabytes} MB of float32, contiguous, whole",
            data=flat,
            warm_up=tiny,
            cases=(
                Case(label="h5py", work="bare:read"),
                Case(label="netCDF4", work="bare:read_netcdf4"),
                Case(label="zarr over refindex", work="ours:read", at_most=1 / 0.9),
                Case(label="refindex, lazy array", work="ours:read", options={"lazy": True}, at_most=1 / 0.9),
                *_peers(),
            ),
        ),
    )
    parts = tuple(
        Table(
            name="read-parts",
            title=f"read {count} {what} of {2 * megabytes} MB, contiguous",
            data=flat,
            warm_up=tiny,
            cases=(
                Case(label="h5py", work="bare:read_parts", options={"kind": kind, "count": count}),
                Case(label="zarr over refindex", work="ours:read_parts", options={"kind": kind, "count": count}),
                Case(
                    label="refindex, lazy array",
                    work="ours:read_parts",
                    options={"kind": kind, "count": count, "lazy": True},
                    at_most=1,
                ),
            ),
            per="us each",
            units=count,
        )
        for kind, what, count in (
            ("maps", "maps, one selection each,", 50),
            ("series", "time series, one selection each,", 50),
            ("points", "points, one selection each,", 200),
            ("together", "points, one selection,", 200),
        )
    )
    return (*whole, *parts)


def _read_series(chunks: int) -> tuple[Table, ...]:
    return tuple(
        Table(
            name="read-series",
            title=f"read a time series through {chunks:,} chunks of 1 x 64 x 64 float32, {what}",
            data=Data(
                name=f"stacked-{chunks}{'' if filtered else '-plain'}.h5",
                make="stacked",
                options={"chunks": chunks, "filtered": filtered},
            ),
            warm_up=Data(
                name=f"stacked-8{'' if filtered else '-plain'}.h5",
                make="stacked",
                options={"chunks": 8, "filtered": filtered},
            ),
            cases=(
                Case(label="h5py", work="bare:read_parts", options={"kind": "series", "count": 1}),
                Case(label="zarr over refindex", work="ours:read_parts", options={"kind": "series", "count": 1}),
                Case(
                    label="refindex, lazy array",
                    work="ours:read_parts",
                    options={"kind": "series", "count": 1, "lazy": True},
                    at_most=1,
                ),
            ),
            per="us/chunk",
            units=chunks,
        )
        for filtered, what in ((True, "deflate + shuffle"), (False, "not compressed"))
    )


def _read_adapted(megabytes: int) -> Table:
    data = Data(name=f"adapted-{megabytes}mb", make="adapted", options={"megabytes": megabytes})
    kinds = {"swapped": "other byte order", "cropped": "cropped", "packed": "unpacked", "other": "another compression"}
    return Table(
        name="read-adapted",
        title=f"read {megabytes} MB of float32, deflate + shuffle, whole, from native and from adapted chunks",
        data=data,
        warm_up=Data(name="adapted-tiny", make="adapted", options={"megabytes": 1}),
        cases=(
            Case(label="native", work="ours:read_adapted", options={"kind": "native"}),
            *(
                Case(label=label, work="ours:read_adapted", options={"kind": kind}, at_most=2)
                for kind, label in kinds.items()
            ),
        ),
    )


def _read_dask(gigabytes: float) -> Table:
    return Table(
        name="read-dask",
        title=f"sum {gigabytes:g} GB through dask in blocks of 64 MB",
        data=Data(name="repeated", make="cube", options={"megabytes": 64, "deflated": True}),
        warm_up=Data(name="deflated-tiny.h5", make="cube", options={"megabytes": 1, "deflated": True}),
        cases=(
            Case(label="dask over refindex", work="ours:read_dask", options={"gigabytes": gigabytes}, at_most_mb=1000),
        ),
        timeout=120,
    )


def _read_http(chunks: int, files: int) -> tuple[Table, ...]:
    return tuple(
        Table(
            name="read-http",
            title=f"over HTTP with 20 ms a request: {title}",
            data=data,
            warm_up=None,
            cases=(
                Case(label="aiohttp: the same ranges, not decoded", work="over_http:bare"),
                Case(label="zarr over refindex", work="over_http:read"),
                Case(label="refindex, lazy array", work="over_http:read", options={"lazy": True}),
            ),
        )
        for title, data in (
            (
                f"{chunks:,} chunks of one selection",
                Data(name=f"http-{chunks}", make="remote", options={"chunks": chunks}),
            ),
            (
                f"a time series at a point through {files} files",
                Data(name=f"http-{files}-files", make="remote", options={"chunks": files, "files": files}),
            ),
        )
    )


def _remote(side: int, files: int) -> tuple[Table, ...]:
    peers = (
        Case(label="kerchunk SingleHdf5ToZarr.translate", work="remote:kerchunk", needs=KERCHUNK),
        Case(label="VirtualiZarr HDFParser (obstore)", work="remote:virtualizarr", needs=VIRTUALIZARR),
    )
    baseline = Case(label="h5py over fsspec: attributes and chunk tables", work="remote:h5py_fsspec")
    ours = Case(label="refindex.scan", work="remote:scan", at_most=1 / 5)
    one_by_one = Case(label="refindex.scan, one range a request", work="remote:scan", options={"several": False})
    index = tuple(
        Table(
            name="remote",
            title=f"over HTTP with 20 ms a request: scan one file of {side * side:,} chunks, {what}",
            data=_chunked(side, edge=30, libver=libver, distinct=False),
            warm_up=_chunked(4, libver=libver),
            cases=(baseline, replace(ours, at_most=1 / 2), *peers) if libver else (baseline, ours, one_by_one, *peers),
            per="us/chunk",
            units=side * side,
        )
        for what, libver in (("version 1 B-tree", None), ("fixed array (libver latest)", "latest"))
    )
    many = Table(
        name="remote",
        title=f"over HTTP with 20 ms a request: scan {files} daily NetCDF-4 files, one group each",
        data=_daily(files),
        warm_up=_daily(2),
        cases=(replace(baseline, label=f"{baseline.label}, file by file"), replace(ours, at_most=1 / 4), *peers),
        per="ms/file",
        units=files,
        timeout=120,
    )
    return (*index, many)
