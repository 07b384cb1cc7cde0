"""Where the command takes from which places archives may read, and what it says of those that it cannot use."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

import refindex
from refindex.cli import configuration
from refindex.cli.app import app
from refindex.cli.options import parse_allow
from refindex.errors import FormatError, NotAllowedError


@pytest.fixture(autouse=True)
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a user without any configuration: where it would be."""
    for name in (configuration.ALLOW_VARIABLE, configuration.OPTIONS_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "config.toml"
    path.touch()
    monkeypatch.setenv(configuration.FILE_VARIABLE, str(path))
    return path


def test_all_places_count(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert parse_allow(None) == []
    config.write_text('allow = ["/a", "s3://b"]\n[storage_options]\nanon = true\n')
    assert parse_allow(None) == ["/a", "s3://b"]
    assert configuration.storage_options(None) == {"anon": True}
    monkeypatch.setenv(configuration.ALLOW_VARIABLE, " /c  https://d/e\n~/f ")
    assert parse_allow(["g", "h"]) == ["/a", "s3://b", "/c", "https://d/e", "~/f", "g", "h"]
    monkeypatch.setenv(configuration.ALLOW_VARIABLE, '["/with a blank", "*"]')
    assert parse_allow(None) == ["/a", "s3://b", "/with a blank", "*"]


@pytest.mark.parametrize(
    "text", ['allow = "/a"', "allow = [1]", 'allow = ["data"]', 'allow = ["s3://b/../c"]', "allows = []"]
)
def test_files_that_cannot_be_used(text: str, config: Path) -> None:
    config.write_text(text)
    with pytest.raises(FormatError, match="config.toml.*allow"):
        parse_allow(None)


@pytest.mark.parametrize("text", ["data", "[1]", "[", '["data"]', "https://["])
def test_variables_that_cannot_be_used(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(configuration.ALLOW_VARIABLE, text)
    with pytest.raises(FormatError, match="REFINDEX_ALLOW"):
        parse_allow(None)


def test_arguments_that_cannot_be_used() -> None:
    with pytest.raises(typer.BadParameter, match="is no prefix"):
        parse_allow(["https://["])


@pytest.mark.parametrize(
    "command",
    ["info", "ls", "verify", "explain a", "export out.json", "publish out.refindex --allow-local", "remove *",
     "append more/y.h5", "optimize -v a --chunks time=-1 --dry-run"],
)  # fmt: skip
@pytest.mark.parametrize("how", ["option", "variable", "file"])
def test_commands(command: str, how: str, tmp_path: Path, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for n, name in enumerate(("data/x.h5", "more/y.h5")):
        Path(name).parent.mkdir()
        with h5py.File(name, "w") as file:
            file.create_dataset("time", data=np.arange(5) + 5 * n).make_scale("time")
            file.create_dataset("a", data=np.arange(5.0)).dims[0].attach_scale(file["time"])
    (tmp_path / "own").mkdir()
    refindex.scan("data/x.h5").save("own/a.refindex")
    shutil.copytree("own/a.refindex", "own/copy.refindex")
    name, *rest = command.split()
    arguments = [name, "own/copy.refindex", *rest]
    refused = CliRunner().invoke(app, arguments)
    assert isinstance(refused.exception, NotAllowedError), refused.output
    if how == "option":
        arguments += ["--allow", "data"]
    elif how == "variable":
        monkeypatch.setenv(configuration.ALLOW_VARIABLE, str(tmp_path / "data"))
    else:
        config.write_text(f'allow = ["{tmp_path}/data"]')
    done = CliRunner().invoke(app, arguments)
    assert not isinstance(done.exception, NotAllowedError), done.output
