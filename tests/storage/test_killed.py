"""kill -9 at every step of a commit: the archive holds the old version or the new one, and work goes on."""

from __future__ import annotations

import itertools
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
from manifests import make_manifest
from test_versions import append, read_state

import refindex
from refindex import ChunkTable, storage
from refindex.access import urls
from refindex.storage.parquet import checkpoint, merge

AUDITED = {"open", "os.link", "os.remove", "os.mkdir", "os.rename", "os.rmdir"}


def make(out: Path) -> None:
    table = ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[10])
    make_manifest({"a": table, "time": ChunkTable.inline([(0, b"x")])}, sources=1).save(out)


def in_child(work: Callable[[], object], arm: Callable[[], None]) -> int:
    """Run something in a forked process, which ends by exit(0) or by the signal that ``arm`` prepares."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        try:
            arm()
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), 9)


def kill_at_file_operation(number: int, below: Path) -> None:
    """Die before the k-th operation that changes a file below a folder."""
    count = itertools.count()

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event not in AUDITED or (event == "open" and not writes(args)):
            return
        if str(below) in os.fsdecode(args[0]) and next(count) == number:  # type: ignore[arg-type]
            die()

    sys.addaudithook(hook)


def writes(args: tuple[object, ...]) -> bool:
    path, mode, flags = args
    if not isinstance(path, str | bytes | os.PathLike):
        return False
    if isinstance(mode, str):
        return bool(set(mode) & set("wxa+"))
    return bool(int(flags) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))  # type: ignore[call-overload]


WORK: dict[str, Callable[[str, Path], object]] = {
    "append": lambda url, out: append(url),
    "replace": lambda url, out: make_manifest({"b": ChunkTable.inline([(2, b"two")])}).save(out, overwrite=True),
    "restore": lambda url, out: storage.restore(url, 0),
    "vacuum": lambda url, out: storage.vacuum(url, keep_versions=1, grace=storage.GRACE * 0),
}


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("what", WORK)
def test_parquet_at_every_file_operation(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The commit of the test merges files and writes a checkpoint.
    monkeypatch.setattr(merge, "FILES", 3)
    monkeypatch.setattr(checkpoint, "EVERY", 3)
    start = tmp_path / "start" / "a.refindex"
    make(start)
    append(urls.absolute(start))
    append(urls.absolute(start))
    old = read_state(urls.absolute(start))
    done = tmp_path / "done" / "a.refindex"
    shutil.copytree(start, done)
    WORK[what](urls.absolute(done), done)
    new = read_state(urls.absolute(done))
    outcomes = []
    for number in itertools.count():
        box = tmp_path / f"box{number}"
        out = box / "a.refindex"
        shutil.copytree(start, out)
        url = urls.absolute(out)
        code = in_child(
            lambda url=url, out=out: WORK[what](url, out), lambda n=number, b=box: kill_at_file_operation(n, b)
        )
        assert code in (0, -9)
        found = read_state(url)
        outcomes.append(found == new)
        assert found in (old, new), number
        if code == 0:
            break
        append(url)
        newest = storage.newest_version(url)
        for version in {c.version for c in storage.history(url)}:
            read_state(url, version)
        storage.vacuum(url, grace=storage.GRACE * 0)
        assert storage.vacuum(url, grace=storage.GRACE * 0) == []
        files = {str(p.relative_to(out)) for p in out.rglob("*.parquet") if "kind=" in str(p)}
        storage.vacuum(url, keep_versions=1, grace=storage.GRACE * 0)
        assert read_state(url, newest).sources
        assert files
        shutil.rmtree(box)
    assert number >= 5
    assert outcomes[-1]
    # Once it is there, it is there.
    assert outcomes == sorted(outcomes)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_strays_of_a_killed_commit_are_found(tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    make(out)
    url = urls.absolute(out)

    def arm() -> None:
        os.link = lambda *_, **__: die()  # type: ignore[assignment]

    assert in_child(lambda: append(url), arm) == -9
    assert storage.newest_version(url) == 0
    kinds = sorted(r.name.partition("/")[0] for r in storage.vacuum(url, grace=storage.GRACE * 0))
    assert kinds == ["_delta_log", "kind=chunk", "kind=chunk", "kind=node", "kind=source"]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("what", WORK)
def test_sqlite_at_many_steps(what: str, tmp_path: Path) -> None:
    """At steps of SQLite's machine, and before each statement: whatever journal is left is rolled back."""
    start = tmp_path / "start.sqlite"
    make(start)
    append(urls.absolute(start))
    append(urls.absolute(start))
    old = read_state(urls.absolute(start))
    done = tmp_path / "done.sqlite"
    shutil.copyfile(start, done)
    WORK[what](urls.absolute(done), done)
    new = read_state(urls.absolute(done))
    outcomes = []
    for number in itertools.count():
        out = tmp_path / f"box{number}" / "a.sqlite"
        out.parent.mkdir()
        shutil.copyfile(start, out)
        url = urls.absolute(out)
        code = in_child(lambda url=url, out=out: WORK[what](url, out), lambda n=number: kill_at_sqlite(n))
        assert code in (0, -9)
        found = read_state(url)
        assert found in (old, new), number
        outcomes.append(found == new)
        if code == 0:
            break
        append(url)
        assert len(read_state(url).sources) == len(found.sources) + 1
        storage.vacuum(url, keep_versions=1, grace=storage.GRACE * 0)
        assert [p.name for p in out.parent.iterdir()] == ["a.sqlite"]
        shutil.rmtree(out.parent)
    assert number >= 8
    assert outcomes[-1]
    assert outcomes == sorted(outcomes)


def kill_at_sqlite(number: int) -> None:
    """Die at the k-th of the moments that a connection for writing passes: statements, and every 200th step."""
    from refindex.storage.sqlite import database

    real = database.connect
    count = itertools.count()

    def step(*_: object) -> bool:
        if next(count) == number:
            die()
        return False

    def connect(path: Path, url: str, *, write: bool = False) -> object:
        db = real(path, url, write=write)
        if write:
            db.trace_v2(apsw.SQLITE_TRACE_STMT, step)
            db.set_progress_handler(step, 200)
        return db

    database.connect = connect  # type: ignore[assignment]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("what", ["append", "replace", "vacuum"])
def test_sqlite_while_it_writes_the_file(what: str, tmp_path: Path) -> None:
    """The kernel kills the writer in the middle of a commit: at the first write behind a limit of the file size."""
    start = tmp_path / "start.sqlite"
    table = ChunkTable.from_columns(chunk=range(2000), source=0, offset=range(2000), length=10)
    make_manifest({"b": table, "time": ChunkTable.inline([(0, b"x" * 9000)])}, sources=1).save(start)
    append(urls.absolute(start))
    old = read_state(urls.absolute(start))
    done = tmp_path / "done.sqlite"
    shutil.copyfile(start, done)
    WORK[what](urls.absolute(done), done)
    new = read_state(urls.absolute(done))
    journals = 0
    for number, limit in enumerate(range(0, start.stat().st_size + (1 << 15), 16384)):
        out = tmp_path / f"box{number}" / "a.sqlite"
        out.parent.mkdir()
        shutil.copyfile(start, out)
        url = urls.absolute(out)

        def arm(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

        code = in_child(lambda url=url, out=out: WORK[what](url, out), arm)
        assert code in (0, -signal.SIGXFSZ)
        journals += out.with_name("a.sqlite-journal").exists()
        found = read_state(url)
        assert found in (old, new), limit
        append(url)
        assert [p.name for p in out.parent.iterdir()] == ["a.sqlite"]
        shutil.rmtree(out.parent)
    assert journals > 0
    assert code == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["refindex", "sqlite"])
def test_a_new_archive(kind: str, tmp_path: Path) -> None:
    for number in itertools.count():
        box = tmp_path / f"box{number}"
        out = box / f"a.{kind}"
        code = in_child(lambda out=out: make(out), lambda n=number, b=box: kill_at_file_operation(n, b))
        assert code in (0, -9)
        if code == 0:
            break
        try:
            storage.open_reader(urls.absolute(out)).close()
        except refindex.NotFoundError:
            make(out)
        storage.vacuum(urls.absolute(out), grace=storage.GRACE * 0)
        assert storage.vacuum(urls.absolute(out), grace=storage.GRACE * 0) == []
        assert len(read_state(urls.absolute(out)).sources) == 1
    assert number >= 2
