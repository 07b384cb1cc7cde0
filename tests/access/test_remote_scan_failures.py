"""Servers that fail, lie, or change files: a scan is right, or names the file that failed; never a wrong reference."""

from __future__ import annotations

import asyncio
import gc
import gzip
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from aiohttp import web
from fsspec.asyn import get_loop
from serving import RangeServer

import refindex
from refindex import Manifest
from refindex.access import fetching, http_ranges, retry
from refindex.access.transport import RemoteStats
from refindex.scan.many import scan_many
from refindex.scan.registry import scan_source


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(fetching, "PATIENCE", 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small file, and one that is not fetched whole: metadata here and there in 20 MB."""
    folder = tmp_path_factory.mktemp("www")
    random = np.random.default_rng(0)
    with h5py.File(folder / "large.h5", "w") as file:
        for number in range(20):
            shape, chunks = (20, 50_000), (1, 5_000)
            data = file.create_dataset(f"d{number}", shape, "u1", chunks=chunks, compression=1)
            data[:] = random.integers(0, 255, shape, dtype="u1")
            data.attrs["number"] = number
    with h5py.File(folder / "small.h5", "w") as file:
        file["d"] = np.arange(500_000)
    assert (folder / "large.h5").stat().st_size > 2 * 8 << 20
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[RangeServer]:
    with RangeServer(folder) as running:
        yield running


def expected(server: RangeServer, name: str) -> Manifest:
    return scan_source(f"file://{server.folder}/{name}")


def same(found: Manifest, local: Manifest) -> None:
    assert {p: n.document for p, n in found.nodes.items()} == {p: n.document for p, n in local.nodes.items()}
    assert all(a.chunks.same_references(found.arrays[p].chunks) for p, a in local.arrays.items())


def abort(server: RangeServer, request: web.Request, number: int) -> web.Response:
    """Close the connection without an answer."""
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def cut(server: RangeServer, request: web.Request, number: int) -> web.StreamResponse:
    """Promise more bytes than are sent, and close the connection."""
    whole = server.file(request)
    response = web.StreamResponse(status=whole.status, headers=dict(whole.headers))
    await response.prepare(request)
    await response.write(whole.body[: len(whole.body) // 2])
    assert request.transport is not None
    request.transport.close()
    return response


def shorten(server: RangeServer, request: web.Request, number: int) -> web.StreamResponse:
    """The range that was asked for, by its headers, with half of the bytes."""
    whole = server.file(request)
    whole.body = whole.body[: len(whole.body) // 2]
    return whole


def refuse(server: RangeServer, request: web.Request, number: int) -> web.StreamResponse:
    return web.Response(status=503)


async def stall(server: RangeServer, request: web.Request, number: int) -> web.StreamResponse | None:
    await asyncio.sleep(30)
    return None


TROUBLE = [refuse, abort, cut, shorten, stall]


@pytest.mark.parametrize("kind", TROUBLE)
@pytest.mark.parametrize("several", [True, False])
def test_what_fails_now_and_then_is_asked_for_again(server: RangeServer, kind: Any, several: bool) -> None:
    server.several = several
    server.trouble = lambda s, request, number: kind(s, request, number) if number % 4 == 3 else None
    for name in ("large.h5", "small.h5"):
        stats = RemoteStats()
        same(scan_source(f"{server.url}/{name}", stats=stats), expected(server, name))
    assert len(server.requests) > 4


@pytest.mark.parametrize("kind", TROUBLE[:-1])
@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_what_goes_on_failing_fails_the_file(server: RangeServer, kind: Any, after: int) -> None:
    """Also where libhdf5 takes the failure for a damaged object, and goes on with the others."""
    server.trouble = lambda s, request, number: kind(s, request, number) if number >= after else None
    with pytest.raises(refindex.SourceError, match=r"http://127.0.0.1:\d+/large.h5: .*reading") as caught:
        scan_source(f"{server.url}/large.h5")
    assert "\n" not in str(caught.value)
    assert "bytes" in str(caught.value) or "ranges from byte" in str(caught.value)


def test_failing_files_among_many(server: RangeServer) -> None:
    (server.folder / "other.h5").write_bytes((server.folder / "small.h5").read_bytes())
    server.trouble = lambda s, request, number: refuse(s, request, number) if "small" in request.path else None
    names = [f"{server.url}/{name}" for name in ("small.h5", "other.h5", "gone.h5", "large.h5")]
    for workers in (1, 2):
        found = scan_many(names, workers=workers)
        assert list(found.files) == [names[1], names[3]]
        assert [entry.source for entry in found.failures] == [names[0], names[2]]
        assert "503" in found.failures[0].reason
        assert "404" in found.failures[1].reason


def test_a_server_without_ranges(server: RangeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ranges = False
    stats = RemoteStats()
    same(scan_source(f"{server.url}/large.h5", stats=stats), expected(server, "large.h5"))
    assert stats.requests == 1
    monkeypatch.setattr(http_ranges, "WITHOUT_RANGES", 1 << 20)
    with pytest.raises(refindex.SourceError, match=r"large.h5: the server knows no ranges .* copy the file"):
        scan_source(f"{server.url}/large.h5")


def test_a_server_that_forgets_ranges_in_the_middle(server: RangeServer) -> None:
    def forget(s: RangeServer, request: web.Request, number: int) -> None:
        s.ranges = number < 1

    server.trouble = forget
    same(scan_source(f"{server.url}/large.h5"), expected(server, "large.h5"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: web.Response(status=403), r"permission denied: the server answers 403 Forbidden; pass credentials"),
        (lambda: web.Response(status=401), r"permission denied: the server answers 401"),
        (lambda: web.Response(status=404), r"no such file \(the server answers 404"),
        (lambda: web.Response(status=204), r"answers status 204"),
        (lambda: web.Response(status=302, headers={"Location": "/large.h5"}), r"redirects \d+ times without an end"),
        (lambda: web.Response(body=b"x" * 100, headers={"Content-Encoding": "br"}), "compressed|Can not decode"),
        (
            lambda: web.Response(body=gzip.compress(b"x" * 100), headers={"Content-Encoding": "gzip"}),
            r"sends the file compressed \(gzip\)",
        ),
        (lambda: web.Response(status=206, body=b"x", headers={"Content-Range": "bytes 7-7/9"}), "'bytes 7-7/9'"),
        (lambda: web.Response(status=206, body=b"x"), "with the range None"),
        (lambda: web.Response(status=416), "ends before byte 0"),
    ],
)
def test_answers_that_are_none(server: RangeServer, answer: Any, message: str) -> None:
    server.trouble = lambda s, request, number: answer()
    stats = RemoteStats()
    with pytest.raises(refindex.RefindexError, match=rf"http://127.0.0.1:\d+/large.h5: .*{message}") as caught:
        scan_source(f"{server.url}/large.h5", stats=stats)
    assert "\n" not in str(caught.value)
    assert stats.requests <= 4


def test_no_trusted_connection(server: RangeServer) -> None:
    with pytest.raises(refindex.SourceError, match=r"https://127.0.0.1:\d+/large.h5: .*(TLS|SSL)") as caught:
        scan_source(f"{server.url.replace('http', 'https')}/large.h5")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tells", [("ETag",), ("Last-Modified",), ()])
@pytest.mark.parametrize("at", [1, 2, 4])
def test_a_file_that_changes_meanwhile(server: RangeServer, tells: tuple[str, ...], at: int, tmp_path: Path) -> None:
    """Every answer says which version it is of; without that, its size."""
    data = bytearray((server.folder / "large.h5").read_bytes())
    server.folder = tmp_path
    (tmp_path / "x.h5").write_bytes(data)
    os.utime(tmp_path / "x.h5", (1e9, 1e9))
    server.tells = tells

    def change(s: RangeServer, request: web.Request, number: int) -> None:
        if number == at:
            (tmp_path / "x.h5").write_bytes(data + bytes(0 if tells else 1))

    server.trouble = change
    with pytest.raises(refindex.SourceError, match=r"x.h5 changed while it was scanned: "):
        scan_source(f"{server.url}/x.h5")


def test_a_file_that_becomes_shorter(server: RangeServer, tmp_path: Path) -> None:
    data = (server.folder / "large.h5").read_bytes()
    server.folder, server.tells = tmp_path, ()
    (tmp_path / "x.h5").write_bytes(data)
    server.trouble = lambda s, request, number: (
        (tmp_path / "x.h5").write_bytes(data[:3_000_000]) and None if number else None
    )
    with pytest.raises(refindex.SourceError, match=r"changed while it was scanned: size was \d+, is 3000000"):
        scan_source(f"{server.url}/x.h5")


@pytest.mark.parametrize("broken", ["no end", "other range", "no sizes", "not several", "whole"])
def test_several_ranges_that_do_not_come_as_asked(server: RangeServer, broken: str) -> None:
    """They are asked for one by one then."""

    def spoil(s: RangeServer, request: web.Request, number: int) -> web.StreamResponse | None:
        if "," not in request.headers.get("Range", ""):
            return None
        answer = s.file(request)
        assert isinstance(answer, web.Response)
        assert isinstance(answer.body, bytes)
        match broken:
            case "no end":
                answer.body = answer.body[:-40]
            case "other range":
                answer.body = answer.body.replace(b"Content-Range: bytes ", b"Content-Range: bytes 9")
            case "no sizes":
                answer.body = answer.body.replace(b"/%d\r\n" % (s.folder / "large.h5").stat().st_size, b"/*\r\n")
            case "not several":
                return web.Response(status=206, body=answer.body)
            case "whole":
                s.ranges = False
                answer = s.file(request)
                s.ranges = True
        return answer

    server.trouble = spoil
    stats = RemoteStats()
    same(scan_source(f"{server.url}/large.h5", stats=stats), expected(server, "large.h5"))
    assert sum("," in (asked or "") for _, asked in server.requests) == 1
    assert stats.requests > 15


def test_several_ranges_cut_the_connection(server: RangeServer) -> None:
    """As servers do for headers that are too long for them."""
    server.trouble = lambda s, request, number: (
        abort(s, request, number) if "," in request.headers.get("Range", "") else None
    )
    same(scan_source(f"{server.url}/large.h5"), expected(server, "large.h5"))


def test_parts_in_another_order_and_joined(server: RangeServer) -> None:
    def reorder(s: RangeServer, request: web.Request, number: int) -> web.StreamResponse | None:
        asked = request.headers.get("Range", "")
        if "," not in asked:
            return None
        spans = sorted(tuple(map(int, span.split("-"))) for span in asked.removeprefix("bytes=").split(","))
        changed = [(spans[0][0], spans[1][1]), *spans[:1:-1]]
        ranges = ", ".join(f"{first}-{last}" for first, last in changed)
        return s.file(request.clone(headers={**request.headers, "Range": f"bytes={ranges}"}))

    server.trouble = reorder
    stats = RemoteStats()
    same(scan_source(f"{server.url}/large.h5", stats=stats), expected(server, "large.h5"))
    assert any("," in (asked or "") for _, asked in server.requests)


@pytest.mark.timeout(60)
def test_garbage_collection_does_not_lock_up(server: RangeServer) -> None:
    """One in the thread of the event loop, while libhdf5 waits for bytes, would wait for the lock of h5py."""

    def garbage() -> list[Any]:
        cycle: list[Any] = [h5py.h5s.create_simple((2,))]
        cycle.append(cycle)
        return cycle

    kept = [garbage() for _ in range(100)]

    def collect(s: RangeServer, request: web.Request, number: int) -> None:
        kept.pop()
        # What the collector does by itself whenever it likes, unless it is told not to.
        get_loop().call_soon_threadsafe(lambda: gc.isenabled() and gc.collect())

    server.trouble = collect
    same(scan_source(f"{server.url}/large.h5"), expected(server, "large.h5"))
    assert len(server.requests) > 4
    assert gc.isenabled()
