"""``--dask``: scanning on the workers of a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import Executor

from refindex.errors import SourceError, UnsupportedError

_PATIENCE = 10
"""Seconds that the scheduler has to answer."""


@contextlib.contextmanager
def dask_executor(address: str | None) -> Iterator[Executor | None]:
    """An executor on the cluster of a scheduler; None if no address is given.

    Parameters
    ----------
    address:
        Of the scheduler, as ``tcp://10.0.0.1:8786``.

    Raises
    ------
    UnsupportedError
        If Dask's scheduler is not installed here.
    SourceError
        If none answers at the address within ten seconds, or it has no workers.
    """
    if address is None:
        yield None
        return
    try:
        from distributed import Client, Security
        from distributed.core import connect
    except ImportError as error:
        raise UnsupportedError(
            "--dask needs the package distributed, which is not installed: pip install 'refindex[dask]'"
        ) from error

    async def knock() -> None:
        comm = await connect(address, timeout=_PATIENCE, **Security().get_connection_args("client"))
        await comm.close()

    try:
        # A client that does not get there goes on trying while it is taken apart.
        asyncio.run(knock())
        client = Client(address, timeout=_PATIENCE, set_as_default=False)
    except (OSError, ValueError, ImportError) as error:
        raise SourceError(
            f"{address}: no Dask scheduler answers there within {_PATIENCE} seconds: {error}; "
            "give the address that it told when it was started, as tcp://10.0.0.1:8786"
        ) from error
    with client:
        threads = sum(client.nthreads().values())
        if not threads:
            raise SourceError(
                f"{address}: the Dask cluster has no workers; start some, as with `dask worker {address}`"
            )
        executor = client.get_executor()
        executor._max_workers = threads  # as executors of the standard library have it
        yield executor
