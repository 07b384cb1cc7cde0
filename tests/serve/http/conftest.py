"""Servers of archives."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import refindex

for folder in (Path(__file__).parents[2] / "gauntlet", Path(__file__).parents[1], Path(__file__).parent):
    sys.path.insert(0, str(folder))


@pytest.fixture(scope="session")
def archive_url(weather: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("served") / "weather.refindex"
    refindex.scan(weather).save(where)
    return where


@pytest.fixture(scope="session")
def archive(archive_url: Path) -> Iterator[refindex.Archive]:
    with refindex.open(archive_url) as opened:
        yield opened


@pytest.fixture(scope="session")
def server(archive: refindex.Archive) -> Iterator[str]:
    """The URL of a server of the weather archive; ends with a slash."""
    with archive.serve(cors=["https://example.org"]) as running:
        yield running.url
