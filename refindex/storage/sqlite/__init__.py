"""Manifests as one SQLite file: the same relations, indexed for single look-ups.

Rows are stamped with the version that added them and the one that removed them, so that a reader
is pinned to the version that it opened.
"""

from __future__ import annotations

from refindex.storage.sqlite import copy
from refindex.storage.sqlite.database import is_archive
from refindex.storage.sqlite.reader import SQLiteReader
from refindex.storage.sqlite.writer import commit, newest_version, replace_remote, restore, vacuum

__all__ = ["SQLiteReader", "commit", "copy", "is_archive", "newest_version", "replace_remote", "restore", "vacuum"]
