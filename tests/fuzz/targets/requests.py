"""What comes over HTTP: answers of servers, requests of clients, and URLs wherever they come from."""

from __future__ import annotations

import re
from random import Random
from types import SimpleNamespace
from typing import Any

from refindex.access import http_ranges, multipart, urls
from refindex.access.identity import identify
from refindex.errors import UnsupportedError
from refindex.serve.http import ranges
from tests.fuzz.mutation import join, mutate_bytes, mutate_parts, split
from tests.fuzz.target import FindingError, Target


def run_multipart(data: bytes) -> Any:
    kind, body = split(data, 2)
    try:
        found = multipart.parse_multipart(body, kind.decode("latin-1"))
    except multipart.MultipartError as error:  # its caller asks for the ranges one by one
        raise UnsupportedError("not several ranges") from error
    for piece in found:
        if piece.data not in body or piece.start < 0:
            raise FindingError("a piece that is not in the body")
    return found


def multipart_seeds() -> list[bytes]:
    part = b"\r\n--B\r\nContent-Type: a/b\r\nContent-Range: bytes %d-%d/100\r\n\r\n%b"
    body = part % (0, 9, bytes(10)) + part % (50, 54, b"\r\n--B") + b"\r\n--B--\r\n"
    return [
        join([b"multipart/byteranges; boundary=B", body]),
        join([b'multipart/byteranges; charset=x; boundary="B"', body[2:]]),
        join([b"multipart/byteranges; boundary=B", body.replace(b"/100", b"/*")]),
    ]


def run_headers(data: bytes) -> Any:
    """The headers of an answer, and of a request."""
    span, etag, modified, asked = (part.decode("utf-8", "surrogateescape") for part in split(data, 4))
    answer = SimpleNamespace(headers={"Content-Range": span})
    first, last = http_ranges._span(answer)
    size = http_ranges._total(answer)
    identify("https://host/f", {"ETag": etag, "Last-Modified": modified, "size": size or 0})
    wanted = ranges.requested(asked, 1000)
    if wanted is not None and not 0 <= wanted[0] <= wanted[1] <= 1000:
        raise FindingError(f"the range {wanted} of 1000 bytes")
    ranges.matches(asked, etag)
    if first is None and wanted is None:
        raise UnsupportedError("no ranges")
    return first, last


def header_seeds() -> list[bytes]:
    modified = b"Wed, 21 Oct 2015 07:28:00 GMT"
    return [
        join([b"bytes 0-9/100", b'"abc"', modified, b"bytes=0-9"]),
        join([b"bytes */100", b'W/"x"', modified, b"bytes=-5"]),
        join([b"bytes 5-5/*", b'"abc"', b"0", b"bytes=5-"]),
    ]


def run_urls(data: bytes) -> Any:
    text, base = (part.decode("utf-8", "surrogateescape") for part in split(data, 2))
    for url in (text, base):
        urls.name(url)
        urls.parent(url)
        urls.masked(url)
        urls.display(url)
    full = urls.absolute(text)
    short = urls.relative(full, base)
    if short != full and urls.resolve(short, base) != full:
        raise FindingError(f"{full!r} below {base!r} is {short!r}, which is {urls.resolve(short, base)!r}")
    shown = re.compile(r"[?&]token=s3cr3tt0k3n(?:&|$)")
    if "://" in text and shown.search(urls.masked(text)):
        raise FindingError("a secret is shown")
    return short


def url_seeds() -> list[bytes]:
    pairs = [
        (b"s3://bucket/a/b.nc", b"s3://bucket/a"), (b"/data/x/f.nc", b"file:///data"), (b"zip://a.nc::s3://b/x.zip", b"s3://b"),
        (b"https://u:pw@host/f.nc?token=s3cr3tt0k3n&X-Amz-Signature=abc", b"https://host"), (b"a/../b.nc", b"file:///work"),
        (b"simplecache::https://host/d/a.nc?sig=a.b.c", b"simplecache::https://host/d"), (b"file:///", b"file://"),
    ]  # fmt: skip
    return [join(pair) for pair in pairs]


_PIECES = [
    b"://",
    b"::",
    b"/",
    b"..",
    b"?token=",
    b"&sig=",
    b"token",
    b"?",
    b"=",
    b":",
    b"@",
    b"~",
    b".",
    b"file://",
    b"s3://",
    b"%",
    b"local://",
]


def _url(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.6:
        at = int(rng.random() * (len(data) + 1))
        piece = _PIECES[int(rng.random() * len(_PIECES))]
        times = 1 if rng.random() < 0.95 else int(rng.random() * 4000)
        return (data[:at] + piece * times + data[at:])[:20_000]
    return mutate_bytes(data, rng, resize=0.5)


def _header(data: bytes, rng: Random) -> bytes:
    if rng.random() < 0.2:
        at = int(rng.random() * (len(data) + 1))
        piece = rng.choice(["²".encode(), b"9" * 5000, b"-", b"/", b"bytes ", b"*", "٣".encode(), b",", b"=", b" "])
        return data[:at] + piece + data[at:]
    return mutate_bytes(data, rng, resize=0.4)


TARGETS = [
    Target(
        name="multipart",
        run=run_multipart,
        seeds=multipart_seeds,
        mutate=lambda data, rng: mutate_parts((mutate_bytes, mutate_bytes), data, rng),
        modules=("refindex.access.multipart",),
    ),
    Target(
        name="http-headers",
        run=run_headers,
        seeds=header_seeds,
        mutate=lambda data, rng: mutate_parts((_header,) * 4, data, rng),
        modules=("refindex.serve.http.ranges", "refindex.access.identity"),
    ),
    Target(
        name="urls",
        run=run_urls,
        seeds=url_seeds,
        mutate=lambda data, rng: mutate_parts((_url, _url), data, rng),
        modules=("refindex.access.urls",),
    ),
]
