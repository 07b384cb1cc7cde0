"""What comes from outside of a program, a configuration file, the environment, the command line: storage options, and
which places archives may read.

Only the command reads a configuration: what a program passes to the functions of :mod:`refindex` is all that they know.
Errors name the place and the key, never a value: that may be a secret.
"""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer

from refindex.access.options import split_prefixes
from refindex.access.trust import EVERYTHING, Allowed
from refindex.errors import FormatError, NotFoundError, RefindexError, SourceError

FILE_VARIABLE = "REFINDEX_CONFIG"
OPTIONS_VARIABLE = "REFINDEX_STORAGE_OPTIONS"
ALLOW_VARIABLE = "REFINDEX_ALLOW"

_TABLE, _ALLOW = "storage_options", "allow"
_WITH_PREFIX = re.compile(r"([^{]*?://[^{]*?)=\s*([{@].*)", re.DOTALL)
"""``PREFIX={...}``; a prefix may have equals signs itself (``s3://bucket/year=2020/``)."""


def storage_options(arguments: list[str] | None) -> dict[str, Any]:
    """Storage options from the configuration file, the environment and the command line.

    A key of a later place replaces that of an earlier one, be it a prefix or a general option.

    Parameters
    ----------
    arguments:
        Values of ``--storage-options``: JSON, ``@FILE`` or ``PREFIX=`` either of them.

    Raises
    ------
    typer.BadParameter
        If an argument is none of these.
    RefindexError
        If the configuration file or the environment has something else.
    """
    found = _from_file(os.environ.get(FILE_VARIABLE, ""))
    variable = os.environ.get(OPTIONS_VARIABLE, "").strip()
    if variable:
        found |= _parsed(variable, f"the environment variable {OPTIONS_VARIABLE}")
    for argument in arguments or ():
        try:
            found |= _argument(argument.strip())
        except RefindexError as error:
            raise typer.BadParameter(str(error)) from error
    return found


def allowed(arguments: list[str] | None) -> list[str]:
    """Prefixes that archives may read, from the configuration file, the environment and the command line, together.

    Parameters
    ----------
    arguments:
        Values of ``--allow``.

    Raises
    ------
    typer.BadParameter
        If an argument is no prefix.
    RefindexError
        If the configuration file or the environment has something else.
    """
    content, where = _content(os.environ.get(FILE_VARIABLE, ""))
    found = _prefixes(content.get(_ALLOW, []), f"{where}, {_ALLOW}")
    variable = os.environ.get(ALLOW_VARIABLE, "").strip()
    if variable:
        where = f"the environment variable {ALLOW_VARIABLE}"
        try:
            named = json.loads(variable) if variable.startswith("[") else variable.split()
        except ValueError as error:
            raise FormatError(
                f"{where} is neither prefixes with spaces between them nor a JSON list: {error}"
            ) from error
        found += _prefixes(named, where)
    try:
        Allowed.of(arguments)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return [*found, *(arguments or ())]


def _prefixes(value: object, where: str) -> list[str]:
    """Prefixes that mean the same wherever a command is started."""
    if not isinstance(value, list) or not all(isinstance(prefix, str) for prefix in value):
        raise FormatError(f"{where} must be a list of paths and URLs; got {_kind(value)}")
    for prefix in value:
        if prefix != EVERYTHING and not prefix.startswith(("/", "~")) and "://" not in prefix:
            raise FormatError(f"{where}: {prefix!r} is neither an absolute path nor a URL")
    try:
        Allowed.of(value)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from error
    return list(value)


def default_file() -> Path:
    """Where the configuration file is looked for: in the folder that the platform has for them."""
    folder = Path(typer.get_app_dir("refindex"))
    # XDG_CONFIG_HOME counts only as an absolute path: nobody's current folder is a place for configurations.
    return (folder if folder.is_absolute() else Path("~/.config/refindex").expanduser()) / "config.toml"


def _from_file(named: str) -> dict[str, Any]:
    content, where = _content(named)
    return _checked(content.get(_TABLE, {}), f"{where}, {_TABLE}")


def _content(named: str) -> tuple[dict[str, Any], str]:
    """What the configuration file has, and what it is called in messages."""
    path = Path(named).expanduser() if named else default_file()
    where = f"the configuration file {path}"
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        if not named:
            return {}, where
        raise NotFoundError(f"{where}, which {FILE_VARIABLE} names, does not exist") from error
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise FormatError(f"{where} is not TOML: {error}") from error
    for key in content:
        if key not in (_TABLE, _ALLOW):
            raise FormatError(
                f"{where}: unknown key {key!r}; it may have a table [{_TABLE}], a list {_ALLOW}, and nothing else"
            )
    return content, where


def _argument(text: str) -> dict[str, Any]:
    if not text:
        return {}
    with_prefix = None if text.startswith(("{", "@")) else _WITH_PREFIX.fullmatch(text)
    if with_prefix is not None:
        prefix, value = with_prefix.groups()
        return {prefix: _parsed(value, f"--storage-options for {prefix}")}
    if not text.startswith(("{", "@")):
        raise FormatError(
            "--storage-options takes JSON ('{...}'), @FILE, or PREFIX= and either, as 's3://bucket/={...}'"
        )
    return _parsed(text, "--storage-options")


def _parsed(text: str, where: str) -> dict[str, Any]:
    """JSON, or the JSON in ``@FILE``."""
    if text.startswith("@"):
        path = Path(text[1:]).expanduser()
        where = f"{where}, file {path}"
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise SourceError(f"{where}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise FormatError(f"{where}: not JSON: {error}") from error
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{where} is not JSON: {error}") from error
    return _checked(value, where)


def _checked(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise FormatError(f"{where} must be options by name (a JSON object, a TOML table); got {_kind(value)}")
    try:
        split_prefixes(value)
    except ValueError as error:
        raise FormatError(f"{where}: {error}") from error
    return dict(value)


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__
