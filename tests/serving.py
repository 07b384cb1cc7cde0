"""An HTTP server of this machine that delays, counts, and misbehaves as told; files come with ranges (RFC 9110, 14).

Also ``python -m tests.serving FOLDER DELAY``, for measurements: prints its port, ends with its standard input; the
path ``/-/counts`` tells requests and bytes so far and starts again.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
import threading
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path
from typing import Any

from aiohttp import web

type Answer = web.StreamResponse | None
type Trouble = Callable[["RangeServer", web.Request, int], Any]
"""Called with every request and its number, before it is answered; may return (or await) an answer of its own."""


class RangeServer:
    """Static files with ranges, on a thread of its own.

    Parameters
    ----------
    delay:
        Seconds before every answer.
    several:
        Whether one request may ask for several ranges.
    ranges:
        Whether it knows ranges at all.
    tells:
        Headers that tell the version of a file.
    tls:
        With what to speak HTTPS.
    """

    def __init__(
        self,
        folder: Path,
        *,
        delay: float = 0,
        several: bool = True,
        ranges: bool = True,
        tells: tuple[str, ...] = ("ETag", "Last-Modified"),
        trouble: Trouble | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.folder, self.delay, self.several, self.ranges, self.tells = folder, delay, several, ranges, tells
        self.trouble = trouble
        self._tls = tls
        self.requests: list[tuple[str, str | None]] = []
        self.nbytes = 0
        self.most_at_once = self._now = 0
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise TimeoutError("the server does not start")

    def __enter__(self) -> RangeServer:
        return self

    def __exit__(self, *error: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def forget(self) -> None:
        """Count from here on."""
        self.requests.clear()
        self.nbytes = self.most_at_once = 0

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        runner = self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(self._stop(runner))
        self._loop.close()

    async def _stop(self, runner: web.AppRunner) -> None:
        await runner.cleanup()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        # What is in a TLS handshake, or waits for the client's close_notify, is known to no server object any more; the
        # loop alone has it, and would leave its socket to the garbage collector.
        for transport in list(self._loop._transports.values()):  # type: ignore[attr-defined]
            transport.abort()
        for _ in range(3):
            await asyncio.sleep(0)

    async def _start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get("/-/counts", self._counts)
        app.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        self.port = runner.addresses[0][1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"
        self._ready.set()
        return runner

    async def _counts(self, request: web.Request) -> web.StreamResponse:
        found = {"requests": len(self.requests), "nbytes": self.nbytes, "most_at_once": self.most_at_once}
        self.forget()
        return web.json_response(found)

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        number = len(self.requests)
        self.requests.append((request.path, request.headers.get("Range")))
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        try:
            if self.delay:
                await asyncio.sleep(self.delay)
            if self.trouble is not None:
                answer = self.trouble(self, request, number)
                if asyncio.iscoroutine(answer):
                    answer = await answer
                if answer is not None:
                    return answer
            return self.file(request)
        finally:
            self._now -= 1

    def file(self, request: web.Request) -> web.StreamResponse:
        """What a sound server answers."""
        path = self.folder / request.match_info["path"]
        if not path.is_file():
            raise web.HTTPNotFound
        status = path.stat()
        said = {
            "ETag": f'"{status.st_mtime_ns:x}-{status.st_size:x}"',
            "Last-Modified": formatdate(status.st_mtime, usegmt=True),
        }
        headers = {name: said[name] for name in self.tells}
        asked = request.headers.get("Range", "")
        if self.ranges and asked.startswith("bytes="):
            return self._part(path, status.st_size, asked.removeprefix("bytes="), headers)
        return self._send(web.Response(body=path.read_bytes(), headers=headers))

    def _part(self, path: Path, size: int, asked: str, headers: dict[str, str]) -> web.StreamResponse:
        spans = []
        for span in asked.split(","):
            first, _, last = span.strip().partition("-")
            spans.append((int(first), min(int(last or size - 1), size - 1)))
        if (len(spans) > 1 and not self.several) or any(first > last for first, last in spans):
            return web.Response(status=416, headers={"Content-Range": f"bytes */{size}"})
        with path.open("rb") as file:
            parts = []
            for first, last in spans:
                file.seek(first)
                parts.append(file.read(last + 1 - first))
        if len(spans) == 1:
            (first, last), (body,) = spans[0], parts
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"
            return self._send(web.Response(status=206, body=body, headers=headers))
        headers["Content-Type"] = "multipart/byteranges; boundary=part-of-it"
        body = b"".join(
            b"\r\n--part-of-it\r\nContent-Type: application/octet-stream\r\nContent-Range: bytes %d-%d/%d\r\n\r\n%b"
            % (first, last, size, part)
            for (first, last), part in zip(spans, parts, strict=True)
        )
        return self._send(web.Response(status=206, body=body + b"\r\n--part-of-it--\r\n", headers=headers))

    def _send(self, response: web.Response) -> web.Response:
        self.nbytes += len(response.body)
        return response


def forget_s3() -> None:
    """Close the connections of all S3 filesystems, and forget these: what collects them later would complain."""
    import s3fs
    from fsspec.asyn import sync

    for fs in list(s3fs.S3FileSystem._cache.values()):
        if fs._s3 is not None:
            sync(fs.loop, fs._s3.__aexit__, None, None, None, timeout=10)
    s3fs.S3FileSystem.clear_instance_cache()


def main() -> None:
    with RangeServer(Path(sys.argv[1]), delay=float(sys.argv[2]), several="single" not in sys.argv[3:]) as server:
        print(server.port, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
