"""Packages that only some exchange needs: looked for when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from refindex.errors import UnsupportedError


def require(package: str, install: str = "") -> Any:
    """A package that is optional; ``install`` is what brings it, where ``refindex[exchange]`` does not.

    Raises
    ------
    UnsupportedError
        If it is not installed, with what to install.
    """
    try:
        return import_module(package)
    except ImportError as error:
        if install:
            raise UnsupportedError(f"{package} is not installed; pip install {install} brings it") from error
        raise UnsupportedError(
            f"{package} is not installed; pip install 'refindex[exchange]' brings what other tools' formats need"
        ) from error
