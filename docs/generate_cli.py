"""Write the command line reference from the command itself: ``python docs/generate_cli.py``.

A test asserts that the page in the repository is what this prints.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from refindex.cli.app import app

PAGE = Path(__file__).parent / "reference" / "command-line.md"
NOT_OURS = ("--install-completion", "--show-completion")
HEAD = """\
<!-- Made by docs/generate_cli.py from the command itself: edit the help texts in refindex/cli, not this page. -->

# Command line

`refindex` has one subcommand a task. Every one explains itself with `--help`. What the exit codes mean is in
[exit codes](exit-codes.md).
"""


def generate() -> str:
    """The page as Markdown."""
    root: Any = typer.main.get_command(app)
    lines = [HEAD, "## refindex", "", root.help, "", *_usage("refindex", root, " COMMAND"), *_parameters(root)]
    for name, command in root.commands.items():
        title = f"refindex {name}"
        lines += [f"## {title}", "", command.help, "", *_usage(title, command, ""), *_parameters(command)]
    return "\n".join(lines).rstrip() + "\n"


def _usage(title: str, command: Any, tail: str) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    words = "".join(f" {_name(p)}" if p.required else f" [{_name(p)}]" for p in arguments)
    yield from ("```text", f"{title} [OPTIONS]{tail}{words}", "```", "")


def _name(argument: Any) -> str:
    return str(argument.metavar or argument.name.upper())


def _parameters(command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and p.opts[0] not in NOT_OURS]
    if arguments:
        yield from ("| argument | meaning |", "|---|---|")
        yield from (f"| `{_name(p)}` | {_meaning(p)} |" for p in arguments)
        yield ""
    yield from ("| option | meaning |", "|---|---|")
    for p in options:
        yield f"| {_spelling(p)} | {_meaning(p)} |"
    yield from ("| `--help`, `-h` | Show the help and stop. |", "")


def _spelling(option: Any) -> str:
    value = "" if option.is_flag else f" {option.metavar or option.name.upper()}"
    names = [*sorted(option.opts, key=lambda o: not o.startswith("--")), *option.secondary_opts]
    return ", ".join(f"`{name}{value}`" for name in names)


def _meaning(parameter: Any) -> str:
    text = str(parameter.help or "").replace("|", "\\|")
    shown = isinstance(parameter.default, str | int) and not isinstance(parameter.default, bool)
    if shown and parameter.default != "":
        text += f" Default: `{parameter.default}`."
    return text


if __name__ == "__main__":
    PAGE.write_text(generate(), encoding="utf-8")
    print(f"wrote {PAGE}")
