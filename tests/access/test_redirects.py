"""Servers that redirect: to where, and where not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from aiohttp import web
from serving import RangeServer

import refindex
from refindex.access import redirects
from refindex.access.blocks import RemoteBlocks
from refindex.access.files import SourcePool, open_reader
from refindex.access.redirects import is_inner
from refindex.errors import NotAllowedError, RefindexError
from refindex.model.manifest import Source

DATA = bytes(range(100))

INNER = "127.0.0.2"
"""Plays an address of this machine, while 127.0.0.1 plays one that everybody reaches. Nothing listens there."""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(redirects, "is_inner", lambda address: address == INNER)
    for protocol in ("http", "simplecache"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
    yield
    for protocol in ("http", "simplecache"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()


def sends(to: str) -> object:
    def answer(server: RangeServer, request: web.Request, number: int) -> web.Response:
        return web.Response(status=302, headers={"Location": to})

    return answer


@pytest.mark.parametrize(
    ("address", "inner"),
    [
        ("127.0.0.1", True),
        ("127.255.3.4", True),
        ("::1", True),
        ("169.254.169.254", True),
        ("fe80::1%eth0", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("192.168.1.1", True),
        ("100.64.0.1", True),
        ("fd00::1", True),
        ("0.0.0.0", True),
        ("::", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("2002:7f00:1::", True),
        ("224.0.0.1", True),
        ("nonsense", True),
        ("8.8.8.8", False),
        ("172.32.0.1", False),
        ("2606:4700::1111", False),
    ],
)
def test_addresses(address: str, inner: bool) -> None:
    assert is_inner(address) is inner


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("location", [f"http://{INNER}:9/secret", f"//{INNER}/secret", f"http://[::ffff:{INNER}]/"])
def test_from_outside_to_inside_is_refused(location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redirects, "is_inner", lambda address: not address.startswith("127.0.0.1"))
    with RangeServer(tmp_path, trouble=sends(location)) as server:  # type: ignore[arg-type]
        url = f"{server.url}/a.bin"
        pool = SourcePool([Source(url=url, size=100)])
        for read in (
            lambda: open_reader(url).read(0, 10),
            lambda: RemoteBlocks.open(url),
            lambda: pool.read(0, 0, 10),
            lambda: refindex.open(url),
            lambda: open_reader(f"simplecache::{url}").read(0, 10),
        ):
            with pytest.raises(NotAllowedError, match=r"a\.bin\S*: the server redirects to http"):
                read()


@pytest.mark.usefixtures("elsewhere")
def test_from_outside_to_outside_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(DATA)
    with (
        RangeServer(tmp_path) as there,
        RangeServer(tmp_path, trouble=sends(f"{there.url}/a.bin")) as here,  # type: ignore[arg-type]
    ):
        assert open_reader(f"{here.url}/a.bin").read(5, 10) == DATA[5:15]
        there.forget()
        # Under another name, so that it is looked where that is.
        here.trouble = sends(f"http://localhost:{there.port}/a.bin")  # type: ignore[assignment]
        assert open_reader(f"{here.url}/a.bin").read(5, 10) == DATA[5:15]
        assert len(there.requests) == 1


def test_inside_may_stay_inside(tmp_path: Path) -> None:
    """A server that is itself on this machine may say where on it a file is."""
    (tmp_path / "a.bin").write_bytes(DATA)
    with (
        RangeServer(tmp_path) as there,
        RangeServer(tmp_path, trouble=sends(f"http://localhost:{there.port}/a.bin")) as here,  # type: ignore[arg-type]
    ):
        assert open_reader(f"{here.url}/a.bin").read(0, 100) == DATA


@pytest.mark.parametrize("location", ["file:///etc/hostname", "ftp://127.0.0.1/a"])
def test_to_another_protocol_is_refused(location: str, tmp_path: Path) -> None:
    with RangeServer(tmp_path, trouble=sends(location)) as server:  # type: ignore[arg-type]
        pool = SourcePool([Source(url=f"{server.url}/a.bin", size=100)])
        with pytest.raises(RefindexError, match=r"a\.bin"):
            pool.read(0, 0, 10)


def test_a_session_of_ones_own(tmp_path: Path) -> None:
    """Options that say how sessions are made are left as they are."""

    async def own(**options: object) -> None:
        raise AssertionError

    assert redirects.guarded("http://a/b", {"get_client": own}) == {"get_client": own}
    assert redirects.guarded("http://a/b", {"x": 1}) == {"x": 1, "get_client": redirects.guarded_client}
    assert redirects.guarded("s3://a/b", {"x": 1}) == {"x": 1}
