"""Every example of the documentation runs, and prints what the page says.

- Python fences run in order, in one namespace a page, in a folder with the files of the ``examples`` fixture.
- A ``text`` fence right behind a Python fence is what that one prints; ``...`` in it stands for anything.
- In ``console`` fences, lines ``$ refindex ...`` run, and what follows is their output (both streams); ``$ echo $?``
  shows the exit code. Other commands are not run.
- ``norun="reason"`` in the opening of a fence keeps it from running. Those are counted here.
"""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from refindex.cli import main

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = {
    "README.md": 0,
    "docs/how-to/exchange.md": 4,
    "docs/how-to/open.md": 0,
    "docs/how-to/publish.md": 1,
    "docs/how-to/remote-files.md": 6,
}
"""How many fences of a page are marked as not to be run; pages not named here: none."""

FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<body>.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Block:
    language: str
    body: str
    line: int
    reason: str | None
    """Why it is not run, if so."""
    output: str | None = None
    """What it prints, where the page shows that."""


def blocks(text: str) -> Iterator[Block]:
    """The fences of a page, each Python one with the output that follows it."""
    found = list(FENCE.finditer(text))
    for number, match in enumerate(found):
        language, _, rest = match["info"].strip().partition(" ")
        marker = re.search(r'\bnorun="([^"]+)"', rest)
        output = None
        if language == "python" and number + 1 < len(found):
            after = found[number + 1]
            if after["info"].strip() == "text" and not text[match.end() : after.start()].strip():
                output = after["body"]
        yield Block(
            language=language,
            body=match["body"],
            line=text.count("\n", 0, match.start()) + 1,
            reason=marker[1] if marker else None,
            output=output,
        )


def agrees(printed: str, shown: str) -> bool:
    """Whether output is what a page shows, trailing blanks aside; ``...`` in the page stands for anything."""

    def clean(text: str) -> str:
        return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())

    pattern = ".*?".join(re.escape(part) for part in clean(shown).split("..."))
    return re.fullmatch(pattern, clean(printed), re.DOTALL) is not None


def run_python(block: Block, namespace: dict[str, object], page: str) -> None:
    code = compile("\n" * block.line + block.body, page, "exec")
    out = io.StringIO()
    with contextlib.redirect_stdout(out), warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(code, namespace)
    if block.output is not None:
        assert agrees(out.getvalue(), block.output), f"{page}:{block.line} prints\n{out.getvalue()}"


def run_console(block: Block, page: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the ``refindex`` commands of a console fence, and return how many there were."""
    commands = [part.partition("\n") for part in re.split(r"^\$ ", block.body, flags=re.MULTILINE)[1:]]
    ran, code = 0, 0
    for command, _, shown in commands:
        if command.strip() == "echo $?":
            assert shown.strip() == str(code), f"{page}:{block.line}: the exit code is {code}"
            code = 0
            continue
        assert code == 0, f"{page}:{block.line}: exit code {code} that the page does not show"
        words = shlex.split(command)
        if words[0] != "refindex":
            continue
        assert not {"|", ">", "<", "&&", ";"} & set(words), f"{page}:{block.line}: only bare commands are run"
        ran += 1
        printed, code = run_command(words, monkeypatch)
        if shown.strip():
            assert agrees(printed, shown), f"{page}:{block.line}: {command}\n{printed}"
    assert code == 0, f"{page}:{block.line}: exit code {code} that the page does not show"
    return ran


def run_command(words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, int]:
    both = io.StringIO()
    with monkeypatch.context() as patch, contextlib.redirect_stdout(both), contextlib.redirect_stderr(both):
        patch.setattr(sys, "argv", words)
        patch.setenv("COLUMNS", "160")
        try:
            main()
        except SystemExit as stop:
            return both.getvalue(), int(stop.code or 0)
    return both.getvalue(), 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
@pytest.mark.usefixtures("workplace")
def test_examples_run_and_print_what_the_page_shows(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = page.relative_to(ROOT).as_posix()
    namespace: dict[str, object] = {"__name__": "__main__"}
    not_run = 0
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language in ("python", "console") and block.reason is not None:
            not_run += 1
        elif block.language == "python":
            run_python(block, namespace, name)
        elif block.language == "console":
            run_console(block, name, monkeypatch)
    assert not_run == NOT_RUN.get(name, 0), f"{name}: {not_run} fences are marked norun"


def test_there_are_examples() -> None:
    languages = [block.language for page in PAGES for block in blocks(page.read_text(encoding="utf-8"))]
    assert languages.count("python") >= 20
    assert languages.count("console") >= 5


def test_a_block_that_fails_or_prints_something_else_is_noticed() -> None:
    page = (
        '```python\nprint("a", 1)\n```\n\n```text\na ...\n```\n'
        "```python\nprint(2)\n```\n```text\n3\n```\n"
        "```python\n1 / 0\n```\n"
    )
    good, other, broken = (block for block in blocks(page) if block.language == "python")
    run_python(good, {}, "page")
    with pytest.raises(AssertionError, match="prints"):
        run_python(other, {}, "page")
    with pytest.raises(ZeroDivisionError):
        run_python(broken, {}, "page")


@pytest.mark.usefixtures("workplace")
def test_a_command_that_fails_or_prints_something_else_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(body: str) -> int:
        return run_console(Block(language="console", body=body, line=1, reason=None), "page", monkeypatch)

    assert run("$ make test\n$ refindex ls t2m_2023.nc\nlat\n...\n$ refindex scan\nUsage...\n$ echo $?\n2\n") == 2
    with pytest.raises(AssertionError, match="t2m"):
        run("$ refindex ls t2m_2023.nc\nnothing of the kind\n")
    with pytest.raises(AssertionError, match="exit code 1"):
        run("$ refindex ls no_such_file.nc\n")
