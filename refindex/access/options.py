"""Which options of fsspec a URL is opened with: for all URLs, for a protocol, or for what lies below a prefix.

Storage options are one mapping. Keys that are URLs (they contain ``://``) are prefixes, each with the options of what
lies below it. All other keys are general: options for the URLs that no prefix matches, and, where a value is a mapping
named after a protocol, the options of that protocol, as fsspec has it::

    {
        "anon": True,
        "s3://private/": {"key": "...", "secret": "..."},
        "https://data.example.org/era5/": {"headers": {"Authorization": "..."}},
    }

The longest prefix that matches is all that counts: its options are not mixed with general ones, nor with those of a
shorter prefix. An option for S3 is an error for HTTP, and ``anon`` must not stay on where there is a key.

Options may be secret: nothing here, nor any caller, writes them anywhere or says them in a message.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import fsspec

from refindex.access.redirects import guarded

type StorageOptions = Mapping[str, Any] | None


def filesystem(url: str, storage_options: StorageOptions = None) -> tuple[Any, str]:
    """The filesystem of fsspec that reaches a URL, and what it calls the file. All filesystems are made here.

    Raises
    ------
    ValueError
        If storage options of a prefix are no mapping, or fsspec knows no such protocol.
    ImportError
        If the protocol needs a package that is not installed; the message names it.
    """
    fs, path = fsspec.core.url_to_fs(url, **guarded_options_for(url, storage_options))
    return fs, str(path)


def filesystem_at(url: str, version: str | None, storage_options: StorageOptions = None) -> tuple[Any, str]:
    """:func:`filesystem`, and what it calls a version of the file; of s3fs alone, others do not know versions."""
    fs, path = filesystem(url, storage_options)
    if version is None or type(fs).__module__ != "s3fs.core":
        return fs, path
    return type(fs)(*fs.storage_args, **{**fs.storage_options, "version_aware": True}), f"{path}?versionId={version}"


def guarded_options_for(url: str, storage_options: StorageOptions = None) -> dict[str, Any]:
    """:func:`options_for`, with sessions that do not follow every redirect, see :mod:`refindex.access.redirects`."""
    options = options_for(url, storage_options)
    first, *others = url.split("::")
    options = guarded(first, options)
    for link in others:
        protocol = link.partition("://")[0]
        if (own := guarded(link, options.get(protocol, {}))) != options.get(protocol, {}):
            options[protocol] = own
    return options


def options_for(url: str, storage_options: StorageOptions = None) -> dict[str, Any]:
    """What ``fsspec.core.url_to_fs`` takes besides a URL.

    Of a chained URL (``zip://a.nc::s3://bucket/x.zip``) every link has options of its own: a prefix is looked up for
    each. General options that are not named after a protocol belong to the first link, as fsspec has it.

    Raises
    ------
    ValueError
        If the options of a prefix are no mapping.
    """
    if not storage_options:
        return {}
    prefixes, general = split_prefixes(storage_options)
    links = [link if "://" in link else f"{link}://" for link in url.split("::")]
    protocols = {link.partition("://")[0] for link in links}
    known = set(fsspec.available_protocols())
    options: dict[str, Any] = {}
    for number, link in reversed(list(enumerate(links))):
        protocol = link.partition("://")[0]
        matching = [prefix for prefix in prefixes if lies_below(link, prefix)]
        if matching:
            own = dict(prefixes[max(matching, key=len)])
        else:
            named = general.get(protocol)
            own = dict(named) if isinstance(named, Mapping) else {}
            if not number:
                # Of a protocol that this URL has nothing of: the filesystem would take it for an option of its own.
                own |= {k: v for k, v in general.items() if not (isinstance(v, Mapping) and k in known | protocols)}
        if number:
            options[protocol] = {**options.get(protocol, {}), **own}
        else:
            options |= own
    return copy.deepcopy(options)  # fsspec changes what it is given


def split_prefixes(storage_options: Mapping[str, Any]) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
    """The options of each prefix, and the general ones.

    Raises
    ------
    ValueError
        If the options of a prefix are no mapping.
    """
    prefixes: dict[str, Mapping[str, Any]] = {}
    general: dict[str, Any] = {}
    for key, value in storage_options.items():
        if "://" not in key:
            general[key] = value
        elif isinstance(value, Mapping):
            prefixes[key] = value
        else:
            raise ValueError(
                f"storage options for {key} must be a mapping of options, as {{'anon': True}}; "
                f"got {type(value).__name__}"
            )
    return prefixes, general


def lies_below(url: str, prefix: str) -> bool:
    """Whether a URL is a prefix or goes on after it at the border of a path segment."""
    if not url.startswith(prefix):
        return False
    return prefix.endswith("/") or len(url) == len(prefix) or url[len(prefix)] in "/?#"
