"""The command's frame: options that all subcommands share, errors as one line, exit codes.

Exit codes: 0 done; 1 an error (one line on standard error says what to do); 2 the command line is wrong; 3 done, but
some of several sources could not be scanned (1 with ``scan --strict``); 130 interrupted.
"""

from __future__ import annotations

import os
import sys
import traceback

import typer
from rich.console import Console

from refindex.cli import info, ls, scan
from refindex.errors import RefindexError

app = typer.Typer(
    name="refindex",
    help="Index HDF5 / NetCDF archives into reference manifests and look into them.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(value: bool) -> None:
    if value:
        from refindex import __version__

        typer.echo(f"refindex {__version__}")
        raise typer.Exit


@app.callback()
def frame(
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error."),
    version: bool = typer.Option(
        False, "--version", help="Show the version and stop.", callback=_show_version, is_eager=True
    ),
) -> None:
    """Index HDF5 / NetCDF archives into reference manifests and look into them."""
    del version
    if debug:
        os.environ["REFINDEX_DEBUG"] = "1"


app.command("scan")(scan.command)
app.command("ls")(ls.command)
app.command("info")(info.command)


def main() -> None:
    """Run the command line; every error that refindex knows is one line."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    debug = "--debug" in sys.argv
    try:
        app()
    except RefindexError as error:
        if debug:
            traceback.print_exc()
        console.print(f"refindex: error: {error}", markup=False)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of our output has gone (| head): not an error, and nothing more can be written.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except KeyboardInterrupt:
        console.print("refindex: interrupted; nothing was written", markup=False)
        sys.exit(130)
    except OSError as error:
        if debug:
            traceback.print_exc()
        console.print(f"refindex: error: {error}", markup=False)
        sys.exit(1)
