"""Every file of a Parquet archive with a history: gone, cut, emptied, flipped or in the place of another.

What is read then is right to the last value, or refused by an error that names the archive.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from grown import Values, grow, outcome

from refindex.storage.parquet import checkpoint, log

NEWEST = 4


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path, list[Values]]]:
    """An archive with checkpoints, another made in the same way of other files, and the values of the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "EVERY", 2)
        one, expected = grow(tmp_path_factory.mktemp("one"), ".refindex")
        other, _ = grow(tmp_path_factory.mktemp("other"), ".refindex", seed=1)
        assert len(expected) == NEWEST + 1
        yield one, other, expected


@pytest.fixture
def box(archives: tuple[Path, Path, list[Values]], tmp_path: Path) -> Path:
    shutil.copytree(archives[0].parent, tmp_path / "box")
    return tmp_path / "box" / archives[0].name


@pytest.fixture(params=["listed", "probed"])
def listed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the log can be listed, or is found by trying (as over HTTP)."""
    monkeypatch.setattr(log, "can_list", lambda _: request.param == "listed")
    return str(request.param) == "listed"


def kind(path: Path) -> str:
    if path.parent.name != log.LOG:
        return path.parent.name + path.name.partition("part")[0]
    return path.name if path.name == checkpoint.LAST else "".join(path.suffixes)


def siblings(box: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for path in sorted(path for path in box.rglob("*") if path.is_file()):
        found.setdefault(kind(path), []).append(path)
    return found


def flips(data: bytes, number: int) -> Iterator[bytes]:
    random = np.random.default_rng(number)
    for at in random.choice(len(data), min(len(data), 4), replace=False).tolist():
        yield data[:at] + bytes([data[at] ^ (1 << int(random.integers(8)))]) + data[at + 1 :]


def cuts(data: bytes, number: int) -> Iterator[bytes]:
    yield from (data[:-1], data[: len(data) // 2], data[:3])


def emptied(data: bytes, number: int) -> Iterator[bytes]:
    yield from (b"", bytes(len(data)), data + data)


DAMAGES: dict[str, Callable[[bytes, int], Iterator[bytes]]] = {"flipped": flips, "cut": cuts, "emptied": emptied}


def test_the_archive_has_all_there_is(box: Path, archives: tuple[Path, Path, list[Values]], listed: bool) -> None:
    assert {*siblings(box)} == {
        *(f"kind={name}" for name in ("node", "source", "chunk", "chunkinline-", "placement", "report")),
        *(".json", ".checkpoint.parquet", "_last_checkpoint"),
    }
    assert outcome(box, archives[2]) == "right"


def some(number: int) -> list[int]:
    """Versions to look at: the newest, and another."""
    return [NEWEST, number % NEWEST]


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged(what: str, box: Path, archives: tuple[Path, Path, list[Values]], listed: bool) -> None:
    said: dict[str, list[str]] = {}
    number = 0
    for name, paths in siblings(box).items():
        for path in paths:
            data = path.read_bytes()
            number += 1
            for damaged in DAMAGES[what](data, number):
                path.write_bytes(damaged)
                said.setdefault(name, []).append(outcome(box, archives[2], some(number)))
            path.write_bytes(data)
    for name in ("kind=chunk", "kind=chunkinline-", "kind=node", "kind=source", ".json"):
        assert "refused" in said[name], name


def test_gone(box: Path, archives: tuple[Path, Path, list[Values]], listed: bool) -> None:
    number = 0
    for paths in siblings(box).values():
        for path in paths:
            number += 1
            data = path.read_bytes()
            path.unlink()
            # Without its last entry, an archive ends before.
            versions = [v for v in some(number) if path.name != f"{NEWEST:020d}.json" or v < NEWEST]
            outcome(box, archives[2], versions)
            path.write_bytes(data)


def test_in_the_place_of_another(box: Path, archives: tuple[Path, Path, list[Values]], listed: bool) -> None:
    """Of the same kind, which is sound in itself."""
    number = 0
    for paths in siblings(box).values():
        for path in paths:
            data = path.read_bytes()
            for other in paths:
                if other == path or other.read_bytes() == data:
                    continue
                number += 1
                path.write_bytes(other.read_bytes())
                outcome(box, archives[2], some(number))
                path.write_bytes(data)


def test_of_another_archive(box: Path, archives: tuple[Path, Path, list[Values]], listed: bool) -> None:
    """Made in the same way, so that all has the same size."""
    number = 0
    theirs = siblings(archives[1])
    for name, paths in siblings(box).items():
        for path, other in zip(paths, theirs[name], strict=True):
            number += 1
            data = path.read_bytes()
            path.write_bytes(other.read_bytes())
            outcome(box, archives[2], some(number))
            path.write_bytes(data)
