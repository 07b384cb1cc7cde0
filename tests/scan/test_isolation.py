"""Files that take a process down with them cost themselves, and nothing else, when each is scanned in a child."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
from relations import assert_same
from serving import RangeServer

import refindex
from refindex import Isolation, Status
from refindex.cli.app import main
from refindex.scan import ScanStats, isolation

pytestmark = pytest.mark.timeout(120)

ENDINGS = {
    "segv": "signal 11",
    "abort": r"signal 6, Aborted: corrupted heap",
    "exit": "ended the process .*exit code 3: gave up",
    "hang": "longer than 4 s",
    "hold": "longer than 4 s",
    "memory": "more memory than the limit of 512 MB",
    "leaky": "more memory than the limit of 512 MB",
    "raise": "ZeroDivisionError",
}
"""How files end the process that scans them, by name, and what is said of that."""

SABOTAGE = """
import ctypes, mmap, os, sys, time
def sabotage(url, kept=[]):
    name = url.rpartition("/")[2]
    if "h" in name.removesuffix("h5"):
        with open(url.removeprefix("file://") + ".pid", "w") as file:
            file.write(str(os.getpid()))
    if name == "spoil.h5":
        kept.append("spoilt")  # as a file may that writes beyond its buffers: whichever is next dies of it
    elif kept and kept[0] == "spoilt" or "segv" in name:
        ctypes.string_at(0)
    elif "abort" in name:
        os.write(2, b"\\ncorrupted heap\\n")
        os.abort()
    elif "exit" in name:
        os.write(2, b"gave up")
        os._exit(3)
    elif "hang" in name:
        time.sleep(600)
    elif "hold" in name:
        ctypes.PyDLL(None).sleep(600)  # and nobody else in the process can do anything
    elif "memory" in name:
        bytearray(1 << 30)
    elif "leaky" in name:
        while True:
            kept.append(b"x" * (1 << 20))
    elif "raise" in name:
        1 / 0
def patch():
    from refindex.scan import parallel
    before = parallel.try_scan
    def after(url, *args, **kwargs):
        sabotage(url)
        return before(url, *args, **kwargs)
    parallel.try_scan = after
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(12):
        write(folder / f"{number:02}.h5", number)
    return folder


def write(path: Path, number: int) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["number"] = number
        file.create_dataset("a", data=np.full((8, 500), number), chunks=(2, 500))


@pytest.fixture
def sabotaged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children die of files with certain names."""
    program = isolation._PROGRAM.replace("main(", "patch()\nmain(")
    assert program != isolation._PROGRAM
    monkeypatch.setattr(isolation, "_PROGRAM", f"{SABOTAGE}\n{program}")


def children() -> list[int]:
    """Processes whose parent is this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_the_same_as_without(folder: Path, workers: int) -> None:
    here = refindex.scan(folder, join=False, workers=1)
    before, stats = children(), ScanStats()
    manifest = refindex.scan(folder, join=False, workers=workers, isolate=True, stats=stats)
    assert_same(here, manifest)
    assert stats.local_files == 12
    assert children() == before


def test_a_single_file(folder: Path) -> None:
    assert_same(refindex.scan(folder / "03.h5"), refindex.scan(folder / "03.h5", isolate=True))
    (folder / "bad.h5").write_text("hello")
    with pytest.raises(refindex.FormatError, match="bad.h5: not HDF5"):
        refindex.scan(folder / "bad.h5", isolate=True)
    with pytest.raises(refindex.NotFoundError, match="nothing.h5"):
        refindex.scan(folder / "nothing.h5", isolate=True)


@pytest.mark.usefixtures("sabotaged")
@pytest.mark.parametrize("workers", [1, 3])
def test_whatever_ends_a_child_costs_one_file(folder: Path, workers: int) -> None:
    for number, name in enumerate(ENDINGS):
        write(folder / f"{number:02}-{name}.h5", number)
    before, seen = children(), []
    limits = Isolation(time_limit=4, memory_limit=512 << 20)
    manifest = refindex.scan(folder, join=False, workers=workers, isolate=limits, progress=seen.append)
    failed = {Path(e.source).stem[3:]: e.reason for e in manifest.report.select(Status.FAILED)}
    assert failed.keys() == ENDINGS.keys()
    for name, words in ENDINGS.items():
        assert re.search(words, failed[name]), failed[name]
    assert len(manifest.arrays) == 12
    assert [p.done for p in seen] == list(range(1, 21))
    assert seen[-1].failed == len(ENDINGS)
    assert children() == before


@pytest.mark.usefixtures("sabotaged")
def test_the_next_file_is_not_blamed(folder: Path) -> None:
    """What a file does to its process may end it later: what is under way then is scanned again, in a new one."""
    (folder / "05.h5").rename(folder / "spoil.h5")
    manifest = refindex.scan([folder / "spoil.h5", folder], join=False, workers=1, isolate=True)
    assert not manifest.report.problems
    assert len(manifest.arrays) == 12


@pytest.mark.usefixtures("sabotaged")
def test_if_the_only_file_crashes_it_is_an_error(folder: Path) -> None:
    write(folder / "segv.h5", 1)
    with pytest.raises(refindex.FormatError, match=r"segv.h5: the HDF5 library crashed on it \(signal 11, Segm"):
        refindex.scan(folder / "segv.h5", isolate=True)
    with pytest.raises(refindex.FormatError, match="crashed on it"):
        refindex.scan(folder, isolate=True, strict=True)


def test_a_child_that_cannot_begin_is_no_file_s_fault(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "_PROGRAM", "raise SystemExit('nothing works here')")
    with pytest.raises(refindex.SourceError, match="ended before it began .*nothing works here"):
        refindex.scan(folder, isolate=True)


def test_remote_files(folder: Path) -> None:
    with RangeServer(folder) as server:
        names = [f"{server.url}/{number:02}.h5" for number in range(4)]
        stats = ScanStats()
        manifest = refindex.scan(names, join=False, isolate=True, stats=stats)
        assert_same(refindex.scan(names, join=False, workers=1), manifest)
        assert stats.files == 4
        assert stats.requests >= 4


def test_options_are_checked(folder: Path) -> None:
    with pytest.raises(ValueError, match="time_limit must be .* above 0, got 0"):
        Isolation(time_limit=0)
    with pytest.raises(ValueError, match="memory_limit must be 256 MB or more"):
        Isolation(memory_limit=1000)
    with ThreadPoolExecutor(1) as executor, pytest.raises(ValueError, match="executor or isolate"):
        refindex.scan(folder, isolate=True, executor=executor)


@pytest.mark.usefixtures("sabotaged")
def test_what_failed_is_scanned_again_when_a_scan_goes_on(folder: Path, tmp_path: Path) -> None:
    write(folder / "segv.h5", 1)
    seen: list[refindex.Progress] = []
    for _ in range(2):
        seen.clear()
        refindex.scan(folder, join=False, isolate=True, resume=tmp_path / "kept", progress=seen.append)
    assert [p.done for p in seen] == [12, 13]
    assert seen[-1].failed == 1


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["refindex", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


@pytest.mark.usefixtures("sabotaged")
def test_the_command(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, out, failures = folder / "segv.h5", tmp_path / "out.refindex", tmp_path / "failed.txt"
    write(bad, 1)
    options = ("--isolate", "--time-limit", "9", "--memory-limit", "1")
    assert command(monkeypatch, "scan", folder, "-o", out, "--no-join", *options, "--failures", failures) == 3
    assert "failed: " in (said := capsys.readouterr().err)
    assert "crashed on it (signal 11" in said
    assert failures.read_text().splitlines()[2] == str(bad)
    with refindex.open(out) as archive:
        assert len(archive.arrays) == 12
    grown = tmp_path / "grown.refindex"
    assert command(monkeypatch, "scan", folder / "00.h5", "-o", grown, "--isolate") == 0
    assert command(monkeypatch, "append", grown, bad, "--isolate") == 1
    assert "crashed on it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--time-limit", "9"), "add --isolate"),
        (("--memory-limit", "1"), "add --isolate"),
        (("--isolate", "--time-limit", "0"), "above 0"),
        (("--isolate", "--memory-limit", "0.001"), "256 MB or more"),
        (("--isolate", "--dask", "tcp://127.0.0.1:1"), "--isolate or --dask"),
    ],
)
def test_options_of_the_command(
    folder: Path,
    options: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(monkeypatch, "scan", folder, "--dry-run", *options) == 2
    assert words in " ".join(capsys.readouterr().err.replace("│", " ").split())


SCAN = """
import sys
from refindex.scan import isolation
isolation._PROGRAM = sys.argv[1]
import refindex
print(refindex.scan(sys.argv[2], join=False, isolate=True, workers=2))
"""


@pytest.fixture
def hanging(folder: Path, sabotaged: None) -> Iterator[tuple[subprocess.Popen[bytes], list[int]]]:
    """A scan whose two children hang, one of them holding Python's lock; and the children."""
    names = [folder / "hang.h5", folder / "hold.h5"]
    for path in names:
        write(path, 1)
    for path in folder.glob("[0-9]*"):
        path.unlink()
    marks = [path.with_name(path.name + ".pid") for path in names]
    process = subprocess.Popen([sys.executable, "-c", SCAN, isolation._PROGRAM, str(folder)], stderr=subprocess.PIPE)
    try:
        assert within(40, lambda: all(mark.exists() and mark.read_text() for mark in marks))
        time.sleep(0.2)  # now they hang
        yield process, [int(mark.read_text()) for mark in marks]
    finally:
        process.kill()
        process.communicate()
        for mark in marks:
            if mark.exists() and alive(int(mark.read_text())):
                os.kill(int(mark.read_text()), signal.SIGKILL)


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(0.05)
    return False


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("by", [signal.SIGINT, signal.SIGKILL])
def test_children_end_with_their_parent(hanging: tuple[subprocess.Popen[bytes], list[int]], by: signal.Signals) -> None:
    parent, pids = hanging
    assert all(alive(pid) for pid in pids)
    parent.send_signal(by)
    _, said = parent.communicate(timeout=5)
    assert within(2, lambda: not any(alive(pid) for pid in pids))
    assert (b"KeyboardInterrupt" in said) == (by == signal.SIGINT)
