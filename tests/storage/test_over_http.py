"""A long log behind a plain HTTP server, which lists nothing."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from manifests import make_manifest
from test_versions import append, read_state

import refindex
from refindex import ChunkTable, storage
from refindex.access import urls

NEWEST = 23


class Files(BaseHTTPRequestHandler):
    """Files with ranges."""

    folder: Path
    seen: list[str]
    broken: set[str]

    def do_GET(self) -> None:
        path = self.folder / self.path.lstrip("/")
        self.seen.append(path.name)
        if path.name in self.broken:
            self.answer(500, b"")
        elif not path.is_file():
            self.answer(404, b"")
        elif wanted := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self.answer(206, path.read_bytes()[int(wanted[1]) : int(wanted[2]) + 1])
        else:
            self.answer(200, path.read_bytes())

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(params=["whole", "vacuumed"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Path, type[Files]]]:
    out = tmp_path / "a.refindex"
    make_manifest({"a": ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[1])}, sources=1).save(out)
    for _ in range(NEWEST):
        append(urls.absolute(out))
    if request.param == "vacuumed":
        storage.vacuum(urls.absolute(out), keep_versions=9, grace=storage.GRACE * 0)
    handler = type("Handler", (Files,), {"folder": tmp_path, "seen": [], "broken": set()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/a.refindex", out, handler
        running.shutdown()
        thread.join()


def test_versions_over_http(server: tuple[str, Path, type[Files]]) -> None:
    url, out, handler = server
    local = urls.absolute(out)
    handler.seen.clear()
    reader = storage.open_reader(url)
    assert reader.version == NEWEST
    reader.close()
    # The checkpoint of version 20, entries 20 to 23, and the one that is not there; some more to see what is there.
    assert len(handler.seen) <= 10
    assert not {f"{n:020d}.json" for n in range(1, 20)} & set(handler.seen)
    commits = storage.history(local)
    assert storage.history(url) == commits
    assert storage.newest_version(url) == NEWEST
    for commit in commits[::4]:
        # Sources that lie beside the archive are not there over HTTP, so the states are the same.
        assert read_state(url, commit.version) == read_state(local, commit.version)
        moment = datetime.fromtimestamp(commit.timestamp / 1000, UTC)
        opened = storage.open_reader(url, as_of=moment)
        assert opened.version == commit.version
        opened.close()
    oldest = commits[-1].version
    if oldest:
        with pytest.raises(refindex.NotFoundError, match=f"versions are {oldest} to {NEWEST}: older ones expired"):
            storage.open_reader(url, version=oldest - 1)
    with pytest.raises(refindex.NotFoundError, match="no version 99"):
        storage.open_reader(url, version=99)


def test_a_server_that_fails_is_not_one_without_the_file(server: tuple[str, Path, type[Files]]) -> None:
    url, _, handler = server
    # The newest checkpoint comes with ``_last_checkpoint``; for a version before it, others are looked for.
    for name, version in (
        ("_last_checkpoint", None),
        (f"{NEWEST:020d}.json", None),
        (f"{19:020d}.checkpoint.parquet", 19),
    ):
        handler.broken = {name}
        with pytest.raises(refindex.SourceError):
            storage.open_reader(url, version=version)
