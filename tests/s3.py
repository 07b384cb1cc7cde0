"""An S3 server of this machine, and what it was asked."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest


class Log(logging.Handler):
    """The requests that the server answered."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@dataclass(frozen=True, kw_only=True)
class Running:
    url: str
    log: Log


@contextlib.contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    """moto's server, with whose credentials the environment is filled. Its buckets outlive it."""
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    logger = logging.getLogger("werkzeug")
    log, level, passed_on = Log(), logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(log)
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    running.start()
    try:
        host, port = running.get_host_and_port()
        yield Running(url=f"http://{host}:{port}", log=log)
    finally:
        running.stop()
        logger.removeHandler(log)
        logger.setLevel(level)
        logger.propagate = passed_on
