"""Every step of what changes an archive fails once: what was committed stays, and what was not is not seen."""

from __future__ import annotations

import errno
import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from faults import Disk, PowerLossError, failing
from manifests import make_manifest
from test_versions import State, append, read_state

import refindex
from refindex import ChunkTable, storage
from refindex.access import urls
from refindex.storage.parquet import checkpoint, merge

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is synchronised is seen through /proc")

KINDS = ("refindex", "sqlite")


def make(out: Path) -> None:
    table = ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[10])
    make_manifest({"a": table, "time": ChunkTable.inline([(0, b"x")])}, sources=1).save(out)


def replace(out: Path) -> None:
    make_manifest({"b": ChunkTable.inline([(2, b"two")])}).save(out, overwrite=True)


def copy(out: Path, *, overwrite: bool) -> None:
    """As publishing does it."""
    source = make_manifest({"c": ChunkTable.from_columns(chunk=range(50), source=0, offset=range(50), length=1)})
    reader = storage.MemoryReader(source)
    storage.copy(reader, urls.absolute(out), operation="publish", details={}, overwrite=overwrite)


CREATE: dict[str, Callable[[Path], Any]] = {"save": make, "publish": lambda out: copy(out, overwrite=False)}
CHANGE: dict[str, Callable[[Path], Any]] = {
    "append": lambda out: append(urls.absolute(out)),
    "replace": replace,
    "restore": lambda out: storage.restore(urls.absolute(out), 0),
    "vacuum": lambda out: storage.vacuum(urls.absolute(out), keep_versions=1, grace=storage.GRACE * 0),
    "publish over": lambda out: copy(out, overwrite=True),
}
WORK = CREATE | CHANGE


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done merges files and writes checkpoints."""
    monkeypatch.setattr(merge, "FILES", 3)
    monkeypatch.setattr(checkpoint, "EVERY", 3)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def state(out: Path) -> State | None:
    try:
        return read_state(urls.absolute(out))
    except refindex.NotFoundError:
        return None


@pytest.fixture(params=WORK)
def what(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(what: str, kind: str, tmp_path: Path) -> Path:
    """A folder as it is before: with an archive, or none."""
    folder = tmp_path / "start"
    folder.mkdir()
    if what in CHANGE:
        out = folder / f"a.{kind}"
        make(out)
        append(urls.absolute(out))
        append(urls.absolute(out))
    return folder


@pytest.fixture
def states(what: str, kind: str, start: Path, tmp_path: Path) -> tuple[State | None, State | None]:
    """What the archive holds before and after."""
    out = tmp_path / "done" / f"a.{kind}"
    shutil.copytree(start, out.parent)
    WORK[what](out)
    return state(start / out.name), state(out)


def check_goes_on(out: Path, found: State | None) -> None:
    """All versions can be read, the next change works, and what is left over can be removed."""
    url = urls.absolute(out)
    if found is None:
        make(out)
    else:
        count = len(found.sources)
        for commit in storage.history(url):
            read_state(url, commit.version)
        append(url)
        assert len(read_state(url).sources) == count + 1
    storage.vacuum(url, grace=storage.GRACE * 0)
    assert storage.vacuum(url, grace=storage.GRACE * 0) == []
    if out.suffix == ".sqlite":
        assert [path.name for path in out.parent.iterdir()] == [out.name]


def boxes(start: Path, kind: str) -> Iterator[tuple[int, Path]]:
    for number in itertools.count():
        folder = start.parent / f"box{number}"
        shutil.copytree(start, folder)
        yield number, folder / f"a.{kind}"
        shutil.rmtree(folder)


@pytest.mark.parametrize("fault", ["refused", "full", "answer", "interrupt"])
def test_a_step_fails(fault: str, what: str, kind: str, start: Path, states: tuple[State | None, State | None]) -> None:
    outcomes = []
    for number, out in boxes(start, kind):
        disk = Disk(below=out.parent, at=number, fault=fault)
        error: BaseException | None = None
        with failing(disk):
            try:
                WORK[what](out)
            except (refindex.RefindexError, OSError, KeyboardInterrupt) as raised:
                error = raised
        found = state(out)
        assert found in states, (number, disk.steps[number])
        if error is None:
            # What could be left undone (a checkpoint, a file to clean up) was.
            assert found == states[1], (number, disk.steps[number])
        else:
            outcomes.append(found == states[1])
        if error is not None and not isinstance(error, KeyboardInterrupt):
            assert out.name in str(error), (disk.steps[number], error)
            if fault == "full":
                assert "space" in str(error) or "full" in str(error), error
        if len(disk.steps) <= number:
            break
        if number % 3 == 0 or error is None:
            check_goes_on(out, found)
    assert number >= 8
    assert error is None
    # Once it is there, it is there.
    assert outcomes == sorted(outcomes)


@pytest.mark.parametrize("names", [True, False])
def test_the_power_goes(
    names: bool, what: str, kind: str, start: Path, states: tuple[State | None, State | None]
) -> None:
    """With the names that were not synchronised, and some of the writes; or with nothing that was not."""
    for number, out in boxes(start, kind):
        disk = Disk(below=out.parent, at=number)
        with failing(disk):
            with suppress(PowerLossError):
                WORK[what](out)
            after = out.parent.parent / f"after{number}"
            disk.after_power_loss(after, names=names, seed=number if names else None)
        found = state(after / out.name)
        assert found in states, (number, disk.steps[-1])
        if not disk.lost:
            assert found == states[1], "what was committed is lost"
            break
        if number % 3 == 0:
            check_goes_on(after / out.name, found)
        shutil.rmtree(after)
    assert number >= 8


@pytest.mark.parametrize("name", KINDS)
def test_reading_fails(name: str, tmp_path: Path) -> None:
    out = tmp_path / f"a.{name}"
    make(out)
    for _ in range(3):
        append(urls.absolute(out))
    expected = read_state(urls.absolute(out))
    failed = 0
    for number in itertools.count():
        disk = Disk(below=tmp_path, at=number, fault="read")
        with failing(disk):
            try:
                assert read_state(urls.absolute(out)) == expected
            except refindex.RefindexError as error:
                assert out.name in str(error) or "a.refindex" in str(error)  # noqa: PT017 -- what is said of which step
                failed += 1
        if len(disk.steps) <= number:
            break
    assert failed >= 3
    with closing(storage.open_reader(urls.absolute(out))) as reader:
        assert storage.load(reader).sources


def test_what_the_disk_does(tmp_path: Path) -> None:
    """The disk itself: what is not synchronised is lost, what is refused is half done."""
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "old").write_bytes(b"old")
    disk = Disk(below=folder)
    with failing(disk), open(folder / "new", "wb") as file:  # noqa: PTH123
        file.write(b"0123")
        disk.after_power_loss(tmp_path / "names", names=True)
        disk.after_power_loss(tmp_path / "none", names=False)
    assert {p.name: p.read_bytes() for p in (tmp_path / "names").iterdir()} == {"old": b"old", "new": b""}
    assert {p.name: p.read_bytes() for p in (tmp_path / "none").iterdir()} == {"old": b"old"}
    with (
        failing(Disk(below=folder, at=1, fault="full")),
        pytest.raises(OSError, match="space") as caught,
        open(folder / "full", "wb") as file,  # noqa: PTH123
    ):
        file.write(b"0123")
    assert caught.value.errno == errno.ENOSPC
    assert (folder / "full").read_bytes() == b"01"
