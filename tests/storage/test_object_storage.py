"""Commits to object storage: S3's conditional put (moto), and answers that get lost (in memory)."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from manifests import make_manifest
from test_versions import array_node, make_source, read_state

import refindex
from refindex import ChunkTable, storage
from refindex.model.change import Change

moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
pytest.importorskip("s3fs", reason="s3fs is not installed")

WRITERS, APPENDS = 3, 3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Options for a server of this machine that has a bucket named ``bucket``."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    options = {"endpoint_url": f"http://{host}:{port}"}
    fs = fsspec.filesystem("s3", **options)
    if not fs.exists("bucket"):  # moto's buckets outlive its servers
        fs.mkdir("bucket")
    try:
        yield options
    finally:
        server.stop()
        type(fs).clear_instance_cache()


def append(url: str, name: str, options: dict[str, Any]) -> None:
    while True:
        reader = storage.open_reader(url, storage_options=options)
        n = len(reader.sources)
        table = ChunkTable.from_columns(chunk=[n], source=n, offset=[n], length=[10])
        nodes = dict(reader.nodes) | {"a": array_node("a", edition=n)}
        change = Change(nodes=nodes, sources=(make_source(n),), chunks={"a": table})
        base = reader.version
        reader.close()
        try:
            storage.commit(url, change, base=base, operation="append", details={"name": name}, storage_options=options)
        except refindex.ConflictError:
            continue
        return


def make(url: str, options: dict[str, Any] | None = None) -> None:
    table = ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[10])
    manifest = make_manifest({"a": table}, sources=1)
    storage.commit(url, manifest, base=None, operation="write", details={}, storage_options=options)


@pytest.mark.timeout(120)
def test_writers_on_s3(s3: dict[str, Any]) -> None:
    url = "s3://bucket/archives/a.refindex"
    make(url, s3)
    failures: list[BaseException] = []

    def write(name: str) -> None:
        try:
            for number in range(APPENDS):
                append(url, f"{name}-{number}", s3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(f"w{i}",)) for i in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    total = WRITERS * APPENDS
    commits = storage.history(url, s3)
    assert [c.version for c in commits] == list(range(total, -1, -1))
    assert len({c.details["name"] for c in commits[:-1]}) == total
    for version in (0, 5, total):
        state = read_state(url, version, storage_options=s3)
        assert state.chunks["a"] == {i: (i, i, 10, 0, b"") for i in range(version + 1)}
    assert storage.newest_version(url, s3) == total
    assert storage.vacuum(url, grace=storage.GRACE * 0, storage_options=s3) == []
    storage.vacuum(url, keep_versions=2, grace=storage.GRACE * 0, storage_options=s3)
    assert [c.version for c in storage.history(url, s3)] == [total, total - 1]
    assert len(read_state(url, storage_options=s3).sources) == total + 1
    assert storage.restore(url, total - 1, storage_options=s3) == total + 1
    assert len(read_state(url, storage_options=s3).sources) == total
    with pytest.raises(refindex.ExistsError):
        make(url, s3)


def test_s3fs_creates_exclusively(s3: dict[str, Any]) -> None:
    """What commits rely on: a put with the condition If-None-Match."""
    fs = fsspec.filesystem("s3", **s3)
    fs.pipe_file("bucket/x", b"one", mode="create")
    with pytest.raises(FileExistsError):
        fs.pipe_file("bucket/x", b"two", mode="create")
    assert fs.cat_file("bucket/x") == b"one"


@pytest.fixture
def url() -> Iterator[str]:
    name = uuid.uuid4().hex
    yield f"memory://{name}/a.refindex"
    fsspec.filesystem("memory").rm(f"/{name}", recursive=True)


@pytest.mark.parametrize("error", [OSError("connection reset"), FileExistsError("repeated below us: 412")])
def test_a_commit_whose_answer_is_lost(url: str, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    make(url)
    real = MemoryFileSystem.pipe_file

    def lossy(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        real(self, path, value, mode=mode, **options)
        if mode == "create":
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", lossy)
        append(url, "lost", {})
    assert len(read_state(url).sources) == 2
    assert storage.vacuum(url, grace=storage.GRACE * 0) == []


def test_a_commit_that_may_yet_arrive(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that it names stay: the put is carried out after the writer has given up."""
    make(url)
    real = MemoryFileSystem.pipe_file
    late: list[tuple[Any, ...]] = []

    def slow(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create":
            late.append((self, path, value))
            raise OSError("timed out")
        real(self, path, value, mode=mode, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "pipe_file", slow)
        with pytest.raises(refindex.SourceError, match="version 1 failed, and whether it was carried out is not known"):
            append(url, "late", {})
    assert len(read_state(url).sources) == 1
    real(*late[0], mode="create")
    assert len(read_state(url).sources) == 2


def test_the_files_of_those_who_come_second_go(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make(url)
    real = MemoryFileSystem.pipe_file
    once: list[int] = []

    def overtaken(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create" and not once:
            once.append(1)
            append(url, "other", {})
        real(self, path, value, mode=mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", overtaken)
    append(url, "mine", {})
    assert [c.details["name"] for c in storage.history(url)[:-1]] == ["mine", "other"]
    assert storage.vacuum(url, grace=storage.GRACE * 0) == []


def test_a_base_that_expired_meanwhile(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others commit, and a vacuum removes the entry that ours would have collided with: it is no new version 1."""
    make(url)
    real = MemoryFileSystem.pipe_file
    once: list[int] = []

    def overtaken(self: Any, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        if mode == "create" and not once:
            once.append(1)
            for _ in range(3):
                append(url, "other", {})
            storage.vacuum(url, keep_versions=1)
        real(self, path, value, mode=mode, **options)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", overtaken)
    append(url, "mine", {})
    assert [c.version for c in storage.history(url)] == [4, 3]
    assert len(read_state(url).sources) == 5
    assert storage.vacuum(url, grace=storage.GRACE * 0) == []
