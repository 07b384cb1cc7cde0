"""A scan that was killed goes on: what it had is not scanned again, and what comes of it is what a fresh scan gives."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from relations import assert_same

import refindex
from refindex import Manifest, Progress
from refindex.scan import Scanned, Spool, expand, journal, parallel, scan_many, scan_source

N = 20


def write(path: Path, number: int) -> None:
    with h5py.File(path, "w") as file:
        file.attrs["number"] = number
        file["x"] = np.arange(4) + number
        file.create_dataset("a", data=np.full((8, 500), number), chunks=(2, 500))
        file.create_dataset("b", data=np.arange(3000) * number, chunks=(1000,), compression=1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(N):
        write(folder / f"{number:02}.h5", number)
    return folder


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are scanned in this process."""
    names: list[str] = []

    def counted(url: str, **options: object) -> Manifest:
        names.append(Path(url).name)
        return scan_source(url, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(parallel, "scan_source", counted)
    return names


def is_fresh(found: Scanned, urls: list[str]) -> None:
    """The manifests are those of a scan without a journal, in the same order."""
    assert list(found.files) == urls
    for url in urls:
        assert_same(found.files[url].manifest(), scan_source(url))


def interrupted(urls: list[str], kept: Path, after: int) -> None:
    def tell(progress: Progress) -> None:
        if progress.done == after:
            raise KeyboardInterrupt

    spool = Spool(kept)
    with pytest.raises(KeyboardInterrupt):
        scan_many(urls, workers=1, progress=tell, spool=spool)
    assert journal.kept(kept) == after  # on disk already
    spool.close()


def processes(group: int) -> list[int]:
    """The processes of a group that live, from /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(fields[2]) == group and fields[0] != "Z":
                    found.append(int(entry.name))
    return found


KILLED = """
    import os, sys
    from refindex.scan import Spool, expand, journal, scan_many

    journal._FLUSHED = 0

    def tell(progress):
        if progress.done == 12:
            os.kill(os.getpid(), 9)

    scan_many(expand([sys.argv[1]]), workers=int(sys.argv[3]), progress=tell, spool=Spool(sys.argv[2]))
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_kill_9(folder: Path, tmp_path: Path, opened: list[str], workers: int) -> None:
    kept = tmp_path / "kept"
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder), str(kept), str(workers)],
        start_new_session=True,
    )
    try:
        assert child.wait(timeout=60) == -9
        # Nobody tells its workers: they notice.
        deadline = time.monotonic() + 20
        while processes(child.pid) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert processes(child.pid) == []
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    assert journal.kept(kept) == 12
    urls = expand([folder])
    seen: list[Progress] = []
    spool = Spool.resume(kept)
    found = scan_many(urls, workers=1, spool=spool, progress=seen.append)
    assert len(opened) == len(set(opened)) == N - 12
    assert (seen[0].done, seen[0].kept, seen[0].left) == (12, 12, None)
    assert seen[-1].done == N
    assert seen[-1].rate == pytest.approx((N - 12) / seen[-1].seconds)
    assert seen[-1].references == sum(file.n_references for file in found.files.values())
    is_fresh(found, urls)
    spool.close()
    assert journal.kept(kept) == N
    opened.clear()
    is_fresh(scan_many(urls, spool=Spool.resume(kept)), urls)
    assert not opened


def test_ctrl_c(folder: Path, tmp_path: Path, opened: list[str]) -> None:
    urls, kept = expand([folder]), tmp_path / "kept"
    interrupted(urls, kept, 7)
    assert journal.kept(kept) == 7
    opened.clear()
    first = refindex.scan(folder, join=False, resume=kept)
    assert opened == [f"{number:02}.h5" for number in range(7, N)]
    again = refindex.scan(folder, join=False, resume=kept)
    assert len(opened) == N - 7
    fresh = refindex.scan(folder, join=False)
    assert_same(first, fresh)
    assert_same(again, fresh)


def test_files_that_have_changed(folder: Path, tmp_path: Path, opened: list[str]) -> None:
    """Also files that others refer to; and a folder, of which its files do not tell all."""
    with h5py.File(folder / "linking.h5", "w") as file:
        file["there"] = h5py.ExternalLink("05.h5", "/a")
    zarr.save_array(folder / "z.zarr", np.arange(10))
    os.utime(folder / "03.h5", ns=(1, 1_000_000_000))
    urls, kept = expand([folder]), tmp_path / "kept"
    assert len(urls) == N + 2
    spool = Spool(kept)
    scan_many(urls, spool=spool)
    spool.close()
    write(folder / "05.h5", 77)
    for name in ("03.h5", "04.h5"):
        status = (folder / name).stat()
        os.utime(folder / name, ns=(status.st_atime_ns, status.st_mtime_ns + 1000))
    (folder / "06.h5").unlink()
    shutil.rmtree(folder / "z.zarr")
    zarr.save_array(folder / "z.zarr", np.arange(10), zarr_format=2)
    opened.clear()
    found = scan_many(urls, spool=Spool.resume(kept))
    assert opened == ["03.h5", "04.h5", "05.h5", "06.h5", "linking.h5", "z.zarr"]
    (failure,) = found.failures
    assert failure.source.endswith("06.h5")
    is_fresh(found, [url for url in urls if not url.endswith("06.h5")])


def test_files_that_failed_are_tried_again(folder: Path, tmp_path: Path, opened: list[str]) -> None:
    whole = (folder / "05.h5").read_bytes()
    (folder / "05.h5").write_bytes(whole[:1000])
    kept, urls = tmp_path / "kept", expand([folder])
    spool = Spool(kept)
    assert len(scan_many(urls, spool=spool).failures) == 1
    spool.close()
    assert journal.kept(kept) == N - 1
    (folder / "05.h5").write_bytes(whole)
    opened.clear()
    spool = Spool.resume(kept)
    found = scan_many(urls, spool=spool)
    spool.close()
    assert opened == ["05.h5"]
    assert not found.failures
    is_fresh(found, urls)
    assert journal.kept(kept) == N


def test_more_and_fewer_files_than_before(folder: Path, tmp_path: Path, opened: list[str]) -> None:
    urls, kept = expand([folder]), tmp_path / "kept"
    for some, new in ((urls[:5], 5), (urls[3:8], 3), (urls[::-1], N - 8), (urls, 0)):
        opened.clear()
        spool = Spool.resume(kept)
        is_fresh(scan_many(some, spool=spool), some)
        spool.close()
        assert len(opened) == new


def test_what_another_scan_has_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls, kept = expand([folder]), tmp_path / "kept"
    interrupted(urls, kept, 3)
    with pytest.raises(refindex.ExistsError, match="go on with it, or remove"):
        Spool(kept)
    before = {path.name: path.read_bytes() for path in kept.iterdir()}
    with pytest.raises(refindex.FormatError, match="of all variables, and this is one of the variables a, b; remove"):
        refindex.scan(folder, variables=["b", "a"], resume=kept)
    monkeypatch.setattr(journal, "version", lambda _: "99.1")
    with pytest.raises(refindex.FormatError, match=r"begun by refindex .*, and this is 99.1; remove the folder, or"):
        refindex.scan(folder, resume=kept)
    monkeypatch.undo()
    monkeypatch.setattr(journal, "FORMAT", journal.FORMAT + 1)
    with pytest.raises(refindex.FormatError, match="not of a form that this refindex knows"):
        refindex.scan(folder, resume=kept)
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == before
    holding = Spool.resume(kept)
    holding.begin({"variables": None, "checksum": False}, urls)
    with pytest.raises(refindex.ConflictError, match="another process is scanning"):
        refindex.scan(folder, resume=kept)
    with pytest.raises(refindex.ConflictError):
        journal.remove(kept)
    holding.close()
    refindex.scan(folder, join=False, resume=kept)
    with pytest.raises(refindex.ExistsError, match="is not what a scan keeps"):
        refindex.scan(folder, resume=folder)
    (tmp_path / "file").touch()
    with pytest.raises(refindex.SourceError, match="file: what is scanned cannot be kept here"):
        refindex.scan(folder, resume=tmp_path / "file")
    (kept / "mine").touch()
    journal.remove(kept)
    assert [path.name for path in kept.iterdir()] == ["mine"]
    journal.remove(tmp_path / "nothing")


def test_no_secrets_are_kept(folder: Path, tmp_path: Path) -> None:
    refindex.scan(folder, join=False, resume=tmp_path / "kept", storage_options={"key": "hunter2", "s3": {"k": "v"}})
    assert all(b"hunter2" not in path.read_bytes() for path in (tmp_path / "kept").iterdir())


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """Go on with a journal of which a file was spoiled, see that the result is right, and tell what was scanned."""
    top = tmp_path_factory.mktemp("damaged")
    (top / "data").mkdir()
    for number in range(3):
        with h5py.File(top / "data" / f"{number}.h5", "w") as file:
            file.attrs["number"] = number
            file.create_dataset("a", data=np.full((8, 50), number), chunks=(2, 50))
    urls = expand([top / "data"])
    refindex.scan(top / "data", resume=top / "whole", join=False)
    fresh = {url: scan_source(url) for url in urls}

    def spoil(name: str, change: Callable[[bytearray], object], times: int = 2) -> list[str]:
        shutil.rmtree(top / "kept", ignore_errors=True)
        shutil.copytree(top / "whole", top / "kept")
        data = bytearray((top / "whole" / name).read_bytes())
        change(data)
        (top / "kept" / name).write_bytes(data)
        names: list[str] = []
        # Twice: what the first one has written behind what was spoiled is right as well.
        for _ in range(times):
            spool = Spool.resume(top / "kept")
            missing = spool.begin({"variables": None, "checksum": False}, urls)
            names += [Path(url).stem for url in missing]
            found = scan_many(urls, spool=spool)
            for url in urls:
                assert_same(found.files[url].manifest(), fresh[url])
            spool.close()
        return names

    spoil.whole = top / "whole"  # type: ignore[attr-defined]
    return spoil


def test_a_journal_that_is_cut_anywhere(damaged: Callable[..., list[str]]) -> None:
    for name in (journal.FILES, journal.DOCUMENTS):
        text = (damaged.whole / name).read_bytes()  # type: ignore[attr-defined]
        last = text[:-1].rindex(b"\n") + 1
        for size in range(last, len(text)):
            again = 1 + (size % 16 == 0)
            assert damaged(name, lambda data, size=size: data.__delitem__(slice(size, None)), again) == ["2"], size
        assert damaged(name, lambda data: None) == []
        assert damaged(name, lambda data: data.clear()) == ["0", "1", "2"]
    record = len((damaged.whole / journal.REFERENCES).read_bytes()) // 3  # type: ignore[attr-defined]
    for cut in (1, 7, 8, record - 1, record):
        assert damaged(journal.REFERENCES, lambda data, cut=cut: data.__delitem__(slice(-cut, None))) == ["2"]
    assert damaged(journal.REFERENCES, lambda data: data.clear()) == ["0", "1", "2"]


@given(data=st.data())
def test_a_journal_with_wrong_bytes(damaged: Callable[..., list[str]], data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([journal.FILES, journal.DOCUMENTS, journal.REFERENCES]))
    size = (damaged.whole / name).stat().st_size  # type: ignore[attr-defined]
    places = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=3, unique=True))
    flips = data.draw(st.lists(st.integers(1, 255), min_size=len(places), max_size=len(places)))
    moved = data.draw(st.none() | st.tuples(st.integers(0, size), st.binary(min_size=1, max_size=5)))

    def change(text: bytearray) -> None:
        for place, flip in zip(places, flips, strict=True):
            text[place] ^= flip
        if moved is not None:
            text[moved[0] : moved[0]] = moved[1]

    assert damaged(name, change) != []


@given(place=st.integers(0, 70), flip=st.integers(1, 255))
def test_a_header_with_wrong_bytes(damaged: Callable[..., list[str]], place: int, flip: int) -> None:
    def change(text: bytearray) -> None:
        text[place % len(text)] ^= flip

    # Either it says the same (a space more or less), or it is refused; what is there is not touched then.
    with contextlib.suppress(refindex.FormatError):
        assert damaged(journal.HEADER, change) == []


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / os.fsdecode(b"\xe9t\xe9 \xff\n.h5"), 1)
    write(folder / "ü.h5", 2)
    urls = expand([folder])
    spool = Spool(tmp_path / "kept")
    scan_many(urls, spool=spool)
    spool.close()
    spool = Spool.resume(tmp_path / "kept")
    assert spool.begin({"variables": None, "checksum": False}, urls) == []
    assert [spool.files[url].sources[0].url for url in urls] == urls
