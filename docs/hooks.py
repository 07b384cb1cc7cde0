"""mkdocs hooks: the notebooks as pages, with the output of running them; docstring roles as plain code.

The notebooks are kept without outputs. Building the documentation runs them where nbclient and a kernel are installed
(``make install`` does), and shows the code alone where they are not.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks.notebook")

ROOT = Path(__file__).parent.parent
PAGES = {
    "tutorials/open-a-legacy-archive.md": ROOT / "notebooks" / "open_a_legacy_archive.ipynb",
    "tutorials/join-unequal-years.md": ROOT / "notebooks" / "join_unequal_years.ipynb",
    "tutorials/where-the-bytes-are.md": ROOT / "notebooks" / "where_the_bytes_are.ipynb",
    "tutorials/publish-and-open-over-http.md": ROOT / "notebooks" / "publish_and_open_over_http.ipynb",
}

ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>(?:~[\w.]*\.)?([^<]+)</code>")
"""``:func:`name``` of a docstring as Markdown leaves it."""


NORUN = re.compile(r'^(```\w+) norun="[^"]*"$', re.MULTILINE)
"""What the tests read of a code block, and Markdown would not take for one."""


def on_page_markdown(markdown: str, **_: Any) -> str:
    return NORUN.sub(r"\1", markdown)


def on_page_content(html: str, **_: Any) -> str:
    return ROLE.sub(r"<code>\1</code>", html)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for page, notebook in PAGES.items():
        files.append(File.generated(config, page, content=render(notebook)))
    return files


def render(path: Path) -> str:
    """A notebook as Markdown."""
    try:
        import nbformat
    except ImportError:
        log.info("nbformat is not installed: %s is left out", path.name)
        return f"# {path.stem}\n\nThe notebook is `notebooks/{path.name}` in the source tree.\n"
    notebook = nbformat.read(path, as_version=4)
    _execute(notebook, path)
    parts: list[str] = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += [shown for output in cell.outputs if (shown := _output(output))]
    parts.append(f"This page is the notebook `notebooks/{path.name}` of the source tree.")
    return "\n\n".join(parts) + "\n"


def _execute(notebook: Any, path: Path) -> None:
    try:
        from nbclient import NotebookClient

        import refindex  # noqa: F401 -- without it there is nothing to run
    except ImportError:
        log.info("nbclient is not installed: %s is shown without outputs", path.name)
        return
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=path.parent)


def _output(output: Any) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="the plot that the code above draws" src="data:image/png;base64,{data["image/png"].strip()}">'
    # Ours is one element without blank lines, which Markdown leaves as it is.
    if data.get("text/html", "").startswith('<div class="refindex-view">'):
        return str(data["text/html"])
    text = data.get("text/plain") or (output.text if output.get("name") == "stdout" else "")
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""
