"""Many sources: what people name becomes files, files become groups, failures become lines of the report."""

from __future__ import annotations

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import refindex
from refindex import Progress, Status
from refindex.scan import expand, parallel
from refindex.scan.many import group_names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten good files, in two folders, and others."""
    for i in range(10):
        where = tmp_path / "data" / ("a" if i < 5 else "b")
        where.mkdir(parents=True, exist_ok=True)
        with h5py.File(where / f"f{i}.h5", "w") as f:
            f["d"] = np.full(1000, i)
    (tmp_path / "data/readme.txt").write_text("no data")
    (tmp_path / "data/old.refindex").mkdir()
    (tmp_path / "data/old.refindex/x.nc").write_text("not to be found")
    return tmp_path / "data"


def names(found: list[str]) -> list[str]:
    return [url.rpartition("/")[2] for url in found]


def test_expanding(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = [f"f{i}.h5" for i in range(10)]
    assert names(expand([folder])) == everything
    assert names(expand([f"{folder}/**/*.h5"])) == everything
    assert names(expand([f"{folder}/a/f[12].h5", folder / "a/f1.h5", "s3://x/y.nc"])) == ["f1.h5", "f2.h5", "y.nc"]
    monkeypatch.chdir(folder)
    assert expand(["a/f1.h5"]) == [f"file://{folder}/a/f1.h5"]
    assert names(expand(["a/*"])) == everything[:5]
    with pytest.raises(refindex.NotFoundError, match="no file matches"):
        expand(["*.nc"])
    (folder / "empty").mkdir()
    with pytest.raises(refindex.NotFoundError, match=r"no file named \*.nc"):
        expand(["empty"])
    # A name with the signs of a pattern that exists is that file.
    shutil.copy("a/f1.h5", "odd[1].h5")
    assert names(expand(["odd[1].h5"])) == ["odd[1].h5"]


def test_expanding_remote_urls(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in sorted(folder.rglob("*.h5")):
        memory.pipe_file(f"/m/{path.name}", path.read_bytes())
    try:
        assert names(expand(["memory://m/f*.h5"])) == [f"f{i}.h5" for i in range(10)]
        assert names(expand(["memory://m/"])) == [f"f{i}.h5" for i in range(10)]
        with pytest.raises(refindex.NotFoundError):
            expand(["memory://m/*.nc"])
        manifest = refindex.scan("memory://m/f*.h5", workers=1, join=False)  # other processes have other memory
        assert len(manifest.arrays) == 10
    finally:
        memory.rm("/m", recursive=True)


@given(paths=st.lists(st.from_regex(r"\A[a-c./_]{1,8}\Z"), min_size=1, max_size=8, unique=True))
def test_group_names_are_unique_and_valid(paths: list[str]) -> None:
    found = group_names([f"file:///x/{p}.nc" for p in paths])
    assert len(set(found)) == len(paths)
    assert all(n and "/" not in n and n.strip(".") and not n.startswith("__") for n in found)


def test_group_names() -> None:
    assert group_names(["file:///d/a.nc", "file:///d/b.nc"]) == ["a", "b"]
    assert group_names(["file:///d/2000/a.nc", "file:///d/2001/a.nc", "file:///d/b.nc"]) == ["2000_a", "2001_a", "b"]
    assert group_names(["s3://x/d/a.nc?version=1", "s3://x/d/a.h5"]) == ["x_d_a", "x_d_a_2"]
    assert group_names(["file:///d/.hidden", "file:///d/no_suffix", "file:///d/a.b.nc"]) == [
        "hidden",
        "no_suffix",
        "a.b",
    ]


@pytest.mark.parametrize("workers", [1, 2, None])
def test_each_file_is_a_group(folder: Path, workers: int | None, tmp_path: Path) -> None:
    manifest = refindex.scan(folder, workers=workers, join=False)
    assert set(manifest.arrays) == {f"f{i}/d" for i in range(10)}
    assert len(manifest.sources) == 10
    manifest.save(tmp_path / "a.refindex")
    with refindex.open(tmp_path / "a.refindex") as archive:
        assert all(np.all(archive.group[f"f{i}/d"][...] == i) for i in range(10))
        assert archive.to_datatree()["f3/d"][0] == 3


def test_every_way_of_scanning_gives_the_same(folder: Path) -> None:
    one = refindex.scan(folder, workers=1, join=False)
    with ThreadPoolExecutor(2) as pool:
        for other in (refindex.scan(folder, workers=2, join=False), refindex.scan(folder, executor=pool, join=False)):
            assert {p: n.document for p, n in other.nodes.items()} == {p: n.document for p, n in one.nodes.items()}
            assert other.sources == one.sources
            assert other.report.entries == one.report.entries
            assert all(a.chunks.same_references(other.arrays[p].chunks) for p, a in one.arrays.items())


def spoil(folder: Path) -> dict[str, str]:
    """Files that cannot be scanned, and a word of why."""
    good = (folder / "a/f1.h5").read_bytes()
    (folder / "text.nc").write_text("hello")
    (folder / "empty.nc").touch()
    (folder / "cut.h5").write_bytes(good[: len(good) // 2])
    (folder / "gone.nc").symlink_to(folder / "nowhere.nc")
    return {"text.nc": "not HDF5", "empty.nc": "empty", "cut.h5": "truncated", "gone.nc": "no such file"}


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_named(folder: Path, workers: int) -> None:
    bad = spoil(folder)
    manifest = refindex.scan(folder, workers=workers, join=False)
    assert len(manifest.arrays) == 10
    failed = {Path(e.source).name: e.reason for e in manifest.report.select(Status.FAILED)}
    assert failed.keys() == bad.keys()
    for name, word in bad.items():
        assert word in failed[name], failed[name]
    with pytest.raises(refindex.RefindexError, match="|".join(bad)):
        refindex.scan(folder, workers=workers, join=False, strict=True)


def test_a_single_bad_file_is_an_error_with_its_name(folder: Path) -> None:
    for name, word in spoil(folder).items():
        with pytest.raises(refindex.RefindexError, match=f"{name}: .*{word}"):
            refindex.scan(folder / name)
    with pytest.raises(refindex.NotFoundError, match="nothing.nc"):
        refindex.scan(folder / "nothing.nc")


def test_if_all_fail_it_is_an_error(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.nc").write_text("hello")
    with pytest.raises(refindex.FormatError, match=r"none of 3 sources .*0.nc: not HDF5"):
        refindex.scan(tmp_path, workers=1)


def test_an_unreadable_file(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "a/f1.h5").chmod(0)
    with pytest.raises(refindex.SourceError, match="permission"):
        refindex.scan(folder / "a/f1.h5")


def test_a_crash_costs_one_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies (libhdf5 can) takes its file with it and no other."""
    (folder / "crash.nc").write_text("boom")
    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import test modules
    monkeypatch.setattr(parallel, "scan_batch", _crashing)
    manifest = refindex.scan(folder, workers=2, join=False)
    assert len(manifest.arrays) == 10
    (failure,) = manifest.report.select(Status.FAILED)
    assert failure.source.endswith("crash.nc")
    assert "crashed" in failure.reason


_scan_batch = parallel.scan_batch


def _crashing(batch, job):
    if any(url.endswith("crash.nc") for url in batch):
        os.kill(os.getpid(), 9)
    return _scan_batch(batch, job)


def test_progress(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.nc").write_text("x")
    seen: list[Progress] = []
    manifest = refindex.scan(folder, workers=1, join=False, progress=seen.append)
    assert [p.done for p in seen] == list(range(1, 12))
    assert seen[-1].total == 11
    assert seen[-1].failed == 1
    assert seen[-1].references == manifest.n_references
    refindex.scan(folder, workers=1, join=False, progress=True)
    assert "Traceback" not in capsys.readouterr().err


def test_scripts_need_no_main_guard(folder: Path, tmp_path: Path) -> None:
    """Worker processes do not import the script that started them."""
    import subprocess
    import sys

    script = tmp_path / "script.py"
    script.write_text(f"import refindex\nprint(len(refindex.scan({str(folder)!r}, workers=2, join=False).arrays))\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["10"]
