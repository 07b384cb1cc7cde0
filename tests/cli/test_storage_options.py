"""Where the command takes storage options from, and what it says of those that it cannot use."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from aiohttp import web
from serving import RangeServer

import refindex
from refindex.cli import configuration
from refindex.cli.options import parse_storage_options

SECRET = "S3cr3t-7f1e0c"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without any configuration."""
    for name in (configuration.FILE_VARIABLE, configuration.OPTIONS_VARIABLE, "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


TOML = """
[storage_options]
anon = true
here = "file"

[storage_options."s3://bucket/"]
key = "file"
client_kwargs.region_name = "eu"

[storage_options."s3://other/"]
key = "file"
"""


def test_later_over_earlier(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_storage_options(None) == {}
    write(home / ".config/refindex/config.toml", TOML)
    from_file = {
        "anon": True,
        "here": "file",
        "s3://bucket/": {"key": "file", "client_kwargs": {"region_name": "eu"}},
        "s3://other/": {"key": "file"},
    }
    assert parse_storage_options(None) == from_file
    monkeypatch.setenv("REFINDEX_STORAGE_OPTIONS", '{"here": "variable", "s3://other/": {"token": 1}}')
    # A prefix is replaced as a whole: half of one key and half of another fit nowhere.
    from_both = {**from_file, "here": "variable", "s3://other/": {"token": 1}}
    assert parse_storage_options([]) == from_both
    given = ['{"here": "argument"}', 's3://new/={"key": 2}', '{"here": "last"}']
    assert parse_storage_options(given) == {**from_both, "here": "last", "s3://new/": {"key": 2}}


def test_which_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> Any:
        return parse_storage_options(None).get("of")

    text = '[storage_options]\nof = "{}"\n'
    write(home / ".config/refindex/config.toml", text.format("home"))
    assert found() == "home"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert found() is None
    write(tmp_path / "xdg/refindex/config.toml", text.format("xdg"))
    assert found() == "xdg"
    for other in ("", "here"):  # as its rules say, only an absolute path counts
        monkeypatch.chdir(tmp_path)
        write(tmp_path / "here/refindex/config.toml", text.format("current folder"))
        write(tmp_path / "refindex/config.toml", text.format("current folder"))
        monkeypatch.setenv("XDG_CONFIG_HOME", other)
        assert found() == "home"
    monkeypatch.setenv("REFINDEX_CONFIG", str(write(tmp_path / "mine.toml", text.format("named"))))
    assert found() == "named"
    monkeypatch.setenv("REFINDEX_CONFIG", "~/mine.toml")
    write(home / "mine.toml", text.format("named, at home"))
    assert found() == "named, at home"


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("", {}),
        ('{"anon": true}', {"anon": True}),
        (' {"s3://b/": {"anon": true}} ', {"s3://b/": {"anon": True}}),
        ('s3://b/={"anon": true}', {"s3://b/": {"anon": True}}),
        ('s3://b/year=2020/={"anon": true}', {"s3://b/year=2020/": {"anon": True}}),
        ('https://h/a?b=c= {"x": "=1"}', {"https://h/a?b=c": {"x": "=1"}}),
        ("@{file}", {"from": {"a": "file"}}),
        ("s3://b/=@{file}", {"s3://b/": {"from": {"a": "file"}}}),
    ],
)
def test_forms(argument: str, expected: dict[str, Any], tmp_path: Path) -> None:
    file = write(tmp_path / "o.json", '{"from": {"a": "file"}}')
    assert parse_storage_options([argument.replace("{file}", str(file))]) == expected


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("{", r"--storage-options is not JSON: .*line 1"),
        ("[1]", r"--storage-options takes JSON \('\{...\}'\), @FILE, or PREFIX="),
        (f"s3={SECRET}", "--storage-options takes JSON"),
        (f's3://b/{{"key": "{SECRET}"}}', "--storage-options takes JSON"),
        (f's3://b/={{"key": "{SECRET}"', r"--storage-options for s3://b/ is not JSON"),
        (f's3://b/={{"x://y": "{SECRET}"}}', "--storage-options for s3://b/: storage options for x://y must be"),
        (f'{{"s3://b/": "{SECRET}"}}', "--storage-options: storage options for s3://b/ must be a mapping .* got str"),
        ("@/nothing/here.json", r"--storage-options, file /nothing/here.json: cannot be read: No such file"),
        ("s3://b/=@{file}", r"--storage-options for s3://b/, file .*o.json must be options by name .* got list"),
    ],
)  # fmt: skip
def test_wrong_arguments(argument: str, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "o.json", f'["{SECRET}"]')
    with pytest.raises(typer.BadParameter, match=f"^{message}") as caught:
        parse_storage_options([argument.replace("{file}", str(file))])
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"[storage_options\nkey = '{SECRET}'", r"config.toml is not TOML: .*line 1"),
        (f"[storage_options]\nkey = {SECRET}", r"config.toml is not TOML: .*line 2"),
        (b"\xff\xfe", r"config.toml is not TOML: "),
        (f"storage_options = '{SECRET}'", r"config.toml, storage_options must be options by name .*; got str"),
        (f"[storage_option]\nkey = '{SECRET}'", r"config.toml: unknown key 'storage_option'; it may have"),
        (f"key = '{SECRET}'\n[storage_options]", r"config.toml: unknown key 'key'"),
        (
            f"[storage_options]\n's3://b/' = '{SECRET}'",
            r"config.toml, storage_options: storage options for s3://b/ must be a mapping .*; got str",
        ),
    ],
)
def test_a_damaged_file(home: Path, content: str | bytes, message: str) -> None:
    path = write(home / ".config/refindex/config.toml", "")
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(refindex.FormatError, match=f"^the configuration file {path.parent}/{message}") as caught:
        parse_storage_options(None)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_named_but_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFINDEX_CONFIG", str(tmp_path / "no.toml"))
    with pytest.raises(refindex.NotFoundError, match=r"no.toml, which REFINDEX_CONFIG names, does not exist"):
        parse_storage_options(None)
    monkeypatch.setenv("REFINDEX_CONFIG", str(tmp_path))
    with pytest.raises(refindex.SourceError, match=r"cannot be read: Is a directory"):
        parse_storage_options(None)


def test_a_damaged_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for text in (SECRET, f'{{"a": {SECRET}}}', f'["{SECRET}"]', f'{{"s3://b": "{SECRET}"}}'):
        monkeypatch.setenv("REFINDEX_STORAGE_OPTIONS", text)
        with pytest.raises(refindex.FormatError, match=r"^the environment variable REFINDEX_STORAGE_OPTIONS") as caught:
            parse_storage_options(None)
        assert SECRET not in str(caught.value)


@pytest.fixture
def server(weather: Path, tmp_path: Path) -> Iterator[RangeServer]:
    """Gives files to those who know the secret."""
    folder = tmp_path / "www"
    folder.mkdir()
    shutil.copy(weather, folder / "a.nc")

    def guard(server: RangeServer, request: web.Request, number: int) -> web.Response | None:
        return None if request.headers.get("Authorization") == SECRET else web.Response(status=401)

    with RangeServer(folder, trouble=guard) as server:
        yield server


def in_file(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    text = f"[storage_options.'{url}/'.headers]\nAuthorization = '{SECRET}'\n"
    return [], {"REFINDEX_CONFIG": str(write(folder / "c.toml", text))}


def in_home(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    text = f"[storage_options]\nheaders = {{Authorization = '{SECRET}'}}\n"
    write(folder / "home/.config/refindex/config.toml", text)
    return [], {}


def in_variable(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    return [], {"REFINDEX_STORAGE_OPTIONS": json.dumps({"http": {"headers": {"Authorization": SECRET}}})}


def in_arguments(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    return [
        *("--storage-options", '{"headers": {}}'),
        *("--storage-options", f"{url}=" + json.dumps({"headers": {"Authorization": SECRET}})),
    ], {}


def nowhere(url: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    return ["--storage-options", f"{url}/other/=" + json.dumps({"headers": {"Authorization": SECRET}})], {}


@pytest.mark.parametrize("way", [in_file, in_home, in_variable, in_arguments, nowhere])
def test_the_command(
    way: Callable[[str, Path], tuple[list[str], dict[str, str]]], server: RangeServer, tmp_path: Path
) -> None:
    arguments, variables = way(server.url, tmp_path)
    out = tmp_path / "a.sqlite"
    done = subprocess.run(
        [sys.executable, "-m", "refindex.cli", "scan", f"{server.url}/a.nc", "-o", out, *arguments],
        capture_output=True, text=True, timeout=120, check=False, env={**os.environ, **variables},
    )  # fmt: skip
    assert done.returncode == (1 if way is nowhere else 0), done.stderr
    assert out.exists() is (way is not nowhere)
    if way is not nowhere:
        assert SECRET.encode() not in out.read_bytes()


def test_a_program_has_only_what_it_passes(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for way in (in_home, in_file, in_variable):
        for name, value in way(server.url, tmp_path)[1].items():
            monkeypatch.setenv(name, value)
    assert SECRET in str(parse_storage_options(None))
    with pytest.raises(refindex.SourceError, match="401"):
        refindex.scan(f"{server.url}/a.nc")


def test_errors_are_one_line(tmp_path: Path) -> None:
    for text in ("[storage_options", "wrong = 1"):
        done = subprocess.run(
            [sys.executable, "-m", "refindex.cli", "ls", tmp_path / "a.refindex"],
            capture_output=True, text=True, timeout=120, check=False,
            env={**os.environ, "REFINDEX_CONFIG": str(write(tmp_path / "c.toml", text))},
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.startswith(f"refindex: error: the configuration file {tmp_path / 'c.toml'}")
        assert len(done.stderr.splitlines()) == 1
