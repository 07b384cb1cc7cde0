"""S3's GetObject, RFC 9110 ranges of one object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from refindex.access.gather import COALESCE_GAP
from refindex.access.identity import identify, version_id
from refindex.access.multipart import MultipartError
from refindex.access.transport import Answer, ShortAnswerError, Transport
from refindex.errors import NotFoundError, SourceError, StaleSourceError
from refindex.model.manifest import Source


class S3Ranges(Transport):
    """S3's GetObject through s3fs: unlike the filesystem's own methods, it says what version the bytes are of.

    With a ``version``, all answers are of that version of the object, whatever it is now.
    """

    tells_identity = True
    many: bool | None = False
    # A request takes botocore milliseconds, and s3fs has 10 connections.
    gap = 2 * COALESCE_GAP

    def __init__(self, fs: Any, path: str, url: str, version: str | None = None) -> None:
        self._fs, self._path, self._url = fs, path, url
        self._version = version
        self._newest_only = False

    async def get(self, start: int, stop: int, /) -> Answer:
        try:
            answer = await self._ask("get_object", Range=f"bytes={start}-{stop - 1}")
        except FileNotFoundError as error:
            raise NotFoundError(f"{self._url}: no such file ({error})") from error
        except (PermissionError, SourceError):
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
        if self._version is not None:
            answer = await self._ask("head_object")
            return identify(self._url, {**answer, "size": answer["ContentLength"]})
        self._fs.invalidate_cache(self._path)
        return identify(self._url, await self._fs._info(self._path))

    async def _ask(self, method: str, **more: str) -> dict[str, Any]:
        """S3's answer, of the version that is wanted.

        Raises
        ------
        SourceError
            If that version is gone.
        StaleSourceError
            If only the newest version may be read, and that is another one.
        """
        bucket, key, named = self._fs.split_path(self._path)
        if not key:
            raise FileNotFoundError(self._path)
        wanted = named if self._version is None else self._version
        if wanted and not self._newest_only:
            more["VersionId"] = wanted
        try:
            answer: dict[str, Any] = await self._fs._call_s3(method, Bucket=bucket, Key=key, **more)
        except PermissionError:
            # Who may read an object (s3:GetObject) need not be allowed to ask for a version (s3:GetObjectVersion).
            if self._version is None or "VersionId" not in more:
                raise
            self._newest_only = True
            del more["VersionId"]
            answer = await self._fs._call_s3(method, Bucket=bucket, Key=key, **more)
        except Exception as error:
            gone = isinstance(error, FileNotFoundError) or "version id" in str(error).lower()
            if self._version is None or not gone:
                raise
            raise SourceError(
                f"{self._url}: version {self._version}, which was scanned, is gone ({error}). "
                "refindex append --replace takes the file as it is now, if there is one"
            ) from error
        if self._version is not None and version_id(answer) != self._version:
            if "Body" in answer:
                answer["Body"].close()
            raise StaleSourceError(
                f"{self._url} has changed since it was scanned: version was {self._version}, is {version_id(answer)}. "
                "The version that was scanned is gone, or may not be read (s3:GetObjectVersion). refindex append "
                "--replace takes the file as it is now"
            )
        return answer

    def _explain(self, error: Exception) -> None:
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"):
            raise SourceError(
                f"{self._url}: {error}; set them in the environment or pass storage_options "
                '({"anon": True} for public buckets)'
            ) from error
