"""Flipped bits, cuts and losses in every file of an archive with checkpoints: an error, or the same answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from manifests import make_manifest
from test_versions import State, append, read_state

import refindex
from refindex import ChunkTable, storage
from refindex.access import urls
from refindex.storage.parquet import checkpoint, log

NEWEST = 13


@pytest.fixture(scope="module", params=["whole", "vacuumed"])
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("log") / "a.refindex"
    table = ChunkTable.from_columns(chunk=[0], source=0, offset=[0], length=[10])
    make_manifest({"a": table}, sources=1).save(out)
    for _ in range(NEWEST):
        append(urls.absolute(out))
    if request.param == "vacuumed":
        storage.vacuum(urls.absolute(out), keep_versions=NEWEST - 4, grace=storage.GRACE * 0)
    return out


@pytest.fixture(params=["listed", "probed"])
def url(archive: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The archive, where the log can be listed, and where it cannot (as over HTTP)."""
    monkeypatch.setattr(log, "can_list", lambda _: request.param == "listed")
    return urls.absolute(archive)


def damages(data: bytes, seed: int) -> Iterator[bytes]:
    rng = np.random.default_rng(seed)
    for at in rng.choice(len(data), min(len(data), 3), replace=False).tolist():
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        yield bytes(changed)
    yield from (data[:-1], data[: seed % len(data)])


def test_every_file(archive: Path, url: str) -> None:
    wanted = [NEWEST, 10, 7]
    expected: dict[int, State] = {version: read_state(url, version) for version in wanted}
    noticed = 0
    files = sorted(path for path in archive.rglob("*") if path.is_file())
    assert len(files) > 30
    for seed, path in enumerate(files):
        data = path.read_bytes()
        try:
            for damaged in damages(data, seed):
                path.write_bytes(damaged)
                for version in wanted if seed % 3 == 0 else wanted[:1]:
                    try:
                        assert read_state(url, None if version == NEWEST else version) == expected[version], path.name
                    except refindex.ManifestError:
                        noticed += 1
        finally:
            path.write_bytes(data)
    assert noticed > 30


def test_a_lost_file(archive: Path, url: str) -> None:
    """The newest entry aside: without it, the version before is the newest."""
    expected = read_state(url)
    for path in sorted(path for path in archive.rglob("*") if path.is_file()):
        if path.name == f"{NEWEST:020d}.json":
            continue
        data = path.read_bytes()
        path.unlink()
        # Where nothing can be listed, the log ends where an entry is missing; and without any hint, it may not be seen.
        behind = not log.can_list(None) and path.suffix == ".json" and path.name > f"{10:020d}.json"
        unseen = not log.can_list(None) and path.name == checkpoint.LAST
        try:
            assert behind or read_state(url) == expected, path.name
        except refindex.ManifestError:
            pass
        except refindex.NotFoundError:
            if not unseen:
                raise
        finally:
            path.write_bytes(data)


def test_checkpoints_are_only_a_short_cut(archive: Path, url: str) -> None:
    if not (archive / "_delta_log" / f"{0:020d}.json").exists():
        pytest.skip("its first entries have expired")
    expected = read_state(url)
    for name in (f"{10:020d}.checkpoint.parquet", checkpoint.LAST):
        path = archive / "_delta_log" / name
        data = path.read_bytes()
        path.write_bytes(data[:50])
        assert read_state(url) == expected
        path.write_bytes(data)


def test_a_checkpoint_that_cannot_be_written_does_not_fail_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "a.refindex"
    make_manifest({}).save(out)

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoint, "encode", fail)
    for version in range(1, 12):
        assert append(urls.absolute(out), paths=()) == version
    assert not list(out.rglob("*.checkpoint.parquet"))
    assert len(read_state(urls.absolute(out)).sources) == 14


def test_what_the_log_says(archive: Path) -> None:
    entry = (archive / "_delta_log" / f"{NEWEST:020d}.json").read_bytes()
    assert log.checksum(entry)[0] == log.checksum(entry)[1]  # type: ignore[index]
    info = json.loads(entry.splitlines()[0])["commitInfo"]
    assert info["operation"] == "append"
    assert info["refindex"]["details"] == {"name": "t"}
    hint = json.loads((archive / "_delta_log" / checkpoint.LAST).read_bytes())
    assert hint["version"] == 10
    assert hint["refindex.crc32"].encode() in (archive / "_delta_log" / f"{10:020d}.checkpoint.parquet").read_bytes()


@pytest.mark.parametrize("name", ["abc", "file", "000", "kind"])
def test_details_that_look_like_checksums(name: str, tmp_path: Path) -> None:
    out = tmp_path / "a.refindex"
    details = {"crc32": "00000000", name: '"crc32":"12345678"'}
    storage.commit(urls.absolute(out), make_manifest({}), base=None, operation="write", details=details)
    assert storage.history(urls.absolute(out))[0].details == details


def test_every_flipped_bit_of_an_entry_is_noticed(archive: Path) -> None:
    data = (archive / "_delta_log" / f"{NEWEST:020d}.json").read_bytes()
    log.parse(data, NEWEST, urls.absolute(archive))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        with pytest.raises(refindex.ManifestError, match="damaged|reader version|format|refindex archive"):
            log.parse(bytes(changed), NEWEST, urls.absolute(archive))


def test_every_flipped_bit_of_a_checkpoint_is_noticed(archive: Path) -> None:
    data = (archive / "_delta_log" / f"{10:020d}.checkpoint.parquet").read_bytes()
    checkpoint.decode(data, 10, urls.absolute(archive))
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << (at % 8)
        with pytest.raises(refindex.FormatError):
            checkpoint.decode(bytes(changed), 10, urls.absolute(archive))
