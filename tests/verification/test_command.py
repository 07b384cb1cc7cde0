"""``refindex verify``, its result, and what happens on the way to it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import refindex
from refindex import api
from refindex.cli import main
from refindex.storage.windows import ROWS, windows
from refindex.verification import Stage
from tests.join.archives import Part, write_archive
from tests.verification.altering import SUFFIXES, with_row


@pytest.fixture(params=SUFFIXES)
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    paths = write_archive(tmp_path / "data", [Part(start=4 * n, length=4) for n in range(3)])
    url = tmp_path / f"archive{request.param}"
    refindex.scan(paths, workers=1).save(url)
    return url


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["refindex", *words])
    try:
        main()
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0


def test_exit_codes(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "verify", str(archive), "--all") == 0
    said = capsys.readouterr().out
    assert "right" in said
    assert "3 of 3 looked at" in said
    next(archive.parent.glob("data/*4.nc")).unlink()
    assert run(monkeypatch, "verify", str(archive)) == 4
    assert "relocate" in capsys.readouterr().out
    assert run(monkeypatch, "verify", str(archive) + "x") == 1
    assert run(monkeypatch, "verify", str(archive), "--sample", "-1") == 2


def test_json(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "verify", str(archive), "--json", "--sample", "5", "--seed", "3") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"]
    assert told["complete"]
    assert told["chunks"] == 5
    assert told["problems"] == []
    next(archive.parent.glob("data/*4.nc")).write_bytes(b"short")
    assert run(monkeypatch, "verify", str(archive), "--json", "--sources-only") == 4
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 1
    assert told["chunks"] == 0
    problem = told["problems"][0]
    assert problem["kind"] == "source"
    assert problem["path"] is None
    assert set(problem) == {"kind", "what", "source", "path", "chunk", "expected", "got", "remedy"}


def test_an_interrupt_tells_what_was_found(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(stage: Stage) -> None:
        if stage.name == "values" and stage.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as raised:
        refindex.verify(archive, progress=stop)
    assert isinstance(raised.value, refindex.VerificationInterrupted)
    so_far = raised.value.so_far
    assert not so_far.complete
    assert so_far.chunks + so_far.absent == 4
    assert so_far.sources_checked == 3

    real = api.verify

    def interrupted(url: Any, **options: Any) -> refindex.Verification:
        return real(url, **{**options, "progress": stop})

    monkeypatch.setattr(api, "verify", interrupted)
    assert run(monkeypatch, "verify", str(archive)) == 130
    told = capsys.readouterr()
    assert "not looked at to the end" in told.out
    assert "interrupted" in told.err


def test_progress(archive: Path) -> None:
    stages: list[Stage] = []
    found = refindex.verify(archive, sample="all", progress=stages.append)
    assert list(dict.fromkeys(stage.name for stage in stages)) == ["manifest", "sources", "values"]
    last = {stage.name: stage for stage in stages}
    assert last["manifest"].done == found.references
    assert (last["sources"].done, last["sources"].total) == (3, 3)
    assert last["values"].done == last["values"].total == found.chunks + found.absent
    refindex.verify(archive, sample=3, progress=True)  # a bar that nobody sees
    with pytest.raises(ValueError, match="sample must be"):
        refindex.verify(archive, sample=-1)


def test_secrets_are_not_told(tmp_path: Path) -> None:
    from dataclasses import replace

    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["d"] = np.arange(4000)
    manifest = refindex.scan(tmp_path / "x.h5")
    source = replace(manifest.sources[0], url="http://127.0.0.1:9/x.h5?token=geheim")
    replace(manifest, sources=(source,)).save(tmp_path / "a.sqlite")
    found = refindex.verify(tmp_path / "a.sqlite", sources_only=True)
    assert not found.ok
    assert "geheim" not in str(found) + json.dumps(found.to_json())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_references_are_read_in_windows(suffix: str, tmp_path: Path) -> None:
    """All of them, in order, and never many at a time; one that is wrong is found wherever it is."""
    n = 2 * ROWS + 17
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("d", (n,), "i1", chunks=(1,))
        file["d"][:5] = 1
    manifest = refindex.scan(tmp_path / "x.h5")
    size = (tmp_path / "x.h5").stat().st_size
    array = manifest.arrays["d"]
    table = refindex.ChunkTable.from_columns(
        chunk=np.arange(n), source=0, offset=np.arange(n) % size, length=np.ones(n), encoding=0
    )
    made = type(array)(path="d", document=array.document, encodings=array.encodings, chunks=table)
    whole = type(manifest)(groups=manifest.groups, arrays={"d": made}, sources=manifest.sources)
    url = tmp_path / f"a{suffix}"
    with_row(whole, "d", n - 3, offset=size).save(url)
    from refindex.storage import open_reader

    reader = open_reader(f"file://{url}")
    seen = [window.columns["chunk"] for window in windows(reader)]
    assert len(seen) == 3
    assert max(map(len, seen)) == ROWS
    assert np.array_equal(np.concatenate(seen), np.arange(n))
    assert [len(w) for w in windows(reader, "d", n - 4, n - 1)][-1] >= 3
    reader.close()
    found = refindex.verify(url, sources_only=True)
    assert [(p.path, p.chunk) for p in found.problems] == [("d", n - 3)]
    assert found.references == n
