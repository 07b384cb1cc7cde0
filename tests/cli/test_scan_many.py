"""The command over many files: going on after an interrupt, lists of failures, what it cost."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from relations import assert_same
from serving import RangeServer

import refindex
from refindex import Progress, storage
from refindex.cli import keeping
from refindex.progress import progress_bar
from refindex.scan import Spool, expand, journal, scan_many

COMMAND = [sys.executable, "-m", "refindex.cli"]
N = 130
"""Files: enough for a scan to be kept."""


def run(
    *arguments: object, code: int = 0, cwd: Path | None = None, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120, input=stdin, cwd=cwd, check=False
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return done


def write(path: Path, number: int) -> None:
    with h5py.File(path, "w") as file:
        file["x"] = np.arange(4) + 4 * number
        file["x"].make_scale("x")
        file.create_dataset("a", data=np.full((4, 50), number), chunks=(2, 50))
        file["a"].dims[0].attach_scale(file["x"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(N):
        write(folder / f"{number:03}.h5", number)
    return folder


INTERRUPTED = """
    import os, signal, sys
    from refindex.scan import many

    progress = many.Progress

    def interrupting(*, done, **others):
        if done == 50:
            os.kill(os.getpid(), getattr(signal, "{signal}"))
        return progress(done=done, **others)

    many.Progress = interrupting
    sys.argv[1:] = {arguments}
    from refindex.cli import main
    main()
"""


def interrupt(how: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command, and have it interrupt itself when it has scanned 50 files."""
    script = textwrap.dedent(INTERRUPTED.format(signal=how, arguments=[*map(str, arguments), "--progress", "-j", "1"]))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)


def test_going_on_after_ctrl_c(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    done = interrupt("SIGINT", "scan", folder, "-o", out)
    assert done.returncode == 130
    assert not out.exists()
    kept = journal.kept(tmp_path / "a.refindex.scan")
    assert kept is not None
    assert 49 <= kept <= 50
    assert f"{kept} scanned files kept in {out}.scan; --resume goes on from there" in done.stderr
    assert "Traceback" not in done.stderr
    refused = run("scan", folder, "-o", out, code=1)
    assert f"{out}.scan has {kept} scanned files" in refused.stderr
    assert "--resume goes on with them, --fresh starts anew" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    done = run("scan", folder, "-o", out, "--resume", "--stats", "--json")
    assert json.loads(done.stdout)["stats"]["local_files"] == N - kept
    assert os.listdir(tmp_path) == ["a.refindex"]
    assert_same(
        storage.load(storage.open_reader(f"file://{out}")), storage.load(saved(folder, tmp_path / "b.refindex"))
    )


def saved(folder: Path, out: Path) -> storage.ManifestReader:
    refindex.scan(folder).save(out)
    return storage.open_reader(f"file://{out}")


def test_starting_anew(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.sqlite"
    done = interrupt("SIGKILL", "scan", folder, "-o", out)
    assert done.returncode == -9
    assert (tmp_path / "a.sqlite.scan").exists()
    done = run("scan", folder, "-o", out, "--fresh", "--stats")
    assert f"{N} local files in " in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["a.sqlite"]
    # Nothing to go on with: that is no error.
    assert f"{N} local files in " in run("scan", folder, "-o", tmp_path / "b.sqlite", "--resume", "--stats").stdout
    assert not (tmp_path / "b.sqlite.scan").exists()
    assert "not both" in run("scan", folder, "-o", out, "--fresh", "--resume", code=2).stderr


def test_what_cannot_be_joined_is_not_scanned_again(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "copy"
    other.mkdir()
    for number in range(N):
        os.link(folder / f"{number:03}.h5", other / f"{number:03}.h5")
    write(other / "again.h5", 7)
    out = tmp_path / "a.refindex"
    done = run("scan", other, "-o", out, code=1)
    assert "cannot be joined" in done.stderr
    assert f"{N + 1} scanned files kept in {out}.scan" in done.stderr
    done = run("scan", other, "-o", out, "--overlap", "first", "--resume", "--stats")
    assert "no file was scanned" in done.stdout
    assert not (tmp_path / "a.refindex.scan").exists()


def test_few_files_are_not_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert keeping.folder_of("a.refindex/") == tmp_path / "a.refindex.scan"
    assert keeping.folder_of("s3://bucket/x/a.refindex") == Path("a.refindex.scan")
    for count, is_kept in ((keeping.LEAST, False), (keeping.LEAST + 1, True)):
        spool = keeping.spool_of("a.refindex", resume=False, fresh=False)
        scan_many(expand([folder])[:count], workers=1, spool=spool)
        assert Path("a.refindex.scan").exists() == spool.is_kept == is_kept
        spool.remove()
        assert not Path("a.refindex.scan").exists()
    # An interrupted scan that has not scanned anything leaves nothing.
    Spool.resume("a.refindex.scan").begin({"variables": None}, ())
    assert journal.kept(Path("a.refindex.scan")) == 0
    keeping.spool_of("a.refindex", resume=False, fresh=False)
    assert not Path("a.refindex.scan").exists()


def test_failures_can_be_given_again(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number in range(4):
        write(data / f"{number}.h5", number)
    whole = (data / "1.h5").read_bytes()
    (data / "1.h5").write_bytes(whole[:700])
    (data / "3.h5").write_text("not\nwhat the name says")
    out, listed = tmp_path / "a.refindex", tmp_path / "failed.txt"
    run("scan", data, "-o", out, "--failures", listed, code=3)
    lines = listed.read_text().splitlines()
    assert lines[0] == "# refindex: 2 files could not be scanned"
    assert lines[2::2] == [f"{data}/1.h5", f"{data}/3.h5"]
    assert lines[1].startswith("# ")
    assert "truncated" in lines[1]
    assert "not HDF5" in lines[3]
    (data / "1.h5").write_bytes(whole)
    # The list is read before it is written again.
    done = run("append", out, "--from-file", listed, "--failures", listed, "--stats", code=3)
    assert "1 file added" in done.stdout
    assert "2 local files in" in done.stdout
    assert listed.read_text().splitlines()[0::2] == ["# refindex: 1 file could not be scanned", f"{data}/3.h5"]
    run("append", out, "--from-file", listed, "--failures", listed, code=1)
    assert "not HDF5" in listed.read_text()
    write(data / "3.h5", 3)
    run("append", out, "--from-file", listed, "--failures", listed)
    assert not listed.exists()
    with refindex.open(out) as archive:
        assert np.array_equal(archive.group["a"][:, 0], np.repeat(np.arange(4), 4))
    # What is no such list is not removed, and where it cannot be written, that is said.
    listed.write_text("my own notes")
    run("scan", data, "-o", out, "--overwrite", "--failures", listed)
    assert listed.read_text() == "my own notes"
    (data / "3.h5").write_text("bad")
    done = run("scan", data, "-o", out, "--overwrite", "--failures", tmp_path / "no" / "where", code=1)
    assert "where: no such file (while writing the list of failures)" in done.stderr


def test_stats_and_retries_of_remote_files(folder: Path, tmp_path: Path) -> None:
    with RangeServer(folder) as server:
        urls = [f"{server.url}/{number:03}.h5" for number in range(5)]
        done = run("scan", *urls, "-o", tmp_path / "a.refindex", "--json", "--stats")
        stats = json.loads(done.stdout)["stats"]
        assert stats["requests"] == len(server.requests) == stats["remote_files"] == 5
        assert stats["bytes"] == server.nbytes
        assert (stats["retries"], stats["local_files"]) == (0, 0)
        done = run("append", tmp_path / "a.refindex", f"{server.url}/005.h5", "--stats", "--retries", "0")
        assert "  1 remote file: 1 request, 0 of them again, 0.01 MB" in done.stdout
        done = run("append", tmp_path / "a.refindex", folder / "006.h5", "--stats", "--json")
        assert json.loads(done.stdout)["stats"]["local_files"] == 1


def test_dask_and_workers(folder: Path, tmp_path: Path) -> None:
    assert "not both" in run("scan", folder, "-o", tmp_path / "o", "-j", "2", "--dask", "tcp://x:1", code=2).stderr
    script = "import sys; sys.modules['distributed'] = None; from refindex.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "scan", str(folder), "-o", str(tmp_path / "o"), "--dask", "tcp://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "pip install 'refindex[dask]'" in done.stderr


def test_the_bar_says_how_fast_how_long_and_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm"), ("COLUMNS", "120")):
        monkeypatch.setenv(name, value)
    progress = Progress(done=300, total=1000, failed=2, references=5, seconds=10, kept=200)
    assert (progress.rate, progress.left) == (10, 70)
    shown = io.StringIO()
    with progress_bar(1000, shown) as update:
        update(progress)
    for words in ("300/1000", "10.0 files/s", "0:01:10 left", "2 failed"):
        assert words in shown.getvalue()


def test_an_interrupt_in_processes(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C while other processes scan: what they have done so far is kept."""
    slow = tmp_path / "data"
    slow.mkdir()
    for number in range(400):
        with h5py.File(slow / f"{number}.h5", "w") as file:
            for name in range(20):
                file[f"d{name}"] = np.arange(300)
    out = tmp_path / "a.refindex"
    child = subprocess.Popen(
        [*COMMAND, "scan", str(slow), "-o", str(out), "-j", "2", "--no-join"],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        files = tmp_path / "a.refindex.scan" / journal.FILES
        deadline = time.monotonic() + 60
        while not (files.exists() and files.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGINT)
        _, err = child.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert child.returncode == 130, err
    kept = journal.kept(tmp_path / "a.refindex.scan")
    assert kept
    assert f"{kept} scanned files kept" in err
    done = run("scan", slow, "-o", out, "-j", "2", "--no-join", "--resume", "--stats", "--json")
    assert json.loads(done.stdout)["stats"]["local_files"] == 400 - kept
