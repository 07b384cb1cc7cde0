"""Where Icechunk repositories are: local folders and S3, with s3fs's options as Icechunk has them."""

from __future__ import annotations

from typing import Any

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.options import options_for
from refindex.errors import UnsupportedError


def storage_at(icechunk: Any, url: str, storage_options: StorageOptions) -> Any:
    """The ``icechunk.Storage`` at an absolute URL.

    Raises
    ------
    UnsupportedError
        If it is on another storage.
    """
    if urls.is_local(url):
        return icechunk.local_filesystem_storage(str(urls.local_path(url)))
    protocol, _, path = url.partition("://")
    bucket, _, prefix = path.strip("/").partition("/")
    if protocol != "s3" or "::" in url:
        raise UnsupportedError(
            f"{urls.display(url)}: give a local path or an s3:// URL; for others, an icechunk.Storage to export "
            "to, an open icechunk.Repository to import"
        )
    options = options_for(url, storage_options)
    known = s3_options(options)
    del known["s3_compatible"]
    if not known["anonymous"]:
        del known["anonymous"]
        if options.get("key"):
            known |= {
                "access_key_id": options["key"],
                "secret_access_key": options.get("secret"),
                "session_token": options.get("token"),
            }
        else:
            known["from_env"] = True
    return icechunk.s3_storage(bucket=bucket, prefix=prefix, **known)


def s3_options(options: dict[str, Any]) -> dict[str, Any]:
    """Options of s3fs that say where a bucket is."""
    client = options.get("client_kwargs") or {}
    endpoint = options.get("endpoint_url") or client.get("endpoint_url")
    return {
        "region": client.get("region_name") or ("us-east-1" if endpoint else None),
        "endpoint_url": endpoint,
        "allow_http": bool(endpoint and endpoint.startswith("http://")),
        "anonymous": bool(options.get("anon")),
        "force_path_style": bool(endpoint),
        "s3_compatible": bool(endpoint),
    }
