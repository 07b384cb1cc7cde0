"""The page on the manifest format says what the storages write."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

import refindex
from refindex.storage import tables

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "manifest-format.md"
TYPES = {
    pa.string(): "string",
    pa.int32(): "int32",
    pa.int64(): "int64",
    pa.binary(): "bytes",
    pa.timestamp("us", tz="UTC"): "time",
}


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", tables.SCHEMAS)
def test_columns_and_types_of_a_relation(page: str, kind: str) -> None:
    section = re.search(rf"^### {kind}\n(.*?)^##", page, re.MULTILINE | re.DOTALL)
    assert section is not None
    listed = re.findall(r"^\| `(\w+)` \| ([\w ]+) \|", section[1], re.MULTILINE)
    written = [
        (column.name, TYPES[column.type] + (" or null" if column.nullable else "")) for column in tables.SCHEMAS[kind]
    ]
    assert listed == written


@pytest.mark.usefixtures("workplace")
def test_sqlite_schema(page: str) -> None:
    refindex.scan("t2m_2023.nc").save("archive.sqlite")
    with closing(sqlite3.connect("archive.sqlite")) as db:
        written = [row[0] for row in db.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
        header = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
    shown = re.search(r"^```sql\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert shown is not None
    assert [" ".join(sql.split()) for sql in shown[1].strip().split(";\n")] == [
        " ".join(sql.split()) + (";" if number == len(written) - 1 else "") for number, sql in enumerate(written)
    ]
    assert f"0x{header[0]:X}" in page
    assert header[1] == 1


@pytest.mark.usefixtures("workplace")
def test_the_log_has_what_the_page_names(page: str) -> None:
    refindex.scan("t2m_2023.nc").save("archive.refindex")
    log = Path("archive.refindex/_delta_log/00000000000000000000.json").read_text(encoding="utf-8")
    for name in ("refindex.format", "refindex.footer.crc32", "numRecords", "minReaderVersion", "minWriterVersion"):
        assert name in log
        assert name in page
    assert set(re.findall(r'"(refindex\.[\w.]+)"', log)) <= set(re.findall(r"refindex\.(?:format|footer\.crc32)", page))
