"""The command's frame: options that all subcommands share, errors as one line, exit codes.

Exit codes: 0 done; 1 an error (one line on standard error says what to do); 2 the command line is wrong; 3 done, but
some of several sources could not be scanned (1 with ``scan --strict``); 4 ``verify`` found something that is not
right; 130 interrupted.
"""

from __future__ import annotations

import sys
import traceback

import typer
from rich.console import Console

from refindex.access import urls
from refindex.cli import append, exchange, explain, info, ls, optimize, publish, relocate, scan, serve, verify, versions
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
    del debug, version  # main() looks for --debug itself


app.command("scan")(scan.command)
app.command("append")(append.append)
app.command("remove")(append.remove)
app.command("relocate")(relocate.command)
app.command("optimize")(optimize.command)
app.command("publish")(publish.command)
app.command("ls")(ls.command)
app.command("info")(info.command)
app.command("explain")(explain.command)
app.command("verify")(verify.command)
app.command("export")(exchange.export)
app.command("import")(exchange.import_)
app.command("serve")(serve.command)
app.command("log")(versions.log)
app.command("diff")(versions.diff)
app.command("restore")(versions.restore)
app.command("vacuum")(versions.vacuum)


def main() -> None:
    """Run the command line; every error that refindex knows is one line."""
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    # Wherever it stands on the command line, before or behind the subcommand.
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except RefindexError as error:
        if debug:
            traceback.print_exc()
        console.print(f"refindex: error: {urls.masked(str(error))}", markup=False)
        sys.exit(1)
    except OSError as error:
        if debug:
            traceback.print_exc()
        console.print(f"refindex: error: {urls.masked(str(error))}", markup=False)
        sys.exit(1)
