"""Many clients, slow clients, and clients that go away: what serving takes stays bounded."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from asking import ask

import refindex
from refindex.serve.http.app import Limits
from refindex.serve.http.server import Server, open_server
from refindex.serve.plain import PlainHierarchy
from refindex.serve.resolver import Resolver

CHUNKS = 24
CHUNK_NBYTES = 4 << 20


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 chunks of 4 MiB that take little to store, each full of its own number."""
    path = tmp_path_factory.mktemp("large") / "large.h5"
    with h5py.File(path, "w") as file:
        data = file.create_dataset("d", (CHUNKS, 1024, 1024), "i4", chunks=(1, 1024, 1024), compression="gzip")
        for number in range(CHUNKS):
            data[number] = number
    return path


@pytest.fixture
def archive(large: Path) -> Iterator[refindex.Archive]:
    with refindex.open(large) as opened:
        yield opened


class Watched:
    """Reads of plain chunks: how many, how many at once, and a gate before them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = self.most = self._now = 0
        self.open = threading.Event()
        self.open.set()
        lock, read = threading.Lock(), PlainHierarchy._read

        def watched(hierarchy: PlainHierarchy, *arguments: Any) -> bytes | None:
            with lock:
                self.reads += 1
                self._now += 1
                self.most = max(self.most, self._now)
            try:
                assert self.open.wait(20)
                time.sleep(0.01)
                return read(hierarchy, *arguments)
            finally:
                with lock:
                    self._now -= 1

        monkeypatch.setattr(PlainHierarchy, "_read", watched)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(monkeypatch)


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def request(running: Server, path: str) -> socket.socket:
    """A connection that has asked and does not read."""
    name, port = running.url.removeprefix("http://").rstrip("/").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(30)
    connection.connect((name, int(port)))
    connection.sendall(f"GET /{path} HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
    return connection


def serve(archive: refindex.Archive, **limits: Any) -> Server:
    return open_server(archive.store, limits=Limits(**limits))


def test_reads_at_once_are_bounded(archive: refindex.Archive, watched: Watched) -> None:
    with serve(archive, concurrency=3) as running, ThreadPoolExecutor(24) as clients:
        answers = list(clients.map(lambda n: ask(running.url, f"plain/d/c/{n}/0/0"), range(CHUNKS)))
    for number, answer in enumerate(answers):
        assert answer.status == 200
        assert (np.frombuffer(answer.body, "<i4") == number).all()
    assert watched.most == 3
    assert watched.reads == CHUNKS


def test_a_chunk_is_decoded_once_for_all_who_ask(archive: refindex.Archive, watched: Watched) -> None:
    watched.open.clear()
    with serve(archive) as running, ThreadPoolExecutor(12) as clients:
        answers = [
            clients.submit(ask, running.url, "plain/d/c/5/0/0", Range=f"bytes={4 * n}-{4 * n + 3}") for n in range(12)
        ]
        until(lambda: watched.reads > 0)
        time.sleep(0.1)
        watched.open.set()
        assert {answer.result().body for answer in answers} == {b"\5\0\0\0"}
        assert ask(running.url, "plain/d/c/5/0/0", method="HEAD").status == 200
        assert len(ask(running.url, "plain/d/c/5/0/0").body) == CHUNK_NBYTES
        assert watched.reads == 1
        # What does not fit into the cache is decoded again.
    with serve(archive, cache_nbytes=CHUNK_NBYTES) as running:
        for number in (1, 2, 1):
            assert ask(running.url, f"plain/d/c/{number}/0/0", Range="bytes=0-3").body == bytes((number, 0, 0, 0))
        assert watched.reads == 4


def test_adapted_chunks_are_decoded_once_and_others_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the declared view: a chunk without the filter that the others have is encoded again as declared."""
    with h5py.File(tmp_path / "mixed.h5", "w") as file:
        data = file.create_dataset("d", (2, 512, 512), "i4", chunks=(1, 512, 512), compression="gzip")
        data[0] = 5
        data.id.write_direct_chunk((1, 0, 0), np.full((512, 512), 7, "<i4").tobytes(), filter_mask=1)
    adapted = []
    adapt = Resolver._adapt

    def counting(resolver: Resolver, request: Any, stored: bytes) -> bytes:
        adapted.append(request.chunk)
        return adapt(resolver, request, stored)

    with refindex.open(tmp_path / "mixed.h5") as archive:
        expected = [archive.store.keys.read(f"d/c/{number}/0/0") or b"" for number in (0, 1)]
        assert (np.frombuffer(zlib.decompress(expected[1]), "<i4") == 7).all()
        monkeypatch.setattr(Resolver, "_adapt", counting)
        with serve(archive) as running:
            for number in (0, 1):
                path, whole = f"d/c/{number}/0/0", expected[number]
                assert ask(running.url, path, method="HEAD").headers["content-length"] == str(len(whole))
                assert ask(running.url, path, Range="bytes=5-20").body == whole[5:21]
                assert ask(running.url, path, Range="bytes=-9").body == whole[-9:]
                assert ask(running.url, path).body == whole
    assert adapted == [1]


def test_whoever_has_gone_is_not_waited_for(archive: refindex.Archive, watched: Watched) -> None:
    """Of clients that close their connections while they wait, nothing is read that has not begun."""
    watched.open.clear()
    with serve(archive, concurrency=2) as running:
        gone = [request(running, f"plain/d/c/{number}/0/0") for number in range(12)]
        until(lambda: watched.reads == 2)
        for connection in gone:
            connection.close()
        time.sleep(0.2)
        watched.open.set()
        assert ask(running.url, "plain/d/c/20/0/0").status == 200
        assert watched.reads == 3
        assert watched.most == 2


def test_one_of_several_who_has_gone(archive: refindex.Archive, watched: Watched) -> None:
    watched.open.clear()
    with serve(archive) as running, ThreadPoolExecutor(1) as clients:
        gone = request(running, "plain/d/c/3/0/0")
        until(lambda: watched.reads == 1)
        stays = clients.submit(ask, running.url, "plain/d/c/3/0/0")
        time.sleep(0.1)
        gone.close()
        time.sleep(0.1)
        watched.open.set()
        assert (np.frombuffer(stays.result().body, "<i4") == 3).all()
        assert watched.reads == 1


def test_a_failure_is_told_to_all_and_not_kept(
    archive: refindex.Archive, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = PlainHierarchy._read

    def failing(*arguments: Any) -> bytes | None:
        read(*arguments)
        raise refindex.SourceError("there is trouble")

    watched.open.clear()
    with serve(archive) as running, ThreadPoolExecutor(5) as clients:
        with monkeypatch.context() as patch:
            patch.setattr(PlainHierarchy, "_read", failing)
            answers = [clients.submit(ask, running.url, "plain/d/c/3/0/0") for _ in range(5)]
            until(lambda: watched.reads == 1)
            time.sleep(0.1)
            watched.open.set()
            assert {answer.result().status for answer in answers} == {502}
        assert ask(running.url, "plain/d/c/3/0/0").status == 200


def test_slow_clients_hold_others_up_for_a_while_only(archive: refindex.Archive) -> None:
    with serve(archive, sending_nbytes=2 * CHUNK_NBYTES, concurrency=2, patience=1) as running:
        slow = [request(running, f"plain/d/c/{number}/0/0") for number in range(8)]
        try:
            time.sleep(0.2)
            begin = time.monotonic()
            answers = []
            while not answers or answers[-1].status != 200:
                answers.append(ask(running.url, "plain/d/c/20/0/0"))
                assert time.monotonic() - begin < 20
            # Meanwhile the server says that it is busy, and not that there is nothing.
            assert {answer.status for answer in answers} <= {200, 503}
            assert all("retry-after" in answer.headers for answer in answers[:-1])
        finally:
            for connection in slow:
                connection.close()
        assert ask(running.url, "plain/d/c/21/0/0").status == 200


def test_a_client_that_is_slow_but_reads_gets_everything(archive: refindex.Archive) -> None:
    with serve(archive, patience=2) as running, request(running, "plain/d/c/9/0/0") as connection:
        received = bytearray()
        while len(received) < CHUNK_NBYTES:
            time.sleep(0.005)
            piece = connection.recv(1 << 17)
            assert piece
            received += piece
        body = received[received.index(b"\r\n\r\n") + 4 :]
        while len(body) < CHUNK_NBYTES:
            body += connection.recv(1 << 17)
        assert (np.frombuffer(bytes(body), "<i4") == 9).all()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_under_load_is_bounded(tmp_path: Path) -> None:
    """48 clients that do not read want 16 MiB each: the process grows by its limits, not by 768 MiB."""
    # More than what the kernel keeps of a connection.
    with h5py.File(tmp_path / "huge.h5", "w") as file:
        file.create_dataset("d", data=np.zeros((16, 2048, 2048), "i4"), chunks=(1, 2048, 2048), compression="gzip")
    script = tmp_path / "serve.py"
    script.write_text(
        "import sys, refindex\n"
        "from refindex.serve.http.app import Limits\n"
        "from refindex.serve.http.server import open_server\n"
        "limits = Limits(concurrency=2, cache_nbytes=16 << 20, sending_nbytes=32 << 20, patience=3)\n"
        "with refindex.open(sys.argv[1]) as archive, open_server(archive.store, limits=limits) as running:\n"
        "    print(running.url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "huge.h5"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        try:
            assert ask(url, "plain/d/c/0/0/0", Range="bytes=0-3").status == 206
            before = _peak(process.pid)
            holder = Server.__new__(Server)
            holder.url = url
            slow = [request(holder, f"plain/d/c/{number % 16}/0/0") for number in range(48)]
            time.sleep(1.5)
            grown = _peak(process.pid) - before
            for connection in slow:
                connection.close()
            assert ask(url, "plain/d/c/3/0/0").status in (200, 503)
        finally:
            process.stdin.close()
            assert process.wait(20) == 0
    # Room and cache; two chunks that are being read, each as values and as bytes; and what the allocator keeps.
    assert grown < 192 << 20, f"{grown >> 20} MiB"


def _peak(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) << 10


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_all_is_as_it_was_when_the_clients_are_gone(archive: refindex.Archive) -> None:
    """Clients that read, that ask and do not read, that send half a request, and that go away in between."""

    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))

    with serve(archive, concurrency=4, patience=1) as running:
        assert ask(running.url, "plain/d/c/0/0/0").status == 200
        answered: list[int] = []

        def sound(seed: int, end: float) -> None:
            random = np.random.default_rng(seed)
            while time.monotonic() < end:
                number, first = int(random.integers(0, CHUNKS)), 4 * int(random.integers(0, CHUNK_NBYTES // 4 - 100))
                answer = ask(running.url, f"plain/d/c/{number}/0/0", Range=f"bytes={first}-{first + 399}")
                answered.append(answer.status)
                if answer.status == 206:
                    assert (np.frombuffer(answer.body, "<i4") == number).all()
                else:
                    assert answer.status == 503

        def bad(seed: int, end: float) -> None:
            random = np.random.default_rng(seed)
            name, port = running.url.removeprefix("http://").rstrip("/").split(":")
            while time.monotonic() < end:
                with contextlib.suppress(OSError), socket.create_connection((name, int(port)), timeout=5) as client:
                    number = random.integers(0, CHUNKS)
                    text = f"GET /plain/d/c/{number}/0/0 HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()
                    client.sendall(text[: int(random.integers(0, len(text) + 1))])
                    if random.random() < 0.5:
                        client.settimeout(0.2)
                        client.recv(100)
                    time.sleep(float(random.random()) / 50)

        def clients(seconds: float) -> None:
            end = time.monotonic() + seconds
            with ThreadPoolExecutor(12) as pool:
                found = [pool.submit(sound, n, end) for n in range(4)] + [pool.submit(bad, n, end) for n in range(8)]
                for answer in found:
                    answer.result(60)
            time.sleep(0.1)

        before = descriptors()
        clients(1)  # the threads that it keeps
        threads = threading.active_count()
        clients(3)
        assert answered.count(206) > 10
        until(lambda: descriptors() <= before + 1, 15)
        assert ask(running.url, "plain/d/c/7/0/0").status == 200
        assert threading.active_count() <= threads + 1
