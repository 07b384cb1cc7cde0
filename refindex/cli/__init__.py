"""The ``refindex`` command; one module a subcommand."""

from refindex.cli.app import main

__all__ = ["main"]
