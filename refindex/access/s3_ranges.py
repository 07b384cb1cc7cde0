"""S3's GetObject, RFC 9110 ranges of one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refindex.access.gather import COALESCE_GAP
from refindex.access.identity import identify
from refindex.access.multipart import MultipartError
from refindex.access.transport import Answer, ShortAnswerError, Transport
from refindex.errors import NotFoundError, SourceError
from refindex.model.manifest import Source


class S3Ranges(Transport):
    """S3's GetObject through s3fs: unlike the filesystem's own methods, it says what version the bytes are of."""

    tells_identity = True
    many: bool | None = False
    # A request takes botocore milliseconds, and s3fs has 10 connections.
    gap = 2 * COALESCE_GAP

    def __init__(self, fs: Any, path: str, url: str) -> None:
        self._fs, self._path, self._url = fs, path, url

    async def get(self, start: int, stop: int, /) -> Answer:
        bucket, key, version = self._fs.split_path(self._path)
        if not key:
            raise FileNotFoundError(self._path)
        version = {"VersionId": version} if version else {}
        try:
            answer = await self._fs._call_s3(
                "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{stop - 1}", **version
            )
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._url}: no such file ({error})") from error
        except PermissionError:
            raise
        except Exception as error:
            self._explain(error)
            # An empty object has no range at all; s3fs gives the refusal no class of its own.
            if "InvalidRange" not in str(error) and getattr(error, "errno", None) != 22:
                raise
            source = await self.info()
            if source.size > start:
                raise
            return Answer(start=start, data=b"", source=source)
        body = answer["Body"]
        try:
            data = await body.read()
        finally:
            body.close()
        total = str(answer.get("ContentRange", "")).rpartition("/")[2]
        if not total.isdigit():  # a server that knows no ranges
            return Answer(start=0, data=data, source=identify(self._url, {**answer, "size": len(data)}))
        if len(data) != min(stop, int(total)) - start:
            raise ShortAnswerError(f"expected {min(stop, int(total)) - start} bytes at {start}, got {len(data)}")
        return Answer(start=start, data=data, source=identify(self._url, {**answer, "size": int(total)}))

    async def get_many(self, ranges: Sequence[tuple[int, int]], /) -> list[Answer]:
        raise MultipartError("S3 has no requests for several ranges")

    async def info(self) -> Source:
        self._fs.invalidate_cache(self._path)
        return identify(self._url, await self._fs._info(self._path))

    def _explain(self, error: Exception) -> None:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise SourceError(
                f"{self._url}: {error}; set them in the environment or pass storage_options "
                '({"anon": True} for public buckets)'
            ) from error
