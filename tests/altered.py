"""Archives whose rows are changed behind refindex's back, as a program with a fault of its own would write them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import apsw

from refindex.access import urls
from refindex.storage.sqlite import database


@contextmanager
def altering(archive: Path) -> Iterator[apsw.Connection]:
    """The database of an archive, in a transaction. Its pages get the checksums that belong to them."""
    with closing(database.connect(archive, urls.absolute(archive), write=True)) as db, db:
        yield db
