"""One file for VirtualiZarr's parsers: an object store that has it, with fsspec's options as obstore has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from refindex.access import urls
from refindex.access.files import StorageOptions
from refindex.access.options import options_for
from refindex.errors import UnsupportedError
from refindex.interop.icechunk_storage import s3_options
from refindex.interop.optional import require

PARSED = "file:///source"
"""What parsers take the file to be called: they do not agree on how names are to be encoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OneFile:
    """A file as a parser gets it.

    Parameters
    ----------
    url:
        Absolute.
    store:
        obstore's store.
    path:
        Of the file in the store.
    """

    url: str
    store: Any
    path: str

    def read(self) -> bytes:
        """All of it."""
        return bytes(self.store.get(self.path).bytes())

    def registry(self) -> Any:
        """A registry in which every URL is this file."""
        kind = require("obspec_utils.registry").ObjectStoreRegistry
        store, path = self.store, self.path

        class _OneFileRegistry(kind):  # type: ignore[misc, valid-type]
            def resolve(self, url: str) -> tuple[Any, str]:
                return store, path

        return _OneFileRegistry({PARSED: store})


def in_memory(file: OneFile, data: bytes) -> OneFile:
    """The same file, whose bytes have been read."""
    store = require("obstore.store").MemoryStore()
    store.put("source", data)
    return OneFile(url=file.url, store=store, path="source")


def one_file(url: str, storage_options: StorageOptions) -> OneFile:
    """The file at an absolute URL: local, ``http(s)://`` or ``s3://``.

    Raises
    ------
    UnsupportedError
        If it is on another storage.
    """
    stores = require("obstore.store")
    if urls.is_local(url):
        path = urls.local_path(url)
        return OneFile(url=url, store=stores.LocalStore(str(path.parent)), path=path.name)
    protocol = url.partition("://")[0]
    options = options_for(url, storage_options)
    if protocol in ("http", "https") and "::" not in url:
        parts = urlsplit(url)
        if parts.query or parts.fragment:
            raise UnsupportedError(f"{urls.display(url)}: parsers of VirtualiZarr take no URL with a query")
        client: dict[str, Any] = {"allow_http": True}
        headers = {**(options.get("client_kwargs") or {}).get("headers", {}), **(options.get("headers") or {})}
        if headers:
            client["default_headers"] = headers
        folder, _, name = parts.path.rpartition("/")
        store = stores.HTTPStore.from_url(f"{protocol}://{parts.netloc}{folder}", client_options=client)
        return OneFile(url=url, store=store, path=unquote(name))
    if protocol == "s3" and "::" not in url:
        bucket, _, key = url.partition("://")[2].partition("/")
        return OneFile(url=url, store=_s3(stores, bucket, options), path=key)
    raise UnsupportedError(
        f"{urls.display(url)}: parsers of VirtualiZarr are given local files, http(s):// and s3:// URLs; for others, "
        "run the parser with a store of yours, and give from_virtualizarr what it returns"
    )


def _s3(stores: Any, bucket: str, options: dict[str, Any]) -> Any:
    said = s3_options(options)
    known = {
        "endpoint": said["endpoint_url"],
        "region": said["region"],
        "skip_signature": said["anonymous"] or None,
        "virtual_hosted_style_request": False if said["force_path_style"] else None,
        "access_key_id": options.get("key"),
        "secret_access_key": options.get("secret"),
        "session_token": options.get("token"),
    }
    given = {name: value for name, value in known.items() if value is not None}
    return stores.S3Store(bucket, client_options={"allow_http": said["allow_http"]}, **given)
