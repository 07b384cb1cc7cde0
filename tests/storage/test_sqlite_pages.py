"""Damage in every page of an SQLite archive, and in the journal of a writer that was killed: told, never served."""

from __future__ import annotations

import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import apsw
import numpy as np
import pytest
from grown import Values, grow, outcome, read_x

import refindex
from refindex import storage
from refindex.access import urls
from refindex.storage.sqlite import database, pages

PAGE = 8192


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Values]]:
    return grow(tmp_path_factory.mktemp("pages"), ".sqlite")


@pytest.fixture(scope="module")
def sibling(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An archive made in the same way, of other files."""
    return grow(tmp_path_factory.mktemp("pages"), ".sqlite", seed=1)[0].read_bytes()


@pytest.fixture
def box(made: tuple[Path, list[Values]], tmp_path: Path) -> Path:
    """A copy of the archive, with its files."""
    shutil.copytree(made[0].parent, tmp_path / "box")
    return tmp_path / "box" / made[0].name


def test_nothing_is_wrong_with_what_is_written(made: tuple[Path, list[Values]]) -> None:
    """The file is sound, and any SQLite reads it."""
    archive, expected = made
    assert outcome(archive, expected) == "right"
    data = archive.read_bytes()
    assert len(data) > 8 * PAGE
    assert data[20] == pages.RESERVED
    with closing(sqlite3.connect(f"{archive.as_uri()}?mode=ro", uri=True)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("SELECT count(*) FROM version").fetchone() == (len(expected),)
    for number in range(1, len(data) // PAGE + 1):
        page = data[(number - 1) * PAGE : number * PAGE]
        assert page[-8:-4] == zlib.crc32(page[:-8], number).to_bytes(4, "little"), number


DAMAGES: dict[str, Callable[[bytes, int, np.random.Generator], bytes]] = {
    "a bit": lambda page, _, random: flipped(page, int(random.integers(PAGE)), random),
    "a bit of its header": lambda page, _, random: flipped(page, int(random.integers(8)), random),
    "a bit of its numbers": lambda page, _, random: flipped(page, 8 + int(random.integers(200)), random),
    "a bit of its end": lambda page, _, random: flipped(page, PAGE - 5 - int(random.integers(8)), random),
    "zeros": lambda page, _, __: bytes(PAGE),
    "a sector of zeros": lambda page, at, _: page[: 512 * (at % 16)] + bytes(512) + page[512 * (at % 16) + 512 :],
    "noise": lambda _, __, random: random.bytes(PAGE),
}


def flipped(data: bytes, at: int, random: np.random.Generator) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << int(random.integers(8))
    return bytes(changed)


def put(archive: Path, data: bytes, number: int, page: bytes) -> None:
    archive.write_bytes(data[: number * PAGE] + page + data[(number + 1) * PAGE :])


@pytest.mark.parametrize("what", DAMAGES)
def test_every_page_damaged(what: str, box: Path, made: tuple[Path, list[Values]]) -> None:
    data = box.read_bytes()
    random = np.random.default_rng(sorted(DAMAGES).index(what))
    said = []
    for number in range(len(data) // PAGE):
        page = data[number * PAGE : (number + 1) * PAGE]
        damaged = DAMAGES[what](page, number, random)
        if damaged == page:
            continue
        put(box, data, number, damaged)
        said.append(outcome(box, made[1], [1, 3, 4]))
    assert said[0] == "refused"
    assert said.count("refused") > len(said) // 2  # the others are free, or hold nothing that is read


def test_every_page_in_the_place_of_another(box: Path, made: tuple[Path, list[Values]]) -> None:
    data = box.read_bytes()
    n = len(data) // PAGE
    said = []
    for number in range(n):
        other = (number + 1) % n
        put(box, data, number, data[other * PAGE : (other + 1) * PAGE])
        said.append(outcome(box, made[1]))
    assert said.count("refused") > n // 2


def test_every_page_of_another_archive(box: Path, sibling: bytes, made: tuple[Path, list[Values]]) -> None:
    data = box.read_bytes()
    said = []
    for number in range(len(data) // PAGE):
        put(box, data, number, sibling[number * PAGE : (number + 1) * PAGE])
        said.append(outcome(box, made[1]))
    assert said.count("refused") > len(said) // 2


def test_cut_anywhere(box: Path, made: tuple[Path, list[Values]]) -> None:
    data = box.read_bytes()
    edges = [number * PAGE + by for number in range(len(data) // PAGE) for by in (0, 1, 700, PAGE - 1)]
    for keep in edges:
        box.write_bytes(data[:keep])
        assert outcome(box, made[1], [0, len(made[1]) - 1]) == "refused"
    box.write_bytes(data + b"\0" * 100)
    assert outcome(box, made[1]) == "right"


def test_a_program_that_knows_no_checksums_has_written_to_it(box: Path) -> None:
    with closing(sqlite3.connect(box)) as db, db:
        db.execute('UPDATE chunk SET "offset" = "offset" + 8 WHERE source IS NOT NULL')
    with pytest.raises(refindex.ManifestError, match="does not have the checksum"):
        read_x(box)
    with closing(sqlite3.connect(box)) as db:
        db.execute("PRAGMA journal_mode=WAL")
    with pytest.raises(refindex.ManifestError, match="does not have the checksum"):
        read_x(box)


def test_the_byte_that_says_that_there_are_checksums(box: Path) -> None:
    data = bytearray(box.read_bytes())
    for value in range(256):
        data[20] = value
        box.write_bytes(data)
        if value != pages.RESERVED:
            with pytest.raises(refindex.ManifestError, match=f"{value} bytes for checksums, expected 12"):
                refindex.open(box)


def test_several_connections_of_one_process(box: Path, tmp_path: Path, made: tuple[Path, list[Values]]) -> None:
    """Others come and go, and have the file open that was there before, while one writes; each has its own journal."""
    url = urls.absolute(box)
    other, _ = grow(tmp_path / "other", ".sqlite", seed=1)
    with closing(storage.open_reader(url)) as old:
        refindex.publish(other, box, overwrite=True, allow_local=True, summary=False, stac=False)
        with closing(database.connect(box, url, write=True)) as writer:
            storage.open_reader(url).close()
            assert old.find("x").length.all()
            writer.execute("BEGIN IMMEDIATE")
            writer.execute("UPDATE chunk SET length = length + 1").fetchall()
            old.placements  # noqa: B018
            storage.open_reader(url).close()
            writer.execute("SAVEPOINT here; UPDATE chunk SET length = 5; ROLLBACK TO here; COMMIT").fetchall()
    assert len(whole_journal := interrupted(box, 2, storage.newest_version(url))) > PAGE
    assert len(whole_journal) == box.with_name(box.name + "-journal").stat().st_size
    with closing(storage.open_reader(url)) as reader:
        assert (reader.find("x").length == 33).all()


def test_large_values_are_checked(tmp_path: Path) -> None:
    """They lie in pages of their own, one behind the other, that SQLite would read around its cache."""
    from manifests import make_manifest

    from refindex import ChunkTable

    blob = np.random.default_rng(0).bytes(20 * PAGE)
    out = tmp_path / "a.sqlite"
    make_manifest({"a": ChunkTable.inline([(0, blob)])}).save(out)
    with closing(storage.open_reader(urls.absolute(out))) as reader:
        assert reader.find("a").data == blob
    data = out.read_bytes()
    noticed = 0
    for at in (data.index(blob[n : n + 60]) for n in range(0, len(blob) - 60, PAGE)):
        changed = bytearray(data)
        changed[at + 50] ^= 4
        out.write_bytes(changed)
        with closing(storage.open_reader(urls.absolute(out))) as reader, pytest.raises(refindex.ManifestError):
            reader.find("a")
        noticed += 1
    assert noticed == 20


def test_a_vacuum_and_a_copy_keep_the_checksums(box: Path, tmp_path: Path, made: tuple[Path, list[Values]]) -> None:
    storage.vacuum(urls.absolute(box), keep_versions=1)
    refindex.publish(box, tmp_path / "copy.sqlite", allow_local=True, summary=False, stac=False)
    last = len(made[1]) - 1
    for archive in (box, tmp_path / "copy.sqlite"):
        data = archive.read_bytes()
        assert data[20] == pages.RESERVED
        assert data[PAGE - 4 : PAGE] == bytes(4)
        np.testing.assert_array_equal(read_x(archive), made[1][last])
        put(archive, data, 1, flipped(data[PAGE : 2 * PAGE], 100, np.random.default_rng(0)))
        with closing(database.connect(archive, "a")) as db, pytest.raises(pages.PageError, match="page 2"):
            db.execute("PRAGMA integrity_check").fetchall()


def interrupted(box: Path, after: int = 5, restored: int = 2) -> bytes:
    """What a writer leaves that is killed when it has written to the file so often; returns the journal."""
    kept: dict[str, bytes] = {}
    journal = box.with_name(box.name + "-journal")

    class Stop(BaseException):
        pass

    class Base(apsw.VFSFile):
        def __init__(self, name: str | apsw.URIFilename | None, flags: list[int]) -> None:
            super().__init__("", name, flags)
            self.main, self.count = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB), 0

        def xWrite(self, data: bytes, offset: int) -> None:
            super().xWrite(data, offset)
            if self.main and "journal" not in kept:
                self.count += 1
                if self.count == after:
                    kept["journal"], kept["file"] = journal.read_bytes(), box.read_bytes()

    class Files(apsw.VFS):
        def __init__(self) -> None:
            super().__init__("watched", base="")

        def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:
            return Base(name, flags)

    below, above = Files(), pages.CheckedFiles("refindex-watched", base="watched")
    before, pages.NAME = pages.NAME, "refindex-watched"
    try:
        storage.restore(urls.absolute(box), restored)
    finally:
        pages.NAME = before
        above.unregister()
        below.unregister()
    if kept:
        box.write_bytes(kept["file"])
        journal.write_bytes(kept["journal"])
    return kept.get("journal", b"")


def test_a_journal_that_is_gone_whenever_the_writer_was_killed(box: Path, made: tuple[Path, list[Values]]) -> None:
    data, said = box.read_bytes(), []
    for after in range(1, 100):
        box.write_bytes(data)
        if not interrupted(box, after):
            break
        box.with_name(box.name + "-journal").unlink()
        said.append(outcome(box, [*made[1], made[1][2]]))
    # The last write takes the mark away: all is there then.
    assert said == ["refused"] * (len(said) - 1) + ["right"]
    assert len(said) > 6


def test_a_journal_that_is_damaged_or_lost(box: Path, sibling: bytes, made: tuple[Path, list[Values]]) -> None:
    """It undoes half a commit; if it cannot, nothing is read."""
    expected = made[1]
    whole = interrupted(box)
    half = box.read_bytes()
    journal = box.with_name(box.name + "-journal")
    assert len(whole) > 3 * PAGE
    assert outcome(box, expected) == "right"
    assert not journal.exists()
    random = np.random.default_rng(0)

    def damages() -> Iterator[bytes | None]:
        yield None
        yield from (
            whole[:size]
            for size in (0, 1, 27, 511, 512, 600, 512 + PAGE, 520 + PAGE, len(whole) - 1, len(whole) - PAGE)
        )
        anywhere = (int(at) for at in random.integers(512, len(whole), 40))
        # The last four bytes of a page are those of the mark, which is of no account in a journal.
        for at in (*range(32), *(at for at in anywhere if not PAGE <= (at - 512) % (PAGE + 8) < PAGE + 4)):
            yield flipped(whole, at, random)
        for record in range((len(whole) - 512) // (PAGE + 8)):
            start = 512 + record * (PAGE + 8)
            for at in (start, start + 3, start + 4 + PAGE, start + 7 + PAGE, start + PAGE - 4):
                yield flipped(whole, at, random)
        yield bytes(512) + whole[512:]
        yield whole[:512] + whole[512 + PAGE + 8 :]

    said = []
    for damaged in damages():
        box.write_bytes(half)
        journal.unlink(missing_ok=True)
        if damaged is not None:
            journal.write_bytes(damaged)
        said.append(outcome(box, expected))
    assert set(said) == {"refused"}


def test_the_journal_of_another_archive(box: Path, tmp_path: Path, made: tuple[Path, list[Values]]) -> None:
    """As when an archive is copied over one whose writer was killed."""
    interrupted(box)
    other, expected = grow(tmp_path / "other", ".sqlite", seed=1)
    shutil.copyfile(box.with_name(box.name + "-journal"), other.with_name(other.name + "-journal"))
    assert outcome(other, expected) == "refused"


def test_links_to_archives_and_to_sources(box: Path, made: tuple[Path, list[Values]], tmp_path: Path) -> None:
    """What is between SQLite and the files takes no link for an archive, and opens one through it."""
    link = box.with_name("link.sqlite")
    link.symlink_to(box)
    assert outcome(link, made[1]) == "right"
    source = next(box.parent.glob("*.[nh]*"))
    other = tmp_path / "source"
    other.symlink_to(source)
    assert not storage.is_archive(urls.absolute(other))
    with refindex.open(other) as archive:
        assert archive.arrays
