"""Remote sources that cannot be had, as people see them: one line a file that says which and what to do, in time."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import json
import logging
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pytest
from aiohttp import web
from serving import RangeServer, forget_s3

import refindex
from refindex.access import fetching, http_ranges, retry, urls
from refindex.cli.app import main

SECRET = "0123456789abcdef"
CREDENTIALS = r"pass credentials in storage_options \(--storage-options\), or check that they are for this file$"
LATER = r" \(while .*\); try again later$"


@dataclass(frozen=True, kw_only=True)
class Done:
    code: int
    out: str
    err: str
    seconds: float


def run(monkeypatch: pytest.MonkeyPatch, *words: object) -> Done:
    out, err, code, start = io.StringIO(), io.StringIO(), 0, time.monotonic()
    with monkeypatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["refindex", *map(str, words)])
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return Done(code=code, out=out.getvalue(), err=err.getvalue(), seconds=time.monotonic() - start)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(fetching, "PATIENCE", 0.5)
    monkeypatch.setattr(fetching, "_PER_SECOND", 1e9)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture(scope="module")
def www(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("www")
    for number, name in enumerate(("good.h5", "bad.h5")):
        with h5py.File(folder / name, "w") as file:
            file["d"] = np.arange(3000) + number
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def good(www: Path) -> Iterator[str]:
    with RangeServer(www) as server:
        yield f"{server.url}/good.h5"


def refused(monkeypatch: pytest.MonkeyPatch, good: str, bad: str, message: str, *options: str, shown: str = "") -> None:
    """Alone, the file is an error; beside a good one it is a line of the report, and the other is scanned."""
    name = re.escape(shown or bad)
    alone = run(monkeypatch, "scan", bad, "--dry-run", *options)
    assert alone.code == 1, alone.err
    assert re.fullmatch(rf"refindex: error: {name}: {message}", alone.err.rstrip("\n")), alone.err
    beside = run(monkeypatch, "scan", bad, good, "--dry-run", "--no-join", "--workers", "1", *options)
    assert beside.code == 3, beside.err
    assert re.fullmatch(rf"  failed: {name}: {message}", beside.err.rstrip("\n")), beside.err
    assert beside.out.startswith("1 source, 1 array, ")
    assert max(alone.seconds, beside.seconds) < 20
    for text in (alone.err, alone.out, beside.err, beside.out):
        assert SECRET not in text
        assert "Traceback" not in text


def login(server: RangeServer, request: web.Request, number: int) -> web.Response:
    if request.path == "/login":
        return web.Response(text="\n<!doctype html>\n<title>Who are you?</title>", content_type="text/html")
    return web.Response(status=302, headers={"Location": "/login"})


async def stall(server: RangeServer, request: web.Request, number: int) -> web.Response:
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(3)
    return web.Response()


def status(code: int, **headers: str) -> Any:
    text = "<Error><Code>SomeCode</Code></Error>"
    return lambda server, request, number: web.Response(status=code, text=text, headers=headers)


PAGE = r"a web page and not the file it should be \(it begins with b'.*'\); is a login missing \(pass storage_options, "
ANSWERS: dict[str, tuple[Any, str]] = {
    "401": (status(401), f"permission denied: the server answers 401 Unauthorized; {CREDENTIALS}"),
    "403": (status(403), f"permission denied: the server answers 403 Forbidden; {CREDENTIALS}"),
    "407": (status(407), f"permission denied: the server answers 407 .*; {CREDENTIALS}"),
    "404": (status(404), r"no such file \(the server answers 404 Not Found\)"),
    "410": (status(410), r"no such file \(the server answers 410 Gone\)"),
    "400": (status(400), r"the server answers 400 Bad Request \(while reading bytes 0 to \d+\)"),
    "429": (status(429), "the server answers 429 Too Many Requests" + LATER),
    "500": (status(500), "the server answers 500 Internal Server Error" + LATER),
    "503": (status(503), "the server answers 503 Service Unavailable" + LATER),
    "a loop": (
        lambda server, request, number: web.Response(status=302, headers={"Location": str(request.url)}),
        r"the server redirects \d+ times without an end; is a login missing\?",
    ),
    "another protocol": (
        status(302, Location="ftp://127.0.0.1/x?token=0123456789abcdef"),
        r"the server redirects to what is no URL of HTTP: ftp://127.0.0.1/x\?token=\*\*\* \(while .*\)",
    ),
    "a login": (login, PAGE + r".*page about the file\?"),
    "an error page": (
        lambda server, request, number: web.Response(text="<html><h1>Not found</h1></html>", content_type="text/html"),
        PAGE + r".*page about the file\?",
    ),
    "another file": (
        lambda server, request, number: web.Response(body=b"GRIB and more"),
        "not HDF5 or NetCDF, nor a Zarr store in a zip file: it begins with b'GRIB and' and has no HDF5 signature",
    ),
    "nothing": (lambda server, request, number: web.Response(body=b""), "the file is empty; expected HDF5, .*"),
    "no answer": (stall, "no answer in time" + LATER),
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ANSWERS)
def test_what_servers_answer(www: Path, good: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    trouble, message = ANSWERS[kind]
    with RangeServer(www, trouble=trouble) as server:
        bad = f"{server.url}/bad.h5?part=1&X-Amz-Signature={SECRET}"
        refused(monkeypatch, good, bad, message, shown=f"{server.url}/bad.h5?part=1&X-Amz-Signature=***")


def free_port() -> int:
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return int(own.getsockname()[1])


def test_no_server(good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    where = (
        rf"cannot connect to 127.0.0.1 port {port} \(Connection refused\) \(while .*\); check the URL and the network"
    )
    refused(monkeypatch, good, f"http://127.0.0.1:{port}/x.h5", where)
    shown = f"http://me:***@127.0.0.1:{port}/x.h5"
    refused(monkeypatch, good, f"http://me:{SECRET}@127.0.0.1:{port}/x.h5", where, shown=shown)
    real = socket.getaddrinfo

    def look_up(host: Any, *more: Any, **options: Any) -> Any:
        if host == "nowhere.invalid":  # no question leaves this machine
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, *more, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    nowhere = r"there is no host nowhere.invalid \(while .*\); check the URL and the network"
    refused(monkeypatch, good, "http://nowhere.invalid/x.h5", nowhere)
    refused(monkeypatch, good, "nothing://x/y.h5", "Protocol not known: nothing .*")
    refused(monkeypatch, good, "http:///x.h5", "not a URL that can be asked for: .*")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of a host that vouches for itself, with its key."""
    x509 = pytest.importorskip("cryptography.x509", reason="nothing here makes certificates without cryptography")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    pem = serialization.Encoding.PEM
    kind, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(signed.public_bytes(pem) + key.private_bytes(pem, kind, plain))
    return path


@pytest.mark.timeout(120)
def test_a_certificate_of_its_own(www: Path, good: str, certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And both of what the line says to do about it."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate)
    with RangeServer(www, tls=tls) as server:
        bad = f"{server.url.replace('127.0.0.1', 'localhost')}/bad.h5"
        message = r"no trusted connection \(TLS\): .*self-signed certificate.* SSL_CERT_FILE; .*'{\"ssl\": false}' .*"
        refused(monkeypatch, good, bad, message)
        trusting = run(monkeypatch, "scan", bad, "--dry-run", "--storage-options", '{"ssl": false}')
        assert (trusting.code, trusting.err) == (0, "")
        # Python looks for authorities when it starts.
        known = subprocess.run(
            [sys.executable, "-m", "refindex.cli", "scan", bad, "--dry-run"],
            env={**os.environ, "SSL_CERT_FILE": str(certificate)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (known.returncode, known.stderr) == (0, "")
        closed = r"the server closed the connection without an answer \(while .*|.*400 Bad Request.*"
        refused(monkeypatch, good, bad.replace("https", "http"), closed)
    host = good.replace("http", "https")
    refused(monkeypatch, good, host, r"no trusted connection \(TLS\): .*; does the host speak HTTPS at this port\?")


def test_a_server_without_ranges(www: Path, good: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file is taken whole, also when it is read; a large one is refused, and not fetched to its end."""
    with RangeServer(www, ranges=False) as server:
        out = tmp_path / "a.refindex"
        assert run(monkeypatch, "scan", f"{server.url}/bad.h5", good, "--no-join", "-j", "1", "-o", out).code == 0
        with refindex.open(out) as archive, h5py.File(www / "bad.h5") as file:
            np.testing.assert_array_equal(archive.group["bad/d"][...], file["d"][...])
        monkeypatch.setattr(http_ranges, "WITHOUT_RANGES", 10_000)
        message = (
            r"the server knows no ranges \(it answers with the whole file, \d+ bytes\); up to 10000 .* copy the file .*"
        )
        refused(monkeypatch, good, f"{server.url}/bad.h5", message)


def test_folders(www: Path, good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with RangeServer(www) as server:
        refused(monkeypatch, good, f"{server.url}/folder", r"no such file \(the server answers 404 Not Found\)")
        for url in (f"{server.url}/folder/", str(www / "folder")):
            done = run(monkeypatch, "scan", url, good, "--dry-run")
            assert done.code == 1
            assert re.fullmatch(rf"refindex: error: {url}: no file .*\n", done.err)
    fsspec.filesystem("memory").pipe_file("/refusals/folder/x.txt", b"x")
    refused(monkeypatch, good, "memory://refusals/folder", ".*(no such file|is a folder|empty).*")


@pytest.mark.parametrize("tells", [("ETag",), ("Last-Modified",), ()])
def test_a_file_that_changes_meanwhile(
    www: Path, good: str, tmp_path: Path, tells: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger than what is fetched at first."""
    path = tmp_path / "growing.h5"

    def write() -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("d", data=np.zeros(300_000), chunks=(1000,))
        os.utime(path, (1e9, 1e9))

    def change(server: RangeServer, request: web.Request, number: int) -> None:
        if number % 2:
            with path.open("ab") as file:
                file.write(b"more")
            os.utime(path, (1e9 + number, 1e9 + number))

    write()
    with RangeServer(tmp_path, tells=tells, trouble=change) as server:
        message = r"changed while it was scanned: .* (was|when) .*; scan it when it is complete"
        url = f"{server.url}/growing.h5"
        done = run(monkeypatch, "scan", url, "--dry-run", "--retries", "0")
        assert re.fullmatch(rf"refindex: error: {url} {message}\n", done.err), done.err
        assert done.code == 1


def test_no_secret_is_saved_but_the_url_itself(www: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is needed to read it: beside the list of sources, nothing that is stored has it."""
    with RangeServer(www) as server:
        out = tmp_path / "a.refindex"
        url = f"{server.url}/bad.h5?sig={SECRET}"
        gone = f"{server.url}/gone.h5?token={SECRET}"
        lists = tmp_path / "failed.txt"
        done = run(monkeypatch, "scan", url, gone, "--no-join", "-j", "1", "-o", out, "--failures", lists)
        assert done.code == 3, done.err
        assert SECRET not in done.out + done.err
        assert gone in lists.read_text().splitlines()  # that is to be scanned from
        with refindex.open(out) as archive:
            assert [source.url for source in archive.sources] == [url]
            assert SECRET not in str(archive.report)
            assert archive.group["bad/d"][1] == 2
        assert refindex.relocate(out, url, url + "&more=1").moved == (
            (urls.display(url), urls.display(url + "&more=1")),
        )
        shown = run(monkeypatch, "log", out).out + run(monkeypatch, "info", out).out + str(refindex.diff(out, 0, 1))
        assert SECRET not in shown
        assert "sig=***&more=1" in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://h/a?X-Goog-Credential=me%40x&X-Goog-Date=2", "https://h/a?X-Goog-Credential=***&X-Goog-Date=2"),
        ("https://h/a?sv=2&sp=r&sig=a%2Fb%3D", "https://h/a?sv=2&sp=r&sig=***"),
        ("https://h/a?Policy=x~&Signature=y_&Key-Pair-Id=z", "https://h/a?Policy=***&Signature=***&Key-Pair-Id=***"),
        ("https://h/a?X-Amz-Security-Token=a'b", "https://h/a?X-Amz-Security-Token=***'b"),
        ("https://h/a?access_token=1&apikey=2#key=3", "https://h/a?access_token=***&apikey=***#key=3"),
        ("s3://b/a?versionId=abc", "s3://b/a?versionId=abc"),
        ("https://h/a?sigma=0.5&keyword=x&time=1", "https://h/a?sigma=0.5&keyword=x&time=1"),
        ("ftp://me:pass@h/a and http://b:c@d", "ftp://me:***@h/a and http://b:***@d"),
        ("https://h:80/a@b:c@d", "https://h:80/a@b:c@d"),
        ("zip://a.nc::https://h/x.zip?sig=1", "zip://a.nc::https://h/x.zip?sig=***"),
        ("no?sig=url", "no?sig=url"),
        (
            "https://h/a?sig=b: no such file (https://h/a?sig=c.d),",
            "https://h/a?sig=***: no such file (https://h/a?sig=***),",
        ),
    ],
)
def test_what_looks_like_a_secret(text: str, expected: str) -> None:
    assert urls.masked(text) == expected
    assert urls.masked(expected) == expected


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, www: Path) -> Iterator[dict[str, Any]]:
    """Options for an S3 of this machine, with ``refusals/good.h5``."""
    moto_server = pytest.importorskip("moto.server", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(fetching, "PATIENCE", 20)
    logger = logging.getLogger("werkzeug")
    level = logger.level
    logger.setLevel(logging.ERROR)
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        options = {"endpoint_url": f"http://{host}:{port}"}
        fs = fsspec.filesystem("s3", **options)
        if not fs.exists("refusals"):
            fs.mkdir("refusals")
        fs.pipe_file("refusals/good.h5", (www / "good.h5").read_bytes())
        fs.pipe_file("refusals/folder/x.txt", b"x")
        yield options
    finally:
        server.stop()
        logger.setLevel(level)
        forget_s3()


@pytest.mark.timeout(120)
def test_what_s3_refuses(s3: dict[str, Any], good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = json.dumps({"s3": s3})
    here = "s3://refusals/good.h5"

    def check(bad: str, message: str, options: dict[str, Any] | None = None, beside: str = here) -> None:
        given = mine if options is None else json.dumps({"s3": {**s3, **options}})
        refused(monkeypatch, beside, bad, message, "--storage-options", given)

    check("s3://refusals/gone.h5", r"no such file \(The specified key does not exist.\)")
    check("s3://no-such-bucket/x.h5", r"no such file \(The specified bucket does not exist\)")
    check("s3://refusals/folder", "no such file .*")
    check("s3://Not_a_bucket!/x.h5", 'Parameter validation failed: Invalid bucket name "Not_a_bucket!": .*')
    done = run(monkeypatch, "scan", "s3://refusals/folder/", here, "--dry-run", "--storage-options", mine)
    assert (done.code, done.err) == (1, "refindex: error: s3://refusals/folder/: no file matches\n")
    check(here, ".* unexpected keyword argument 'wrong' .*is it an option that this storage has.*", {"wrong": 1}, good)
    forget_s3()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    missing = r'Unable to locate credentials; set them .* storage_options \({"anon": [tT]rue} for public buckets\)'
    check(here, missing, beside=good)
    done = run(monkeypatch, "scan", "s3://refusals/*.h5", "--dry-run", "--storage-options", mine)
    assert done.code == 1
    assert re.fullmatch(r"refindex: error: s3://refusals/\*.h5: Unable to locate .*\); set them in .*\n", done.err)


CODES = {
    "AccessDenied": 403,
    "SignatureDoesNotMatch": 403,
    "InvalidAccessKeyId": 403,
    "ExpiredToken": 400,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("code", CODES)
def test_what_s3_denies(www: Path, good: str, code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto denies nobody anything: the answers are those that S3's reference shows."""
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>What {code} says</Message></Error>"

    def deny(server: RangeServer, request: web.Request, number: int) -> web.Response:
        return web.Response(status=CODES[code], text=body, content_type="application/xml")

    with RangeServer(www, trouble=deny) as server:
        options = {"s3": {"endpoint_url": server.url, "key": "me", "secret": SECRET}}
        try:
            message = rf"permission denied: What {code} says \(while .*\); {CREDENTIALS}"
            refused(monkeypatch, good, "s3://bucket/x.h5", message, "--storage-options", json.dumps(options))
        finally:
            forget_s3()
