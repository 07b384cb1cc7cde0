"""SQLite databases whose tables are no tables: refused before anything in them is computed."""

from __future__ import annotations

import os
from pathlib import Path

import apsw
import pytest

import refindex
from refindex.storage.sqlite import pages
from tests.fuzz import structured
from tests.fuzz.targets.archives import small

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n)"


@pytest.mark.parametrize(
    "statements",
    [
        f"DROP TABLE version; CREATE VIEW version AS {ENDLESS} SELECT max(i) AS version, 0 AS timestamp FROM n;",
        f"DROP TABLE node; CREATE VIEW node AS {ENDLESS} SELECT i AS id FROM n;",
        "ALTER TABLE report ADD COLUMN more BLOB GENERATED ALWAYS AS (zeroblob(1000000000));",
        "CREATE TRIGGER t AFTER INSERT ON version BEGIN DELETE FROM node; END;",
    ],
    ids=["endless versions", "endless nodes", "computed column", "trigger"],
)
def test_what_is_computed_is_no_table(tmp_path: Path, statements: str) -> None:
    path = tmp_path / "a.sqlite"
    small().save(path)
    db = apsw.Connection(os.fspath(path), vfs=pages.NAME)
    db.execute(statements).fetchall()
    db.close()
    clock = structured.Clock()
    with clock.running(), pytest.raises(refindex.ManifestError, match="not of the form that a manifest has"):
        refindex.open(path)
