"""``refindex export`` and ``refindex import``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from foreign import foreign_group

import refindex
from refindex.cli.app import main


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object, code: int = 0) -> None:
    monkeypatch.setattr(sys, "argv", ["refindex", *map(str, arguments)])
    try:
        main()
        ended: object = 0
    except SystemExit as stop:
        ended = stop.code or 0
    assert ended == code


@pytest.fixture
def archive(weather: Path, tmp_path: Path) -> Path:
    refindex.scan(weather).save(tmp_path / "a.refindex")
    return tmp_path / "a.refindex"


def test_out_and_back(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out, again = archive.parent / "out.json", archive.parent / "again.sqlite"
    run(monkeypatch, "export", archive, out, "--zarr-format", 2)
    assert capsys.readouterr().out == f"wrote {out}\n"
    run(monkeypatch, "import", out, "--out", again)
    assert capsys.readouterr().out == f"1 source, 9 arrays, 18 references\nwrote {again} (version 0)\n"
    with refindex.open(archive) as one, refindex.open(again) as other:
        np.testing.assert_array_equal(one.group["rain"][...], other.group["rain"][...])
    run(monkeypatch, "import", out, "--out", again, code=1)
    assert "exists" in capsys.readouterr().err
    run(monkeypatch, "import", out, "--out", again, "--overwrite", "--json")
    assert json.loads(capsys.readouterr().out) == {
        "version": 1, "arrays": 9, "references": 18, "sources": 1, "problems": [],
    }  # fmt: skip


def test_a_copy(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    out = archive.parent / "out.zarr"
    options = ["--to", "zarr", "-v", "t2m", "--chunks", "time=3", "--shards", "time=-1", "--no-progress"]
    run(monkeypatch, "export", archive, out, *options)
    group = zarr.open_group(out, mode="r")
    assert sorted(group.array_keys()) == ["lat", "t2m", "time"]
    assert (group["t2m"].chunks, group["t2m"].shards) == ((3, 10, 20), (6, 10, 20))
    run(monkeypatch, "export", archive, out, *options, code=1)
    assert "give overwrite=True (--overwrite)" in capsys.readouterr().err
    run(monkeypatch, "export", archive, out, *options, "--overwrite")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "hdf5"], "--to must be one of"),
        (["--to", "zarr", "--chunks", "time"], "takes DIM=N"),
        (["--to", "zarr", "--chunks", "month=2"], "no dimension month"),
        (["--chunks", "time=2"], "references are to"),
        (["--to", "zarr", "--zarr-format", "2"], "goes with kerchunk"),
        (["--zarr-format", "4"], "--zarr-format"),
    ],
)
def test_wrong_command_lines(
    arguments: list[str],
    message: str,
    archive: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run(monkeypatch, "export", archive, archive.parent / "out", *arguments, code=2)
    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert not (archive.parent / "out").exists()


def test_materialize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("d", data=np.zeros(3000, "i4"), chunks=(500,), compression="lzf")
    run(monkeypatch, "export", tmp_path / "a.h5", tmp_path / "out", code=1)
    assert "/d: 6 of its 6 chunks" in capsys.readouterr().err
    run(monkeypatch, "export", tmp_path / "a.h5", tmp_path / "out", "--materialize")
    assert foreign_group(tmp_path / "out", "kerchunk", 3)["d"][...].tolist() == [0] * 3000


def test_import_tells_what_it_does_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    array = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|u1", "compressor": None, "filters": None,
        "order": "C", "fill_value": 0,
    }  # fmt: skip
    odd = {**array, "compressor": {"id": "jpeg"}}
    refs = {"a/.zarray": array, "a/0": ["data.bin", 0, 1], "b/.zarray": odd}
    (tmp_path / "refs.json").write_text(json.dumps(refs))
    (tmp_path / "data.bin").write_bytes(b"\7")
    run(monkeypatch, "import", tmp_path / "refs.json", "--out", tmp_path / "o.sqlite", code=1)
    assert "--base" in capsys.readouterr().err
    run(monkeypatch, "import", tmp_path / "refs.json", "-o", tmp_path / "o.sqlite", "--base", tmp_path)
    assert "not served: /b: codec 'jpeg'" in capsys.readouterr().err
    with refindex.open(tmp_path / "o.sqlite") as archive:
        assert archive.group["a"][0] == 7
