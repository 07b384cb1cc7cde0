"""What identifies a version of a file, from what filesystems and servers say of it, each in its own words."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from refindex.model.manifest import Source


def identify(url: str, info: Mapping[str, Any]) -> Source:
    """A file's identity from what a filesystem, or an answer, says of it."""
    return Source(
        url=url,
        size=int(info["size"] or 0),
        mtime=modification_time(info),
        etag=entity_tag(info),
        # What lies over another filesystem, as a cache does, cannot be asked for a version of it.
        version=None if "::" in url else version_id(info),
    )


def entity_tag(info: Mapping[str, Any]) -> str | None:
    """What differs between two versions of a file: the entity tag of HTTP and S3; of a member of a zip, its CRC-32."""
    for name in ("ETag", "etag", "e_tag"):
        if info.get(name):
            return str(info[name])
    checksum = info.get("CRC")
    return f"crc32:{checksum:08x}" if isinstance(checksum, int) else None


def version_id(info: Mapping[str, Any]) -> str | None:
    """What S3 calls this version of an object; None where the bucket keeps none (the id of an object is then null)."""
    found = info.get("VersionId")
    return found if isinstance(found, str) and found not in ("", "null") else None


def modification_time(info: Mapping[str, Any]) -> int | None:
    """Modification time, microseconds since 1970 UTC, from what a filesystem's ``info`` calls it."""
    for name in ("LastModified", "last_modified", "mtime", "updated", "modified", "Last-Modified", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1e6)
        if isinstance(value, int | float):
            return round(value * 1e6)
        if isinstance(value, str):
            for parse in (datetime.fromisoformat, parsedate_to_datetime):
                # Overflow: a year or a zone that no clock has.
                with contextlib.suppress(ValueError, OverflowError):
                    return round(parse(value).timestamp() * 1e6)
    return None
