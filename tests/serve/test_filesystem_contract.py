"""The read side of fsspec's abstract test suite, run on our filesystem."""

from __future__ import annotations

from typing import Any

import pytest
from fsspec.tests.abstract import AbstractFixtures
from fsspec.tests.abstract.get import AbstractGetTests
from scratch import ScratchKeys

from refindex.serve.filesystem import RefindexFileSystem


class FillableFileSystem(RefindexFileSystem):
    """Our filesystem over a dictionary that the suite can fill; all reading and listing is the real one's."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__("memory://contract", keys=ScratchKeys(), skip_instance_cache=True, **kwargs)

    def pipe(self, path: str, value: bytes) -> None:
        self.keys.data[self._strip_protocol(path)] = value

    def touch(self, path: str, truncate: bool = True, **kwargs: Any) -> None:
        self.pipe(path, b"")

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders are where keys are."""

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        self.keys.data.clear()


class TestGet(AbstractFixtures, AbstractGetTests):
    @pytest.fixture
    def fs(self) -> FillableFileSystem:
        return FillableFileSystem()

    @pytest.fixture
    def fs_path(self) -> str:
        # Not the root: fsspec itself mistakes a one-part source path for the folder that holds it.
        return "group"

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False
