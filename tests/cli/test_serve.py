"""``refindex serve``: starts, says where, ends when told to, and says what is wrong in one line."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import refindex
from refindex.cli.app import main

pytest.importorskip("uvicorn")


@pytest.fixture
def archive(weather: Path, tmp_path: Path) -> Path:
    refindex.scan(weather).save(tmp_path / "weather.refindex")
    return tmp_path / "weather.refindex"


@contextmanager
def served(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves, and the line that it prints."""
    command = [sys.executable, "-X", "dev", "-W", "error::ResourceWarning", "-m", "refindex.cli", "serve"]
    process = subprocess.Popen(
        [*command, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate(timeout=20)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as response:
        return bytes(response.read())


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_told_to_stop(archive: Path, weather: Path, told: signal.Signals) -> None:
    with served(archive, "--port", "0") as (process, line):
        found = re.fullmatch(r"(\S+) version 0 at (http://127\.0\.0\.1:\d+/) reads (\S+)\n", line)
        assert found is not None, line
        assert found[1] == str(archive)
        assert found[3] == f"{weather.parent}/"
        assert process.stdout is not None
        places = process.stdout.readline().removeprefix("may read what lies below ").rstrip("\n").split(", ")
        assert sorted(places) == sorted([str(weather.parent), str(archive.parent)])
        with refindex.open(archive) as opened:
            assert get(f"{found[2]}t2m/c/0/0/0") == opened.store.keys.read("t2m/c/0/0/0")
            assert get(f"{found[2]}plain/t2m/c/0/0/0") == opened.plain_store.keys.read("t2m/c/0/0/0")
        process.send_signal(told)
        out, errors = process.communicate(timeout=20)
        assert process.returncode == 0
        assert out == ""
        assert errors in ("", "stopped\n")


def test_a_file_itself_in_the_plain_view(weather: Path) -> None:
    with served(weather, "--port", "0", "--view", "plain", "--cors", "*") as (_, line):
        url = line.split()[4]
        document = json.loads(get(f"{url}t2m/zarr.json"))
        assert [codec["name"] for codec in document["codecs"]] == ["bytes"]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["refindex", "serve", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def test_a_port_in_use(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(monkeypatch, archive, "--port", port) == 2
    errors = capsys.readouterr().err
    assert errors == f"refindex: error: 127.0.0.1:{port} is in use; choose another --port, or 0 for any free one\n"


def test_an_address_of_another_machine(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, archive, "--host", "192.0.2.1") == 2  # reserved for documentation, RFC 5737
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, tmp_path / "none.refindex") == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_wrong_options(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, archive, "--view", "other") == 2
    assert run(monkeypatch, archive, "--port", "70000") == 2
    assert run(monkeypatch, archive, "--max-concurrency", "0") == 2


def test_without_the_extra(archive: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("refindex.serve.http.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "starlette.middleware.cors", None)
    assert run(monkeypatch, archive) == 1
    assert "pip install 'refindex[serve]'" in capsys.readouterr().err


def test_what_may_be_read() -> None:
    from refindex.model.manifest import Source
    from refindex.serve.http.server import readable

    def folders(*names: str) -> list[str]:
        return readable([Source(url=name, size=1) for name in names])

    assert folders() == []
    assert folders("file:///data/a.nc", "file:///data/b.nc") == ["/data/"]
    assert folders("file:///data/x/a.nc", "file:///data/b.nc", "file:///database/c.nc") == ["/data/", "/database/"]
    assert folders("s3://bucket/a.nc", "file:///data/b.nc") == ["/data/", "s3://bucket/"]
    years = [f"s3://bucket/model/{year}/{month:02d}/a.nc" for year in range(1990, 2020) for month in range(1, 13)]
    assert folders(*years) == ["s3://bucket/model/"]
    hosts = folders(*(f"https://u:secret@h{n}/x/{day}/a.nc" for n in range(9) for day in range(9)))
    assert hosts == [f"https://u:***@h{n}/" for n in range(9)] or hosts == [f"https://u:***@h{n}/x/" for n in range(9)]
    assert folders("file:///a.nc") == ["/"]
