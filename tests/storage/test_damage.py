"""Damaged archives: an error that names what is damaged, never fill values."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import zarr
from altered import altering

import refindex

SOURCE = "weather"


@pytest.fixture(scope="module")
def sound(weather: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one archive of each storage, beside their source."""
    folder = tmp_path_factory.mktemp("damage")
    shutil.copy2(weather, folder / "w.nc")
    manifest = refindex.scan(folder / "w.nc")
    manifest.save(folder / "a.refindex")
    manifest.save(folder / "a.sqlite")
    return folder


@pytest.fixture
def box(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "box")
    return tmp_path / "box"


def everything(path: Path) -> dict[str, bytes]:
    """All values of an archive."""
    with refindex.open(path) as archive:
        found = {}
        for name in archive.arrays:
            found[name] = np.asarray(zarr.open_array(archive.store, path=name, mode="r")[...]).tobytes()
        str(archive.report)
        return found


@pytest.fixture(scope="module")
def expected(sound: Path) -> dict[str, bytes]:
    values = everything(sound / "a.refindex")
    assert values == everything(sound / "a.sqlite")
    return {k: v for k, v in values.items() if k != "station"}


def parquet_files(box: Path) -> list[Path]:
    return sorted((box / "a.refindex").rglob("*.parquet"))


@pytest.mark.parametrize("what", ["missing", "truncated", "empty", "longer", "garbage"])
@pytest.mark.parametrize("kind", ["node", "source", "chunk", "report"])
def test_a_damaged_parquet_file_is_named(box: Path, what: str, kind: str) -> None:
    file = next(p for p in parquet_files(box) if f"kind={kind}" in str(p))
    data = file.read_bytes()
    if what == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"truncated": data[:-100], "empty": b"", "longer": data + b"x", "garbage": b"\x5a" * len(data)}[what]
        )
    with pytest.raises(refindex.ManifestError, match=file.name):
        everything(box / "a.refindex")


def test_every_flipped_byte_of_references_is_noticed_or_harmless(box: Path, expected: dict[str, bytes]) -> None:
    """Pages and footers have checksums: a flipped bit raises, or changes nothing."""
    file = next(p for p in parquet_files(box) if "kind=chunk" in str(p))
    data = file.read_bytes()
    rng = np.random.default_rng(0)
    wrong = 0
    for at in rng.choice(len(data), 200, replace=False):
        changed = bytearray(data)
        changed[at] ^= 0x10
        file.write_bytes(bytes(changed))
        try:
            found = {k: v for k, v in everything(box / "a.refindex").items() if k != "station"}
        except refindex.RefindexError:
            continue
        wrong += found != expected
    assert wrong == 0


@pytest.mark.parametrize(
    ("text", "match"),
    [("", "damaged"), ("{", "damaged"), ("[]\n", "damaged"), ('{"add": 5}\n', "damaged"), ("\xff", "damaged")],
)
def test_a_damaged_log_entry_is_named(box: Path, text: str, match: str) -> None:
    entry = box / "a.refindex/_delta_log/00000000000000000000.json"
    entry.write_text(text, encoding="latin-1")
    with pytest.raises(refindex.ManifestError, match=match):
        everything(box / "a.refindex")


def test_a_missing_log_entry(box: Path) -> None:
    refindex.scan(box / "w.nc").save(box / "a.refindex", overwrite=True)
    (box / "a.refindex/_delta_log/00000000000000000000.json").unlink()
    with pytest.raises(refindex.ManifestError, match="00000000000000000000.json is missing"):
        everything(box / "a.refindex")


def test_a_newer_format(box: Path) -> None:
    entry = box / "a.refindex/_delta_log/00000000000000000000.json"
    lines = [json.loads(line) for line in entry.read_text().splitlines()]
    next(line for line in lines if "metaData" in line)["metaData"]["configuration"]["refindex.format"] = "2"
    entry.write_text("\n".join(map(json.dumps, lines)))
    with altering(box / "a.sqlite") as db:
        db.execute("PRAGMA user_version=2")
    for name in ("a.refindex", "a.sqlite"):
        with pytest.raises(refindex.ManifestError, match=r"format 2; .* reads format 1. Upgrade"):
            refindex.open(box / name)
    with pytest.raises(refindex.ManifestError, match="format 2"):
        refindex.scan(box / "w.nc").save(box / "a.sqlite", overwrite=True)


def test_a_table_that_needs_a_newer_reader(box: Path) -> None:
    entry = box / "a.refindex/_delta_log/00000000000000000000.json"
    entry.write_text(entry.read_text().replace('"minReaderVersion":1', '"minReaderVersion":3'))
    with pytest.raises(refindex.ManifestError, match="reader version 3"):
        refindex.open(box / "a.refindex")


@pytest.mark.parametrize("keep", [0, 10, 100, 5000, 20000, -4096, -1])
def test_a_truncated_sqlite_file(box: Path, keep: int, expected: dict[str, bytes]) -> None:
    path = box / "a.sqlite"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(refindex.RefindexError, match="sqlite"):
        everything(path)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE chunk SET source = 99 WHERE source IS NOT NULL",
        "UPDATE chunk SET encoding = 99 WHERE source IS NOT NULL",
        'UPDATE chunk SET "offset" = -5 WHERE source IS NOT NULL',
        "UPDATE chunk SET length = length + 1000000 WHERE source IS NOT NULL",
        "UPDATE chunk SET data = NULL WHERE data IS NOT NULL",
        "UPDATE chunk SET data = x'00' WHERE data IS NOT NULL",
        "UPDATE chunk SET source = NULL WHERE source IS NOT NULL",
        "UPDATE chunk SET length = 'ten' WHERE source IS NOT NULL",
        "UPDATE node SET document = '{' WHERE path = 't2m'",
        "UPDATE node SET encodings = '[{}]' WHERE path = 't2m'",
        "UPDATE node SET encodings = '5' WHERE path = 't2m'",
        "UPDATE node SET path = 'root' WHERE path = ''",
        "UPDATE source SET source = 5",
        "DROP TABLE chunk",
        "DROP TABLE source",
        "DELETE FROM version",
    ],
)
def test_rows_that_contradict_each_other(box: Path, statement: str) -> None:
    with altering(box / "a.sqlite") as db:
        db.execute(statement)
    with pytest.raises(refindex.RefindexError, match=r"a\.sqlite|w\.nc|/t2m"):
        everything(box / "a.sqlite")


def test_what_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "text.sqlite").write_text("hello")
    with sqlite3.connect(tmp_path / "other.sqlite") as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(refindex.NotFoundError, match="neither a refindex archive"):
        refindex.open(tmp_path / "folder")
    with pytest.raises(refindex.NotFoundError, match="no such file"):
        refindex.open(tmp_path / "nothing.refindex")
    with pytest.raises(refindex.RefindexError, match="text.sqlite"):
        refindex.open(tmp_path / "text.sqlite")
    with pytest.raises(refindex.ManifestError, match="not a refindex archive"):
        refindex.open(tmp_path / "other.sqlite")
