"""``refindex serve``: an archive over HTTP."""

from __future__ import annotations

import errno
import logging
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from refindex import api
from refindex.access import urls
from refindex.cli.options import ALLOW, AS_OF, STORAGE_OPTIONS, VERSION, choice, parse_allow, parse_storage_options

_MOST = 4
"""Folders of sources that are named."""


def command(
    archive: Annotated[str, typer.Argument(help="A manifest, or an HDF5 / NetCDF file.")],
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; 0.0.0.0 is reached from other machines, too.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", "-p", min=0, max=65535, help="Port; 0 takes any free one.")] = 8000,
    view: Annotated[
        str,
        typer.Option(
            "--view",
            help="Chunks as the archive declares them, or uncompressed and of one size for every client of Zarr v3; "
            "the latter are below plain/ in any case.",
            metavar="declared|plain",
        ),
    ] = "declared",
    cors: Annotated[
        list[str] | None,
        typer.Option(
            "--cors",
            help="Web pages of this origin may read the archive, e.g. https://example.org; * for all (repeat for "
            "more).",
            metavar="ORIGIN",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host",
            help="A name by which clients address the server, where a proxy passes it on (repeat for more). A server "
            "that only this machine reaches answers to localhost alone; any other, to all names but if some are given.",
            metavar="NAME",
        ),
    ] = None,
    max_concurrency: Annotated[
        int,
        typer.Option(
            "--max-concurrency",
            min=1,
            max=1024,
            help="Requests that read or decode at the same time: each takes the memory of a chunk.",
            metavar="N",
        ),
    ] = 16,
    version: VERSION = None,
    as_of: AS_OF = None,
    allow: ALLOW = None,
    storage_options: STORAGE_OPTIONS = None,
) -> None:
    """Serve an archive as Zarr v3 over HTTP, read only, with a page to look at it. Ctrl-C ends it."""
    options = parse_storage_options(storage_options)
    chosen = choice("--view", view, _view_name())
    with api.open(archive, version=version, as_of=as_of, storage_options=options, allow=parse_allow(allow)) as opened:
        from refindex.serve.http.app import Limits
        from refindex.serve.http.server import open_server, readable

        try:
            server = open_server(
                opened.store,
                host=host,
                port=port,
                view=chosen,
                cors=cors or (),
                hosts=allow_host or (),
                limits=Limits(concurrency=max_concurrency),
            )
        except OSError as error:
            _refuse(host, port, error)
        # As after Ctrl-C: what is open is closed.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        folders = readable(opened.sources)
        reads = ", ".join(folders[:_MOST]) or "no files: all is in the manifest"
        if len(folders) > _MOST:
            reads += f" and {len(folders) - _MOST} more"
        typer.echo(f"{urls.display(opened.url)} version {opened.version} at {server.url} reads {reads}")
        allowed = opened.store.archive.allowed
        if allowed is not None:
            said = f"may read what lies below {allowed.said()}"
            logging.getLogger("refindex.serve").info(said)
            typer.echo(said)
        sys.stdout.flush()
        try:
            server.run()
        except KeyboardInterrupt:
            typer.echo("stopped", err=True)


def _view_name() -> Any:
    """The views that there are, if what serves them is installed."""
    try:
        from refindex.serve.http.app import ViewName
    except ImportError as error:
        raise OSError(f"serving needs the extra `serve` ({error}): pip install 'refindex[serve]'") from error
    return ViewName


def _refuse(host: str, port: int, error: OSError) -> NoReturn:
    """One line on what is wrong with an address, and the exit code of a wrong command line."""
    if error.errno == errno.EADDRINUSE:
        reason = "is in use; choose another --port, or 0 for any free one"
    else:
        reason = f"cannot be listened on: {error.strerror or error}"
    typer.echo(f"refindex: error: {host}:{port} {reason}", err=True)
    raise typer.Exit(2) from error
